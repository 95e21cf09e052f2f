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


def test_student_t_agrees_with_closed_forms_and_tables() -> None:
    # One degree of freedom: P(|T| >= t) = 1 - 2/pi atan(t); two: 1 - t / sqrt(2 + t^2).
    for t in (0.0, 0.3, 1.0, 7.5):
        one = 1 - 2 / math.pi * math.atan(t)
        assert statistics.t_two_sided(t, 1) == pytest.approx(one, abs=1e-12)
        two = 1 - t / math.sqrt(2 + t * t)
        assert statistics.t_two_sided(-t, 2) == pytest.approx(two, abs=1e-12)
    # Any table of t: 97.5 % points at 1, 2, 3, 10 and 30 degrees of freedom.
    for freedom, point in [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423)]:
        assert statistics.t_quantile(0.975, freedom) == pytest.approx(point, abs=1e-4)
        assert statistics.t_two_sided(point, freedom) == pytest.approx(0.05, abs=1e-5)


def test_student_t_is_the_integral_of_its_density() -> None:
    for freedom in (4, 5, 12):
        grid = np.linspace(-1.7, 1.7, 20_001)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
        density = (
            scale / math.sqrt(freedom * math.pi) * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
        )
        inside = np.trapezoid(density, grid)
        assert statistics.t_two_sided(1.7, freedom) == pytest.approx(1 - inside, abs=1e-8)


def test_seeds_have_a_t_interval_from_three_on() -> None:
    assert statistics.mean_over_seeds([1.0, 3.0]) is None
    found = statistics.mean_over_seeds([1.0, 2.0, 3.0])  # s = 1, half width 4.3027 / sqrt(3)
    assert found is not None
    assert (found.value, found.num) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_paired_t_test_is_that_of_the_differences() -> None:
    # Differences 1, 2, 3: t = 2 / (1/sqrt 3) = 3.4641, 2 degrees of freedom.
    found = statistics.paired_t_test([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found is not None
    assert found.difference.value == pytest.approx(2)
    assert found.p_value == pytest.approx(1 - 3.4641016 / math.sqrt(2 + 12), abs=1e-6)
    assert found.difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert statistics.paired_t_test([1.0, 2.0], [0.0, 0.0]) is None
    same = statistics.paired_t_test([1.0] * 3, [1.0] * 3)
    assert same is not None
    assert same.p_value == 1.0
    # What no seed moves has no spread over seeds to be compared with, however sure it looks.
    assert statistics.paired_t_test([0.75] * 3, [0.725] * 3) is None
    assert statistics.welch_test([0.75] * 3, [0.725] * 3) is None
    with pytest.raises(ValueError, match="3 values against 2"):
        statistics.paired_t_test([1.0] * 3, [1.0] * 2)


def test_welch_test_by_hand() -> None:
    # Means 2 and 5, variances 1 and 13, n = 3 each: s.e. = sqrt(1/3 + 13/3) = 2.1602;
    # Welch's freedom (14/3)^2 / ((1/9 + 169/9) / 2) = 2.306, rounded down to 2: t = -1.3887.
    found = statistics.welch_test([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    assert found is not None
    assert found.difference.value == pytest.approx(-3)
    assert found.p_value == pytest.approx(1 - 1.388730 / math.sqrt(2 + 1.388730**2), abs=1e-5)
    assert found.difference.high == pytest.approx(-3 + 4.302653 * 2.160247, abs=1e-4)
    assert statistics.welch_test([1.0, 2.0, 3.0], [1.0, 2.0]) is None


def test_permutation_test_counts_every_flip_of_few_pairs() -> None:
    # Differences 1, 2, 3, 4: of 16 flips only all plus and all minus reach a sum of 10.
    found = statistics.paired_permutation_test(
        [1.0, 2.0, 3.0, 4.0], [0.0] * 4, num_resamples=10, seed=0
    )
    assert found == 2 / 16
    # 1, -1, 2: sums of absolute value >= 2 are all but 1+1-2 and -1-1+2: 6 of 8.
    found = statistics.paired_permutation_test(
        [1.0, 0.0, 2.0], [0.0, 1.0, 0.0], num_resamples=10, seed=0
    )
    assert found == 6 / 8
    assert statistics.paired_permutation_test([], [], num_resamples=10, seed=0) is None
    assert statistics.paired_permutation_test([2.0] * 3, [2.0] * 3, num_resamples=10, seed=0) == 1.0


def test_drawn_permutations_agree_with_the_normal_approximation() -> None:
    differences = np.random.Generator(np.random.PCG64(3)).normal(0.25, 1, size=60)
    found = statistics.paired_permutation_test(
        differences.tolist(), [0.0] * 60, num_resamples=20_000, seed=1
    )
    assert found is not None
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert found == pytest.approx(2 * (1 - NormalDist().cdf(z)), abs=0.01)
    clear = statistics.paired_permutation_test([1.0] * 60, [0.0] * 60, num_resamples=99, seed=1)
    assert clear == 1 / 100  # the observed flip itself


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04, .06, .06, .04; none below the one before.
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_bootstrap_difference_resamples_each_side() -> None:
    found = statistics.bootstrap_difference(
        [3.0, 5.0] * 50, [1.0, 1.0, 1.0], num_resamples=2000, seed=0
    )
    assert found is not None
    assert (found.value, found.num) == (3.0, 3)
    # Only the first side varies: s.e. = 1 / sqrt(100).
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1, abs=0.03)
    assert statistics.bootstrap_difference([], [1.0], num_resamples=10, seed=0) is None
