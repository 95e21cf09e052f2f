"""One run killed again and again, each time with another number of processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from safetensors.torch import load_file

from tests.runs import run, tiny_arguments

TOLERANCE = 1e-5
KILLS = (
    ("drafts:shard=1", 1),
    ("revisions:shard=1", 2),
    ("sl_policy:step=2", 1),
    ("sl_policy:checkpoint=1", 2),
    ("sl_policy:commit=1", 1),
    ("pairs:shard=1", 2),
    ("dpo_policy:step=1", 1),
    ("dpo_policy:checkpoint=1", 2),
    ("dpo_policy:commit=1", 1),
)
"""Fault point, and how many processes the run has that ends there."""


def test_a_run_killed_everywhere_ends_as_one_that_was_not(
    tiny_folder: Path, tmp_path: Path
) -> None:
    common = [a for a in tiny_arguments(tiny_folder, "dpo") if not a.startswith("hardware.")]
    common += ["hardware.precision=fp32", "phase.drafts.shard_size=2"]

    def settings(size: int) -> list[str]:
        if size == 1:
            return [*common, "hardware.num_threads=1"]
        threads = "hardware.num_threads=1"
        return [*common, "hardware=cpu_ddp", f"hardware.devices={size}", threads]

    whole = run(tmp_path / "whole", *settings(1), OMP_NUM_THREADS="1")
    assert whole.code == 0, whole.output
    cut = tmp_path / "cut"
    for point, size in KILLS:
        killed = run(cut, *settings(size), fault=f"{point}:kill", OMP_NUM_THREADS="1")
        assert killed.code == (-signal.SIGKILL if size == 1 else 1), (point, killed.output)
        assert size == 1 or "was ended by SIGKILL" in killed.output, (point, killed.output)
    ended = run(cut, *settings(2), OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.output
    found, expected = cut / "outputs" / "store", whole.folder / "outputs" / "store"
    names = sorted(str(path.relative_to(expected)) for path in expected.glob("*/*"))
    assert sorted(str(path.relative_to(found)) for path in found.glob("*/*")) == names
    for path in expected.rglob("*.safetensors"):
        weights, others = load_file(path), load_file(found / path.relative_to(expected))
        assert max(float((weights[k] - others[k]).abs().max()) for k in weights) < TOLERANCE
    for stage in ("drafts", "revisions"):  # made before anything was trained
        (path,) = expected.glob(f"{stage}/*/records.jsonl")
        assert (found / path.relative_to(expected)).read_bytes() == path.read_bytes()
    made = [json.loads(path.read_text()) for path in found.glob("*/*/manifest.json")]
    assert len({manifest["processes"] for manifest in made}) > 1
