"""`matrix.json`: the steering matrix for machines, in its run folder; and its flat metrics.

Schema, version 1. A reader may rely on every field below; a new field does not raise the version, a
changed meaning does. What the numbers mean is at the top of `cai.matrix.measures`. A *seeded*
estimate is `value`, `low`, `high` (95 %, over seeds and prompts), `num` (observations), `by_seed`
(each seed's mean, in the order of `seeds`) and `real` (differs from 0 by more than seeds differ
from each other; meaningless for a share), or null where nothing was observed. An *estimate* has the
first four.

* `schema`: `"cai.matrix"`; `schema_version`: 1; `cai`: version of the program
* `method`, `policy`: what was trained; `seeds`; `judge`: the feedback; `prompts`: what was answered
* `circular`: whether the judge of a diagonal cell made the labels that its policy learned from
* `constitutions`: in order: `name`, `document`, `num_principles`, `control`, `judge_accuracy`
  (estimate on its own tests), `adapter` (below the run folder, of the first seed; or empty),
  `policies` (`seed`, `stage`, `digest`: the trained adapter in the store)
* `cells`: `train`, `judge`, `own` (the same constitution), `win_rate` (P(policy preferred to base),
  seeded), `effect` (less its column's mean, seeded), `num_identical`, `num_unjudged`
* `tests`: `train`, `judge`, `own`, `accuracy`, `shift` and `effect` in nats per token (seeded), for
  constitutions with tests
* `dominance`: `judge` (null: the mean over constitutions with principles), `judged`, `tests`
  (seeded): the own policy less all others
* `controls`: `judge`, `control`, `gap` (seeded): the own policy less the control's
* `judges`: `first`, `second`, `correlation` of their preferences, or null
* `warnings`: sentences
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cai import __version__
from cai.matrix.seeded import Seeded
from cai.matrix.story import CellStory, LikelihoodCellStory, MatrixStory, SubjectStory

if TYPE_CHECKING:  # runs are compared without torch
    from cai.phases.matrix import Outputs

FILE = "matrix.json"
SCHEMA = "cai.matrix"
SCHEMA_VERSION = 1

Table = tuple[tuple[str, ...], list[list[object]]]
"""Columns and rows for the mirror."""


def matrix_record(
    story: MatrixStory, outputs: Outputs, *, warnings: tuple[str, ...]
) -> dict[str, Any]:
    """The matrix as plain JSON values."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "cai": __version__,
        "method": story.method,
        "policy": story.policy,
        "seeds": list(story.seeds),
        "judge": story.judge,
        "prompts": story.prompts,
        "circular": story.circular,
        "constitutions": [_subject(one, outputs) for one in story.subjects],
        "cells": [_cell(cell) for cell in story.cells],
        "tests": [_test_cell(cell) for cell in story.tests],
        "dominance": [
            {
                "judge": row.judge or None,
                "judged": _seeded(row.judged),
                "tests": _seeded(row.tests),
            }
            for row in story.dominance
        ],
        "controls": [
            {"judge": row.judge, "control": row.control, "gap": _seeded(row.gap)}
            for row in story.controls
        ],
        "judges": [dataclasses.asdict(pair) for pair in story.judges],
        "warnings": list(warnings),
    }


def _subject(subject: SubjectStory, outputs: Outputs) -> dict[str, Any]:
    return dataclasses.asdict(subject) | {
        "policies": [
            {"seed": one.seed, "stage": one.adapter.stage, "digest": one.adapter.digest}
            for one in outputs.policies
            if one.train == subject.name
        ]
    }


def _cell(cell: CellStory) -> dict[str, Any]:
    return {
        "train": cell.train,
        "judge": cell.judge,
        "own": cell.train == cell.judge,
        "win_rate": _seeded(cell.win_rate),
        "effect": _seeded(cell.effect),
        "num_identical": cell.num_identical,
        "num_unjudged": cell.num_unjudged,
    }


