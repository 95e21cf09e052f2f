"""Multiple choice: a two-option question, answered by a letter (Bai et al. 2022, sec. 4.1).

The feedback model reads a two-option question and opens its answer; the label is the softmax over
the two option letters of its next-token log-probabilities, so it cannot fail to parse. Option
letters are drawn at random per case, which a response cannot know. They belong to the positions:
when the second order swaps the responses, the letters stay where they were, so averaging both
orders cancels a liking for a letter together with a liking for a position.

Extensions to the paper, all switches: both presentation orders are averaged (`both_orders`);
few-shot examples are solved tests of the constitution itself, each under its own drawn principle;
`calibrate` subtracts the log-odds that the same question has with a content-free pair, in the same
order and with the same letters and examples (Zhao et al. 2021, arXiv:2102.09690).
"""

from __future__ import annotations

import abc
import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cai.choices import PrincipleSampling
from cai.constitution import Constitution, Principle, PrincipleTest
from cai.engines import Engine
from cai.errors import UserError
from cai.feedback.base import Case, Judged, Method, two_way
from cai.feedback.wording import CONTENT_FREE
from cai.feedback_config import MultipleChoiceConfig
from cai.prompts import (
    ANSWER_OPENING,
    JUDGE_SYSTEM,
    LETTERS,
    Option,
    comparison_answer,
    comparison_question,
)
from cai.seeds import derive_seed
from cai.tokens import ChatEncoder
from cai.types import Judgement, Message, Unjudged


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One presentation of a case."""

    first: str
    letter_a: str
    letter_b: str
    messages: tuple[Message, ...]
    seed: int
    """The same for the same responses in the same places, whichever of them is a."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model said to one presentation."""

    value_a: float
    """Log-probability of response a's letter, nats."""
    value_b: float
    text: str | None = None
    """Reasoning or words, where the method has any."""


def few_shot(
    constitution: Constitution,
    sampling: PrincipleSampling,
    principle: Principle,
    rng: random.Random,
    *,
    num: int,
) -> list[tuple[Principle, PrincipleTest]]:
    """Tests of other principles to be shown solved, one drawn principle each."""
    others = [p for p in constitution.principles if p.id != principle.id and p.tests]
    weights = [p.weight for p in others] if sampling is PrincipleSampling.weighted else None
    drawn = [rng.choices(others, weights=weights)[0] for _ in range(num if others else 0)]
    return [(other, rng.choice(other.tests)) for other in drawn]


class TwoOptions(Method):
    """Presents cases as two-option questions, in both orders or in a drawn one.

    Args:
        config: Its settings.
        constitution: Where few-shot examples come from.
        sampling: How their principles are drawn.
    """

    config: MultipleChoiceConfig

    def __init__(
        self,
        config: MultipleChoiceConfig,
        *,
        constitution: Constitution,
        sampling: PrincipleSampling,
    ) -> None:
        super().__init__(config)
        self.constitution = constitution
        self.sampling = sampling

    @abc.abstractmethod
    def answers(self, orders: Sequence[Order]) -> list[Answer | Unjudged]:
        """What each presentation got, or why it got nothing."""

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """Judgements of both orders, or of the drawn one."""
        orders = [self._present(case) for case in cases]
        asked = [order for shown in orders for order in shown]
        answers = self.answers(asked)
        if self.config.calibrate:
            free = [self._present(content_free(case)) for case in cases]
            priors = self.answers([order for shown in free for order in shown])
            answers = [_less(a, prior) for a, prior in zip(answers, priors, strict=True)]
        found = iter(zip(asked, answers, strict=True))
        return [
            _judged(case, [next(found) for _ in shown])
            for case, shown in zip(cases, orders, strict=True)
        ]

    def _present(self, case: Case) -> list[Order]:
        rng = random.Random(case.seed)
        letters = rng.sample(LETTERS, 2)
        shots = self._shots(case.principle, rng)
        firsts = ["a", "b"] if self.config.both_orders else [rng.choice(["a", "b"])]
        orders = []
        for first in firsts:
            shown = (case.response_a, case.response_b)
            shown = shown if first == "a" else shown[::-1]
            letter_a, letter_b = letters if first == "a" else letters[::-1]
            question = comparison_question(
                case.messages,
                (
                    Option(letter=letters[0], response=shown[0]),
                    Option(letter=letters[1], response=shown[1]),
                ),
                question=case.principle.compare,
            )
            orders.append(
                Order(
                    first=first,
                    letter_a=letter_a,
                    letter_b=letter_b,
                    messages=(*shots, question),
                    seed=derive_seed(case.seed, shown[0]),
                )
            )
        return orders

    def solved(self, letter: str) -> Message:
        """How a few-shot example is answered."""
        return comparison_answer(letter)

    def _shots(self, principle: Principle, rng: random.Random) -> list[Message]:
        """Solved tests of other principles, gold position random."""
        messages: list[Message] = []
        drawn = few_shot(
            self.constitution, self.sampling, principle, rng, num=self.config.num_few_shot
        )
        for other, test in drawn:
            better, worse = rng.sample(LETTERS, 2)
            options = [
                Option(letter=better, response=test.better),
                Option(letter=worse, response=test.worse),
            ]
            rng.shuffle(options)
            asked = [Message(role="user", content=test.prompt)]
            messages += [
                comparison_question(asked, (options[0], options[1]), question=other.compare),
                self.solved(better),
            ]
        return messages


