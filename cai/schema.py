"""The bridge between Hydra's composed config and the dataclasses of `cai.config`.

Importing this module registers the schemas (group `schema/`, so that they are no options of the
groups they check), the resolvers that `conf/` uses, and takes `oc.env` away: no text in a config,
a prompt or a principle may resolve to a secret from the environment. A launcher's worker process
gets all of it by the import.
"""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import PurePath

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cai import paths
from cai.audit_config import AuditConfig
from cai.config import (
    AuditPhaseConfig,
    CompareConfig,
    Config,
    ConstitutionConfig,
    DataConfig,
    DPOPhaseConfig,
    EvaluateConfig,
    EvaluationConfig,
    LoggerConfig,
    MatrixConfig,
    PhaseConfig,
    RLAIFConfig,
    SLCAIConfig,
    TraceConfig,
    field_names,
)
from cai.critique_config import CritiqueModelConfig, CritiqueRLConfig
from cai.errors import ConfigError
from cai.feedback_config import (
    ChainOfThoughtConfig,
    EndpointConfig,
    EnsembleConfig,
    FeedbackConfig,
    LikelihoodConfig,
    MultipleChoiceConfig,
    PointwiseConfig,
    RandomConfig,
    ScoreConfig,
    TunedConfig,
)
from cai.hardware_config import HardwareConfig
from cai.model_config import EngineConfig, ModelConfig, ServerConfig
from cai.multirun import note_multirun
from cai.rlhf_config import HybridConfig, RLHFConfig
from cai.training_config import PPO_REFUSED

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "constitution": ConstitutionConfig,
    "data": DataConfig,
    "evaluation": EvaluationConfig,
    "audit": AuditConfig,
    "hardware": HardwareConfig,
    "logger": LoggerConfig,
}
"""Config group -> its type."""

PHASES: dict[str, type[PhaseConfig]] = {
    "sl_cai": SLCAIConfig,
    "rlaif": RLAIFConfig,
    "dpo": DPOPhaseConfig,
    "evaluate": EvaluateConfig,
    "audit": AuditPhaseConfig,
    "trace": TraceConfig,
    "compare": CompareConfig,
    "matrix": MatrixConfig,
    "critique_model": CritiqueModelConfig,
    "critique_rl": CritiqueRLConfig,
    "rlhf": RLHFConfig,
    "hybrid": HybridConfig,
}
"""Option of group `phase` -> its type."""

FEEDBACK: dict[str, type[FeedbackConfig]] = {
    "multiple_choice": MultipleChoiceConfig,
    "chain_of_thought": ChainOfThoughtConfig,
    "likelihood": LikelihoodConfig,
    "pointwise": PointwiseConfig,
    "score": ScoreConfig,
    "tuned": TunedConfig,
    "endpoint": EndpointConfig,
    "ensemble": EnsembleConfig,
    "random": RandomConfig,
}
"""Option of group `feedback` -> its type."""

PARTS: dict[str, type] = {"engine": EngineConfig, "server": ServerConfig}
"""Group whose options are parts of other sections, e.g. `engine@model.engine` -> its type."""

REFUSED: dict[str, str] = {f"phase.ppo.{name}": why for name, why in PPO_REFUSED.items()}
"""Keys that people may well type and that do not exist on purpose -> why."""

RUN_GROUPS = ("experiment", "sweeps", "debug")
"""Groups whose options set values of other sections."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""What an option or a run may be called: it becomes a file or folder name."""


