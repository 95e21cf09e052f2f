"""The one entry point: compose the settings, check them, run, and end with a readable line.

`python -m cai.run phase=rlaif constitution=medical`; `--help` shows the rest. Nothing heavier than
Hydra is imported before a job starts, so `--help`, `--cfg` and completion are quick.

Exit codes: 0 done, 1 failed, 2 wrong settings, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cai import __version__, paths
from cai.config import AuditPhaseConfig, CompareConfig, MatrixConfig, TraceConfig
from cai.errors import ConfigError, Interrupted, UserError
from cai.explain import CommandLine, explain
from cai.job import PROGRAM, Job, describe
from cai.overrides import check_overrides, is_override
from cai.schema import to_config

log = logging.getLogger("cai")

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""The user asks for tracebacks; read before `_hydra_raises` sets the variable for Hydra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A job of this process that failed."""

    job: Job
    error: Exception


_failures: list[Failure] = []
_finished: list[Job] = []
"""Jobs of this process that a comparison can read."""


def main() -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"cai {__version__} (hydra-core {hydra.__version__})")
        return 0
    if "--help" in arguments or "-h" in arguments:  # Hydra's way composes everything first: 0.5 s
        template = OmegaConf.load(paths.CONF / "hydra" / "help" / "cai.yaml").template
        print(string.Template(template).substitute())
        return 0
    _failures.clear()
    _finished.clear()
    line = CommandLine(
        flags=tuple(text for text in arguments if not is_override(text)),
        overrides=tuple(text for text in arguments if is_override(text)),
    )
    try:
        with _signals_interrupt(), _hydra_raises():
            _check(arguments, line)
            try:
                _compose_and_run()
            except Exception:  # a job failed; the others are still compared
                _compare()
                raise
            _compare()
    except (Interrupted, KeyboardInterrupt) as stop:
        again = f"{PROGRAM} {shlex.join(arguments)}".rstrip()
        _say(f"\nInterrupted; what is done is kept. Continue with: {again}")
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    except SystemExit as end:  # argparse and Hydra's own flags
        if end.code == 2:
            _say(f"Settings are key=value, without dashes. See: {PROGRAM} --help")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:  # the process boundary: everything becomes a line and a code
        if FULL_ERROR:
            raise
        return _report(error, line)
    return _summarise()


@hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")
def _compose_and_run(cfg: DictConfig) -> float | None:
    """Run one job; what it returns is what a sweeper optimises."""
    job = describe(HydraConfig.get())
    try:
        config = to_config(cfg)
        if isinstance(config.phase, AuditPhaseConfig):  # no torch: a second instead of ten
            from cai.audit import session

            session.execute(config, job)
            return None
        if isinstance(config.phase, CompareConfig):  # reads folders alone
            from cai.compare import session as compare_session

            compare_session.execute(config, job)
            return None
        if config.evaluation.responses is not None:  # rules alone
            from cai.compliance import session as compliance_session

            compliance_session.execute(config, job)
            return None
        if isinstance(config.phase, TraceConfig):  # wrong ids are refused before torch is there
            from cai.trace import session as trace_session

            trace_session.execute(config, job)
            return None
        if isinstance(config.phase, MatrixConfig):  # so are documents that cannot be read
            from cai.matrix import session as matrix_session

            matrix_session.execute(config, job)
            return None
        from cai.session import execute

        objective = execute(config, job)
        if not config.plan:
            _finished.append(job)
        return objective
    except Exception as error:  # recorded and shown at once; a multirun goes on with its other jobs
        _failures.append(Failure(job=job, error=error))
        if isinstance(error, UserError):
            log.error("Error: %s", error, exc_info=FULL_ERROR)
        else:
            log.exception("Failed: %s", type(error).__name__)
            log.error("What is done is kept. Go on with: %s", job.command)
        if job.sweep is None:
            return None  # `_summarise` has the exit code
        raise


def _check(arguments: list[str], line: CommandLine) -> None:
    """Refuse what Hydra would misread, or read and should not."""
    places = [index for index, text in enumerate(arguments) if is_override(text)]
    if places and "-sc" not in arguments and "--shell-completion" not in arguments:
        between = arguments[places[0] : places[-1]]
        if any(text.startswith("-") for text in between):
            ordered = shlex.join([*line.flags, *line.overrides])
            raise ConfigError(f"Flags go before the settings.\n  Type: {PROGRAM} {ordered}")
        check_overrides(line.overrides)


def _report(error: Exception, line: CommandLine) -> int:
    """Say what ended the whole command; a failed job has spoken for itself already."""
    if _failures:
        return _summarise()
    message = explain(error, line)
    if message is None:
        log.critical("Failed before or outside any job.", exc_info=error)
        return 1
    _say(f"Error: {message}")
    return error.exit_code if isinstance(error, UserError) else ConfigError.exit_code


def _compare() -> None:
    """End a multirun in one comparison of its runs, failed ones named; it cannot fail the runs."""
    if len(_finished) < 2 or _finished[0].sweep is None:
        return
    folder = str(Path(_finished[0].run_dir).parent).replace("'", r"\'")
    kept = [text for text in _finished[0].overrides if text.startswith(("logger", "output_dir="))]
    settings = ["phase=compare", f"runs=['{folder}']", *kept]
    _say(f"\nThe runs of this multirun side by side: {PROGRAM} {shlex.join(settings)}")
    arguments, failures = sys.argv, list(_failures)
    sys.argv = [arguments[0], *settings]
    try:
        _compose_and_run()
    finally:
        sys.argv = arguments
        _failures[:] = failures


def _summarise() -> int:
    """Return the exit code of the jobs that ran here; list the failed ones of a multirun."""
    if not _failures:
        return 0
    first = _failures[0]
    if first.job.sweep is None:
        return first.error.exit_code if isinstance(first.error, UserError) else 1
    _say(f"\n{len(_failures)} failed; the other runs of this multirun are not affected:")
    for failure in _failures:
        text = str(failure.error).splitlines() or [""]
        _say(f"  #{failure.job.job_num} {type(failure.error).__name__}: {text[0]}")
        _say(f"     {failure.job.command}")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise to us instead of printing its own message and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`; a second one acts as usual."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Interrupted(signum)

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
