"""Runs of a multirun side by side, by Hydra's launchers, and what has to hold around each of them.

`hydra/launcher=joblib`, `submitit_local`, `submitit_slurm` and `ray` are Hydra's plugins as they
are. What they have in common is here:

* A run is a process of its own, a fork of the launcher's worker (Ray's workers are that already). A
  killed run is then a failed run and not the end of the pool, and a run's memory, random state and
  wandb end with it.
* What it says comes line by line with its number before it; its table comes in one piece.
* How it ended is in `job.json` in its folder, where the process that was asked for the multirun
  reads it: nothing else comes back from every launcher.
* It computes on its share of the processors: threads of several processes on one core wait for each
  other (measured on two cores: 0.4 tokens/s with two threads each, 12 with one).
* Ctrl-C and SIGTERM end the runs of this machine in order and at once; a run whose worker has gone
  ends by itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.conf import HydraConf
from hydra.types import RunMode

from cai import preemption
from cai.artifacts import write_document
from cai.choices import Launcher
from cai.errors import ConfigError, Interrupted
from cai.job import Job
from cai.multirun import Multirun

RECORD = "job.json"
STOP_SECONDS = 8.0
"""How long a run may take to end in order before it is killed."""
WARNING_SECONDS = 30
"""How long before its end a job of submitit is warned, where no setting says it."""
REQUEUE_SECONDS = 10.0
"""How long submitit may take to requeue a job."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a run was started."""

    launcher: Launcher
    num_threads: int | None
    """Its share of the processors; None: whatever torch takes."""
    patience: float
    """Seconds that a run has after a warning to come to a checkpoint."""
    raises: bool
    """Whether a failure is the sweeper's to see: one that optimises counts it as a trial; to the
    basic one it would be a reason to leave out the batches that follow."""

    @property
    def apart(self) -> bool:
        """Whether the multirun was asked for in another process."""
        return self.launcher is not Launcher.basic


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    num: int | None
    """Number within the multirun, from 0; None outside one."""
    run_dir: str
    overrides: tuple[str, ...]
    command: str
    """What to type to go on with it."""
    comparable: bool
    """Whether its folder is one that `phase=compare` reads."""
    objective: float | None
    failure: str | None
    """The first line of what went wrong; None when it is done."""
    exit_code: int


def launch_of(hydra: HydraConf) -> Launch:
    """How the current run was started, from `HydraConfig.get()`."""
    if hydra.mode != RunMode.MULTIRUN:
        return Launch(launcher=Launcher.basic, num_threads=None, patience=0, raises=False)
    launcher = Launcher(hydra.runtime.choices["hydra/launcher"])
    return Launch(
        launcher=launcher,
        num_threads=_num_threads(launcher, hydra.launcher),
        patience=_patience(hydra.launcher),
        raises=hydra.runtime.choices["hydra/sweeper"] != "basic",
    )


def check_launcher(overrides: tuple[str, ...], *, multirun: bool) -> None:
    """Refuse a launcher where nothing would be launched, and jobs of a cluster that only plan.

    Raises:
        ConfigError: with what to type.
    """
    given = dict(text.partition("=")[::2] for text in overrides)
    launcher = given.get("hydra/launcher", Launcher.basic)
    cluster = launcher == Launcher.submitit_slurm or given.get("hardware") == "slurm"
    if multirun and cluster and given.get("plan", "").lower() == "true":
        raise ConfigError(
            "plan=true with -m would ask the cluster for jobs that only plan.\n"
            "  Leave -m out: one run is planned here."
        )
    swept = given.get("sweeps", "null") != "null" or given.get("hydra.mode") == "MULTIRUN"
    if launcher != Launcher.basic and not (multirun or swept):
        raise ConfigError(
            f"hydra/launcher={launcher} starts the runs of a multirun, and this is one run.\n"
            "  Type -m before the settings, and several values for one of them; or leave the "
            "launcher out."
        )


def _num_threads(launcher: Launcher, settings: Any) -> int | None:
    """Threads of one run where several may share a machine."""
    if launcher is Launcher.basic:
        return None
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked):  # a person's word, or the share that joblib and Ray give
        return int(asked)
    if launcher is Launcher.submitit_slurm:
        return settings.cpus_per_task
    return settings.cpus_per_task or 1 if launcher is Launcher.submitit_local else 1


