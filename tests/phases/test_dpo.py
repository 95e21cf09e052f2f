from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from cai.seeds import derive_seed
from cai.stages.dpo import labelled_pairs
from cai.stages.preference_model import VALIDATION
from cai.stages.preference_pairs import validation_prompts
from cai.types import Comparison, PreferencePrediction, Response, parse_lines
from tests.runs import Finished, artifact_bytes, run, stage_lines, tiny_arguments

SHARED = [
    "prompts",
    "drafts",
    "revisions",
    "helpfulness",
    "sl_policy",
    "pairs",
    "feedback_features",
    "tuned_feedback",
    "feedback_check",
    "comparisons",
]
OWN = [
    "dpo_policy",
    "responses",
    "likelihoods",
    "base_likelihoods",
    "capability",
    "evaluation",
    "contrast_prompts",
    "contrast_responses",
    "over_refusal",
    "principle_scores",
    "controls",
    "control_comparisons",
    "matches",
]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run."""
    finished = run(tmp_path_factory.mktemp("whole"), *tiny_arguments(tiny_folder, "dpo"))
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def after_rlaif(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run where `phase=rlaif` has been."""
    folder = tmp_path_factory.mktemp("both")
    first = run(folder, *tiny_arguments(tiny_folder, "rlaif"))
    assert first.code == 0, first.output
    second = run(folder, *tiny_arguments(tiny_folder, "dpo"))
    assert second.code == 0, second.output
    return second


def folder_of(finished: Finished, stage: str) -> Path:
    (folder,) = (finished.folder / "outputs" / "store" / stage).glob("*/")
    return folder


