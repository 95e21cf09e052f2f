"""Contrastive likelihood: how much likelier does a response become under the principle?

For each response y of a conversation x and a principle c, the gain is
`log p(y | x, c) - log p(y | x)`, where c is a system turn that states the principle; with
`contrast: opposite` the second term is `log p(y | x, not c)`, with a system turn that asks for the
contrary. The conversation alone, with its length, its frequent words and its fluency, is in both
terms and cancels. The label is the softmax over the two gains, times `scale`.

An extension to the paper, after Liu et al. 2024 (arXiv:2402.11907), who compare responses by their
probabilities under two opposite prompts. No response is shown to a judge, so nothing in it can be
an instruction to one, and there are no positions. Responses are scored whole, with the
end-of-sequence token, as an assistant's own turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai.choices import Contrast
from cai.engines import Engine
from cai.feedback.base import Case, Judged, Method
from cai.feedback.single import one_judgement
from cai.feedback.wording import PLAIN_SYSTEM, criterion, following, opposing
from cai.feedback_config import LikelihoodConfig
from cai.tokens import ChatEncoder
from cai.types import Message, Unjudged


class Likelihood(Method):
    """Scores both responses with and without the principle.

    Args:
        config: Its settings.
        engine: The feedback model.
        encoder: Its tokenizer.
    """

    config: LikelihoodConfig

    def __init__(self, config: LikelihoodConfig, *, engine: Engine, encoder: ChatEncoder) -> None:
        super().__init__(config)
        self.engine = engine
        self.encoder = encoder

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement for each case whose four texts fit the context."""
        rows = [self._rows(case) for case in cases]
        fits = [all(self.engine.fits(p, len(r)) for p, r in own) for own in rows]
        asked = [row for own, fit in zip(rows, fits, strict=True) if fit for row in own]
        scored = iter(self._score(asked))
        judged: list[Judged] = []
        for case, fit in zip(cases, fits, strict=True):
            if not fit:
                judged.append(Unjudged.too_long)
                continue
            with_a, with_b, without_a, without_b = (next(scored) for _ in range(4))
            scale = self.config.scale
            judged.append(
                one_judgement(case, scale * (with_a - without_a), scale * (with_b - without_b))
            )
        return judged

    def _rows(self, case: Case) -> list[tuple[list[int], list[int]]]:
        """Prompt and response tokens: a and b under the principle, a and b under the contrast."""
        sentence = criterion(case.principle)
        against = {Contrast.none: PLAIN_SYSTEM, Contrast.opposite: opposing(sentence)}
        answers = [self.encoder.response_ids(r) for r in (case.response_a, case.response_b)]
        rows = []
        for system in (following(sentence), against[self.config.contrast]):
            # As a message, because a constitution's text must not become control tokens.
            turns = (Message(role="system", content=system), *case.messages)
            prompt = self.encoder.conversation(turns)
            rows += [(prompt, answer) for answer in answers]
        return rows

    def _score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-probability of each response, or its mean per token."""
        totals = self.engine.score([prompt for prompt, _ in rows], [own for _, own in rows])
        if not self.config.per_token:
            return totals
        return [total / len(own) for total, (_, own) in zip(totals, rows, strict=True)]
