"""Several joined processes within a test: forked, so that imports are paid once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from cai import ranks

T = TypeVar("T")

GRACE_SECONDS = 0.3
"""For the others to say what went wrong, when one has failed."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one of the processes ended."""

    code: int | None
    """Exit status; minus the signal's number when a signal ended it."""
    value: Any
    """What the body returned; None when it did not."""
    error: str | None
    """The traceback of what it raised."""


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _be(
    world: ranks.World, port: int, accelerator: str, body: Callable[[], Any], said: Connection
) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
    }
    torch.set_num_threads(1)
    try:
        with ranks.joined(world, accelerator=accelerator):
            value = body()
        said.send_bytes(pickle.dumps((value, None)))  # torch's own way needs the sender alive
    except BaseException:
        said.send_bytes(pickle.dumps((None, traceback.format_exc())))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def ended(
    size: int,
    body: Callable[[], Any],
    *,
    seconds: float = 90,
    together: bool = True,
    accelerator: str = "cpu",
) -> list[Ended]:
    """Run a body on each of `size` ranks; when one fails the others are ended, as by a launcher.

    Args:
        size: 1 runs it alone, in a child too.
        body: Returns what can be pickled.
        seconds: After which all that still run are killed.
        together: False: each is alone and does all of it.
        accelerator: Lightning's.
    """
    port, deadline = _free_port(), time.monotonic() + seconds
    pipes = [_FORK.Pipe(duplex=False) for _ in range(size)]
    worlds = [
        ranks.World(rank=rank, size=size, local_rank=rank) if together else ranks.ALONE
        for rank in range(size)
    ]
    children = [
        _FORK.Process(target=_be, args=(world, port, accelerator, body, said), daemon=True)
        for world, (_, said) in zip(worlds, pipes, strict=True)
    ]
    for child in children:
        child.start()
    found: dict[int, tuple[Any, str | None]] = {}
    while any(child.is_alive() for child in children):
        heard = [pipe for rank, (pipe, _) in enumerate(pipes) if rank not in found]
        wait([*heard, *(child.sentinel for child in children if child.is_alive())], timeout=1)
        _hear(pipes, found)
        if any(child.exitcode for child in children) or time.monotonic() > deadline:
            time.sleep(GRACE_SECONDS)
            for child in children:
                child.kill()
            break
    for child in children:
        child.join()
    _hear(pipes, found)
    told = [found.get(rank, (None, None)) for rank in range(size)]
    return [
        Ended(code=child.exitcode, value=value, error=error)
        for child, (value, error) in zip(children, told, strict=True)
    ]


def _hear(pipes: list[tuple[Connection, Connection]], found: dict[int, Any]) -> None:
    for rank, (heard, _) in enumerate(pipes):
        if rank not in found and heard.poll():
            found[rank] = pickle.loads(heard.recv_bytes())


def on_ranks(
    size: int,
    body: Callable[[], T],
    *,
    seconds: float = 90,
    together: bool = True,
    accelerator: str = "cpu",
) -> list[T]:
    """What a body returns on each of `size` ranks (see `ended`); an error on any is one here."""
    found = ended(size, body, seconds=seconds, together=together, accelerator=accelerator)
    for rank, one in enumerate(found):
        assert one.error is None, f"rank {rank} of {size}:\n{one.error}"
    assert all(one.code == 0 for one in found), [one.code for one in found]
    return [one.value for one in found]
