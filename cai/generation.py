"""Sampling text, batch by batch, with one random stream per row.

Ancestral sampling at a temperature, never truncated (no top-k, no top-p): what is scored later
must be the law that was sampled from. Row i draws its numbers from its own seed, so a row's text
depends on its seed, its prompt and the batch it is in, and on nothing that ran before.

Prompts that begin alike (few-shot examples, a system turn) share one prefill: the common prefix is
computed once with batch size 1 and its keys and values are repeated over the batch; prompts are
padded on the left between prefix and suffix. Rows that have ended leave the batch when it has
shrunk to half.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from cai.errors import UserError

MIN_PREFIX = 32
"""Shorter common prefixes are not worth a pass of their own, tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A sampled response in tokens."""

    ids: tuple[int, ...]
    """With the end-of-sequence token when one was sampled."""
    logprob: float
    """Sum over `ids` under the sampling law (at temperature 0: under temperature 1), nats."""
    finished: bool


def row_generator(seed: int) -> torch.Generator:
    """The random stream that belongs to one row."""
    return torch.Generator().manual_seed(seed)


class Generator:
    """Samples from, and scores with, one causal language model.

    Args:
        model: The model, in evaluation mode; not changed.
        eos_id: Token that ends a response.
        max_context: Longest prompt plus response, tokens.
    """

    def __init__(self, model: PreTrainedModel, *, eos_id: int, max_context: int) -> None:
        self.model = model.eval()
        self.eos_id = eos_id
        self.max_context = max_context
        self._prefixes: dict[tuple[int, ...], DynamicCache] = {}

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether a prompt leaves room for its response."""
        return len(prompt) + max_new_tokens <= self.max_context

    def _common_prefix(self, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        first = prompts[0]
        length = min(len(prompt) for prompt in prompts) - 1
        for prompt in prompts[1:]:
            while tuple(prompt[:length]) != tuple(first[:length]):
                length = next(i for i in range(length) if prompt[i] != first[i])
        return tuple(first[:length]) if length >= MIN_PREFIX and len(prompts) > 1 else ()

    def _prefix_cache(self, prefix: tuple[int, ...], batch: int) -> DynamicCache:
        if not prefix:
            return DynamicCache()
        if prefix not in self._prefixes:
            cache = DynamicCache()
            ids = torch.tensor([prefix], device=self.model.device)
            self.model(ids, past_key_values=cache, logits_to_keep=1)
            self._prefixes = {prefix: cache}
        cache = copy.deepcopy(self._prefixes[prefix])
        cache.batch_repeat_interleave(batch)
        return cache

    def _prefill(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Next-token logits (B, V), cache and mask (B, S) of left-padded prompts."""
        prefix = self._common_prefix(prompts)
        suffixes = [prompt[len(prefix) :] for prompt in prompts]
        width = max(map(len, suffixes))
        device = self.model.device
        ids = torch.full((len(prompts), width), self.eos_id, device=device)
        mask = torch.zeros((len(prompts), len(prefix) + width), dtype=torch.long, device=device)
        mask[:, : len(prefix)] = 1
        for row, suffix in enumerate(suffixes):
            ids[row, width - len(suffix) :] = torch.tensor(suffix, device=device)
            mask[row, len(prefix) + width - len(suffix) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, len(prefix) :]
        cache = self._prefix_cache(prefix, len(prompts))
        out = self.model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        return out.logits[:, -1], cache, mask

    @torch.inference_mode()
    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt, float32.

        The last layer is computed in float32: bfloat16 logits near 16 are multiples of 1/8, which
        makes exact ties of options that differ. A model that transforms its logits after that
        layer keeps its own.
        """
        head = self.model.get_output_embeddings()
        inputs: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        try:
            logits = self._prefill(prompts)[0].float()
        finally:
            hook.remove()
        bias = None if head.bias is None else head.bias.float()
        exact = functional.linear(inputs[-1][:, -1].float(), head.weight.float(), bias)
        if (exact - logits).abs().max() <= 0.02 * logits.abs().max():
            logits = exact
        return logits.log_softmax(-1).cpu()

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> list[Tokens]:
        """Sample one response per prompt, all in one batch.

        Args:
            prompts: Token ids, each with room for its response (see `fits`).
            seeds: One per row.
            max_new_tokens: Cut after so many tokens.
            temperature: Divides the logits; 0 is greedy.
        """
        if not prompts:
            return []
        draws = torch.stack(
            [
                torch.rand(max_new_tokens, generator=row_generator(seed), dtype=torch.float64)
                for seed in seeds
            ]
        ).to(self.model.device)
        logits, cache, mask = self._prefill(prompts)
        active = torch.arange(len(prompts), device=self.model.device)
        ids: list[list[int]] = [[] for _ in prompts]
        totals = [0.0] * len(prompts)
        for step in range(max_new_tokens):
            chosen, logprobs = _draw(logits, draws[active, step], temperature)
            rows, tokens, values = active.tolist(), chosen.tolist(), logprobs.tolist()
            for row, token, value in zip(rows, tokens, values, strict=True):
                if not ids[row] or ids[row][-1] != self.eos_id:
                    ids[row].append(token)
                    totals[row] += value
            alive = torch.tensor([ids[row][-1] != self.eos_id for row in rows])
            if step + 1 == max_new_tokens or not alive.any():
                break
            if 2 * int(alive.sum()) <= len(rows):
                kept = alive.nonzero()[:, 0].to(mask.device)
                cache.batch_select_indices(kept)
                active, mask, chosen = active[kept], mask[kept], chosen[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self.model(
                chosen[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).logits[:, -1]
        return [
            Tokens(ids=tuple(row), logprob=total, finished=row[-1] == self.eos_id)
            for row, total in zip(ids, totals, strict=True)
        ]


def _draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert the cumulative distribution at each row's uniform number; ids (B,), logprobs (B,)."""
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if not bool(torch.isfinite(logprobs).any(-1).all()):
        raise UserError(
            "the model's next-token probabilities are not finite, so nothing can be sampled. After "
            "training: lower the learning rate; otherwise type hardware.precision=fp32"
        )
    if temperature == 0:
        chosen = logprobs.argmax(-1)
    else:
        cumulative = logprobs.double().exp().cumsum(-1)
        target = uniforms[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)[:, 0]
        chosen = chosen.clamp(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]
