"""A forward pass written out for Llama-like models on a CPU, for sampling and scoring.

The mathematics of transformers' Llama, Qwen2 and Qwen3, arranged for rows of different length that
go on one token at a time:

- Weights are laid out once per call the way oneDNN multiplies them, query, key and value as one
  matrix; bias, silu, product and residual sum are taken inside the multiplication.
- Prompts are not padded: the tokens of a group of rows are multiplied as one matrix and attention
  goes row by row. The last layer computes the last tokens only. Equal prompts are read once.
- Keys and values lie in blocks allocated ahead, one per group of rows of similar length. A prefix
  that all rows share is read once; a long one is also kept once.

In bfloat16 attention scores are rounded to bfloat16, as in transformers' eager attention, while
norms, silu and residual sums are rounded less often than there. `supported` says which models this
is for; `generation.py` calls all others as they are.

Shapes: R rows, N tokens of a group without padding, H hidden size, K key-value heads, G query heads
per key-value head, D head size, S places of a block, P tokens of a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

GROUP_ROWS = 8
"""Prompts that are read together and share one block; fewer means less padding in blocks."""
GROWTH = 64
"""Places by which a full block grows, and the most that are allocated ahead, tokens."""
ALIGNED = 32
"""Widths of attention are multiples of it, tokens."""
KEPT_ONCE = 96
"""Tokens from which a prefix is kept once; copying a shorter one is cheaper than two products."""
ATTENDED = 96
"""Queries of one row that are scored at once, so that most of the future is not computed."""
MAX_PACKED_BYTES = 600_000_000
"""A larger model's weights are not copied."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotations that do not depend on the length of the text."""


def supported(model: PreTrainedModel) -> bool:
    """Whether this file computes what the model would."""
    if type(model) not in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM):
        return False
    config = model.config
    linear = [module for layer in model.model.layers for module in _projections(layer)]
    return (
        model.device.type == "cpu"
        and model.dtype in (torch.float32, torch.bfloat16)
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in STATIC_ROPE
        and "sliding_attention" not in (getattr(config, "layer_types", None) or ())
        and all(type(module) is nn.Linear for module in [*linear, model.lm_head])
        and not any(_is_changed(module) for module in model.modules())
    )


def _is_changed(module: nn.Module) -> bool:
    """Whether someone looks into, or has replaced, what the module computes."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _projections(layer: nn.Module) -> list[nn.Linear]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]


def can_pack(model: PreTrainedModel) -> bool:
    """Whether oneDNN multiplies the model's numbers here, and a copy of them is affordable."""
    if not torch.backends.mkldnn.is_available():
        return False
    if model.dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return sum(p.numel() * p.element_size() for p in model.parameters()) <= MAX_PACKED_BYTES


class _Linear:
    """Linear maps of the same input (N, in), their outputs side by side (N, out).

    Args:
        layers: Their weights are copied when packed, read in place otherwise.
        packed: Whether to lay the weights out for oneDNN.
    """

    def __init__(self, *layers: nn.Linear, packed: bool) -> None:
        self.layers = layers
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if packed:
            weights = [layer.weight.detach() for layer in layers]
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
            if layers[0].bias is not None:
                self.bias = torch.cat([layer.bias.detach() for layer in layers])

    def __call__(self, x: Tensor, then: str = "none") -> Tensor:
        """The product, or with `then="swish"` silu of it."""
        if self.weight is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")
        parts = [functional.linear(x, layer.weight, layer.bias) for layer in self.layers]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return functional.silu(out) if then == "swish" else out

    def combined(self, x: Tensor, other: Tensor, then: str) -> Tensor:
        """The product with `other` added to it (`then="add"`) or multiplied in ("mul")."""
        if self.weight is not None:
            op = torch.ops.mkldnn._linear_pointwise.binary
            return op(x, other, self.weight, self.bias, then)
        out = self(x)
        return out.add_(other) if then == "add" else out.mul_(other)


