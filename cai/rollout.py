"""Rollouts: sampled responses with everything PPO needs to learn from them, made once per round.

Tokens in, tokens out: a response is never decoded and encoded again. Log-probabilities of the
policy and of the reference come from the training engine, in the very micro-batches of the
update's first pass, so that the probability ratio there is exactly 1; what the sampler itself said
is kept only to report the gap. The reference is the SL-CAI adapter. Values come from a head on the
policy's own trunk. The preference model reads its score at the end-of-sequence token, which is
appended for it to a response that was cut: that is where it was trained and calibrated (Bai et al.
2022a, app. A.2, append one too), and anywhere else its score would mean nothing.

A response without tokens takes part in nothing: its score is 0, it has no reward and no advantage,
and it is counted.

Shapes: B sequences, S prompt and response tokens, T response tokens, N response tokens of a
micro-batch.
"""

# ruff: noqa: N803, N806, N815 -- names end in their shape

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from cai import losses
from cai.adapters import active, forward_hidden
from cai.batches import (
    TokenBatch,
    TokenIds,
    collate,
    length_mask,
    pad,
    split_by_length,
    token_batch,
)
from cai.heads import ScoreHead, seeded_generator, token_logprobs
from cai.optimisation import NonFiniteError
from cai.training_config import PPOConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One response as the sampler gave it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """With the end-of-sequence token when one was sampled."""
    finished: bool
    """Whether it ends with the end-of-sequence token."""
    logprob: float | None = None
    """Sum over the response under the sampler, nats; None when it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The two heads of PPO."""

    value: ScoreHead
    """On the policy's trunk; trained."""
    preference: ScoreHead
    """On the preference adapter's trunk; frozen and calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """One round's rollouts. Whatever is (B, T) is 0 outside the response."""

    iteration: int
    ids_BS: Tensor
    """Prompt, response, padding on the right; int64."""
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    """With the end-of-sequence token."""
    response_mask_BT: Tensor
    """True on response tokens, the end-of-sequence token included."""
    finished_B: Tensor
    """Whether the response ends with the end-of-sequence token, bool."""
    old_logprobs_BT: Tensor
    """Of the policy that sampled, by the training engine, nats."""
    reference_logprobs_BT: Tensor
    """Of the SL-CAI policy."""
    entropy_BT: Tensor
    """Of the policy's next-token distribution, nats."""
    values_BT: Tensor
    """Value of the state before each token."""
    scores_B: Tensor
    """Of the preference model at the end of sequence, calibrated, without any penalty."""
    kl_BT: Tensor
    """Estimate that is in the reward."""
    kl_coef: float
    rewards_BT: Tensor
    """`-kl_coef * kl`, and the penalised score at the last token; not whitened."""
    advantages_BT: Tensor
    """Whitened over the tokens of the whole batch."""
    returns_BT: Tensor
    sampler_logprobs_B: Tensor
    """Sum over the response as the sampler said; NaN when it is not known."""

    def __len__(self) -> int:
        return len(self.ids_BS)

    def to(self, device: torch.device) -> RolloutBatch:
        """The same batch on a device; Lightning calls this."""
        return dataclasses.replace(
            self,
            ids_BS=self.ids_BS.to(device),
            response_mask_BT=self.response_mask_BT.to(device),
            finished_B=self.finished_B.to(device),
            old_logprobs_BT=self.old_logprobs_BT.to(device),
            reference_logprobs_BT=self.reference_logprobs_BT.to(device),
            entropy_BT=self.entropy_BT.to(device),
            values_BT=self.values_BT.to(device),
            scores_B=self.scores_B.to(device),
            kl_BT=self.kl_BT.to(device),
            rewards_BT=self.rewards_BT.to(device),
            advantages_BT=self.advantages_BT.to(device),
            returns_BT=self.returns_BT.to(device),
            sampler_logprobs_B=self.sampler_logprobs_B.to(device),
        )

    def tokens(self, rows: Sequence[int]) -> TokenBatch:
        """Some rows as a micro-batch, cropped to its longest sequence."""
        return _rows(self.ids_BS, self.prompt_lengths, self.response_lengths, rows)


