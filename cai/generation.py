"""Sampling text, batch by batch, with one random stream per row.

Ancestral sampling at a temperature, never truncated (no top-k, no top-p): what is scored later
must be the law that was sampled from. Row i draws its numbers from its own seed, so a row's text
depends on its seed, its prompt and the batch it is in, and on nothing that ran before.

Prompts that begin alike (few-shot examples, a system turn) share one prefill of the common prefix.
Rows that have ended leave the batch when it has shrunk to half. Llama-like models on a CPU go
through the forward pass in `decoding.py`; all others, and models with hooks or adapters, through
their own and transformers' cache, where the prefix's keys and values are repeated over the batch
and prompts are padded on the left between prefix and suffix.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from cai import decoding, prefixes
from cai.errors import UserError
from cai.prefixes import MIN_PREFIX, common

BLOCK = 256
"""Probabilities that are summed or compared as one before a draw looks inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A sampled response in tokens."""

    ids: tuple[int, ...]
    """With the end-of-sequence token when one was sampled."""
    logprobs: tuple[float, ...]
    """Of each of `ids` under the sampling law (at temperature 0: under temperature 1), nats."""
    finished: bool

    @property
    def logprob(self) -> float:
        """Of the whole response."""
        return sum(self.logprobs)


def row_generator(seed: int) -> torch.Generator:
    """The random stream that belongs to one row."""
    return torch.Generator().manual_seed(seed)


class _Rows(Protocol):
    """The rows of one call, which go on one token at a time."""

    def prefill(
        self, prompts: Sequence[Sequence[int]], *, shared: int, num_new_tokens: int
    ) -> torch.Tensor:
        """Logits (B, V) after prompts that begin with the same `shared` tokens."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) after one more token per row (B,)."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        ...


