"""Predictions for published models on many devices: which of them could be trained where.

PPO is what takes most of a run: a frozen base in bf16, roles for the policy, its reference and the
preference model, gradients and moments of the policy, one micro-batch, and a merged copy to sample
from. A fine-tune has one role. Whole copies need what memory one device has; split ones (FSDP,
Rajbhandari et al. 2020) share weights, roles and moments. Everything here is predicted; none of it
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
    """One device's memory while one role learns; PPO (several roles) has a merged copy beside it.

    Args:
        shape: The base, in bf16.
        lora: What learns; None: all weights.
        place: Where.
        roles: On the base.
        micro_batch_size: Sequences of a pass.
        length: Tokens of each.
    """
    merged = memory.merged_memory(shape, lora, place).copies // place.shares
    return (
        memory.process_memory(place)
        + memory.base_memory([shape], place)
        + memory.roles_memory(shape, lora, roles, place)
        + memory.learning_memory(shape, lora, 1, place)
        + memory.activations(shape, lora, place, rows=micro_batch_size, length=length)
        + Memory(copies=merged if roles > 1 else 0)
    )


def _place(num: int, *, sharded: bool) -> Place:
    """Devices in bf16 that compute activations again layer by layer."""
    return Place(on_cpu=False, number_bytes=2, num_devices=num, sharded=sharded, checkpointing=True)


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
    """Markdown: a row for each model, what is trained, and how weights lie; GB a device.

    Args:
        devices: Numbers of devices.
        memory_gb: What one has; what is more is marked.
        micro_batch_size: Sequences of a pass, on each device.
        length: Tokens of each.
        rank: Of the adapters, on all linear layers.
    """
    lora = LoRAConfig(rank=rank, alpha=2 * rank, target_modules=TARGETS)
    rows = [
        ["model", "trained", "stage", "weights", *map(str, devices)],
        ["---"] * 4 + ["---:"] * len(devices),
    ]
    for (name, shape), (told, trained), (stage, roles), sharded in itertools.product(
        published().items(),
        ((f"LoRA {rank}", lora), ("all weights", None)),
        (("SFT", 1), ("PPO", ROLES)),
        (False, True),
    ):
        totals = [
            training_memory(
                shape,
                trained,
                _place(num, sharded=sharded),
                roles=roles,
                micro_batch_size=micro_batch_size,
                length=length,
            ).total
            for num in devices
        ]
        cells = [_told(total, memory_gb=memory_gb) for total in totals]
        if not sharded:
            cells[1:] = ["same"] * (len(cells) - 1)
        lies = "split" if sharded else "whole"
        rows.append([name.rpartition("/")[2], told, stage, lies, *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"GB (10^9 bytes) of each device, predicted, never run: base in bf16, micro-batches of "
            f"{micro_batch_size} sequences of {length:,} tokens, activations computed again layer "
            f"by layer. In brackets: more than the {memory_gb:g} GB of a device.",
        ]
    )
