"""The mathematics of training: pure functions on tensors, one formula each.

SFT, the preference model and DPO on soft labels, and PPO for language models. Everything here is a
masked sum or mean: what is padding never enters, and a total (tokens, weights) is given by the
caller so that a loss does not depend on how an optimizer step was split into micro-batches.

Sources: Bai et al. 2022 (Constitutional AI, arXiv:2212.08073) sec. 4.1; Bai et al. 2022a
(arXiv:2204.05862) app. A and B; Ziegler et al. 2019 (arXiv:1909.08593) sec. 2.2; Schulman et al.
2016 (GAE, arXiv:1506.02438) and 2017 (PPO, arXiv:1707.06347); Huang et al. 2024 (the N+
implementation details, arXiv:2403.17031); Schulman 2020 (joschu.net/blog/kl-approx.html).

Shapes: B sequences, T response tokens, N tokens, P pairs.
"""

# ruff: noqa: N803, N806, N815 -- names end in their shape

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cai.choices import DPOLoss

EPSILON = 1e-8
"""Below this a standard deviation counts as zero."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places where the mask is true; 0 when there is none.

    `sum(values * mask) / max(1, sum(mask))`. Masked places may hold anything, NaN included.

    Args:
        values: Any shape.
        mask: Boolean, of the same shape.
    """
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance over the places where the mask is true; 0 when there is none."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineFit:
    """A line `scale * x + shift`."""

    scale: float
    shift: float


def affine_fit(values: Tensor, targets: Tensor, mask: Tensor) -> AffineFit:
    """Least-squares line from values to targets over the places where the mask is true.

    `scale = max(0, cov(values, targets) / var(values))`, `shift = mean(targets) - scale *
    mean(values)`; where the values do not vary, the scale is 0.
    """
    value_mean, target_mean = masked_mean(values, mask), masked_mean(targets, mask)
    variance = masked_var(values, mask)
    covariance = masked_mean((values - value_mean) * (targets - target_mean), mask)
    scale = float((covariance / variance).clamp(min=0)) if variance > 1e-12 else 0.0
    return AffineFit(scale=scale, shift=float(target_mean - scale * value_mean))


def whiten(values: Tensor, mask: Tensor, *, shift: bool) -> Tensor:
    """Scale to unit standard deviation over the valid tokens of the whole batch.

    `(x - mean) / std`, plus `mean` again without `shift` (N+ detail 18; rewards are not shifted,
    advantages are). The deviation is the population's. Where it is 0 the result is the mean or 0,
    never NaN; masked places become 0.

    Args:
        values: (B, T).
        mask: (B, T), true on response tokens.
        shift: Whether the mean becomes 0.
    """
    mean = masked_mean(values, mask)
    std = masked_var(values, mask).sqrt()
    scale = torch.where(std > EPSILON, 1.0 / std.clamp(min=EPSILON), torch.zeros_like(std))
    scaled = (values - mean) * scale
    return (scaled if shift else scaled + mean).masked_fill(~mask, 0.0)


def sft_loss(logprobs_N: Tensor, *, num_tokens: int) -> Tensor:
    """Negative log-likelihood per response token: `-sum(logprobs) / num_tokens`.

    Args:
        logprobs_N: Log-probabilities of the response tokens of one micro-batch, nats.
        num_tokens: Response tokens of the whole optimizer step.
    """
    return -logprobs_N.sum() / max(1, num_tokens)


def preference_loss(
    scores_a_P: Tensor,
    scores_b_P: Tensor,
    *,
    prob_a_P: Tensor,
    weight_P: Tensor,
    total_weight: float,
) -> Tensor:
    """Cross-entropy of a Bradley-Terry model with a soft label (Bai et al. 2022, sec. 4.1).

    `-sum(w (p log s(a - b) + (1 - p) log s(b - a))) / total_weight`, with s the logistic function.
    With p in {0, 1} it is the usual pairwise loss; with p = 1/2 it pulls the two scores together.

    Args:
        scores_a_P: Score of each pair's response a.
        scores_b_P: Score of each pair's response b.
        prob_a_P: Label P(a preferred), in [0, 1].
        weight_P: Weight of each pair.
        total_weight: The weight that the whole optimizer step counts for.
    """
    margin_P = scores_a_P - scores_b_P
    nll_P = -(prob_a_P * F.logsigmoid(margin_P) + (1 - prob_a_P) * F.logsigmoid(-margin_P))
    return (weight_P * nll_P).sum() / max(total_weight, EPSILON)


