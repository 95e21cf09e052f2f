"""Hydra's and OmegaConf's complaints about settings, retold.

Each message says what is wrong, where (the full key; for a YAML file its path and line), what is
valid there, the nearest valid word, and what to type.
"""

from __future__ import annotations

import difflib
import re
import shlex
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cai import paths
from cai.config import Config
from cai.errors import UserError
from cai.job import PROGRAM
from cai.multirun import EXTRAS
from cai.schema import PHASES, REFUSED, RUN_GROUPS

_TYPE_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What the user typed, as far as messages need it."""

    flags: tuple[str, ...]
    """With their values, in order."""
    overrides: tuple[str, ...]

    @property
    def config_dirs(self) -> list[Path]:
        """Folders with option files, the user's first."""
        own = [
            Path(value)
            for flag, value in zip(self.flags, self.flags[1:], strict=False)
            if flag in ("--config-dir", "-cd")
        ]
        own += [Path(flag.partition("=")[2]) for flag in self.flags if "--config-dir=" in flag]
        return [*own, paths.CONF]

    def with_multirun(self) -> str:
        """Return the command with `-m`, flags first."""
        flags = [flag for flag in self.flags if flag not in ("-m", "--multirun")]
        return f"{PROGRAM} {shlex.join([*flags, '-m', *self.overrides])}"


def explain(error: BaseException, line: CommandLine) -> str | None:
    """Return the message for an error in the settings, or None if it is no such error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        return _explain_yaml(error)
    if isinstance(error, OverrideParseException):
        return (
            f"Cannot read the setting {error.override}: {error.message.splitlines()[0]}\n"
            "  Text with spaces or any of = , : ( ) [ ] { } needs quotes inside quotes: "
            "'key=\"some text\"'"
        )
    if isinstance(error, MissingConfigException):
        return _explain_missing_option(error, line)
    if str(error).startswith('Could not detect "srun"'):
        return (
            "SLURM's srun and sbatch are not on the PATH.\n"
            "  Start it where they are, or type hardware=cpu; plan=true works here"
        )
    if type(error).__module__ == "submitit.core.utils":  # SLURM's own words
        return f"{error}\n  What a job asks for is in hydra.launcher (partition, account, ...)"
    cause = error.__cause__ or error.__context__
    if isinstance(error, OSError) or isinstance(cause, OSError):
        return (
            f"Cannot write the run folder: {error if isinstance(error, OSError) else cause}.\n"
            "  Type: output_dir=<a folder you can write to>"
        )
    if isinstance(error, AssertionError) and str(error).startswith("Unexpected type for root"):
        return (
            "A setting belongs to a section that is null, so there is nothing to set in it.\n"
            "  Choose the section's option first, e.g. model@feedback.model=<option> before "
            "feedback.model.max_context=..."
        )
    if isinstance(error, OmegaConfBaseException):
        cause = error
    if isinstance(cause, OmegaConfBaseException):
        where = _place(str(error), str(cause.key), line)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return _explain_unknown_key(cause, where, line)
        return _explain_value(cause, where)
    if isinstance(error, HydraException):
        return _explain_composition(str(error), line)
    return None


PLUGINS = {"hydra/sweeper/optuna": "optuna"} | {
    f"hydra/launcher/{launcher}": extra for launcher, extra in EXTRAS.items()
}
"""Options of Hydra's that an extra of this package installs -> its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a mistake was made."""

    text: str
    """For the message."""
    override: str | None
    """The setting on the command line, if it is there."""
    group: str | None
    """Group of the YAML file, if it is in one."""


def _place(message: str, key: str, line: CommandLine) -> _Place:
    in_file = re.match(r"In '([^']+)'", message)
    if in_file:
        name = in_file[1]
        return _Place(
            text=_locate(name, key, line), override=None, group=str(Path(name).parent.as_posix())
        )
    given = re.search(r"(?:append to your config use \+|Error merging override )(.*)", message)
    override = given[1] if given else None
    return _Place(text=f"on the command line: {override or key}", override=override, group=None)