def _rows(
    ids_BS: Tensor,
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    rows: Sequence[int],
) -> TokenBatch:
    return token_batch(
        ids_BS[list(rows)],
        prompt_lengths=[prompt_lengths[row] for row in rows],
        response_lengths=[response_lengths[row] for row in rows],
    )


def take(values_BT: Tensor, rows: Sequence[int], tokens: TokenBatch) -> Tensor:
    """Values (N,) of a micro-batch's response tokens."""
    return values_BT[list(rows)][tokens.rows_N, tokens.columns_N]


def plan_minibatches(
    lengths: Sequence[int],
    *,
    num_minibatches: int,
    micro_batch_size: int,
    seed: int,
    iteration: int,
    epoch: int,
) -> list[list[list[int]]]:
    """Rows of each micro-batch of each minibatch of one pass; a function of its arguments only.

    Minibatches are a random partition of all rows, nearly equal in size; none is dropped.
    """
    generator = seeded_generator(seed, "minibatches", iteration, epoch)
    order = torch.randperm(len(lengths), generator=generator)
    plan = []
    for part in order.tensor_split(num_minibatches):
        rows = part.tolist()
        groups = split_by_length([lengths[row] for row in rows], micro_batch_size)
        plan.append([[rows[index] for index in group] for group in groups])
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """What an adapter says about the response tokens of a micro-batch."""

    logprobs_N: Tensor
    entropy_N: Tensor
    values_N: Tensor | None
    """None without a value head."""


def view_tokens(
    model: PeftModel,
    tokens: TokenBatch,
    *,
    adapter: str,
    temperature: float,
    value_head: ScoreHead | None,
) -> PolicyView:
    """Log-probabilities, entropies and values of response tokens; rollouts and updates use it."""
    hidden_BSH = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
    states_NH = tokens.states(hidden_BSH)
    said = token_logprobs(model, states_NH, tokens.targets_N, temperature=temperature)
    return PolicyView(
        logprobs_N=said.logprob_N,
        entropy_N=said.entropy_N,
        values_N=None if value_head is None else value_head(states_NH),
    )


# The records below are the parts of a `RolloutBatch`, under its own field names.


@dataclass(frozen=True, kw_only=True)
class _Sequences:
    ids_BS: Tensor
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    response_mask_BT: Tensor
    finished_B: Tensor
    sampler_logprobs_B: Tensor


@dataclass(frozen=True, kw_only=True)
class _Measured:
    old_logprobs_BT: Tensor
    reference_logprobs_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor


@dataclass(frozen=True, kw_only=True)
class _Rewards:
    kl_BT: Tensor
    rewards_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class _Advantages:
    advantages_BT: Tensor
    returns_BT: Tensor


