from __future__ import annotations

import math

import numpy as np
import pytest

from cai.trace.nearness import centred_cosines, lexical_cosines


def test_cosines_are_those_of_centred_vectors() -> None:
    rows = np.array([[11.0, 10.0], [9.0, 10.0], [10.0, 11.0], [10.0, 9.0]])  # mean (10, 10)
    near = centred_cosines(np.array([12.0, 12.0]), rows)
    half = math.sqrt(0.5)
    assert near == pytest.approx([half, -half, half, -half])
    # Without centring all of them would be above .99.
    plain = rows @ np.array([12.0, 12.0]) / (np.linalg.norm(rows, axis=1) * math.hypot(12, 12))
    assert plain.min() > 0.99


def test_a_shift_and_a_scale_of_everything_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows, query = rng.normal(size=(7, 5)), rng.normal(size=5)
    moved = centred_cosines(3 * query + 4, 3 * rows + 4)
    assert moved == pytest.approx(centred_cosines(query, rows))


def test_what_lies_at_the_mean_is_near_nothing() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert centred_cosines(np.array([2.0, 0.0]), rows) == pytest.approx([1, -1, 0])
    assert centred_cosines(np.zeros(2), rows) == pytest.approx([0, 0, 0])


def test_lexical_cosines_by_hand() -> None:
    texts = ["Pills, pills!", "wine and bread", "bread"]
    common, rare, new = (1 + math.log(4 / (1 + df)) for df in (2, 1, 0))
    query = "pills and BREAD tonight"
    length = math.sqrt(common**2 + 2 * rare**2 + new**2)
    assert lexical_cosines(query, texts) == pytest.approx(
        [
            rare * 2 * rare / (length * 2 * rare),
            (common**2 + rare**2) / (length * math.sqrt(common**2 + 2 * rare**2)),
            common**2 / (length * common),
        ]
    )
    assert lexical_cosines("can't", ["CAN\u2019T", "cant"]) == pytest.approx([1, 0])
    assert lexical_cosines("...", texts) == [0.0, 0.0, 0.0]
    assert lexical_cosines("x", ["", "?"]) == [0.0, 0.0]
