"""Which models a run needs: those that it asks, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cai import embedded, paths, session
from cai.config import Config
from cai.errors import UserError
from cai.roles import name_of, roles
from cai.schema import to_config

SERVED = ("feedback=endpoint", "feedback.server.model=judge")
QWEN = "model@phase.feedback_model=qwen2_5_0_5b"


def config_of(*overrides: str) -> Config:
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        return to_config(compose("config", overrides=list(overrides)))


def named(*overrides: str) -> dict[str, str]:
    return {role: name_of(asked) for role, asked in roles(config_of(*overrides)).items()}


def test_a_whole_run_asks_policy_critic_and_judge() -> None:
    assert named("phase=rlaif", QWEN) == {
        "policy": "smollm2_135m",
        "critique model (main)": "smollm2_135m",
        "feedback model": "qwen2_5_0_5b",
    }


@pytest.mark.parametrize("phase", ["rlaif", "evaluate"])
def test_a_server_that_judges_takes_the_place_of_the_feedback_model(phase: str) -> None:
    found = named(f"phase={phase}", QWEN, *SERVED)
    assert found["feedback model"] == "judge (server)"
    assert "qwen2_5_0_5b" not in found.values()


def test_a_method_with_its_own_model_does_not_ask_the_phases() -> None:
    own = ("feedback=likelihood", "model@feedback.model=smollm2_135m", QWEN)
    assert named("phase=evaluate", *own) == {"feedback model": "smollm2_135m"}


def test_an_audit_asks_a_judge_and_samples_pairs_unless_it_reads_alone() -> None:
    judge = {"feedback model": "qwen2_5_0_5b"}
    assert named("phase=audit", QWEN) == {"policy": "smollm2_135m", **judge}
    assert named("phase=audit", QWEN, "audit.pairs_from=run") == judge
    assert named("phase=audit", QWEN, "audit.num_pairs=0") == {}


def test_members_of_an_ensemble_are_roles_of_their_own() -> None:
    members = (
        "feedback=ensemble", "~feedback.members.third", QWEN,
        "feedback@feedback.members.second=endpoint", "feedback.members.second.server.model=judge",
    )  # fmt: skip
    found = {"feedback model (first)": "qwen2_5_0_5b", "feedback model (second)": "judge (server)"}
    assert named("phase=evaluate", *members) == found
    both = (*members, "feedback@feedback.members.first=endpoint")
    served = named("phase=evaluate", *both, "feedback.members.first.server.model=other")
    assert "qwen2_5_0_5b" not in served.values()


def test_phase_one_judges_only_where_critiques_are_compared() -> None:
    with_controls = named("phase=sl_cai", QWEN, "evaluation.num_critique_controls=4")
    assert with_controls["feedback model"] == "qwen2_5_0_5b"
    nothing = ("evaluation.num_critique_controls=0", "evaluation.elo.num_prompts=0")
    without = named("phase=sl_cai", QWEN, *nothing)
    assert list(without) == ["policy", "critique model (main)"]
    played = named("phase=sl_cai", QWEN, "evaluation.num_critique_controls=0")
    assert played["feedback model"] == "qwen2_5_0_5b"


def test_a_judge_of_policies_is_a_role_where_policies_meet() -> None:
    judge = ("feedback@evaluation.judge=likelihood", QWEN)
    own = (*judge, "model@evaluation.judge.model=smollm2_135m")
    assert named("phase=rlaif", *judge)["judge of policies"] == "qwen2_5_0_5b"
    assert named("phase=rlaif", *own)["judge of policies"] == "smollm2_135m"
    assert named("phase=evaluate", *own, "evaluation.elo.runs=[a]")["judge of policies"]
    for elsewhere in (("phase=evaluate",), ("phase=rlaif", "evaluation.elo.num_prompts=0")):
        assert "judge of policies" not in named(*elsewhere, *own)


def test_a_preference_model_of_its_own_is_a_role() -> None:
    found = named("phase=rlaif", "model@phase.preference_base=qwen2_5_0_5b")
    assert found["preference model"] == "qwen2_5_0_5b"


def test_only_embedded_models_that_are_asked_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    session.require_models(config_of("phase=evaluate", QWEN, *SERVED))
    with pytest.raises(UserError, match="qwen2_5_0_5b"):
        session.require_models(config_of("phase=evaluate", QWEN))
    smollm2 = embedded.named("smollm2_135m").folder
    smollm2.mkdir(parents=True)
    (smollm2 / embedded.SEAL).touch()
    session.require_models(config_of("phase=rlaif", QWEN, *SERVED))
