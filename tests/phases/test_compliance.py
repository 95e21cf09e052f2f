"""Values of compliance in a whole run: recorded, without effect where they are not declared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.compliance.shift import FILE, ComplianceShift
from cai.feedback.base import shifted
from cai.types import Comparison, parse_lines
from tests.runs import Finished, run, stage_lines, tiny_arguments


def arguments(model: Path, *changes: str, phase: str = "dpo") -> list[str]:
    given = [a for a in tiny_arguments(model, phase) if not a.startswith("constitution=")]
    return [*given, "constitution=harmlessness_first", "feedback=random", *changes]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished = run(tmp_path_factory.mktemp("whole"), *arguments(tiny_folder))
    assert finished.code == 0, finished.output
    return finished


def labels_of(finished: Finished) -> Path:
    """Folder of the newest run's comparisons."""
    rows = finished.manifest()["stages"]
    (digest,) = [row["digest"] for row in rows if row["stage"] == "comparisons"]
    return finished.folder / "outputs" / "store" / "comparisons" / digest


def comparisons(folder: Path) -> list[Comparison]:
    return list(parse_lines(Comparison, (folder / "records.jsonl").read_text("ascii"), "records"))


def test_both_classes_and_the_label_before_are_kept_for_every_pair(whole: Finished) -> None:
    folder = labels_of(whole)
    shifts = list(parse_lines(ComplianceShift, (folder / FILE).read_text("ascii"), FILE))
    labelled = comparisons(folder)
    assert [shift.prompt_id for shift in shifts] == [one.prompt.id for one in labelled]
    for shift, one in zip(shifts, labelled, strict=True):
        assert shift.shift == shift.value_a - shift.value_b
        if shift.prob_before is None:
            assert one.prob_a is None
        else:
            assert one.prob_a == shifted(shift.prob_before, shift.shift)


def test_the_mixture_is_told_from_drafts_to_policies(whole: Finished) -> None:
    folder = whole.run_dirs()[-1]
    metrics = json.loads((folder / "metrics.json").read_text())
    for source in ("drafts", "revision_1", "revision_2", "preferred", "rejected", "base", "dpo"):
        shares = [
            value
            for name, value in metrics.items()
            if name.startswith(f"compliance/{source}/red_team/")
            and name.count("/") == 3
            and not name.rpartition("/")[2].startswith(("num", "value"))
        ]
        assert len(shares) == 6
        assert sum(shares) == pytest.approx(1)
        assert -1 <= metrics[f"compliance/{source}/red_team/value"] <= 1
    assert "compliance/labels/num_turned" in metrics
    assert 0 <= metrics["feedback/accuracy_with_compliance"] <= 1
    page = (folder / "report.html").read_text()
    assert "What becomes of requests on the way" in page
    assert "Declared value" in page
    assert (folder / "tables" / "compliance.json").is_file() or list(
        (folder / "tables").glob("compliance*")
    )


def test_without_the_coefficient_the_labels_are_the_feedback_s(
    whole: Finished, tiny_folder: Path
) -> None:
    before = labels_of(whole)
    shifts = list(parse_lines(ComplianceShift, (before / FILE).read_text("ascii"), FILE))
    off = run(whole.folder, *arguments(tiny_folder, "phase.comparisons.compliance_coef=0"))
    assert off.code == 0, off.output
    assert off.statuses()["pairs"] == ["reused"]
    assert off.statuses()["comparisons"] == ["computed"]
    folder = labels_of(off)
    assert not (folder / FILE).exists()
    assert [one.prob_a for one in comparisons(folder)] == [s.prob_before for s in shifts]


def test_the_coefficient_changes_nothing_where_no_values_are_declared(
    whole: Finished, tiny_folder: Path
) -> None:
    plans = [
        run(
            whole.folder,
            *(a for a in arguments(tiny_folder) if not a.startswith("constitution=")),
            "constitution=medical",
            f"phase.comparisons.compliance_coef={coef}",
            "plan=true",
        )
        for coef in (0, 1, 2.5)
    ]
    assert all(plan.code == 0 for plan in plans), plans[0].output
    assert len({plan.output for plan in plans}) == 1


def test_the_text_that_is_valued_most_can_be_learned_where_values_are_declared(
    whole: Finished, tiny_folder: Path
) -> None:
    best = "phase.sl_policy.revisions=best_compliance"
    plan = run(whole.folder, *arguments(tiny_folder, best, "plan=true"))
    assert plan.code == 0, plan.output
    lines = {line.split()[0]: line for line in stage_lines(plan.output)}
    assert "reuse" in lines["revisions"]
    assert "compute" in lines["sl_policy"]
    given = [a for a in arguments(tiny_folder, best) if not a.startswith("constitution=")]
    refused = run(whole.folder, *given, "constitution=medical")
    assert refused.code == 2
    assert "medical does not say what ways of answering are worth" in refused.output


def test_a_subset_of_the_principles_is_named(whole: Finished, tiny_folder: Path) -> None:
    some = run(
        whole.folder,
        *arguments(tiny_folder, "constitution.num_principles=3", phase="sl_cai"),
        "evaluation.num_critique_controls=0",
        "evaluation.elo.num_prompts=0",
    )
    assert some.code == 0, some.output
    page = (some.run_dirs()[-1] / "report.html").read_text()
    assert "24 of the document's principles take no part" in page.replace("&#39;", "'")
    many = run(whole.folder, *arguments(tiny_folder, "constitution.num_principles=99"))
    assert many.code == 2
    assert "harmlessness_first has 27 principles; type a number up to 27" in many.output
    audit = run(whole.folder, "phase=audit", "constitution.num_principles=3")
    assert audit.code == 2
    assert "constitution.num_principles is not for phase=audit" in audit.output
