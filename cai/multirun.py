"""The multirun that this process was asked for: where it is and who starts its runs.

Hydra tells nobody but the launcher; the resolver that names the folder remembers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cai.choices import Launcher

EXTRAS = {
    Launcher.joblib: "parallel",
    Launcher.submitit_local: "slurm",
    Launcher.submitit_slurm: "slurm",
    Launcher.ray: "ray",
}
"""Launcher -> the extra of this package that installs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multirun:
    """The multirun that this process was asked for."""

    folder: Path
    """Of the multirun; the runs' folders are in it."""
    launcher: Launcher


_multirun: Multirun | None = None


def note_multirun(folder: str, choices: Mapping[str, str]) -> str:
    """Remember a multirun's folder and launcher; a resolver, which returns the folder."""
    global _multirun
    named = str(choices["hydra/launcher"])
    if named not in Launcher.__members__:
        raise ValueError(f"hydra/launcher={named} is none of {', '.join(Launcher)}")
    _multirun = Multirun(folder=Path(folder).absolute(), launcher=Launcher(named))
    return folder


def forget() -> None:
    """Begin a command."""
    global _multirun
    _multirun = None


def apart() -> Multirun | None:
    """The multirun whose runs are other processes' work, if this command is one."""
    if _multirun is None or _multirun.launcher is Launcher.basic:
        return None
    return _multirun
