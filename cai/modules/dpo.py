"""Direct Preference Optimization: the policy learns the comparisons without a preference model.

Rafailov et al. 2023 (arXiv:2305.18290), on soft labels (`losses.dpo_loss`). The policy starts as a
copy of the reference, which is the SL-CAI adapter and never "adapter off". A response counts with
the sum of its tokens' log-probabilities at temperature 1, in float32. Both sides of a pair are in
one batch.

The reference does not learn, so it is asked once, before training, which spares every later epoch a
forward pass. It is asked in the first epoch's own micro-batches, because in bfloat16 the last bits
of a sum depend on what else is in its batch: so the margin is exactly 0 before the first update,
and the first step can be checked against its known loss. In later epochs pairs meet in other
batches, and a margin has that rounding in it (measured with the 135M model in bfloat16 on a CPU: at
most 0.04 nats for 36 tokens in batches of another size). A resumed training asks again, which gives
the same bits.

What is not here: a fine-tuning loss on the preferred side, and a normalisation by length.

Shapes: P pairs, 2P their sides a and b: (2, P).
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cai import ranks
from cai.adapters import active, forward_hidden, forward_pairs
from cai.batches import PairBatch, ReferencedBatch, TokenBatch, TokenIds, collate, split_by_length
from cai.choices import DPOLoss
from cai.errors import SelfCheckError
from cai.full_weights import Tuned
from cai.heads import token_logprobs
from cai.loaders import EpochLoader, PairExample, ReferencedPair
from cai.losses import dpo_loss
from cai.modules.trained import TrainedModule
from cai.optimisation import adamw, apply_update
from cai.training_config import DPOConfig

MARGIN_TOLERANCE = 1e-3
"""Largest mean |log-ratio| to the reference when the policy still equals it, nats per token."""
LOSS_TOLERANCE = 0.05
"""Largest share by which the first loss may be off the one of equal log-probabilities."""


def response_logprobs(model: Tuned, tokens: TokenBatch, *, adapter: str, paired: bool) -> Tensor:
    """Log-probability (B,) of each response, nats: its tokens' sum, float32.

    Args:
        model: Base with roles.
        tokens: Prompts and responses.
        adapter: The role that is asked.
        paired: The second half of the sequences has the prompts of the first.
    """
    if paired:
        hidden = forward_pairs(model, tokens, adapter=adapter)
    else:
        hidden = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
    said = token_logprobs(
        model, tokens.states(hidden), tokens.targets_N, adapter=adapter, temperature=1.0
    )
    return tokens.sums(said.logprob_N)


@torch.no_grad()
def with_reference(
    model: Tuned,
    loader: EpochLoader[PairExample, PairBatch],
    *,
    adapter: str,
    on_pairs: Callable[[int], None],
) -> list[ReferencedPair]:
    """The loader's pairs with the reference's log-probabilities, in the loader's own order.

    Ranks share the micro-batches as training does, and all get all pairs.

    Args:
        model: Base with adapters.
        loader: Its first epoch's micro-batches are those in which the reference is asked.
        adapter: The reference.
        on_pairs: Told how many more pairs are done.
    """
    found: dict[int, ReferencedPair] = {}
    with active(model, adapter):
        for position in range(loader.batches_per_epoch):
            for group in ranks.share(loader.groups(position)):
                batch = loader.collate([loader.examples[index] for index in group])
                tokens = batch.tokens.to(model.device)
                said = response_logprobs(model, tokens, adapter=adapter, paired=True)
                sides = said.view(2, len(group)).T.tolist()
                for index, (side_a, side_b) in zip(group, sides, strict=True):
                    found[index] = ReferencedPair(loader.examples[index], side_a, side_b)
                on_pairs(len(group))
    for others in ranks.gathered(found):
        found |= others
    on_pairs(0)
    return [found[index] for index in range(len(loader.examples))]


@torch.no_grad()
def implicit_rewards(
    model: Tuned,
    sequences: Sequence[tuple[TokenIds, TokenIds]],
    *,
    policy_adapter: str,
    reference_adapter: str,
    beta: float,
    micro_batch_size: int,
) -> list[float]:
    """`beta (log pi - log ref)` of (prompt ids, response ids), in the order given.

    A policy that was trained by DPO says P(a preferred) = s(reward a - reward b). Both adapters
    see the same batches, so equal adapters give 0.
    """
    rewards: dict[int, float] = {}
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    for rows in ranks.share(split_by_length(lengths, micro_batch_size)):
        tokens = collate([sequences[row] for row in rows], pad_id=0).to(model.device)
        policy, reference = (
            response_logprobs(model, tokens, adapter=adapter, paired=False)
            for adapter in (policy_adapter, reference_adapter)
        )
        rewards.update(zip(rows, (beta * (policy - reference)).tolist(), strict=True))
    for others in ranks.gathered(rewards):
        rewards |= others
    return [rewards[row] for row in range(len(sequences))]


def start_loss(config: DPOConfig) -> float:
    """The loss where policy and reference agree: that of margin 0, whatever the labels."""
    match config.loss:
        case DPOLoss.sigmoid:
            return math.log(2)
        case DPOLoss.ipo:
            return 0.25 / config.beta**2
        case DPOLoss.hinge:
            return 1.0


class DPOModule(TrainedModule):
    """One policy adapter, one loss.

    Args:
        model: Base with adapters; `adapter` is active and the only trainable one.
        adapter: The policy; equal to the reference before the first step.
        config: Everything about DPO.
        total_steps: Optimizer steps of the whole training.
        stage: For messages and fault points.
    """

    def __init__(
        self,
        model: Tuned,
        *,
        adapter: str,
        config: DPOConfig,
        total_steps: int,
        stage: str,
    ) -> None:
        super().__init__(model, stage=stage)
        self.adapter = adapter
        self.config = config
        self.total_steps = total_steps

    def configure_optimizers(self) -> torch.optim.AdamW:
        """AdamW with the usual epsilon."""
        return adamw(self.parameters(), config=self.config.optimizer, eps=1e-8)

    def training_step(self, batch: list[ReferencedBatch], batch_idx: int) -> dict[str, Any]:
        """One optimizer step on one batch, given in micro-batches that ranks share."""
        total_weight = sum(micro.pairs.total_weight for micro in batch)
        if total_weight == 0:
            # Adam's momentum would move the weights without a gradient.
            return {"metrics": {"train/weight": 0.0}}
        loss = torch.zeros((), device=self.device)
        sides = [torch.zeros(5, 0, device=self.device)]
        for micro, counts in self.turns(batch):
            said = response_logprobs(
                self.model, micro.pairs.tokens, adapter=self.adapter, paired=True
            )
            logprobs_a_P, logprobs_b_P = said.chunk(2)
            part = counts * dpo_loss(
                logprobs_a_P,
                logprobs_b_P,
                micro.reference_a_P,
                micro.reference_b_P,
                prob_a_P=micro.pairs.prob_a_P,
                weight_P=micro.pairs.weight_P,
                total_weight=total_weight,
                loss=self.config.loss,
                beta=self.config.beta,
                label_smoothing=self.config.label_smoothing,
            )
            self.manual_backward(part)
            loss += part.detach()
            if counts:
                asked = [micro.reference_a_P, micro.reference_b_P, micro.pairs.prob_a_P]
                sides.append(torch.cat([said.detach().view(2, -1), torch.stack(asked)]))
        ranks.sum_over_ranks(loss)
        sides_5P = ranks.concatenated(torch.cat(sides, dim=1), dim=1)
        policy_2P, reference_2P, prob_a_P = sides_5P[:2], sides_5P[2:4], sides_5P[4]
        if batch_idx == 0:
            num_tokens = sum(micro.pairs.tokens.num_tokens for micro in batch)
            self._check_start(float((policy_2P - reference_2P).abs().sum()) / num_tokens, loss)
        optimizer = self.optimizers()
        grad_norm = apply_update(
            optimizer,
            loss,
            config=self.config.optimizer,
            stage=self.stage,
            step=batch_idx + 1,
            total_steps=self.total_steps,
        )
        metrics = {
            "train/loss": float(loss),
            "train/weight": total_weight,
            "train/grad_norm": grad_norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }
        return {
            "metrics": metrics
            | side_metrics(policy_2P, reference_2P, prob_a_P=prob_a_P, beta=self.config.beta)
        }

    def _check_start(self, gap: float, loss: Tensor) -> None:
        """Before the first update the policy is the reference: margins 0, a known loss.

        Args:
            gap: Mean |log-ratio| per token.
            loss: Of the first step.
        """
        if not gap <= MARGIN_TOLERANCE:
            raise SelfCheckError(
                f"{self.stage}: before the first step the policy must be a copy of the reference, "
                f"yet their log-probabilities differ by {gap:.3g} nats per token. They are "
                "different adapters or are not computed in the same way (dropout, another number "
                "format); nothing was learned."
            )
        expected = start_loss(self.config)
        if not abs(float(loss) - expected) <= LOSS_TOLERANCE * expected:
            raise SelfCheckError(
                f"{self.stage}: policy and reference agree, so the first loss must be "
                f"{expected:.4g}, but it is {float(loss):.4g}. The loss or the weights of the "
                "pairs are not what they should be; nothing was learned."
            )


def side_metrics(
    policy_2P: Tensor, reference_2P: Tensor, *, prob_a_P: Tensor, beta: float
) -> dict[str, float]:
    """What a step says of its pairs, under TRL's names; means over pairs, weights left out.

    The chosen side is the one with the label above 1/2. Pairs whose label is 1/2 have none: they
    are in the loss and in `train/logratio` only. That is the mean log-ratio of policy to reference
    over all responses, nats per response: responses that the reference sampled, so an estimate of
    -KL(reference || policy). A pair with equal rewards is not ranked right.

    Args:
        policy_2P: Log-probabilities of the sides a and b, (2, P).
        reference_2P: Of the reference, likewise.
        prob_a_P: Labels.
        beta: A reward is `beta` times a log-ratio.
    """
    metrics = {"train/logratio": float((policy_2P - reference_2P).mean())}
    sided_P = prob_a_P != 0.5
    if not sided_P.any():
        return metrics
    is_a_P = (prob_a_P > 0.5)[sided_P]

    def by_label(values_2P: Tensor) -> tuple[Tensor, Tensor]:
        side_a_P, side_b_P = values_2P[:, sided_P]
        return torch.where(is_a_P, side_a_P, side_b_P), torch.where(is_a_P, side_b_P, side_a_P)

    chosen_P, rejected_P = by_label(beta * (policy_2P - reference_2P))
    logp_chosen_P, logp_rejected_P = by_label(policy_2P)
    return metrics | {
        "rewards/chosen": float(chosen_P.mean()),
        "rewards/rejected": float(rejected_P.mean()),
        "rewards/margins": float((chosen_P - rejected_P).mean()),
        "rewards/accuracies": float((chosen_P > rejected_P).float().mean()),
        "logps/chosen": float(logp_chosen_P.mean()),
        "logps/rejected": float(logp_rejected_P.mean()),
    }
