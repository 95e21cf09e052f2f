"""Labelled comparisons to train tuned feedback on: those that ship with the project, or a file.

`cai/datasets/labelled/comparisons.jsonl`: written for this project; per row an id, the concern that
the pair is about, the question it was labelled by, the conversation so far and two responses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from cai import paths
from cai.constitution import Principle
from cai.feedback.labelled import GENERAL_PRINCIPLE, Labelled, LabelledSet
from cai.feedback.labelled_files import read_labelled
from cai.types import Message

SHIPPED = "shipped"
"""The word in `feedback.comparisons` for the project's own."""


def shipped_path() -> Path:
    """The file that ships."""
    return paths.PACKAGE / "datasets" / "labelled" / "comparisons.jsonl"


def training_comparisons(name: str, *, num: int | None) -> LabelledSet:
    """The pairs that `feedback.comparisons` names; a file's are read under the general principle.

    Args:
        name: `shipped` or a file.
        num: At most so many, spread evenly; None for all.

    Raises:
        UserError: when the file is not there or a row is not valid.
    """
    found = _shipped() if name == SHIPPED else _file(name)
    step = max(1, len(found.pairs) / (num or len(found.pairs) or 1))
    kept = tuple(found.pairs[int(k * step)] for k in range(int(len(found.pairs) / step)))
    return dataclasses.replace(found, pairs=kept)


def _file(name: str) -> LabelledSet:
    found = read_labelled(name, setting="feedback.comparisons")
    pairs = tuple(
        Labelled(
            name=f"row-{row.line}",
            messages=row.messages,
            better=row.better,
            worse=row.worse,
            principle=GENERAL_PRINCIPLE,
        )
        for row in found.rows
        if row.better.strip() and row.worse.strip() and row.better.strip() != row.worse.strip()
    )
    return LabelledSet(
        pairs=pairs,
        source=Path(name).name,
        note=f"{len(pairs):,} pairs of the file.",
        identity={"source": "file", "sha256": found.sha256},
    )


def _shipped() -> LabelledSet:
    data = shipped_path().read_bytes()
    rows = [json.loads(line) for line in data.decode("utf-8").splitlines()]
    pairs = tuple(
        Labelled(
            name=row["id"],
            messages=tuple(Message(**turn) for turn in row["messages"]),
            better=row["better"],
            worse=row["worse"],
            principle=Principle(
                id=row["concern"],
                principle="",
                critique="",
                revise="",
                compare=row["question"],
                scope=(),
                weight=1.0,
                source="",
                tests=(),
                document="",
            ),
        )
        for row in rows
    )
    return LabelledSet(
        pairs=pairs,
        source="comparisons that ship with the project",
        note=f"{len(pairs):,} pairs written for it.",
        identity={"source": SHIPPED, "sha256": hashlib.sha256(data).hexdigest()},
    )
