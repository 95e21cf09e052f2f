"""`phase=compare` on runs with known numbers: verdicts, page, and multiruns that end in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.compare.record import SCHEMA, SCHEMA_VERSION, compare_record
from cai.compare.runs import find_runs
from cai.compare.story import CompareStory, Difference, Spread, Verdict
from cai.config import CompareConfig
from cai.errors import UserError
from cai.phases import compare
from tests.compared import config, row, write_run
from tests.runs import run, tiny_arguments

WORDS = "eval/rl_cai/red_team/words"
SCORE = "eval/rl_cai/red_team/score"


def told(folder: Path, *metrics: str) -> CompareStory:
    found = find_runs([str(folder)], output_dir=folder)
    settings = CompareConfig(
        name="compare", metrics=list(metrics or ["eval/*"]), num_resamples=2000, scatter=None
    )
    return compare.run(settings, compare.Inputs(found=found, seed=0))


def only(story: CompareStory, metric: str = WORDS) -> Difference:
    (one,) = [one for one in story.differences if one.metric == metric]
    return one


def sweep(
    tmp_path: Path,
    lengths: dict[float, list[list[int]]],
    **settings: Any,
) -> Path:
    """Runs by KL coefficient: for each seed the words of its responses."""
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef, seeds in lengths.items():
        for seed, words in enumerate(seeds):
            write_run(
                folder / f"{len(list(folder.glob('*')))}_{kl_coef}_{seed}",
                config(seed=seed, kl_coef=kl_coef),
                metrics={WORDS: sum(words) / len(words)},
                rows=[row(f"prompt {i}", num) for i, num in enumerate(words)],
                **settings,
            )
    return folder


def test_a_steady_large_difference_is_real(tmp_path: Path) -> None:
    before = [[10, 12, 14, 16, 18, 20], [11, 12, 15, 16, 18, 19], [10, 13, 14, 15, 19, 20]]
    after = [[num + 20 for num in own] for own in before]
    after[1][0] += 1
    one = only(told(sweep(tmp_path, {0.1: before, 0.2: after})))
    assert one.verdict is Verdict.real
    assert one.value == pytest.approx(20 + 1 / 18)
    assert one.seeds is not None
    assert one.seeds.paired
    assert one.seeds.difference.num == 3
    assert one.prompts is not None
    assert one.prompts.p_value == 2 / 2**6
    assert one.prompts.difference.num == 6


def test_a_difference_inside_the_seed_spread_is_not_called_real(tmp_path: Path) -> None:
    # Every prompt agrees within each seed, and the seeds contradict each other: +20, +20, -10.
    before = [[10, 12, 14, 16]] * 3
    after = [[num + by for num in before[0]] for by in (20, 20, -10)]
    one = only(told(sweep(tmp_path, {0.1: before, 0.2: after})))
    assert one.prompts is not None
    assert one.prompts.difference.low > 0
    assert one.verdict is Verdict.inside_seed_spread


def test_one_seed_never_suffices(tmp_path: Path) -> None:
    before = [[10] * 30]
    story = told(sweep(tmp_path, {0.1: before, 0.2: [[100] * 30]}))
    one = only(story)
    assert one.verdict is Verdict.not_enough_seeds
    assert one.prompts is not None
    assert one.prompts.p_adjusted is not None
    assert one.prompts.p_adjusted < 0.001
    assert any("Fewer than 3 seeds" in note for note in story.notes)


def test_prompts_that_disagree_take_the_word_real_back(tmp_path: Path) -> None:
    # One prompt of six carries the whole difference, the same for every seed.
    before = [[10] * 6, [11] * 6, [12] * 6]
    after = [[*own[:5], own[5] + 60 + seed] for seed, own in enumerate(before)]
    one = only(told(sweep(tmp_path, {0.1: before, 0.2: after})))
    assert one.seeds is not None
    assert one.seeds.difference.low > 0
    assert one.verdict is Verdict.inside_prompt_spread


def test_correction_is_over_everything_that_is_tested(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef, by in ((0.1, 0.0), (0.2, 1.0)):
        for seed in range(3):
            values = {f"eval/m{i}": (i + 1) * by * (1 + 0.25 * seed) for i in range(4)}
            write_run(
                folder / f"{kl_coef}_{seed}", config(seed=seed, kl_coef=kl_coef), metrics=values
            )
    alone, among = told(folder, "eval/m0"), told(folder, "eval/*")
    (one,) = alone.differences
    assert one.seeds is not None
    assert one.verdict is Verdict.real
    assert [d.verdict for d in among.differences] == [Verdict.not_after_correction] * 4
    for other in among.differences:
        assert other.seeds is not None
        assert other.seeds.p_adjusted == pytest.approx(min(1, 4 * one.seeds.p_value))
    assert (alone.num_seed_tests, among.num_seed_tests) == (1, 4)


def test_what_did_not_change_is_not_tested(tmp_path: Path) -> None:
    story = told(sweep(tmp_path, {0.1: [[5, 6]] * 3, 0.2: [[5, 6]] * 3}))
    assert only(story).verdict is Verdict.identical
    assert (story.num_seed_tests, story.num_prompt_tests) == (0, 0)


def test_scores_of_different_preference_models_are_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for place, (kl_coef, model) in enumerate(((0.1, "one"), (0.2, "other"))):
        for seed in range(3):
            write_run(
                folder / f"{place}_{seed}",
                config(seed=seed, kl_coef=kl_coef),
                metrics={SCORE: place + seed / 10},
                preference_model=f"{model} {seed}",
            )
    one = only(told(folder), SCORE)
    assert one.verdict is Verdict.not_comparable
    assert "no common scale" in one.why


def test_refusals_told_by_other_rules_are_not_compared(tmp_path: Path) -> None:
    metric = "eval/rl_cai/red_team/refusal_rate"
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef in (0.1, 0.2):
        for seed in range(3):
            own = row("p", 3, compliance={"compliance": "refusal" if seed else "compliance"})
            write_run(
                folder / f"{kl_coef}_{seed}",
                config(seed=seed, kl_coef=kl_coef),
                metrics={metric: kl_coef},
                rows=[own],
                rules=f"rules {kl_coef}",
            )
    one = only(told(folder, "eval/*"), metric)
    assert one.verdict is Verdict.not_comparable
    assert "other rules" in one.why


def test_tests_of_different_constitutions_are_not_compared(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for name in ("medical", "none"):
        for seed in range(3):
            write_run(
                folder / f"{name}_{seed}",
                config(seed=seed, constitution=name),
                metrics={"feedback/accuracy": seed / 10 + len(name) / 10},
                rows=[row(f"{name} {seed}", 3)],
            )
    story = told(folder, "feedback/*")
    assert only(story, "feedback/accuracy").verdict is Verdict.not_comparable
    assert any("different constitutions" in note for note in story.notes)
    assert any("Evaluation prompts differ" in note for note in story.notes)


def test_different_prompts_are_not_paired(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef in (0.1, 0.2):
        for seed in range(3):
            words = [10 + seed, 12]
            write_run(
                folder / f"{kl_coef}_{seed}",
                config(seed=seed, kl_coef=kl_coef),
                metrics={WORDS: sum(words) / 2 + (100 + seed) * kl_coef},
                rows=[row(f"{kl_coef} prompt {i}", num) for i, num in enumerate(words)],
            )
    one = only(told(folder))
    assert one.prompts is not None
    assert one.prompts.p_value is None
    assert one.seeds is not None


def test_other_seeds_are_compared_without_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef, seeds in ((0.1, (0, 1, 2)), (0.2, (3, 4, 5))):
        for seed in seeds:
            write_run(
                folder / f"{kl_coef}_{seed}",
                config(seed=seed, kl_coef=kl_coef),
                metrics={WORDS: 100 * kl_coef + seed % 3},
            )
    story = told(folder)
    one = only(story)
    assert one.seeds is not None
    assert not one.seeds.paired
    assert any("different seeds" in note for note in story.notes)


def test_few_common_seeds_do_not_stand_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef, values in ((0.1, {0: 9.0, 1: 8.0, 2: 5.0}), (0.2, {2: 5.0, 3: 1.0, 4: 2.0})):
        for seed, value in values.items():
            run_config = config(seed=seed, kl_coef=kl_coef)
            write_run(folder / f"{kl_coef}_{seed}", run_config, metrics={WORDS: value})
    one = only(told(folder))
    assert one.verdict is not Verdict.identical
    assert one.seeds is not None
    assert one.value == pytest.approx(one.seeds.difference.value) == pytest.approx(-14 / 3)


def test_what_no_seed_moves_is_not_called_real(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef in (0.1, 0.2):
        for seed in range(3):
            run_config = config(seed=seed, kl_coef=kl_coef)
            write_run(folder / f"{kl_coef}_{seed}", run_config, metrics={WORDS: 100 * kl_coef})
    one = only(told(folder))
    assert one.verdict is Verdict.not_enough_seeds
    assert "no seed moves it" in one.why


def test_cells_say_what_their_interval_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for kl_coef, num in ((0.1, 3), (0.2, 2), (0.3, 1)):
        for seed in range(num):
            metrics = {"eval/rate": 0.5 + seed / 10, "eval/rate_low": 0.2, "eval/rate_high": 0.9}
            write_run(
                folder / f"{kl_coef}_{seed}", config(seed=seed, kl_coef=kl_coef), metrics=metrics
            )
    (metric,) = told(folder).metrics
    three, two, one = metric.cells
    assert three is not None
    assert three.value == pytest.approx(0.6)
    assert three.interval == pytest.approx(
        (0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5)
    )
    assert two is not None
    assert (two.spread, two.interval) == (Spread.none, None)
    assert one is not None
    assert (one.spread, one.interval) == (Spread.prompts, (0.2, 0.9))


def test_curves_are_overlaid_and_need_no_store(tmp_path: Path) -> None:
    logged = [{"step": step, "objective/kl": step / 10} for step in range(4)]
    words = {0.1: [[3]], 0.2: [[4]]}
    story = told(sweep(tmp_path, words, curves={"policy": logged}))
    (curve,) = story.curves
    assert curve.title == "PPO, KL to SL-CAI"
    assert [group.lines[0][-1] for group in curve.groups] == [(3.0, 0.3)] * 2
    alone = sweep(tmp_path / "two", words)
    line = {"kind": "metrics", "group": "policy", "step": 7, "metrics": {"objective/kl": 2.5}}
    for folder in alone.iterdir():
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert told(alone).curves[0].groups[0].lines == (((7.0, 2.5),),)


def test_a_steering_matrix_is_shown_and_a_damaged_one_named(tmp_path: Path) -> None:
    folder = sweep(tmp_path, {0.1: [[3]], 0.2: [[4]]})
    first = next(iter(sorted(folder.iterdir())))
    names = ("medical", "none")

    def seeded(value: float) -> dict[str, Any]:
        return {"value": value, "low": 0.0, "high": 1.0, "num": 3, "real": value > 0.2}

    record = {
        "schema": "cai.matrix",
        "schema_version": 1,
        "constitutions": [{"name": name} for name in names],
        "cells": [
            {
                "train": train,
                "judge": "medical",
                "win_rate": seeded(0.5 + place / 10),
                "effect": seeded(0.3 * place),
            }
            for place, train in enumerate(names)
        ],
    }
    (first / "matrix.json").write_text(json.dumps(record))
    effect, wins = told(folder).matrices
    assert (effect.rows, effect.columns) == (names, ("medical",))
    assert (effect.values, effect.real) == (((0.0,), (0.3,)), ((False,), (True,)))
    assert (wins.values, wins.real) == (((0.5,), (0.6,)), ((False,), (False,)))
    (first / "matrix.json").write_text(json.dumps({"schema": "cai.matrix"}))
    with pytest.raises(UserError, match="cannot be read as a steering matrix"):
        told(folder)


def test_the_record_has_everything(tmp_path: Path) -> None:
    story = told(sweep(tmp_path, {0.1: [[1, 2]] * 3, 0.2: [[2, 5], [3, 4], [2, 4]]}))
    record = json.loads(json.dumps(compare_record(story), allow_nan=False))
    assert (record["schema"], record["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    assert [group["settings"] for group in record["groups"]] == [
        {"phase.ppo.kl_coef": "0.1"},
        {"phase.ppo.kl_coef": "0.2"},
    ]
    (one,) = record["differences"]
    assert one["seeds"]["num"] == 3
    assert one["prompts"]["paired"]
    assert len(record["runs"]) == 6
    assert record["metrics"][0]["groups"]["phase.ppo.kl_coef=0.2"]["by_seed"] == {
        "0": 3.5,
        "1": 3.5,
        "2": 3.0,
    }


def test_the_command_writes_a_page_and_loads_no_model(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    folder = sweep(tmp_path, {0.1: [[1, 2]] * 3, 0.2: [[2, 5], [3, 4], [2, 4]]})
    settings = config(seed=9, kl_coef=0.3)
    settings["model"]["name"] = hostile
    write_run(folder / "9_hostile", settings, metrics={WORDS: 3.0})
    write_run(folder / "91_failed", config(seed=7), status="failed")
    code = (
        "import sys; from cai.run import main; code = main();"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    got = subprocess.run(
        [sys.executable, "-c", code, "phase=compare", f"runs=['{folder}']", "output_dir=out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path)},
    )
    assert got.returncode == 0, got.stderr
    (found,) = (tmp_path / "out" / "compare").glob("*/*")
    assert {"compare.json", "report.html", "metrics.json", "manifest.json", "config.yaml"} <= {
        path.name for path in found.iterdir()
    }
    page = (found / "report.html").read_text()
    assert hostile not in page
    assert "91_failed" in page
    assert "http" not in re.sub(r"http-equiv|xmlns\S+", "", page)
    assert "3 groups" in got.stdout
    assert "may be called real" in got.stdout
    assert json.loads((found / "metrics.json").read_text())["compare/num_left_out"] == 1


def test_wrong_runs_write_nothing(tmp_path: Path) -> None:
    finished = run(tmp_path, "phase=compare", "runs=[nowhere]")
    assert finished.code == 1
    assert "no such folder" in finished.output
    assert not list(tmp_path.glob("outputs/compare/*/*/report.html"))
    refused = run(tmp_path, "phase=rlaif", "runs=[nowhere]")
    assert refused.code == 2
    assert "runs is for phase=compare" in refused.output


def test_a_multirun_ends_in_one_comparison_that_names_its_failed_jobs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = tiny_arguments(tiny_folder, "sl_cai")
    finished = run(
        tmp_path, "-m", *arguments, "seed=0,1", "constitution.document=medical.yaml,nowhere.yaml"
    )
    assert finished.code == 1
    assert "2 failed" in finished.output
    (found,) = (tmp_path / "outputs" / "compare").glob("*/*")
    record = json.loads((found / "compare.json").read_text())
    assert [group["seeds"] for group in record["groups"]] == [[0, 1]]
    assert "python -m cai.run phase=compare" in finished.output
    assert len(record["left_out"]) == 2
