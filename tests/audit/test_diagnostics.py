"""Diagnostics on small matrices by hand, and against slow references on random ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cai.audit.diagnostics import (
    Bootstrap,
    conflict_rate,
    consistency,
    correlations,
    coverage,
    decisiveness,
    effective_number,
    flip_rate,
    label_entropy,
    overlaps,
    participation_ratio,
    relevance,
)
from tests.audit.measured_cases import BOOTSTRAP

NAN = math.nan
LABELS = np.array(
    [
        [0.9, 0.1, 0.5],
        [0.8, 0.7, 0.55],
        [0.2, 0.6, NAN],
        [0.5, 0.4, 0.3],
    ]
)


def random_labels(seed: int, num: int = 40, principles: int = 5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    labels = generator.random((num, principles))
    labels[generator.random((num, principles)) < 0.1] = NAN
    return labels


def test_relevance_and_decisiveness_by_hand() -> None:
    # Column 0: 0.4, 0.3, 0.3, 0 from 1/2; column 2: 0, 0.05, no label, 0.2.
    found = relevance(LABELS[:, 0], 0.1)
    assert found is not None
    assert (found.value, found.num) == (0.75, 4)
    found = relevance(LABELS[:, 2], 0.1)
    assert found is not None
    assert (found.value, found.num) == (pytest.approx(1 / 3), 3)
    mean = decisiveness(LABELS[:, 2], BOOTSTRAP)
    assert mean is not None
    assert mean.value == pytest.approx(0.25 / 3)
    assert 0 <= mean.low < mean.value < mean.high <= 0.2001
    assert relevance(np.array([NAN]), 0.1) is None


def test_a_label_at_the_threshold_does_not_speak() -> None:
    found = relevance(np.array([0.75, 0.25, 0.76]), 0.25)
    assert found is not None
    assert found.value == pytest.approx(1 / 3)


def test_conflicts_and_agreements_by_hand() -> None:
    found = overlaps(LABELS, 0.1)
    # Principles 0 and 1 both speak on pairs 0 (opposite) and 1 (alike): 0.6 and 0.4 do not.
    assert found.judged[0, 1] == 4
    assert found.speak[0, 1] == 2
    assert found.conflicts[0, 1] == 1
    conflict, agreement = found.conflict(0, 1), found.agreement(0, 1)
    assert conflict is not None
    assert agreement is not None
    assert (conflict.value, conflict.num) == (0.25, 4)
    assert (agreement.value, agreement.num) == (0.5, 2)
    assert found.judged[0, 2] == 3
    assert found.agreement(0, 2) is None
    # Drawn by weight 3 : 1 : 1, c_01 = 1/4 and the others 0:
    # 2 * 3 * (1/4) over 2 * (3 + 3 + 1).
    assert conflict_rate(found, [3.0, 1.0, 1.0]) == pytest.approx(1.5 / 14)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_those_of_a_slow_count(seed: int) -> None:
    labels = random_labels(seed)
    found = overlaps(labels, 0.2)
    for i, j in itertools.product(range(labels.shape[1]), repeat=2):
        judged = speak = same = 0
        for one, other in zip(labels[:, i].tolist(), labels[:, j].tolist(), strict=True):
            if math.isnan(one) or math.isnan(other):
                continue
            judged += 1
            if abs(one - 0.5) > 0.2 and abs(other - 0.5) > 0.2:
                speak += 1
                same += (one > 0.5) == (other > 0.5)
        assert (found.judged[i, j], found.speak[i, j], found.same[i, j]) == (judged, speak, same)
        assert found.conflicts[i, j] == speak - same


def test_swapping_a_and_b_changes_no_diagnostic() -> None:
    labels = random_labels(7)
    one, other = overlaps(labels, 0.1), overlaps(1 - labels, 0.1)
    assert np.array_equal(one.same, other.same)
    assert np.array_equal(one.conflicts, other.conflicts)
    assert participation_ratio(correlations(labels)) == pytest.approx(
        participation_ratio(correlations(1 - labels))
    )


def test_coverage_counts_prompts_and_not_pairs() -> None:
    labels = np.array([[0.5, 0.5], [0.9, 0.5], [0.55, 0.45], [0.5, NAN]])
    found = coverage(labels, ["p", "p", "q", "r"], 0.1)
    assert found is not None
    assert (found.value, found.num) == (pytest.approx(1 / 3), 3)


def test_the_effective_number_of_copies_and_of_unrelated_principles() -> None:
    generator = np.random.default_rng(0)
    one = generator.random(60)
    copies = np.stack([one, one * 0.5, 1 - one], axis=1)
    assert participation_ratio(correlations(copies)) == pytest.approx(1)
    # Orthogonal columns: the correlation matrix is the identity.
    orthogonal = 0.5 + 0.1 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert participation_ratio(correlations(orthogonal)) == pytest.approx(3)


def test_the_effective_number_of_two_principles_by_hand() -> None:
    # Eigenvalues 1 + r and 1 - r: 4 / ((1 + r)^2 + (1 - r)^2) = 2 / (1 + r^2).
    labels = np.array([[0.1, 0.2], [0.4, 0.9], [0.8, 0.6], [0.9, 0.8]])
    r = float(np.corrcoef(labels.T)[0, 1])
    assert participation_ratio(correlations(labels)) == pytest.approx(2 / (1 + r * r))


def test_correlations_are_numpy_s_and_leave_out_what_does_not_vary() -> None:
    labels = random_labels(3)
    complete = labels[~np.isnan(labels).any(1)]
    assert correlations(labels) == pytest.approx(np.corrcoef(complete.T))
    labels = np.column_stack([labels, np.full(len(labels), 0.7)])
    assert np.isnan(correlations(labels)[-1]).all()
    assert participation_ratio(correlations(labels)) == pytest.approx(
        participation_ratio(correlations(labels[:, :-1]))
    )
    assert participation_ratio(correlations(np.full((4, 2), 0.5))) is None


def test_the_interval_of_the_effective_number_holds_its_value() -> None:
    labels = random_labels(5, num=60, principles=4)
    found = effective_number(labels, Bootstrap(num=100, seed=1))
    assert found is not None
    assert 1 <= found.low <= found.value <= found.high <= 4
    assert found == effective_number(labels, Bootstrap(num=100, seed=1))


def test_entropy_by_hand() -> None:
    found = label_entropy(np.array([[0.5, NAN], [1.0, 0.5]]), BOOTSTRAP)
    assert found is not None
    # Pair 0: log 2; pair 1: (0 + log 2) / 2.
    assert found.value == pytest.approx(0.75 * math.log(2))


def test_consistency_by_hand() -> None:
    plain = np.array([0.9, 0.2, 0.55, NAN, 0.8])
    others = np.array([[0.6, 0.4], [0.1, 0.3], [0.1, 0.1], [0.9, 0.9], [0.5, NAN]])
    # Pair 0: one of two; pair 1: both; pairs 2 and 3 do not speak; pair 4: a tie.
    found = consistency(plain, others, 0.1)
    assert found is not None
    assert (found.value, found.num) == ((0.5 + 1 + 0.5) / 3, 3)
    flips = flip_rate(plain, others, 0.1)
    assert flips is not None
    assert flips.value == pytest.approx(1 / 3)
    assert flips.low == 1 - found.high
    assert flip_rate(plain, others, 0.45) is None
