"""One optimizer step: AdamW, warm-up, clipping, and the checks that come before weights change.

The learning rate is a pure function of the step (linear warm-up, then constant: the schedule of
Bai et al. 2022a, app. A and B), so there is no scheduler state to lose. Nothing that is not finite
reaches the weights: an infinite gradient passes `clip_grad_norm_` as NaN and AdamW writes it
without an error, unless one asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from cai import ranks
from cai.errors import UserError
from cai.faults import fault
from cai.split_weights import whole_tensor
from cai.training_config import OptimizerConfig


class NonFiniteError(UserError):
    """A loss, gradient or score is NaN or infinite; no weight was changed by it."""

    def __init__(self, *, stage: str, step: int, what: str) -> None:
        super().__init__(
            f"{stage}, step {step}: {what} is not finite. The weights are still those of step "
            f"{step - 1}. Try a lower learning rate (optimizer.learning_rate), a lower "
            "optimizer.max_grad_norm, or hardware.precision=fp32; then run the same command again."
        )


def adamw(
    parameters: Iterable[Parameter],
    *,
    config: OptimizerConfig,
    eps: float,
    others: Iterable[Parameter] = (),
    others_learning_rate: float = 0.0,
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained.

    Args:
        parameters: Adapters and heads; frozen ones are left out.
        config: Learning rate and weight decay.
        eps: Added to the root of the second moment.
        others: Parameters with a learning rate of their own, e.g. a value head.
        others_learning_rate: Their learning rate.
    """
    rates = [(parameters, config.learning_rate), (others, others_learning_rate)]
    groups = [
        {"params": trained, "lr": rate, "initial_lr": rate}
        for group, rate in rates
        if (trained := [parameter for parameter in group if parameter.requires_grad])
    ]
    return torch.optim.AdamW(groups, eps=eps, weight_decay=config.weight_decay, fused=True)


def warmup_factor(step: int, *, total_steps: int, warmup_frac: float) -> float:
    """Share of the learning rate at a step, counted from 1: linear warm-up, then 1; 0 before."""
    return max(0.0, min(1.0, step / max(1, round(warmup_frac * total_steps))))


def sum_gradients(parameters: list[Parameter]) -> None:
    """Add up gradients over the ranks, in one buffer; one that no rank has stays away.

    Losses are divided by what the whole step has (tokens, weights), so the sum is the gradient of
    the whole step, whichever rank had which micro-batches. Those of split weights are summed
    already, on the way back.
    """
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    if ranks.world().size == 1 or not parameters:
        return
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=parts[0].device)
    flat = torch.cat([*(part.flatten().float() for part in parts), there])
    *sums, there = ranks.sum_over_ranks(flat).split([*(part.numel() for part in parts), len(parts)])
    for parameter, total, is_there in zip(parameters, sums, there.tolist(), strict=True):
        if is_there:
            parameter.grad = total.view_as(parameter).to(parameter.dtype)


def apply_update(
    optimizer: LightningOptimizer,
    loss: Tensor,
    *,
    config: OptimizerConfig,
    stage: str,
    step: int,
    total_steps: int,
    delay: int = 0,
    clip_apart: bool = False,
) -> float:
    """Change the weights by the gradients of all ranks; return the norm of their sum.

    Args:
        optimizer: From `LightningModule.optimizers()`.
        loss: The loss of the whole optimizer step, over all ranks, detached.
        config: Warm-up and clipping.
        stage: For messages and fault points.
        step: Optimizer step, counted from 1.
        total_steps: Optimizer steps of the whole training.
        delay: Steps before the first group of parameters learns; its warm-up begins after them.
        clip_apart: Clip each group of parameters by its own norm; for networks that share nothing.

    Raises:
        NonFiniteError: before any weight is changed.
    """
    if not math.isfinite(float(loss)):
        raise NonFiniteError(stage=stage, step=step, what=f"the loss ({float(loss)})")
    groups = optimizer.param_groups
    networks = [group["params"] for group in groups]
    sum_gradients([parameter for network in networks for parameter in network])
    if not clip_apart:
        networks = [[parameter for network in networks for parameter in network]]
    norm = math.hypot(
        *(
            float(whole_tensor(clip_grad_norm_(network, config.max_grad_norm)))
            for network in networks
        )
    )
    if not math.isfinite(norm):
        raise NonFiniteError(stage=stage, step=step, what="the gradient")
    for group, wait in zip(groups, [delay, *[0] * (len(groups) - 1)], strict=True):
        factor = warmup_factor(
            step - wait, total_steps=total_steps - wait, warmup_frac=config.warmup_frac
        )
        group["lr"] = group["initial_lr"] * factor
    optimizer.step()
    optimizer.zero_grad()
    fault(f"{stage}:step")
    return norm


def trained_state(module: LightningModule) -> dict[str, Tensor]:
    """What training changes, by name: adapters and heads, never the base."""
    return {n: whole_tensor(p.detach()) for n, p in module.named_parameters() if p.requires_grad}


def check_trained_state(module: LightningModule, state: dict[str, Tensor]) -> None:
    """Refuse a checkpoint that holds other parameters than this module trains.

    Raises:
        UserError: naming one parameter that is missing or unknown.
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if differing := sorted(trained ^ state.keys()):
        raise UserError(
            f"the checkpoint is of another training: {differing[0]} is on one side only. Delete "
            "the stage's work folder to start it again."
        )
