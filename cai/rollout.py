"""Rollouts: sampled responses with everything PPO needs to learn from them, made once per round.

Tokens in, tokens out: a response is never decoded and encoded again. Log-probabilities of the
policy and of the reference come from the training engine, in the very micro-batches of the
update's first pass, so that the probability ratio there is exactly 1; what the sampler itself said
is compared with them (`cai.sampler_gap`). The reference is the SL-CAI adapter. Values come from a
head on the policy's trunk, or on that of an adapter of its own. Scores come from a function of
closed sequences: a response that was cut gets the end-of-sequence token that a preference model
reads its score at (`cai.scoring`; Bai et al. 2022a, app. A.2, append one too).

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
from torch import Tensor

from cai import advantages, ranks
from cai.adapters import active, forward_hidden
from cai.advantages import Values
from cai.batches import (
    TokenBatch,
    collate,
    length_mask,
    pad,
    split_by_length,
    token_batch,
)
from cai.full_weights import Tuned
from cai.heads import ScoreHead, TokenLogprobs, seeded_generator, token_logprobs
from cai.optimisation import NonFiniteError
from cai.sampler_gap import importance_weights, sampler_logprobs
from cai.scoring import TokenScore, closed
from cai.training_config import PPOConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One response as the sampler gave it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """With the end-of-sequence token when one was sampled."""
    finished: bool
    """Whether it ends with the end-of-sequence token."""
    logprobs: tuple[float, ...] | None = None
    """Of each token under the sampler, nats; None when they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFunction:
    """A head and the adapter whose trunk it reads; it learns from the returns."""

    adapter: str
    """The policy's, or another one that learns only from the returns."""
    head: ScoreHead


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
    sampler_logprobs_BT: Tensor
    """As the sampler said; NaN when it is not known."""
    weights_BT: Tensor
    """What a token's loss is multiplied by, for the gap between the two."""
    reference_logprobs_BT: Tensor
    """Of the SL-CAI policy."""
    entropy_BT: Tensor
    """Of the policy's next-token distribution, nats."""
    values_BT: Tensor
    """Value of the state before each token."""
    final_values_B: Tensor
    """Value of the state after the last token; 0 for an empty response."""
    values_fitted: bool
    """Whether the value head was put on the returns' scale in this round."""
    scores_B: Tensor
    """Of the preference model at the end of sequence, calibrated, neither clipped nor penalised."""
    scored_B: Tensor
    """Whether the score is in the rewards, bool: not for an empty response, nor for a cut one that
    is bootstrapped."""
    kl_BT: Tensor
    """Estimate that is penalised."""
    kl_coef: float
    """Its weight, in the rewards or in the loss."""
    reward_kl_coef: float
    """Its weight in the rewards: 0 when it is in the loss."""
    rewards_BT: Tensor
    """`-reward_kl_coef * kl`, and the clipped and penalised score at the last token; not
    whitened."""
    advantages_BT: Tensor
    """Whitened over the tokens of the whole batch."""
    returns_BT: Tensor

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
            final_values_B=self.final_values_B.to(device),
            scores_B=self.scores_B.to(device),
            scored_B=self.scored_B.to(device),
            kl_BT=self.kl_BT.to(device),
            rewards_BT=self.rewards_BT.to(device),
            advantages_BT=self.advantages_BT.to(device),
            returns_BT=self.returns_BT.to(device),
            sampler_logprobs_BT=self.sampler_logprobs_BT.to(device),
            weights_BT=self.weights_BT.to(device),
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
class States:
    """Hidden states of a micro-batch that heads read; rollouts and updates read the same ones."""

    before_NH: Tensor
    """Before each response token."""
    final_BH: Tensor
    """After each row's last token."""


def states_of(model: Tuned, tokens: TokenBatch, *, adapter: str) -> States:
    """One pass of an adapter's trunk."""
    hidden_BSH = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
    return States(before_NH=tokens.states(hidden_BSH), final_BH=tokens.last(hidden_BSH))


