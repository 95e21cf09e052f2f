"""Score: a mark from 0 to 10 for each response by itself, as an expected value.

The feedback model is asked for a mark of a response. Its value is the mean of the numbers 0 to 10
under the model's probabilities of answering them, so that it moves even where the likeliest number
does not, times `scale`; the label is the softmax over the two values.

Most tokenizers write 10 as 1 and 0. Then P(10) = p(1) p(0 | 1), read after a second pass over the
prompts with a 1 behind them, and P(1) = p(1) (1 - p(0 | 1)). Probabilities are divided by their
sum, over what is no number from 0 to 10.

`calibrate` divides the probabilities by those of a content-free response to the same conversation,
and by their sum again (Zhao et al. 2021, arXiv:2102.09690): what the model answers without having
read anything no longer counts. Unlike log-odds, an expected value has no prior that both responses
could cancel. An extension to the paper; few-shot examples are solved tests of other principles, 10
for a better response and 0 for a worse one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from cai.engines import Engine
from cai.feedback.base import Case, Judged, Method
from cai.feedback.single import Examples, Single, answer_ids, both, one_judgement, unreadable
from cai.feedback.wording import (
    CONTENT_FREE,
    HIGHEST,
    LOWEST,
    MARK_SYSTEM,
    criterion,
    mark_question,
)
from cai.feedback_config import ScoreConfig
from cai.tokens import ChatEncoder
from cai.types import Unjudged

NUMBERS = torch.arange(LOWEST, HIGHEST + 1, dtype=torch.float64)


class Score(Method):
    """Expected marks, all responses of a shard's cases in one batch.

    Args:
        config: Its settings.
        engine: The feedback model.
        encoder: Its tokenizer.
        examples: Where few-shot examples come from.
    """

    config: ScoreConfig

    def __init__(
        self, config: ScoreConfig, *, engine: Engine, encoder: ChatEncoder, examples: Examples
    ) -> None:
        super().__init__(config)
        self.engine = engine
        self.encoder = encoder
        self.examples = examples

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement for each case whose questions fit the context."""
        found = self._asked([both(case) for case in cases])
        return [
            Unjudged.too_long
            if marks is None
            else one_judgement(case, *(self.config.scale * mark for mark in marks))
            for case, marks in zip(cases, found, strict=True)
        ]

    def values(self, singles: Sequence[Single]) -> list[float | Unjudged]:
        """Expected mark of each response, 0 to 10; the shard is one batch."""
        found = self._asked([(single,) for single in singles])
        return [Unjudged.too_long if marks is None else marks[0] for marks in found]

    def _asked(self, groups: Sequence[Sequence[Single]]) -> list[list[float] | None]:
        """Expected marks for each group of one conversation; None where one does not fit."""
        opening, numbers = self._numbers()
        asked = [self._prompts(group, opening) for group in groups]
        fits = [all(self.engine.fits(p, len(numbers[-1])) for p in own) for own in asked]
        prompts = [p for own, fit in zip(asked, fits, strict=True) if fit for p in own]
        found = iter(self._probs(prompts, numbers))
        marks: list[list[float] | None] = []
        for group, own, fit in zip(groups, asked, fits, strict=True):
            if not fit:
                marks.append(None)
                continue
            probs = [next(found) for _ in own]
            prior = probs[len(group)] if self.config.calibrate else torch.ones_like(NUMBERS)
            marks.append([expected_mark(one / prior) for one in probs[: len(group)]])
        return marks

    def _numbers(self) -> tuple[list[int], list[list[int]]]:
        """What opens the answer, and the tokens of each number after it: one, or two for 10."""
        answers = [str(number) for number in range(LOWEST, HIGHEST + 1)]
        opening, endings = answer_ids(self.encoder, answers)
        for answer, ending in zip(answers, endings, strict=True):
            begun = len(ending) == 2 and answer == str(HIGHEST) and ending[:1] == endings[1]
            if len(ending) != 1 and not begun:
                raise unreadable(answer)
        return opening, endings

    def _prompts(self, group: Sequence[Single], opening: Sequence[int]) -> list[list[int]]:
        """The question about each response of a group, and that about a content-free one."""
        first = group[0]
        shots = self.examples.draw(
            first.principle,
            random.Random(first.seed),
            ask=mark_question,
            better=str(HIGHEST),
            worse=str(LOWEST),
        )
        sentence = criterion(first.principle)
        responses = [*(one.response for one in group), *[CONTENT_FREE] * self.config.calibrate]
        return [
            self.encoder.conversation(
                [*shots, mark_question(sentence, first.messages, response)], system=MARK_SYSTEM
            )
            + list(opening)
            for response in responses
        ]

    def _probs(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """P of answering each number, float64 (11,) for each prompt."""
        if not prompts:
            return []
        ids = [number[0] for number in numbers]
        logprobs = self.engine.next_token_logprobs(prompts, candidates=sorted(set(ids)))
        probs = logprobs[:, ids].double().exp()
        if len(numbers[HIGHEST]) == 2:
            one, zero = numbers[HIGHEST]
            further = [[*prompt, one] for prompt in prompts]
            after = self.engine.next_token_logprobs(further, candidates=[zero])
            share = after[:, zero].double().exp()
            probs[:, HIGHEST] *= share
            probs[:, 1] *= 1 - share
        return list(probs)


def expected_mark(weights: torch.Tensor) -> float:
    """Mean of the numbers 0 to 10 under weights (11,) that need not sum to 1."""
    return float((weights * NUMBERS).sum() / weights.sum())
