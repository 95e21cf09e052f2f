"""Labelled comparisons: the constitution's own tests, or a file that somebody else labelled."""

from __future__ import annotations

from dataclasses import dataclass

from cai.constitution import Constitution, Principle
from cai.seeds import python_rng
from cai.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A pair whose better side is known."""

    name: str
    """`<principle>-<index>`, or the row's id in its file."""
    messages: tuple[Message, ...]
    better: str
    worse: str
    principle: Principle | None
    """What it was labelled by; None when the label has no principle of this constitution."""


def constitution_tests(constitution: Constitution, *, num: int, seed: int) -> list[Labelled]:
    """The first `num` tests of a constitution in seeded order, principle by principle in turn."""
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
