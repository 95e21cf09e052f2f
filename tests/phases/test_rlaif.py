from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cai.types import Comparison, RevisionChain, parse_lines
from tests.runs import Finished, artifact_bytes, run, stage_lines, tiny_arguments

STAGES = [
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
    "preference_model",
    "policy",
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
    finished = run(tmp_path_factory.mktemp("whole"), *tiny_arguments(tiny_folder))
    assert finished.code == 0, finished.output
    return finished


def records(finished: Finished, stage: str, kind: type) -> list:
    (path,) = (finished.folder / "outputs" / "store" / stage).glob("*/records.jsonl")
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def test_all_stages_run_and_leave_their_artifacts(whole: Finished) -> None:
    assert list(whole.statuses()) == STAGES
    assert whole.manifest()["status"] == "done"
    (run_dir,) = whole.run_dirs()
    for name in ("config.yaml", "manifest.json", "metrics.json", "metrics.jsonl", "report.html"):
        assert (run_dir / name).stat().st_size > 0
    store = whole.folder / "outputs" / "store"
    for stage in ("sl_policy", "preference_model", "policy"):
        (adapter,) = store.glob(f"{stage}/*/adapter/adapter_model.safetensors")
        assert adapter.stat().st_size > 0
    assert not list(store.rglob("work"))


def test_records_carry_what_an_auditor_needs(whole: Finished) -> None:
    for chain in records(whole, "revisions", RevisionChain):
        assert [step.step for step in chain.steps] == [1, 2]
        for step in chain.steps:
            assert step.principle_id
            for sample in (step.critique, step.revision):
                assert sample is not None
                assert sample.num_tokens > 0
                assert sample.logprob < 0
    for comparison in records(whole, "comparisons", Comparison):
        assert len(comparison.principle_ids) == 1
        if comparison.prob_a is not None:
            (judgement,) = comparison.judgements
            assert judgement.principle_id == comparison.principle_ids[0]
            assert comparison.prob_a == judgement.prob_a


def test_metrics_are_flat_finite_numbers(whole: Finished) -> None:
    (run_dir,) = whole.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert all(isinstance(value, float | int) for value in metrics.values())
    for name in (
        "feedback/accuracy",
        "feedback/position_same_rate",
        "feedback/ece",
        "preference_model/accuracy",
        "preference_model/cross_entropy_high",
        "preference_model/label_entropy",
        "preference_model/ece",
        "preference_model/brier",
        "eval/rl_cai/red_team/refusal_rate",
        "eval/rl_cai/benign/partial_rate_high",
        "eval/base/helpfulness/alternative_rate",
        "eval/rl_cai/contrast/over_refusal_rate",
        "eval/base/contrast/harmful_refusal_rate",
        "eval/base/contrast/discrimination_low",
        "eval/base/likelihood_accuracy",
        "critique/vs_uncritiqued",
        "critique/vs_resampled_low",
        "critique/vs_draft_high",
        "critique/num_prompts",
    ):
        assert name in metrics


class _Scripts(html.parser.HTMLParser):
    """Counts scripts and handlers; texts are kept where no script has them."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0
        self.inside = False
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.num += self.inside + sum(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.inside else data


def test_the_report_tells_the_story_without_scripts(whole: Finished) -> None:
    (run_dir,) = whole.run_dirs()
    page = (run_dir / "report.html").read_text("utf-8")
    parser = _Scripts()
    parser.feed(page)
    assert parser.num == 1  # filters and values of charts: the page's own
    for text in ("medical", "RL-CAI", "KL to the SL-CAI policy", "chance"):
        assert text in parser.text


def test_the_same_command_again_recomputes_nothing(whole: Finished, tiny_folder: Path) -> None:
    before = artifact_bytes(whole.folder)
    again = run(whole.folder, *tiny_arguments(tiny_folder))
    assert again.code == 0, again.output
    assert {s for statuses in again.statuses().values() for s in statuses} == {"reused"}
    assert "nothing was computed" in again.output
    assert "nothing was computed" not in whole.output
    assert artifact_bytes(whole.folder) == before


OTHER_PPO = (
    "phase.ppo.kl_coef=0.5",
    "phase.ppo.kl_where=loss",
    "phase.ppo.kl_estimator=k2",
    "phase.ppo.at_cut=bootstrap",
    "phase.ppo.missing_eos_penalty=0",
    "phase.ppo.value_adapter=own",
    "phase.ppo.value_warmup_iterations=1",
)


def test_other_settings_of_ppo_re_run_the_policy_and_what_follows(
    whole: Finished, tiny_folder: Path
) -> None:
    store = whole.folder / "outputs/store"
    before = set(store.glob("policy/*/"))
    other = run(whole.folder, *tiny_arguments(tiny_folder), *OTHER_PPO)
    assert other.code == 0, other.output
    (made,) = set(store.glob("policy/*/")) - before
    # The value function was for training: what is exported is one adapter, the policy's.
    (sl_policy,) = store.glob("sl_policy/*/")
    exported, start = (
        load_file(folder / "adapter/adapter_model.safetensors") for folder in (made, sl_policy)
    )
    assert exported.keys() == start.keys()
    assert any(not torch.equal(exported[name], start[name]) for name in start)
    assert not (made / "adapter/head.safetensors").exists()
    statuses = other.statuses()
    for stage in STAGES[:9]:
        assert statuses[stage] == ["reused"]
    assert statuses["policy"] == ["computed"]
    assert statuses["responses"] == ["reused", "reused", "computed"]
    assert statuses["evaluation"] == ["computed"]


def test_a_plan_says_what_is_reused_and_runs_nothing(
    whole: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    before = artifact_bytes(whole.folder)
    plan = run(whole.folder, *tiny_arguments(tiny_folder), "phase.ppo.kl_coef=0.7", "plan=true")
    assert plan.code == 0, plan.output
    lines = {line.split()[0]: line for line in stage_lines(plan.output)}
    assert "reuse" in lines["preference_model"]
    assert "compute" in lines["policy"]
    assert "2 rounds" in lines["policy"]
    assert "Nothing was run." in plan.output
    assert artifact_bytes(whole.folder) == before
    fresh = run(tmp_path, *tiny_arguments(tiny_folder), "plan=true")
    assert fresh.code == 0, fresh.output
    assert "37 of 37 stages would be computed" in fresh.output
    assert not (tmp_path / "outputs").exists()


KILLS = [
    "prompts:commit=1",
    "drafts:shard=1",
    "revisions:shard=1",
    "sl_policy:step=3",
    "sl_policy:checkpoint=2",
    "pairs:done=1",
    "feedback_features:shard=1",
    "tuned_feedback:commit=1",
    "comparisons:shard=1",
    "preference_model:step=1",
    "preference_model:checkpoint=1",
    "policy:step=2",
    "policy:checkpoint=1",
    "policy:commit=1",
    "responses:shard=3",
    "evaluation:commit=1",
    "principle_scores:shard=2",
    "controls:shard=1",
    "control_comparisons:shard=1",
    "matches:shard=1",
]


@pytest.mark.parametrize("point", KILLS)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    arguments = tiny_arguments(tiny_folder)
    killed = run(tmp_path, *arguments, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    expected = {
        name: content
        for name, content in artifact_bytes(whole.folder).items()
        if name in (mine := artifact_bytes(tmp_path))
    }
    assert mine == expected


def test_killed_twice_in_one_stage(whole: Finished, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = tiny_arguments(tiny_folder)
    assert run(tmp_path, *arguments, fault="policy:step=2:kill").code == -9
    assert run(tmp_path, *arguments, fault="policy:step=1:kill").code == -9
    assert run(tmp_path, *arguments).code == 0
    mine = artifact_bytes(tmp_path)
    assert mine == {k: v for k, v in artifact_bytes(whole.folder).items() if k in mine}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("revisions:shard=1:interrupt", 130),
        ("policy:step=1:interrupt", 130),
        ("sl_policy:step=1:terminate", 143),
    ],
)
def test_a_signal_ends_the_run_with_the_command_to_go_on(
    tiny_folder: Path, tmp_path: Path, fault: str, code: int
) -> None:
    arguments = tiny_arguments(tiny_folder)
    stopped = run(tmp_path, *arguments, fault=fault)
    assert stopped.code == code, stopped.output
    assert "Continue with: python -m cai.run phase=rlaif" in stopped.output
    assert "Traceback" not in stopped.output
    stage = fault.partition(":")[0]
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()[stage] == ["continued"]


def test_a_full_disk_keeps_what_is_done(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = tiny_arguments(tiny_folder)
    full = run(tmp_path, *arguments, fault="comparisons:commit=1:enospc")
    assert full.code == 1
    assert "disk is full" in full.output
    assert "Traceback" not in full.output
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()["pairs"] == ["reused"]
    assert again.statuses()["comparisons"] == ["continued"]


def test_a_multirun_gives_separate_runs_that_share_their_stages(
    whole: Finished, tiny_folder: Path
) -> None:
    arguments = tiny_arguments(tiny_folder)
    many = run(whole.folder, "-m", *arguments, "phase.ppo.kl_coef=0.05,0.9")
    assert many.code == 0, many.output
    manifests = sorted(whole.folder.glob("outputs/sweeps/*/*/*/manifest.json"))
    assert len(manifests) == 2
    first, second = (json.loads(path.read_text()) for path in manifests)
    assert {stage["status"] for stage in first["stages"]} == {"reused"}
    computed = [s["stage"] for s in second["stages"] if s["status"] == "computed"]
    assert computed == [
        "policy",
        "responses",
        "likelihoods",
        "base_likelihoods",
        "capability",
        "evaluation",
        "contrast_responses",
        "over_refusal",
        "principle_scores",
        "matches",
        "matches",
    ]


def test_human_comparisons_are_mixed_in_when_given(
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
    mixed = run(
        whole.folder,
        *tiny_arguments(tiny_folder),
        f"data.human_comparisons.path={path}",
        "data.human_comparisons.format=jsonl",
        "data.human_comparisons.prompt_column=prompt",
        "phase.preference_model.human_frac=0.5",
    )
    assert mixed.code == 0, mixed.output
    assert mixed.statuses()["comparisons"] == ["reused"]
    assert mixed.statuses()["preference_model"] == ["computed"]
    (counts,) = [
        s["counts"] for s in mixed.manifest()["stages"] if s["stage"] == "preference_model"
    ]
    assert counts["human"] == 5


def test_labels_that_are_not_finite_numbers_never_reach_a_file(whole: Finished) -> None:
    for path in (whole.folder / "outputs" / "store").glob("*/*/*.json*"):
        text = path.read_text("ascii")
        assert "NaN" not in text
        assert "Infinity" not in text