def to_config(cfg: DictConfig) -> Config:
    """Turn the composed config into dataclasses, or say which key is wrong.

    Raises:
        ConfigError: A key is unknown, has no value, does not resolve or is out of range.
    """
    if OmegaConf.get_type(cfg) is not Config:
        raise ConfigError("This config has no types. Begin its defaults list with /schema/config.")
    try:
        _check_keys(cfg, prefix="")
        missing = sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}.") from error
    if missing:
        raise ConfigError(
            f"No value for {', '.join(missing)}.\n  Type: "
            + " ".join(f"{key}=<value>" for key in missing)
        )
    _check_ranges(cfg, prefix="")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def _check_keys(node: DictConfig, *, prefix: str) -> None:
    """Refuse keys that `+key=value` added to a typed section, and Hydra's instantiation keys."""
    kind = OmegaConf.get_type(node)
    for key in map(str, node):
        if re.fullmatch(r"_\w+_", key):
            raise ConfigError(f"{prefix}{key} is refused: nothing in a config names code to run.")
        if f"{prefix}{key}" in REFUSED:
            raise ConfigError(f"{prefix}{key} is refused: {REFUSED[f'{prefix}{key}']}.")
        if kind is not dict and kind is not None and key not in field_names(kind):
            raise ConfigError(
                f"Unknown key {prefix}{key}.\n  Valid keys here: {', '.join(field_names(kind))}"
            )
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _check_keys(node[key], prefix=f"{prefix}{key}.")


def _check_ranges(node: DictConfig, *, prefix: str) -> None:
    """Build every section, the innermost first, so that a complaint knows where it belongs."""
    for key in map(str, node):
        if isinstance(node[key], DictConfig):
            _check_ranges(node[key], prefix=f"{prefix}{key}.")
    try:
        OmegaConf.to_object(node)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}.") from error


def options(group: str) -> list[str]:
    """Return the names of a group's files."""
    return sorted(path.stem for path in (paths.CONF / group).glob("*.yaml"))


def _options_line(group: str) -> str:
    text = ", ".join(options(group))
    return textwrap.fill(
        text, width=98, initial_indent=f"  {group:<14}", subsequent_indent=" " * 16
    )


def _run_id() -> str:
    """Return a folder name that no run started in the same second shares."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


def _base(output_dir: str, plan: bool) -> str:
    """Return the folder of run folders; a plan gets one that goes away with the process."""
    return _plan_folder() if plan else output_dir


@cache
def _plan_folder() -> str:
    folder = tempfile.mkdtemp(prefix="cai-plan-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} cannot name a run folder: only letters, digits, '.', '_' and '-', at most 64"
        )
    return text


def _stem(path: str) -> str:
    """Return a file's name without ending, as part of a folder's name."""
    return _slug(PurePath(path).stem) or "constitution"


def _subject(document: str, run: str | None, runs: Sequence[str] | None) -> str:
    """Return the folder name of what a run is about: its document, or that of the runs it reads."""
    if runs:
        return _slug("_".join(dict.fromkeys(PurePath(one).parent.name for one in runs))) or "runs"
    return (_slug(PurePath(run).parent.name) if run else "") or _stem(document)


def _slug(text: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9_.,=@+-]+", "-", text or "").strip(".-")[:100]


def _sweep(sweep: str | None, experiment: str | None) -> str:
    return _slug(sweep) or _slug(experiment) or "adhoc"


def _register() -> None:
    store = ConfigStore.instance().store
    store(group="schema", name="config", node=Config, package="_global_")
    for name, kind in SECTIONS.items():
        store(group="schema", name=name, node=kind)
    for name, kind in PHASES.items():
        store(group="schema/phase", name=name, node=kind)
    for name, kind in FEEDBACK.items():
        store(group="schema/feedback", name=name, node=kind)
    for name, kind in PARTS.items():
        store(group="schema", name=name, node=kind)

    OmegaConf.clear_resolver("oc.env")
    register = OmegaConf.register_new_resolver
    # Cached: one value per config, and Hydra hands the cache of a multirun on to its jobs.
    register("cai_run_id", _run_id, use_cache=True, replace=True)
    register("cai_base", _base, use_cache=True, replace=True)
    register("cai_multirun", note_multirun, replace=True)
    register("cai_mode", lambda plan: None if plan else "MULTIRUN", replace=True)
    register("cai_name", _name, replace=True)
    register("cai_slug", _slug, replace=True)
    register("cai_subject", _subject, replace=True)
    register("cai_sweep", _sweep, replace=True)
    register("cai_options", _options_line, replace=True)


_register()
