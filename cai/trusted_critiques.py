"""The shipped critiques whose verdict is known, split by hash into learned and held out.

Half of the responses are flawed: a critic that always finds fault is as wrong as one that never
does. Two responses to one conversation are on the same side of the split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cai.artifacts import file_sha256
from cai.critic_record import TrustedCritique
from cai.paths import PACKAGE
from cai.seeds import derive_seed
from cai.types import from_json

SIDES = 2**31


def path() -> Path:
    """The file."""
    return PACKAGE / "datasets" / "labelled" / "critiques.jsonl"


def sha256() -> str:
    """Its identity, for a stage's digest."""
    return file_sha256(path())


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Both sides."""

    train: tuple[TrustedCritique, ...]
    held_out: tuple[TrustedCritique, ...]


def load() -> tuple[TrustedCritique, ...]:
    """Every item, in the file's order."""
    lines = path().read_text("utf-8").splitlines()
    return tuple(
        from_json(TrustedCritique, json.loads(line), f"{path().name}:{number}")
        for number, line in enumerate(lines, start=1)
    )


def split(held_out_frac: float) -> Split:
    """The items, by the hash of their conversation's name; the run's seed has no part in it."""

    def held_out(item: TrustedCritique) -> bool:
        return derive_seed(0, "trusted_critique", item.id[:-1]) < held_out_frac * SIDES

    items = load()
    return Split(
        train=tuple(item for item in items if not held_out(item)),
        held_out=tuple(item for item in items if held_out(item)),
    )
