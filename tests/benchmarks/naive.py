"""The same work by transformers alone, as it is usually written: what the tables compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

Prompts = Sequence[Sequence[int]]
BATCH = 8
"""Prompts per forward pass."""
PAD = 0
"""Masked, so any token will do."""


def _padded(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _batches(prompts: Prompts) -> list[Prompts]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]


@torch.inference_mode()
def generate(model: PreTrainedModel, prompts: Prompts, *, num: int) -> None:
    """`generate`, greedy, exactly `num` new tokens, all prompts in one batch."""
    ids, mask = _padded(prompts)
    model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=num, min_new_tokens=num
    )


def generate_in_batches(model: PreTrainedModel, prompts: Prompts, *, num: int) -> None:
    """`generate`, 8 prompts at a time."""
    for batch in _batches(prompts):
        generate(model, batch, num=num)


def generate_one_by_one(model: PreTrainedModel, prompts: Prompts, *, num: int) -> None:
    """`generate`, prompt by prompt."""
    for prompt in prompts:
        generate(model, [prompt], num=num)


@torch.inference_mode()
def last_logits(model: PreTrainedModel, prompts: Prompts) -> None:
    """Logits after each prompt, 8 prompts per forward pass."""
    for batch in _batches(prompts):
        ids, mask = _padded(batch)
        model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)


@torch.inference_mode()
def all_logits(model: PreTrainedModel, prompts: Prompts) -> None:
    """Logits after every token, 8 prompts per forward pass."""
    for batch in _batches(prompts):
        ids, mask = _padded(batch)
        model(ids, attention_mask=mask, use_cache=False)
