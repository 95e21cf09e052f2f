"""Intervals, comparisons and calibration: pure functions of numbers, each with its source.

Every measured number travels as an `Estimate`: its value, a 95 % interval and how many
observations it rests on. "Nothing was observed" is None, never 0.

* `wilson_interval`: a proportion (Wilson 1927, "Probable inference, the law of succession, and
  statistical inference", JASA 22, p. 209); holds at small counts, where value +- 2 s.e. does not.
* `bootstrap_mean`, `paired_bootstrap_difference`: percentile bootstrap (Efron & Tibshirani 1993,
  "An introduction to the bootstrap", ch. 13), seeded, so that a number in a report can be had
  again. Resampling treats observations as independent: give one value per prompt, not per token.
* `calibration_bins`, `calibration_error`: reliability diagram and expected calibration error
  (Guo et al. 2017, "On calibration of modern neural networks", eq. 3), equal-width bins.
* `brier_score` (Brier 1950), `cross_entropies`.
* `mean_over_seeds`, `paired_t_test`, `welch_test`: Student's t over independent runs (Student 1908;
  Welch 1947, Biometrika 34, p. 28), for the few seeds for which a bootstrap is too narrow.
* `paired_permutation_test`: signs of differences flipped (Fisher 1935, "The design of experiments",
  sec. 21), exact where all flips can be counted.
* `holm`: p-values corrected for how many were looked at (Holm 1979, Scand. J. Statist. 6, p. 65).

The report of one run shows intervals and no p-value: `at_chance` is its only verdict, and it means
"the interval covers chance", not "there is no effect". P-values are for `phase=compare` alone,
which corrects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
_BLOCK = 2_000_000
"""Resampled values held at once, to bound memory on large sets."""
MIN_SEEDS = 3
"""Runs below which no spread over seeds is computed: two give an interval of 13 standard errors."""
_EXACT_PAIRS = 14
"""Pairs up to which every flip of signs is counted: 16,384 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured number with its interval. Example: 34 of 60 is 0.57 [0.44, 0.68], n = 60."""

    value: float
    low: float
    high: float
    num: int
    """Observations behind it."""

    def format(self) -> str:
        """Value, interval and n, with as many digits as the interval supports.

        A single observation shows no spread, so a zero-width interval of one is left out.
        """
        width = self.high - self.low
        if self.num < 2 and width == 0:
            return f"{self.value:.3g}, n = {self.num}"
        digits = interval_digits(width)
        value, low, high = (fixed(x, digits) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}], n = {self.num:,}"


def interval_digits(width: float) -> int:
    """Decimals that suit an interval of this width: rates of some dozens of cases get two."""
    if not math.isfinite(width) or width <= 0:
        return 2
    return sum(width < limit for limit in (10, 3, 0.1, 0.01))


def fixed(value: float, digits: int) -> str:
    """The number with so many decimals, without a minus sign before zeros."""
    shown = f"{value:.{digits}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown


def wilson_interval(num_successes: float, num: int) -> Estimate | None:
    """Proportion with its Wilson score interval; None when nothing was observed.

    With z the normal quantile and p = successes / n, the interval is
    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Args:
        num_successes: May be fractional (a tie counts half); the interval is then conservative,
            because soft outcomes vary less than a coin with the same mean.
        num: Observations.

    Raises:
        ValueError: when successes are not in [0, num].
    """
    if not 0 <= num_successes <= num:
        raise ValueError(f"{num_successes} successes of {num} observations")
    if num == 0:
        return None
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    p = num_successes / num
    centre = (p + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(p * (1 - p) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return Estimate(
        value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), num=num
    )


def bootstrap_mean(values: Sequence[float], *, num_resamples: int, seed: int) -> Estimate | None:
    """Mean with a percentile bootstrap interval; None when there are no values.

    Raises:
        ValueError: when a value is not finite: leave it out and count it first.
    """
    data = _finite(values)
    if data.size == 0:
        return None
    means = _resampled_means(data, num_resamples=num_resamples, seed=seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value=float(data.mean()), low=float(low), high=float(high), num=data.size)


def paired_bootstrap_difference(
    values: Sequence[float], baseline: Sequence[float], *, num_resamples: int, seed: int
) -> Estimate | None:
    """Mean of `values[i] - baseline[i]`, pairs resampled together (same prompts, two policies).

    Raises:
        ValueError: when the two are not equally long or a value is not finite.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)} of the baseline")
    difference = _finite(values) - _finite(baseline)
    return bootstrap_mean(difference.tolist(), num_resamples=num_resamples, seed=seed)