def _sure_loss(log_ratio_P: Tensor, *, loss: DPOLoss, beta: float) -> Tensor:
    """Loss of pairs whose first response is preferred for certain, by their log-ratio h."""
    match loss:
        case DPOLoss.sigmoid:
            return -F.logsigmoid(beta * log_ratio_P)
        case DPOLoss.ipo:
            return (log_ratio_P - 1 / (2 * beta)).square()
        case DPOLoss.hinge:
            return F.relu(1 - beta * log_ratio_P)


def dpo_loss(
    logprobs_a_P: Tensor,
    logprobs_b_P: Tensor,
    reference_a_P: Tensor,
    reference_b_P: Tensor,
    *,
    prob_a_P: Tensor,
    weight_P: Tensor,
    total_weight: float,
    loss: DPOLoss,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Direct Preference Optimization with soft labels (Rafailov et al. 2023, arXiv:2305.18290).

    With `h = (log pi(a) - log ref(a)) - (log pi(b) - log ref(b))`, log-probabilities of whole
    responses, and `l` one of the losses of a certain label (`DPOLoss`), the loss is the expected
    one under the label: `sum(w (p' l(h) + (1 - p') l(-h))) / sum(w)`. Smoothing says how often a
    label is taken to be wrong: `p' = p (1 - e) + (1 - p) e` (conservative DPO, Mitchell 2023,
    ericmitchell.ai/cdpo.pdf). At p in {0, 1} and e = 0 each is the usual loss. Between, `sigmoid`
    is least at beta h = ln(p' / (1 - p')), `ipo` at h = (2 p' - 1) / (2 beta) (Azar et al. 2023,
    arXiv:2310.12036); `hinge` is least at beta h = 1 or -1 whatever the label's strength, which
    only weighs the pull towards it, and at p' = 1/2 it is flat between the two.

    `ipo` takes sums of log-probabilities as its paper does, not TRL's means per token: h is then in
    the same unit for all three losses, so that beta means the same. `hinge` follows SLiC (Zhao et
    al. 2023, arXiv:2305.10425) with the reference inside the margin in place of its regulariser
    (Liu et al. 2023, arXiv:2309.06657).

    Args:
        logprobs_a_P: Of the policy, of each pair's response a: sums over its tokens, nats.
        logprobs_b_P: Of response b.
        reference_a_P: Of the reference, likewise.
        reference_b_P: Of response b.
        prob_a_P: Label P(a preferred), in [0, 1].
        weight_P: Weight of each pair.
        total_weight: Sum of the weights of the whole optimizer step.
        loss: Which one.
        beta: Strength of the pull to the reference, above 0.
        label_smoothing: Probability that a label is wrong, in [0, 1/2).
    """
    log_ratio_P = (logprobs_a_P - reference_a_P) - (logprobs_b_P - reference_b_P)
    smoothed_P = prob_a_P * (1 - label_smoothing) + (1 - prob_a_P) * label_smoothing
    a_wins_P = _sure_loss(log_ratio_P, loss=loss, beta=beta)
    b_wins_P = _sure_loss(-log_ratio_P, loss=loss, beta=beta)
    expected_P = smoothed_P * a_wins_P + (1 - smoothed_P) * b_wins_P
    return (weight_P * expected_P).sum() / max(total_weight, EPSILON)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, *, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    With `r = log policy - log reference`: k1 `r` (unbiased, of either sign), k2 `r^2 / 2`, k3
    `exp(-r) - 1 + r` (unbiased, never negative); Schulman 2020. For k3 r is held in [-20, 20].
    """
    log_ratio = logprobs - reference_logprobs
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            bounded = log_ratio.clamp(-20.0, 20.0)
            return torch.expm1(-bounded) + bounded
        case _:
            raise ValueError(f"unknown KL estimator {estimator!r}: one of k1, k2, k3")