def records(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    path = folder_of(finished, stage) / name
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def test_all_stages_run_and_leave_their_artifacts(whole: Finished) -> None:
    assert list(whole.statuses()) == SHARED + OWN
    assert whole.statuses()["responses"] == ["computed"] * 3
    folder = folder_of(whole, "dpo_policy")
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    curve = json.loads((folder / "curve.json").read_text())
    assert curve[0]["rewards/margins"] == 0.0
    assert curve[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert curve[-1]["train/logratio"] != 0.0


def test_what_rlaif_made_is_reused_and_only_the_policy_is_new(after_rlaif: Finished) -> None:
    statuses = after_rlaif.statuses()
    for stage in (*SHARED, "controls", "control_comparisons"):
        assert set(statuses[stage]) == {"reused"}, stage
    assert statuses["dpo_policy"] == ["computed"]
    for stage in ("responses", "likelihoods"):
        assert statuses[stage] == ["reused", "reused", "computed"]
    assert "preference_model" not in statuses


def test_both_methods_are_measured_on_the_same_held_out_pairs(after_rlaif: Finished) -> None:
    made = {
        stage: records(after_rlaif, stage, PreferencePrediction, VALIDATION)
        for stage in ("preference_model", "dpo_policy")
    }
    labels = {
        stage: [(pair.name, pair.prob_a, pair.a_is_longer) for pair in pairs]
        for stage, pairs in made.items()
    }
    assert labels["preference_model"] == labels["dpo_policy"] != []
    compared = records(after_rlaif, "comparisons", Comparison)
    held_out = validation_prompts(compared, frac=0.34, seed=derive_seed(0, "pm"))
    assert {pair.name for pair in made["dpo_policy"]} == held_out
    for pair in made["dpo_policy"]:
        assert 0 < pair.predicted < 1
        assert (pair.predicted > 0.5) == (pair.scores_a > pair.scores_b)


def test_pairs_know_which_responses_were_cut(whole: Finished) -> None:
    compared = records(whole, "comparisons", Comparison)
    responses = records(whole, "pairs", Response)
    finished = {(r.prompt.id, r.sample.text): r.sample.finished for r in responses}
    found = labelled_pairs(compared, responses)
    assert len(found) == sum(c.prob_a is not None for c in compared) > 0
    for pair in found:
        key = pair.comparison.prompt.id
        assert pair.finished_a == finished[key, pair.comparison.response_a]
        assert pair.finished_b == finished[key, pair.comparison.response_b]
    with pytest.raises(AssertionError, match="not of its samples"):
        labelled_pairs(compared, responses[1:] + responses[:1])


def test_metrics_and_report_tell_of_dpo_and_of_no_score(whole: Finished) -> None:
    (run_dir,) = whole.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert all(isinstance(value, float | int) for value in metrics.values())
    for name in (
        "dpo/accuracy",
        "dpo/accuracy_low",
        "dpo/cross_entropy",
        "dpo/margin",
        "dpo/preferred_reward",
        "eval/dpo/red_team/refusal_rate",
        "eval/dpo/likelihood_accuracy",
        "feedback/accuracy",
    ):
        assert name in metrics
    assert not [name for name in metrics if name.endswith("/score") or "preference_model" in name]
    page = (run_dir / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))
    for said in (
        "DPO under the constitution",
        "Direct preference optimization",
        "Preference-model scores are not measured: this phase trains no preference model.",
        "Agreement with AI labels of held-out pairs (chance 0.5)",
        "Taking the longer response instead",
        "DPO learns from pairs that the SL-CAI policy sampled beforehand",
        "label_smoothing",
    ):
        assert said in text
    assert "Reinforcement learning" not in text
    assert "PPO" not in text
    assert "DPO agrees with held-out AI labels" in whole.output
    assert "Preference model" not in whole.output


def test_the_same_command_again_recomputes_nothing(whole: Finished, tiny_folder: Path) -> None:
    before = artifact_bytes(whole.folder)
    again = run(whole.folder, *tiny_arguments(tiny_folder, "dpo"))
    assert again.code == 0, again.output
    assert {s for statuses in again.statuses().values() for s in statuses} == {"reused"}
    assert artifact_bytes(whole.folder) == before


def test_a_plan_says_what_is_reused_and_runs_nothing(whole: Finished, tiny_folder: Path) -> None:
    before = artifact_bytes(whole.folder)
    plan = run(whole.folder, *tiny_arguments(tiny_folder, "dpo"), "phase.dpo.beta=0.5", "plan=true")
    assert plan.code == 0, plan.output
    lines = {line.split()[0]: line for line in stage_lines(plan.output)}
    assert "reuse" in lines["comparisons"]
    assert "compute" in lines["dpo_policy"]
    assert "12 pairs" in lines["dpo_policy"]
    assert "Nothing was run." in plan.output
    assert artifact_bytes(whole.folder) == before


@pytest.mark.parametrize(
    "point",
    [
        "dpo_policy:start=1",
        "dpo_policy:step=1",
        "dpo_policy:step=3",
        "dpo_policy:checkpoint=2",
        "dpo_policy:commit=1",
        "responses:shard=5",
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    arguments = tiny_arguments(tiny_folder, "dpo")
    killed = run(tmp_path, *arguments, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    mine = artifact_bytes(tmp_path)
    assert mine == {k: v for k, v in artifact_bytes(whole.folder).items() if k in mine}


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_another_loss_re_runs_the_policy_alone(
    whole: Finished, tiny_folder: Path, loss: str
) -> None:
    other = run(
        whole.folder,
        *tiny_arguments(tiny_folder, "dpo"),
        f"phase.dpo.loss={loss}",
        "phase.dpo.label_smoothing=0.1",
    )
    assert other.code == 0, other.output
    computed = {name for name, found in other.statuses().items() if "computed" in found}
    assert computed == {
        "dpo_policy",
        "responses",
        "likelihoods",
        "base_likelihoods",
        "capability",
        "evaluation",
        "contrast_responses",
        "over_refusal",
        "matches",
        "principle_scores",
    }
    assert other.statuses()["principle_scores"] == ["reused", "computed"]


def test_human_comparisons_are_mixed_in_with_their_share(
    whole: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": f"How do I water plant number {i}?",
            "chosen": "In the morning, a little.",
            "rejected": "Never.",
        }
        for i in range(5)
    ]
    path = tmp_path / "human.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = tiny_arguments(tiny_folder, "dpo")
    mixed = run(
        whole.folder,
        *arguments,
        f"data.human_comparisons.path={path}",
        "data.human_comparisons.format=jsonl",
        "data.human_comparisons.prompt_column=prompt",
        "phase.dpo.human_frac=0.25",
    )
    assert mixed.code == 0, mixed.output
    assert mixed.statuses()["comparisons"] == ["reused"]
    (counts,) = [s["counts"] for s in mixed.manifest()["stages"] if s["stage"] == "dpo_policy"]
    assert counts["human"] == 5
    account = json.loads((mixed.run_dirs()[-1] / "attribution.json").read_text())
    shares = [row["share"] for row in account["principles"]]
    assert sum(shares) + account["people_share"] == pytest.approx(1)
    # A quarter of the weight, on labels without doubt: more of the signal.
    assert 0.25 < account["people_share"] < 1
    refused = run(whole.folder, *arguments, "phase.dpo.human_frac=0.25")
    assert refused.code == 1
    assert "phase.dpo.human_frac=0.25: there is no human comparison" in refused.output