def bootstrap_difference(
    values: Sequence[float], baseline: Sequence[float], *, num_resamples: int, seed: int
) -> Estimate | None:
    """Difference of two means of separate samples, each resampled by itself.

    For two sets of prompts that are not the same; `num` counts the smaller set. None when one is
    empty.
    """
    data, other = _finite(values), _finite(baseline)
    if data.size == 0 or other.size == 0:
        return None
    means = _resampled_means(data, num_resamples=num_resamples, seed=seed)
    others = _resampled_means(other, num_resamples=num_resamples, seed=seed + 1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means - others, [tail, 1 - tail])
    return Estimate(
        value=float(data.mean() - other.mean()),
        low=float(low),
        high=float(high),
        num=min(data.size, other.size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDifference:
    """A difference with its interval, and how often chance alone would make one as large."""

    difference: Estimate
    p_value: float
    """Two-sided."""


def mean_over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean of independent runs with its t-interval; None below `MIN_SEEDS` runs."""
    data = _finite(values)
    return _t_result(data).difference if data.size >= MIN_SEEDS else None


def paired_t_test(values: Sequence[float], baseline: Sequence[float]) -> MeanDifference | None:
    """Mean of `values[i] - baseline[i]` of runs with the same seed; None below `MIN_SEEDS`.

    None, too, where all differ by the same amount: a measure that does not move with the seed says
    nothing of the spread over seeds.

    Raises:
        ValueError: when the two are not equally long or a value is not finite.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)} of the baseline")
    differences = _finite(values) - _finite(baseline)
    if differences.size < MIN_SEEDS or _moves_without_spread(differences.mean(), differences.std()):
        return None
    return _t_result(differences)


def welch_test(values: Sequence[float], baseline: Sequence[float]) -> MeanDifference | None:
    """Difference of the means of runs with different seeds; None below `MIN_SEEDS` on a side.

    None, too, where neither side has a spread, but the means differ.
    Degrees of freedom are Welch's, rounded down, which makes the interval a little wider.
    """
    data, other = _finite(values), _finite(baseline)
    if min(data.size, other.size) < MIN_SEEDS:
        return None
    parts = [x.var(ddof=1) / x.size for x in (data, other)]
    if _moves_without_spread(data.mean() - other.mean(), math.sqrt(sum(parts))):
        return None
    squares = parts[0] ** 2 / (data.size - 1) + parts[1] ** 2 / (other.size - 1)
    freedom = sum(parts) ** 2 / squares if squares > 0 else data.size + other.size - 2
    return _t_test(
        float(data.mean() - other.mean()),
        error=math.sqrt(sum(parts)),
        freedom=max(1, math.floor(freedom + 1e-9)),
        num=min(data.size, other.size),
    )


def _moves_without_spread(difference: float, spread: float) -> bool:
    return difference != 0 and spread <= 1e-9 * abs(difference)


def _t_result(data: np.ndarray) -> MeanDifference:
    return _t_test(
        float(data.mean()),
        error=float(data.std(ddof=1)) / math.sqrt(data.size),
        freedom=data.size - 1,
        num=data.size,
    )


def _t_test(value: float, *, error: float, freedom: int, num: int) -> MeanDifference:
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
    certain = 1.0 if value == 0 else 0.0
    p_value = t_two_sided(value / error, freedom) if error > 0 else certain
    return MeanDifference(
        difference=Estimate(value=value, low=value - half, high=value + half, num=num),
        p_value=p_value,
    )


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with whole degrees of freedom, by its finite series.

    With theta = atan(t / sqrt(v)), Abramowitz & Stegun 1964, 26.7.3 (odd v) and 26.7.4 (even v).
    """
    theta = math.atan(abs(t) / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    inside = math.sin(theta) * total
    if odd:
        inside = 2 / math.pi * (theta + inside)
    return max(0.0, 1.0 - inside)


def t_quantile(probability: float, freedom: int) -> float:
    """The t below which a share `probability`, at least one half, of Student's distribution is."""
    low, high = 0.0, 1.0
    outside = 2 * (1 - probability)
    while t_two_sided(high, freedom) > outside:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > outside else (low, middle)
    return (low + high) / 2