def kl_loss(
    logprobs_N: Tensor,
    reference_logprobs_N: Tensor,
    *,
    estimator: str,
    num_tokens: int,
    weights_N: Tensor | float = 1.0,
) -> Tensor:
    """KL penalty as a term of the loss: `sum(w kl_estimate) / num_tokens`.

    On tokens that the policy sampled, the gradient of k2 is in expectation that of
    KL(policy || reference), and the gradient of k3 that of KL(reference || policy). The gradient of
    k1 is 0 in expectation whatever the reference, so it has no place here.

    Args:
        logprobs_N: Of the policy that is being updated, with gradient.
        reference_logprobs_N: Of the SL-CAI policy.
        estimator: k2 or k3.
        num_tokens: Response tokens of the whole optimizer step.
        weights_N: Importance weights of tokens that another law sampled (`sampler_weights`).
    """
    kl_N = kl_estimate(logprobs_N, reference_logprobs_N, estimator=estimator)
    return (weights_N * kl_N).sum() / max(1, num_tokens)


def adaptive_kl_coef(
    kl_coef: float, *, kl: float, target: float, num_responses: int, horizon: int
) -> float:
    """The next KL coefficient under proportional control (Ziegler et al. 2019, sec. 2.2).

    `kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_responses / horizon)`

    Args:
        kl_coef: The present coefficient.
        kl: Measured KL to the reference: sum over a response's tokens, mean over responses, nats.
        target: Wanted KL in the same unit.
        num_responses: Responses it was measured on.
        horizon: Responses over which control acts.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_responses / horizon)


def penalised_scores(scores_B: Tensor, finished_B: Tensor, *, penalty: float) -> Tensor:
    """Scores less a penalty for responses without an end-of-sequence token: `score - penalty`.

    Subtracted as in TRL; the N+ code (detail 3) replaces the score by -1 instead, which would
    depend on the preference model's scale.
    """
    return scores_B - penalty * (~finished_B).to(scores_B.dtype)


def token_rewards(
    scores_B: Tensor,
    kl_BT: Tensor,
    mask_BT: Tensor,
    *,
    kl_coef: float,
) -> Tensor:
    """Rewards (B, T): `-kl_coef * kl_t`, and the score added at the last response token.

    The last token is the end-of-sequence token, or the last sampled one of a response that was
    cut (Bai et al. 2022a, app. B.1; N+ detail 4). A response without tokens has no reward.
    """
    rewards_BT = (-kl_coef * kl_BT).masked_fill(~mask_BT, 0.0)
    lengths_B = mask_BT.sum(1)
    rows_B = (lengths_B > 0).nonzero()[:, 0]
    rewards_BT[rows_B, lengths_B[rows_B] - 1] += scores_B[rows_B]
    return rewards_BT


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Generalised advantage estimates and the value function's targets."""

    advantages_BT: Tensor
    """Not whitened; 0 outside the response."""
    returns_BT: Tensor
    """Advantages plus values; 0 outside the response."""


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    final_values_B: Tensor,
    discount: float,
    gae_lambda: float,
) -> Advantages:
    """Generalised advantage estimation over response tokens (Schulman et al. 2016, eq. 11-16).

    `delta_t = r_t + discount * V_{t+1} - V_t`, `A_t = delta_t + discount * gae_lambda * A_{t+1}`,
    with A equal to 0 after the last token and V there as given.

    Args:
        rewards_BT: Rewards.
        values_BT: Value of the state before each token.
        mask_BT: True on response tokens, which fill each row from the left.
        final_values_B: Value of the state after the last token: 0 where the response ended there,
            a prediction where it would have gone on (Pardo et al. 2018, arXiv:1712.00378).
        discount: Per token.
        gae_lambda: 1 takes whole returns, 0 one-step differences.
    """
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    next_values_BT = values_BT.roll(-1, dims=1)
    lengths_B = mask_BT.sum(1)
    rows_B = (lengths_B > 0).nonzero()[:, 0]
    next_values_BT[rows_B, lengths_B[rows_B] - 1] = final_values_B[rows_B]
    next_values_BT = next_values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    advantage_B = values_BT.new_zeros(len(values_BT))
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + discount * next_values_BT[:, t] - values_BT[:, t]
        advantage_B = delta_B + discount * gae_lambda * advantage_B
        # Past the end every term is 0, so nothing is carried into the last token.
        advantages_BT[:, t] = advantage_B
    return Advantages(advantages_BT=advantages_BT, returns_BT=advantages_BT + values_BT)


