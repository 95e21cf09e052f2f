"""Whole runs with a gold preference model: snapshots, scores under both, the policy kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cai.goodhart import SnapshotScore
from cai.stages.goodhart import SELECTION
from cai.stages.preference_model import VALIDATION
from cai.types import Comparison, Evaluated, PreferencePrediction, Response, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

GOLD = ("feedback=likelihood", "phase.gold=true", "phase.ppo.num_iterations=3")
"""Feedback that has an opinion about what a random model writes, so that something is learned."""
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run that keeps the policy after every round."""
    finished = run(tmp_path_factory.mktemp("gold"), *tiny_arguments(tiny_folder), *GOLD)
    assert finished.code == 0, finished.output
    return finished


def manifest(finished: Finished, place: int = 0) -> dict:
    """Of the first run in the folder, or of another one."""
    return json.loads((finished.run_dirs()[place] / "manifest.json").read_text())


def artifact(finished: Finished, stage: str, place: int = 0) -> Path:
    stages = manifest(finished, place)["stages"]
    (digest,) = {s["digest"] for s in stages if s["stage"] == stage}
    return finished.folder / "outputs" / "store" / stage / digest


def records(folder: Path, kind: type, name: str = "records.jsonl") -> list:
    path = folder / name
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def metrics(finished: Finished, place: int = 0) -> dict[str, float]:
    return json.loads((finished.run_dirs()[place] / "metrics.json").read_text())


def counts(finished: Finished, stage: str) -> dict[str, int]:
    stages = manifest(finished)["stages"]
    (found,) = [s["counts"] for s in stages if s["stage"] == stage]
    return found


def test_both_models_share_the_held_out_pairs_and_no_training_pair(whole: Finished) -> None:
    proxy, gold = artifact(whole, "preference_model"), artifact(whole, "gold_preference_model")
    held_out = [
        [(p.name, p.prob_a) for p in records(folder, PreferencePrediction, VALIDATION)]
        for folder in (proxy, gold)
    ]
    assert held_out[0] == held_out[1] != []
    own = [counts(whole, s)["ai"] for s in ("preference_model", "gold_preference_model")]
    compared = records(artifact(whole, "comparisons"), Comparison)
    assert min(own) > 0
    assert sum(own) + len(held_out[0]) == sum(c.prob_a is not None for c in compared)
    weights = [(folder / "adapter" / ADAPTER).read_bytes() for folder in (proxy, gold)]
    assert weights[0] != weights[1]


def test_snapshots_are_the_policy_on_its_way(whole: Finished) -> None:
    policy = artifact(whole, "policy")
    files = [policy / f"snapshots/{n:05d}" / ADAPTER for n in (1, 2)] + [
        policy / "adapter" / ADAPTER
    ]
    assert sorted(path.name for path in (policy / "snapshots").iterdir()) == ["00001", "00002"]
    start = load_file(artifact(whole, "sl_policy") / "adapter" / ADAPTER)
    moved = [
        sum(float((tensor - start[name]).abs().sum()) for name, tensor in load_file(path).items())
        for path in files
    ]
    assert len({0.0, *moved}) == 4


