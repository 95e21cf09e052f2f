"""Leave-one-out labels and versions, by hand and against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cai.audit.backfire import (
    Column,
    effect,
    expected_labels,
    flipped,
    leave_one_out,
    refusing_side,
    steps,
)
from tests.audit.measured_cases import BOOTSTRAP, pairs_of

NAN = math.nan
LABELS = np.array([[0.9, 0.3], [0.2, 0.6], [0.8, NAN]])
IDS = ["one", "two"]


def slow_expected(row: list[float], weights: list[float]) -> float:
    judged = [(p, w) for p, w in zip(row, weights, strict=True) if not math.isnan(p) and w > 0]
    if not judged:
        return NAN
    return sum(p * w for p, w in judged) / sum(w for _, w in judged)


def test_expected_labels_by_hand() -> None:
    # (3 * 0.9 + 0.3) / 4, (3 * 0.2 + 0.6) / 4, and the only label there is.
    assert expected_labels(LABELS, [3.0, 1.0]) == pytest.approx([0.75, 0.3, 0.8])


def test_leaving_one_out_by_hand() -> None:
    found = leave_one_out(LABELS, [3.0, 1.0])
    assert found[0] == pytest.approx([0.3, 0.6, NAN], nan_ok=True)
    assert found[1] == pytest.approx([0.9, 0.2, 0.8])


@pytest.mark.parametrize("seed", range(3))
def test_expected_labels_are_those_of_a_slow_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.random((30, 4))
    labels[generator.random((30, 4)) < 0.3] = NAN
    weights = generator.uniform(0.5, 2.0, 4).tolist()
    slow = [slow_expected(row, weights) for row in labels.tolist()]
    assert expected_labels(labels, weights) == pytest.approx(slow, nan_ok=True)
    for place, row in enumerate(leave_one_out(labels, weights)):
        others = [0.0 if i == place else w for i, w in enumerate(weights)]
        slow = [slow_expected(one, others) for one in labels.tolist()]
        assert row == pytest.approx(slow, nan_ok=True)


def test_a_scaled_weight_changes_nothing_and_a_principle_of_weight_0_is_not_drawn() -> None:
    assert expected_labels(LABELS, [3.0, 1.0]) == pytest.approx(
        expected_labels(LABELS, [30.0, 10.0])
    )
    assert expected_labels(LABELS, [0.0, 1.0]) == pytest.approx([0.3, 0.6, NAN], nan_ok=True)


def test_a_tie_is_no_side() -> None:
    before, after = np.array([0.6, 0.5, 0.6, NAN]), np.array([0.4, 0.4, 0.5, 0.4])
    assert flipped(before, after).tolist() == [True, False, False, False]


def test_which_response_refuses() -> None:
    pairs = pairs_of(np.full((3, 1), 0.5), ["one"], refuses={0: "a", 1: "b"})
    assert [refusing_side(pair) for pair in pairs] == ["a", "b", None]


def test_an_effect_by_hand() -> None:
    pairs = pairs_of(LABELS, IDS, refuses={0: "a", 1: "b"})
    before, after = np.array([0.75, 0.3, 0.8]), np.array([0.3, 0.6, NAN])
    found = effect(pairs, before, after, BOOTSTRAP)
    assert found.num == 2
    assert found.flip_rate is not None
    assert found.flip_rate.value == 1
    assert [(flip.pair, flip.before, flip.after) for flip in found.flips] == [
        ("p0-0", 0.75, 0.3),
        ("p1-0", 0.3, 0.6),
    ]
    assert found.mean_move is not None
    assert found.mean_move.value == pytest.approx((0.45 + 0.3) / 2)
    assert [(c.kind, c.num, c.num_flips) for c in found.categories] == [
        ("red_team", 1, 1),
        ("helpfulness", 1, 1),
    ]
    refusals = found.refusals
    assert refusals.before is not None
    assert refusals.after is not None
    assert refusals.change is not None
    # For the refusing side: 0.75 and 1 - 0.3 before, 0.3 and 1 - 0.6 after.
    assert refusals.before.value == pytest.approx((0.75 + 0.7) / 2)
    assert refusals.after.value == pytest.approx((0.3 + 0.4) / 2)
    assert refusals.change.value == pytest.approx(-0.375)
    assert refusals.change.num == 2


def test_without_a_refusal_nothing_is_said_about_refusals() -> None:
    found = effect(pairs_of(LABELS, IDS), LABELS[:, 0], LABELS[:, 0], BOOTSTRAP)
    assert found.refusals.change is None
    assert found.flips == ()


def test_the_steps_from_one_version_to_the_other() -> None:
    """`one` is reworded, `two` goes, `three` comes, `old` is now `new` and stays as it is."""
    pairs = pairs_of(np.full((2, 1), 0.5), ["one"])

    def column(name: str, *labels: float, weight: float = 1.0) -> Column:
        return Column(id=name, labels=np.array(labels), weight=weight)

    before = [column("one", 0.9, 0.2), column("two", 0.2, 0.2), column("old", 0.5, 0.5)]
    after = [column("one", 0.1, 0.2), column("new", 0.5, 0.5), column("three", 0.5, 0.8, weight=3)]
    found = steps(
        pairs, before, after, renamed={"new": "old"}, reworded={"one"}, bootstrap=BOOTSTRAP
    )
    assert [(s.principle_id, s.old_id, s.what, s.own_flips) for s in found] == [
        ("one", "one", "reworded", 1),
        ("new", "old", "same", 0),
        ("three", None, "added", None),
        ("two", "two", "removed", None),
    ]
    # E before: 1.6 / 3 and 0.3. Reworded: 0.8 / 3; added: (1.6 + 1.5) / 6 and (0.9 + 2.4) / 6.
    moves = [s.effect.mean_move.value for s in found if s.effect.mean_move]
    assert moves == pytest.approx(
        [
            (1.6 / 3 - 0.8 / 3) / 2,
            0,
            ((1.6 / 3 - 3.1 / 6) + (3.3 / 6 - 0.3)) / 2,
            ((1.4 / 2 - 1.6 / 3) + (0.7 / 2 - 0.3)) / 2,
        ]
    )
    assert [s.effect.flip_rate.value for s in found if s.effect.flip_rate] == [0.5, 0, 0.5, 0]
