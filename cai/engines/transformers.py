"""The engine of this process: `cai.generation.Generator`, and scoring of given texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cai import decoding, prefixes
from cai.generation import Generator

MAX_BATCH_TOKENS = 1024
"""Padded tokens that other models than Llama-like ones on a CPU score in one forward pass."""


class TransformersEngine(Generator):
    """`Generator` with the whole interface of an engine."""

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt; all of them, always."""
        return super().next_token_logprobs(prompts)

    def forget(self) -> None:
        """The adapter is merged into a copy, which goes with this object."""

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probability of each continuation, nats, summed over its tokens, at least one.

        The more texts at once the better: what several of them begin with is computed once.
        """
        rows = list(zip(prompts, continuations, strict=True))
        if not rows:
            return []
        if decoding.supported(self.model):
            decoder = self._decoder()
            texts = [[*prompt, *own[:-1]] for prompt, own in rows]
            read = prefixes.states(decoder, texts, list(map(len, continuations)), self._read)
            return [
                _sum(decoder.head(states), own)
                for states, own in zip(read, continuations, strict=True)
            ]
        order = sorted(range(len(rows)), key=lambda row: sum(map(len, rows[row])))
        scores = [0.0] * len(rows)
        while order:
            num = max(1, MAX_BATCH_TOKENS // sum(map(len, rows[order[-1]])))
            batch, order = order[-num:], order[:-num]
            for row, total in zip(batch, self._score([rows[row] for row in batch]), strict=True):
                scores[row] = total
        return scores

    def _score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """The same in one right-padded batch."""
        width = max(len(prompt) + len(own) for prompt, own in rows)
        device = self.model.device
        ids = torch.full((len(rows), width), self.eos_id, device=device)
        mask = torch.zeros_like(ids)
        for row, (prompt, own) in enumerate(rows):
            tokens = torch.tensor([*prompt, *own], device=device)
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        start = min(len(prompt) for prompt, _ in rows) - 1
        # As indices, not as a number: a slice of the states would be multiplied row by row.
        kept = torch.arange(start, width, device=device)
        logits = self.model(ids, attention_mask=mask, logits_to_keep=kept).logits
        return [
            _sum(own_logits[len(prompt) - 1 - start :][: len(own)], own)
            for own_logits, (prompt, own) in zip(logits, rows, strict=True)
        ]


def _sum(logits: torch.Tensor, own: Sequence[int]) -> float:
    """Log-probability of tokens from the logits (n, V) at their places, nats."""
    targets = torch.tensor(own, device=logits.device)[:, None]
    return float(logits.float().log_softmax(-1).gather(-1, targets).sum())
