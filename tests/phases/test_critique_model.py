from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from cai.critic_record import (
    CriticComparison,
    CriticRevision,
    CritiqueGain,
    CritiqueSample,
    TrustedCheck,
)
from cai.trusted_critiques import split
from cai.types import CritiqueControl, RevisionChain, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

STAGES = [
    "prompts",
    "drafts",
    "feedback_features",
    "tuned_feedback",
    "feedback_check",
    "critique_samples",
    "critique_gains",
    "critic",
    "trusted_checks",
    "responses",
    "controls",
    "critic_revisions",
    "critic_comparisons",
]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One uninterrupted run."""
    arguments = tiny_arguments(tiny_folder, "critique_model")
    finished = run(tmp_path_factory.mktemp("whole"), *arguments)
    assert finished.code == 0, finished.output
    return finished


def folders(finished: Finished, stage: str) -> list[Path]:
    return sorted((finished.folder / "outputs" / "store" / stage).glob("*/"))


def records(finished: Finished, stage: str, kind: type) -> list:
    return [
        record
        for folder in folders(finished, stage)
        for record in parse_lines(kind, (folder / "records.jsonl").read_text("ascii"), stage)
    ]


def test_all_stages_run_and_leave_their_records(whole: Finished) -> None:
    assert list(whole.statuses()) == STAGES
    samples = records(whole, "critique_samples", CritiqueSample)
    gains = records(whole, "critique_gains", CritiqueGain)
    assert len(samples) == len(gains) == 6 * 2
    assert len({(one.prompt.id, one.index) for one in samples}) == 12
    for sample, gain in zip(samples, gains, strict=True):
        assert (gain.comparison is not None) == sample.outcome.accepted
        assert not gain.chosen or (sample.valid and (gain.gain or 0) > 0.02)
    both = {one.prompt.id: [] for one in samples}
    for one in samples:
        both[one.prompt.id].append(one.critique.text)
    assert all(len(set(texts)) == 2 for texts in both.values())


def test_both_critics_are_measured_on_the_same_held_out_items(whole: Finished) -> None:
    checks = records(whole, "trusted_checks", TrustedCheck)
    held_out = [item.id for item in split(0.1).held_out]
    names = {name: [c.name for c in checks if c.critic == name] for name in ("base", "critic")}
    assert names["base"] == names["critic"] == held_out != []
    logprobs = {(c.critic, c.name): c.trusted_logprob for c in checks}
    gains = [logprobs["critic", name] - logprobs["base", name] for name in held_out]
    assert sum(gains) > 0  # it was trained on such critiques


def test_only_the_critique_differs_between_the_base_and_the_critic(whole: Finished) -> None:
    controls = records(whole, "controls", CritiqueControl)
    revisions = records(whole, "critic_revisions", CriticRevision)
    assert [(c.prompt.id, c.principle_id) for c in controls] == [
        (r.prompt.id, r.principle_id) for r in revisions
    ]
    compared = records(whole, "critic_comparisons", CriticComparison)
    against = {one.against for one in compared}
    assert against == {"base", "uncritiqued", "resampled", "draft"}
    assert len(compared) == 4 * len(controls)
    by_prompt = {r.prompt.id: r.response for r in revisions}
    for one in compared:
        assert one.comparison.response_a == by_prompt[one.comparison.prompt.id]


def test_the_critic_is_left_under_its_name_and_sl_cai_uses_it(
    whole: Finished, tiny_folder: Path
) -> None:
    named = whole.folder / "outputs" / "adapters" / "critic"
    kept = whole.run_dirs()[-1] / "adapters" / "critic"
    (trained,) = folders(whole, "critic")
    for file in ("adapter_model.safetensors", "adapter_config.json", "cai.json"):
        assert (named / file).read_bytes() == (trained / "adapter" / file).read_bytes()
        assert (kept / file).read_bytes() == (named / file).read_bytes()
    plain = run(whole.folder, *tiny_arguments(tiny_folder, "sl_cai"))
    assert plain.code == 0, plain.output
    without = chains(plain)
    arguments = [*tiny_arguments(tiny_folder, "sl_cai"), "model@phase.critique_models.main=critic"]
    arguments += [
        "phase.critique_models.main.source=path",
        "phase.critique_models.main.revision=null",
    ]
    after = run(whole.folder, *arguments)
    assert after.code == 0, after.output
    assert after.statuses()["drafts"] == ["reused"]
    assert after.statuses()["revisions"] == ["computed"]
    critiques = [step.critique.text for chain in chains(after) for step in chain.steps]
    before = [step.critique.text for chain in without for step in chain.steps]
    assert critiques != before


def chains(finished: Finished) -> list[RevisionChain]:
    (digest,) = [
        stage["digest"] for stage in finished.manifest()["stages"] if stage["stage"] == "revisions"
    ]
    path = finished.folder / "outputs" / "store" / "revisions" / digest / "records.jsonl"
    return list(parse_lines(RevisionChain, path.read_text("ascii"), "revisions"))


def test_report_metrics_and_summary_tell_of_the_critic(whole: Finished) -> None:
    (run_dir,) = [one for one in whole.run_dirs() if "critique_model" in str(one)]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name in (
        "critic/base/valid",
        "critic/critic/verdict_accuracy",
        "critic/critic/loss",
        "critic/loss_change_high",
        "critic/vs_base",
        "critic/vs_draft_ties",
        "critic/majority_accuracy",
    ):
        assert name in metrics, name
    page = html.unescape((run_dir / "report.html").read_text("utf-8"))
    assert "The critic" in page
    assert "On held-out trusted items" in page
    assert "circular: it was trained on its labels" in page
    assert "Valid critiques, the critic" in whole.output
    assert "circular. Another judge: feedback@evaluation.judge" in " ".join(whole.output.split())


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = tiny_arguments(tiny_folder, "critique_model")
    expected = artifact_bytes(whole.folder)
    for fault in ("critique_samples:shard=1:kill", "critic:step=3:kill"):
        killed = run(tmp_path, *arguments, fault=fault)
        assert killed.code == -9
    finished = run(tmp_path, *arguments)
    assert finished.code == 0, finished.output
    found = artifact_bytes(tmp_path)
    own = {name: content for name, content in expected.items() if name in found}
    assert found == own
    assert any("/critic/" in name for name in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase.critique_models.main.start=/nowhere"], "start must be null"),
        (["phase.adapter_name=../x"], "cannot name a folder"),
        (["phase.start=/nowhere"], "phase.start=/nowhere is for phases that train a policy"),
        (["phase.critique_samples.min_gain=0.5"], "min_gain must be at least 0 and below 0.5"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    arguments = [*tiny_arguments(tiny_folder, "critique_model"), *overrides]
    finished = run(tmp_path, *arguments)
    assert finished.code == 2, finished.output
    assert message in " ".join(finished.output.split())
    assert not list(tmp_path.glob("outputs/store/*/*/manifest.json"))


def test_a_critic_that_was_never_trained_is_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder, "sl_cai"), "phase.critique_models.main.start=nowhere"]
    for plan in ([], ["plan=true"]):
        finished = run(tmp_path, *arguments, *plan)
        assert finished.code == 1, finished.output
        assert "there is no such folder" in finished.output
        assert "phase=critique_model" in finished.output
    assert not list(tmp_path.glob("outputs/store/*/*/manifest.json"))


def test_a_plan_names_the_stages(tiny_folder: Path, tmp_path: Path) -> None:
    finished = run(tmp_path, *tiny_arguments(tiny_folder, "critique_model"), "plan=true")
    assert finished.code == 0, finished.output
    for stage in STAGES:
        assert stage in finished.output
