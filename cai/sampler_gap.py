"""How far the law that sampled a round is from the law that is trained, and what is done about it.

A round is sampled by merged weights of the base's number format, by vLLM or by a server, and its
log-probabilities are measured again by the training engine. Where the two differ, PPO's gradient is
one of samples from somewhere else. Each token is therefore weighed by the ratio of the two
probabilities, cut at a cap (`losses.sampler_weights`), which is 1 where they agree.

Shapes: B sequences, T response tokens.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cai import losses
from cai.choices import SamplerCorrection
from cai.losses import masked_mean
from cai.training_config import PPOConfig


def sampler_logprobs(rows: Sequence[Sequence[float] | None], mask_BT: Tensor) -> Tensor:
    """Log-probabilities (B, T) as the sampler said; 0 outside the response, NaN where unknown.

    Args:
        rows: Per token of each response; None: not known.
        mask_BT: True on response tokens.
    """
    found_BT = torch.zeros(mask_BT.shape).masked_fill(mask_BT.cpu(), torch.nan)
    for row, said in enumerate(rows):
        if said is not None:
            found_BT[row, : len(said)] = torch.tensor(said)
    return found_BT.to(mask_BT.device)


def importance_weights(
    config: PPOConfig, old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """What each token's loss is multiplied by (B, T); 1 where the sampler's law is not known."""
    weights_BT = torch.ones_like(old_logprobs_BT)
    if config.sampler_correction is SamplerCorrection.truncated:
        weights_BT = losses.sampler_weights(
            old_logprobs_BT, sampler_logprobs_BT, cap=config.sampler_ratio_cap
        ).nan_to_num(nan=1.0)
    return weights_BT.masked_fill(~mask_BT, 0.0)


def gap_metrics(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, *, cap: float
) -> dict[str, float]:
    """How far the sampler was from the trainer, under `val/sampler_...`; empty when not known.

    `gap` is the difference of a response's log-probabilities per token, `kl` the unbiased estimate
    (k3) of KL(sampler || trainer) per token, both in nats; `ratio_max` the largest probability
    ratio trainer : sampler of a token, `truncated` the share of tokens above the cap, and `ess`
    the effective sample size of the truncated weights, `(sum w)^2 / (n sum w^2)`, as a share of
    the tokens: all of it with or without the correction.
    """
    known_BT = mask_BT & sampler_logprobs_BT.isfinite()
    if not known_BT.any():
        return {}
    lag_BT = (old_logprobs_BT - sampler_logprobs_BT).masked_fill(~known_BT, 0.0).double()
    num_B = known_BT.sum(1)
    ratio_N = lag_BT[known_BT].clamp(-20.0, 20.0).exp()
    weights_N = ratio_N.clamp(max=cap)
    kl_BT = losses.kl_estimate(-lag_BT, torch.zeros_like(lag_BT), estimator="k3")
    found = {
        "gap": masked_mean(lag_BT.sum(1).abs() / num_B.clamp(min=1), num_B > 0),
        "kl": masked_mean(kl_BT, known_BT),
        "ratio_max": ratio_N.max(),
        "truncated": (ratio_N > cap).double().mean(),
        "ess": weights_N.sum().square() / (len(weights_N) * weights_N.square().sum()),
    }
    return {f"val/sampler_{name}": float(value) for name, value in found.items()}
