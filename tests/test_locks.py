from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cai import locks
from cai.artifacts import Store
from cai.errors import UserError

KEY = {"config": {}}


def _hold(root: Path, held: object, release: object) -> None:
    store = Store(root=root)
    artifact = store.artifact("drafts", KEY)
    with store.filling(artifact) as work:
        (work.scratch / "shards").mkdir()
        (work.scratch / "shards" / "00000.ab.jsonl").write_text("x")
        held.set()
        release.wait(60)
        work.write_records([])
        store.commit(work, {"counts": {}})


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """A process that fills the artifact of KEY: its id, and what lets it finish."""
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(30)
    yield process.pid, release.set
    process.kill()
    process.join()


@contextmanager
def alarm(action: Callable[[], None], seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: action())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_who_waits_says_for_whom_and_how_far_that_is_and_then_reuses(
    tmp_path, owner, monkeypatch, caplog
):
    monkeypatch.setattr(locks, "NOTE_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "cai")
    pid, finish = owner
    store = Store(root=tmp_path)
    artifact = store.artifact("drafts", KEY)
    with alarm(finish, 1.0), store.filling(artifact):
        assert artifact.complete
    whom = f"process {pid} on {socket.gethostname()}"
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"{artifact.short}: {whom} is computing it; waiting"
    assert f"for {whom}; 1 finished shards, last wrote " in said[1]
    assert not (artifact.folder / "work").exists()


def test_the_lock_of_a_killed_owner_is_free_at_once_and_its_work_is_there(tmp_path, owner):
    pid, _ = owner
    store = Store(root=tmp_path)
    artifact = store.artifact("drafts", KEY)
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    with alarm(kill, 0.3), store.filling(artifact) as work:
        assert time.monotonic() - killed[0] < 2.0
        assert not artifact.complete
        assert [path.name for path in (work.scratch / "shards").iterdir()] == ["00000.ab.jsonl"]
        assert (work.scratch / "holder").read_text().startswith(f"process {os.getpid()} ")


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = Store(root=tmp_path)
    with (
        pytest.raises(UserError, match=r"\(its file system has no locks\).*output_dir="),
        store.filling(store.artifact("drafts", KEY)),
    ):
        pass
