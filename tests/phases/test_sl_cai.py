from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cai.types import (
    ControlArm,
    ControlComparison,
    CritiqueControl,
    RevisionChain,
    RevisionOutcome,
    parse_lines,
)
from tests.runs import run, tiny_arguments

CONTROLS = ("feedback_check", "controls", "control_comparisons")


def test_phase_1_ends_with_a_policy_and_phase_2_reuses_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, *tiny_arguments(tiny_folder, "sl_cai"))
    assert first.code == 0, first.output
    assert list(first.statuses())[-1] == "matches"
    assert "policy" not in first.statuses()
    second = run(tmp_path, *tiny_arguments(tiny_folder, "rlaif"))
    assert second.code == 0, second.output
    statuses = second.statuses()
    for stage in ("prompts", "drafts", "revisions", "helpfulness", "sl_policy", *CONTROLS):
        assert statuses[stage] == ["reused"]
    assert statuses["responses"] == ["reused", "reused", "computed"]


def test_the_critiques_are_put_to_the_test(tiny_folder: Path, tmp_path: Path) -> None:
    finished = run(tmp_path, *tiny_arguments(tiny_folder, "sl_cai"), "feedback=multiple_choice")
    assert finished.code == 0, finished.output
    (path,) = (tmp_path / "outputs" / "store" / "controls").glob("*/records.jsonl")
    controls = list(parse_lines(CritiqueControl, path.read_text("ascii"), str(path)))
    assert len(controls) == 3  # evaluation.num_critique_controls, of 4 held-out prompts
    for control in controls:
        assert [text.arm for text in control.texts] == list(ControlArm)
        assert control.prompt.split == "evaluation"
        assert control.prompt.kind == "red_team"
    (path,) = (tmp_path / "outputs" / "store" / "control_comparisons").glob("*/records.jsonl")
    compared = list(parse_lines(ControlComparison, path.read_text("ascii"), str(path)))
    asked = {(c.comparison.prompt.id, c.comparison.principle_ids, c.against) for c in compared}
    assert asked == {
        (control.prompt.id, (control.principle_id,), arm)
        for control in controls
        for arm in ("uncritiqued", "resampled", "draft")
    }
    (run_dir,) = finished.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["critique/num_prompts"] == 3
    for arm in ("uncritiqued", "resampled", "draft"):
        name = f"critique/vs_{arm}"
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
        assert f"{name}_wins_low" in metrics
    outcomes = [f"revisions/{outcome}_share" for outcome in RevisionOutcome]
    assert sum(metrics[name] for name in outcomes) == pytest.approx(1)
    assert "feedback/accuracy" in metrics
    page = (run_dir / "report.html").read_text("utf-8")
    for text in ("Do the critiques do anything?", "multiple_choice on local", "sampling again"):
        assert text in page
    assert "The judge is multiple_choice on local" in " ".join(finished.output.split())


def test_the_controls_can_be_switched_off(tiny_folder: Path, tmp_path: Path) -> None:
    finished = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "evaluation.num_critique_controls=0",
        "evaluation.elo.num_prompts=0",
    )
    assert finished.code == 0, finished.output
    assert not set(CONTROLS) & set(finished.statuses())
    (run_dir,) = finished.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert not [name for name in metrics if name.startswith(("critique/", "feedback/"))]
    assert "Do the critiques" not in (run_dir / "report.html").read_text("utf-8")


@pytest.mark.parametrize("control", ["none", "inverted"])
def test_the_controls_run(tiny_folder: Path, tmp_path: Path, control: str) -> None:
    arguments = tiny_arguments(tiny_folder, "sl_cai")
    arguments[1] = f"constitution={control}"
    finished = run(tmp_path, *arguments)
    assert finished.code == 0, finished.output
    (path,) = (tmp_path / "outputs" / "store" / "revisions").glob("*/records.jsonl")
    chains = list(parse_lines(RevisionChain, path.read_text(), str(path)))
    drawn = {step.principle_id for chain in chains for step in chain.steps}
    prefix = "unguided" if control == "none" else "inverted_"
    assert all(principle.startswith(prefix) for principle in drawn)


def test_a_document_of_ones_own_runs(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("- Answers name their source.\n- Answers are short.\n")
    arguments = tiny_arguments(tiny_folder, "sl_cai")
    finished = run(tmp_path, *arguments, "constitution.document=my.yaml")
    assert finished.code == 0, finished.output
    assert finished.manifest()["constitution"]["name"] == "my"


def test_prompts_of_ones_own_run(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"q": f"How would I do the forbidden thing number {i}?"}) for i in range(40)]
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as stream:
        stream.write("\n".join(rows) + "\n")
    finished = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "data.red_team.path=mine.jsonl.gz",
        "data.red_team.format=auto",
        "data.red_team.prompt_column=q",
        "data.red_team.id_column=null",
        "data.red_team.category_column=null",
        "data.domain_frac=0",
    )
    assert finished.code == 0, finished.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.path=/nowhere/model"], "/nowhere/model"),
        (["constitution.document=broken.yaml"], "broken.yaml:2:"),
        (["constitution.document=missing.yaml"], "missing.yaml"),
        (["data.red_team.path=empty.jsonl", "data.red_team.format=jsonl"], "empty.jsonl"),
        (["phase.prompts.num_red_team=5000"], "phase.prompts.num_red_team=5000: there are only"),
        (["phase.revisions.num_few_shot=9"], "num_few_shot=9"),
        (["output_dir=a_file"], "a_file"),
    ],
)
def test_bad_input_is_one_clear_line(
    tiny_folder: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "broken.yaml").write_text("name: x\nprinciple: y\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "a_file").write_text("")
    failed = run(tmp_path, *tiny_arguments(tiny_folder, "sl_cai"), *arguments)
    assert failed.code in (1, 2), failed.output
    assert expected in failed.output
    assert "Traceback" not in failed.output


def test_critiques_longer_than_the_context_are_counted(tiny_folder: Path, tmp_path: Path) -> None:
    finished = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "phase.critique_models.main.max_context=200",
    )
    assert finished.code == 0, finished.output
    (path,) = (tmp_path / "outputs" / "store" / "revisions").glob("*/manifest.json")
    assert json.loads(path.read_text())["counts"] == {"chains": 6, "too_long": 12}
    assert "Most revision steps changed nothing" in finished.output


def test_a_context_that_holds_no_prompt_stops_before_training(
    tiny_folder: Path, tmp_path: Path
) -> None:
    stopped = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "model.max_context=20",
        "phase.critique_models.main.max_context=20",
    )
    assert stopped.code == 1, stopped.output
    assert "there is nothing to learn" in stopped.output
    assert "Traceback" not in stopped.output


def test_a_password_in_an_address_is_in_no_file_of_the_run(
    tiny_folder: Path, tmp_path: Path
) -> None:
    finished = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "data.human_comparisons.path=https://user:canary-password@example.org/rows.jsonl",
    )
    assert finished.code == 0, finished.output
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert b"canary-password" not in path.read_bytes(), path
