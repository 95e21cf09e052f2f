"""PPO against the preference model with a KL penalty (Bai et al. 2022, sec. 4.1; 2022a, app. B).

The module gets finished rollouts (`rollout.py`, `advantages.py`) and makes `ppo_epochs` passes of
`num_minibatches` optimizer steps over them. Defaults follow the paper: clip 0.2, discount 1, KL in
the reward, no entropy bonus, constant learning rate after warm-up. The details that experts check
(after Huang et al. 2024, arXiv:2403.17031, and the codes it compares), each as it is (=), a setting
(?) or refused (!, with the reason; who types its usual name is told it):

 1. = AdamW with epsilon 1e-5. ? Everything else: lambda 0.95, value coefficient 0.1, passes, rates.
 2. ? `temperature` divides the logits of sampler, old, new and reference alike. ! Sampling that
    leaves tokens out (top-k, top-p, min_new_tokens ...): its law is not the one that is scored.
 3. = Sampling stops at the end-of-sequence token, which is in the policy and the value loss.
 4. = Reward: the score at the last token (end of sequence, or where it was cut).
 5. ? `kl_estimator` k1, k2 or k3 (its log-ratio is bounded) and `kl_where`: at every token in the
    reward, or in the loss with gradient. ! k1 in the loss: no gradient in expectation.
 6. ? `kl_control` fixed or adaptive (Ziegler et al. 2019). = It measures KL per response on the
    rollouts, wherever the penalty is; KL per response and per token are logged.
 7. = `policy/approxkl_avg` is old against new, `objective/kl` is policy against reference. ! Early
    stop on the former: with the passes fixed, two runs do the same amount of work.
 8. = Advantages whitened over valid tokens of the whole round, with the population's deviation.
    ? `whiten_rewards`, without shift.
 9. = GAE over response tokens, value 0 after the end. ? `at_cut`: a response that was cut counts as
    ended and pays `missing_eos_penalty`, or the value of the state after it is bootstrapped.
10. = Returns from unwhitened advantages; values belong to the state before the token; clipped value
    loss, the larger of both, halved. ? `value_clip`.
11. = The value head starts from the preference head (`ScoreHead.as_value_head`), put on the scale
    of the first scored round's returns by a line fit. ? `value_adapter`: over the policy's adapter,
    or over a copy of the preference model's, then with a gradient norm of its own;
    `value_learning_rate`; `value_warmup_iterations` before the policy's first step.
12. = The preference model scores at the end-of-sequence token, appended for it to a cut response,
    and is calibrated on SL-CAI samples.
13. ? `score_clip`, off: calibration bounds the scale. = The raw score is logged. ! A running scale:
    one number would mean another reward in every round.
14. = Mean over tokens of the clipped surrogate. ! Dual clip: whitened advantages and the gradient's
    norm are bounded already.
15. = Losses are divided by the tokens of the minibatch, whatever the micro-batches.
16. = No dropout; old log-probabilities by the training engine in the first pass's own
    micro-batches; log-softmax, values and losses in float32.
17. = The first minibatch of every round must have ratio 1 (`_check_ratio`); the gap between sampler
    and trainer is logged (`cai.sampler_gap`). ? `sampler_correction`: policy loss and KL loss are
    weighed per token by truncated importance weights, values and advantages are not.
18. = Gradient norm (`policy/grad_norm`: of all that learns) clipped and checked; ? linear warm-up.
    ! Annealing to 0: the paper's rate is constant, and a longer run begins like a shorter one.
19. = Prompts are padded on the right here, positions counted from the mask.
20. = Random partition per pass from (seed, round, pass); nothing is dropped.
21. = Metrics go through the masks of the loss, under their usual names: entropy is of the rollouts
    (`objective/entropy`), `loss/kl_avg` is what the penalty adds to the loss, `val/clipfrac_avg`
    the share of tokens where the value was held, `val/cut_rate` that of responses that were cut.
22. = Score against KL is in every line of metrics. ? `phase.gold`: snapshots under this preference
    model and a gold one, against sqrt(KL); `select=gold_peak` keeps the best of them.
23. = Policy = reference at the start: KL must be 0 until its first step (`_check_start`).
24. ! A pretraining mix: there are no such data; the pull to the SL-CAI policy is the KL. An
    ensemble is the preference model's affair.
25. = Sampled at the configured temperature; a short round is used as it is, never an old one.

Shapes: B sequences, T response tokens, N response tokens of a micro-batch.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cai import losses, ranks
from cai.adapters import active, base_dtype, parameters_of, same_adapter
from cai.batches import TokenBatch
from cai.choices import KLControl, KLPlace
from cai.errors import SelfCheckError
from cai.full_weights import Tuned
from cai.heads import token_logprobs
from cai.losses import PolicyLoss, ValueLoss, masked_mean
from cai.modules.trained import TrainedModule
from cai.optimisation import adamw, apply_update
from cai.rollout import RolloutBatch, States, ValueFunction, plan_minibatches, states_of, take
from cai.sampler_gap import gap_metrics
from cai.training_config import PPOConfig

RATIO_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest mean |ratio - 1| on a round's first minibatch."""
KL_TOLERANCE = 1e-3
"""Largest mean |log-ratio| to the reference when the policy still equals it, nats."""


