"""Stage `start_policy`: a trained policy from elsewhere, as an artifact of this run's store.

What is taken is an adapter folder as this project saves it, an artifact of the store that has one,
or a finished run, which stands for its final policy. The files are copied byte for byte and their
sha256s are in the digest, so a run does not depend on the folder staying what it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from cai import ranks
from cai.adapters import HEAD_FILE, IDENTITY_FILE
from cai.artifacts import Artifact, Work, file_sha256
from cai.context import RunContext, Stage
from cai.errors import ConfigError, UserError
from cai.low_rank import saved_lora
from cai.model_config import LoRAConfig, ModelConfig
from cai.models import identity
from cai.stages.training import ADAPTER
from cai.trained_policies import find, finished

SETTING = "phase.start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The policy that a training begins with."""

    name: str
    """What the run calls it, e.g. `start`."""
    adapter: Artifact


def start_policy(context: RunContext, *, model: ModelConfig, start: str | None) -> Start | None:
    """The policy that `phase.start` names; None for the base itself.

    Args:
        context: The run.
        model: The policy's base.
        start: A folder.

    Raises:
        ConfigError: when there is no policy there, or it was not trained on this base in this way;
            before anything is computed, in a plan too.
    """
    if start is None:
        return None
    folder = _folder(start)
    _check(folder, model, told=f"{SETTING}={start}")
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}

    def run(work: Work) -> None:
        target = work.folder / ADAPTER
        if ranks.is_first():
            target.mkdir(exist_ok=True)
            for name in files:
                shutil.copyfile(folder / name, target / name)
        work.counts = {"files": len(files)}

    artifact = context.run(
        Stage(
            name="start_policy",
            version=1,
            config={},
            inputs={},
            identity={"files": files},
            expect={"files": len(files)},
            run=run,
        )
    )
    return Start(name="start", adapter=artifact)


def _folder(start: str) -> Path:
    """The folder that has the policy's own files."""
    folder, told = Path(start).expanduser(), f"{SETTING}={start}"
    if not folder.is_dir():
        raise ConfigError(
            f"{told}: there is no such folder, seen from {Path.cwd()}. Type {SETTING}= and the "
            "folder of a finished run, or of an adapter"
        )
    if (folder / IDENTITY_FILE).is_file():
        return folder
    try:
        finished(folder, files=IDENTITY_FILE)
        return find(folder, policy=None).verified_folder() / ADAPTER
    except UserError as error:
        raise ConfigError(f"{told}: {error}") from error


def _check(folder: Path, model: ModelConfig, *, told: str) -> None:
    """Compare what was saved with what the run would go on training."""
    if (folder / HEAD_FILE).is_file():
        raise ConfigError(f"{told}: it has a head for scores: it is a preference model, no policy")
    saved = json.loads((folder / IDENTITY_FILE).read_bytes())
    if "probe" not in saved:
        raise ConfigError(
            f"{told}: it is an exported model, not what was trained; name the run or its artifact"
        )
    if saved["base_sha256"] != identity(model):
        raise ConfigError(
            f"{told}: it was trained on {saved['base_id']} (weights {saved['base_sha256'][:12]}), "
            f"and model={model.name} has other weights. Type model= and that base"
        )
    try:
        found = saved_lora(folder)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{told}: its adapter_config.json cannot be read ({error})") from error
    if (found is None) != (model.trained is None):
        kind = "none" if found is None else "lora"
        raise ConfigError(
            f"{told}: it was trained with adapter={kind}, and model.adapter={model.adapter.value}."
            f" Type model.adapter={kind}"
        )
    if found is not None and model.trained is not None and _shape(found) != _shape(model.trained):
        layers = ",".join(sorted(found.target_modules))
        raise ConfigError(
            f"{told}: its adapter has another shape than model.lora. Type model.lora.rank="
            f"{found.rank} model.lora.alpha={found.alpha} model.lora.target_modules=[{layers}]"
        )


def _shape(lora: LoRAConfig) -> tuple[int, int, list[str]]:
    return lora.rank, lora.alpha, sorted(lora.target_modules)
