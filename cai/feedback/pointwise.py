"""Pointwise: a yes/no question about each response by itself.

The feedback model is asked whether a response keeps to the principle; a response's value is the
log-odds `log p(Yes) - log p(No)` of the next token, and the label is the softmax over the two
values, so that a liking for Yes or for No cancels. For the same reason there is no contextual
calibration here: the log-odds of a content-free response depend on the principle, the examples and
the conversation, which both responses share, and would be subtracted from both.

An extension to the paper. Few-shot examples are solved tests of other principles: Yes after a
better response, No after a worse one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cai.engines import Engine
from cai.feedback.base import Case, Judged, Method
from cai.feedback.single import Examples, Single, answer_ids, both, one_judgement, unreadable
from cai.feedback.wording import NO, YES, YES_NO_SYSTEM, criterion, yes_no_question
from cai.feedback_config import PointwiseConfig
from cai.tokens import ChatEncoder
from cai.types import Unjudged


class Pointwise(Method):
    """Log-odds of Yes, both responses of a shard's cases in one batch.

    Args:
        config: Its settings.
        engine: The feedback model.
        encoder: Its tokenizer.
        examples: Where few-shot examples come from.
    """

    config: PointwiseConfig

    def __init__(
        self,
        config: PointwiseConfig,
        *,
        engine: Engine,
        encoder: ChatEncoder,
        examples: Examples,
    ) -> None:
        super().__init__(config)
        self.engine = engine
        self.encoder = encoder
        self.examples = examples

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement for each case whose two questions fit the context."""
        found = self._asked([both(case) for case in cases])
        return [
            Unjudged.too_long if values is None else one_judgement(case, *values)
            for case, values in zip(cases, found, strict=True)
        ]

    def values(self, singles: Sequence[Single]) -> list[float | Unjudged]:
        """Log-odds of Yes about each response, nats; the shard is one batch."""
        found = self._asked([(single,) for single in singles])
        return [Unjudged.too_long if values is None else values[0] for values in found]

    def _asked(self, groups: Sequence[Sequence[Single]]) -> list[list[float] | None]:
        """Log-odds for each group; None where a question of it does not fit the context."""
        opening, yes, no = self._answers()
        asked = [[self._prompt(single, opening) for single in group] for group in groups]
        fits = [all(self.engine.fits(prompt, 1) for prompt in own) for own in asked]
        prompts = [p for own, fit in zip(asked, fits, strict=True) if fit for p in own]
        values = iter(self._log_odds(prompts, yes, no))
        return [
            [next(values) for _ in own] if fit else None
            for own, fit in zip(asked, fits, strict=True)
        ]

    def _answers(self) -> tuple[list[int], int, int]:
        """What opens the answer, and the tokens of Yes and No after it."""
        opening, endings = answer_ids(self.encoder, [YES, NO])
        for answer, ending in zip((YES, NO), endings, strict=True):
            if len(ending) != 1:
                raise unreadable(answer)
        return opening, endings[0][0], endings[1][0]

    def _prompt(self, single: Single, opening: Sequence[int]) -> list[int]:
        shots = self.examples.draw(
            single.principle, random.Random(single.seed), ask=yes_no_question, better=YES, worse=NO
        )
        question = yes_no_question(criterion(single.principle), single.messages, single.response)
        conversation = self.encoder.conversation([*shots, question], system=YES_NO_SYSTEM)
        return conversation + list(opening)

    def _log_odds(self, prompts: Sequence[Sequence[int]], yes: int, no: int) -> list[float]:
        if not prompts:
            return []
        logprobs = self.engine.next_token_logprobs(prompts, candidates=[yes, no])
        return (logprobs[:, yes] - logprobs[:, no]).tolist()