def _test_cell(cell: LikelihoodCellStory) -> dict[str, Any]:
    return {
        "train": cell.train,
        "judge": cell.judge,
        "own": cell.train == cell.judge,
        "accuracy": _seeded(cell.accuracy),
        "shift": _seeded(cell.shift),
        "effect": _seeded(cell.effect),
    }


def _seeded(found: Seeded | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return dataclasses.asdict(found.estimate) | {
        "by_seed": list(found.by_seed),
        "real": found.real,
    }


def matrix_metrics(story: MatrixStory) -> dict[str, float]:
    """Flat numbers, `matrix/<train>/<judge>/...`; an interval's ends are `_low` and `_high`."""
    found: dict[str, float] = {
        "matrix/num_constitutions": float(len(story.subjects)),
        "matrix/num_seeds": float(len(story.seeds)),
    }
    for name, value in _named(story):
        if value is not None:
            found[f"matrix/{name}"] = value.estimate.value
            found[f"matrix/{name}_low"] = value.estimate.low
            found[f"matrix/{name}_high"] = value.estimate.high
    for pair in story.judges:
        if pair.correlation is not None:
            found[f"matrix/correlation/{pair.first}/{pair.second}"] = pair.correlation
    for one in story.subjects:
        if one.judge_accuracy is not None:
            found[f"matrix/judge_accuracy/{one.name}"] = one.judge_accuracy.value
    ahead = [
        row.judge
        for row in story.dominance
        if row.judge and row.judged and row.judged.real and row.judged.estimate.value > 0
    ]
    found["matrix/num_dominant"] = float(len(ahead))
    return found


def _named(story: MatrixStory) -> Iterator[tuple[str, Seeded | None]]:
    for cell in story.cells:
        yield f"{cell.train}/{cell.judge}/win_rate", cell.win_rate
        yield f"{cell.train}/{cell.judge}/effect", cell.effect
    for test in story.tests:
        yield f"{test.train}/{test.judge}/test_accuracy", test.accuracy
        yield f"{test.train}/{test.judge}/test_shift", test.shift
    for row in story.dominance:
        yield f"dominance/{row.judge or 'mean'}", row.judged
        yield f"dominance_on_tests/{row.judge or 'mean'}", row.tests
    for control in story.controls:
        yield f"over_control/{control.judge}/{control.control}", control.gap


def matrix_tables(story: MatrixStory) -> dict[str, Table]:
    """Columns and rows for the mirror: every cell, and every contrast."""
    columns = (
        "train", "judge", "own", "win_rate", "win_rate_low", "win_rate_high", "effect",
        "effect_low", "effect_high", "real", "identical", "unjudged", "test_accuracy",
        "test_shift", "test_shift_low", "test_shift_high",
    )  # fmt: skip
    tests = {(cell.train, cell.judge): cell for cell in story.tests}
    cells: list[list[object]] = []
    for cell in story.cells:
        test = tests.get((cell.train, cell.judge))
        cells.append(
            [
                cell.train,
                cell.judge,
                cell.train == cell.judge,
                *_three(cell.win_rate),
                *_three(cell.effect),
                None if cell.effect is None else cell.effect.real,
                cell.num_identical,
                cell.num_unjudged,
                None if test is None else test.accuracy.estimate.value,
                *_three(None if test is None else test.shift),
            ]
        )
    contrasts: list[list[object]] = [
        [what, judge, against, *_three(value), None if value is None else value.real]
        for what, judge, against, value in _contrasts(story)
    ]
    heads = ("measure", "judge", "against", "value", "low", "high", "real")
    return {"matrix": (columns, cells), "matrix_contrasts": (heads, contrasts)}


def _contrasts(story: MatrixStory) -> Iterator[tuple[str, str, str, Seeded | None]]:
    for row in story.dominance:
        judge = row.judge or "mean"
        yield "judged", judge, "all others", row.judged
        yield "tests", judge, "all others", row.tests
    for control in story.controls:
        yield "judged", control.judge, control.control, control.gap


def _three(found: Seeded | None) -> tuple[float | None, float | None, float | None]:
    if found is None:
        return None, None, None
    return found.estimate.value, found.estimate.low, found.estimate.high
