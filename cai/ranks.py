"""The processes of one run: which one this is, and what they tell each other.

A run is one process or several that do the same steps in the same order. Each of them computes its
part of a stage's shards and of a training's micro-batches; rank 0 alone writes artifacts, reports
and logs. Nothing that is computed depends on how many there are.

Processes are started by torchrun (by `cai.rank_start` for one machine), by `srun`, or as tasks of
submitit; all of them are found by torchrun's variables (`from_environment`). Alone, everything here
is immediate and torch is not even imported.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

I = TypeVar("I")  # noqa: E741
T = TypeVar("T")

PATIENCE = datetime.timedelta(days=7)
"""Rank 0 may wait for another run's stage, and the others for it; whoever started them notices a
dead one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int
    """From 0, over all nodes."""
    size: int
    local_rank: int
    """From 0, on this node; the number of its device."""


ALONE = World(rank=0, size=1, local_rank=0)

_world = ALONE
_apart = False
_calls = 0
"""Names of shared counters so far; every rank counts the same."""


def world() -> World:
    """This process among those that do the same step; `ALONE` in work that is `apart`."""
    return ALONE if _apart else _world


def is_first() -> bool:
    """Whether this process writes, logs and reports."""
    return _world.rank == 0


def is_joined() -> bool:
    """Whether there are others."""
    return _world.size > 1


def num_processes() -> int:
    """How many there are, in work that is `apart` too."""
    return _world.size


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Work of this process alone, such as a shard: the others are doing something else."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


@contextlib.contextmanager
def joined(world: World, *, accelerator: str) -> Iterator[None]:
    """Be one of several processes; the variables of `torch.distributed` say where the others are.

    Args:
        world: This process; alone, nothing happens.
        accelerator: Lightning's; on GPUs tensors go by NCCL, everything else by gloo.
    """
    global _world
    if world.size == 1:
        yield
        return
    import torch.distributed as dist

    backend = "gloo" if accelerator == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=PATIENCE)
    _world = world
    try:
        yield
        dist.barrier()
    finally:
        _world = ALONE
        dist.destroy_process_group()


def share(items: Sequence[T]) -> list[T]:
    """This rank's part, in order; alone, all of it.

    Dealt out back and forth, so that the parts of what is sorted by its cost cost the same.
    """
    rank, size = world().rank, world().size
    turns = (rank, 2 * size - 1 - rank)
    return [item for place, item in enumerate(items) if place % (2 * size) in turns]


def barrier() -> None:
    """Wait until every rank is here."""
    if world().size > 1:
        import torch.distributed as dist

        dist.barrier()


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world().size == 1:
        return value
    import torch.distributed as dist

    sent: list[Any] = [value if world().rank == 0 else None]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world().size == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, value)
    return found


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over the ranks, in place; the same bits on every rank."""
    if world().size > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def in_parts(items: Sequence[I], size: int, make: Callable[[Sequence[I]], Sequence[T]]) -> list[T]:
    """Compute something of items, a fixed part at a time, by whoever's turn it is.

    Args:
        items: The same on every rank.
        size: Items of a part, whatever the number of ranks: texts depend on their batch.
        make: One result per item, by itself.
    """
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    mine = share(range(len(parts)))
    with apart():
        found = {number: make(parts[number]) for number in mine}
    for others in gathered(found):
        found |= others
    return [one for number in range(len(parts)) for one in found[number]]


def concatenated(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Every rank's part after one another, on every rank; parts may differ in that dimension."""
    if world().size == 1:
        return tensor
    import torch

    return torch.cat(gathered(tensor.cpu()), dim).to(tensor.device)


class Counter:
    """A number that all ranks add to; made by all of them at the same place of the program."""

    def __init__(self) -> None:
        global _calls
        self._shared = world().size > 1
        self._here = 0
        if self._shared:
            _calls += 1
            self._name = f"cai/{_calls}"

    def add(self, amount: int) -> int:
        """Add to it and return what it is then; in work that is `apart` too."""
        if not self._shared:
            self._here += amount
            return self._here
        from torch.distributed.distributed_c10d import _get_default_store

        return _get_default_store().add(self._name, amount)
