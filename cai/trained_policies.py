"""Which policy a folder stands for: that of a finished run, or an artifact of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.artifacts import MANIFEST, Artifact
from cai.errors import UserError

STAGES = {
    "hybrid": "edge_policy",
    "rl_cai": "policy",
    "dpo": "dpo_policy",
    "critique_rl": "direct_policy",
    "sl_cai": "sl_policy",
    "rlhf": "rlhf_policy",
    "sft": "sft_policy",
}
"""A run's policies and the stages that train them; the first that a run has is the default."""
SELECTED = "selected_policy"
"""The stage that stands for `rl_cai` where another round's policy than PPO's last was kept."""
FOLDER = "adapter"
"""Where an artifact has what was trained."""


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is neither a run nor an artifact: its {MANIFEST} cannot be read "
            f"({type(error).__name__})"
        ) from error


def finished(folder: Path, *, files: str) -> dict[str, Any]:
    """The manifest of a finished run, or of an artifact.

    Args:
        folder: Of a run that failed or still goes on, the last policy is not the one it ends with.
        files: What an adapter's own folder would have, for messages.

    Raises:
        UserError: when the run was not finished, or it is neither.
    """
    if not (folder / MANIFEST).is_file():
        if (folder / "config.yaml").is_file():
            raise UserError(f"the run was not finished: it has no {MANIFEST}")
        raise UserError(f"there is no adapter in it: neither {files}, nor a run's {MANIFEST}")
    manifest = _manifest(folder)
    status = manifest.get("status", "done")
    if status != "done":
        raise UserError(f"the run was not finished ({status}). Type its command again")
    return manifest


def _in_run(folder: Path, manifest: dict[str, Any], policy: str | None) -> Artifact:
    """The artifact of one of a run's policies, in the store beside or above the run."""
    digests = {row["stage"]: row["digest"] for row in manifest["stages"]}
    there = [name for name, stage in STAGES.items() if stage in digests]
    if not there or policy not in (None, *there):
        raise UserError(
            f"{folder} has {'the policies ' + ', '.join(there) if there else 'no trained policy'}"
            + (f", and not {policy}" if policy else "")
        )
    stage = STAGES[policy or there[0]]
    if stage == STAGES["rl_cai"] and SELECTED in digests:
        stage = SELECTED
    several = sum(row["stage"] == stage for row in manifest["stages"])
    if several > 1:
        raise UserError(
            f"{folder} has {several} policies of the stage {stage}: it is a matrix, whose "
            "matrix.json says which is whose. Name one of the store's folders: "
            f"store/{stage}/<digest>"
        )
    return kept_above(folder, stage=stage, digest=digests[stage])


def kept_above(folder: Path, *, stage: str, digest: str) -> Artifact:
    """A run's artifact in the store beside or above the run's folder.

    Raises:
        UserError: when it is not there, or not complete.
    """
    for parent in folder.resolve().parents:
        artifact = Artifact(stage=stage, digest=digest, folder=parent / "store" / stage / digest)
        if artifact.complete:
            return artifact
    raise UserError(
        f"{folder}: no folder above it has store/{stage}/{digest}; name the artifact's own folder "
        "instead"
    )


def find(folder: Path, *, policy: str | None) -> Artifact:
    """The policy that a folder stands for.

    Args:
        folder: A run or an artifact.
        policy: One of `STAGES`, for a run with several; None takes the last one trained.

    Raises:
        UserError: when there is no such policy.
    """
    manifest = _manifest(folder)
    if "stages" in manifest:
        return _in_run(folder, manifest, policy)
    if manifest["stage"] not in (*STAGES.values(), SELECTED):
        raise UserError(
            f"{folder} is a result of the stage {manifest['stage']}, which is no policy; policies "
            f"are results of {', '.join(STAGES.values())}"
        )
    return Artifact(stage=manifest["stage"], digest=manifest["digest"], folder=folder)
