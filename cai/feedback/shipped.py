"""Labelled comparisons to train tuned feedback on: those that ship with the project, or a file.

`cai/datasets/labelled/comparisons.jsonl`: written for this project; per row an id, the concern that
the pair is about, the question it was labelled by, the conversation so far and two responses.

`criteria.jsonl`: written for it, too; per row an id, the conversation so far, two responses, a
question under which the first is better, and one under which the second is. A judge that goes by
what is better in general, and not by the question, is right on half of them.

`manipulations.jsonl`: texts that work on a judge instead of answering. Every few pairs one of them
is put behind a response, and the response without it is the better one, so that praise, verdicts
and forged turns do not count in a response's favour. None of them is among the attacks that
feedback is measured on (`judge_attacks.jsonl`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

from cai import paths
from cai.constitution import Principle
from cai.feedback.labelled import GENERAL_PRINCIPLE, Labelled, LabelledSet
from cai.feedback.labelled_files import read_labelled
from cai.types import Message

SHIPPED = "shipped"
"""The word in `feedback.comparisons` for the project's own."""


MANIPULATE_EVERY = 24
"""So many pairs to each pair with a manipulation."""


def training_comparisons(name: str, *, num: int | None) -> LabelledSet:
    """The pairs that `feedback.comparisons` names; a file's are read under the general principle.

    Args:
        name: `shipped` or a file.
        num: At most so many, spread evenly, a pair with both of its questions; None for all.

    Raises:
        UserError: when the file is not there or a row is not valid.
    """
    found = _shipped() if name == SHIPPED else _file(name)
    if num is None or num >= len(found.pairs):
        return found
    groups = [
        list(rows) for _, rows in itertools.groupby(found.pairs, key=lambda pair: _texts(pair))
    ]
    step = len(found.pairs) / num
    kept = [groups[int(k * step)] for k in range(math.ceil(len(groups) / step))]
    while sum(map(len, kept)) > num:
        kept.pop()
    return dataclasses.replace(found, pairs=tuple(pair for rows in kept for pair in rows))


def _texts(pair: Labelled) -> tuple[object, ...]:
    return (pair.messages, *sorted((pair.better, pair.worse)))


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
    folder = paths.PACKAGE / "datasets" / "labelled"
    names = ("comparisons", "manipulations", "criteria")
    files = [(folder / f"{name}.jsonl").read_bytes() for name in names]
    rows, manipulations, criteria = (
        [json.loads(line) for line in data.decode("utf-8").splitlines()] for data in files
    )
    pairs: list[Labelled] = []
    for number, row in enumerate(rows):
        pairs.append(_pair(row))
        if number % MANIPULATE_EVERY == 0:
            turn = number // MANIPULATE_EVERY
            pairs.append(_manipulated(pairs[-1], turn, manipulations[turn % len(manipulations)]))
    pairs += [side for row in criteria for side in _opposed(row)]
    return LabelledSet(
        pairs=tuple(pairs),
        source="comparisons that ship with the project",
        note=f"{len(pairs):,} pairs written for it.",
        identity={"source": SHIPPED, "sha256": hashlib.sha256(b"".join(files)).hexdigest()},
    )


def _pair(row: dict[str, Any]) -> Labelled:
    return Labelled(
        name=row["id"],
        messages=tuple(Message(**turn) for turn in row["messages"]),
        better=row["better"],
        worse=row["worse"],
        principle=_asking(row["concern"], row["question"]),
    )


def _opposed(row: dict[str, Any]) -> list[Labelled]:
    """One pair under each of its two questions."""
    first, second = row["responses"]
    return [
        Labelled(
            name=f"{row['id']}-{number}",
            messages=tuple(Message(**turn) for turn in row["messages"]),
            better=better,
            worse=worse,
            principle=_asking(f"{row['id']}-{number}", question),
            turns=True,
        )
        for number, (better, worse, question) in enumerate(
            [(first, second, row["first"]), (second, first, row["second"])]
        )
    ]


def _asking(name: str, question: str) -> Principle:
    """A principle that has nothing but a comparison form."""
    return Principle(
        id=name,
        principle="",
        critique="",
        revise="",
        compare=question,
        scope=(),
        weight=1.0,
        source="",
        tests=(),
        document="",
    )


def _manipulated(pair: Labelled, turn: int, manipulation: dict[str, str]) -> Labelled:
    """One of a pair's responses against itself with a manipulation behind it."""
    response = pair.better if turn % 2 else pair.worse
    return dataclasses.replace(
        pair,
        name=f"{pair.name}-{manipulation['id']}",
        better=response,
        worse=f"{response}\n\n{manipulation['text']}",
    )
