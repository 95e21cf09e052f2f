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
from cai.feedback.single import Examples, answer_ids, one_judgement, unreadable
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
        opening, yes, no = self._answers()
        asked = [self._prompts(case, opening) for case in cases]
        fits = [all(self.engine.fits(prompt, 1) for prompt in own) for own in asked]
        prompts = [p for own, fit in zip(asked, fits, strict=True) if fit for p in own]
        values = iter(self._log_odds(prompts, yes, no))
        return [
            one_judgement(case, next(values), next(values)) if fit else Unjudged.too_long
            for case, fit in zip(cases, fits, strict=True)
        ]

    def _answers(self) -> tuple[list[int], int, int]:
        """What opens the answer, and the tokens of Yes and No after it."""
        opening, endings = answer_ids(self.encoder, [YES, NO])
        for answer, ending in zip((YES, NO), endings, strict=True):
            if len(ending) != 1:
                raise unreadable(answer)
        return opening, endings[0][0], endings[1][0]

    def _prompts(self, case: Case, opening: Sequence[int]) -> list[list[int]]:
        """The question about a and the one about b."""
        shots = self.examples.draw(
            case.principle, random.Random(case.seed), ask=yes_no_question, better=YES, worse=NO
        )
        sentence = criterion(case.principle)
        return [
            self.encoder.conversation(
                [*shots, yes_no_question(sentence, case.messages, response)], system=YES_NO_SYSTEM
            )
            + list(opening)
            for response in (case.response_a, case.response_b)
        ]

    def _log_odds(self, prompts: Sequence[Sequence[int]], yes: int, no: int) -> list[float]:
        if not prompts:
            return []
        logprobs = self.engine.next_token_logprobs(prompts, candidates=[yes, no])
        return (logprobs[:, yes] - logprobs[:, no]).tolist()
