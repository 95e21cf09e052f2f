"""Runs that differ in nothing but the seed form a group, named by what sets it apart."""

from __future__ import annotations

from dataclasses import dataclass

from cai.compare.runs import DOCUMENT, Run
from cai.compare.story import SettingRow

_NAMING = (".name", ".method")
"""Endings of keys that stand for their whole section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """A configuration and its runs, by seed."""

    name: str
    runs: dict[int, Run]
    settings: dict[str, str]

    def metric(self, name: str) -> dict[int, float]:
        """Value by seed, of the runs that have it."""
        return {seed: run.metrics[name] for seed, run in self.runs.items() if name in run.metrics}


def group_runs(runs: list[Run]) -> list[RunGroup]:
    """Groups in the order of their first runs."""
    members: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    settings = [dict(key) for key in members]
    names = _names(settings, runs[0])
    return [
        RunGroup(name=name, runs={run.seed: run for run in own}, settings=flat)
        for name, flat, own in zip(names, settings, members.values(), strict=True)
    ]


def differing(groups: list[RunGroup]) -> tuple[SettingRow, ...]:
    """Settings on which the groups differ, those that name a section first."""
    settings = [group.settings for group in groups]
    return tuple(
        SettingRow(key=key, values=tuple(flat.get(key) for flat in settings))
        for key in _differing_keys(settings)
    )


def _differing_keys(settings: list[dict[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for flat in settings for key in flat)
    different = [key for key in keys if len({flat.get(key) for flat in settings}) > 1]
    return sorted(different, key=_rank)


def _rank(key: str) -> tuple[int, int, str]:
    """Names of sections, then short keys; the document's digest last, which says nothing."""
    kind = 2 if key == DOCUMENT else 0 if key.endswith(_NAMING) else 1
    return (kind, key.count("."), key)


def _names(settings: list[dict[str, str]], first: Run) -> list[str]:
    """The fewest settings that tell all groups apart, best first."""
    if len(settings) == 1:
        return [f"{first.phase} {first.constitution['name']}"]
    keys = _differing_keys(settings)
    chosen: list[str] = []
    while _num_apart(settings, chosen) < len(settings):
        chosen.append(max(keys, key=lambda key: _num_apart(settings, [*chosen, key])))
    chosen = [
        key
        for key in chosen
        if _num_apart(settings, [k for k in chosen if k != key]) < len(settings)
    ]
    return [", ".join(_told(key, flat.get(key)) for key in chosen) for flat in settings]


def _num_apart(settings: list[dict[str, str]], keys: list[str]) -> int:
    return len({tuple(flat.get(key) for key in keys) for flat in settings})


def _told(key: str, value: str | None) -> str:
    short = key
    for ending in _NAMING:
        short = short.removesuffix(ending)
    return f"{short}={'(not there)' if value is None else value}"