def _patience(settings: Any) -> float:
    """Time between a warning and the end of a job, but for what has to follow."""
    warned = settings.get("signal_delay_s", WARNING_SECONDS)
    return max(warned - STOP_SECONDS - REQUEUE_SECONDS, POLL_SECONDS)


def run_apart(body: Callable[[], Outcome], job: Job, launch: Launch) -> Outcome:
    """Do a run in a process of its own, and leave word of its end in its folder.

    Args:
        body: Does the run; a failure is in what it returns.
        job: The run.
        launch: Ray's worker is the process, any other forks one.
    """
    record = Path(job.run_dir) / RECORD
    if launch.launcher is Launcher.ray:
        outcome = body()
        _write(record, outcome)
        return outcome
    record.unlink(missing_ok=True)  # of the time before a requeue
    sys.stdout.flush()
    sys.stderr.flush()
    output, errors = os.pipe(), os.pipe()
    worker = os.getpid()
    child = os.fork()
    if child == 0:
        _be_run(body, record, worker=worker, output=output[1], errors=errors[1])
    os.close(output[1])
    os.close(errors[1])
    relay = _Relay(
        child,
        output=output[0],
        errors=errors[0],
        mark=f"#{job.job_num} ",
        patience=launch.patience,
    )
    status = relay.wait()
    outcome = _read(record)
    if outcome is None:
        relay.requeue()
        outcome = Outcome(
            num=job.job_num,
            run_dir=job.run_dir,
            overrides=job.overrides,
            command=job.command,
            comparable=False,
            objective=None,
            failure=_told(status),
            exit_code=1,
        )
        _write(record, outcome)
    if relay.orphaned:  # nobody takes the result, and an idle worker would stay
        os._exit(1)
    return outcome


def outcomes(folder: Path) -> list[Outcome]:
    """How the runs of a multirun ended, in their order; those that did not are missing."""
    found = [_read(path) for path in folder.glob(f"*/{RECORD}")]
    return sorted((one for one in found if one is not None), key=lambda one: one.num or 0)


def stop_runs(multirun: Multirun) -> None:
    """End the runs that this machine does for a multirun; returns when they are gone."""
    import psutil

    below = {process.pid: process for process in psutil.Process().children(recursive=True)}
    runs = [below[pid] for pid in _running(multirun.folder) if pid in below]
    for run in runs:
        run.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(runs, timeout=STOP_SECONDS)
    for run in left:
        run.kill()
    if multirun.launcher is Launcher.submitit_local:  # its own processes say something at their end
        psutil.wait_procs(below.values(), timeout=STOP_SECONDS)


def wait_for_runs(multirun: Multirun) -> None:
    """Wait for runs that are still going after their launcher gave up on another one."""
    import psutil

    below = {process.pid: process for process in psutil.Process().children(recursive=True)}
    psutil.wait_procs([below[pid] for pid in _running(multirun.folder) if pid in below])


def cluster_jobs(multirun: Multirun) -> list[str]:
    """Ids of the SLURM jobs of a multirun, as `scancel` takes them."""
    if multirun.launcher is not Launcher.submitit_slurm:
        return []
    names = [path.name for path in (multirun.folder / ".submitit").glob("*")]
    return sorted({found[1] for name in names if (found := re.fullmatch(r"(\d+)(?:_\d+)?", name))})


