"""What a reader of a matrix has to know before its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from cai.matrix.story import MatrixStory
from cai.statistics import MIN_SEEDS, at_chance

ALIKE = 0.9
"""Correlation of two judges from which they are one judge."""
IDENTICAL_LIMIT = 0.5
UNJUDGED_LIMIT = 0.25


def matrix_findings(story: MatrixStory) -> tuple[str, ...]:
    """Warnings, the most general first."""
    return (
        *_seeds(story),
        *_judges(story),
        *_dominance(story),
        *_controls(story),
        *_effects(story),
        *_missing(story),
    )


def _seeds(story: MatrixStory) -> Iterator[str]:
    num = len(story.seeds)
    if num < MIN_SEEDS:
        yield (
            f"{num} seed{'' if num == 1 else 's'}: too few to tell how much of a difference "
            "another seed makes, so the intervals are too narrow and no difference is called real. "
            f"Type at least {MIN_SEEDS}: phase.seeds=[0,1,2]"
        )


def _judges(story: MatrixStory) -> Iterator[str]:
    weak = [
        f"{one.name} {one.judge_accuracy.format()}"
        for one in story.subjects
        if one.judge_accuracy is not None
        and (at_chance(one.judge_accuracy) or one.judge_accuracy.value < 0.5)
    ]
    if weak:
        yield (
            f"Judges at chance on their constitution's own tests: {'; '.join(weak)}. Their columns "
            "say little about their principles."
        )
    alike = [
        f"{pair.first} and {pair.second} ({pair.correlation:.2f})"
        for pair in story.judges
        if pair.correlation is not None and pair.correlation >= ALIKE
    ]
    if alike:
        yield (
            f"Judges prefer the same responses whatever their constitution: correlation of "
            f"{', '.join(alike)}. Columns of such judges are one column, and no training can do "
            "better in one of them than in the other."
        )


def _dominance(story: MatrixStory) -> Iterator[str]:
    guided = {one.name for one in story.subjects if one.num_principles}
    own = [row for row in story.dominance if row.judge in guided]
    seen = [row.judge for row in own if row.judged is not None and row.judged.real]
    ahead = [
        row.judge
        for row in own
        if row.judged is not None and row.judged.real and row.judged.estimate.value > 0
    ]
    if not seen:
        yield (
            "At chance: under no judge does the policy trained on the judge's own constitution do "
            "better than the others by more than seeds and prompts make. This matrix shows no "
            "steering."
        )
    elif behind := [name for name in seen if name not in ahead]:
        yield (
            f"Training under {', '.join(behind)} pleases its own judge less than training under "
            "the other constitutions does."
        )
    if ahead and story.circular:
        yield (
            f"Own policies ahead under {', '.join(ahead)}: circular, because these judges made the "
            "labels that the policies learned from. The tests, whose responses no label is about "
            "(a tuned judge was trained on them), say: "
            f"{_told_tests(story, ahead)}."
        )


def _told_tests(story: MatrixStory, names: list[str]) -> str:
    rows = {row.judge: row.tests for row in story.dominance}
    told = []
    for name in names:
        tests = rows[name]
        if tests is None:
            told.append(f"{name} has none")
        elif tests.real:
            told.append(f"{name} {'the same' if tests.estimate.value > 0 else 'the opposite'}")
        else:
            told.append(f"{name} nothing beyond the spread")
    return ", ".join(told)


def _controls(story: MatrixStory) -> Iterator[str]:
    same = [
        f"{row.control} under {row.judge} ({row.gap.estimate.format()})"
        for row in story.controls
        if row.gap is not None and not (row.gap.real and row.gap.estimate.value > 0)
    ]
    if same:
        yield (
            "Controls do as well as the judge's own policy, which is ahead by no more than seeds "
            f"and prompts make: {'; '.join(same)}. What such a policy does is the procedure's "
            "doing, not the constitution's."
        )


def _effects(story: MatrixStory) -> Iterator[str]:
    shared = [
        cell
        for cell in story.cells
        if cell.win_rate is not None and cell.num_identical > IDENTICAL_LIMIT * _num_asked(story)
    ]
    if shared:
        names = sorted({cell.train for cell in shared})
        yield (
            f"Policies that answer most prompts with the base's own words: {', '.join(names)}. "
            "These are ties, so little can be seen."
        )


def _num_asked(story: MatrixStory) -> int:
    """Prompts of all seeds, those not judged included."""
    return max(
        (cell.win_rate.estimate.num + cell.num_unjudged for cell in story.cells if cell.win_rate),
        default=0,
    )


def _missing(story: MatrixStory) -> Iterator[str]:
    total = _num_asked(story)
    silent = sorted({cell.judge for cell in story.cells if cell.win_rate is None})
    if silent:
        yield f"The judges of {', '.join(silent)} judged nothing: their columns are left out."
    missing = [
        f"{cell.train} before {cell.judge}: {cell.num_unjudged} of {total}"
        for cell in story.cells
        if cell.win_rate is not None and cell.num_unjudged > UNJUDGED_LIMIT * total
    ]
    if missing:
        yield f"Many responses could not be judged ({'; '.join(missing)})."
