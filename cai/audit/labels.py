"""Labels of the same response pairs under every principle: the records of the measured audit.

A comparison in training has one drawn principle; here a pair is judged under all of them, so that
principles can be compared with each other and left out without asking anything again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cai.types import Prompt, Unjudged


class Framing(StrEnum):
    """How a principle's comparison form is put (`cai.audit.framings`)."""

    plain = "plain"
    """As the document has it."""
    paraphrase = "paraphrase"
    """The same question in other words."""
    negation = "negation"
    """The opposite question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleAnswer:
    """The feedback's answer to one pair under one principle in one framing."""

    principle_id: str
    framing: Framing
    wording: int
    """0-based number among the framing's wordings."""
    prob_a: float | None
    """Label P(a preferred), as the configured feedback gives it; None when `unjudged` says why."""
    flips: bool | None
    """Whether the two presentation orders prefer different responses; None where nothing is shown
    side by side, or only one order was asked."""
    unjudged: Unjudged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLabels:
    """One pair and the answers about it."""

    name: str
    """`<prompt id>-<number of the pair among those of the prompt>`."""
    prompt: Prompt
    response_a: str
    response_b: str
    answers: tuple[PrincipleAnswer, ...]


def label_matrix(pairs: Sequence[PairLabels], principle_ids: Sequence[str]) -> np.ndarray:
    """P(a preferred) in the plain framing, (pairs, principles); NaN where there is no label."""
    column = {name: place for place, name in enumerate(principle_ids)}
    matrix = np.full((len(pairs), len(column)), np.nan)
    for row, pair in enumerate(pairs):
        for answer in pair.answers:
            if answer.framing is Framing.plain and answer.prob_a is not None:
                matrix[row, column[answer.principle_id]] = answer.prob_a
    return matrix
