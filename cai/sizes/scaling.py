"""Predictions for published models on many devices: which of them could be trained where.

PPO is what takes most of a run: a frozen base in bf16, roles for the policy, its reference and the
preference model, gradients and moments of the policy, one micro-batch, and a merged copy to sample
from. A fine-tune has one role. Under `hardware=fsdp` weights and moments lie in parts while a
model learns, and are whole while PPO samples and scores. Everything here is predicted; none of it
was run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cai.model_config import LoRAConfig
from cai.sizes import memory
from cai.sizes.memory import Memory, Place
from cai.sizes.shape import Shape, published
from cai.sizes.text import GB, cell

DEVICES = (1, 2, 4, 8, 16, 32, 64)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROLES = 3
"""Of PPO with a shared value adapter: policy, reference, preference model."""


def training_memory(
    shape: Shape,
    lora: LoRAConfig | None,
    place: Place,
    *,
    roles: int,
    micro_batch_size: int,
    length: int,
) -> Memory:
    """One device's peak in a fine-tune, or in PPO (several roles), which samples too.

    Args:
        shape: The base, in bf16.
        lora: What learns; None: all weights.
        place: Where.
        roles: On the base.
        micro_batch_size: Sequences of a pass.
        length: Tokens of each.
    """
    held = memory.process_memory(place) + memory.base_memory([shape], place)
    update = memory.fit_memory(
        shape, lora, place, roles=roles, learning=1, rows=micro_batch_size, length=length
    )
    if roles == 1:
        return held + update
    sampled = memory.sampling_memory(
        shape, place, rows=micro_batch_size, prompt=length // 2, new=length // 2
    )
    rollouts = memory.rollout_memory(shape, lora, place, roles=roles, learning=1) + sampled
    return held + memory.merged_memory(shape, lora, place) + memory.largest([update, rollouts])


def _place(num: int) -> Place:
    """`hardware=fsdp` on as many GPUs in bf16."""
    return Place(on_cpu=False, number_bytes=2, num_devices=num, sharded=True, checkpointing=True)


def _told(total: int, *, memory_gb: float) -> str:
    """GB with two figures or more; in brackets what a device does not have."""
    size = cell(total) if total < 10 * GB else f"{total / GB:,.0f}"
    return size if total <= memory_gb * GB else f"({size})"


def scaling_text(
    *,
    devices: Sequence[int],
    memory_gb: float,
    micro_batch_size: int,
    length: int,
    rank: int,
) -> str:
    """Markdown: a row for each model, what is trained, and the stage; GB a device.

    Args:
        devices: Numbers of devices.
        memory_gb: What one has; what is more is marked.
        micro_batch_size: Sequences of a pass, on each device.
        length: Tokens of each.
        rank: Of the adapters, on all linear layers.
    """
    lora = LoRAConfig(rank=rank, alpha=2 * rank, target_modules=TARGETS)
    rows = [
        ["model", "trained", "stage", *map(str, devices)],
        ["---"] * 3 + ["---:"] * len(devices),
    ]
    for (name, shape), (told, trained), (stage, roles) in itertools.product(
        published().items(),
        ((f"LoRA {rank}", lora), ("all weights", None)),
        (("SFT", 1), ("PPO", ROLES)),
    ):
        totals = [
            training_memory(
                shape,
                trained,
                _place(num),
                roles=roles,
                micro_batch_size=micro_batch_size,
                length=length,
            ).total
            for num in devices
        ]
        cells = [_told(total, memory_gb=memory_gb) for total in totals]
        rows.append([name.rpartition("/")[2], told, stage, *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            "GB (10^9 bytes) of each device under hardware=fsdp, predicted, never run: base in "
            f"bf16, micro-batches of {micro_batch_size} sequences of {length:,} tokens, layers "
            "computed again on the way back. With whole weights (hardware=ddp) any number of "
            f"devices needs what one does. In brackets: more than a device's {memory_gb:g} GB.",
        ]
    )
