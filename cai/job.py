"""What a run needs to know about how it was started; made from Hydra's runtime config."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import OmegaConf

from cai.overrides import check_option

PROGRAM = "python -m cai.run"
OF_MULTIRUNS = ("hydra.mode=", "hydra/launcher=", "hydra.launcher.")
"""Settings that a single run does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: where it writes, what was asked for, and how to ask for it again."""

    run_dir: str
    """Absolute; exists, and no other run has it. With `plan=true` it is deleted at exit."""
    overrides: tuple[str, ...]
    """Settings of this run as given on the command line or by the sweep."""
    sweep: str | None
    """Name of the multirun this run belongs to, unique per multirun; None outside one."""
    job_num: int | None
    """Number within the multirun, from 0."""
    choices: dict[str, str]
    """Group -> chosen option, e.g. `phase`, `constitution`, `model@phase.feedback_model`."""
    command: str
    """What to type to do this run again, or to go on with it."""


def describe(hydra: HydraConf) -> Job:
    """Describe the current job from `HydraConfig.get()`.

    Raises:
        cai.errors.ConfigError: A sweep file names an option that is a path.
    """
    multirun = hydra.mode == RunMode.MULTIRUN
    choices = {
        str(group): str(option)
        for group, option in hydra.runtime.choices.items()
        if option is not None
    }
    for group, option in choices.items():
        check_option(group.partition("@")[0], option)
    sweep_dir = Path(hydra.sweep.dir) if multirun else None
    return Job(
        run_dir=hydra.runtime.output_dir,
        overrides=tuple(_texts(hydra.overrides.task)),
        sweep=f"{sweep_dir.parent.name}-{sweep_dir.name}" if sweep_dir else None,
        job_num=hydra.job.num if multirun else None,
        choices={
            group: option
            for group, option in choices.items()
            if not group.startswith(("hydra/", "debug/"))
        },
        command=_command(hydra, multirun=multirun),
    )


def _command(hydra: HydraConf, *, multirun: bool) -> str:
    added = [
        argument
        for source in hydra.runtime.config_sources
        if source.provider == "command-line"
        for argument in ("--config-dir", source.path)
    ]
    own = [text for text in _texts(hydra.overrides.hydra) if not text.startswith(OF_MULTIRUNS)]
    # A sweep file asks for a multirun by itself; this is one run of it.
    single = ["hydra.mode=RUN"] if multirun and hydra.runtime.choices.get("sweeps") else []
    settings = [*own, *_texts(hydra.overrides.task), *single]
    return f"{PROGRAM} {shlex.join([*added, *settings])}".rstrip()


def _texts(overrides: list[str]) -> list[str]:
    """Return settings as they were typed: one may hold `${...}`, which must not resolve here."""
    texts = OmegaConf.to_container(OmegaConf.create(overrides), resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]