def paired_permutation_test(
    values: Sequence[float], baseline: Sequence[float], *, num_resamples: int, seed: int
) -> float | None:
    """Two-sided p-value of the mean difference of pairs; None without pairs.

    If it did not matter which of a pair is which, every difference could as well have the other
    sign. All flips are counted up to `_EXACT_PAIRS` pairs; beyond it `num_resamples` are drawn,
    and the observed one counts among them, so that no p-value is 0 (Phipson & Smyth 2010).
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)} of the baseline")
    differences = _finite(values) - _finite(baseline)
    if differences.size == 0:
        return None
    observed = abs(differences.sum()) * (1 - 1e-12)
    if differences.size <= _EXACT_PAIRS:
        codes = np.arange(2**differences.size)[:, None] >> np.arange(differences.size) & 1
        return float(np.mean(np.abs((1 - 2 * codes) @ differences) >= observed))
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _BLOCK // differences.size)
    reached = 0
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), differences.size)
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=size)
        reached += int(np.sum(np.abs(signs @ differences) >= observed))
    return (reached + 1) / (num_resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the k-th smallest of m times m - k + 1, none below a smaller one's."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p_values[place] * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted


def proportion_difference(
    successes: float, baseline_successes: float, *, num: int
) -> Estimate | None:
    """Difference of two proportions over `num` prompts each, with Newcombe's interval.

    Wilson intervals of both proportions put together (Newcombe 1998, method 10). It is never of
    width 0, as a bootstrap of equal outcomes is; the same prompts in both make it too wide rather
    than too narrow. Successes may be fractional (a tie counts half).
    """
    after, before = wilson_interval(successes, num), wilson_interval(baseline_successes, num)
    if after is None or before is None:
        return None
    value = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value=value, low=value - down, high=value + up, num=num)


def paired_proportion_difference(after: Sequence[bool], before: Sequence[bool]) -> Estimate | None:
    """Difference of two proportions of the same cases, e.g. questions answered before and after.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statist. Med. 17, p. 2635, method 10: Wilson intervals of both put
    together with the correlation of the outcomes. It is never of width 0.

    Raises:
        ValueError: when the two are not equally long.
    """
    if len(after) != len(before):
        raise ValueError(f"{len(after)} outcomes against {len(before)}")
    num = len(after)
    first, second = wilson_interval(sum(after), num), wilson_interval(sum(before), num)
    if first is None or second is None:
        return None
    both = sum(a and b for a, b in zip(after, before, strict=True))
    neither = sum(not a and not b for a, b in zip(after, before, strict=True))
    gap = both * neither - (sum(after) - both) * (sum(before) - both)
    held = max(gap - num / 2, 0) if gap > 0 else gap
    margins = math.prod((sum(after), num - sum(after), sum(before), num - sum(before)))
    phi = held / math.sqrt(margins) if margins else 0.0
    value = first.value - second.value

    def length(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    down = length(first.value - first.low, second.high - second.value)
    up = length(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=value - down, high=value + up, num=num)


def at_chance(interval: Estimate, *, chance: float = 0.5) -> bool:
    """Whether the interval covers chance: the measurement does not show skill either way."""
    return interval.low <= chance <= interval.high


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    """Probabilities in [low, high); the last bin takes 1 too."""
    mean_probability: float
    outcome: Estimate
    """Share of outcomes that came true."""


def calibration_bins(
    probabilities: Sequence[float], outcomes: Sequence[float], *, num_bins: int = 10
) -> tuple[CalibrationBin, ...]:
    """Equal-width reliability bins; empty bins are left out.

    Args:
        probabilities: Stated P(true), in [0, 1].
        outcomes: What happened: 0 or 1, or a soft label between.
        num_bins: Bins over [0, 1].

    Raises:
        ValueError: when lengths differ or a number is outside [0, 1].
    """
    stated, happened = _unit_pair(probabilities, outcomes)
    index = np.minimum((stated * num_bins).astype(int), num_bins - 1)
    bins = []
    for i in range(num_bins):
        inside = index == i
        outcome = wilson_interval(float(happened[inside].sum()), int(inside.sum()))
        if outcome is not None:
            bins.append(
                CalibrationBin(
                    low=i / num_bins,
                    high=(i + 1) / num_bins,
                    mean_probability=float(stated[inside].mean()),
                    outcome=outcome,
                )
            )
    return tuple(bins)


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Expected calibration error: sum over bins of n_b / n * |outcome - mean probability|."""
    total = sum(item.outcome.num for item in bins)
    if total == 0:
        return None
    gaps = (item.outcome.num * abs(item.outcome.value - item.mean_probability) for item in bins)
    return sum(gaps) / total