@dataclass(slots=True)
class _Totals:
    """Sums over the tokens of all updates of a round.

    Losses are those of all ranks, the rest is of this rank's micro-batches.
    """

    num_tokens: int = 0
    num_updates: int = 0
    policy_loss: Tensor | float = 0.0
    kl_loss: Tensor | float = 0.0
    value_loss: Tensor | float = 0.0
    grad_norm: float = 0.0
    approx_kl: Tensor | float = 0.0
    clipped: Tensor | float = 0.0
    values_clipped: Tensor | float = 0.0
    ratios: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """Terms of the loss of one micro-batch."""

    policy: PolicyLoss
    kl: Tensor
    """With its coefficient; 0 when the penalty is in the rewards."""
    value: ValueLoss


class PPOModule(TrainedModule):
    """A policy adapter and a value function, updated from rollouts.

    Args:
        model: Base with adapters; `policy_adapter` is active, and it and the adapter of the value
            function are the only trainable ones.
        value: Its head reads the policy's trunk or that of an adapter of its own. In the latter
            case the two learn from passes, gradients and norms of their own.
        policy_adapter: The adapter that learns to speak.
        reference_adapter: Compared with the policy before the first round.
        config: Everything about PPO.
        micro_batch_size: Sequences per forward and backward pass.
        seed: Of the minibatches.
        stage: For messages and fault points.
    """

    def __init__(
        self,
        model: Tuned,
        *,
        value: ValueFunction,
        policy_adapter: str,
        reference_adapter: str,
        config: PPOConfig,
        micro_batch_size: int,
        seed: int,
        stage: str,
    ) -> None:
        super().__init__(model, stage=stage)
        self.value_head = value.head
        self.value_adapter = value.adapter
        self.policy_adapter = policy_adapter
        self.reference_adapter = reference_adapter
        self.config = config
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.starts_at_reference = same_adapter(model, policy_adapter, reference_adapter)
        self.iteration = 0
        """Rounds learned from."""
        self.kl_coef = config.kl_coef
        """Of the next round; moves under adaptive control."""
        self.values_fitted = False
        """Whether the value head is on the returns' scale."""

    @property
    def value(self) -> ValueFunction:
        """What predicts the returns."""
        return ValueFunction(adapter=self.value_adapter, head=self.value_head)

    @property
    def shares_trunk(self) -> bool:
        """Whether one pass serves the policy and the value function."""
        return self.value_adapter == self.policy_adapter

    @property
    def policy_learns(self) -> bool:
        """Whether the value function has had its warm-up rounds."""
        return self.iteration >= self.config.value_warmup_iterations

    def configure_optimizers(self) -> torch.optim.AdamW:
        """One AdamW; the value function has a learning rate of its own."""
        value_parameters = list(self.value_head.parameters())
        if not self.shares_trunk:
            value_parameters += parameters_of(self.model, self.value_adapter)
        theirs = {id(parameter) for parameter in value_parameters}
        return adamw(
            [p for p in self.model.parameters() if id(p) not in theirs],
            config=self.config.optimizer,
            eps=1e-5,
            others=value_parameters,
            others_learning_rate=self.config.value_learning_rate,
        )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> dict[str, Any]:
        """All updates of one round."""
        if not batch.iteration == batch_idx == self.iteration:
            raise AssertionError(
                f"rollouts of round {batch.iteration} at step {batch_idx} for a policy of round "
                f"{self.iteration}"
            )
        self._check_start(batch)
        totals = _Totals()
        for epoch in range(self.config.ppo_epochs):
            plan = plan_minibatches(
                [p + r for p, r in zip(batch.prompt_lengths, batch.response_lengths, strict=True)],
                num_minibatches=self.config.num_minibatches,
                micro_batch_size=self.micro_batch_size,
                seed=self.seed,
                iteration=batch.iteration,
                epoch=epoch,
            )
            for number, micro_batches in enumerate(plan):
                done = epoch * self.config.num_minibatches + number
                self._update(batch, micro_batches, totals, done)
        metrics = round_metrics(batch) | self._gap_metrics(batch) | self._update_metrics(totals)
        if self.policy_learns:
            self._control_kl(metrics["objective/kl"], len(batch))
        self.values_fitted |= batch.values_fitted
        self.iteration += 1
        return {"metrics": metrics}

    def _update(
        self, batch: RolloutBatch, micro_batches: list[list[int]], totals: _Totals, done: int
    ) -> None:
        """One optimizer step on one minibatch."""
        num_tokens = sum(batch.response_lengths[row] for rows in micro_batches for row in rows)
        if num_tokens == 0:
            return
        policy_loss = torch.zeros((), device=self.device)
        kl_loss = torch.zeros((), device=self.device)
        value_loss = torch.zeros((), device=self.device)
        ratios = [torch.zeros(0, device=self.device)]
        for rows, counts in self.turns(micro_batches):
            terms = self._gradients(batch, rows, num_tokens, counts)
            if not counts:
                continue
            if self.policy_learns:
                policy_loss += terms.policy.loss.detach()
                kl_loss += terms.kl.detach()
            value_loss += terms.value.loss.detach()
            ratios.append(terms.policy.ratio_N)
            totals.approx_kl += terms.policy.approx_kl_N.sum()
            totals.clipped += terms.policy.clipped_N.sum()
            totals.values_clipped += terms.value.clipped_N.sum()
        for loss in (policy_loss, kl_loss, value_loss):
            ranks.sum_over_ranks(loss)
        if done == 0:
            self._check_ratio(ranks.concatenated(torch.cat(ratios)), batch.iteration)
        steps = self.config.ppo_epochs * self.config.num_minibatches
        totals.grad_norm += apply_update(
            self.optimizers(),
            policy_loss + kl_loss + self.config.value_coef * value_loss,
            config=self.config.optimizer,
            stage=self.stage,
            step=batch.iteration * steps + done + 1,
            total_steps=self.config.num_iterations * steps,
            delay=self.config.value_warmup_iterations * steps,
            clip_apart=not self.shares_trunk,
        )
        totals.policy_loss += policy_loss
        totals.kl_loss += kl_loss
        totals.value_loss += value_loss
        totals.num_tokens += num_tokens
        totals.num_updates += 1
        totals.ratios.extend(ratios)

    def _gradients(
        self, batch: RolloutBatch, rows: list[int], num_tokens: int, counts: float
    ) -> _Terms:
        """Add one micro-batch to the gradients; in a warm-up round to those of the value alone.

        An own value adapter is gone through after the policy's graph is freed, so that the memory
        is that of one pass.
        """
        tokens = batch.tokens(rows)
        with torch.set_grad_enabled(self.policy_learns):
            states = states_of(self.model, tokens, adapter=self.policy_adapter)
            policy, kl = self._policy_terms(batch, rows, tokens, states, num_tokens)
        policy_loss = counts * (policy.loss + kl)
        if self.policy_learns and not self.shares_trunk:
            self.manual_backward(policy_loss)
        # Until the way back is over, on which layers may be computed again.
        with active(self.model, self.value_adapter):
            if not self.shares_trunk:
                states = states_of(self.model, tokens, adapter=self.value_adapter)
            value = losses.value_loss(
                self.value_head(states.before_NH),
                take(batch.values_BT, rows, tokens),
                take(batch.returns_BT, rows, tokens),
                value_clip=self.config.value_clip,
                num_tokens=num_tokens,
            )
            weighed = counts * self.config.value_coef * value.loss
            self.manual_backward(policy_loss + weighed if self.shares_trunk else weighed)
        return _Terms(policy=policy, kl=kl, value=value)

    def _policy_terms(
        self,
        batch: RolloutBatch,
        rows: list[int],
        tokens: TokenBatch,
        states: States,
        num_tokens: int,
    ) -> tuple[PolicyLoss, Tensor]:
        """The clipped surrogate, and the KL penalty as it is in the loss."""
        logprobs_N = token_logprobs(
            self.model,
            states.before_NH,
            tokens.targets_N,
            adapter=self.policy_adapter,
            temperature=self.config.temperature,
        ).logprob_N
        weights_N = take(batch.weights_BT, rows, tokens)
        policy = losses.policy_loss(
            logprobs_N,
            take(batch.old_logprobs_BT, rows, tokens),
            take(batch.advantages_BT, rows, tokens),
            clip_ratio=self.config.clip_ratio,
            num_tokens=num_tokens,
            weights_N=weights_N,
        )
        if self.config.kl_where is KLPlace.reward:
            return policy, torch.zeros_like(policy.loss)
        kl = losses.kl_loss(
            logprobs_N,
            take(batch.reference_logprobs_BT, rows, tokens),
            estimator=self.config.kl_estimator.value,
            num_tokens=num_tokens,
            weights_N=weights_N,
        )
        return policy, batch.kl_coef * kl

    def _check_start(self, batch: RolloutBatch) -> None:
        """Before its first update the policy is the reference, so that KL is exactly 0."""
        if batch.iteration > self.config.value_warmup_iterations or not self.starts_at_reference:
            return
        gap_BT = (batch.old_logprobs_BT - batch.reference_logprobs_BT).abs()
        gap = float(masked_mean(gap_BT, batch.response_mask_BT))
        if not gap <= KL_TOLERANCE:
            raise SelfCheckError(
                f"{self.stage}: the policy is a copy of the reference, yet their log-probabilities "
                f"differ by {gap:.3g} nats per token. Policy and reference are not computed in the "
                "same way (another adapter, dropout, or another number format); a run from here "
                "would be penalised for nothing."
            )

    def _check_ratio(self, ratio_N: Tensor, iteration: int) -> None:
        """Before a round's first update the policy is the one that made the rollouts."""
        gap = float((ratio_N - 1.0).abs().mean())
        tolerance = RATIO_TOLERANCE[base_dtype(self.model)]
        if not gap <= tolerance:
            raise SelfCheckError(
                f"{self.stage}, round {iteration + 1}: before any update the probability ratio is "
                f"off 1 by {gap:.3g} on average (at most {tolerance:g} is allowed). The rollouts "
                "were measured with other weights, another temperature or another batch than the "
                "update uses; nothing was learned from them."
            )

    def _control_kl(self, kl: float, num_responses: int) -> None:
        if self.config.kl_control is KLControl.adaptive:
            self.kl_coef = losses.adaptive_kl_coef(
                self.kl_coef,
                kl=kl,
                target=self.config.kl_target,
                num_responses=num_responses,
                horizon=self.config.kl_horizon,
            )

    def _gap_metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return gap_metrics(
            batch.old_logprobs_BT,
            batch.sampler_logprobs_BT,
            batch.response_mask_BT,
            cap=self.config.sampler_ratio_cap,
        )

    def _update_metrics(self, totals: _Totals) -> dict[str, float]:
        """Means over updates for losses, over tokens for ratios; empty without a token."""
        if totals.num_updates == 0:
            return {"policy/num_updates": 0.0}
        ratio_N = ranks.concatenated(torch.cat(totals.ratios))
        sums = [totals.approx_kl, totals.clipped, totals.values_clipped]
        told = torch.tensor([float(own) for own in sums], dtype=torch.float64)
        approx_kl, clipped, values_clipped = ranks.sum_over_ranks(told).tolist()
        return {
            "policy/num_updates": float(totals.num_updates),
            "policy/approxkl_avg": approx_kl / totals.num_tokens,
            "policy/clipfrac_avg": clipped / totals.num_tokens,
            "policy/grad_norm": totals.grad_norm / totals.num_updates,
            "policy/learning_rate": self.optimizers().param_groups[0]["lr"],
            "loss/policy_avg": float(totals.policy_loss) / totals.num_updates,
            "loss/kl_avg": float(totals.kl_loss) / totals.num_updates,
            "loss/value_avg": float(totals.value_loss) / totals.num_updates,
            "val/clipfrac_avg": values_clipped / totals.num_tokens,
            "val/ratio": float(ratio_N.mean()),
            "val/ratio_var": float(ratio_N.var(correction=0)),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the controller."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {
            "iteration": self.iteration,
            "kl_coef": self.kl_coef,
            "values_fitted": self.values_fitted,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another training's checkpoint; restore the controller."""
        super().on_load_checkpoint(checkpoint)
        self.iteration = checkpoint["ppo"]["iteration"]
        self.kl_coef = checkpoint["ppo"]["kl_coef"]
        self.values_fitted = checkpoint["ppo"]["values_fitted"]


def round_metrics(batch: RolloutBatch) -> dict[str, float]:
    """What the rollouts of a round say, before anything is learned from them.

    KL is the unbiased estimate (k1), summed over a response's tokens and averaged over responses,
    in nats; `kl_neg_frac` is the share of responses where it is below 0: near a half while the
    KL is near 0, less as it grows; more than that says that the sampler has another law than the
    one that is trained. `non_score_reward` is the penalty that is in the rewards. Scores are raw,
    and means over responses whose score is in the rewards; in a round without one there are none.
    """
    mask_BT = batch.response_mask_BT
    kl_BT = (batch.old_logprobs_BT - batch.reference_logprobs_BT).masked_fill(~mask_BT, 0.0)
    penalty_B = (-batch.reward_kl_coef * batch.kl_BT).masked_fill(~mask_BT, 0.0).sum(1)
    answered_B = mask_BT.any(1)
    lengths_B = mask_BT.sum(1)
    metrics = {
        "objective/kl": kl_BT.sum(1).mean(),
        "objective/kl_per_token": masked_mean(kl_BT, mask_BT),
        "objective/kl_neg_frac": masked_mean((kl_BT.sum(1) < 0).float(), answered_B),
        "objective/entropy": masked_mean(batch.entropy_BT, mask_BT),
        "objective/rlhf_reward": batch.rewards_BT.sum(1).mean(),
        "objective/non_score_reward": penalty_B.mean(),
        "val/explained_variance": losses.explained_variance(
            batch.values_BT, batch.returns_BT, mask_BT
        ),
        "val/num_eos_tokens": batch.finished_B.sum(),
        "val/eos_rate": batch.finished_B.float().mean(),
        "val/cut_rate": (answered_B & ~batch.finished_B).float().mean(),
        "val/response_length": lengths_B.float().mean(),
        "val/num_empty_responses": (lengths_B == 0).sum(),
    }
    if batch.scored_B.any():
        metrics["objective/scores"] = masked_mean(batch.scores_B, batch.scored_B)
        metrics["objective/scores_std"] = losses.masked_var(batch.scores_B, batch.scored_B).sqrt()
    return {"objective/kl_coef": batch.kl_coef} | {n: float(v) for n, v in metrics.items()}
