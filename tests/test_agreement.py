from __future__ import annotations

import pytest

from cai.agreement import cohen_kappa, confusion, kappa_estimate

CATEGORIES = ("a", "b", "c")
FIRST = ["a"] * 20 + ["b"] * 15 + ["c"] * 5
SECOND = ["a"] * 15 + ["b"] * 5 + ["b"] * 10 + ["a"] * 5 + ["c"] * 5


def estimate(first, second, seed=0):
    return kappa_estimate(first, second, categories=CATEGORIES, num_resamples=2000, seed=seed)


def test_the_table_of_two_raters():
    assert confusion(FIRST, SECOND, categories=CATEGORIES) == [[15, 5, 0], [5, 10, 0], [0, 0, 5]]


def test_kappa_by_hand_is_inside_its_interval():
    # Observed 30 of 40; expected (20 * 20 + 15 * 15 + 5 * 5) / 1600.
    expected = 650 / 1600
    found = estimate(FIRST, SECOND)
    assert found is not None
    assert found.value == pytest.approx((0.75 - expected) / (1 - expected))
    assert found.low < found.value < found.high
    assert found.num == 40


def test_the_interval_is_that_of_resampling_items_one_by_one():
    import numpy as np

    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        rows = generator.integers(0, 40, 40)
        drawn.append(cohen_kappa([FIRST[i] for i in rows], [SECOND[i] for i in rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = estimate(FIRST, SECOND)
    assert found is not None
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


def test_more_items_make_it_narrower_and_the_seed_decides_it():
    few, many = estimate(FIRST, SECOND), estimate(FIRST * 9, SECOND * 9)
    assert few is not None
    assert many is not None
    assert many.high - many.low < (few.high - few.low) / 2
    assert estimate(FIRST, SECOND) == few
    assert estimate(FIRST, SECOND, seed=1) != few


def test_there_is_none_for_a_handful_or_one_category():
    assert estimate(["a", "b"], ["a", "b"]) is None
    assert estimate(["a"] * 9, ["a"] * 9) is None
    assert estimate(["a"] * 5 + ["b"] * 4, ["b"] * 5 + ["a"] * 4).value < 0
