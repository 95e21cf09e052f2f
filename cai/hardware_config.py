"""Settings of what a run computes on."""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import Precision, Strategy
from cai.ranges import check, positive

ALL = -1
"""All devices of a node, as in Lightning."""


@dataclass(kw_only=True, slots=True)
class HardwareConfig:
    """What the run computes on; nothing here changes the mathematics or an artifact's digest."""

    name: str
    accelerator: str
    """Lightning's accelerator: `cpu`, `gpu` or `auto`."""
    devices: int
    """Processes on a node, one for each device, in any phase that computes with models; -1: as many
    as there are. Whatever their number, the results are the same."""
    num_nodes: int
    """Machines; above 1 torchrun, srun or hardware=slurm must start the processes."""
    num_threads: int | None
    """Torch threads of a process; null: all cores, of several processes their share, or one where
    OMP_NUM_THREADS says so."""
    strategy: Strategy
    activation_checkpointing: bool
    """Keep only the inputs of a model's layers for the backward pass, and compute them again."""
    precision: Precision
    micro_batch_size: int
    """Sequences per forward and backward pass in training; gradients are accumulated."""
    check_memory: bool
    """Refuse what by its predicted size has no place in a device's memory; false: try it."""
    memory_gb: float | None
    """Memory of a device in GB (10^9 bytes), e.g. to plan for another machine; null: what this one
    has."""
    teraflops: float
    """What a device does with a model's products in practice, 10^12 operations a second, on a CPU
    each thread: a plan's times come from it until the store has a run to learn from."""
    gb_per_second: float
    """How fast a device reads its memory, for the same purpose: it limits sampling."""

    def __post_init__(self) -> None:
        positive(self, "micro_batch_size", "teraflops", "gb_per_second")
        if self.memory_gb is not None:
            positive(self, "memory_gb")
        check(
            self.devices == ALL or self.devices > 0,
            f"devices must be a number above 0, or {ALL} for all there are, not {self.devices}",
        )
        positive(self, "num_nodes")
