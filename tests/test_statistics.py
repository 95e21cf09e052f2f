"""Hand-computed numbers for every statistic, and the properties that make them trustworthy."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai import statistics
from cai.statistics import Estimate


def test_wilson_interval_matches_the_published_example():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I:
    # 81/263 -> 0.2553..0.3662; 15/148 -> 0.0624..0.1605; 0/20 -> 0..0.1611; 1/29 -> 0.0061..0.1718
    for successes, num, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = statistics.wilson_interval(successes, num)
        assert found.value == successes / num
        assert found.low == pytest.approx(low, abs=6e-5)
        assert found.high == pytest.approx(high, abs=6e-5)


def test_nothing_observed_is_none_and_never_zero():
    assert statistics.wilson_interval(0, 0) is None
    assert statistics.bootstrap_mean([], num_resamples=10, seed=0) is None
    assert statistics.paired_bootstrap_difference([], [], num_resamples=10, seed=0) is None
    assert statistics.pair_accuracy([]) is None
    assert statistics.brier_score([], []) is None
    assert statistics.calibration_bins([], []) == ()
    assert statistics.calibration_error(()) is None


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_its_value_and_stays_in_the_unit_interval(case):
    found = statistics.wilson_interval(*case)
    assert 0 <= found.low <= found.value <= found.high <= 1
    mirror = statistics.wilson_interval(case[1] - case[0], case[1])
    assert mirror.low == pytest.approx(1 - found.high)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="5 successes of 4"):
        statistics.wilson_interval(5, 4)


def test_bootstrap_is_reproducible_and_close_to_the_normal_interval():
    values = np.random.default_rng(7).normal(3, 2, size=400).tolist()
    found = statistics.bootstrap_mean(values, num_resamples=4000, seed=1)
    assert found == statistics.bootstrap_mean(values, num_resamples=4000, seed=1)
    assert found != statistics.bootstrap_mean(values, num_resamples=4000, seed=2)
    half = NormalDist().inv_cdf(0.975) * np.std(values) / math.sqrt(400)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.value - half, abs=0.03)
    assert found.high == pytest.approx(found.value + half, abs=0.03)


def test_bootstrap_does_not_depend_on_the_block_size(monkeypatch):
    values = [float(i % 7) for i in range(50)]
    whole = statistics.bootstrap_mean(values, num_resamples=300, seed=3)
    monkeypatch.setattr(statistics, "_BLOCK", 777)
    assert statistics.bootstrap_mean(values, num_resamples=300, seed=3) == whole


def test_paired_difference_uses_the_pairs():
    # Prompts differ by tens, the policies by exactly 1: paired, the interval has no width.
    baseline = [10.0, 20.0, 30.0, 40.0]
    found = statistics.paired_bootstrap_difference(
        [v + 1 for v in baseline], baseline, num_resamples=200, seed=0
    )
    assert (found.value, found.low, found.high, found.num) == (1.0, 1.0, 1.0, 4)
    with pytest.raises(ValueError, match="3 values against 4"):
        statistics.paired_bootstrap_difference([1, 2, 3], baseline, num_resamples=9, seed=0)


def test_non_finite_values_are_refused_not_averaged():
    with pytest.raises(ValueError, match="finite"):
        statistics.bootstrap_mean([1.0, math.nan], num_resamples=10, seed=0)


def test_at_chance_is_whether_the_interval_covers_it():
    assert statistics.at_chance(statistics.wilson_interval(34, 60))  # 0.44..0.68
    assert not statistics.at_chance(statistics.wilson_interval(45, 60))  # 0.63..0.84
    assert not statistics.at_chance(statistics.wilson_interval(15, 60))  # below is not at chance
    assert statistics.at_chance(statistics.wilson_interval(15, 60), chance=0.25)


def test_calibration_by_hand():
    # Bin [.2,.4): .2 and .3 with outcomes 0, 1 -> mean .25, outcome .5, gap .25.
    # Bin [.8,1]: .9, 1.0 with outcomes 1, 1 -> mean .95, outcome 1, gap .05.
    bins = statistics.calibration_bins([0.2, 0.9, 0.3, 1.0], [0, 1, 1, 1], num_bins=5)
    assert [(b.low, b.high, b.outcome.num) for b in bins] == [(0.2, 0.4, 2), (0.8, 1.0, 2)]
    assert bins[0].mean_probability == pytest.approx(0.25)
    assert bins[0].outcome.value == 0.5
    # ECE = (2 * .25 + 2 * .05) / 4 = .15
    assert statistics.calibration_error(bins) == pytest.approx(0.15)
    # Brier = (.04 + .01 + .49 + 0) / 4 = .135
    assert statistics.brier_score([0.2, 0.9, 0.3, 1.0], [0, 1, 1, 1]) == pytest.approx(0.135)


def test_soft_outcomes_are_averaged():
    (only,) = statistics.calibration_bins([0.5, 0.5], [0.25, 0.5], num_bins=1)
    assert only.outcome.value == 0.375


@pytest.mark.parametrize(
    ("probabilities", "outcomes"), [([1.2], [1]), ([0.5], [-1]), ([math.nan], [0]), ([0.1], [])]
)
def test_impossible_probabilities_are_refused(probabilities, outcomes):
    with pytest.raises(ValueError, match=r"must be|against"):
        statistics.calibration_bins(probabilities, outcomes)


def test_preferred_side_folds_pairs_so_that_calibration_can_be_seen():
    folded = statistics.preferred_side([0.9, 0.2, 0.5])
    assert folded.confidence == pytest.approx((0.9, 0.8, 0.5))
    assert folded.correct == (1.0, 0.0, 0.5)
    assert statistics.pair_accuracy([0.9, 0.2, 0.5]).value == 0.5


def test_confidences_turn_a_soft_label_to_the_preferred_side():
    folded = statistics.confidences([0.9, 0.2, 0.5, 0.3], [0.7, 0.4, 1.0, 1.0])
    assert folded.confidence == pytest.approx((0.9, 0.8, 0.5, 0.7))
    assert folded.correct == pytest.approx((0.7, 0.6, 0.5, 0.0))
    # Asking about the other side changes nothing.
    other = statistics.confidences([0.1, 0.8, 0.5, 0.7], [0.3, 0.6, 0.0, 0.0])
    assert other.confidence == pytest.approx(folded.confidence)
    assert other.correct == pytest.approx(folded.correct)


def test_cross_entropies_by_hand():
    # -(.7 ln .9 + .3 ln .1) = .764528; a certain label: -ln .2 = 1.609438; 0.5: ln 2.
    found = statistics.cross_entropies([0.9, 0.2, 0.5], [0.7, 1.0, 0.3])
    assert found == pytest.approx([0.764528, 1.609438, 0.693147], abs=1e-6)
    # With itself, the entropy: -(.7 ln .7 + .3 ln .3) = .610864; nothing is below it.
    assert statistics.cross_entropies([0.7, 1.0], [0.7, 1.0]) == pytest.approx(
        [0.610864, 0.0], abs=1e-6
    )
    (worst,) = statistics.cross_entropies([0.0], [1.0])
    assert worst == pytest.approx(27.631021, abs=1e-6)  # -ln 1e-12


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=34 / 60, low=0.441, high=0.684, num=60), "0.57 [0.44, 0.68], n = 60"),
        (Estimate(value=81.26, low=74.3, high=88.6, num=1200), "81 [74, 89], n = 1,200"),
        (Estimate(value=812.6, low=743, high=886, num=9), "813 [743, 886], n = 9"),
        (
            Estimate(value=0.0123, low=0.0101, high=0.0145, num=80),
            "0.0123 [0.0101, 0.0145], n = 80",
        ),
        (Estimate(value=-0.002, low=-0.43, high=0.4, num=16), "0.00 [-0.43, 0.40], n = 16"),
        (Estimate(value=0.854, low=0.728, high=0.928, num=48), "0.85 [0.73, 0.93], n = 48"),
        (Estimate(value=0.523, low=0.503, high=0.543, num=900), "0.523 [0.503, 0.543], n = 900"),
        (Estimate(value=0.5, low=0.5, high=0.5, num=1), "0.5, n = 1"),
        (Estimate(value=3, low=3, high=3, num=8), "3.00 [3.00, 3.00], n = 8"),
        (Estimate(value=1.0, low=0.21, high=1.0, num=1), "1.00 [0.21, 1.00], n = 1"),
    ],
)
def test_format_shows_digits_that_the_interval_supports(estimate, text):
    assert estimate.format() == text


def test_proportion_difference_is_newcombes_example() -> None:
    # Newcombe 1998, table II, example (a): 56/70 - 48/80 = 0.2 has unequal sizes; equal sizes by
    # hand: 9/10 - 3/10, Wilson (0.5958, 0.9821) and (0.1078, 0.6032):
    # 0.6 - sqrt(0.3042^2 + 0.3032^2) = 0.1705 and 0.6 + sqrt(0.0821^2 + 0.1922^2) = 0.8090.
    found = statistics.proportion_difference(9, 3, num=10)
    assert found is not None
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.1705, abs=1e-3)
    assert found.high == pytest.approx(0.8090, abs=1e-3)
    swapped = statistics.proportion_difference(3, 9, num=10)
    assert swapped is not None
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    none = statistics.proportion_difference(0, 0, num=10)
    assert none is not None
    assert none.low < 0 < none.high
    assert statistics.proportion_difference(0, 0, num=0) is None
