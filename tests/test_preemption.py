"""A warning ends a run in order, and the same command ends with the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cai import preemption, ranks
from cai.checkpoints import checkpoint_path
from cai.preemption import EXIT_CODE, Preempted, heeded, requeue, stop_between_steps, warned
from tests.ranks import on_ranks
from tests.runs import Finished, artifact_bytes, run, tiny_arguments


def test_a_warning_is_noted_and_ends_nothing_by_itself() -> None:
    with heeded():
        assert not warned()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert warned()
        assert preemption.stop().signum == signal.SIGUSR2
        assert isinstance(preemption.stop(), Preempted)
    with heeded():  # the next run of this process
        assert not warned()


def test_ranks_agree_on_the_step_to_end_at() -> None:
    def body() -> list[bool]:
        with heeded():
            told = [stop_between_steps()]
            if ranks.world().rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return [*told, stop_between_steps()]

    assert on_ranks(2, body) == [[False, True], [False, True]]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tmp_path_factory.mktemp("whole"), *tiny_arguments(tiny_folder, "dpo"))


@pytest.mark.parametrize("point", ["drafts:shard=1", "sl_policy:step=1", "dpo_policy:step=1"])
def test_a_warned_run_ends_with_75_and_goes_on(
    point: str, whole: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder, "dpo"), "phase.dpo.checkpoint_every=99"]
    arguments += ["phase.sl_policy.checkpoint_every=99"]
    ended = run(tmp_path, *arguments, fault=f"{point}:warn")
    assert ended.code == EXIT_CODE, ended.output
    assert "Interrupted; what is done is kept. Continue with: python -m cai.run" in ended.output
    stage, _, event = point.partition(":")
    (folder,) = (tmp_path / "outputs" / "store" / stage).glob("*/work")
    if event == "step=1":  # none was due
        assert checkpoint_path(folder / "checkpoints", 1).is_file()
    else:
        assert len(list((folder / "shards").glob("*.jsonl"))) == 1
    assert ended.manifest()["status"] == "failed"
    again = run(tmp_path, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()[stage] == ["continued"]
    found, expected = artifact_bytes(tmp_path), artifact_bytes(whole.folder)
    weights = [name for name in expected if name.endswith("adapter_model.safetensors")]
    by_stage = {name.split("/")[2]: found[name] for name in found if name.endswith("safetensors")}
    assert weights
    assert all(by_stage[name.split("/")[2]] == expected[name] for name in weights)


@pytest.mark.parametrize("point", ["pairs:shard=1", "dpo_policy:step=1"])
def test_all_ranks_end_together(point: str, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [a for a in tiny_arguments(tiny_folder, "dpo") if not a.startswith("hardware.")]
    arguments += ["hardware=cpu_ddp", "hardware.precision=fp32"]
    ended = run(tmp_path, *arguments, fault=f"{point}:warn", OMP_NUM_THREADS="1")
    assert ended.code == EXIT_CODE, ended.output
    assert "Traceback" not in ended.output
    again = run(tmp_path, *arguments, OMP_NUM_THREADS="1")
    assert again.code == 0, again.output
    assert again.statuses()[point.partition(":")[0]] == ["continued"]


def scheduler(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0) -> Path:
    """A `scontrol` that writes down what it was asked."""
    script = folder / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\necho no >&2\nexit {code}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "asked"


def test_a_job_of_slurm_goes_back_into_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = scheduler(tmp_path, monkeypatch)
    requeue()  # no job
    assert not asked.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    requeue()
    assert asked.read_text() == "requeue 42\n"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    requeue()  # submitit's own affair
    assert asked.read_text() == "requeue 42\n"
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    scheduler(tmp_path, monkeypatch, code=1)
    requeue()
    assert "scontrol requeue 42: no" in caplog.text