class MultipleChoice(TwoOptions):
    """Letters' log-probabilities, both orders of a shard in one batch."""

    def __init__(
        self,
        config: MultipleChoiceConfig,
        *,
        generator: Engine,
        encoder: ChatEncoder,
        constitution: Constitution,
        sampling: PrincipleSampling,
    ) -> None:
        super().__init__(config, constitution=constitution, sampling=sampling)
        self.generator = generator
        self.encoder = encoder

    def answers(self, orders: Sequence[Order]) -> list[Answer | Unjudged]:
        """What each presentation got, or that it does not fit the context."""
        prompts = [
            self.encoder.conversation(order.messages, system=JUDGE_SYSTEM)
            + self.encoder.text_ids(ANSWER_OPENING)
            for order in orders
        ]
        return self.letters(orders, prompts)

    def letters(
        self, orders: Sequence[Order], prompts: Sequence[Sequence[int]]
    ) -> list[Answer | Unjudged]:
        """Log-probabilities of a and b's letters after each prompt that fits the context."""
        fitting = [row for row, ids in enumerate(prompts) if self.generator.fits(ids, 1)]
        found: list[Answer | Unjudged] = [Unjudged.too_long] * len(orders)
        if not fitting:
            return found
        ids = {self._letter_id(x) for order in orders for x in (order.letter_a, order.letter_b)}
        logprobs = self.generator.next_token_logprobs(
            [prompts[row] for row in fitting], candidates=sorted(ids)
        )
        for row, values in zip(fitting, logprobs, strict=True):
            found[row] = Answer(
                value_a=float(values[self._letter_id(orders[row].letter_a)]),
                value_b=float(values[self._letter_id(orders[row].letter_b)]),
            )
        return found

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


def content_free(case: Case) -> Case:
    """The same case with nothing in it to prefer."""
    return dataclasses.replace(case, response_a=CONTENT_FREE, response_b=CONTENT_FREE)


def _less(answer: Answer | Unjudged, prior: Answer | Unjudged) -> Answer | Unjudged:
    if isinstance(answer, Unjudged):
        return answer
    if isinstance(prior, Unjudged):
        return prior
    return dataclasses.replace(
        answer,
        value_a=answer.value_a - prior.value_a,
        value_b=answer.value_b - prior.value_b,
    )


def _judged(case: Case, answered: Sequence[tuple[Order, Answer | Unjudged]]) -> Judged:
    judgements = []
    for order, answer in answered:
        if isinstance(answer, Unjudged):
            return answer
        judgements.append(
            Judgement(
                principle_id=case.principle.id,
                member=None,
                first=order.first,
                letter_a=order.letter_a,
                letter_b=order.letter_b,
                value_a=answer.value_a,
                value_b=answer.value_b,
                prob_a=two_way(answer.value_a, answer.value_b),
                text=answer.text,
            )
        )
    return tuple(judgements)
