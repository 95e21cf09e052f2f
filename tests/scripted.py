"""A scripted generator: fixed answers in place of a model; raises when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cai.generation import Tokens
from cai.tokens import ChatEncoder


class ScriptedGenerator:
    """Answers prompts from a list or by a function of the prompt's text."""

    def __init__(
        self,
        encoder: ChatEncoder,
        answers: Sequence[str] | Callable[[str], str] = (),
        *,
        logprobs: Callable[[str], dict[str, float]] | None = None,
        scores: Callable[[str, str], float] | None = None,
        max_context: int = 100_000,
    ) -> None:
        self.encoder = encoder
        self.answers = answers if callable(answers) else iter(list(answers))
        self.logprobs = logprobs
        self.scores = scores
        self.max_context = max_context
        self.prompts: list[str] = []
        self.seeds: list[int] = []

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        return len(prompt) + max_new_tokens <= self.max_context

    def sample(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, **_: float
    ) -> list[Tokens]:
        sampled = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            text = self.encoder.tokenizer.decode(prompt)
            self.prompts.append(text)
            self.seeds.append(seed)
            answer = self.answers(text) if callable(self.answers) else next(self.answers)
            ids = self.encoder.response_ids(answer)
            sampled.append(Tokens(ids=tuple(ids), logprobs=(-1.0,), finished=True))
        return sampled

    def next_token_logprobs(
        self, prompts: Sequence[list[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        assert self.logprobs is not None
        rows = []
        for prompt in prompts:
            text = self.encoder.tokenizer.decode(prompt)
            self.prompts.append(text)
            row = torch.full((400,), -20.0)
            for letter, value in self.logprobs(text).items():
                row[self.encoder.text_ids(letter)[0]] = value
            rows.append(row)
        return torch.stack(rows)

    def score(
        self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]
    ) -> list[float]:
        assert self.scores is not None
        texts = [self.encoder.tokenizer.decode(prompt) for prompt in prompts]
        self.prompts += texts
        return [
            self.scores(text, self.encoder.decode(ids))
            for text, ids in zip(texts, continuations, strict=True)
        ]
