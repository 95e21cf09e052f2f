"""Rewards and advantages of one round of PPO: what was measured becomes what is learned.

What a response that was cut at `max_new_tokens` counts as is a setting (`AtCut`). `terminal`: it
ended there; it is scored and pays `missing_eos_penalty`. `bootstrap`: it is unfinished, so it has
no score, and the value of the state after its last token stands for what would have come (Pardo et
al. 2018, arXiv:1712.00378).

The KL penalty is in the rewards or in the loss (`KLPlace`); its estimate is made here either way.

Shapes: B sequences, T response tokens.
"""

# ruff: noqa: N803, N806, N815 -- names end in their shape

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cai import losses
from cai.choices import AtCut, KLPlace
from cai.heads import ScoreHead
from cai.training_config import PPOConfig

# The records below are parts of a `RolloutBatch`, under its own field names.


@dataclass(frozen=True, kw_only=True)
class Values:
    """What the value function says."""

    values_BT: Tensor
    final_values_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """What every token is paid."""

    scores_B: Tensor
    scored_B: Tensor
    kl_BT: Tensor
    reward_kl_coef: float
    rewards_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class Estimates(Values):
    """What the update learns from."""

    values_fitted: bool
    advantages_BT: Tensor
    returns_BT: Tensor


def token_rewards(
    config: PPOConfig,
    *,
    scores_B: Tensor,
    logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    finished_B: Tensor,
    mask_BT: Tensor,
    kl_coef: float,
) -> Rewards:
    """Clipped and penalised score at the last token, less the KL penalty where it is placed here.

    Args:
        config: Place and estimator of the KL, bound and penalty of the score, what a cut is.
        scores_B: Of the preference model, calibrated.
        logprobs_BT: Of the policy that sampled, nats.
        reference_logprobs_BT: Of the SL-CAI policy.
        finished_B: Whether the response ends with the end-of-sequence token.
        mask_BT: True on response tokens.
        kl_coef: Weight of the KL penalty in this round.
    """
    kl_BT = losses.kl_estimate(
        logprobs_BT, reference_logprobs_BT, estimator=config.kl_estimator.value
    )
    bound = config.score_clip
    bounded_B = scores_B if bound is None else scores_B.clamp(-bound, bound)
    penalised_B = losses.penalised_scores(bounded_B, finished_B, penalty=config.missing_eos_penalty)
    scored_B = mask_BT.any(1)
    if config.at_cut is AtCut.bootstrap:
        scored_B = scored_B & finished_B
    reward_kl_coef = kl_coef if config.kl_where is KLPlace.reward else 0.0
    return Rewards(
        scores_B=scores_B,
        scored_B=scored_B,
        kl_BT=kl_BT,
        reward_kl_coef=reward_kl_coef,
        rewards_BT=losses.token_rewards(
            penalised_B.masked_fill(~scored_B, 0.0), kl_BT, mask_BT, kl_coef=reward_kl_coef
        ),
    )


def _on_their_scale(
    head: ScoreHead, values: Values, rewards_BT: Tensor, known_BT: Tensor, *, discount: float
) -> Values:
    """Put the value head on the scale of the returns, before the first update; its new values.

    The preference head reads its score at the end of a sequence and under another adapter; read at
    every token of the policy's trunk it is off by several standard deviations, and whitened
    advantages are then mostly that error. A line fitted to the first returns (least squares) takes
    the error out and keeps the direction. Only responses that ended have a return to fit.
    """
    nothing_BT = torch.zeros_like(values.values_BT)
    returns_BT = losses.gae(
        rewards_BT,
        nothing_BT,
        known_BT,
        final_values_B=torch.zeros_like(values.final_values_B),
        discount=discount,
        gae_lambda=1.0,
    ).returns_BT
    line = losses.affine_fit(values.values_BT, returns_BT, known_BT)
    head.rescale(scale=line.scale, shift=line.shift)
    return Values(
        values_BT=line.scale * values.values_BT + line.shift,
        final_values_B=line.scale * values.final_values_B + line.shift,
    )


def estimate(
    config: PPOConfig,
    rewards: Rewards,
    values: Values,
    mask_BT: Tensor,
    *,
    unfitted: ScoreHead | None,
) -> Estimates:
    """Advantages and returns, and the values that they were made with.

    Args:
        config: Whitening of the rewards, discount and lambda.
        rewards: Of `token_rewards`.
        values: Of the value function.
        mask_BT: True on response tokens.
        unfitted: A value head that is not on the returns' scale yet: it is put there, if anything
            in this round was scored. None leaves it alone.
    """
    rewards_BT = rewards.rewards_BT
    if config.whiten_rewards:
        rewards_BT = losses.whiten(rewards_BT, mask_BT, shift=False)
    fitted = False
    if unfitted is not None and rewards.scored_B.any():
        known_BT = mask_BT & rewards.scored_B[:, None]
        values = _on_their_scale(unfitted, values, rewards_BT, known_BT, discount=config.discount)
        fitted = True
    answered_B = mask_BT.any(1)
    values_BT = values.values_BT.masked_fill(~mask_BT, 0.0)
    final_values_B = values.final_values_B.masked_fill(~answered_B, 0.0)
    estimates = losses.gae(
        rewards_BT,
        values_BT,
        mask_BT,
        final_values_B=final_values_B.masked_fill(rewards.scored_B, 0.0),
        discount=config.discount,
        gae_lambda=config.gae_lambda,
    )
    return Estimates(
        values_BT=values_BT,
        final_values_B=final_values_B,
        values_fitted=fitted,
        advantages_BT=losses.whiten(estimates.advantages_BT, mask_BT, shift=True),
        returns_BT=estimates.returns_BT,
    )
