"""Several processes for one run: started by us, by torchrun or as tasks, and ended together.

The stand-in for the work is a `sitecustomize.py`, which every Python process reads at its start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cai import rank_start
from cai.errors import ConfigError
from cai.rank_start import from_environment, settled
from cai.ranks import World
from tests import tiny

STAND_IN = """
import os, signal, sys, time, types
from pathlib import Path

def execute(config, job):
    import torch
    from cai import ranks
    from cai.errors import UserError
    rank, seed = ranks.world().rank, config.seed
    folder = Path(job.run_dir)
    told = f"{ranks.world().size} {config.hardware.num_threads} {ranks.gathered(rank)}"
    (folder / f"rank-{rank}-{seed}").write_text(told)
    if rank == 1:
        if seed == 11: raise UserError("out of luck: seed=1")
        if seed == 12: os.kill(os.getpid(), signal.SIGKILL)
        if seed == 13: raise RuntimeError("boom")
    (folder / f"waiting-{rank}").touch()
    if seed == 14: time.sleep(60)
    ranks.barrier()
    if rank == 0: print("the table", seed)
    return float(seed)

module = types.ModuleType("cai.session")
module.execute = execute
sys.modules["cai.session"] = module
"""
US = ("-m", "cai.run")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *US)


def start(
    folder: Path, *arguments: str, by: tuple[str, ...] = US, **environment: str
) -> subprocess.Popen[str]:
    """The command line in a session of its own; the run folder's name is not known before."""
    code = folder / "code"
    code.mkdir(exist_ok=True)
    (code / "sitecustomize.py").write_text(STAND_IN)
    known = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, *by, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=known | {"PYTHONPATH": str(code), "TMPDIR": str(folder)} | environment,
    )


def left(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of its session that are still there after a moment: multiprocessing's own end
    when they notice that theirs has gone."""
    found = [p for p in psutil.process_iter() if _session(p.pid) == process.pid]
    return psutil.wait_procs(found, timeout=3)[1]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def wait_for(folder: Path, name: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not list((folder / "outputs").rglob(name)):
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.05)


def test_a_run_has_as_many_processes_as_devices_and_one_table(tmp_path: Path) -> None:
    process = start(tmp_path, "hardware=cpu_ddp", "seed=3")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("the table 3") == 1
    said = {path.name: path.read_text() for path in tmp_path.rglob("rank-*")}
    assert said == {"rank-0-3": "2 1 [0, 1]", "rank-1-3": "2 1 [0, 1]"}
    assert "Traceback" not in err


def test_a_multirun_goes_on_after_a_rank_failed(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "hardware=cpu_ddp", "seed=11,3")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert err.count("Error: out of luck: seed=1\n") == 2  # as it fails, and in the list at the end
    assert "the table 3" in out
    assert "1 failed" in err


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        (11, "Error: out of luck: seed=1\n"),
        (12, "Error: rank 1 of 2 was ended by SIGKILL, as it is when memory runs out"),
        (13, "Error: RuntimeError on rank 1 of 2: boom"),
    ],
)
def test_an_error_on_one_rank_ends_all_of_them_at_once(
    tmp_path: Path, seed: int, said: str
) -> None:
    process = start(tmp_path, "hardware=cpu_ddp", f"seed={seed}")
    wait_for(tmp_path, f"rank-1-{seed}")
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < rank_start.STOP_SECONDS + 7
    assert process.returncode == 1
    assert err.count(said) == 1, err
    assert ("Traceback" in err) == (seed == 13)
    assert left(process) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_every_rank(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, "hardware=cpu_ddp", "seed=14")
    wait_for(tmp_path, "waiting-1")
    if number is signal.SIGINT:  # a terminal's goes to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Continue with: python -m cai.run hardware=cpu_ddp seed=14" in err
    assert "Traceback" not in err
    assert left(process) == []


def test_torchrun_starts_the_ranks_of_every_run_of_a_multirun(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "hardware=cpu_ddp", "seed=3,4", by=TORCHRUN)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    said = {path.name for path in tmp_path.rglob("rank-*")}
    assert said == {"rank-0-3", "rank-1-3", "rank-0-4", "rank-1-4"}
    assert [out.count(f"the table {seed}") for seed in (3, 4)] == [1, 1]
    assert len(list((tmp_path / "outputs" / "sweeps").glob("*/*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hardware=cpu",), "2 processes were started, and hardware=cpu says 1"),
        (("hardware=cpu_ddp", "seed=11"), "rank 1 of 2: out of luck: seed=1"),
        (("hardware=cpu_ddp", "phase=nothing"), "nothing"),
    ],
)
def test_torchrun_ends_when_a_rank_fails(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    process = start(tmp_path, *arguments, by=TORCHRUN)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in err
    assert left(process) == []


def test_ranks_are_found_by_whoever_started_them() -> None:
    assert from_environment({}) is None
    assert from_environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is None
    expected = World(rank=5, size=8, local_rank=1)
    assert expected == from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert expected == from_environment(
        {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    )
    assert expected == from_environment(
        {
            "SUBMITIT_LOCAL_GLOBALID": "5",
            "SUBMITIT_LOCAL_NTASKS": "8",
            "SUBMITIT_LOCAL_LOCALID": "1",
        }
    )
    # A batch script has the variables of its allocation, but is one process.
    assert from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


def test_more_devices_than_there_are_is_refused() -> None:
    hardware = tiny.hardware()
    hardware.devices = 999
    with pytest.raises(ConfigError, match=r"hardware.devices=999: this machine has \d+ processors"):
        settled(hardware, plan=False)
    assert settled(hardware, plan=True).devices == 999
    hardware.devices = -1
    assert settled(hardware, plan=False).devices == len(os.sched_getaffinity(0))
    hardware.accelerator = "gpu"
    with pytest.raises(ConfigError, match="0 GPUs"):
        settled(hardware, plan=False)


def test_several_machines_need_somebody_who_starts_the_processes(tmp_path: Path) -> None:
    process = start(tmp_path, "hardware=cpu_ddp", "hardware.num_nodes=2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Type: torchrun --nnodes=2 --nproc-per-node=2" in err
