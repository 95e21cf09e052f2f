"""How a run comes to have several processes, and how it ends when one of them fails.

With `hardware.devices` above 1 the process that was asked for a run starts that many ranks by
torchrun's own agent, hands them the settings and waits: it computes nothing. Processes that
somebody else has started (`torchrun -m cai.run`, `srun`, tasks of submitit) join by themselves:
rank 0 composes the settings, and the others follow it from run to run.

An error on any rank ends all of them within seconds, and the message is that of the rank that
failed first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import logging.config
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cai import preemption, ranks
from cai.artifacts import write_json
from cai.choices import EngineName
from cai.config import Config
from cai.errors import ConfigError, Interrupted, UserError
from cai.hardware_config import ALL, HardwareConfig
from cai.job import Job
from cai.model_config import ModelConfig
from cai.ranks import World
from cai.roles import roles

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

log = logging.getLogger(__name__)

STOP_SECONDS = 8
"""How long a rank may take to end in order before it is killed."""
SECONDS_BEHIND = 2
"""How long a rank that fails stays, so that torchrun's agent sees first one that was killed."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
Run = Callable[[Config, Job], float | None]
"""Does one run on one rank."""


def from_environment(variables: Mapping[str, str] = os.environ) -> World | None:
    """This process among those that torchrun, srun or submitit has started; None: it is alone."""
    for rank, size, local in (
        TORCHRUN,
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    ):
        if int(variables.get(size, "1")) > 1 and rank in variables:
            return World(
                rank=int(variables[rank]),
                size=int(variables[size]),
                local_rank=int(variables[local]),
            )
    return None


@contextmanager
def joined(world: World) -> Iterator[None]:
    """Be one of the processes that were found, under torchrun's names whoever started them."""
    import torch

    _tell_where(world)
    with ranks.joined(world, accelerator="gpu" if torch.cuda.is_available() else "cpu"):
        yield


def _tell_where(world: World) -> None:
    """Set the variables of `torch.distributed`, where nobody has."""
    for name, value in zip(TORCHRUN, (world.rank, world.size, world.local_rank), strict=True):
        os.environ[name] = str(value)
    os.environ.setdefault("TORCHELASTIC_RUN_ID", "cai")  # Lightning's sign of torchrun
    if "MASTER_ADDR" in os.environ:
        return
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        found = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": found.main_address, "MASTER_PORT": str(found.main_port)}
        return
    number = int(os.environ.get("SUBMITIT_LOCAL_JOB_ID", "0").split("_")[0])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + number % 20000)}


_in_run = False
"""Whether the other ranks are in a run that has not come to its end."""


def on_all(run: Run, config: Config, job: Job) -> float | None:
    """Do a run on all its ranks: on those that are there, or on those that are started for it.

    Raises:
        UserError: what a rank has raised, or when the processes are not those of the settings.
    """
    if not ranks.is_joined():
        _check_nodes(config.hardware)
        _check_engines(config)
        return run(config, job) if config.hardware.devices == 1 else start(run, config, job)
    _check_world(config.hardware)
    _check_engines(config)
    global _in_run
    if _in_run:
        raise UserError(
            "an earlier run failed on these processes, and the other ranks have ended with it. "
            "Start the same command again: what is done is kept"
        )
    _in_run = True
    ranks.broadcast((config, job))
    objective = run(config, job)
    _in_run = False
    return objective


def follow(run: Run) -> int:
    """Do the runs that rank 0 begins, until it says that there is none; the exit code."""
    global _in_run
    _speak_of_errors_only()
    with preemption.heeded():
        while (begun := ranks.broadcast(None)) is not None:
            _in_run = True
            try:
                run(*begun)
            except preemption.Preempted:
                return preemption.EXIT_CODE
            except UserError as error:
                log.error("%s: %s", _name(), error)
                return error.exit_code
            except Exception:
                log.exception("%s failed", _name())
                return 1
            _in_run = False
    return 0


