"""One metric against another: coordinates, ranks, and the last policy of each method."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest

from cai.compare.chart import scatter_chart
from cai.compare.record import compare_metrics, compare_record, correlation_line
from cai.compare.runs import find_runs
from cai.compare.scatter import MIN_RUNS, rank_correlation, ranks
from cai.compare.story import CompareStory
from cai.config import CompareConfig
from cai.phases import compare
from tests.compared import config, row, write_run

NAMES = ["feedback/accuracy", "eval/final/likelihood_accuracy"]


def told(folder: Path, *, scatter: list[str] | None = None) -> CompareStory:
    found = find_runs([str(folder)], output_dir=folder)
    settings = CompareConfig(
        name="compare", metrics=["eval/*/words"], num_resamples=200, scatter=scatter or NAMES
    )
    return compare.run(settings, compare.Inputs(found=found, seed=0))


def write(
    folder: Path, place: int, accuracy: float, outcome: float, *, policy: str = "rl_cai"
) -> None:
    settings = config(kl_coef=place)
    settings["phase"]["name"] = {"rl_cai": "rlaif", "dpo": "dpo"}[policy]
    metrics = {
        "feedback/accuracy": accuracy,
        "feedback/accuracy_low": accuracy - 0.1,
        "feedback/accuracy_high": accuracy + 0.1,
        "eval/base/red_team/words": 9.0,
        f"eval/{policy}/red_team/words": 5.0 + place,
        "eval/base/likelihood_accuracy": 0.0,
        f"eval/{policy}/likelihood_accuracy": outcome,
    }
    rows = [row(f"prompt {n}", 5 + place, policy=policy) for n in range(4)]
    write_run(folder / f"{place}_x", settings, metrics=metrics, rows=rows)


def test_points_have_their_intervals_and_the_last_policy_is_found_by_method(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    write(folder, 0, 0.5, 0.2)
    write(folder, 1, 0.9, 0.7, policy="dpo")
    story = told(folder)
    assert story.scatter is not None
    first, second = story.scatter.points
    assert (first.x.value, first.x.interval) == (0.5, (0.4, 0.6))
    assert (first.y.value, first.y.interval) == (0.2, None)
    assert second.y.value == 0.7
    assert story.scatter.correlation is None
    assert "2 runs are too few" in correlation_line(story.scatter)
    chart = scatter_chart(story.scatter, key="s")
    assert chart is not None
    assert chart.svg.count('class="mark"') == 2
    assert chart.table is not None
    assert chart.table.rows[1][2] == "0.90 [0.80, 1.00]"
    record = json.loads(json.dumps(compare_record(story)))
    assert record["scatter"]["points"][0]["x"] == {"value": 0.5, "interval": [0.4, 0.6]}


def test_methods_are_compared_by_their_last_policies(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    write(folder, 0, 0.5, 0.2)
    write(folder, 1, 0.9, 0.7, policy="dpo")
    found = {one.metric: one for one in told(folder).differences}
    assert set(found) == {"eval/base/red_team/words", "eval/final/red_team/words"}
    final = found["eval/final/red_team/words"]
    assert final.value == 1.0
    assert final.prompts is not None
    assert final.prompts.difference.num == 4


def test_runs_of_one_method_get_no_second_names(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for place in range(2):
        write(folder, place, 0.5 + place / 10, 0.2)
    assert not any("/final/" in metric.name for metric in told(folder).metrics)


@pytest.mark.parametrize(
    ("accuracies", "names", "why"),
    [
        ((0.5, 0.5), NAMES, "feedback/accuracy is the same in every run"),
        ((0.5, 0.6), ["nothing", NAMES[1]], "no run has nothing"),
        ((0.5, 0.6), [NAMES[0], "eval/final/nothing"], "no run has eval/final/nothing"),
    ],
)
def test_what_is_not_drawn_says_why(
    tmp_path: Path, accuracies: tuple[float, ...], names: list[str], why: str
) -> None:
    folder = tmp_path / "outputs" / "sweep"
    for place, accuracy in enumerate(accuracies):
        write(folder, place, accuracy, 0.2 + place / 10)
    story = told(folder, scatter=names)
    assert story.scatter is not None
    assert story.scatter.why == why
    assert scatter_chart(story.scatter, key="s") is None
    assert "compare/rank_correlation" not in compare_metrics(story)


def test_ranks_share_the_mean_of_their_places() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_rank_correlation_by_hand() -> None:
    """Differences of ranks 1, 1, 0, 1, 1: 1 - 6 * 4 / (5 * 24) = .8."""
    found = rank_correlation([1, 2, 3, 4, 5], [20, 10, 30, 50, 40])
    assert found is not None
    assert found.value == pytest.approx(0.8)
    reach = 1.959964 * math.sqrt((1 + 0.32) / 2)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(0.8) - reach), math.tanh(math.atanh(0.8) + reach))
    )


def test_a_perfect_order_of_few_runs_is_not_certain() -> None:
    found = rank_correlation(range(5), range(5))
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low < 0
    turned = rank_correlation(range(5), [-n for n in range(5)])
    assert turned is not None
    assert (turned.value, turned.low, turned.high) == (-1.0, -1.0, -found.low)


def test_too_few_runs_or_no_change_say_nothing() -> None:
    assert rank_correlation(range(MIN_RUNS - 1), range(MIN_RUNS - 1)) is None
    assert rank_correlation([1.0] * 9, range(9)) is None


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    """Independent values: the true rank correlation is 0, covered in 95 % of 2,000 draws."""
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        values = [rng.random() for _ in range(12)]
        found = rank_correlation(values, [rng.random() for _ in values])
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 0.92 < covered / 2000 < 0.98


def test_the_correlation_is_that_of_the_definition() -> None:
    """Against 1 - 6 sum d^2 / (n (n^2 - 1)), for all orders of six without ties."""
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 7):
        found = rank_correlation(range(6), order)
        squares = sum((place - other) ** 2 for place, other in enumerate(order))
        assert found is not None
        assert found.value == pytest.approx(1 - 6 * squares / 210)
