r"""Diagnostics of a constitution from a matrix of labels: pure functions of numbers.

Names of axes: N pairs, K principles. A label p = P(a preferred) *speaks* when |p - 1/2| is above a
threshold; NaN is a pair without a label under that principle, and is in no number.

* Relevance: share of pairs where the label speaks (ICAI's relevance, Findeis et al. 2024,
  arXiv:2406.06560, with votes replaced by soft labels). Decisiveness: mean |p - 1/2|, in [0, 1/2].
* Agreement of two principles: of the pairs where both speak, the share with the same side.
* Conflict of two principles: of the pairs that both judged, the share where both speak and
  prefer different responses. Conflict rate of the constitution: the mean over two different
  principles drawn as the run draws them: sum_{i != j} w_i w_j c_ij / sum_{i != j} w_i w_j.
* Coverage: share of prompts with a pair on which at least one principle speaks.
* Effective number of principles: participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of
  the K x K correlation matrix of labels. K principles that say the same have 1, independent ones
  K. From N pairs independent principles get about K / (1 + (K - 1) / N), so it is somewhat low. A
  principle whose labels do not vary has no correlation and is left out.
* Entropy: mean of -p log p - (1 - p) log(1 - p), nats; log 2 = 0.693 says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai.statistics import CONFIDENCE, Estimate, bootstrap_mean, cross_entropies, wilson_interval

CONSTANT = 1e-9
"""Labels with a smaller standard deviation do not vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals of means are made."""

    num: int
    seed: int

    def mean(self, values: Sequence[float]) -> Estimate | None:
        """Mean with its interval; None without values."""
        return bootstrap_mean(values, num_resamples=self.num, seed=self.seed)


def speaks(labels: np.ndarray, threshold: float) -> np.ndarray:
    """(N, K) bool: which labels are further than the threshold from 1/2; False where none is."""
    return np.abs(np.nan_to_num(labels, nan=0.5) - 0.5) > threshold


def relevance(column: np.ndarray, threshold: float) -> Estimate | None:
    """Share of the judged pairs where one principle's label speaks."""
    judged = ~np.isnan(column)
    return wilson_interval(int(speaks(column, threshold).sum()), int(judged.sum()))


def decisiveness(column: np.ndarray, bootstrap: Bootstrap) -> Estimate | None:
    """Mean |p - 1/2| of one principle's labels."""
    return bootstrap.mean(np.abs(column[~np.isnan(column)] - 0.5).tolist())


