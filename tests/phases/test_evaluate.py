"""`phase=evaluate`: labelled comparisons from a file, measured and told, and nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cai.types import FeedbackCheck, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments


def rows() -> list[dict[str, str]]:
    """hh-rlhf transcripts; the third has two identical responses."""
    pairs = [
        ("How do I water a fern?", "A little every few days.", "Never."),
        ("Is it safe to mix bleach and vinegar?", "No: it makes chlorine gas.", "Yes, it is."),
        ("Say hello.", "Hello!", "Hello!"),
        ("What is 2 + 2?", "4", "It is five, as everybody knows."),
        ("Who won?", "I cannot know that.", "The home team."),
        ("Name a bird.", "A wren.", "A whale."),
    ]
    return [
        {
            side: f"\n\nHuman: {prompt}\n\nAssistant: {text}"
            for side, text in (("chosen", better), ("rejected", worse))
        }
        for prompt, better, worse in pairs
    ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows()).encode()))
    return path


def arguments(model: Path, pairs: Path | None, *more: str) -> list[str]:
    data = [] if pairs is None else [f"evaluation.feedback_data={pairs}"]
    return [
        *tiny_arguments(model, "evaluate"),
        "evaluation.num_feedback_pairs=null",
        "feedback=multiple_choice",
        *data,
        *more,
    ]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished = run(tmp_path_factory.mktemp("evaluate"), *arguments(tiny_folder, pairs))
    assert finished.code == 0, finished.output
    return finished


def metrics_of(finished: Finished) -> dict[str, float]:
    return json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())


def test_one_stage_runs_and_every_row_is_accounted_for(whole: Finished) -> None:
    assert whole.statuses() == {"feedback_check": ["computed"]}
    (stage,) = whole.manifest()["stages"]
    assert stage["counts"] == {"pairs": 6, "judged": 5, "identical": 1}
    (path,) = whole.folder.glob("outputs/store/feedback_check/*/records.jsonl")
    checks = list(parse_lines(FeedbackCheck, path.read_text("ascii"), str(path)))
    assert sorted(check.name for check in checks) == [f"row-{line}" for line in range(1, 7)]
    for check in checks:
        assert check.comparison.principle_ids == ("general",)
        row = rows()[int(check.name.removeprefix("row-")) - 1]
        assert row["chosen"].endswith(check.comparison.response_a)


def test_the_metrics_are_there_and_the_report_says_on_what(whole: Finished) -> None:
    metrics = metrics_of(whole)
    assert metrics["feedback/num_pairs"] == 6
    assert metrics["feedback/unjudged/identical"] == 1
    for name in ("accuracy", "accuracy_low", "position_same_rate", "flip_rate", "ece", "brier",
                 "longer_wins", "principle/general/accuracy"):  # fmt: skip
        assert 0 <= metrics[f"feedback/{name}"] <= 1
    assert "feedback/kappa" not in metrics
    page = (whole.run_dirs()[-1] / "report.html").read_text("utf-8")
    for text in ("pairs.jsonl.gz", "All 6 pairs of the file (hh-rlhf transcripts)", "By length"):
        assert text in page
    for text in ("Reinforcement learning", "SL-CAI fine-tune", "Drafts, critiques"):
        assert text not in page
    assert "Evaluation under the constitution medical" in whole.output
    assert "Feedback accuracy on pairs.jsonl.gz" in whole.output


def test_the_same_command_again_is_reused_and_another_file_is_not(
    whole: Finished, tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    before = artifact_bytes(whole.folder)
    again = run(whole.folder, *arguments(tiny_folder, pairs))
    assert (again.code, again.statuses()) == (0, {"feedback_check": ["reused"]})
    assert metrics_of(again)["feedback/accuracy"] == metrics_of(whole)["feedback/accuracy"]
    assert artifact_bytes(whole.folder) == before
    renamed = tmp_path / "renamed.jsonl.gz"
    renamed.write_bytes(pairs.read_bytes())
    same = run(whole.folder, *arguments(tiny_folder, renamed), "plan=true")
    assert "0 of 1 stages would be computed" in same.output
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(rows()[0]) + "\n")
    for more in (
        [f"evaluation.feedback_data={other}"],
        ["evaluation.feedback_principle=drawn"],
        ["evaluation.num_feedback_pairs=3"],
    ):
        plan = run(whole.folder, *arguments(tiny_folder, pairs), *more, "plan=true")
        assert "1 of 1 stages would be computed" in plan.output


def test_without_a_file_the_constitution_s_tests_are_put_to_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    finished = run(tmp_path, *arguments(tiny_folder, None))
    assert finished.code == 0, finished.output
    assert metrics_of(finished)["feedback/num_pairs"] == 4
    assert "on the constitution's own tests" in finished.output


def test_a_gate_that_stops_tells_all_and_fails(
    whole: Finished, tiny_folder: Path, pairs: Path
) -> None:
    before = artifact_bytes(whole.folder)
    stopped = run(whole.folder, *arguments(tiny_folder, pairs, "feedback.gate=stop"))
    assert stopped.code == 1
    assert "did not pass its gate (feedback.gate=stop)" in stopped.output
    assert "type feedback.gate=warn" in stopped.output
    assert "Traceback" not in stopped.output
    assert stopped.manifest()["status"] == "failed"
    assert metrics_of(stopped)["feedback/num_pairs"] == 6
    assert artifact_bytes(whole.folder) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["evaluation.feedback_data=pairs.jsom"], "the ending is not .jsonl"),
        (["evaluation.feedback_data=nowhere.jsonl"], "there is no such file"),
        (["evaluation.feedback_principle=genral"], "Did you mean general?"),
    ],
)
def test_a_mistake_ends_the_run_before_a_model_is_loaded(
    tiny_folder: Path, pairs: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    for plan in ([], ["plan=true"]):
        wrong = run(tmp_path, *arguments(tiny_folder, pairs), *more, *plan)
        assert wrong.code == 1
        assert message in wrong.output
        assert "evaluation.feedback_" in wrong.output
        assert "Traceback" not in wrong.output


def test_training_stops_at_the_gate_and_keeps_what_was_made(
    tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    whole_phase = [
        *tiny_arguments(tiny_folder),
        "feedback=multiple_choice",
        f"evaluation.feedback_data={pairs}",
    ]
    stopped = run(tmp_path, *whole_phase, "feedback.gate=stop")
    assert stopped.code == 1
    assert "did not pass its gate (feedback.gate=stop)" in stopped.output
    assert list(stopped.statuses())[-1] == "feedback_check"
    assert "comparisons" not in stopped.statuses()
    plan = run(tmp_path, *whole_phase, "feedback.gate=stop", "plan=true")
    assert plan.code == 0, plan.output
    warned = run(tmp_path, *whole_phase, "feedback.gate=warn")
    assert warned.code == 0, warned.output
    assert "(feedback.gate=warn)" in warned.output
    assert "the run goes on" in warned.output
    assert warned.statuses()["feedback_check"] == ["reused"]
    assert metrics_of(warned)["feedback/num_pairs"] == 4
