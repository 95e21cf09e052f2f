"""What every feedback method shares: cases, judgements, labels (Bai et al. 2022, sec. 4.1).

A pair is judged under one drawn principle, or under several whose probabilities are averaged; a
pair under one principle is a case, and a method turns cases into judgements: one for each
presentation order, or a single one where nothing is presented side by side. Averaging comes before
hardening or clamping. A pair that cannot be judged (identical responses, an empty one, one too long
for the context, an answer without a verdict) is a counted outcome without a label.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai.choices import LabelMode, PrincipleSampling
from cai.constitution import Constitution, Principle
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback_config import FeedbackConfig
from cai.seeds import derive_seed, python_rng
from cai.types import (
    Comparison,
    FeedbackCheck,
    Judgement,
    Message,
    PrincipleLabel,
    Prompt,
    Unjudged,
)


def label_of(prob_a: float, *, mode: LabelMode, clamp: float) -> float:
    """The averaged probability as the configured label.

    `hard` gives 0 or 1 and keeps an exact tie at 0.5; `clamp` holds it in [clamp, 1 - clamp].
    """
    match mode:
        case LabelMode.soft:
            return prob_a
        case LabelMode.hard:
            return 0.5 if prob_a == 0.5 else float(prob_a > 0.5)
        case LabelMode.clamp:
            return min(max(prob_a, clamp), 1 - clamp)


def shifted(prob_a: float, shift: float) -> float:
    """A probability whose log-odds are moved by `shift` nats; 0 and 1 are certain and stay."""
    if prob_a in (0.0, 1.0) or shift == 0:
        return prob_a
    return two_way(math.log(prob_a) - math.log1p(-prob_a) + shift, 0.0)


def two_way(value_a: float, value_b: float) -> float:
    """Softmax over two log-probabilities or scores: P(a) = 1 / (1 + exp(value_b - value_a))."""
    difference = value_b - value_a
    if difference > 0:
        return math.exp(-difference) / (1 + math.exp(-difference))
    return 1 / (1 + math.exp(difference))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two responses to compare under one or several principles."""

    prompt: Prompt
    response_a: str
    response_b: str
    principles: tuple[Principle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair under one principle, as a method sees it: texts are clean (`hygiene`), not empty."""

    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    principle: Principle
    seed: int
    """The case's own random stream."""


Judged = tuple[Judgement, ...] | Unjudged


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Labelled pairs, each combined without the knowledge of its own label."""

    checks: list[FeedbackCheck]
    counts: dict[str, int]
    """As `Method.counts` has them."""


class Method(abc.ABC):
    """One way to judge cases.

    Args:
        config: Its settings.
    """

    def __init__(self, config: FeedbackConfig) -> None:
        self.config = config

    @abc.abstractmethod
    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """Judgements of one shard of cases, in order, or why there are none."""

    def combine(self, judgements: Sequence[Judgement]) -> tuple[float, float]:
        """P(a preferred) of one case's judgements, and the label's weight in [0, 1]."""
        return sum(j.prob_a for j in judgements) / len(judgements), 1.0

    def label(
        self, cases: Sequence[Sequence[Judgement]], *, shift: float = 0.0
    ) -> tuple[float, float]:
        """Label and weight of a pair from the judgements of its cases.

        Args:
            cases: Judgements by principle.
            shift: Added to the log-odds of their mean before it is hardened or clamped, nats.
        """
        combined = [self.combine(judgements) for judgements in cases]
        mean = shifted(sum(prob for prob, _ in combined) / len(combined), shift)
        prob_a = label_of(mean, mode=self.config.label, clamp=self.config.clamp)
        return prob_a, sum(weight for _, weight in combined) / len(combined)

    def labels(
        self, cases: Sequence[Sequence[Judgement]], *, shift: float = 0.0
    ) -> tuple[PrincipleLabel, ...]:
        """Label and weight that each case would have as a pair under its one principle."""
        found = []
        for judgements in cases:
            prob_a, weight = self.label([judgements], shift=shift)
            principle_id = judgements[0].principle_id
            label = PrincipleLabel(principle_id=principle_id, prob_a=prob_a, weight=weight)
            found.append(label)
        return tuple(found)

    def held_out(self, checks: Sequence[FeedbackCheck]) -> HeldOut:
        """Labelled pairs, each combined by what was measured on the others; here, as they are."""
        return HeldOut(checks=list(checks), counts={})

    def counts(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """What a stage counts about its labels beyond what every method has."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Compares shards of pairs by one method."""

    method: Method
    constitution: Constitution
    sampling: PrincipleSampling
    seed: int

    def draw(self, prompt: Prompt, index: int, *, num: int) -> tuple[Principle, ...]:
        """The principles that a prompt's pair number `index` is compared under, all different."""
        rng = python_rng(self.seed, "principle", prompt.id, index)
        weighted = self.sampling is PrincipleSampling.weighted
        return self.constitution.draw_several(rng, num=num, weighted=weighted)

    def compare(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """Judge one shard of pairs, all of its cases in one batch."""
        cases: list[Case] = []
        rows: list[list[int]] = []
        for pair in pairs:
            rows.append([])
            if _trivial(pair) is None:
                rows[-1] = list(range(len(cases), len(cases) + len(pair.principles)))
                cases += self._cases(pair)
        judged = self.method.judge(cases) if cases else []
        return [
            self._comparison(pair, [judged[i] for i in own])
            for pair, own in zip(pairs, rows, strict=True)
        ]

    def _seed(self, pair: Pair, principle: Principle) -> int:
        return derive_seed(self.seed, "compare", pair.prompt.id, principle.id)

    def _cases(self, pair: Pair) -> list[Case]:
        messages = shown_turns(pair.prompt.messages)
        return [
            Case(
                messages=messages,
                response_a=shown(pair.response_a),
                response_b=shown(pair.response_b),
                principle=principle,
                seed=self._seed(pair, principle),
            )
            for principle in pair.principles
        ]

    def _comparison(self, pair: Pair, judged: Sequence[Judged]) -> Comparison:
        failed = [j for j in judged if isinstance(j, Unjudged)]
        unjudged = _trivial(pair) or (failed[0] if failed else None)
        kept = [j for j in judged if not isinstance(j, Unjudged)] if unjudged is None else []
        prob_a, weight = self.method.label(kept) if kept else (None, 1.0)
        return Comparison(
            prompt=pair.prompt,
            response_a=pair.response_a,
            response_b=pair.response_b,
            principle_ids=tuple(principle.id for principle in pair.principles),
            judgements=tuple(j for case in kept for j in case),
            labels=self.method.labels(kept),
            prob_a=prob_a,
            weight=weight,
            unjudged=unjudged,
            seed=self._seed(pair, pair.principles[0]),
        )


def _trivial(pair: Pair) -> Unjudged | None:
    a, b = shown(pair.response_a), shown(pair.response_b)
    if not a or not b:
        return Unjudged.empty
    return Unjudged.identical if a == b else None


def cases_of(comparison: Comparison) -> list[list[Judgement]]:
    """A pair's judgements by principle; none for a pair that was not judged."""
    return [
        [j for j in comparison.judgements if j.principle_id == principle_id]
        for principle_id in (comparison.principle_ids if comparison.judgements else ())
    ]


def same_position(comparison: Comparison) -> list[bool]:
    """For each two-order judgement: did both orders choose the response shown at the same place?

    A judgement without positions can follow none: it counts as False. Empty when only one order
    was asked.
    """
    orders: dict[tuple[str, str | None], list[Judgement]] = {}
    for judgement in comparison.judgements:
        orders.setdefault((judgement.principle_id, judgement.member), []).append(judgement)
    found = []
    for judgements in orders.values():
        if judgements[0].first is None:
            found.append(False)
        elif len(judgements) == 2:
            first_wins = [j.prob_a > 0.5 if j.first == "a" else j.prob_a < 0.5 for j in judgements]
            found.append(first_wins[0] == first_wins[1])
    return found