def sampler_weights(logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """Truncated importance weights of sampled tokens: `min(exp(logprob - sampler_logprob), cap)`.

    Under another engine's law q than the trained one's p, the mean of `p / q * f` is that of `f`
    under p; the cap bounds its variance and biases tokens that q hardly ever samples (Ionides
    2008, doi:10.1198/106186008X320456; for samplers of language models Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training"). Each token is corrected
    given those before it; how likely q was to come there is not. Without gradient.

    Args:
        logprobs: Of the policy when the rollouts were made, by the training engine, nats.
        sampler_logprobs: Of what sampled, at the same temperature.
        cap: The largest weight, above 1.
    """
    ratio = (logprobs - sampler_logprobs).clamp(max=20.0).exp()
    return ratio.clamp(max=cap).detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """PPO's policy objective and what tells whether the step was too large."""

    loss: Tensor
    ratio_N: Tensor
    """Probability ratio new : old per token, detached."""
    clipped_N: Tensor
    """Whether the clipped branch was the one that counted, boolean."""
    approx_kl_N: Tensor
    """`(log ratio)^2 / 2`: KL(old || new), not the KL to the reference; detached."""


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_ratio: float,
    num_tokens: int,
    weights_N: Tensor | float = 1.0,
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), a mean over tokens.

    `sum(w max(-A r, -A clip(r, 1 - clip_ratio, 1 + clip_ratio))) / num_tokens`

    Args:
        logprobs_N: Of the policy that is being updated, with gradient.
        old_logprobs_N: Of the policy that sampled.
        advantages_N: Whitened advantages.
        clip_ratio: Half-width of the interval around 1.
        num_tokens: Response tokens of the whole optimizer step.
        weights_N: Importance weights of tokens that another law sampled (`sampler_weights`).
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.exp()
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip_ratio, 1 + clip_ratio)
    return PolicyLoss(
        loss=(weights_N * torch.maximum(plain_N, clipped_N)).sum() / max(1, num_tokens),
        ratio_N=ratio_N.detach(),
        clipped_N=(clipped_N > plain_N).detach(),
        approx_kl_N=log_ratio_N.detach().square() / 2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """The value function's objective."""

    loss: Tensor
    clipped_N: Tensor
    """Whether the clipped branch was the one that counted, boolean."""


def value_loss(
    values_N: Tensor,
    old_values_N: Tensor,
    returns_N: Tensor,
    *,
    value_clip: float,
    num_tokens: int,
) -> ValueLoss:
    """Clipped value loss, a mean over tokens (N+ detail 21; Schulman et al. 2017's code).

    `1/2 sum(max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2)) / num_tokens`
    """
    bounded_N = torch.clamp(values_N, old_values_N - value_clip, old_values_N + value_clip)
    plain_N = (values_N - returns_N).square()
    clipped_N = (bounded_N - returns_N).square()
    return ValueLoss(
        loss=0.5 * torch.maximum(plain_N, clipped_N).sum() / max(1, num_tokens),
        clipped_N=(clipped_N > plain_N).detach(),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """`1 - Var(returns - values) / Var(returns)` over valid tokens.

    1: the values predict the returns; 0: no better than their mean. It is 0 when the returns do
    not vary.
    """
    variance = masked_var(returns, mask)
    unexplained = masked_var(returns - values, mask)
    explained = 1.0 - unexplained / variance.clamp(min=EPSILON)
    return torch.where(variance > EPSILON, explained, torch.zeros_like(variance))