# The records below are parts of a `RolloutBatch`, under its own field names.


@dataclass(frozen=True, kw_only=True)
class _Sequences:
    ids_BS: Tensor
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    response_mask_BT: Tensor
    finished_B: Tensor
    sampler_logprobs_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class _Measured:
    old_logprobs_BT: Tensor
    reference_logprobs_BT: Tensor
    entropy_BT: Tensor


def _sequences(samples: Sequence[Sampled], *, pad_id: int, device: torch.device) -> _Sequences:
    response_lengths = tuple(len(sample.response_ids) for sample in samples)
    mask_BT = length_mask(response_lengths, max(response_lengths)).to(device)
    return _Sequences(
        ids_BS=pad([s.prompt_ids + s.response_ids for s in samples], pad_id=pad_id).to(device),
        prompt_lengths=tuple(len(sample.prompt_ids) for sample in samples),
        response_lengths=response_lengths,
        response_mask_BT=mask_BT,
        finished_B=torch.tensor([sample.finished for sample in samples], device=device),
        sampler_logprobs_BT=sampler_logprobs([s.logprobs for s in samples], mask_BT),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A micro-batch and the rows of the round that it holds."""

    rows: list[int]
    tokens: TokenBatch


def _parts(sequences: _Sequences, groups: Sequence[list[int]]) -> list[_Part]:
    lengths = sequences.prompt_lengths, sequences.response_lengths
    return [_Part(rows=rows, tokens=_rows(sequences.ids_BS, *lengths, rows)) for rows in groups]


def _scores(
    samples: Sequence[Sampled], score: TokenScore, *, eos_id: int, mask_BT: Tensor
) -> Tensor:
    """Scores (B,) of the closed sequences; 0 where there is no token."""
    ended = [
        (s.prompt_ids, closed(s.response_ids, finished=s.finished, eos_id=eos_id)) for s in samples
    ]
    scores_B = torch.tensor(score(ended), device=mask_BT.device)
    return scores_B.masked_fill(~mask_BT.any(1), 0.0)


def _spread(parts: Sequence[_Part], values: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """Values (N,) of each micro-batch put in their places (B, T), with those of all ranks."""
    out_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for part, values_N in zip(parts, values, strict=True):
        rows_B = torch.tensor(part.rows, device=mask_BT.device)
        out_BT[rows_B[part.tokens.rows_N], part.tokens.columns_N] = values_N
    return ranks.sum_over_ranks(out_BT)  # zeros and one rank's numbers: exact


@torch.no_grad()
def _measure(
    model: Tuned,
    parts: Sequence[_Part],
    mask_BT: Tensor,
    *,
    policy_adapter: str,
    reference_adapter: str,
    value: ValueFunction,
    temperature: float,
) -> tuple[_Measured, Values]:
    said: dict[str, list[TokenLogprobs]] = {policy_adapter: [], reference_adapter: []}
    values, final_values_B = [], torch.zeros(len(mask_BT), device=mask_BT.device)
    for adapter in dict.fromkeys((policy_adapter, reference_adapter, value.adapter)):
        with active(model, adapter):
            for part in parts:
                tokens = part.tokens
                states = states_of(model, tokens, adapter=adapter)
                if adapter in said:
                    said[adapter].append(
                        token_logprobs(
                            model,
                            states.before_NH,
                            tokens.targets_N,
                            adapter=adapter,
                            temperature=temperature,
                        )
                    )
                if adapter == value.adapter:
                    values.append(value.head(states.before_NH))
                    final_values_B[part.rows] = value.head(states.final_BH)
    policy, reference = said[policy_adapter], said[reference_adapter]
    measured = _Measured(
        old_logprobs_BT=_spread(parts, [view.logprob_N for view in policy], mask_BT),
        reference_logprobs_BT=_spread(parts, [view.logprob_N for view in reference], mask_BT),
        entropy_BT=_spread(parts, [view.entropy_N for view in policy], mask_BT),
    )
    values_BT = _spread(parts, values, mask_BT)
    ranks.sum_over_ranks(final_values_B)
    return measured, Values(values_BT=values_BT, final_values_B=final_values_B)


@torch.no_grad()
def log_ratios(
    model: Tuned,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    policy_adapter: str,
    reference_adapter: str,
    temperature: float,
    micro_batch_size: int,
    pad_id: int,
) -> list[float]:
    """Log-ratio of policy and reference for whole responses, nats.

    Of responses that the policy sampled, the mean is an unbiased estimate of KL(policy ||
    reference) per response, the sum over tokens of what `kl_estimator: k1` is; one of them may be
    negative.

    Args:
        model: Base with the two adapters.
        sequences: (Prompt ids, response ids).
        policy_adapter: Sampled the responses.
        reference_adapter: Compared with it.
        temperature: That of the samples, applied to both.
        micro_batch_size: Sequences per forward pass.
        pad_id: Fills the right, where it is never read.
    """
    found: dict[int, float] = {}
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    for rows in ranks.share(split_by_length(lengths, micro_batch_size)):
        tokens = collate([sequences[row] for row in rows], pad_id=pad_id).to(model.device)
        said = []
        for adapter in (policy_adapter, reference_adapter):
            with active(model, adapter):
                states = states_of(model, tokens, adapter=adapter)
                said.append(
                    token_logprobs(
                        model,
                        states.before_NH,
                        tokens.targets_N,
                        adapter=adapter,
                        temperature=temperature,
                    ).logprob_N
                )
        found.update(zip(rows, tokens.sums(said[0] - said[1]).tolist(), strict=True))
    for others in ranks.gathered(found):
        found |= others
    return [found[row] for row in range(len(sequences))]


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
    model: Tuned,
    samples: Sequence[Sampled],
    *,
    policy_adapter: str,
    reference_adapter: str,
    score: TokenScore,
    value: ValueFunction,
    fit_values: bool,
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
        model: Base with the two adapters; the reference is another one than the policy.
        samples: At least one; the row order of the result.
        policy_adapter: Samples and learns.
        reference_adapter: The KL penalty is measured from it.
        score: The preference model's, of closed sequences.
        value: Its head is changed by `fit_values`.
        fit_values: Put the value head on the returns' scale, if this round has a score; until it is
            done, once (`RolloutBatch.values_fitted`).
        config: Temperature, and everything about rewards and advantages.
        kl_coef: Weight of the KL penalty in this round.
        micro_batch_size: Sequences per forward pass.
        eos_id: Ends a cut response for `score`; also fills the right, never read.
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
    measured, values = _measure(
        model,
        ranks.share(_parts(sequences, groups)),
        mask_BT,
        policy_adapter=policy_adapter,
        reference_adapter=reference_adapter,
        value=value,
        temperature=config.temperature,
    )
    scores_B = _scores(samples, score, eos_id=eos_id, mask_BT=mask_BT)
    for name, found in (vars(measured) | vars(values) | {"scores_B": scores_B}).items():
        if not found.isfinite().all():
            raise NonFiniteError(stage=stage, step=iteration + 1, what=f"one of {name}")
    rewards = advantages.token_rewards(
        config,
        scores_B=scores_B,
        logprobs_BT=measured.old_logprobs_BT,
        reference_logprobs_BT=measured.reference_logprobs_BT,
        finished_B=sequences.finished_B,
        mask_BT=mask_BT,
        kl_coef=kl_coef,
    )
    estimates = advantages.estimate(
        config, rewards, values, mask_BT, unfitted=value.head if fit_values else None
    )
    weights_BT = importance_weights(
        config, measured.old_logprobs_BT, sequences.sampler_logprobs_BT, mask_BT
    )
    parts = vars(sequences) | vars(measured) | vars(rewards) | vars(estimates)
    return RolloutBatch(iteration=iteration, kl_coef=kl_coef, weights_BT=weights_BT, **parts)
