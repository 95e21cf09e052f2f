from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai import adapters
from cai.critic_record import CritiqueRollout, RolloutJudgement
from cai.models import folder_sha256
from cai.types import Response, Rollout, Unjudged, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments
from tests.tiny import lora, scramble

POLICY = ["phase.ppo.num_iterations=2"]
CRITIC = ["phase.learner=critique_model", "phase.adapter_name=paid"]


def arguments(model: Path, *more: str) -> list[str]:
    return [*tiny_arguments(model, "critique_rl"), *more]


@pytest.fixture(scope="module")
def policy(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Direct RLAIF, uninterrupted."""
    finished = run(tmp_path_factory.mktemp("policy"), *arguments(tiny_folder, *POLICY))
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def critic(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The critic by PPO, uninterrupted."""
    finished = run(tmp_path_factory.mktemp("critic"), *arguments(tiny_folder, *CRITIC))
    assert finished.code == 0, finished.output
    return finished


def lines(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    (folder,) = (finished.folder / "outputs" / "store" / stage).glob("*/")
    return list(parse_lines(kind, (folder / name).read_text("ascii"), name))


def test_the_policy_is_paid_by_the_feedback_and_no_preference_model_is_trained(
    policy: Finished,
) -> None:
    statuses = policy.statuses()
    assert "reward_references" in statuses
    assert "direct_policy" in statuses
    assert not {"pairs", "comparisons", "preference_model"} & set(statuses)
    assert statuses["responses"] == ["computed"] * 3
    assert len(statuses["matches"]) == 3


def test_every_rollout_keeps_its_principle_and_judgement(policy: Finished) -> None:
    rollouts = lines(policy, "direct_policy", Rollout, "rollouts.jsonl")
    judged = lines(policy, "direct_policy", RolloutJudgement, "judgements.jsonl")
    references = {r.prompt.id: r for r in lines(policy, "reward_references", Response)}
    assert len(rollouts) == len(judged) == 2 * 4
    for rollout, one in zip(rollouts, judged, strict=True):
        assert (one.iteration, one.prompt_id) == (rollout.iteration, rollout.prompt.id)
        assert one.score == pytest.approx(rollout.score, abs=1e-6)
        assert one.comparison.response_a == rollout.sample.text
        assert one.comparison.response_b == references[one.prompt_id].sample.text
        assert one.comparison.principle_ids == (one.principle_id,)
        assert (one.value is None) == (one.unjudged is not None)
        assert -3 <= one.score <= 3
    assert len({one.principle_id for one in judged}) > 1


def test_the_story_has_the_reward_and_calls_elo_circular(policy: Finished) -> None:
    run_dir = policy.run_dirs()[-1]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["reward/num_rollouts"] == 8
    assert "reward/last_round_low" in metrics
    assert "eval/critique_rl/likelihood_accuracy" in metrics
    page = html.unescape((run_dir / "report.html").read_text("utf-8"))
    assert "PPO on the feedback's own answers" in page
    assert "beats the SL-CAI policy's own" in page
    assert "Elo ratings are circular" in " ".join(policy.output.split())
    assert "Direct RLAIF" in policy.output


@pytest.mark.parametrize("learner", ["policy", "critic"])
def test_a_killed_round_is_done_again_to_the_same_bytes(
    learner: str, request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path
) -> None:
    whole: Finished = request.getfixturevalue(learner)
    stage = {"policy": "direct_policy", "critic": "rl_critic"}[learner]
    more = {"policy": POLICY, "critic": CRITIC}[learner]
    killed = run(tmp_path, *arguments(tiny_folder, *more), fault=f"{stage}:step=3:kill")
    assert killed.code == -9
    assert not list(tmp_path.glob(f"outputs/store/{stage}/*/manifest.json"))
    finished = run(tmp_path, *arguments(tiny_folder, *more))
    assert finished.code == 0, finished.output
    assert finished.statuses()[stage] == ["continued"]
    assert artifact_bytes(tmp_path) == artifact_bytes(whole.folder)


def test_critiques_are_paid_by_the_revision_that_follows(critic: Finished) -> None:
    rollouts = lines(critic, "rl_critic", CritiqueRollout, "rollouts.jsonl")
    assert len(rollouts) == 2 * 4
    for one in rollouts:
        judgement = one.judgement
        assert judgement.principle_id == one.principle_id
        if one.outcome.accepted:
            assert judgement.comparison.response_a == one.response
            assert judgement.comparison.response_b == one.draft
        else:
            assert (judgement.comparison, judgement.unjudged) == (None, None)
            assert judgement.score == -1.0
            assert one.response == one.draft
    statuses = critic.statuses()
    assert statuses["trusted_checks"] == ["computed"] * 2
    assert "sl_policy" not in statuses
    assert (critic.folder / "outputs" / "adapters" / "paid" / "cai.json").is_file()


def moved_adapter(model: Path, folder: Path) -> None:
    """A critic that is far from its base, as a training stage saves it."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tuned = adapters.attach(loaded, lora(rank=16, alpha=32), adapter="policy", seed=3)
    scramble(tuned, "policy", torch.Generator().manual_seed(3), scale=0.3)
    adapters.save_adapter(
        tuned,
        "policy",
        folder,
        base_id=str(model),
        base_sha256=folder_sha256(model),
        probe_ids=[5, 6, 7],
    )


def test_ppo_goes_on_from_a_trained_critic(critic: Finished, tiny_folder: Path) -> None:
    start = critic.folder / "trained"
    moved_adapter(tiny_folder, start)
    more = [*CRITIC, f"phase.critique_models.main.start={start}", "phase.adapter_name=again"]
    finished = run(critic.folder, *arguments(tiny_folder, *more))
    assert finished.code == 0, finished.output
    statuses = finished.statuses()
    assert statuses["rl_critic"] == ["computed"]
    assert statuses["trusted_checks"] == ["reused", "computed", "computed"]
    metrics = json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())
    base, begun, after = (metrics[f"critic/{name}/loss"] for name in ("base", "start", "critic"))
    assert abs(after - begun) < 0.1 * abs(begun - base)
    assert "critic/vs_start" in metrics


def test_a_single_value_is_a_reward_for_methods_that_give_one(
    policy: Finished, tiny_folder: Path
) -> None:
    more = [*POLICY, "phase.reward=score"]
    refused = run(policy.folder, *arguments(tiny_folder, *more), "plan=true")
    assert refused.code == 2
    assert "Type feedback=pointwise or feedback=score" in " ".join(refused.output.split())
    more += ["feedback=score", "feedback.gate=off", "evaluation.elo.num_prompts=0"]
    finished = run(policy.folder, *arguments(tiny_folder, *more))
    assert finished.code == 0, finished.output
    assert "reward_references" not in finished.statuses()
    (folder,) = [
        one
        for one in (policy.folder / "outputs" / "store" / "direct_policy").glob("*/")
        if one.name
        == next(
            stage["digest"]
            for stage in finished.manifest()["stages"]
            if stage["stage"] == "direct_policy"
        )
    ]
    judged = list(
        parse_lines(RolloutJudgement, (folder / "judgements.jsonl").read_text("ascii"), "j")
    )
    assert all(one.comparison is None for one in judged)
    assert all(one.score == one.value for one in judged if one.unjudged is None)
    assert {one.unjudged for one in judged} <= {None, Unjudged.empty}


def test_a_plan_names_the_stages_of_each_learner(tiny_folder: Path, tmp_path: Path) -> None:
    for more, stage in ((POLICY, "direct_policy"), (CRITIC, "rl_critic")):
        planned = run(tmp_path, *arguments(tiny_folder, *more), "plan=true")
        assert planned.code == 0, planned.output
        assert stage in planned.output


def test_bad_settings_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    cases = {
        "phase.max_log_odds=0": "max_log_odds must be above 0",
        "phase.ppo.select=gold_peak": "needs a gold preference model",
        "phase.learner=critic": "learner",
    }
    for override, message in cases.items():
        finished = run(tmp_path, *arguments(tiny_folder, override))
        assert finished.code == 2, finished.output
        assert message in " ".join(finished.output.split())
    assert not list(tmp_path.glob("outputs/store/*/*/manifest.json"))
