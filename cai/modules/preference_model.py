"""Preference model: an adapter and a score head learn soft labels (Bai et al. 2022, sec. 4.1).

The score is read at the last token of a response, its end-of-sequence token. Both sides of a pair
are in one batch. The loss is the cross-entropy against the probability that the feedback model
gave, weighted per pair and divided by the step's number of pairs times the mean weight of all
pairs. Divided by the step's own weights, a step that drew no human comparison would count as much
as one that did, and their share of the weight (`human_frac`) would not be their share of the
gradient. Departure from Bai et al. 2022a, app. A: no preference-model pretraining, and an adapter
instead of all weights.
"""

from __future__ import annotations

from typing import Any

import torch

from cai import ranks
from cai.adapters import forward_pairs
from cai.batches import PairBatch
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.losses import preference_loss
from cai.modules.trained import TrainedModule
from cai.optimisation import adamw, apply_update
from cai.training_config import PreferenceModelConfig


class PreferenceModule(TrainedModule):
    """One adapter, one score head, one loss.

    Args:
        model: Base with adapters; `adapter` is active and the only trainable one.
        head: The score head, not calibrated yet.
        mean_weight: Of all training pairs.
        adapter: The adapter that learns.
        config: Optimizer settings.
        total_steps: Optimizer steps of the whole training.
        stage: For messages and fault points.
    """

    def __init__(
        self,
        model: Tuned,
        *,
        head: ScoreHead,
        mean_weight: float,
        adapter: str,
        config: PreferenceModelConfig,
        total_steps: int,
        stage: str,
    ) -> None:
        super().__init__(model, stage=stage)
        self.head = head
        # Differences of scores do not contain it: its gradient is rounding noise, which Adam would
        # blow up to steps of full size.
        head.linear.bias.requires_grad_(False)
        self.mean_weight = mean_weight
        self.adapter = adapter
        self.config = config
        self.total_steps = total_steps

    def configure_optimizers(self) -> torch.optim.AdamW:
        """AdamW with the usual epsilon."""
        return adamw(self.parameters(), config=self.config.optimizer, eps=1e-8)

    def training_step(self, batch: list[PairBatch], batch_idx: int) -> dict[str, Any]:
        """One optimizer step on one batch, given in micro-batches that ranks share."""
        weight = sum(micro.total_weight for micro in batch)
        if weight == 0:
            # Adam's momentum would move the weights without a gradient.
            return {"metrics": {"train/weight": 0.0}}
        num_pairs = sum(len(micro.prob_a_P) for micro in batch)
        loss = torch.zeros((), device=self.device)
        margins, labels = [torch.zeros(0, device=self.device)], []
        for micro, counts in self.turns(batch):
            tokens = micro.tokens
            hidden = forward_pairs(self.model, tokens, adapter=self.adapter)
            scores_a, scores_b = self.head(tokens.last(hidden)).chunk(2)
            part = counts * preference_loss(
                scores_a,
                scores_b,
                prob_a_P=micro.prob_a_P,
                weight_P=micro.weight_P,
                total_weight=num_pairs * self.mean_weight,
            )
            self.manual_backward(part)
            loss += part.detach()
            if counts:
                margins.append((scores_a - scores_b).detach())
                labels.append(micro.prob_a_P)
        ranks.sum_over_ranks(loss)
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
            "train/weight": weight,
            "train/grad_norm": grad_norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"],
        }
        sides = torch.stack([torch.cat(margins), torch.cat([margins[0], *labels])])
        return {"metrics": metrics | _agreement(*ranks.concatenated(sides, dim=1))}


def _agreement(margins: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """How far the preferred side is ahead, and how often; ties of the label are left out."""
    sided = labels != 0.5
    if not sided.any():
        return {}
    ahead = (margins * (labels - 0.5).sign())[sided]
    return {
        "train/margin": float(ahead.mean()),
        "train/accuracy": float((ahead > 0).float().mean()),
    }
