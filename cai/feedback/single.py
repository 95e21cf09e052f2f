"""What the methods share that put one response at a time to the feedback model.

Nothing is shown side by side, so there is no position to like and no letter: a case has one
judgement, and swapping its responses complements the label. Each question is a conversation whose
system turn and few-shot examples come first, so that what rows have in common is computed once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from cai.choices import PrincipleSampling
from cai.constitution import Constitution, Principle
from cai.errors import UserError
from cai.feedback.base import Case, Judged, two_way
from cai.feedback.multiple_choice import few_shot
from cai.feedback.wording import criterion
from cai.tokens import ChatEncoder
from cai.types import Judgement, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """One response under one principle, as a method sees it: texts are clean, not empty."""

    messages: tuple[Message, ...]
    response: str
    principle: Principle
    seed: int
    """Its own random stream, which draws few-shot examples."""


def both(case: Case) -> tuple[Single, Single]:
    """A case's responses, each by itself, with the same few-shot examples."""
    a, b = (
        Single(messages=case.messages, response=response, principle=case.principle, seed=case.seed)
        for response in (case.response_a, case.response_b)
    )
    return a, b


Ask = Callable[[str, Sequence[Message], str], Message]
"""From a sentence, a conversation and a response to the question about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Solved tests of other principles in front of a question.

    Tests whose better response is shown and tests whose worse one is shown are equally many, or
    differ by a drawn one, in random order.
    """

    constitution: Constitution
    sampling: PrincipleSampling
    num: int

    def draw(
        self, principle: Principle, rng: random.Random, *, ask: Ask, better: str, worse: str
    ) -> list[Message]:
        """Questions and answers: `better` about better responses, `worse` about worse ones."""
        drawn = few_shot(self.constitution, self.sampling, principle, rng, num=self.num)
        golds = [True, False] * (len(drawn) // 2) + [rng.random() < 0.5] * (len(drawn) % 2)
        rng.shuffle(golds)
        messages: list[Message] = []
        for (other, test), good in zip(drawn, golds, strict=True):
            asked = [Message(role="user", content=test.prompt)]
            messages += [
                ask(criterion(other), asked, test.better if good else test.worse),
                Message(role="assistant", content=better if good else worse),
            ]
        return messages


def answer_ids(encoder: ChatEncoder, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Tokens that all answers of the judge begin with, and how each goes on after them."""
    ids = [encoder.text_ids(answer) for answer in answers]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    opening = [column[0] for column in alike]
    return opening, [own[len(opening) :] for own in ids]


def unreadable(answer: str) -> UserError:
    """A tokenizer splits an answer so that its probability is not that of one token."""
    return UserError(
        f"the feedback model's tokenizer splits the answer {answer}, so its probability cannot be "
        "read; type feedback=multiple_choice, or name another phase.feedback_model"
    )


def one_judgement(case: Case, value_a: float, value_b: float) -> Judged:
    """The judgement of a case without positions: P(a) is the softmax over both values, nats."""
    return (
        Judgement(
            principle_id=case.principle.id,
            member=None,
            first=None,
            letter_a=None,
            letter_b=None,
            value_a=value_a,
            value_b=value_b,
            prob_a=two_way(value_a, value_b),
            text=None,
        ),
    )
