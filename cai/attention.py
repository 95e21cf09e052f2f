"""Causal attention of training, without a mask.

Sequences are padded on the right (`batches.py`), so what a token may not see is what comes after
it: a causal model needs no mask, and what it says at padded places is never read. That lets a GPU
take its flash kernel. On a CPU the attention is written out here, because torch's own
(2.13) computes the future too and is slow on the way back: blocks of queries meet the keys up to
their end in one product per key-value head, and shares are computed again for the gradient instead
of being kept. With SmolLM2-135M's heads and 272 tokens it was measured to take half the time in
bfloat16, and less in float32. In bfloat16 products before the softmax are rounded, as in
transformers' eager attention.

Shapes: B sequences, S tokens, K key-value heads, G query heads per key-value head, D head size.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    LlamaModel,
    PreTrainedModel,
    Qwen2Model,
    Qwen3Model,
)

NAME = "cai_causal"
QUERIES = 64
"""Queries of one row that are scored at once; the fewer, the less of the future is computed."""


def needs_no_mask(model: PreTrainedModel) -> bool:
    """Whether right padding is all that a mask would say: plain causal attention in all layers."""
    return (
        type(model.base_model) in (LlamaModel, Qwen2Model, Qwen3Model)
        and "sliding_attention" not in (getattr(model.config, "layer_types", None) or ())
        and model.config._attn_implementation in ("sdpa", NAME)
    )


@contextlib.contextmanager
def written_out(model: PreTrainedModel) -> Iterator[None]:
    """Have a model that needs no mask attend by this file on a CPU."""
    before = model.config._attn_implementation
    if model.device.type == "cpu":
        model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


class Branches:
    """Rows of a prompt and two responses to it, of which the second does not see the first.

    Args:
        first_B: Place where the first response begins, of each row.
        second_B: Place where the second one begins.
        width: S.
        dtype: Number format of the model.
    """

    def __init__(
        self, first_B: Sequence[int], second_B: Sequence[int], width: int, dtype: torch.dtype
    ) -> None:
        places_S = torch.arange(width)
        begins_B1, ends_B1 = (torch.tensor(places)[:, None] for places in (first_B, second_B))
        of_first_BS = (places_S >= begins_B1) & (places_S < ends_B1)
        after_BS = places_S >= ends_B1
        self.num_rows = len(first_B)
        self._blocks: dict[int, Tensor] = {}
        for start in range(0, width, QUERIES):
            end = min(start + QUERIES, width)
            if after_BS[:, start:end].any():
                unseen = after_BS[:, start:end, None] & of_first_BS[:, None, :end]
                block = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -math.inf)
                self._blocks[start] = block[:, None]

    def hide(self, scores: Tensor, start: int) -> None:
        """Take the first response from the sight of queries from `start` on, (B, K G, num, end)."""
        if start in self._blocks:
            scores.add_(self._blocks[start])


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Products of batches of matrices, times `scale`."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def _shares(
    queries: Tensor, keys: Tensor, start: int, scale: float, branches: Branches | None
) -> Tensor:
    """How much each token from `start` on looks at each token (B K, G num, end).

    Args:
        queries: Of these tokens, (B K, G num, D).
        keys: Of all tokens up to the last of them, (B K, end, D).
        start: Place of the first of them.
        scale: Multiplies the products.
        branches: What is not seen besides the future.
    """
    scores = _scaled(queries, keys.transpose(1, 2), scale)
    num = keys.shape[1] - start
    future = torch.full((num, num), -math.inf, dtype=scores.dtype).triu_(1)
    scores.unflatten(1, (-1, num))[..., start:].add_(future)
    if branches is not None:
        branches.hide(scores.view(branches.num_rows, -1, num, scores.shape[2]), start)
    return scores.softmax(-1)


class _Causal(torch.autograd.Function):
    """Attention of grouped heads; queries (B K, G, S, D), keys and values (B K, S, D)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        branches: Branches | None,
    ) -> Tensor:
        out = torch.empty_like(queries)
        for start in range(0, queries.shape[2], QUERIES):
            part = queries[:, :, start : start + QUERIES]
            end = start + part.shape[2]
            shares = _shares(part.flatten(1, 2), keys[:, :end], start, scale, branches)
            out[:, :, start:end] = torch.bmm(shares, values[:, :end]).view(part.shape)
        ctx.save_for_backward(queries, keys, values)
        ctx.scale = scale
        ctx.branches = branches
        return out

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        of_queries = torch.empty_like(queries)
        of_keys = torch.zeros_like(keys, dtype=torch.float32)
        of_values = torch.zeros_like(values, dtype=torch.float32)
        for start in range(0, queries.shape[2], QUERIES):
            part, own = (t[:, :, start : start + QUERIES] for t in (queries, grad))
            end = start + part.shape[2]
            shape, part, own = part.shape, part.flatten(1, 2), own.flatten(1, 2)
            shares = _shares(part, keys[:, :end], start, ctx.scale, ctx.branches)
            of_values[:, :end] += torch.bmm(shares.transpose(1, 2), own)
            of_shares = torch.bmm(own, values[:, :end].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            of_queries[:, :, start:end] = _scaled(of_scores, keys[:, :end], ctx.scale).view(shape)
            of_keys[:, :end] += torch.bmm(of_scores.transpose(1, 2), part)
        of_keys *= ctx.scale
        return of_queries, of_keys.to(keys.dtype), of_values.to(values.dtype), None, None


def causal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    branches: Branches | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it (`AttentionInterface`).

    Args:
        module: The attention layer.
        query: (B, K G, S, D).
        key: (B, K, S, D).
        value: Like `key`, in the number format that is computed in; rotations of float32 copies of
            weights leave the other two in float32 under autocast.
        attention_mask: None.
        scaling: Of the products.
        branches: As given to the model's forward pass, for rows with two responses.

    Returns:
        (B, S, K G, D), and None for the shares, which are not kept.
    """
    if attention_mask is not None:
        raise AssertionError("a mask was made for attention that has none")
    rows, heads, _, dim = query.shape
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = _Causal.apply(
        query.reshape(rows * key.shape[1], heads // key.shape[1], -1, dim),
        key.reshape(rows * key.shape[1], -1, dim),
        value.reshape(rows * key.shape[1], -1, dim),
        scaling,
        branches,
    )
    return out.view(query.shape).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, causal)