class _Norm:
    """Root-mean-square norm, computed in float32 and rounded once."""

    def __init__(self, norm: nn.Module) -> None:
        self.weight: Tensor = norm.weight.detach().float()
        self.epsilon: float = norm.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
        return wide.mul_(scale).mul_(self.weight).to(x.dtype)


class _Layer:
    """One decoder layer's weights."""

    def __init__(self, layer: nn.Module, *, packed: bool) -> None:
        q, k, v, out, gate, up, down = _projections(layer)
        self.qkv = _Linear(q, k, v, packed=packed)
        self.out = _Linear(out, packed=packed)
        self.gate = _Linear(gate, packed=packed)
        self.up = _Linear(up, packed=packed)
        self.down = _Linear(down, packed=packed)
        self.before_attention = _Norm(layer.input_layernorm)
        self.before_mlp = _Norm(layer.post_attention_layernorm)
        attention = layer.self_attn
        self.of_heads: tuple[_Norm, _Norm] | None = None
        if isinstance(getattr(attention, "q_norm", None), nn.Module):
            self.of_heads = (_Norm(attention.q_norm), _Norm(attention.k_norm))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream (N, H) after attention's output and the feed-forward half."""
        x = self.out.combined(attended, x, "add")
        h = self.before_mlp(x)
        return self.down.combined(self.up.combined(h, self.gate(h, "swish"), "mul"), x, "add")