def _sequences(samples: Sequence[Sampled], *, pad_id: int, device: torch.device) -> _Sequences:
    response_lengths = tuple(len(sample.response_ids) for sample in samples)
    sampler = [float("nan") if s.logprob is None else s.logprob for s in samples]
    return _Sequences(
        ids_BS=pad([s.prompt_ids + s.response_ids for s in samples], pad_id=pad_id).to(device),
        prompt_lengths=tuple(len(sample.prompt_ids) for sample in samples),
        response_lengths=response_lengths,
        response_mask_BT=length_mask(response_lengths, max(response_lengths)).to(device),
        finished_B=torch.tensor([sample.finished for sample in samples], device=device),
        sampler_logprobs_B=torch.tensor(sampler, dtype=torch.float64, device=device),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A micro-batch and the rows of the round that it holds."""

    rows: list[int]
    tokens: TokenBatch
    closed: TokenBatch
    """The same sequences, every one ended, for the preference model."""


def _parts(
    samples: Sequence[Sampled],
    sequences: _Sequences,
    groups: Sequence[list[int]],
    eos_id: int,
) -> list[_Part]:
    prompt_lengths, response_lengths = sequences.prompt_lengths, sequences.response_lengths
    device = sequences.ids_BS.device
    parts = []
    for rows in groups:
        ended = [
            (s.prompt_ids, s.response_ids if s.finished else (*s.response_ids, eos_id))
            for s in (samples[row] for row in rows)
        ]
        parts.append(
            _Part(
                rows=rows,
                tokens=_rows(sequences.ids_BS, prompt_lengths, response_lengths, rows),
                closed=collate(ended, pad_id=eos_id).to(device),
            )
        )
    return parts


def _spread(parts: Sequence[_Part], values: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """Values (N,) of each micro-batch put in their places (B, T); 0 elsewhere."""
    out_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for part, values_N in zip(parts, values, strict=True):
        rows_B = torch.tensor(part.rows, device=mask_BT.device)
        out_BT[rows_B[part.tokens.rows_N], part.tokens.columns_N] = values_N
    return out_BT


@torch.no_grad()
def _measure(
    model: PeftModel,
    parts: Sequence[_Part],
    mask_BT: Tensor,
    *,
    policy_adapter: str,
    reference_adapter: str,
    preference_adapter: str,
    heads: Heads,
    temperature: float,
) -> _Measured:
    views = {}
    for adapter, head in ((policy_adapter, heads.value), (reference_adapter, None)):
        with active(model, adapter):
            views[adapter] = [
                view_tokens(
                    model, part.tokens, adapter=adapter, temperature=temperature, value_head=head
                )
                for part in parts
            ]
    scores_B = torch.zeros(len(mask_BT), device=mask_BT.device)
    with active(model, preference_adapter):
        for part in parts:
            ids, mask = part.closed.ids_BS, part.closed.mask_BS
            hidden = forward_hidden(model, ids, mask, adapter=preference_adapter)
            scores_B[part.rows] = heads.preference(part.closed.last(hidden))
    policy, reference = views[policy_adapter], views[reference_adapter]
    return _Measured(
        old_logprobs_BT=_spread(parts, [view.logprobs_N for view in policy], mask_BT),
        reference_logprobs_BT=_spread(parts, [view.logprobs_N for view in reference], mask_BT),
        entropy_BT=_spread(parts, [view.entropy_N for view in policy], mask_BT),
        values_BT=_spread(parts, [view.values_N for view in policy], mask_BT),
        scores_B=scores_B.masked_fill(~mask_BT.any(1), 0.0),
    )


def _rewards(
    config: PPOConfig,
    measured: _Measured,
    *,
    finished_B: Tensor,
    mask_BT: Tensor,
    kl_coef: float,
) -> _Rewards:
    kl_BT = losses.kl_estimate(
        measured.old_logprobs_BT,
        measured.reference_logprobs_BT,
        estimator=config.kl_estimator.value,
    )
    penalised_B = losses.penalised_scores(
        measured.scores_B, finished_B, penalty=config.missing_eos_penalty
    )
    rewards_BT = losses.token_rewards(penalised_B, kl_BT, mask_BT, kl_coef=kl_coef)
    return _Rewards(kl_BT=kl_BT, rewards_BT=rewards_BT)


def _fitted_values(
    head: ScoreHead, values_BT: Tensor, rewards_BT: Tensor, mask_BT: Tensor, *, discount: float
) -> Tensor:
    """Put the value head on the scale of the returns, before the first update; its new values.

    The preference head reads its score at the end of a sequence and under another adapter; read at
    every token of the policy's trunk it is off by several standard deviations, and whitened
    advantages are then mostly that error. A line fitted to the first round's returns (least
    squares) takes the error out and keeps the direction.
    """
    zeros_BT = torch.zeros_like(values_BT)
    returns_BT = losses.gae(
        rewards_BT, zeros_BT, mask_BT, discount=discount, gae_lambda=1.0
    ).returns_BT
    line = losses.affine_fit(values_BT, returns_BT, mask_BT)
    head.rescale(scale=line.scale, shift=line.shift)
    return (line.scale * values_BT + line.shift).masked_fill(~mask_BT, 0.0)


def _advantages(
    config: PPOConfig, rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor
) -> _Advantages:
    estimates = losses.gae(
        rewards_BT,
        values_BT,
        mask_BT,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
    )
    return _Advantages(
        advantages_BT=losses.whiten(estimates.advantages_BT, mask_BT, shift=True),
        returns_BT=estimates.returns_BT,
    )


def _first_pass(
    sequences: _Sequences, config: PPOConfig, *, micro_batch_size: int, seed: int, iteration: int
) -> list[list[int]]:
    """Rows of each micro-batch of the update's first pass."""
    plan = plan_minibatches(
        [p + r for p, r in zip(sequences.prompt_lengths, sequences.response_lengths, strict=True)],
        num_minibatches=config.num_minibatches,
        micro_batch_size=micro_batch_size,
        seed=seed,
        iteration=iteration,
        epoch=0,
    )
    return [rows for minibatch in plan for rows in minibatch]


