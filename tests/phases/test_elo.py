"""Policies meet: in the run that trained them, and in `phase=evaluate` of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.types import PolicyComparison, parse_lines
from tests.runs import Finished, run, tiny_arguments


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Phase 1, whose policies its feedback judges under every principle too."""
    finished = run(
        tmp_path_factory.mktemp("elo"),
        *tiny_arguments(tiny_folder, "sl_cai"),
        "feedback=likelihood",
        "evaluation.num_critique_controls=0",
        "evaluation.elo.by_principle=true",
    )
    assert finished.code == 0, finished.output
    return finished


def metrics_of(finished: Finished) -> dict[str, float]:
    return json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())


def test_a_run_rates_its_policies(trained: Finished) -> None:
    metrics = metrics_of(trained)
    assert trained.statuses()["matches"] == ["computed"]
    assert metrics["elo/judge_supplied_labels"] == 0  # phase 1 learns from no labels
    criteria = {name.split("/")[1] for name in metrics if name.startswith("win_rate/")}
    assert {"helpfulness", "harmlessness"} < criteria  # and the constitution's principles
    for criterion in criteria:
        name = f"elo/{criterion}/base"
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
        assert metrics[f"elo/{criterion}/sl_cai"] == 0
        assert 0 <= metrics[f"win_rate/{criterion}/sl_cai_vs_base"] <= 1
        assert f"elo_length_controlled/{criterion}/base" in metrics
    page = (trained.run_dirs()[-1] / "report.html").read_text()
    assert 'id="elo"' in page
    assert "Helpfulness against harmlessness" in page
    (path,) = (trained.folder / "outputs" / "store" / "matches").glob("*/records.jsonl")
    rows = list(parse_lines(PolicyComparison, path.read_text("ascii"), str(path)))
    kinds = [str(row.comparison.prompt.kind) for row in rows]
    assert kinds == ["red_team"] * 2 + ["helpfulness"] * 2 + ["benign"] * 2
    assert len(rows[0].comparison.principle_ids) > 2
    assert rows[2].comparison.principle_ids == ("helpfulness",)


def test_policies_of_finished_runs_meet_and_what_does_not_fit_is_refused(
    trained: Finished, tiny_folder: Path
) -> None:
    (folder,) = trained.run_dirs()
    arguments = [*tiny_arguments(tiny_folder, "evaluate"), "feedback=likelihood"]
    met = run(trained.folder, *arguments, f"evaluation.elo.runs=[{folder}]")
    assert met.code == 0, met.output
    metrics = metrics_of(met)
    assert {"elo/helpfulness/base", "elo/harmlessness/sl_cai"} <= metrics.keys()
    assert metrics["elo/judge_supplied_labels"] == 0

    nowhere = run(trained.folder, *arguments, "evaluation.elo.runs=[nowhere]")
    assert nowhere.code == 1
    assert "evaluation.elo.runs: nowhere: no such folder" in nowhere.output

    other = run(
        trained.folder,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "feedback=likelihood",
        "phase.prompts.num_eval_red_team=3",
        "evaluation.num_critique_controls=0",
        "evaluation.elo.num_prompts=0",
    )
    assert other.code == 0, other.output
    assert "matches" not in other.statuses()
    both = f"evaluation.elo.runs=[{folder},{other.run_dirs()[-1]}]"
    different = run(trained.folder, *arguments, both)
    assert different.code == 1
    assert "different prompts: 8 and 7" in different.output
    assert str(folder) in different.output

    elsewhere = run(trained.folder, *tiny_arguments(tiny_folder, "sl_cai"), both)
    assert elsewhere.code == 2
    assert "evaluation.elo.runs is for phase=evaluate" in elsewhere.output
