"""`hardware=slurm` against a scheduler that is made of scripts: jobs, tasks, a warning, a requeue.

`sbatch` starts the job's script as it is, `srun` in it the tasks with SLURM's variables, `sacct`
says how they are, `scontrol requeue` starts the script again. What is not here is SLURM itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
if sys.argv[1] == "requeue":
    (home / "again").touch()
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
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cai.run", *arguments, "hardware=slurm", *more),
            *("hardware.accelerator=cpu", "hardware.devices=2", "hardware.precision=fp32"),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": f"{scheduler}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
    )


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


def test_a_job_that_is_warned_goes_back_into_the_queue_and_goes_on(
    scheduler: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    process = start(scheduler, tmp_path, tiny_folder, "phase.sl_policy.num_epochs=60")
    work = None
    deadline = time.monotonic() + 120
    while work is None:  # in the middle of the fine-tune
        assert time.monotonic() < deadline, logs(tmp_path)
        work = next(tmp_path.glob("outputs/store/sl_policy/*/work/checkpoints/*.ckpt"), None)
        time.sleep(0.05)
    for pid in (scheduler / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR2)  # what SLURM sends before the end of a job's time
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said + logs(tmp_path)
    assert "requeue 42" in (scheduler / "asked").read_text()
    manifest = json.loads((the_run(tmp_path) / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert {s["stage"]: s["status"] for s in manifest["stages"]}["sl_policy"] == "continued"
