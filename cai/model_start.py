"""`start` of a model: a trained adapter that is merged into the base when the model is loaded.

A folder stands for it: an adapter as this project saves or exports it, plain `peft` LoRA of the
same base, an artifact of the store, or a finished run, which stands for the critic that it trained,
otherwise for its final policy. Everything is checked from the files alone, without loading a model,
so a run that cannot have its model is refused before anything is computed, and a plan knows the
identity of what it would load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.artifacts import Artifact, digest_of, file_sha256
from cai.errors import UserError
from cai.trained_policies import find, finished, kept_above

CRITICS = ("rl_critic", "critic")
"""Stages whose adapter critiques; the first that a run has is what it ends with."""
ADAPTER = "adapter"
IDENTITY_FILE = "cai.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
HEAD_FILE = "head.safetensors"
PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
}
"""Settings of a `peft` adapter that can be merged here, with the values that they may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStart:
    """An adapter on disk that belongs to a base."""

    folder: Path
    sha256: str
    """Of its weights and settings."""
    probed: bool
    """Whether it has `cai.json`, which says what it answered when it was saved."""


def model_start(name: str, start: str, *, base_id: str, base_sha256: str) -> ModelStart:
    """The adapter that a model's `start` stands for.

    Args:
        name: The model's, for messages.
        start: A folder.
        base_id: Public name or folder of the base.
        base_sha256: Hash of the base's weights.

    Raises:
        UserError: when there is none, the run that makes it was not finished, or it was made for
            another base.
    """
    told = f"model {name}: start={start}"
    try:
        folder = adapter_folder(Path(start).expanduser())
        probed = (folder / IDENTITY_FILE).is_file()
        if (folder / HEAD_FILE).is_file():
            raise UserError("it has a head for scores: it is a preference model")
        if probed:
            saved = _json(folder / IDENTITY_FILE)
            if "probe" not in saved:
                raise UserError("it is an exported model; name the run or its artifact")
            _check_identity(saved, base_sha256)
        else:
            _check_peft(_json(folder / CONFIG_FILE), base_id)
    except UserError as error:
        raise UserError(f"{told}: {error}") from error
    files = [folder / one for one in (*WEIGHTS, CONFIG_FILE) if (folder / one).is_file()]
    digest = digest_of({path.name: file_sha256(path) for path in files})
    return ModelStart(folder=folder, sha256=digest, probed=probed)


def adapter_folder(folder: Path) -> Path:
    """The folder that has the adapter's own files.

    Raises:
        UserError: when there is none, or it is that of a run that was not finished.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no such folder, seen from {Path.cwd()}. Train one with "
            "phase=critique_model, or type start= and the folder of an adapter or a finished run"
        )
    for own in (folder, folder / ADAPTER):
        described = (own / IDENTITY_FILE).is_file() or (own / CONFIG_FILE).is_file()
        if described and any((own / name).is_file() for name in WEIGHTS):
            return own
    manifest = finished(folder, files=f"{IDENTITY_FILE} nor {CONFIG_FILE} with {WEIGHTS[0]}")
    return _of_run(folder, manifest).verified_folder() / ADAPTER


def _of_run(folder: Path, manifest: dict[str, Any]) -> Artifact:
    digests = {row["stage"]: row["digest"] for row in manifest.get("stages", ())}
    stage = next((one for one in CRITICS if one in digests), None)
    if stage is None:
        return find(folder, policy=None)
    return kept_above(folder, stage=stage, digest=digests[stage])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name} is not an object")
    return found


def _check_identity(identity: dict[str, Any], base_sha256: str) -> None:
    found = str(identity.get("base_sha256"))
    if found != base_sha256:
        raise UserError(
            f"it was trained on {identity.get('base_id')} (weights {found[:12]}), and this base "
            f"has other weights ({base_sha256[:12]}). Choose the model that it was trained on"
        )


def _check_peft(config: dict[str, Any], base_id: str) -> None:
    base = config.get("base_model_name_or_path")
    if base != base_id:
        raise UserError(
            f"it was made for the base {base}, and this is {base_id}. Choose the model that it was "
            "trained on"
        )
    for key, allowed in PLAIN.items():
        if config.get(key) not in (*allowed, *([] if key in config else [None])):
            raise UserError(f"only plain LoRA can be merged, and its {key} is {config[key]}")
    if not isinstance(config.get("target_modules"), list):
        raise UserError("only plain LoRA can be merged, and its target_modules is no list")
