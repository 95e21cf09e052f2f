"""AI comparison of two responses under one drawn principle (Bai et al. 2022, sec. 4.1).

The feedback model reads a two-option question and opens its answer; the label is the softmax over
the two option letters of its next-token log-probabilities, so it cannot fail to parse. Option
letters are drawn at random per comparison, which a response cannot know. They belong to the
positions: when the second order swaps the responses, the letters stay where they were, so averaging
both orders cancels a liking for a letter together with a liking for a position.

Extensions to the paper, all switches: both presentation orders are averaged (`both_orders`), and
few-shot examples are solved tests of the constitution itself, each under its own drawn principle.
With `label: clamp`, clamping comes after averaging. A pair that cannot be judged (identical
responses, an empty one, or one too long for the context) is a counted outcome without a label.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cai.choices import LabelMode, PrincipleSampling
from cai.config import ComparisonsConfig
from cai.constitution import Constitution, Principle, PrincipleTest
from cai.errors import UserError
from cai.generation import Generator
from cai.prompts import (
    ANSWER_OPENING,
    JUDGE_SYSTEM,
    LETTERS,
    Option,
    comparison_answer,
    comparison_question,
)
from cai.seeds import derive_seed, python_rng
from cai.tokens import ChatEncoder
from cai.types import Comparison, Judgement, Message, Prompt, Unjudged


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


def two_way(logprob_a: float, logprob_b: float) -> float:
    """Softmax over two log-probabilities: P(a) = 1 / (1 + exp(logprob_b - logprob_a))."""
    difference = logprob_b - logprob_a
    if difference > 0:
        return math.exp(-difference) / (1 + math.exp(-difference))
    return 1 / (1 + math.exp(difference))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two responses to compare under one principle."""

    prompt: Prompt
    response_a: str
    response_b: str
    principle: Principle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One presentation of a pair."""

    first: str
    letter_a: str
    letter_b: str
    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackModel:
    """Compares shards of pairs with one model."""

    generator: Generator
    encoder: ChatEncoder
    constitution: Constitution
    sampling: PrincipleSampling
    config: ComparisonsConfig
    seed: int

    def draw(self, prompt: Prompt, index: int) -> Principle:
        """The principle that a prompt's pair number `index` is compared under."""
        rng = python_rng(self.seed, "principle", prompt.id, index)
        return self.constitution.draw(rng, weighted=self.sampling is PrincipleSampling.weighted)

    def compare(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """Judge one shard of pairs, all of its presentations in one batch."""
        seeds = [derive_seed(self.seed, "compare", p.prompt.id, p.principle.id) for p in pairs]
        orders: dict[int, list[_Order]] = {}
        unjudged: dict[int, Unjudged] = {}
        for row, (pair, seed) in enumerate(zip(pairs, seeds, strict=True)):
            presented = self._present(pair, random.Random(seed))
            if isinstance(presented, Unjudged):
                unjudged[row] = presented
            else:
                orders[row] = presented
        logprobs = self._ask([order.ids for shown in orders.values() for order in shown])
        answers = iter(logprobs)
        comparisons = []
        for row, (pair, seed) in enumerate(zip(pairs, seeds, strict=True)):
            judged = [self._judge(order, next(answers)) for order in orders.get(row, [])]
            comparisons.append(self._comparison(pair, judged, unjudged.get(row), seed))
        return comparisons

    def _letter_id(self, letter: str) -> int:
        """The token that continues the answer's opening with a letter."""
        opening = self.encoder.text_ids(ANSWER_OPENING)
        with_letter = self.encoder.text_ids(ANSWER_OPENING + letter)
        if with_letter[:-1] != opening:
            raise UserError(
                f"the feedback model's tokenizer gives option letter {letter} no token of its own; "
                "name another phase.feedback_model"
            )
        return with_letter[-1]

    def _present(self, pair: Pair, rng: random.Random) -> list[_Order] | Unjudged:
        a, b = pair.response_a.strip(), pair.response_b.strip()
        if not a or not b:
            return Unjudged.empty
        if a == b:
            return Unjudged.identical
        letters = rng.sample(LETTERS, 2)
        shots = self._shots(pair, rng)
        firsts = ["a", "b"] if self.config.both_orders else [rng.choice(["a", "b"])]
        orders = []
        for first in firsts:
            shown = (a, b) if first == "a" else (b, a)
            letter_a, letter_b = letters if first == "a" else letters[::-1]
            question = comparison_question(
                pair.prompt.messages,
                (
                    Option(letter=letters[0], response=shown[0]),
                    Option(letter=letters[1], response=shown[1]),
                ),
                question=pair.principle.compare,
            )
            ids = self.encoder.conversation([*shots, question], system=JUDGE_SYSTEM)
            ids += self.encoder.text_ids(ANSWER_OPENING)
            if not self.generator.fits(ids, 1):
                return Unjudged.too_long
            orders.append(_Order(first=first, letter_a=letter_a, letter_b=letter_b, ids=ids))
        return orders

    def _shots(self, pair: Pair, rng: random.Random) -> list[Message]:
        """Solved tests of other principles, one drawn principle each, gold position random."""
        others = [p for p in self.constitution.principles if p.id != pair.principle.id and p.tests]
        messages: list[Message] = []
        for _ in range(self.config.num_few_shot if others else 0):
            weighted = self.sampling is PrincipleSampling.weighted
            weights = [p.weight for p in others] if weighted else None
            principle = rng.choices(others, weights=weights)[0]
            test = rng.choice(principle.tests)
            better, worse = rng.sample(LETTERS, 2)
            options = [
                Option(letter=better, response=test.better),
                Option(letter=worse, response=test.worse),
            ]
            rng.shuffle(options)
            asked = [Message(role="user", content=test.prompt)]
            messages += [
                comparison_question(asked, (options[0], options[1]), question=principle.compare),
                comparison_answer(better),
            ]
        return messages

    def _ask(self, prompts: list[list[int]]) -> torch.Tensor:
        if not prompts:
            return torch.empty(0, 0)
        return self.generator.next_token_logprobs(prompts)

    def _judge(self, order: _Order, logprobs: torch.Tensor) -> Judgement:
        logprob_a = float(logprobs[self._letter_id(order.letter_a)])
        logprob_b = float(logprobs[self._letter_id(order.letter_b)])
        return Judgement(
            first=order.first,
            letter_a=order.letter_a,
            letter_b=order.letter_b,
            logprob_a=logprob_a,
            logprob_b=logprob_b,
            prob_a=two_way(logprob_a, logprob_b),
        )

    def _comparison(
        self, pair: Pair, judged: list[Judgement], unjudged: Unjudged | None, seed: int
    ) -> Comparison:
        prob_a = None
        if judged:
            mean = sum(j.prob_a for j in judged) / len(judged)
            prob_a = label_of(mean, mode=self.config.label, clamp=self.config.clamp)
        return Comparison(
            prompt=pair.prompt,
            response_a=pair.response_a,
            response_b=pair.response_b,
            principle_id=pair.principle.id,
            judgements=tuple(judged),
            prob_a=prob_a,
            unjudged=unjudged,
            seed=seed,
        )


def same_position(comparison: Comparison) -> bool | None:
    """Whether both orders chose the response shown at the same place; None with one order."""
    if len(comparison.judgements) < 2:
        return None
    first_wins = [
        judgement.prob_a > 0.5 if judgement.first == "a" else judgement.prob_a < 0.5
        for judgement in comparison.judgements
    ]
    return first_wins[0] == first_wins[1]


def principle_tests(
    constitution: Constitution, *, num: int, seed: int
) -> list[tuple[Principle, int, PrincipleTest]]:
    """The first `num` tests of a constitution in seeded order, principle by principle in turn."""
    rng = python_rng(seed, "tests")
    queues = []
    for principle in constitution.principles:
        tests = list(enumerate(principle.tests))
        rng.shuffle(tests)
        queues.append([(principle, index, test) for index, test in tests])
    rng.shuffle(queues)
    rounds = max(map(len, queues), default=0)
    return [q[turn] for turn in range(rounds) for q in queues if turn < len(q)][:num]