@dataclass(slots=True, kw_only=True)
class Group:
    """Rows of similar length, with their keys and values padded on the left."""

    lengths: list[int]
    """Tokens per row in the block."""
    used: int
    """Places of the block that are written; the rows' next tokens go to the one after."""
    mask: Tensor
    """(R K, 1, S): 0 at tokens, minus infinity at other places."""
    prefix: Group | None
    """One row that all rows go on from and that is kept once; None: nothing, or it was copied."""
    keys: list[Tensor] = field(default_factory=list)
    """Per layer (R K, S, D)."""
    values: list[Tensor] = field(default_factory=list)
    """Per layer (R K, S, D)."""

    def own(self, row: int) -> tuple[slice, slice]:
        """Where a row's tokens are in the first two dimensions of its blocks."""
        heads = len(self.mask) // len(self.lengths)
        places = slice(self.used - self.lengths[row], self.used)
        return slice(row * heads, (row + 1) * heads), places

    def row(self, row: int) -> Group:
        """One row as a group that others go on from; nothing is copied."""
        heads, places = self.own(row)
        return Group(
            lengths=[self.lengths[row]],
            used=self.lengths[row],
            mask=self.mask[heads, :, places],
            prefix=self.prefix,
            keys=[block[heads, places] for block in self.keys],
            values=[block[heads, places] for block in self.values],
        )

    def extend(self) -> list[int]:
        """Make the next place part of every row; the new tokens' positions."""
        if self.used == self.mask.shape[-1]:
            self.mask = functional.pad(self.mask, (0, GROWTH), value=-math.inf)
            self._replace(lambda block: functional.pad(block, (0, 0, 0, GROWTH)))
        self.mask[..., self.used] = 0
        self.used += 1
        self.lengths = [length + 1 for length in self.lengths]
        before = self.prefix.used if self.prefix is not None else 0
        return [before + length - 1 for length in self.lengths]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one that comes twice is copied."""
        heads = len(self.mask) // len(self.lengths)
        self.lengths = [self.lengths[row] for row in rows]
        index = torch.tensor([row * heads + head for row in rows for head in range(heads)])
        self.mask = self.mask[index]
        self._replace(lambda block: block[index])

    def _replace(self, changed: Callable[[Tensor], Tensor]) -> None:
        for blocks in (self.keys, self.values):
            for number, block in enumerate(blocks):
                blocks[number] = changed(block)


class Decoder:
    """One model's weights, ready for the calls of one batch.

    Args:
        model: A supported model; changes of its weights after this are not seen.
        packed: Whether to copy the weights into oneDNN's layout; see `can_pack`.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool) -> None:
        attention = model.model.layers[0].self_attn
        self.dtype = model.dtype
        self.kv_heads: int = model.config.num_key_value_heads
        self.per_head: int = attention.num_key_value_groups
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scaling
        self.layers = [_Layer(layer, packed=packed) for layer in model.model.layers]
        self.norm = _Norm(model.model.norm)
        self.head = _Linear(model.lm_head, packed=packed)
        self._embedding = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._future = torch.full((ATTENDED, ATTENDED + ALIGNED), -math.inf, dtype=self.dtype)
        self._future.triu_(1)

    def _rotations(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (N, 1, D)."""
        like = torch.empty(0, dtype=self.dtype)
        cos, sin = self._rotary(like, torch.tensor([positions]))
        half = self.head_dim // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return cos[0][:, None], sin[0][:, None]

    def _qkv(
        self, layer: _Layer, x: Tensor, rotations: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, K G, D), keys and values (N, K, D) of the residual stream (N, H)."""
        num = self.kv_heads * self.per_head
        heads = layer.qkv(layer.before_attention(x)).view(len(x), -1, self.head_dim)
        turned = heads[:, : num + self.kv_heads]
        if layer.of_heads is not None:
            of_queries, of_keys = layer.of_heads
            turned = torch.cat([of_queries(turned[:, :num]), of_keys(turned[:, num:])], 1)
        cos, sin = rotations
        turned = (turned * cos).addcmul_(turned.roll(self.head_dim // 2, -1), sin)
        return turned[:, :num], turned[:, num:], heads[:, num + self.kv_heads :]

    def _scores(self, q: Tensor, keys: Tensor) -> Tensor:
        """Scaled products (.., M, S) of queries (.., M, D) and keys (.., S, D)."""
        nothing = q.new_empty(1, 1, 1)
        return torch.baddbmm(nothing, q, keys.transpose(1, 2), beta=0, alpha=self.scale)

    def _attend_causally(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Attention of one row's prompt (n, K, G, D), written to `out` of the same shape.

        Keys and values (K, S, D): of what comes before, of the prompt, of places after it.
        """
        kv, per_head, dim = q.shape[1:]
        before = keys.shape[1] - ALIGNED - len(q)
        for a in range(0, len(q), ATTENDED):
            b = min(len(q), a + ATTENDED)
            # Products and softmax are slow where a width is not a multiple of a register's.
            seen = -(-(before + b) // ALIGNED) * ALIGNED
            block = q[a:b].permute(1, 2, 0, 3).reshape(kv, -1, dim)
            scores = self._scores(block, keys[:, :seen])
            new = seen - before - a
            scores.view(kv * per_head, b - a, seen)[..., -new:].add_(self._future[: b - a, :new])
            block = torch.bmm(scores.softmax(-1), values[:, :seen])
            out[a:b] = block.view(kv, per_head, b - a, dim).permute(2, 0, 1, 3)

    def _attend(self, q: Tensor, group: Group, number: int) -> Tensor:
        """Attention of one token per row (R K, G, D) to its whole row."""
        keys, values = group.keys[number], group.values[number]
        scores = self._scores(q, keys).add_(group.mask)
        if group.prefix is None:
            return torch.bmm(scores.softmax(-1), values)
        # All rows meet the prefix in one product per head; one softmax goes over both parts.
        shape = (-1, self.kv_heads, self.per_head)
        length = group.prefix.used
        first = (
            q.view(*shape, self.head_dim).transpose(0, 1).reshape(self.kv_heads, -1, q.shape[-1])
        )
        first = self._scores(first, group.prefix.keys[number][:, :length])
        first = first.view(self.kv_heads, -1, self.per_head, length).transpose(0, 1)
        shares = torch.cat([first.reshape(len(q), self.per_head, length), scores], -1).softmax(-1)
        first = shares[..., :length].reshape(*shape, length).transpose(0, 1)
        first = first.reshape(self.kv_heads, -1, length)
        first = torch.bmm(first, group.prefix.values[number][:, :length])
        first = first.view(self.kv_heads, -1, self.per_head, self.head_dim).transpose(0, 1)
        return torch.bmm(shares[..., length:], values).add_(first.reshape(q.shape))

    def _attend_prompts(
        self, q: Tensor, lengths: Sequence[int], group: Group, number: int
    ) -> Tensor:
        """Causal attention of whole prompts (N, K G, D), row by row; (N, K G D)."""
        q = q.unflatten(1, (self.kv_heads, self.per_head))
        out = q.new_empty(q.shape)
        for row, (q_row, out_row) in enumerate(
            zip(q.split(lengths), out.split(lengths), strict=True)
        ):
            heads, places = group.own(row)
            wide = slice(places.start, places.stop + ALIGNED)
            pair = [group.keys[number][heads, wide], group.values[number][heads, wide]]
            if (prefix := group.prefix) is not None:
                ahead = [prefix.keys[number], prefix.values[number]]
                pair = [
                    torch.cat([whole[:, : prefix.used], own], 1)
                    for whole, own in zip(ahead, pair, strict=True)
                ]
            self._attend_causally(q_row, *pair, out_row)
        return out.flatten(1)

    def _group(
        self, prompts: Sequence[Sequence[int]], room: int, after: Sequence[Group | None], once: bool
    ) -> Group:
        """A group of prompts to be read; what they go on from is kept once or copied."""
        prefix = after[0] if once else None
        copied = [0 if once or ahead is None else ahead.used for ahead in after]
        lengths = [before + len(prompt) for before, prompt in zip(copied, prompts, strict=True)]
        used, rows = max(lengths), len(prompts)
        places = -(-(used + max(min(room, GROWTH), ALIGNED)) // ALIGNED) * ALIGNED
        mask = torch.full((rows * self.kv_heads, 1, places), -math.inf, dtype=self.dtype)
        group = Group(lengths=lengths, used=used, mask=mask, prefix=prefix)
        shape = (rows * self.kv_heads, places, self.head_dim)
        group.keys = [torch.zeros(shape, dtype=self.dtype) for _ in self.layers]
        group.values = [torch.zeros(shape, dtype=self.dtype) for _ in self.layers]
        for row, (before, ahead) in enumerate(zip(copied, after, strict=True)):
            heads, own = group.own(row)
            mask[heads, :, own] = 0
            if not before:
                continue
            pairs = zip(group.keys + group.values, ahead.keys + ahead.values, strict=True)
            for block, source in pairs:
                block[heads, own.start : own.start + before] = source[:, :before]
        return group

    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        room: int = 0,
        after: Sequence[Group | None] | None = None,
        whole: bool = False,
        wanted: Sequence[int] | None = None,
    ) -> tuple[Tensor, Group]:
        """Read prompts that become a group.

        Args:
            prompts: Tokens of each row that are new, at least one.
            room: New tokens that will follow.
            after: What each row goes on from, a group of one row; None: nothing.
            whole: Copy it into every row, so that rows can be gone on from themselves; otherwise a
                long one that is the same for all rows is kept once.
            wanted: How many of each row's last tokens' states are returned; None: one.

        Returns:
            Final hidden states (R, H), or of all wanted tokens one row after the other, and the
            group.
        """
        ahead = after or [None] * len(prompts)
        first = ahead[0]
        once = not whole and first is not None and first.used >= KEPT_ONCE
        once = once and all(other is first for other in ahead)
        group = self._group(prompts, room, ahead, once)
        lengths = [len(prompt) for prompt in prompts]
        starts = [0 if other is None else other.used for other in ahead]
        rotations = self._rotations(
            [start + i for start, num in zip(starts, lengths, strict=True) for i in range(num)]
        )
        x = self._embedding(torch.tensor([token for prompt in prompts for token in prompt]))
        ends = torch.tensor(lengths).cumsum(0).tolist()
        last = [place for end, num in zip(ends, wanted or [1] * len(ends), strict=True)
                for place in range(end - num, end)]  # fmt: skip
        for number, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, rotations)
            for block, tokens in ((group.keys[number], k), (group.values[number], v)):
                for row, part in enumerate(tokens.split(lengths)):
                    heads, own = group.own(row)
                    block[heads, own.stop - len(part) : own.stop] = part.transpose(0, 1)
            if number + 1 < len(self.layers):
                attended = self._attend_prompts(q, lengths, group, number)
            elif wanted is None:
                x, q = x[last], q[last].view(-1, self.per_head, self.head_dim)
                attended = self._attend(q, group, number).view(len(x), -1)
            else:
                x, attended = x[last], self._attend_prompts(q, lengths, group, number)[last]
            x = layer.finish(x, attended)
        return self.norm(x), group

    def prefix(self, ids: tuple[int, ...], known: dict[tuple[int, ...], Group]) -> Group:
        """The group of a shared beginning, read unless it is the one that `known` holds."""
        if ids not in known:
            known.clear()
            known[ids] = self.prefill([ids])[1]
        return known[ids]

    def step(self, tokens: Tensor, groups: Sequence[Group]) -> Tensor:
        """Read one token per row of all groups (R,); final hidden states (R, H)."""
        rotations = self._rotations([p for group in groups for p in group.extend()])
        sizes = [len(group.mask) for group in groups]
        x = self._embedding(tokens)
        for number, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, rotations)
            q = q.reshape(-1, self.per_head, self.head_dim)
            parts = (part.split(sizes) for part in (q, k.flatten(0, 1), v.flatten(0, 1)))
            attended = []
            for group, own_q, own_k, own_v in zip(groups, *parts, strict=True):
                group.keys[number][:, group.used - 1] = own_k
                group.values[number][:, group.used - 1] = own_v
                attended.append(self._attend(own_q, group, number))
            x = layer.finish(x, torch.cat(attended).view(len(x), -1))
        return self.norm(x)


class Rows:
    """The rows of one call, in the caller's order; groups have an order of their own.

    Args:
        model: A supported model.
        prefixes: Shared prefixes that were read before; only the last one is kept in it.
    """

    def __init__(self, model: PreTrainedModel, prefixes: dict[tuple[int, ...], Group]) -> None:
        self.decoder = Decoder(model, packed=can_pack(model))
        self.groups: list[Group] = []
        self._prefixes = prefixes
        self._places: list[int] = []
        """Per row, its place in the groups, counted through."""

    def prefill(
        self, prompts: Sequence[Sequence[int]], *, shared: int, num_new_tokens: int
    ) -> Tensor:
        """Logits (R, V) after prompts that begin with the same `shared` tokens."""
        return self.decoder.head(self.read(prompts, shared=shared, num_new_tokens=num_new_tokens))

    def read(self, prompts: Sequence[Sequence[int]], *, shared: int, num_new_tokens: int) -> Tensor:
        """Final hidden states (R, H) after prompts that begin with the same `shared` tokens."""
        known = self._prefixes
        prefix = self.decoder.prefix(tuple(prompts[0][:shared]), known) if shared else None
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows_of.setdefault(tuple(prompt[shared:]), []).append(row)
        distinct = sorted(rows_of, key=len, reverse=True)
        hidden, order = [], []
        for first in range(0, len(distinct), GROUP_ROWS):
            own = distinct[first : first + GROUP_ROWS]
            after = [prefix] * len(own)
            states, group = self.decoder.prefill(own, room=num_new_tokens, after=after)
            copies = [place for place, prompt in enumerate(own) for _ in rows_of[prompt]]
            if len(copies) > len(own):
                group.select(copies)
            hidden.append(states[copies])
            order += [row for prompt in own for row in rows_of[prompt]]
            self.groups.append(group)
        self._places = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(hidden)[self._places]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (R, V) after one more token per row (R,)."""
        ordered = torch.empty_like(tokens)
        ordered[self._places] = tokens
        return self.decoder.head(self.decoder.step(ordered, self.groups)[self._places])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows; the kept ones stay in order."""
        kept = {self._places[row]: number for number, row in enumerate(rows)}
        groups, order, start = [], [], 0
        for group in self.groups:
            places = range(start, start + len(group.lengths))
            start += len(places)
            if inside := [place - places.start for place in places if place in kept]:
                order += [kept[places.start + place] for place in inside]
                group.select(inside)
                groups.append(group)
        self.groups = groups
        self._places = sorted(range(len(order)), key=order.__getitem__)
