"""Whole runs with other preference models: another base, an ensemble, principles in the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.stages.evaluation import PM_TESTS
from cai.stages.preference_model import VALIDATION
from cai.types import Comparison, Evaluated, PreferencePrediction, Rollout, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

ENSEMBLE = (
    "phase.comparisons.principles_per_pair=2",
    "phase.preference_model.condition=principle",
    "phase.preference_model.principles_per_score=2",
    "phase.preference_model.num_members=2",
    "phase.preference_model.combine=mean_minus_std",
    "phase.preference_model.max_length=4096",
)
"""Two members; every comparison is two pairs."""


def records(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    (path,) = (finished.folder / "outputs" / "store" / stage).glob(f"*/{name}")
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def metrics(finished: Finished) -> dict[str, float]:
    return json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())


@pytest.fixture(scope="module")
def ensemble(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run."""
    finished = run(tmp_path_factory.mktemp("ensemble"), *tiny_arguments(tiny_folder), *ENSEMBLE)
    assert finished.code == 0, finished.output
    return finished


def test_every_principle_of_a_comparison_is_a_pair_and_every_member_is_kept(
    ensemble: Finished,
) -> None:
    judged = [c for c in records(ensemble, "comparisons", Comparison) if c.prob_a is not None]
    (counts,) = [
        s["counts"] for s in ensemble.manifest()["stages"] if s["stage"] == "preference_model"
    ]
    assert counts["ai"] + counts["held_out"] == 2 * len(judged)
    assert counts["steps"] == 4  # so that the third one is in the second member
    (artifact,) = (ensemble.folder / "outputs" / "store" / "preference_model").glob("*/")
    for name in ("adapter", "adapter_2"):
        assert (artifact / name / "adapter_model.safetensors").stat().st_size > 0
    first, second = (
        (artifact / name / "adapter_model.safetensors").read_bytes()
        for name in ("adapter", "adapter_2")
    )
    assert first != second
    curve = json.loads((artifact / "curve.json").read_text())
    assert [row["step"] for row in curve] == list(range(1, counts["steps"] + 1))


def test_held_out_pairs_are_predicted_under_their_own_principle_by_every_member(
    ensemble: Finished,
) -> None:
    found = records(ensemble, "preference_model", PreferencePrediction, VALIDATION)
    labels = {
        (c.prompt.id, label.principle_id): label.prob_a
        for c in records(ensemble, "comparisons", Comparison)
        for label in c.labels
    }
    assert found
    for pair in found:
        (principle_id,) = pair.principle_ids
        assert pair.prob_a == labels[pair.name, principle_id]
        assert len(pair.scores_a) == len(pair.scores_b) == 2
        assert 0 < pair.predicted < 1
    tests = records(ensemble, "evaluation", PreferencePrediction, PM_TESTS)
    assert {pair.name.rpartition("-")[0] for pair in tests} == {
        principle_id for pair in tests for principle_id in pair.principle_ids
    }
    assert all(e.score is not None for e in records(ensemble, "evaluation", Evaluated))


def test_the_account_tells_of_the_members_and_the_principle(ensemble: Finished) -> None:
    told = metrics(ensemble)
    assert told["preference_model/member_disagreement"] > 0
    assert "preference_model/member_conflicts_low" in told
    assert told["preference_model/cross_entropy"] >= told["preference_model/label_entropy"] - 1e-9
    account = json.loads((ensemble.run_dirs()[-1] / "attribution.json").read_text())
    assert sum(row["share"] for row in account["principles"]) == pytest.approx(1)
    labelled = sum(row["num_comparisons"] for row in account["principles"])
    assert labelled > account["num_comparisons"]  # every one under several principles
    page = (ensemble.run_dirs()[-1] / "report.html").read_text("utf-8")
    for text in (
        "It is an ensemble of 2, each calibrated by itself; a score is their mean minus std.",
        "tests, each under its own principle",
        "Standard deviation over the members",
        "Entropy of these labels",
    ):
        assert text in page


@pytest.mark.parametrize("point", ["preference_model:step=3", "preference_model:checkpoint=3"])
def test_killed_inside_a_member_it_ends_with_the_same_bytes(
    ensemble: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    arguments = [*tiny_arguments(tiny_folder), *ENSEMBLE]
    killed = run(tmp_path, *arguments, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()["preference_model"] == ["continued"]
    mine = artifact_bytes(tmp_path)
    assert mine == {k: v for k, v in artifact_bytes(ensemble.folder).items() if k in mine}


def test_another_combination_trains_no_preference_model_again(
    ensemble: Finished, tiny_folder: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder), *ENSEMBLE, "phase.preference_model.combine=min"]
    other = run(ensemble.folder, *arguments)
    assert other.code == 0, other.output
    statuses = other.statuses()
    assert statuses["preference_model"] == ["reused"]
    assert statuses["policy"] == ["computed"]
    assert statuses["evaluation"] == ["computed"]


def other_base(folder: Path) -> list[str]:
    return [
        "model@phase.preference_base=local",
        f"phase.preference_base.path={folder}",
        "phase.preference_base.max_context=6000",
    ]


def test_a_preference_model_may_have_another_base_and_tokenizer(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder), *other_base(other_folder)]
    plan = run(tmp_path, *arguments, "plan=true")
    assert plan.code == 0, plan.output
    refused = run(tmp_path, *arguments, "phase.ppo.value_adapter=own")
    assert refused.code == 2, refused.output
    assert "phase.preference_base=local has other weights" in refused.output
    assert not (tmp_path / "outputs" / "store" / "drafts").exists()
    killed = run(tmp_path, *arguments, fault="policy:step=3:kill")
    assert killed.code == -9, killed.output
    done = run(tmp_path, *arguments)
    assert done.code == 0, done.output
    assert done.statuses()["preference_model"] == ["reused"]
    (counts,) = [s["counts"] for s in done.manifest()["stages"] if s["stage"] == "policy"]
    rollouts = records(done, "policy", Rollout, "rollouts.jsonl")
    assert counts["not_text"] == sum("\ufffd" in r.sample.text for r in rollouts)
    assert len({rollout.score for rollout in rollouts}) > 1
    assert metrics(done)["preference_model/accuracy_low"] >= 0
    (adapter,) = (tmp_path / "outputs" / "store" / "preference_model").glob("*/adapter/cai.json")
    policy = next((tmp_path / "outputs" / "store" / "policy").glob("*/adapter/cai.json"))
    identities = [json.loads(path.read_text())["base_sha256"] for path in (adapter, policy)]
    assert identities[0] != identities[1]
    page = (done.run_dirs()[-1] / "report.html").read_text("utf-8")
    assert "Model: preference model" in page
    whole = run(tmp_path / "whole", *arguments)
    assert whole.code == 0, whole.output
    mine = artifact_bytes(tmp_path / "whole")
    assert mine == {k: v for k, v in artifact_bytes(tmp_path).items() if k in mine}


def test_the_policys_own_base_by_name_is_shared_and_gives_the_same_scores(
    tiny_folder: Path, tmp_path: Path
) -> None:
    plain = run(tmp_path, *tiny_arguments(tiny_folder))
    assert plain.code == 0, plain.output
    named = run(tmp_path, *tiny_arguments(tiny_folder), *other_base(tiny_folder))
    assert named.code == 0, named.output
    assert named.statuses()["preference_model"] == ["reused"]
    assert named.statuses()["policy"] == ["reused"]
