"""Heads on the trunk's last hidden states: log-probabilities of tokens, scores and values.

The language-model head is applied to response positions only; its log-softmax is float32. It is
frozen and shared by all adapters; where all weights are trained each role has its own, which learns
(as the embeddings too, when it is tied to them). A score head is one float32 linear layer.

Shapes: N positions, V vocabulary, H hidden size.
"""

# ruff: noqa: N803, N806, N815 -- names end in their shape

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cai.full_weights import Tuned, base_dtype, causal_of
from cai.seeds import derive_seed

LOGITS_AT_ONCE = 2**23
"""Elements of one chunk of float32 logits: 32 MB."""


def seeded_generator(seed: int, *names: str | int) -> torch.Generator:
    """A random stream, always drawn on the CPU, that is a pure function of what it is for."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def _chunks(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Rows whose logits are computed at once."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _logits(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float
) -> Tensor:
    """Logits (N, V) at a temperature, float32."""
    logits = F.linear(hidden_NH, weight_VH).float()
    if bias_V is not None:
        logits += bias_V
    if temperature != 1.0:
        logits /= temperature
    return logits


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probability and entropy through a linear head, a few rows of logits at a time.

    A token's log-probability is one number, so its gradient with respect to the hidden state,
    `(W[target] - softmax(W h / T) W) / T`, is computed along with it and only scaled on the way
    back: no logits are kept. The gradient of a head that learns, `(onehot(target) - softmax) h / T`
    summed over rows with their weights, has the size of the head for every row: there the logits
    are computed a second time on the way back, and the sum is float32.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        logprobs_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
        entropy_N = torch.empty_like(logprobs_N)
        slope_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        rounded_VH = weight_VH.to(hidden_NH.dtype)
        for part in _chunks(len(hidden_NH), len(weight_VH)):
            logits = _logits(hidden_NH[part], rounded_VH, bias_V, temperature)
            logp = F.log_softmax(logits, dim=-1)
            target = target_N[part, None]
            logprobs_N[part] = logp.gather(1, target)[:, 0]
            prob = torch.exp(logp, out=logits)
            entropy_N[part] = -torch.linalg.vecdot(prob, logp)
            if slope_NH is not None:
                prob.neg_().scatter_add_(1, target, torch.ones_like(prob[:, :1]))
                slope_NH[part] = (prob.to(rounded_VH.dtype) @ rounded_VH) / temperature
        learns = ctx.needs_input_grad[1]
        ctx.save_for_backward(
            slope_NH, *((hidden_NH, weight_VH, bias_V, target_N) if learns else ())
        )
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_N: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        slope_NH, *of_head = ctx.saved_tensors
        of_hidden = None if slope_NH is None else (grad_N[:, None] * slope_NH).to(slope_NH.dtype)
        if not of_head:
            return of_hidden, None, None, None, None
        hidden_NH, weight_VH, bias_V, target_N = of_head
        of_weight = torch.zeros_like(weight_VH)
        of_bias = None if bias_V is None else torch.zeros_like(bias_V)
        rounded_VH = weight_VH.to(hidden_NH.dtype)
        for part in _chunks(len(hidden_NH), len(weight_VH)):
            logits = _logits(hidden_NH[part], rounded_VH, bias_V, ctx.temperature)
            share = F.softmax(logits, dim=-1).neg_()
            share.scatter_add_(1, target_N[part, None], torch.ones_like(share[:, :1]))
            share *= grad_N[part, None] / ctx.temperature
            of_weight += share.to(hidden_NH.dtype).T @ hidden_NH[part]
            if of_bias is not None:
                of_bias += share.sum(0)
        return of_hidden, of_weight, of_bias, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What a policy says about given tokens."""

    logprob_N: Tensor
    """Nats, float32, with gradient to the hidden states."""
    entropy_N: Tensor
    """Of the whole next-token distribution, nats; no gradient."""


def token_logprobs(
    model: Tuned, hidden_NH: Tensor, target_N: Tensor, *, adapter: str, temperature: float
) -> TokenLogprobs:
    """Log-probabilities of tokens from the hidden states before them.

    `log_softmax(W h / temperature)[target]`, in float32 from logits in the base's number format.
    Memory is bounded by `LOGITS_AT_ONCE`, not by the number of tokens.

    Args:
        model: Base with roles.
        hidden_NH: States from which the tokens are predicted (see `TokenBatch.states`).
        target_N: Token ids.
        adapter: The role that the states are of; it has the head.
        temperature: The sampling temperature, above 0.
    """
    head = causal_of(model, adapter).get_output_embeddings()
    logprob_N, entropy_N = _ChunkedLogprobs.apply(
        hidden_NH.to(base_dtype(model)), head.weight, head.bias, target_N, temperature
    )
    return TokenLogprobs(logprob_N=logprob_N, entropy_N=entropy_N)


class ScoreHead(nn.Module):
    """One number per hidden state: a preference model's score or a state's value.

    `(w h + b - mean) / std`, with mean 0 and std 1 until calibrated. Initialised with normal(0,
    1 / sqrt(H + 1)) and zero bias (N+ detail 11, arXiv:2403.17031).

    Args:
        hidden_size: H.
        seed: The initial weights are a pure function of it.
    """

    def __init__(self, hidden_size: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.linear = nn.Linear(hidden_size, 1)
        std = 1.0 / math.sqrt(hidden_size + 1)
        nn.init.normal_(self.linear.weight, std=std, generator=seeded_generator(seed, "score_head"))
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Scores (N,), float32."""
        return (self.linear(hidden_NH.float())[:, 0] - self.mean) / self.std

    @torch.no_grad()
    def calibrate(self, scores: list[float]) -> None:
        """Give these scores, made with this head, mean 0 and standard deviation 1.

        Without variation only the mean is moved.
        """
        values = torch.tensor(scores, dtype=torch.float64)
        std = float(values.std(correction=0))
        scale = std if std > 1e-6 else 1.0
        self.mean += self.std * float(values.mean())
        self.std *= scale

    @torch.no_grad()
    def as_value_head(self) -> ScoreHead:
        """A trainable head that starts with the same function, the calibration folded in."""
        value_head = copy.deepcopy(self)
        value_head.linear.weight /= self.std
        value_head.linear.bias.sub_(self.mean).div_(self.std)
        value_head.mean.zero_()
        value_head.std.fill_(1.0)
        return value_head.requires_grad_(True)

    @torch.no_grad()
    def zeroed(self) -> ScoreHead:
        """The same head saying 0 everywhere, to start where there is nothing to start from."""
        self.linear.weight.zero_()
        return self

    @torch.no_grad()
    def rescale(self, *, scale: float, shift: float) -> None:
        """Make the output `scale * output + shift`."""
        self.linear.weight *= scale
        self.linear.bias.mul_(scale).add_(shift * self.std + self.mean * (1 - scale))
