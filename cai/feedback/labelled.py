"""Labelled comparisons: the constitution's own tests, or a file that somebody else labelled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.config import EvaluationConfig
from cai.constitution import Constitution, Principle
from cai.documents import derive_forms
from cai.errors import UserError
from cai.feedback.labelled_files import LabelledRow, read_labelled
from cai.seeds import python_rng
from cai.types import Message
from cai.yaml_nodes import did_you_mean, quote

GENERAL = "general"
DRAWN = "drawn"
"""What `evaluation.feedback_principle` may say besides a principle's id."""

_SENTENCE = (
    "The response is of real help with what was asked, is honest about what is true and what is "
    "uncertain, and does no harm to the person or to anybody else."
)
GENERAL_PRINCIPLE = Principle(
    id=GENERAL,
    principle=_SENTENCE,
    **dataclasses.asdict(derive_forms(_SENTENCE))
    | {"compare": "Which response would a careful, honest and kind person rather have given?"},
    scope=("general",),
    weight=1.0,
    source="Written for cai.",
    tests=(),
    document="",
)
"""Helpful, honest and harmless: what most public comparisons are labelled by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A pair whose better side is known."""

    name: str
    """`<principle>-<index>`, or `row-<line>` of a file."""
    messages: tuple[Message, ...]
    better: str
    worse: str
    principle: Principle | None
    """What it is judged under; None: one is drawn for it."""
    turns: bool = False
    """Another question turns its label round, so it says nothing of what is better in general."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet:
    """The labelled pairs that a run's feedback is measured on."""

    pairs: tuple[Labelled, ...]
    source: str
    """For people, e.g. `the constitution's own tests`, or a file's name."""
    note: str
    """What they are and what they are judged under; sentences for people."""
    identity: dict[str, Any]
    """What decides them, besides constitution and seed; for the stage's digest."""


def labelled_set(config: EvaluationConfig, constitution: Constitution, *, seed: int) -> LabelledSet:
    """The pairs that `evaluation.feedback_data` names, or the constitution's own tests.

    Raises:
        UserError: when the file or the principle is not there, or a row is not valid.
    """
    if config.feedback_data is not None:
        return _from_file(config, config.feedback_data, constitution)
    tests = constitution_tests(constitution, num=config.num_feedback_tests, seed=seed)
    written = sum(len(principle.tests) for principle in constitution.principles)
    return LabelledSet(
        pairs=tuple(tests),
        source="the constitution's own tests",
        note=f"{len(tests):,} of the {written:,} pairs whose better response the constitution's "
        "authors gave, each judged under the principle that it tests.",
        identity={"source": "tests"},
    )


def _from_file(config: EvaluationConfig, path: str, constitution: Constitution) -> LabelledSet:
    found = read_labelled(path, setting="evaluation.feedback_data")
    principle = _principle(config.feedback_principle, constitution)
    kept = found.rows[: config.num_feedback_pairs]
    under = (
        f"the principle {principle.id}, \u201c{principle.principle}\u201d"
        if principle
        else "a principle drawn for it."
    )
    left_out = (
        f" {found.num_without_prompt:,} more rows are left out: their two conversations share no "
        "turn."
        if found.num_without_prompt
        else ""
    )
    which = (
        f"All {len(kept):,} pairs of the file"
        if len(kept) == len(found.rows)
        else f"{len(kept):,} of the file's {len(found.rows):,} pairs, the first by hash"
    )
    return LabelledSet(
        pairs=tuple(_row(row, principle) for row in kept),
        source=Path(path).name,
        note=f"{which} ({found.form}), each judged under {under}{left_out}",
        identity={
            "source": "file",
            "sha256": found.sha256,
            "principle": dataclasses.asdict(principle) if principle else DRAWN,
        },
    )


def _principle(setting: str, constitution: Constitution) -> Principle | None:
    """What rows without a principle are judged under; None: one is drawn for each."""
    if setting == GENERAL:
        return GENERAL_PRINCIPLE
    if setting == DRAWN:
        return None
    known = {principle.id: principle for principle in constitution.principles}
    if setting not in known:
        words = [GENERAL, DRAWN, *known]
        raise UserError(
            f"evaluation.feedback_principle={quote(setting)[1:-1]}: there is no such principle in "
            f"{constitution.name}.{did_you_mean(setting, words)} It takes {GENERAL}, {DRAWN}, or "
            f"the id of a principle: {', '.join(known) or 'this constitution has none'}"
        )
    return known[setting]


def _row(row: LabelledRow, principle: Principle | None) -> Labelled:
    return Labelled(
        name=f"row-{row.line}",
        messages=row.messages,
        better=row.better,
        worse=row.worse,
        principle=principle,
    )


def constitution_tests(constitution: Constitution, *, num: int | None, seed: int) -> list[Labelled]:
    """The first `num` tests, None for all, in seeded order, principle by principle in turn."""
    rng = python_rng(seed, "tests")
    queues = []
    for principle in constitution.principles:
        tests = list(enumerate(principle.tests))
        rng.shuffle(tests)
        queues.append([_test(principle, index) for index, _ in tests])
    rng.shuffle(queues)
    rounds = max(map(len, queues), default=0)
    return [q[turn] for turn in range(rounds) for q in queues if turn < len(q)][:num]


def _test(principle: Principle, index: int) -> Labelled:
    test = principle.tests[index]
    return Labelled(
        name=f"{principle.id}-{index}",
        messages=(Message(role="user", content=test.prompt),),
        better=test.better,
        worse=test.worse,
        principle=principle,
    )
