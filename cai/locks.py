"""One process fills an artifact; others that need it wait, say for whom, and reuse what it made.

The lock is `flock` on `<digest>.lock` beside the artifact's folder: the kernel frees it when its
owner ends in any way, `kill -9` included, so no lock is ever stale and none has to be removed.

On NFS, Linux hands `flock` to the server, so processes of several nodes exclude each other there
too; a node that dies keeps its locks until the server's lease has run out (about 90 s with NFSv4).
Two mount options break this: `nolock` (or `local_lock=flock`) keeps locks to one node, where two
nodes may compute the same artifact at once, and Lustre without `-o flock` refuses them, which is an
error here. Whoever holds a lock says so in `work/holder`; that file is for people and decides
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cai.errors import UserError

log = logging.getLogger(__name__)

NOTE_SECONDS = 30.0
"""Between two notes of a process that waits."""
POLL_SECONDS = 0.25
HOLDER = "holder"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(path: Path, *, name: str, work: Path) -> Iterator[None]:
    """Hold the lock file `path`; another holder is waited for.

    Args:
        path: The lock file; made when it is not there, and left there.
        name: What is locked, for messages.
        work: Where the holder's unfinished work and its note about itself are.

    Raises:
        UserError: The file system cannot be written, or has no locks.
    """
    lock = FileLock(path, fallback_to_soft=False)  # an existence lock would outlive its owner
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _wait(lock, name=name, work=work)
    except OSError as error:
        without = " (its file system has no locks)" if error.errno in NO_LOCKS else ""
        raise UserError(
            f"Cannot lock {path}{without}: {error.strerror}. Choose another folder with "
            "output_dir=..."
        ) from error
    try:
        yield
    finally:
        lock.release()


def sign(work: Path) -> None:
    """Say who holds the lock, for those who wait."""
    (work / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")


def _wait(lock: FileLock, *, name: str, work: Path) -> None:
    started = time.monotonic()
    log.warning("%s: %s is computing it; waiting", name, _holder(work))
    while True:
        try:
            lock.acquire(timeout=NOTE_SECONDS, poll_interval=POLL_SECONDS)
            return
        except Timeout:
            waited = time.monotonic() - started
            log.info("%s: waited %.0f s for %s%s", name, waited, _holder(work), _progress(work))


def _holder(work: Path) -> str:
    with contextlib.suppress(OSError):
        return (work / HOLDER).read_text("utf-8")
    return "another process"


def _progress(work: Path) -> str:
    """How far the holder is; it may finish, and so delete its work, while this looks."""
    with contextlib.suppress(OSError):
        shards = len(list((work / "shards").glob("*.jsonl")))
        silent = time.time() - max(path.stat().st_mtime for path in work.rglob("*"))
        done = f"{shards} finished shards, " if shards else ""
        return f"; {done}last wrote {silent:.0f} s ago"
    return ""
