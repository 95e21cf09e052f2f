"""A warning that the machine will be taken away soon: finish what is short, keep it, end in order.

SLURM sends one when a job asks for it (`--signal=USR1@120`: 120 s before the end), and submitit
does before its time is over. The run goes on to the end of the step or shard that it is in, writes
a checkpoint, and ends with status 75, which says: try again (`EX_TEMPFAIL` of sysexits.h). A job of
SLURM is put back into the queue with `scontrol requeue`, unless submitit does that.

Ctrl-C and SIGTERM are not warnings: they end a run at once, and what was done since the last shard
or checkpoint is computed again.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cai import ranks
from cai.errors import Interrupted

log = logging.getLogger(__name__)

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
EXIT_CODE = 75

_warned: int | None = None
"""The signal that has come."""


class Preempted(Interrupted):
    """The run has ended in order after a warning."""


def warned() -> bool:
    """Whether this process has been warned."""
    return _warned is not None


def stop() -> Preempted:
    """What ends a run of which everything that is done has been kept."""
    return Preempted(_warned or signal.SIGUSR1)


def stop_between_steps() -> bool:
    """Whether a training has to end now: any rank's warning counts, and all ranks agree."""
    return any(ranks.gathered(warned()))


@contextmanager
def heeded() -> Iterator[None]:
    """Take warnings for what they are; other processes' default is to end at once."""
    global _warned
    _warned = None
    before = {number: signal.signal(number, _note) for number in WARNINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(signum: int, frame: FrameType | None) -> None:
    global _warned
    _warned = signum
    log.warning("%s: ending after this step or shard", signal.Signals(signum).name)


def requeue() -> None:
    """Put a job of SLURM back into the queue, where it would not be put there by submitit."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or "SUBMITIT_EXECUTOR" in os.environ or shutil.which("scontrol") is None:
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        log.error("scontrol requeue %s: %s", job, done.stderr.strip())
    else:
        log.warning("Job %s is in the queue again", job)
