"""Run folders as a comparison reads them: found, checked, and the unfinished ones named."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cai.artifacts import MANIFEST, Artifact
from cai.compare.story import LeftOut
from cai.errors import UserError
from cai.yaml_nodes import did_you_mean

METRICS = "metrics.json"
CONFIG = "config.yaml"
TRAINING = ("sl_cai", "rlaif", "dpo", "rlhf", "hybrid", "critique_rl")
"""Phases that evaluate policies, so that their runs can stand side by side."""
IRRELEVANT = ("seed", "plan", "output_dir", "run", "runs", "example", "hardware", "logger")
"""Top-level keys that make no configuration of their own."""
DOCUMENT = "constitution.digest"
"""Stands for the document's content, which can change under the same name."""
REFUSED = ("trace", "compare")
"""Phases that are about other runs."""
NUM_SHOWN = 12
"""Folders that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    metrics: dict[str, float]

    @property
    def phase(self) -> str:
        """What was done."""
        return str(self.config["phase"]["name"])

    @property
    def seed(self) -> int:
        """Of every random stream."""
        return int(self.config["seed"])

    @property
    def constitution(self) -> dict[str, str]:
        """Its name and digest."""
        return self.manifest["constitution"]

    @cached_property
    def stages(self) -> dict[str, str]:
        """Digest of each stage that the run has once."""
        rows = self.manifest["stages"]
        counts = Counter(row["stage"] for row in rows)
        return {row["stage"]: row["digest"] for row in rows if counts[row["stage"]] == 1}

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every setting that can change a result, flat: `phase.ppo.kl_coef` to its value."""
        flat = {DOCUMENT: str(self.constitution["digest"])[:12]}
        for key, value in self.config.items():
            if key not in IRRELEVANT and not (key == "audit" and self.phase != "audit"):
                _flatten(flat, str(key), value)
        return flat

    def artifact(self, stage: str) -> Artifact | None:
        """What a stage made; None when the run has no such stage or its store is not there."""
        digest = self.stages.get(stage)
        return None if digest is None else self._stored(stage, digest)

    def artifacts(self, stage: str) -> list[Artifact]:
        """All that a stage made, in the run's order; without what its store no longer has."""
        rows = [row for row in self.manifest["stages"] if row["stage"] == stage]
        found = [self._stored(stage, row["digest"]) for row in rows]
        return [artifact for artifact in found if artifact is not None]

    def _stored(self, stage: str, digest: str) -> Artifact | None:
        for parent in self.folder.resolve().parents:
            folder = parent / "store" / stage / digest
            artifact = Artifact(stage=stage, digest=digest, folder=folder)
            if artifact.complete:
                return artifact
        return None