def test_keeping_snapshots_does_not_change_what_is_learned(
    whole: Finished, tiny_folder: Path
) -> None:
    once = run(whole.folder, *tiny_arguments(tiny_folder), *GOLD, "phase.ppo.snapshot_every=3")
    assert once.code == 0, once.output
    assert once.statuses()["preference_model"] == ["reused"]
    assert once.statuses()["policy"] == ["computed"]
    mine, theirs = artifact(once, "policy", -1), artifact(whole, "policy")
    assert mine != theirs
    for name in (f"adapter/{ADAPTER}", "rollouts.jsonl"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    assert not (mine / "snapshots").exists()


@pytest.mark.parametrize(
    "point", ["policy:checkpoint=2", "policy:step=5", "snapshot_scores:shard=2"]
)
def test_a_killed_run_keeps_the_same_snapshots(
    whole: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    arguments = (*tiny_arguments(tiny_folder), *GOLD)
    killed = run(tmp_path, *arguments, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    mine, theirs = artifact_bytes(tmp_path), artifact_bytes(whole.folder)
    assert any("snapshots/00002" in name for name in mine)
    assert mine == {name: content for name, content in theirs.items() if name in mine}


def test_every_snapshot_answers_the_same_prompts(whole: Finished) -> None:
    found = records(artifact(whole, "snapshot_scores"), SnapshotScore)
    by_round = {n: [r for r in found if r.num_rounds == n] for n in range(4)}
    assert len(found) == sum(map(len, by_round.values()))
    assert len({tuple((r.kind, r.prompt_id) for r in own) for own in by_round.values()}) == 1
    assert {r.kl for r in by_round[0]} == {0.0}
    scores = [r.proxy for r in by_round[3]]
    assert scores != [r.gold for r in by_round[3]]


def test_the_last_snapshot_has_the_scores_of_the_evaluation(whole: Finished) -> None:
    """Two ways to the same numbers: the stage `evaluation` scores the last round's policy too."""
    evaluated = {
        (str(e.response.prompt.kind), e.response.prompt.id): e.score
        for e in records(artifact(whole, "evaluation"), Evaluated)
        if e.response.policy == "rl_cai"
    }
    found = records(artifact(whole, "snapshot_scores"), SnapshotScore)
    mine = {(r.kind, r.prompt_id): r.proxy for r in found if r.num_rounds == 3}
    assert mine == pytest.approx(evaluated, abs=1e-4)


def test_responses_are_shared_with_the_evaluation(whole: Finished) -> None:
    # Start, two snapshots and the last, then base, start and last for the evaluation.
    stages = [s["status"] for s in manifest(whole)["stages"] if s["stage"] == "responses"]
    assert sorted(stages) == ["computed"] * 5 + ["reused"] * 2
    rounds = {
        path.parent.name: len(records(path.parent, Response))
        for path in (whole.folder / "outputs/store/responses").glob("*/records.jsonl")
    }
    assert len(set(rounds.values())) == 1


def test_the_peak_becomes_the_policy_of_the_run(whole: Finished, tiny_folder: Path) -> None:
    peak = run(whole.folder, *tiny_arguments(tiny_folder), *GOLD, "phase.ppo.select=gold_peak")
    assert peak.code == 0, peak.output
    statuses = peak.statuses()
    for stage in ("policy", "snapshot_scores", "gold_preference_model"):
        assert statuses[stage] == ["reused"]
    assert statuses["selected_policy"] == ["computed"]
    folder = artifact(peak, "selected_policy", -1)
    chosen = json.loads((folder / SELECTION).read_text())["num_rounds"]
    sources = {
        0: artifact(peak, "sl_policy") / "adapter",
        1: artifact(peak, "policy") / "snapshots/00001",
        2: artifact(peak, "policy") / "snapshots/00002",
        3: artifact(peak, "policy") / "adapter",
    }
    assert (folder / "adapter" / ADAPTER).read_bytes() == (sources[chosen] / ADAPTER).read_bytes()
    assert metrics(peak, -1)["goodhart/selected_round"] == chosen


def test_metrics_and_report_tell_it(whole: Finished) -> None:
    found = metrics(whole)
    for name in (
        "gold_preference_model/accuracy",
        "goodhart/round_0/proxy",
        "goodhart/round_3/gold_low",
        "goodhart/round_0/kl_high",
        "goodhart/round_3/gap",
        "goodhart/peak_round",
        "goodhart/over_optimised",
        "goodhart/selected_round",
    ):
        assert name in found
    assert found["goodhart/round_0/sqrt_kl"] == 0.0
    assert found["goodhart/selected_round"] == 3
    page = (whole.run_dirs()[0] / "report.html").read_text("utf-8")
    assert 'id="goodhart"' in page
    table = json.loads((whole.run_dirs()[0] / "tables/goodhart.json").read_text())
    assert [row[0] for row in table["rows"]] == ["0", "1", "2", "3"]


def test_a_plan_knows_what_would_run(whole: Finished, tiny_folder: Path, tmp_path: Path) -> None:
    plan = run(
        tmp_path,
        *tiny_arguments(tiny_folder),
        *GOLD,
        "phase.ppo.select=gold_peak",
        "plan=true",
    )
    assert plan.code == 0, plan.output
    for stage in ("gold_preference_model", "snapshot_scores", "selected_policy"):
        assert stage in plan.output


def test_a_peak_without_a_gold_model_is_refused_before_anything_runs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    refused = run(tmp_path, *tiny_arguments(tiny_folder), "phase.ppo.select=gold_peak")
    assert refused.code == 2
    assert "phase.gold=true" in refused.output
    assert not (tmp_path / "outputs" / "store").exists()
