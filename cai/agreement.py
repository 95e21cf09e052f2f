"""Agreement of raters: Cohen's kappa of two, its interval and their table; Fleiss' of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from cai.statistics import CONFIDENCE, Estimate

MIN_ITEMS = 5
"""Fewer rated items have no interval worth showing."""


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """(observed - expected) / (1 - expected) agreement of two raters of the same items.

    Expected is the sum over categories of the product of their shares (Cohen 1960). None when
    there are no items, or when agreement is certain because both only ever say one thing.
    """
    num = len(first)
    if num == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / num
    counts, others = Counter(first), Counter(second)
    expected = sum(counts[category] * others[category] for category in counts) / num**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(ratings: Sequence[Sequence[Hashable]]) -> float | None:
    """(observed - expected) / (1 - expected) agreement of several raters (Fleiss 1971).

    Observed is the share of pairs of raters that agree on an item, averaged over items; expected is
    the sum over categories of their squared shares. None without items, or where only one category
    was ever named.

    Args:
        ratings: One list per item, of as many ratings everywhere, at least two.
    """
    if not ratings:
        return None
    num = len(ratings[0])
    assert all(len(item) == num for item in ratings)
    counts = [Counter(item) for item in ratings]
    agreeing = [sum(n * (n - 1) for n in item.values()) for item in counts]
    observed = sum(agreeing) / (len(ratings) * num * (num - 1))
    total = sum(counts, Counter[Hashable]())
    expected = sum((n / (num * len(ratings))) ** 2 for n in total.values())
    return None if expected == 1 else (observed - expected) / (1 - expected)


def confusion(
    first: Sequence[str], second: Sequence[str], *, categories: Sequence[str]
) -> list[list[int]]:
    """How often the first rater says what a row stands for and the second what a column does."""
    counts = Counter(zip(first, second, strict=True))
    return [[counts[one, other] for other in categories] for one in categories]


def kappa_estimate(
    first: Sequence[str],
    second: Sequence[str],
    *,
    categories: Sequence[str],
    num_resamples: int,
    seed: int,
) -> Estimate | None:
    """Cohen's kappa with a percentile bootstrap interval over items.

    Resampling items is drawing the cells of their table anew, so it costs the same for any number
    of items. Samples in which kappa is not defined are left out.

    Returns:
        None below `MIN_ITEMS` items, or where kappa is not defined.
    """
    value = cohen_kappa(first, second)
    if value is None or len(first) < MIN_ITEMS:
        return None
    table = np.array(confusion(first, second, categories=categories), dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.multinomial(len(first), table.ravel() / table.sum(), size=num_resamples)
    tables = drawn.reshape(num_resamples, *table.shape) / len(first)
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    defined = expected < 1
    kappas = (observed[defined] - expected[defined]) / (1 - expected[defined])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(kappas, [tail, 1 - tail])
    ends = round(float(low), 12), round(float(high), 12)
    return Estimate(value=round(value, 12), low=ends[0], high=ends[1], num=len(first))
