"""A trained critic under its name, where `start` of a model finds it."""

from __future__ import annotations

import shutil
from pathlib import Path

from cai.artifacts import Artifact
from cai.errors import UserError
from cai.locks import held
from cai.stages.training import ADAPTER

FOLDER = "adapters"


def leave_critic(critic: Artifact, name: str, *, output_dir: Path, run_dir: Path) -> Path:
    """Copy a critic into the run folder and to `<output_dir>/adapters/<name>`.

    Args:
        critic: What was trained.
        name: `phase.adapter_name`.
        output_dir: Where runs find it by name; one that was there is replaced.
        run_dir: Where it stays.

    Returns:
        Where runs find it.

    Raises:
        UserError: when it cannot be written.
    """
    source = critic.verified_folder() / ADAPTER
    for parent in (run_dir, output_dir):
        target = parent / FOLDER / name
        part = target.with_name(f".{name}.part")
        lock = target.with_name(f".{name}.lock")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with held(lock, name=f"{FOLDER}/{name}", work=part):
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(source, part)
                shutil.rmtree(target, ignore_errors=True)
                part.rename(target)
        except OSError as error:
            raise UserError(
                f"Cannot write {target}: {error.strerror}. The critic is in the store: "
                f"{critic.short}"
            ) from error
    return target
