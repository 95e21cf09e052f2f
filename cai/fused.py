"""Norms, gated layers and adapters of a frozen trunk, with fewer passes and less kept.

As transformers writes them, autograd keeps two float32 copies of every norm's input and one tensor
per gate that is soon computed again. Here a norm keeps its input and one number per token, a gate
its two inputs; and the product of an adapter is added to that of its layer as it is computed, where
PEFT goes over both twice more. Same mathematics, rounded less often.

Shapes: N tokens, H hidden size, F size of the gated layer, I inputs, O outputs and R rank of an
adapted layer; leading dimensions are free.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

NORMS = (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
GATED = (LlamaMLP, Qwen2MLP, Qwen3MLP)


class _Norm(torch.autograd.Function):
    """Root-mean-square norm with a weight that does not learn."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_NH: Tensor, weight_H: Tensor, epsilon: float
    ) -> Tensor:
        length_N = torch.linalg.vector_norm(x_NH, dim=-1, keepdim=True, dtype=torch.float32)
        scale_N = length_N.square_().div_(x_NH.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_NH, weight_H, scale_N)
        return (x_NH * scale_N).to(x_NH.dtype).mul_(weight_H)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_NH: Tensor
    ) -> tuple[Tensor, None, None]:
        x_NH, weight_H, scale_N = ctx.saved_tensors
        wide_NH = x_NH.float()
        found_NH = grad_NH.to(torch.float32, copy=True).mul_(weight_H)
        along_N = torch.linalg.vecdot(found_NH, wide_NH)[..., None]
        along_N.mul_(scale_N.square()).div_(x_NH.shape[-1])
        found_NH.addcmul_(wide_NH, along_N, value=-1).mul_(scale_N)
        return found_NH.to(x_NH.dtype), None, None


class _Gate(torch.autograd.Function):
    """`silu(gate) * up`."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NF, up_NF)
        return F.silu(gate_NF).mul_(up_NF)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_NF: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF = ctx.saved_tensors
        of_gate_NF = torch.ops.aten.silu_backward(grad_NF * up_NF, gate_NF)
        return of_gate_NF, F.silu(gate_NF).mul_(grad_NF)


class _LowRank(torch.autograd.Function):
    """`x W^T + bias + scale x A^T B^T`, with A and B float32 and everything else as W."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scale: float,
    ) -> Tensor:
        down_RI, up_OR = down_RI.to(weight_OI.dtype), up_OR.to(weight_OI.dtype)
        low_NR = F.linear(x_NI, down_RI)
        out_NO = F.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, up_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, down_RI, up_OR, low_NR)
        ctx.scale = scale
        return out_NO

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_NO: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, down_RI, up_OR, low_NR = ctx.saved_tensors
        of_x, of_down, of_up = None, None, None
        of_low_NR = (grad_NO @ up_OR).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            of_x = (grad_NO @ weight_OI).addmm_(of_low_NR, down_RI)
        if ctx.needs_input_grad[3]:
            of_down = (of_low_NR.T @ x_NI).float()
        if ctx.needs_input_grad[4]:
            of_up = (grad_NO.T @ low_NR).float().mul_(ctx.scale)
        return of_x, None, None, of_down, of_up, None


def _adapted(module: LoraLinear, x: Tensor) -> Tensor:
    (adapter,) = module.active_adapters
    base = module.base_layer
    out_NO = _LowRank.apply(
        x.to(base.weight.dtype).flatten(0, -2),
        base.weight,
        base.bias,
        module.lora_A[adapter].weight,
        module.lora_B[adapter].weight,
        module.scaling[adapter],
    )
    return out_NO.unflatten(0, x.shape[:-1])


def _norm(module: nn.Module, hidden_states: Tensor) -> Tensor:
    return _Norm.apply(hidden_states, module.weight, module.variance_epsilon)


def _gated(module: nn.Module, x: Tensor) -> Tensor:
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))


@contextlib.contextmanager
def fused(model: PreTrainedModel, part: nn.Module | None = None) -> Iterator[None]:
    """Have a frozen model compute its norms, adapters, and gated layers with silu, by this file.

    Args:
        model: The language model.
        part: Of it; None: all of it.
    """
    silu = getattr(model.config, "hidden_act", None) == "silu"
    ways: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in (part or model).modules():
        if type(module) in NORMS:
            ways[module] = _norm
        elif type(module) in GATED and silu:
            ways[module] = _gated
        elif type(module) is LoraLinear and set(module.active_adapters) <= set(module.lora_A):
            ways[module] = _adapted
    for module, way in ways.items():
        module.forward = partial(way, module)
    try:
        yield
    finally:
        for module in ways:
            del module.forward