def _be_run(
    body: Callable[[], Outcome], record: Path, *, worker: int, output: int, errors: int
) -> NoReturn:
    """What the forked process does; it never returns to the worker's code."""
    code = 1
    try:
        os.setsid()  # Ctrl-C reaches it once, by way of the process that was asked for the multirun
        os.dup2(output, 1)
        os.dup2(errors, 2)
        here = {"pid": os.getpid(), "host": socket.gethostname()}
        write_document(record, {"running": here})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt_once)
        threading.Thread(target=_end_with, args=(worker,), daemon=True).start()
        with preemption.heeded():
            outcome = body()
        _write(record, outcome)
        code = outcome.exit_code
    except Interrupted as stop:
        code = 128 + stop.signum
    except BaseException:  # the process boundary
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupt_once(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever is in a hurry kills
    raise Interrupted(signum)


def _end_with(worker: int) -> None:
    """Stop this process when the one that started it has gone."""
    while os.getppid() == worker:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(128 + signal.SIGKILL)


class _Relay:
    """Passes on what a run says until it ends; ends it when this process must end."""

    def __init__(self, child: int, *, output: int, errors: int, mark: str, patience: float) -> None:
        self._child, self._mark, self._patience = child, mark.encode(), patience
        self._output, self._errors = output, errors
        self._table, self._line = bytearray(), bytearray()
        self._asker = os.getppid()
        self._warning: int | None = None
        self._handlers: dict[int, Any] = {}
        self.orphaned = False
        """Whether the process that started this one has gone."""

    def wait(self) -> int:
        """Its exit status, once it has ended; minus the signal's number when one ended it."""
        ours = dict.fromkeys(preemption.WARNINGS, self._note)
        ours[signal.SIGINT] = signal.SIG_IGN  # the asker's to act on
        self._handlers = {number: signal.signal(number, act) for number, act in ours.items()}
        status = None
        try:
            with selectors.DefaultSelector() as selector:
                for source in (self._output, self._errors):
                    os.set_blocking(source, False)
                    selector.register(source, selectors.EVENT_READ)
                while status is None:
                    if not selector.select(timeout=POLL_SECONDS) or not self._read():
                        time.sleep(POLL_SECONDS / 10)
                    status = self._stopped() if self._warning else self._ended()
                    if status is None and os.getppid() != self._asker and not self.orphaned:
                        self.orphaned = True
                        os.kill(self._child, signal.SIGTERM)
        finally:
            for number, act in self._handlers.items():
                signal.signal(number, act)
        self._read()
        self._say(1, self._mark + b"\n" + self._table if self._table else b"")
        self._say(2, self._mark + self._line + b"\n" if self._line else b"")
        os.close(self._output)
        os.close(self._errors)
        return status

    def _ended(self) -> int | None:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def requeue(self) -> None:
        """Let submitit requeue a job that was warned; it ends this process.

        Not before the run has ended: SLURM ends every process of a job that is requeued.
        """
        if self._warning is not None and callable(act := self._handlers[self._warning]):
            act(self._warning, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._warning = signum

    def _stopped(self) -> int:
        """Let the run end its step or shard; failing that in order; failing that at once."""
        for number, seconds in (
            (signal.SIGUSR2, self._patience),
            (signal.SIGTERM, STOP_SECONDS),
            (signal.SIGKILL, math.inf),
        ):
            os.kill(self._child, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self._read()
                if (status := self._ended()) is not None:
                    return status
                time.sleep(POLL_SECONDS / 10)
        raise AssertionError("a killed process ends")

    def _read(self) -> int:
        """Take what there is; a pipe may stay open longer than the run (wandb's service has it)."""
        table, spoken = _drained(self._output), _drained(self._errors)
        self._table += table
        *lines, rest = (bytes(self._line) + spoken).split(b"\n")
        self._line = bytearray(rest)
        self._say(2, b"".join(self._mark + line + b"\n" for line in lines))
        return len(table) + len(spoken)

    def _say(self, descriptor: int, text: bytes | bytearray) -> None:
        while text:
            text = text[os.write(descriptor, text) :]


def _drained(source: int) -> bytes:
    found = bytearray()
    while True:
        try:
            part = os.read(source, 65536)
        except BlockingIOError:
            return bytes(found)
        if not part:
            return bytes(found)
        found += part


def _told(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        why = ", as it is when memory runs out" if -status == signal.SIGKILL else ""
        return f"its process was ended by {name}{why}"
    return f"its process ended with status {status} before the run did"


def _write(record: Path, outcome: Outcome) -> None:
    write_document(record, {"ended": dataclasses.asdict(outcome)})


def _read(record: Path) -> Outcome | None:
    if not record.is_file():
        return None
    ended = json.loads(record.read_text("ascii")).get("ended")
    return Outcome(**{**ended, "overrides": tuple(ended["overrides"])}) if ended else None


def _running(folder: Path) -> list[int]:
    """Processes on this machine that do a multirun's runs."""
    documents = [json.loads(path.read_text("ascii")) for path in folder.glob(f"*/{RECORD}")]
    found = [document["running"] for document in documents if "running" in document]
    return [one["pid"] for one in found if one["host"] == socket.gethostname()]
