"""What a command line may not contain, checked before Hydra reads or writes anything.

Hydra 1.3 loads `constitution=../../x` from outside `conf/`, and what is typed goes into the run's
command, its manifest and sweep files, so a path as an option and a secret as a setting are refused.
So is a setting that another one on the same line makes void.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from cai.choices import Adapter, Until
from cai.errors import ConfigError
from cai.schema import NAME

SETTINGS = ("seed", "plan", "output_dir", "run", "example", "runs")
"""Keys of the root that are no groups."""

_SECRET = re.compile(
    r"(?:^|[._])(?:api_?key|access_?key|token|secret|password)(?:$|[._])", re.IGNORECASE
)
_ENDINGS = {
    Until.satisfied.value: ("num_revisions",),
    Until.fixed.value: ("threshold", "max_rounds", "principles_checked"),
}
"""Settings of `phase.revisions` without effect, by what a chain of revisions goes on until."""
_CODE = re.compile(r"(?:^|\.)_(?!(?:self|here|global)_)\w+_(?:$|\.)")


def is_override(argument: str) -> bool:
    """Tell a setting (`key=value`, `+key=value`, `~key`) from a flag or a flag's value."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse secrets, keys that name code, and options that are paths.

    Raises:
        ConfigError: One of them is there; the message names the key and never the value.
        hydra.errors.OverrideParseException: An override cannot be parsed.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    _check_used(parsed)
    for override in parsed:
        _check_keys(override)
        if "." not in override.key_or_group and override.key_or_group not in SETTINGS:
            for option in _choices(override):
                check_option(override.key_or_group, option)


def check_option(group: str, option: str) -> None:
    """Refuse an option that is not the plain name of a file in its group.

    Raises:
        ConfigError: It is a path, or has characters that no option has.
    """
    parts = option.split("/") if group.startswith("hydra/") else [option]
    if not all(NAME.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{group}={option} is refused: an option is the name of a file in conf/{group}/, made "
            "of letters, digits, '.', '_' and '-'.\n"
            "  For options of your own: --config-dir DIR, with the file in "
            f"DIR/{group}/<name>.yaml"
        )


def _check_used(overrides: Sequence[Override]) -> None:
    """Refuse settings of adapters for a model that is trained without, and of another ending."""
    keys = {override.get_key_element().lstrip("+"): override.value() for override in overrides}
    for key in keys:
        model, lora, _ = key.partition(".lora.")
        if lora and keys.get(f"{model}.adapter") == Adapter.none.value:
            raise ConfigError(
                f"{key} has no effect with {model}.adapter=none, which trains all weights.\n"
                f"  Leave one of the two out."
            )
    until = keys.get("phase.revisions.until")
    for name in _ENDINGS.get(str(until), ()):
        if f"phase.revisions.{name}" in keys:
            raise ConfigError(
                f"phase.revisions.{name} has no effect with phase.revisions.until={until}.\n"
                f"  Leave one of the two out."
            )


def _check_keys(override: Override) -> None:
    key = override.get_key_element().lstrip("+~")
    value = override.value()
    keys = [override.key_or_group, override.package or "", *_nested_keys(value)]
    if key == "hydra.job.env_copy":  # these variables would be copied into Hydra's own config
        keys.extend(value if isinstance(value, list) else [])
    for name in keys:
        if _SECRET.search(name):
            raise ConfigError(
                f"{key} is refused: it looks like a secret, and settings are written to files and "
                "to the tracker.\n"
                "  Put it in the environment instead, e.g.: export WANDB_API_KEY=...  or  "
                "export HF_TOKEN=..."
            )
        if _CODE.search(name):
            raise ConfigError(f"{key} is refused: nothing in a config names code to run.")


def _nested_keys(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _nested_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nested_keys(inner)


def _choices(override: Override) -> list[str]:
    """Return the options that an override of a group names; a glob only matches what is there."""
    if override.is_sweep_override():
        if not override.is_choice_sweep() or isinstance(override.value(), Glob):
            return []
        return [text for text in override.sweep_string_iterator() if text != "null"]
    value = override.value()
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]
