"""Runs side by side: joblib and submitit as they are, with a stand-in for the work and without.

The stand-in is a `sitecustomize.py`, which every Python process of a launcher reads at its start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from cai import multirun, run
from cai.choices import Launcher
from cai.errors import ConfigError
from cai.launching import check_launcher, cluster_jobs
from tests.runs import tiny_arguments

pytest.importorskip("joblib")
pytest.importorskip("submitit")

STAND_IN = """
import os, signal, sys, time, types
from pathlib import Path

def execute(config, job):
    from cai.errors import Interrupted, UserError
    run_dir = Path(job.run_dir)
    print(f"working on {config.seed}", file=sys.stderr)
    if config.seed == 11: raise UserError("out of luck: seed=1")
    if config.seed == 12: os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 14:
        (run_dir / "started").touch()
        try:
            time.sleep(60)
        except Interrupted:
            (run_dir / "stopped in order").touch()
            raise
    (run_dir / "threads").write_text(f"{os.getpid()} {config.hardware.num_threads}")
    print("table of", config.seed)
    print("end of", config.seed)
    return float(config.seed)

module = types.ModuleType("cai.session")
module.execute = execute
sys.modules["cai.session"] = module
"""
LOCAL = [Launcher.joblib.value, Launcher.submitit_local.value]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    known = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "cai.run", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=known | {"TMPDIR": str(folder)} | environment,
    )


def stood_in(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    code = folder / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(STAND_IN)
    return start(folder, *arguments, PYTHONPATH=str(code))


def run_dirs(folder: Path) -> list[Path]:
    """Runs of the newest multirun, in order."""
    newest = max((folder / "outputs/sweeps/adhoc").iterdir(), key=lambda path: path.stat().st_mtime)
    return sorted(path for path in newest.iterdir() if path.name[0].isdigit())


@pytest.mark.parametrize("launcher", LOCAL)
def test_killed_and_failed_runs_do_not_take_the_others_down(tmp_path, launcher):
    few = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = stood_in(tmp_path, "-m", f"hydra/launcher={launcher}", *few, "seed=12,11,2,3")
    output, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "2 failed; the other runs of this multirun are not affected:" in said
    assert (
        "  #0 its process was ended by SIGKILL, as it is when memory runs out\n"
        "     python -m cai.run seed=12\n"
        "  #1 UserError: out of luck: seed=1\n"
        "     python -m cai.run seed=11\n"
        "The same command again does only what is missing.\n"
    ) in said
    runs = run_dirs(tmp_path)
    assert [path.name for path in runs] == ["0_seed=12", "1_seed=11", "2_seed=2", "3_seed=3"]
    assert f"The runs of this multirun side by side: {run.PROGRAM} phase=compare" in said
    workers = [(path / "threads").read_text().split() for path in runs[2:]]
    assert len({pid for pid, _ in workers}) == 2
    assert {threads for _, threads in workers} == {"1"}
    if launcher == "joblib":
        assert "\n#2 working on 2\n" in said
        assert "#3 \ntable of 3\nend of 3\n" in output
    else:
        logs = "".join(path.read_text() for path in runs[0].parent.glob(".submitit/*/*_log.err"))
        assert "#2 working on 2\n" in logs


@pytest.mark.parametrize("launcher", LOCAL)
@pytest.mark.parametrize(
    ("signum", "whom"), [(signal.SIGINT, "everyone"), (signal.SIGTERM, "the command")]
)
def test_a_signal_ends_all_runs_within_seconds_and_in_order(tmp_path, launcher, signum, whom):
    arguments = ["-m", f"hydra/launcher={launcher}", "seed=14,14"]
    process = stood_in(tmp_path, *arguments)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("outputs/sweeps/adhoc/*/*/started"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    began = time.monotonic()
    if whom == "the command":
        process.send_signal(signum)
    else:
        os.killpg(process.pid, signum)  # what a terminal does
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 128 + signum
    assert said.endswith(
        f"Interrupted; what is done is kept. Continue with: {run.PROGRAM} {' '.join(arguments)}\n"
    )
    runs = run_dirs(tmp_path)
    assert [path.joinpath("stopped in order").is_file() for path in runs] == [True, True]


def test_a_run_ends_when_everything_above_it_was_killed(tmp_path):
    process = stood_in(tmp_path, "-m", "hydra/launcher=joblib", "seed=14,14")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("outputs/sweeps/adhoc/*/*/started"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=30)  # until the last process has closed its output
    assert all(path.joinpath("stopped in order").is_file() for path in run_dirs(tmp_path))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_folder) -> tuple[Path, list[str], list[str]]:
    """Two runs that share most stages: under joblib, where the one that makes the drafts is killed
    with their lock in hand, and the same command under submitit.
    """
    folder = tmp_path_factory.mktemp("shared")
    settings = [
        *tiny_arguments(tiny_folder, "sl_cai"),
        "logger=none",
        "phase.sl_policy.optimizer.learning_rate=0.001,0.002",
    ]
    settings.remove("hardware.num_threads=1")
    said = []
    for launcher, fault in (("joblib", "drafts:done=1:kill"), ("submitit_local", "")):
        process = start(folder, "-m", f"hydra/launcher={launcher}", *settings, CAI_FAULT=fault)
        output, complaints = process.communicate(timeout=600)
        said.append(f"{output}\n{complaints}\ncode {process.returncode}")
    manifests = folder.glob("outputs/sweeps/adhoc/*/*/manifest.json")
    return folder, said, sorted(map(str, manifests))


def test_two_runs_that_need_one_stage_compute_it_once_though_its_owner_is_killed(shared):
    folder, said, manifests = shared
    assert said[0].endswith("code 1")
    assert "1 failed; the other runs of this multirun are not affected" in said[0]
    assert "its process was ended by SIGKILL" in said[0]
    assert said[1].endswith("code 0")
    computed = Counter(
        stage["digest"]
        for path in manifests
        for stage in json.loads(Path(path).read_text())["stages"]
        if stage["status"] != "reused"
    )
    made = {
        path.parent.name: path.parent for path in folder.glob("outputs/store/*/*/manifest.json")
    }
    drafts = {digest for digest, path in made.items() if path.parent.name == "drafts"}
    assert len(drafts) == 1
    assert set(computed) == set(made) - drafts - _prompts(made)
    assert set(computed.values()) == {1}


def _prompts(made: dict[str, Path]) -> set[str]:
    """Made before the drafts, maybe by the run that was killed and so left no manifest."""
    return {digest for digest, path in made.items() if path.parent.name == "prompts"}


def test_the_same_command_again_does_only_what_is_missing(shared):
    _, _, manifests = shared
    first, *again = sorted(
        (Path(path) for path in manifests), key=lambda path: path.stat().st_mtime
    )
    done = json.loads(first.read_text())
    same = next(path for path in again if path.parent.name == first.parent.name)
    repeated = json.loads(same.read_text())["stages"]
    assert [stage["digest"] for stage in repeated] == [stage["digest"] for stage in done["stages"]]
    assert {stage["status"] for stage in repeated} == {"reused"}
    missing = json.loads(next(path for path in again if path != same).read_text())["stages"]
    statuses = {stage["stage"]: stage["status"] for stage in missing}
    assert statuses["drafts"] == statuses["revisions"] == "reused"
    assert statuses["sl_policy"] == "computed"
    assert {json.loads(Path(path).read_text())["threads"] for path in manifests} == {1}


def test_the_runs_of_other_processes_are_compared_at_the_end(shared):
    folder, said, _ = shared
    (page,) = folder.glob("outputs/compare/*/*/compare.json")
    assert len(json.loads(page.read_text())["runs"]) == 2
    assert "phase=compare" not in said[0]
    assert "phase=compare" in said[1]


def refused(monkeypatch, capsys, folder: Path, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["cai", *arguments])
    monkeypatch.chdir(folder)
    assert run.main() == 2
    assert not list(folder.iterdir())
    return capsys.readouterr().err


def test_a_launcher_without_a_multirun_is_refused(monkeypatch, capsys, tmp_path):
    said = refused(monkeypatch, capsys, tmp_path, "hydra/launcher=joblib", "seed=1")
    assert "hydra/launcher=joblib starts the runs of a multirun, and this is one run" in said
    assert "-m before the settings" in said


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed_is_told_how(monkeypatch, capsys, tmp_path):
    said = refused(monkeypatch, capsys, tmp_path, "-m", "hydra/launcher=ray", "seed=1,2")
    assert "hydra/launcher/ray is a plugin that is not installed" in said
    assert "pip install -e '.[ray]'" in said


def test_a_launcher_that_nobody_knows_gets_the_known_ones():
    with pytest.raises(ValueError, match="is none of basic, joblib, submitit_local, "):
        multirun.note_multirun("x", {"hydra/launcher": "rq"})


def test_the_command_of_one_run_has_no_launcher(tmp_path):
    process = stood_in(
        tmp_path, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=2,3"
    )
    process.communicate(timeout=120)
    ended = [json.loads((path / "job.json").read_text())["ended"] for path in run_dirs(tmp_path)]
    assert [one["command"] for one in ended] == [f"{run.PROGRAM} seed={seed}" for seed in (2, 3)]
    assert [one["objective"] for one in ended] == [2.0, 3.0]


def test_jobs_of_a_cluster_are_named_for_scancel(tmp_path):
    for name in ("4711_0", "4711_1", "%j", "4712"):
        (tmp_path / ".submitit" / name).mkdir(parents=True)
    asked = multirun.Multirun(folder=tmp_path, launcher=Launcher.submitit_slurm)
    assert cluster_jobs(asked) == ["4711", "4712"]
    local = multirun.Multirun(folder=tmp_path, launcher=Launcher.submitit_local)
    assert not cluster_jobs(local)


def test_tasks_of_one_job_are_the_ranks_of_one_run(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [a for a in tiny_arguments(tiny_folder, "sl_cai") if not a.startswith("hardware.")]
    process = start(
        tmp_path,
        "-m",
        *arguments,
        "hardware=cpu_ddp",
        "hardware.precision=fp32",
        "hydra/launcher=submitit_local",
        "hydra.launcher.tasks_per_node=2",
    )
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder,) = run_dirs(tmp_path)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "done"
    manifests = list((tmp_path / "outputs" / "store").glob("*/*/manifest.json"))
    assert {json.loads(path.read_text())["processes"] for path in manifests} == {2}
    assert json.loads((folder / "job.json").read_text())["ended"]["failure"] is None


@pytest.mark.parametrize("cluster", ["hardware=slurm", "hydra/launcher=submitit_slurm"])
def test_a_plan_of_several_runs_asks_the_cluster_for_nothing(cluster: str) -> None:
    with pytest.raises(ConfigError, match="Leave -m out"):
        check_launcher((cluster, "seed=0,1", "plan=true"), multirun=True)
    check_launcher((cluster, "seed=0,1", "plan=false"), multirun=True)


def test_slurm_is_one_word_and_its_tasks_are_the_devices() -> None:
    from hydra import compose, initialize_config_dir

    from cai import paths

    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        cfg = compose(
            "config",
            overrides=["hardware=slurm", "hardware.devices=4", "hardware.num_nodes=2"],
            return_hydra_config=True,
        )
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert cfg.hydra.runtime.choices["hydra/launcher"] == Launcher.submitit_slurm
    launcher = cfg.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)
    assert launcher.max_num_timeout > 0