def coverage(labels: np.ndarray, prompt_ids: Sequence[str], threshold: float) -> Estimate | None:
    """Share of the prompts with a pair on which at least one principle speaks."""
    heard = speaks(labels, threshold).any(1)
    by_prompt: dict[str, bool] = {}
    for prompt_id, flag in zip(prompt_ids, heard, strict=True):
        by_prompt[prompt_id] = by_prompt.get(prompt_id, False) or bool(flag)
    return wilson_interval(sum(by_prompt.values()), len(by_prompt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlaps:
    """Counts of pairs for every two principles, (K, K) and symmetric; the diagonal is of one."""

    judged: np.ndarray
    """Both have a label."""
    speak: np.ndarray
    """Both labels speak."""
    same: np.ndarray
    """Both speak, for the same response."""

    @property
    def conflicts(self) -> np.ndarray:
        """Both speak, for different responses."""
        return self.speak - self.same

    def conflict(self, first: int, second: int) -> Estimate | None:
        """Share of conflicts in the pairs that both judged."""
        return wilson_interval(int(self.conflicts[first, second]), int(self.judged[first, second]))

    def agreement(self, first: int, second: int) -> Estimate | None:
        """Share of the same side in the pairs where both speak."""
        return wilson_interval(int(self.same[first, second]), int(self.speak[first, second]))


def overlaps(labels: np.ndarray, threshold: float) -> Overlaps:
    """Count agreements and conflicts of every two principles."""
    judged = (~np.isnan(labels)).astype(int)
    heard = speaks(labels, threshold)
    for_a = (heard & (labels > 0.5)).astype(int)
    for_b = (heard & (labels < 0.5)).astype(int)
    return Overlaps(
        judged=judged.T @ judged,
        speak=heard.astype(int).T @ heard.astype(int),
        same=for_a.T @ for_a + for_b.T @ for_b,
    )


def conflict_rate(found: Overlaps, weights: Sequence[float]) -> float | None:
    """Mean conflict of two different principles drawn by weight; None when no two judged a pair."""
    drawn = np.outer(weights, weights) * (found.judged > 0)
    np.fill_diagonal(drawn, 0.0)
    if drawn.sum() == 0:
        return None
    shares = found.conflicts / np.maximum(found.judged, 1)
    return float((drawn * shares).sum() / drawn.sum())


def correlations(labels: np.ndarray) -> np.ndarray:
    """Pearson correlation (K, K) of labels over the pairs that every principle judged.

    NaN for a principle whose labels do not vary, 1 on the diagonal of the others.
    """
    complete = labels[~np.isnan(labels).any(1)]
    if len(complete) < 2:
        return np.full((labels.shape[1], labels.shape[1]), np.nan)
    centred = complete - complete.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    spread[spread < CONSTANT] = np.nan
    unit = centred / spread
    return unit.T @ unit / len(complete)


def participation_ratio(correlation: np.ndarray) -> float | None:
    """Effective number of principles; None when no principle's labels vary."""
    varies = ~np.isnan(np.diagonal(correlation))
    if not varies.any():
        return None
    values = np.linalg.eigvalsh(correlation[np.ix_(varies, varies)])
    return float(values.sum() ** 2 / (values**2).sum())


def effective_number(labels: np.ndarray, bootstrap: Bootstrap) -> Estimate | None:
    """Participation ratio with a percentile bootstrap interval over pairs.

    Resampling pairs makes principles more alike than they are, so the interval is moved to the
    value: its ends are 2 value - high and 2 value - low of the resamples (the basic bootstrap,
    Efron & Tibshirani 1993, ch. 13 and exercise 13.4), held in [1, K].
    """
    value = participation_ratio(correlations(labels))
    complete = labels[~np.isnan(labels).any(1)]
    if value is None:
        return None
    generator = np.random.Generator(np.random.PCG64(bootstrap.seed))
    draws = generator.integers(0, len(complete), size=(bootstrap.num, len(complete)))
    again = (participation_ratio(correlations(complete[rows])) for rows in draws)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile([one for one in again if one is not None], [tail, 1 - tail])
    return Estimate(
        value=value,
        low=max(1.0, min(value, 2 * value - float(high))),
        high=min(float(labels.shape[1]), max(value, 2 * value - float(low))),
        num=len(complete),
    )


def label_entropy(labels: np.ndarray, bootstrap: Bootstrap) -> Estimate | None:
    """Mean entropy of the labels, nats; one mean per pair, so that pairs are resampled."""
    judged = [row[~np.isnan(row)] for row in labels]
    means = [float(np.mean(cross_entropies(row, row))) for row in judged if len(row)]
    return bootstrap.mean(means)


def consistency(plain: np.ndarray, others: np.ndarray, threshold: float) -> Estimate | None:
    """Share of other wordings whose label is on the plain label's side, where that one speaks.

    A tie counts half. Wordings of one pair are averaged first, so that pairs are what is counted.

    Args:
        plain: (N,).
        others: (N, wordings).
        threshold: From which |p - 1/2| on the plain label speaks.
    """
    shares = []
    for label, row in zip(plain, others, strict=True):
        judged = row[~np.isnan(row)]
        if len(judged) and speaks(label, threshold):
            side = np.sign(judged - 0.5) * np.sign(label - 0.5)
            shares.append(float((side + 1).mean() / 2))
    return wilson_interval(sum(shares), len(shares))


def flip_rate(plain: np.ndarray, others: np.ndarray, threshold: float) -> Estimate | None:
    """Share of opposite questions whose label is on the other side: 1 - `consistency`."""
    same = consistency(plain, others, threshold)
    if same is None:
        return None
    return Estimate(value=1 - same.value, low=1 - same.high, high=1 - same.low, num=same.num)
