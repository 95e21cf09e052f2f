"""Checkpoints of a training in progress: whole or absent, and never trusted without their hash.

Lightning's own writer stages in the temporary folder and moves, which copies over the last good
checkpoint when that is another file system, and no format notices a flipped bit. Here the file is
written beside its target, fsynced and renamed, and a `.sha256` beside it (in the format of
`sha256sum`) is written after it: a checkpoint counts when both are there and agree. The two newest
are kept, so that a damaged one costs some steps and not the run.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from cai.artifacts import file_sha256, write_atomically

log = logging.getLogger(__name__)

NUM_KEPT = 2


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many steps is."""
    return folder / f"step-{step:08d}.ckpt"


def step_of(path: Path) -> int:
    """Steps done when a checkpoint was made."""
    return int(path.stem.removeprefix("step-"))


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def is_valid(path: Path) -> bool:
    """Whether a checkpoint is what was written."""
    try:
        expected = _sidecar(path).read_text("ascii").split()[0]
        return file_sha256(path) == expected
    except (OSError, ValueError, IndexError):
        return False


def newest(folder: Path) -> Path | None:
    """The newest valid checkpoint; what is damaged or was left half-written is removed."""
    for orphan in folder.glob(".step-*.tmp"):
        orphan.unlink()
    for path in sorted(folder.glob("step-*.ckpt"), key=step_of, reverse=True):
        if is_valid(path):
            return path
        log.warning("%s is damaged or incomplete; going back to the checkpoint before it", path)
        remove(path)
    return None


def remove(path: Path) -> None:
    """Delete a checkpoint; without its hash first, so that it never counts half deleted."""
    _sidecar(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def prune(folder: Path) -> None:
    """Delete all but the newest checkpoints."""
    for path in sorted(folder.glob("step-*.ckpt"), key=step_of)[:-NUM_KEPT]:
        remove(path)


class VerifiedCheckpointIO(CheckpointIO):
    """Writes and reads Lightning's checkpoints, hashes included."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint, then its hash."""
        stream = io.BytesIO()
        torch.save(checkpoint, stream)
        data = stream.getbuffer()
        target = Path(path)
        line = f"{hashlib.sha256(data).hexdigest()}  {target.name}\n"
        write_atomically(target, data)
        write_atomically(_sidecar(target), line.encode("ascii"))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint that `newest` found valid; tensors and plain values only."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        remove(Path(path))