def _flatten(flat: dict[str, str], key: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        for inner, child in value.items():
            _flatten(flat, f"{key}.{inner}", child)
    else:
        flat[key] = value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(slots=True, kw_only=True)
class Found:
    """What the named folders hold."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_runs(named: list[str] | None, *, output_dir: Path, at_least: int = 2) -> Found:
    """Every finished run of the named folders, in their order; a sweep stands for its jobs.

    Raises:
        UserError: when a folder is none of a run or a sweep, when fewer than two runs are finished,
            or when their phases have nothing in common.
    """
    if not named:
        raise UserError(
            "phase=compare needs runs.\n  Type: runs=[FOLDER,FOLDER,...] with folders of finished "
            f"runs, or runs=[SWEEP FOLDER]{_known(output_dir)}"
        )
    found = Found()
    seen: set[Path] = set()
    for text in named:
        for folder in _folders(text, output_dir=output_dir):
            if folder.resolve() in seen:
                found.notes.append(f"{folder} is named more than once and counts once.")
                continue
            seen.add(folder.resolve())
            _add(found, folder)
    _drop_repeats(found)
    if len(found.runs) < at_least:
        _refuse_number(found)
    _check_phases(found.runs)
    return found


def _folders(text: str, *, output_dir: Path) -> list[Path]:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        known = [str(path) for path in _newest(output_dir)]
        raise UserError(
            f"runs: {text}: no such folder.{did_you_mean(text, known)} A name with commas or '=' "
            f"needs quotes: \"runs=['{text}']\"{_known(output_dir)}"
        )
    if _is_run(folder):
        return [folder]
    jobs = sorted((path for path in folder.iterdir() if _is_run(path)), key=_job_order)
    if not jobs:
        raise UserError(
            f"runs: {text} is neither a run folder (it has no {CONFIG}) nor a folder of them."
            f"{_known(output_dir)}"
        )
    return jobs


def _is_run(folder: Path) -> bool:
    names = (CONFIG, MANIFEST, "run.log")
    return folder.is_dir() and any((folder / name).is_file() for name in names)


def _job_order(folder: Path) -> tuple[float, str]:
    """Jobs of a sweep are called `<number>_<settings>`."""
    number = folder.name.partition("_")[0]
    return (float(number) if number.isdecimal() and len(number) < 9 else math.inf, folder.name)


def _add(found: Found, folder: Path) -> None:
    try:
        found.runs.append(_open(folder))
    except UserError as error:
        found.left_out.append(LeftOut(folder=str(folder), why=str(error)))


def _open(folder: Path) -> Run:
    """Read one folder.

    Raises:
        UserError: when the run is not finished or a file of it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise UserError("it failed before it began: it has no settings")
    config = _yaml(folder / CONFIG)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            "not finished: it is still going on or was killed. Type the command that started it "
            "again; what was done is kept"
        )
    manifest = _json(folder / MANIFEST)
    if manifest.get("status") != "done" or not (folder / METRICS).is_file():
        raise UserError(
            f"not finished ({manifest.get('status', 'no status')}). Finish it with: "
            f"{manifest.get('command', 'its command')}"
        )
    known = all(name in manifest for name in ("stages", "command", "started", "constitution"))
    if not known or not isinstance(config.get("phase"), dict) or "seed" not in config:
        raise UserError(f"its {MANIFEST} or {CONFIG} is not that of a run of this program")
    metrics = {
        str(name): float(value)
        for name, value in _json(folder / METRICS).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return Run(folder=folder, config=config, manifest=manifest, metrics=metrics)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} is no config of a run")
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path.name} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} is damaged (no object)")
    return value


def _drop_repeats(found: Found) -> None:
    """Of runs with the same settings and seed the last counts: a repeat is no new seed."""
    newest: dict[tuple[object, ...], Run] = {}
    for run in found.runs:
        key = (run.seed, *sorted(run.settings.items()))
        other = newest.get(key)
        if other is None:
            newest[key] = run
            continue
        older, newer = sorted((other, run), key=lambda one: str(one.manifest["started"]))
        newest[key] = newer
        why = f"has the settings and the seed of {newer.folder}, so it is no independent run"
        found.left_out.append(LeftOut(folder=str(older.folder), why=why))
    kept = {id(run) for run in newest.values()}
    found.runs = [run for run in found.runs if id(run) in kept]


def _refuse_number(found: Found) -> NoReturn:
    told = "".join(f"\n  {one.folder}: {one.why}" for one in found.left_out[:NUM_SHOWN])
    if not found.runs:
        raise UserError(f"runs: none of the folders holds a finished run.{told}")
    raise UserError(
        f"runs: a comparison needs two finished runs, and {found.runs[0].folder} is the only one."
        f"{told}\n  A second seed: {found.runs[0].manifest['command']} seed="
        f"{found.runs[0].seed + 1}"
    )


def _check_phases(runs: list[Run]) -> None:
    phases = list(dict.fromkeys(run.phase for run in runs))
    about = [phase for phase in phases if phase in REFUSED]
    if about:
        raise UserError(
            f"runs: a run of phase={about[0]} is about other runs and has nothing to compare; "
            f"leave {next(str(r.folder) for r in runs if r.phase == about[0])} out"
        )
    if len(phases) > 1 and not set(phases) <= set(TRAINING):
        where = "".join(
            f"\n  phase={phase}: {next(run.folder for run in runs if run.phase == phase)}"
            for phase in phases
        )
        raise UserError(
            f"runs: phases {', '.join(phases)} measure different things. Compare runs of one "
            f"phase, or of {', '.join(TRAINING)}.{where}"
        )


def _newest(output_dir: Path) -> list[Path]:
    runs = output_dir.glob(f"*/*/*/{MANIFEST}")
    others = ("store", *REFUSED)
    found = [path.parent for path in runs if path.parts[-4] not in others]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _known(output_dir: Path) -> str:
    sweeps = sorted(output_dir.glob("sweeps/*/*"), key=lambda path: path.name, reverse=True)
    found = [*sweeps[:4], *_newest(output_dir)][:NUM_SHOWN]
    return "\n  Newest: " + ", ".join(map(str, found)) if found else ""
