"""SL-CAI fine-tune: an adapter learns the responses (Bai et al. 2022, sec. 3.1).

Only response tokens are learned, the end-of-sequence token included; the loss is their mean
negative log-likelihood over the whole optimizer step, whatever the micro-batches. Departure from
the paper: an adapter on a frozen instruct model (or all its weights, `model.adapter=none`) instead
of all weights of a pretrained one, and the learning rate is a setting instead of half the
pretraining rate.
"""

from __future__ import annotations

from typing import Any

import torch

from cai import ranks
from cai.adapters import forward_hidden
from cai.batches import TokenBatch
from cai.full_weights import Tuned
from cai.heads import token_logprobs
from cai.losses import sft_loss
from cai.modules.trained import TrainedModule
from cai.optimisation import adamw, apply_update
from cai.training_config import FineTuneConfig


class SFTModule(TrainedModule):
    """One adapter, one loss.

    Args:
        model: Base with adapters; `adapter` is active and the only trainable one.
        adapter: The adapter that learns.
        config: Optimizer settings.
        total_steps: Optimizer steps of the whole training.
        stage: For messages and fault points.
    """

    def __init__(
        self,
        model: Tuned,
        *,
        adapter: str,
        config: FineTuneConfig,
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

    def training_step(self, batch: list[TokenBatch], batch_idx: int) -> dict[str, Any]:
        """One optimizer step on one batch, given in micro-batches that ranks share."""
        num_tokens = sum(micro.num_tokens for micro in batch)
        metrics = {"train/tokens": float(num_tokens)}
        if num_tokens == 0:
            # Adam's momentum would move the weights without a gradient.
            return {"metrics": metrics}
        loss = torch.zeros((), device=self.device)
        for micro, counts in self.turns([micro for micro in batch if micro.num_tokens]):
            hidden = forward_hidden(self.model, micro.ids_BS, micro.mask_BS, adapter=self.adapter)
            said = token_logprobs(
                self.model,
                micro.states(hidden),
                micro.targets_N,
                adapter=self.adapter,
                temperature=1.0,
            )
            part = counts * sft_loss(said.logprob_N, num_tokens=num_tokens)
            self.manual_backward(part)
            loss += part.detach()
        ranks.sum_over_ranks(loss)
        optimizer = self.optimizers()
        metrics["train/grad_norm"] = apply_update(
            optimizer,
            loss,
            config=self.config.optimizer,
            stage=self.stage,
            step=batch_idx + 1,
            total_steps=self.total_steps,
        )
        metrics["train/loss"] = float(loss)
        metrics["train/learning_rate"] = optimizer.param_groups[0]["lr"]
        return {"metrics": metrics}