def part(code: int) -> None:
    """End what the processes do together.

    Raises:
        SystemExit: in the middle of a run, where the others would be waited for in vain.
    """
    if _in_run:
        raise SystemExit(code)
    if ranks.is_first():
        ranks.broadcast(None)


def _check_world(hardware: HardwareConfig) -> None:
    """See that as many processes were started as the settings say.

    Raises:
        ConfigError: with what to type.
    """
    size, wanted = ranks.world().size, hardware.devices * hardware.num_nodes
    if size != wanted:
        raise ConfigError(
            f"{size} processes were started, and hardware={hardware.name} says "
            f"{hardware.devices} on each of {hardware.num_nodes} nodes.\n"
            f"  Type: hardware.devices={size // hardware.num_nodes}, or start {wanted}."
        )


def _check_nodes(hardware: HardwareConfig) -> None:
    if hardware.num_nodes > 1:
        raise ConfigError(
            f"hardware.num_nodes={hardware.num_nodes}: processes on several machines are started "
            "by torchrun, srun or hardware=slurm, and this one was started alone.\n"
            f"  Type: torchrun --nnodes={hardware.num_nodes} "
            f"--nproc-per-node={hardware.devices} ... -m cai.run ..."
        )


def _check_engines(config: Config) -> None:
    """Refuse an engine that takes the devices for itself, in every process."""
    if config.hardware.devices * config.hardware.num_nodes == 1:
        return
    for role, one in roles(config).items():
        if isinstance(one, ModelConfig) and one.engine.name is EngineName.vllm:
            raise ConfigError(
                f"{role}: engine=vllm in this process takes its devices for itself, and "
                f"hardware={config.hardware.name} starts {config.hardware.devices} processes.\n"
                "  Type: engine=endpoint for it (python -m cai.engines.vllm_server start ...), or "
                "hardware.devices=1"
            )


def start(run: Run, config: Config, job: Job) -> float | None:
    """Start the ranks of one run on this machine and wait for them.

    Args:
        run: What each does; found by its name in a new process.
        config: Settings, `hardware.devices` of them.
        job: The run.

    Returns:
        What rank 0's `run` returned.

    Raises:
        UserError: what the rank that failed first has raised, or how it ended.
        Interrupted: a signal has come.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("distributed.elastic", "distributed.launcher", "multiprocessing.spawn"):
        logging.getLogger(f"torch.{name}").setLevel(logging.CRITICAL)  # they say less than we do
    before = {number: signal.getsignal(number) for number in (*_HANDLED, *preemption.WARNINGS)}
    for number in preemption.WARNINGS:
        signal.signal(number, _pass_on)
    with tempfile.TemporaryDirectory(prefix="cai-ranks-") as folder:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.hardware.devices,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method="spawn",
            shutdown_timeout=STOP_SECONDS,
        )
        logs = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
        try:
            found = elastic_launch(settings, _be_rank)(run, config, job, logs, folder)
        except ChildFailedError as error:
            raise _first_failure(Path(folder), error, config.hardware.devices) from None
        except SignalException as stop:
            raise Interrupted(int(stop.sigval)) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return found[0]


_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that torchrun's agent takes for itself."""


