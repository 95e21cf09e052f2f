"""Chain of thought: the two-option question, answered after sampled reasoning (sec. 4.1 and 4.3).

The feedback model is asked for reasoning before the answer and writes it; then the answer's opening
is put behind it and the option letters' log-probabilities are read, as in `multiple_choice`. What
the model wrote from its own answer on is cut off first. Reasoning makes the letter almost certain
whether it is right or wrong, which is why the paper clamps these labels to [0.4, 0.6], and so does
the shipped config.

Extensions to the paper: `num_samples` chains for each presentation, whose probabilities are
averaged, and those of `multiple_choice`. Few-shot examples carry a neutral reasoning, because the
constitution's tests come without one. `calibrate` samples reasonings about the content-free pair,
too, and so doubles the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from cai.feedback.multiple_choice import Answer, MultipleChoice, Order
from cai.feedback.wording import reasoned_answer, reasoning_question
from cai.feedback_config import ChainOfThoughtConfig
from cai.prompts import ANSWER_OPENING, JUDGE_SYSTEM
from cai.seeds import derive_seed
from cai.types import Message, Unjudged


class ChainOfThought(MultipleChoice):
    """All chains of a shard sampled in one batch, then all letters read in another."""

    config: ChainOfThoughtConfig

    def solved(self, letter: str) -> Message:
        """A few-shot example's answer, with its reasoning."""
        return reasoned_answer(letter)

    def answers(self, orders: Sequence[Order]) -> list[Answer | Unjudged]:
        """What each presentation got, averaged over its chains."""
        num = self.config.num_samples
        prompts = [self._prompt(order) for order in orders]
        room = self.config.max_new_tokens + len(self._closing("")) + 1
        fitting = [row for row, ids in enumerate(prompts) if self.generator.fits(ids, room)]
        found: list[Answer | Unjudged] = [Unjudged.too_long] * len(orders)
        if not fitting:
            return found
        rows = [row for row in fitting for _ in range(num)]
        sampled = self.generator.sample(
            [prompts[row] for row in rows],
            seeds=[
                derive_seed(orders[row].seed, "reasoning", number)
                for row in fitting
                for number in range(num)
            ],
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
        )
        thoughts = [_before_answer(self.encoder.decode(tokens.ids)) for tokens in sampled]
        read = self.letters(
            [orders[row] for row in rows],
            [prompts[row] + self._closing(said) for row, said in zip(rows, thoughts, strict=True)],
        )
        for place, row in enumerate(fitting):
            own = slice(place * num, (place + 1) * num)
            found[row] = _averaged(read[own], thoughts[own])
        return found

    def _prompt(self, order: Order) -> list[int]:
        messages = [
            reasoning_question(message) if message.role == "user" else message
            for message in order.messages
        ]
        return self.encoder.conversation(messages, system=JUDGE_SYSTEM)

    def _closing(self, thought: str) -> list[int]:
        return self.encoder.text_ids(f"{thought}\n\n{ANSWER_OPENING}")


def _before_answer(text: str) -> str:
    return text.partition(ANSWER_OPENING)[0].strip()


def _averaged(read: Sequence[Answer | Unjudged], thoughts: Sequence[str]) -> Answer | Unjudged:
    """Logs of the mean two-way probabilities, nats, and all reasonings."""
    odds = []
    for answer in read:
        if isinstance(answer, Unjudged):
            return answer
        odds.append(answer.value_a - answer.value_b)
    log_odds = torch.tensor(odds, dtype=torch.float64)
    # A log-sum-exp of log-sigmoids stays finite where a probability would round to 0.
    value_a, value_b = (
        float(functional.logsigmoid(signed).logsumexp(0)) - math.log(len(odds))
        for signed in (log_odds, -log_odds)
    )
    return Answer(value_a=value_a, value_b=value_b, text="\n\n".join(thoughts))
