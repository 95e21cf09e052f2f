"""What is said of over-optimisation, and what is not claimed."""

import dataclasses

import pytest

from cai.choices import Combine, Select
from cai.figures import figures_of
from cai.findings import findings, key_metrics
from cai.goodhart import Resampling, SnapshotScore
from cai.goodhart_story import (
    TABLE,
    goodhart_findings,
    goodhart_metrics,
    goodhart_story,
    goodhart_table,
    told,
)
from cai.report import render_report
from cai.story import RunStory
from cai.types import PreferencePrediction
from tests import stories

RESAMPLING = Resampling(num_resamples=200, seed=0)


def prediction(right):
    return PreferencePrediction(
        name="p",
        principle_ids=("one",),
        prob_a=0.9,
        scores_a=(1.0 if right else -1.0,),
        scores_b=(0.0,),
        predicted=0.7 if right else 0.3,
        a_is_longer=None,
    )


def story(gold, *, proxy=None, right=19, wrong=1, select=Select.final):
    """Snapshots every second round with these mean rewards; a gold model that is right so often."""
    proxies = proxy or [float(place) for place in range(len(gold))]
    scores = [
        SnapshotScore(
            num_rounds=2 * place,
            prompt_id=str(prompt),
            kind="red_team",
            proxy=proxies[place] + prompt,
            gold=mean + prompt + 0.01 * ((place * prompt) % 3),
            kl=float(place * place),
        )
        for place, mean in enumerate(gold)
        for prompt in range(12)
    ]
    held_out = [prediction(True)] * right + [prediction(False)] * wrong
    return goodhart_story(
        scores,
        held_out,
        proxy_accuracy=None,
        combine=Combine.mean,
        select=select,
        resampling=RESAMPLING,
    )


FALLEN = [0.0, 0.8, 1.0, 0.3]


def test_a_fall_is_a_warning_that_says_where_and_what_was_kept():
    (found,) = goodhart_findings(story(FALLEN))
    assert found.startswith("PPO over-optimised its preference model.")
    assert "after 4 of 6 rounds (\u221aKL 2.00)" in found
    assert "keeps the last round's policy" in found
    assert "phase.ppo.select=gold_peak keeps the highest" in found
    (kept,) = goodhart_findings(story(FALLEN, select=Select.gold_peak))
    assert "The run keeps that of round 4 (phase.ppo.select=gold_peak)" in kept
    assert "looks a little better than it is" in kept


def test_no_fall_is_no_warning_and_the_last_policy_is_kept():
    rising = story([0.0, 1.0, 2.0, 3.0], select=Select.gold_peak)
    assert goodhart_findings(rising) == []
    assert "No over-optimisation was found" in told(rising)
    assert rising.selected.num_rounds == 6


def test_a_proxy_that_runs_ahead_is_a_warning_without_a_fall():
    (found,) = goodhart_findings(story([0.0, 0.1, 0.2, 0.3]))
    assert "mistakes of the preference model" in found


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [(6, 6, "is at chance"), (1, 19, "is worse than chance"), (0, 0, "was not measured")],
)
def test_a_gold_model_that_knows_nothing_shows_nothing(right, wrong, why):
    for gold in (FALLEN, [0.0, 1.0, 2.0, 3.0]):
        (found,) = goodhart_findings(story(gold, right=right, wrong=wrong))
        assert why in found
        assert "nothing about over-optimisation" in found
        assert "over-optimised" not in found


def test_a_policy_that_was_best_before_ppo_is_the_sl_cai_policy():
    worse = story([1.0, 0.5, 0.0], select=Select.gold_peak)
    assert worse.selected.num_rounds == 0
    assert "the SL-CAI policy itself" in told(worse)


def test_the_curves_have_both_rewards_over_the_root_and_mark_the_knee():
    whole = RunStory(headline=stories.headline(), goodhart=story(FALLEN))
    rewards, gap = figures_of(whole).goodhart
    assert "knee: round 4" in rewards.chart.svg
    assert "proxy (PPO" in rewards.chart.alternative
    assert "3.00" in rewards.chart.alternative  # the root of 9 nats
    assert "highest" in gap.chart.alternative
    rising = RunStory(headline=stories.headline(), goodhart=story([0.0, 1.0, 2.0, 3.0]))
    assert "knee" not in figures_of(rising).goodhart[0].chart.svg


def test_bars_stand_where_their_points_do_when_one_is_left_out():
    from cai.charts import _finite
    from cai.story import Series

    holed = Series(
        name="x",
        points=((0.0, 1.0), (1.0, float("nan")), (2.0, 3.0)),
        intervals=((0.5, 1.5), (0.0, 0.0), (2.5, 3.5)),
    )
    kept = _finite(holed)
    assert kept.points == ((0.0, 1.0), (2.0, 3.0))
    assert kept.intervals == ((0.5, 1.5), (2.5, 3.5))


def test_page_terminal_metrics_and_table_say_the_same():
    goodhart = story(FALLEN)
    whole = RunStory(headline=stories.headline(), goodhart=goodhart)
    page = render_report(whole)
    assert '<section id="goodhart">' in page
    assert "Over-optimisation" in page
    assert goodhart_findings(goodhart)[0] in findings(whole)
    fall = goodhart.measured.knee.fall
    (shown,) = [m for m in key_metrics(whole) if m.label.startswith("Gold reward: round 4")]
    assert shown.estimate == fall
    flat = dict(goodhart_metrics(goodhart))
    assert flat["goodhart/fall"] == fall
    assert flat["goodhart/over_optimised"] == 1.0
    assert (flat["goodhart/peak_round"], flat["goodhart/selected_round"]) == (4, 6)
    assert flat["goodhart/peak_sqrt_kl"] == 2.0
    assert flat["gold_preference_model/accuracy"].value == 0.95
    table = goodhart_table(goodhart)
    assert all(len(row) == len(TABLE) for row in table)
    assert table[2][:3] == [4, "4.0000", "2.0000"]


def test_a_snapshot_without_a_kl_is_in_the_table_and_not_in_the_picture():
    goodhart = story(FALLEN)
    snapshots = list(goodhart.measured.snapshots)
    snapshots[1] = dataclasses.replace(snapshots[1], kl=None)
    measured = dataclasses.replace(goodhart.measured, snapshots=tuple(snapshots))
    whole = RunStory(
        headline=stories.headline(), goodhart=dataclasses.replace(goodhart, measured=measured)
    )
    assert "after rounds 0, 4, 6" in figures_of(whole).goodhart[0].note
    assert '<section id="goodhart">' in render_report(whole)