def _pass_on(signum: int, frame: FrameType | None) -> None:
    """Send a signal to the ranks, which the agent keeps to itself."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in child.cmdline()):
                child.send_signal(signum)


def _be_rank(run: Run, config: Config, job: Job, logs: Any, folder: str) -> float | None:
    """One rank, in a process of its own."""
    world = from_environment()
    assert world is not None, "torchrun's agent says who is who"
    if world.rank == 0:
        logging.config.dictConfig(logs)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt_once)
    else:
        _speak_of_errors_only()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the agent sends what ends it
    word = Path(folder) / f"{world.rank}.json"
    try:
        with preemption.heeded(), joined(world):
            try:
                return run(config, job)
            except BaseException as error:
                _leave_word(word, error)  # before the others notice, and fail of it
                raise
    except BaseException as error:
        if not word.is_file():
            _leave_word(word, error)
        sys.stdout.flush()
        sys.stderr.flush()
        if not isinstance(error, UserError | Interrupted):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(SECONDS_BEHIND)  # a lost connection may be due to a rank that was killed
        os._exit(1)  # the agent's SIGTERM may come at any point of an orderly end


def _interrupt_once(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the agent kills whoever takes too long
    raise Interrupted(signum)


def _speak_of_errors_only() -> None:
    logging.basicConfig(format="%(message)s", level=logging.ERROR, force=True)
    logging.getLogger("cai").setLevel(logging.ERROR)


def _name() -> str:
    return f"rank {ranks.world().rank} of {ranks.world().size}"


def _leave_word(path: Path, error: BaseException) -> None:
    """What a rank has to say about its end, for the process that started it."""
    said = {
        "at": time.monotonic(),
        "message": str(error),
        "kind": type(error).__name__,
        "exit_code": error.exit_code if isinstance(error, UserError) else None,
        "signal": error.signum if isinstance(error, Interrupted) else None,
        "preempted": isinstance(error, preemption.Preempted),
        "traceback": traceback.format_exc(),
    }
    write_json(path, said)


def _first_failure(folder: Path, error: ChildFailedError, size: int) -> BaseException:
    """What ended a run: a rank that was killed, or else the first that said something."""
    silent = {
        rank: failure.exitcode
        for rank, failure in error.failures.items()
        if failure.exitcode < 0 and not (folder / f"{rank}.json").is_file()
    }
    for rank, code in silent.items():
        name = signal.Signals(-code).name
        why = ", as it is when memory runs out" if -code == signal.SIGKILL else ""
        return UserError(
            f"rank {rank} of {size} was ended by {name}{why}, and the others with it. What is "
            "done is kept."
        )
    told = {int(path.stem): json.loads(path.read_bytes()) for path in folder.glob("*.json")}
    ends = sorted(told.items(), key=lambda one: one[1]["at"])
    if ends and ends[0][1]["preempted"]:
        return preemption.Preempted(ends[0][1]["signal"])
    failed = [(rank, said) for rank, said in ends if said["signal"] is None]
    if not failed:
        return UserError(f"the {size} processes of the run ended before it was done")
    rank, said = failed[0]
    if said["exit_code"] is not None:
        kind = ConfigError if said["exit_code"] == ConfigError.exit_code else UserError
        return kind(said["message"])
    log.error("rank %s of %s failed:\n%s", rank, size, said["traceback"])
    return UserError(
        f"{said['kind']} on rank {rank} of {size}: {said['message']}\nWhat is done is kept."
    )


def settled(hardware: HardwareConfig, *, plan: bool) -> HardwareConfig:
    """The settings with numbers for what they leave open, on this machine.

    Args:
        hardware: As it was typed.
        plan: Whether nothing is computed; a plan may be for another machine.

    Raises:
        ConfigError: when there are fewer devices than are asked for.
    """
    cores = _cores()
    if hardware.accelerator == "cpu":
        there, what = cores, "processors"
    else:
        import torch

        there, what = torch.cuda.device_count(), "GPUs"
        if hardware.accelerator == "auto" and not there:
            there, what = cores, "processors"
    devices = there if hardware.devices == ALL else hardware.devices
    tasks = what == "processors" and ranks.is_joined()  # each may be bound to its own
    if devices < 1 or (devices > there and not plan and not tasks):
        other = f"hardware.devices={there}" if there else "hardware=cpu"
        raise ConfigError(
            f"hardware.devices={hardware.devices}: this machine has {there} {what}.\n"
            f"  Type: {'hardware.devices=NUMBER' if plan else other}"
        )
    num_threads = hardware.num_threads
    if devices > 1 and num_threads is None:
        num_threads = max(1, cores // devices)
    return dataclasses.replace(hardware, devices=devices, num_threads=num_threads)


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