def brier_score(probabilities: Sequence[float], outcomes: Sequence[float]) -> float | None:
    """Mean of (probability - outcome)^2; 0.25 is what a constant 0.5 gets on 0/1 outcomes."""
    stated, happened = _unit_pair(probabilities, outcomes)
    return float(np.mean((stated - happened) ** 2)) if stated.size else None


def cross_entropies(probabilities: Sequence[float], outcomes: Sequence[float]) -> list[float]:
    """`-(y log p + (1 - y) log(1 - p))` of each, nats; of labels with themselves their entropy.

    Probabilities are held 1e-12 away from 0 and 1, so that no single one makes a mean infinite.
    """
    stated, happened = _unit_pair(probabilities, outcomes)
    held = np.clip(stated, 1e-12, 1 - 1e-12)
    return (-(happened * np.log(held) + (1 - happened) * np.log1p(-held))).tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidences:
    """Stated confidence in the preferred side, and whether that side was right."""

    confidence: tuple[float, ...]
    """max(p, 1 - p)."""
    correct: tuple[float, ...]
    """1 right, 0 wrong, 0.5 for a tie at p = 0.5; of a soft label its probability of the side."""


def confidences(probabilities: Sequence[float], outcomes: Sequence[float]) -> Confidences:
    """Probabilities of one of two sides turned to the side that they prefer.

    Needed for a reliability diagram of pairs, where which side is asked about is arbitrary.

    Args:
        probabilities: Stated P(first side), in [0, 1].
        outcomes: Whether the first side was right: 0 or 1, or a soft label between.
    """
    stated, happened = _unit_pair(probabilities, outcomes)
    correct = np.where(stated > 0.5, happened, 1 - happened)
    return Confidences(
        confidence=tuple(np.maximum(stated, 1 - stated).tolist()),
        correct=tuple(np.where(stated == 0.5, 0.5, correct).tolist()),
    )


def preferred_side(prob_better: Sequence[float]) -> Confidences:
    """P(better response preferred) as confidence and correctness.

    Written with the better response first, every outcome is 1 and calibration cannot be seen.
    """
    return confidences(prob_better, [1.0] * len(prob_better))


def pair_accuracy(prob_better: Sequence[float]) -> Estimate | None:
    """Share of labelled pairs where the better response is preferred; ties count half."""
    return wilson_interval(sum(preferred_side(prob_better).correct), len(prob_better))


def _finite(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError("values must be finite; leave out and count what is not")
    return data


def _unit_pair(
    probabilities: Sequence[float], outcomes: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    if len(probabilities) != len(outcomes):
        raise ValueError(f"{len(probabilities)} probabilities against {len(outcomes)} outcomes")
    stated, happened = _finite(probabilities), _finite(outcomes)
    for data in (stated, happened):
        if data.size and (data.min() < 0 or data.max() > 1):
            raise ValueError("probabilities and outcomes must be in [0, 1]")
    return stated, happened


def _resampled_means(data: np.ndarray, *, num_resamples: int, seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _BLOCK // data.size)
    means = []
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), data.size)
        means.append(data[generator.integers(0, data.size, size=size)].mean(axis=1))
    return np.concatenate(means)
