"""The one entry point: compose the settings, check them, run, and end with a readable line.

`python -m cai.run phase=rlaif constitution=medical`; `--help` shows the rest. Nothing heavier than
Hydra is imported before a job starts, so `--help`, `--cfg` and completion are quick.

Exit codes: 0 done, 1 failed, 2 wrong settings, 75 ended in order after SIGUSR1 or SIGUSR2 (try
again; `cai.preemption`), 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cai import __version__, launching, multirun, paths, preemption, rank_start, ranks
from cai.config import AuditPhaseConfig, CompareConfig, Config, MatrixConfig, TraceConfig
from cai.errors import ConfigError, Interrupted, RunFailedError, UserError
from cai.explain import CommandLine, explain
from cai.job import PROGRAM, Job, describe
from cai.launching import Launch, Outcome
from cai.overrides import check_overrides, is_override
from cai.preemption import Preempted
from cai.ranks import World
from cai.schema import to_config

log = logging.getLogger("cai")

OURS = "CAI_SET_HYDRA_FULL_ERROR"
"""Variable that tells a launcher's workers who set Hydra's."""
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR") == "1" and OURS not in os.environ
"""The user asks for tracebacks; read before `_hydra_raises` sets the variable for Hydra."""


_outcomes: list[Outcome] = []
"""How this command's runs ended."""


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
    world = rank_start.from_environment()
    if world is None or ranks.is_joined():
        return _command(arguments)
    if world.rank:
        return _follow(world)
    with rank_start.joined(world):
        code = _command(arguments)
        rank_start.part(code)
    return code


def _follow(world: World) -> int:
    """Be one of the other ranks of what rank 0 does."""
    with rank_start.joined(world):
        code = rank_start.follow(_compute)
        rank_start.part(code)
    return code