def _locate(name: str, key: str, line: CommandLine) -> str:
    """Return `path:line` of a key in the option file `group/name`."""
    for folder in line.config_dirs:
        path = folder / f"{name}.yaml"
        if path.is_file():
            for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if re.match(rf"\s*['\"]?{re.escape(key)}['\"]?\s*:", text):
                    return f"in {_shown(path)}:{number}"
            return f"in {_shown(path)}"
    return f"in {name}.yaml"


def _locate_default(group: str, option: str, line: CommandLine) -> str | None:
    """Find which of the chosen experiment, sweep or debug files asks for an option.

    Hydra blames the primary config for it.
    """
    for text in line.overrides:
        key, _, value = text.partition("=")
        for folder in line.config_dirs if key in RUN_GROUPS else []:
            path = folder / key / f"{value}.yaml"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for number, content in enumerate(lines, start=1):
                if re.search(rf"\b{re.escape(group)}(@\S+)?:\s*{re.escape(option)}\b", content):
                    return f"in {_shown(path)}:{number}"
    return None


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _explain_unknown_key(
    error: ConfigKeyError | ConfigAttributeError, where: _Place, line: CommandLine
) -> str:
    key = str(error.full_key)
    if key in REFUSED:
        return f"{key} is refused ({where.text}): {REFUSED[key]}."
    section, _, last = key.rpartition(".")
    if where.group in RUN_GROUPS and key == where.group:
        return (
            f"The option file {where.text.removeprefix('in ')} has no package: its first line must "
            "be\n  # @package _global_"
        )
    valid = _keys_of(error)
    names = [*valid, *RUN_GROUPS] if not section else valid
    lines = [
        f"Unknown key {key} ({where.text}).",
        f"  Valid keys {f'in {section}' if section else 'at the top'}: {', '.join(names)}",
    ]
    nearest = difflib.get_close_matches(last, names, n=1)
    found = (
        [f"{section}.{nearest[0]}" if section else nearest[0]]
        if nearest
        else [path for path in _all_keys() if path.rpartition(".")[2] == last]
    )
    lines += _suggest(found, where.override, key)
    return "\n".join(lines)


def _keys_of(error: ConfigKeyError | ConfigAttributeError) -> list[str]:
    if is_dataclass(error.object_type):
        return list(typing.get_type_hints(error.object_type))
    parent = error.parent_node
    return [str(name) for name in parent] if parent is not None else []


def _suggest(found: Sequence[str], override: str | None, key: str) -> list[str]:
    if not found:
        return []
    lines = [f"  Did you mean {' or '.join(found)}?"]
    if override is not None:
        typed, _, value = override.partition("=")
        # What follows a section whose own name is wrong.
        rest = typed[len(key) :] if typed.startswith(f"{key}.") else ""
        lines.append(f"  Type: {shlex.quote(f'{found[0]}{rest}={value}')}")
    return lines


def _all_keys() -> list[str]:
    """Return the dotted path of every setting of every phase."""
    found = dict.fromkeys(_walk(Config, ""))
    for phase in PHASES.values():
        found |= dict.fromkeys(_walk(phase, "phase."))
    return list(found)


def _walk(kind: type, prefix: str) -> Iterable[str]:
    for name, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _explain_value(error: OmegaConfBaseException, where: _Place) -> str:
    key = str(error.full_key or error.key)
    what = str(error).splitlines()[0].partition("while resolving interpolation: ")[2]
    if what:  # one of our own resolvers objects
        return f"{what}."
    what = str(error).splitlines()[0]
    hint: object = None
    if is_dataclass(error.object_type):
        hint = typing.get_type_hints(error.object_type).get(str(error.key))
    if hint is None:
        return f"{key} ({where.text}): {what}."
    lines = [f"Wrong value for {key} ({where.text}).", f"  It takes {_describe(hint)}."]
    given = re.search(r"[Vv]alue '([^']*)'", what)
    members = [name for kind in _members(hint) if _is_enum(kind) for name in kind.__members__]
    if members and given:
        near = difflib.get_close_matches(given[1], members, n=1)
        lines += [f"  Did you mean {name}?\n  Type: {key}={name}" for name in near]
    else:
        lines.append(f"  ({what})")
    return "\n".join(lines)


