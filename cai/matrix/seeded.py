"""A mean over seeds, and when a difference is larger than what seeds make by themselves.

Observations come in groups, one for each seed, and seeds count alike. The interval has to cover two
things: other prompts and other seeds. A hierarchical bootstrap (seeds drawn with replacement, then
observations within each) is too narrow for a handful of seeds when the trainings differ more than
the prompts do; Student's t over the seeds' means holds then, but rests on a spread that three
numbers may happen not to show. So the interval here is the wider of the two at each end: with three
seeds it is wide, which is the truth about three seeds. Below `MIN_SEEDS` seeds it covers prompts
alone, and nothing is called real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai.statistics import CONFIDENCE, MIN_SEEDS, Estimate, mean_over_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """A mean over seeds with its interval."""

    estimate: Estimate
    """`num` counts observations of all seeds."""
    by_seed: tuple[float, ...]
    """Each seed's mean."""

    @property
    def real(self) -> bool:
        """Whether it differs from 0 by more than seeds differ from each other.

        The interval leaves 0 out, every seed is on the same side, and there are enough of them.
        """
        low, high = self.estimate.low, self.estimate.high
        same_side = min(self.by_seed) > 0 or max(self.by_seed) < 0
        return len(self.by_seed) >= MIN_SEEDS and same_side and not low <= 0 <= high


def over_seeds(
    groups: Sequence[Sequence[float]],
    *,
    num_resamples: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Seeded | None:
    """Mean of the seeds' means; None without observations.

    Args:
        groups: One for each seed; a seed without an observation says nothing and is left out.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        bounds: What the mean can be at all; the interval ends there.

    Raises:
        ValueError: when a value is not finite.
    """
    data = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not data:
        return None
    if not all(np.isfinite(group).all() for group in data):
        raise ValueError("values must be finite; leave out and count what is not")
    means = [float(group.mean()) for group in data]
    tail = (1 - CONFIDENCE) / 2
    drawn = _resampled(data, num_resamples=num_resamples, seed=seed)
    low, high = map(float, np.quantile(drawn, [tail, 1 - tail]))
    if (spread := mean_over_seeds(means)) is not None:
        low, high = min(low, spread.low), max(high, spread.high)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    value = float(np.mean(means))
    num = sum(group.size for group in data)
    return Seeded(
        estimate=Estimate(value=value, low=min(low, value), high=max(high, value), num=num),
        by_seed=tuple(means),
    )


def _resampled(data: Sequence[np.ndarray], *, num_resamples: int, seed: int) -> np.ndarray:
    """Means (R,) of hierarchical resamples: seeds, then observations within each."""
    generator = np.random.Generator(np.random.PCG64(seed))
    total = np.zeros(num_resamples)
    for _ in data:
        chosen = generator.integers(0, len(data), size=num_resamples)
        for place, group in enumerate(data):
            rows = np.flatnonzero(chosen == place)
            picked = generator.integers(0, group.size, size=(rows.size, group.size))
            total[rows] += group[picked].mean(axis=1)
    return total / len(data)
