"""`hardware=slurm` against a scheduler that is made of scripts: jobs, tasks, a warning, a requeue.

`sbatch` starts the job's script as it is, `srun` in it the tasks with SLURM's variables, `sacct`
says how they are, `scontrol requeue` starts the script again. What is not here is SLURM itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai.checkpoints import step_of
from cai.errors import ConfigError
from tests.runs import tiny_arguments

pytest.importorskip("submitit")

SBATCH = """
import os, re, subprocess, sys
from pathlib import Path
home, script = Path(__file__).parent, sys.argv[-1]
text = Path(script).read_text()
tasks = re.search(r"--ntasks-per-node=(\\d+)", text)[1]
(home / "script").write_text(text)  # submitit moves its own
(home / "tasks").write_text(tasks)
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)  # who asks waits for them
subprocess.Popen([sys.executable, str(home / "scontrol"), "start"], start_new_session=True, **quiet)
print("Submitted batch job 42")
"""
SCONTROL = """
import os, subprocess, sys, time
from pathlib import Path
home = Path(__file__).parent
with (home / "asked").open("a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "show":
    print("localhost")
if sys.argv[1] == "requeue":  # the job is ended for it, every process of it
    (home / "again").touch()
    end = [sys.executable, str(home / "scontrol"), "end"]
    subprocess.Popen(end, start_new_session=True, stdout=subprocess.DEVNULL)
if sys.argv[1] in ("end", "warn"):
    import psutil, signal
    tasks = [psutil.Process(int(pid)) for pid in (home / "pids").read_text().split()]
    job = [one for task in tasks for one in (task, *task.children(recursive=True))]
    for one in job:
        if "scontrol" not in " ".join(one.cmdline()):
            one.send_signal(signal.SIGUSR2 if sys.argv[1] == "warn" else signal.SIGTERM)
    if sys.argv[1] == "end":
        for one in psutil.wait_procs(job, timeout=3)[1]:
            one.kill()
if sys.argv[1] == "start":
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
    (home / "again").touch()
    while (home / "again").exists():
        (home / "again").unlink()
        (home / "state").write_text("PENDING")
        time.sleep(1)
        (home / "state").write_text("RUNNING")
        job = ["bash", home / "script"]
        code = subprocess.run(job, env=own | {"SLURM_JOB_ID": "42"}).returncode
    (home / "state").write_text("FAILED" if code else "COMPLETED")
"""
SRUN = """
import os, subprocess, sys
from pathlib import Path
home = Path(__file__).parent
arguments, outputs = sys.argv[1:], {}
while arguments[0].startswith("-"):
    flag = arguments.pop(0)
    if flag in ("--output", "--error"):
        outputs[flag] = arguments.pop(0).replace("%j", "42")
num = int((home / "tasks").read_text())
tasks = []
for rank in range(num):
    names = {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(num), "SLURM_NTASKS": str(num), "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS_PER_NODE": str(num),
        "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost",
    }
    said = [open(outputs[f].replace("%t", str(rank)), "a") for f in ("--output", "--error")]
    tasks.append(
        subprocess.Popen(arguments, env=os.environ | names, stdout=said[0], stderr=said[1])
    )
(home / "pids").write_text(" ".join(str(task.pid) for task in tasks))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SACCT = """
from pathlib import Path
state = (Path(__file__).parent / "state").read_text()
print("JobID|State|NodeList\\n42|" + state + "|localhost")
"""

SLOW = """
import time
from cai import faults
fault = faults.fault

def slow(point):
    if point == "sl_policy:step": time.sleep(6)
    fault(point)

faults.fault = slow
"""
"""Read by every process at its start: steps of six seconds, as those of large models are."""


@pytest.fixture
def scheduler(tmp_path: Path) -> Path:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", SRUN),
        ("sacct", SACCT),
        ("scontrol", SCONTROL),
    ):
        script = folder / name
        script.write_text(f"#!{sys.executable}\n{text}")
        script.chmod(0o755)
    return folder


def start(scheduler: Path, folder: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [a for a in tiny_arguments(model, "sl_cai") if not a.startswith("hardware.")]
    (scheduler / "sitecustomize.py").write_text(SLOW)
    paths = {name: f"{scheduler}:{os.environ.get(name, '')}" for name in ("PATH", "PYTHONPATH")}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cai.run", *arguments, "hardware=slurm", *more),
            *("hardware.accelerator=cpu", "hardware.devices=2", "hardware.precision=fp32"),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(folder: Path, pattern: str) -> Path:
    deadline = time.monotonic() + 120
    while (found := next(folder.glob(pattern), None)) is None:
        assert time.monotonic() < deadline, logs(folder)
        time.sleep(0.05)
    return found


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.rglob("*_log.*"))


def the_run(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "sweeps" / "adhoc").glob("*/0_*/manifest.json")
    return found.parent


def test_one_command_is_one_job_whose_tasks_are_the_ranks(
    scheduler: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    process = start(scheduler, tmp_path, tiny_folder)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said + logs(tmp_path)
    assert json.loads((the_run(tmp_path) / "manifest.json").read_text())["status"] == "done"
    manifests = [
        json.loads(p.read_text()) for p in tmp_path.glob("outputs/store/*/*/manifest.json")
    ]
    assert {one["processes"] for one in manifests} == {2}


def test_a_plan_asks_for_no_job(scheduler: Path, tiny_folder: Path, tmp_path: Path) -> None:
    process = start(scheduler, tmp_path, tiny_folder, "hydra.launcher.partition=gpu", "plan=true")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Nothing was run." in said
    assert not (scheduler / "asked").exists()


def test_a_partition_that_there_is_not_is_said_in_a_line(
    scheduler: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    refusal = "sbatch: error: invalid partition specified: gpux"
    (scheduler / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}' >&2\nexit 1\n")
    process = start(scheduler, tmp_path, tiny_folder, "hydra.launcher.partition=gpux")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == ConfigError.exit_code
    assert f"Error: {refusal}\n" in said
    assert "hydra.launcher" in said
    assert "Traceback" not in said


def test_a_machine_without_slurm_is_said_in_a_line(
    scheduler: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (scheduler / "srun").unlink()
    process = start(scheduler, tmp_path, tiny_folder, "hydra.launcher.partition=gpu")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == ConfigError.exit_code
    assert "not on the PATH" in said
    assert "Traceback" not in said


def test_a_job_that_is_warned_goes_back_into_the_queue_and_goes_on(
    scheduler: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    process = start(scheduler, tmp_path, tiny_folder, "phase.sl_policy.checkpoint_every=99")
    wait_for(tmp_path, "outputs/store/sl_policy/*/work/curve.jsonl")  # in the middle of a step
    subprocess.run([scheduler / "scontrol", "warn"], check=True)  # before the end of a job's time
    saved = wait_for(tmp_path, "outputs/store/sl_policy/*/work/checkpoints/*.ckpt")
    assert step_of(saved) < 4  # none was due before the last
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said + logs(tmp_path)
    assert "requeue 42" in (scheduler / "asked").read_text()
    manifest = json.loads((the_run(tmp_path) / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert {s["stage"]: s["status"] for s in manifest["stages"]}["sl_policy"] == "continued"