def build_rollouts(
    model: PeftModel,
    samples: Sequence[Sampled],
    *,
    policy_adapter: str,
    reference_adapter: str,
    preference_adapter: str,
    heads: Heads,
    config: PPOConfig,
    kl_coef: float,
    micro_batch_size: int,
    eos_id: int,
    seed: int,
    iteration: int,
    stage: str,
) -> RolloutBatch:
    """Measure sampled responses and turn scores into advantages.

    Args:
        model: Base with the three adapters; the reference is another one than the policy.
        samples: At least one; the row order of the result.
        policy_adapter: Samples and learns.
        reference_adapter: The KL penalty is measured from it.
        preference_adapter: Gives the score, with `heads.preference`.
        heads: Value and preference heads; in round 0 the value head is put on the returns' scale.
        config: Temperature, KL estimator, penalty, whitening, discount and lambda.
        kl_coef: Weight of the KL penalty in this round.
        micro_batch_size: Sequences per forward pass.
        eos_id: Ends a cut response for the preference model; also fills the right, never read.
        seed: Of the minibatches (`plan_minibatches`), the same as the update's.
        iteration: The round, counted from 0.
        stage: For messages.

    Raises:
        ValueError: when a finished response does not end with `eos_id`.
        NonFiniteError: when a score, value or log-probability is NaN or infinite.
    """
    if any(s.finished and s.response_ids[-1:] != (eos_id,) for s in samples):
        raise ValueError(f"a finished response does not end with token {eos_id}")
    sequences = _sequences(samples, pad_id=eos_id, device=model.device)
    mask_BT = sequences.response_mask_BT
    groups = _first_pass(
        sequences, config, micro_batch_size=micro_batch_size, seed=seed, iteration=iteration
    )
    measured = _measure(
        model,
        _parts(samples, sequences, groups, eos_id),
        mask_BT,
        policy_adapter=policy_adapter,
        reference_adapter=reference_adapter,
        preference_adapter=preference_adapter,
        heads=heads,
        temperature=config.temperature,
    )
    for name, values in vars(measured).items():
        if not values.isfinite().all():
            raise NonFiniteError(stage=stage, step=iteration + 1, what=f"one of {name}")
    rewards = _rewards(
        config, measured, finished_B=sequences.finished_B, mask_BT=mask_BT, kl_coef=kl_coef
    )
    learned_BT = rewards.rewards_BT
    if config.whiten_rewards:
        learned_BT = losses.whiten(learned_BT, mask_BT, shift=False)
    if iteration == 0 and mask_BT.any():
        values_BT = _fitted_values(
            heads.value, measured.values_BT, learned_BT, mask_BT, discount=config.discount
        )
        measured = dataclasses.replace(measured, values_BT=values_BT)
    advantages = _advantages(config, learned_BT, measured.values_BT, mask_BT)
    parts = vars(sequences) | vars(measured) | vars(rewards) | vars(advantages)
    return RolloutBatch(iteration=iteration, kl_coef=kl_coef, **parts)


@torch.no_grad()
def score_responses(
    model: PeftModel,
    head: ScoreHead,
    sequences: Sequence[tuple[TokenIds, TokenIds]],
    *,
    adapter: str,
    micro_batch_size: int,
    pad_id: int,
) -> list[float]:
    """Scores of (prompt ids, response ids), in the order given.

    Batches are a function of the lengths. In float32 a score does not depend on what else is in
    its batch beyond 1e-5; in bfloat16 its last bits do.
    """
    scores = [0.0] * len(sequences)
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    with active(model, adapter):
        for rows in split_by_length(lengths, micro_batch_size):
            tokens = collate([sequences[row] for row in rows], pad_id=pad_id).to(model.device)
            hidden = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
            for row, score in zip(rows, head(tokens.last(hidden)).tolist(), strict=True):
                scores[row] = score
    return scores