class _CachedRows:
    """Rows of any causal language model, through its own forward pass and transformers' cache."""

    def __init__(
        self, model: PreTrainedModel, pad_id: int, prefixes: dict[tuple[int, ...], DynamicCache]
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self._prefixes = prefixes
        self._cache = DynamicCache()
        self._mask = torch.empty(0, 0, dtype=torch.long)

    def _prefix_cache(self, prefix: tuple[int, ...], batch: int) -> DynamicCache:
        if not prefix:
            return DynamicCache()
        if prefix not in self._prefixes:
            cache = DynamicCache()
            ids = torch.tensor([prefix], device=self.model.device)
            self.model(ids, past_key_values=cache, logits_to_keep=1)
            self._prefixes.clear()
            self._prefixes[prefix] = cache
        cache = copy.deepcopy(self._prefixes[prefix])
        cache.batch_repeat_interleave(batch)
        return cache

    def prefill(
        self, prompts: Sequence[Sequence[int]], *, shared: int, num_new_tokens: int
    ) -> torch.Tensor:
        """Logits (B, V) after left-padded prompts; nothing is allocated for new tokens."""
        suffixes = [prompt[shared:] for prompt in prompts]
        width = max(map(len, suffixes))
        device = self.model.device
        ids = torch.full((len(prompts), width), self.pad_id, device=device)
        mask = torch.zeros((len(prompts), shared + width), dtype=torch.long, device=device)
        mask[:, :shared] = 1
        for row, suffix in enumerate(suffixes):
            ids[row, width - len(suffix) :] = torch.tensor(suffix, device=device)
            mask[row, shared + width - len(suffix) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        self._cache = self._prefix_cache(tuple(prompts[0][:shared]), len(prompts))
        self._mask = mask
        return self._logits(ids, positions)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        out = self.model(
            ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) after one more token per row (B,)."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._logits(tokens[:, None], self._mask.sum(1, keepdim=True) - 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        kept = torch.tensor(rows, device=self._mask.device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]


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
        self._read: dict[tuple[int, ...], decoding.Group] = {}
        self._cached: dict[tuple[int, ...], DynamicCache] = {}

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether a prompt leaves room for its response."""
        return len(prompt) + max_new_tokens <= self.max_context

    def _decoder(self) -> decoding.Decoder:
        """The weights of a supported model, as they are now."""
        return decoding.Decoder(self.model, packed=decoding.can_pack(self.model))

    def _rows(self) -> _Rows:
        if decoding.supported(self.model):
            return decoding.Rows(self.model, self._read)
        return _CachedRows(self.model, self.eos_id, self._cached)

    @torch.inference_mode()
    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt, float32.

        The last layer is computed in float32: bfloat16 logits near 16 are multiples of 1/8, which
        makes exact ties of options that differ. A model that transforms its logits after that
        layer keeps its own.
        """
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias.float()
        if decoding.supported(self.model):
            last = [1] * len(prompts)
            hidden = torch.cat(prefixes.states(self._decoder(), prompts, last, self._read))
            logits = functional.linear(hidden.float(), head.weight.float(), bias)
            return logits.log_softmax(-1)
        inputs: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        try:
            cached = _CachedRows(self.model, self.eos_id, self._cached)
            shared = _common_prefix(prompts)
            logits = cached.prefill(prompts, shared=shared, num_new_tokens=0).float()
        finally:
            hook.remove()
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
        batch = self._rows()
        shared = _common_prefix(prompts)
        logits = batch.prefill(prompts, shared=shared, num_new_tokens=max_new_tokens)
        active = list(range(len(prompts)))
        ids: list[list[int]] = [[] for _ in prompts]
        said: list[list[float]] = [[] for _ in prompts]
        for step in range(max_new_tokens):
            chosen, logprobs = _draw(logits, draws[active, step], temperature)
            for row, token, value in zip(active, chosen.tolist(), logprobs.tolist(), strict=True):
                if not ids[row] or ids[row][-1] != self.eos_id:
                    ids[row].append(token)
                    said[row].append(value)
            alive = [place for place, row in enumerate(active) if ids[row][-1] != self.eos_id]
            if step + 1 == max_new_tokens or not alive:
                break
            if 2 * len(alive) <= len(active):
                batch.keep(alive)
                active, chosen = [active[place] for place in alive], chosen[alive]
            logits = batch.step(chosen)
        return [
            Tokens(ids=tuple(row), logprobs=tuple(own), finished=row[-1] == self.eos_id)
            for row, own in zip(ids, said, strict=True)
        ]


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, without any prompt's last; 0 when not worth a pass."""
    length = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        length = min(length, common(prompts[0], prompt))
    return length if length >= MIN_PREFIX and len(prompts) > 1 else 0


def _draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert the cumulative distribution at each row's uniform number; ids (B,), logprobs (B,)."""
    logits = logits.float()
    if temperature not in (0, 1):
        logits = logits / temperature
    logprobs = logits.log_softmax(-1)
    chosen = _largest(logprobs) if temperature == 0 else _invert(logprobs.exp(), uniforms)
    values = logprobs.gather(-1, chosen[:, None])[:, 0]
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            "the model's next-token probabilities are not finite, so nothing can be sampled. After "
            "training: lower the learning rate; otherwise type hardware.precision=fp32"
        )
    return chosen, values


def _blocks(values: torch.Tensor, fill: float) -> torch.Tensor:
    """Values (B, V) as blocks (B, V / BLOCK, BLOCK), the last one filled up."""
    return functional.pad(values, (0, -values.shape[-1] % BLOCK), value=fill).unflatten(
        -1, (-1, BLOCK)
    )


def _largest(logprobs: torch.Tensor) -> torch.Tensor:
    """First id (B,) of the largest of (B, V); `argmax` takes ten times as long on a CPU."""
    blocks = _blocks(logprobs, -torch.inf)
    block = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(len(logprobs), device=logprobs.device), block]
    return (block * BLOCK + inside.argmax(-1)).clamp(max=logprobs.shape[-1] - 1)


def _invert(shares: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First id (B,) at which the sum of shares (B, V) exceeds a uniform number's part of it.

    Sums are float64, of blocks first and then inside one block, which spares most of the additions.
    """
    size = shares.shape[-1]
    blocks = _blocks(shares, 0.0)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[-1] - 1)
    before = functional.pad(ends, (1, 0)).gather(-1, block)
    inside = blocks[torch.arange(len(shares), device=shares.device), block[:, 0]]
    place = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    return (block * BLOCK + place.clamp(max=BLOCK - 1))[:, 0].clamp(max=size - 1)