def _members(hint: object) -> tuple[typing.Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_enum(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _describe(hint: object) -> str:
    """Say what a field takes, e.g. `a whole number, or null`."""
    texts = []
    for kind in _members(hint):
        if _is_enum(kind):
            texts.append(f"one of {', '.join(kind.__members__)}")
        elif is_dataclass(kind):
            texts.append(f"a section with the keys {', '.join(typing.get_type_hints(kind))}")
        elif typing.get_origin(kind) is list:
            texts.append("a list such as [a,b]")
        else:
            texts.append(_TYPE_NAMES.get(kind, "a section"))
    return ", or ".join(texts)


def _explain_missing_option(error: MissingConfigException, line: CommandLine) -> str:
    if not error.missing_cfg_file or error.options is None:
        return str(error).partition("\nSearch path")[0]
    group, _, option = error.missing_cfg_file.rpartition("/")
    if (extra := PLUGINS.get(error.missing_cfg_file)) is not None:
        return (
            f"{error.missing_cfg_file} is a plugin that is not installed.\n"
            f"  Type: pip install -e '.[{extra}]'"
        )
    in_file = re.match(r"In '([^']+)'", str(error))
    typed = [text for text in line.overrides if option in text.partition("=")[2].split(",")]
    where = f"on the command line: {typed[0]}" if typed else ""
    if in_file and not typed:
        where = _locate_default(group, option, line) or f"in {in_file[1]}.yaml"
    lines = [
        f"No option {option} in group {group} ({where or 'in the defaults'}).",
        f"  Options: {', '.join(error.options)}",
    ]
    near = difflib.get_close_matches(option, error.options, n=1)
    if near:
        key = typed[0].partition("=")[0] if typed else group
        lines += [f"  Did you mean {near[0]}?", f"  Type: {key}={near[0]}"]
    return "\n".join(lines)


def _explain_composition(message: str, line: CommandLine) -> str:
    """Explain what Hydra itself noticed, outside any section."""
    if "--multirun" in message:
        return (
            "Several values for one setting need -m, before the settings.\n"
            f"  Type: {line.with_multirun()}\n"
            "  Or, for a list: key=[a,b]; for text with a comma: 'key=\"a,b\"'"
        )
    role = re.match(r"Could not override '([^'@]+@phase[^']*)'", message)
    if role:
        near = re.search(r"override one of (.*)\?", message)
        known = [key for key in (near[1].split(", ") if near else []) if "@" in key]
        return (
            f"{role[1]} is no role of this phase.\n"
            f"  Roles: {', '.join(known) or 'none'}; model=... sets the policy"
        )
    member = re.match(r"Could not override '(feedback@feedback\.members\.([^']*))'", message)
    if member:
        known = re.findall(r"feedback@feedback\.members\.([\w-]+)[,?]", message)
        if not known:
            return "Only an ensemble has members.\n  Type: feedback=ensemble ..."
        return (
            f"The ensemble has no member {member[2]} to replace; it has {', '.join(known)}.\n"
            f"  To add it, type: +{member[1]}=<option>"
        )
    return message.partition("\nTo append to your")[0].partition("\nConfig search path")[0]


def _explain_yaml(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f" ({mark.name}:{mark.line + 1}, column {mark.column + 1})" if mark else ""
    what = ", ".join(text for text in (error.context, error.problem) if text)
    return f"Cannot read a YAML file{where}: {what}."