def _command(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    _outcomes.clear()
    multirun.forget()
    line = CommandLine(
        flags=tuple(text for text in arguments if not is_override(text)),
        overrides=tuple(text for text in arguments if is_override(text)),
    )
    try:
        with _signals_interrupt(), preemption.heeded(), _hydra_raises():
            _check(arguments, line)
            try:
                _compose_and_run()
            except Exception as error:  # a job failed; the others are still compared
                _gather(error)
                _compare()
                raise
            _gather()
            _compare()
    except (Interrupted, KeyboardInterrupt) as stop:
        if (asked := multirun.apart()) and (ids := launching.cluster_jobs(asked)):
            _say(f"\nRuns on the cluster go on. End them with: scancel {' '.join(ids)}")
        again = f"{PROGRAM} {shlex.join(arguments)}".rstrip()
        _say(f"\nInterrupted; what is done is kept. Continue with: {again}")
        if isinstance(stop, Preempted):
            preemption.requeue()
            return preemption.EXIT_CODE
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
    """Run one job; what it returns is what a sweeper optimises.

    Launchers copy this function into their workers, with a copy of whatever it names here.
    """
    return _run_where_it_belongs(cfg)


def _run_where_it_belongs(cfg: DictConfig) -> float | None:
    """Run one job, in this process or in one of its own."""
    job, launch = describe(HydraConfig.get()), launching.launch_of(HydraConfig.get())
    if not launch.apart:
        objective = _run(cfg, job, launch)
        if cfg.plan and launch.raises:
            _say("A search chooses its trials as it goes; this is the plan of the first one.")
            raise SystemExit(0)
        return objective

    world = rank_start.from_environment()  # tasks of one job are the ranks of one run

    def body() -> Outcome:
        with suppress(Exception):  # it is in the outcome
            _run(cfg, job, launch)
        return _outcomes[-1]

    def lead() -> Outcome:
        assert world is not None
        with rank_start.joined(world):
            outcome = body()
            if outcome.failure is None:
                rank_start.part(0)
            return outcome

    if world is not None and world.rank:
        _follow(world)
        return None
    outcome = launching.run_apart(lead if world is not None else body, job, launch)
    if outcome.failure is not None and launch.raises:
        raise RunFailedError(outcome.failure)
    return outcome.objective


def _run(cfg: DictConfig, job: Job, launch: Launch) -> float | None:
    """Run one job in this process and note how it ended."""
    ended = partial(
        Outcome,
        num=job.job_num,
        run_dir=job.run_dir,
        overrides=job.overrides,
        command=job.command,
    )
    try:
        config = to_config(cfg)
        if config.hardware.num_threads is None:
            config.hardware.num_threads = launch.num_threads
        objective, comparable = _phase(config, job)
    except Exception as error:  # recorded and shown at once; a multirun goes on with its other jobs
        text = (str(error).splitlines() or [""])[0]
        code = error.exit_code if isinstance(error, UserError) else 1
        failure = f"{type(error).__name__}: {text}"
        _outcomes.append(ended(comparable=False, objective=None, failure=failure, exit_code=code))
        if isinstance(error, UserError):
            log.error("Error: %s", error, exc_info=FULL_ERROR)
        else:
            log.exception("Failed: %s", type(error).__name__)
            log.error("What is done is kept. Go on with: %s", job.command)
        if launch.raises:
            raise
        return None  # `_summarise` has the exit code
    _outcomes.append(ended(comparable=comparable, objective=objective, failure=None, exit_code=0))
    return objective


def _phase(config: Config, job: Job) -> tuple[float | None, bool]:
    """Do what the settings ask for; its objective, and whether a comparison can read its folder."""
    alone = _session_without_ranks(config)
    if alone is not None:
        with ranks.apart():
            alone(config, job)
        return None, False
    comparable = not isinstance(config.phase, MatrixConfig) and not config.plan
    config.hardware = rank_start.settled(config.hardware, plan=config.plan)
    if config.plan:
        with ranks.apart():
            return _compute(config, job), comparable
    return rank_start.on_all(_compute, config, job), comparable


def _session_without_ranks(config: Config) -> Callable[[Config, Job], None] | None:
    """What reads folders and documents in this process alone; None: models compute."""
    if isinstance(config.phase, AuditPhaseConfig):  # no torch: a second instead of ten
        from cai.audit import session

        return session.execute
    if isinstance(config.phase, CompareConfig):
        from cai.compare import session as compare_session

        return compare_session.execute
    if config.evaluation.responses is not None:  # rules alone
        from cai.compliance import session as compliance_session

        return compliance_session.execute
    if isinstance(config.phase, TraceConfig):  # wrong ids are refused before torch is there
        from cai.trace import session as trace_session

        return trace_session.execute
    return None


def _compute(config: Config, job: Job) -> float | None:
    """Run a phase that computes with models, on this rank."""
    if isinstance(config.phase, MatrixConfig):  # documents are refused before torch is there
        from cai.matrix import session as matrix_session

        matrix_session.execute(config, job)
        return None
    from cai.session import execute

    return execute(config, job)


def _check(arguments: list[str], line: CommandLine) -> None:
    """Refuse what Hydra would misread, or read and should not."""
    places = [index for index, text in enumerate(arguments) if is_override(text)]
    if places and "-sc" not in arguments and "--shell-completion" not in arguments:
        between = arguments[places[0] : places[-1]]
        if any(text.startswith("-") for text in between):
            ordered = shlex.join([*line.flags, *line.overrides])
            raise ConfigError(f"Flags go before the settings.\n  Type: {PROGRAM} {ordered}")
        check_overrides(line.overrides)
        several = any(flag in ("-m", "--multirun") for flag in line.flags)
        launching.check_launcher(line.overrides, multirun=several)


def _report(error: Exception, line: CommandLine) -> int:
    """Say what ended the whole command; a failed job has spoken for itself already."""
    if _failures():
        return _summarise()
    message = explain(error, line)
    if message is None:
        log.critical("Failed before or outside any job.", exc_info=error)
        return 1
    _say(f"Error: {message}")
    return error.exit_code if isinstance(error, UserError) else ConfigError.exit_code


def _gather(error: Exception | None = None) -> None:
    """Learn how the runs ended that other processes did.

    Args:
        error: What a launcher that gave up has raised; the runs that go on are waited for.
    """
    if (asked := multirun.apart()) is None:
        return
    if error is not None and not isinstance(error, RunFailedError):
        _say(f"\nThe launcher gave up: {type(error).__name__}: {error}")
        launching.wait_for_runs(asked)
    _outcomes.extend(launching.outcomes(asked.folder))


def _failures() -> list[Outcome]:
    return [outcome for outcome in _outcomes if outcome.failure is not None]


def _compare() -> None:
    """End a multirun in one comparison of its runs, failed ones named; it cannot fail the runs."""
    done = [outcome for outcome in _outcomes if outcome.comparable]
    if len(done) < 2 or done[0].num is None:
        return
    folder = str(Path(done[0].run_dir).parent).replace("'", r"\'")
    kept = [text for text in done[0].overrides if text.startswith(("logger", "output_dir="))]
    settings = ["phase=compare", f"runs=['{folder}']", *kept]
    _say(f"\nThe runs of this multirun side by side: {PROGRAM} {shlex.join(settings)}")
    arguments, outcomes = sys.argv, list(_outcomes)
    sys.argv = [arguments[0], *settings]
    try:
        _compose_and_run()
    finally:
        sys.argv = arguments
        _outcomes[:] = outcomes


def _summarise() -> int:
    """Return the exit code of this command's runs; list the failed ones of a multirun."""
    failures = _failures()
    if not failures:
        return 0
    if failures[0].num is None:
        return failures[0].exit_code
    _say(f"\n{len(failures)} failed; the other runs of this multirun are not affected:")
    for failure in failures:
        _say(f"  #{failure.num} {failure.failure}")
        _say(f"     {failure.command}")
    if multirun.apart() is not None:
        _say("The same command again does only what is missing.")
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise to us instead of printing its own message and exiting."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ |= {"HYDRA_FULL_ERROR": "1", OURS: "1"}
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"], os.environ[OURS]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`; a second one acts as usual."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if (asked := multirun.apart()) is not None:
            launching.stop_runs(asked)
        raise Interrupted(signum)

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from cai import run  # a launcher's worker finds the job's function by this module's name

    sys.exit(run.main())
