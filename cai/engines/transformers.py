"""The engine of this process: `cai.generation.Generator`, and scoring of given texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cai.generation import Generator


class TransformersEngine(Generator):
    """`Generator` with the whole interface of an engine."""

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt; all of them, always."""
        return super().next_token_logprobs(prompts)

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probability of each continuation, nats, in one right-padded batch."""
        rows = [[*prompt, *own] for prompt, own in zip(prompts, continuations, strict=True)]
        if not rows:
            return []
        width = max(map(len, rows))
        device = self.model.device
        ids = torch.full((len(rows), width), self.eos_id, device=device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, device=device)
            mask[row, : len(tokens)] = 1
        keep = width - min(map(len, prompts)) + 1
        logits = self.model(ids, attention_mask=mask, logits_to_keep=keep).logits
        sums = []
        for row, (prompt, own) in enumerate(zip(prompts, continuations, strict=True)):
            start = len(prompt) - 1 - (width - keep)
            chosen = logits[row, start : start + len(own)].float().log_softmax(-1)
            targets = torch.tensor(own, device=device)[:, None]
            sums.append(float(chosen.gather(-1, targets).sum()))
        return sums
