"""What a matrix has to tell; filled by `cai.matrix.account`, shown by report and terminal."""

from __future__ import annotations

from dataclasses import dataclass

from cai.matrix.seeded import Seeded
from cai.statistics import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectStory:
    """One constitution: what it trained, and how good its judge is."""

    name: str
    document: str
    """Name and version as the document says them."""
    num_principles: int
    control: bool
    judge_accuracy: Estimate | None
    """Its judge on its own tests; None where it has none."""
    adapter: str
    """Where its first seed's adapter is, below the run's folder; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStory:
    """One policy before one judge; None where nothing was observed."""

    train: str
    judge: str
    win_rate: Seeded | None
    """P(policy preferred to base)."""
    effect: Seeded | None
    """Less its column's mean."""
    num_identical: int
    """Prompts that policy and base answer with the same text: ties, worth 0.5."""
    num_unjudged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodCellStory:
    """One policy on one constitution's tests, where nobody judges."""

    train: str
    judge: str
    accuracy: Seeded
    """Share of the tests whose better response it finds likelier per token."""
    shift: Seeded
    """Nats per token that the better response gained on the worse one, against the base."""
    effect: Seeded
    """The shift less its column's mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DominanceStory:
    """One constitution's own policy against all others, before its judge."""

    judge: str
    """Empty for the mean over constitutions with principles."""
    judged: Seeded | None
    """By its judge's win rates."""
    tests: Seeded | None
    """By shifts on its tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlStory:
    """A constitution's own policy against that of a control, before its judge."""

    judge: str
    control: str
    gap: Seeded | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgesStory:
    """Two judges: how alike their preferences are."""

    first: str
    second: str
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixStory:
    """The chapter on the steering matrix."""

    method: str
    """E.g. `rlaif`."""
    policy: str
    """What the policies are called, e.g. `rl_cai`."""
    seeds: tuple[int, ...]
    judge: str
    """The feedback's method and models."""
    prompts: str
    """What was answered, for people."""
    circular: bool
    """Whether the judge of the diagonal made the labels that its policy learned from."""
    subjects: tuple[SubjectStory, ...]
    cells: tuple[CellStory, ...]
    tests: tuple[LikelihoodCellStory, ...]
    no_tests: tuple[str, ...]
    """Constitutions without a test, hence without a column of tests."""
    dominance: tuple[DominanceStory, ...]
    """One for each judge, then the mean over those with principles."""
    controls: tuple[ControlStory, ...]
    judges: tuple[JudgesStory, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the constitutions, in order."""
        return tuple(subject.name for subject in self.subjects)

    def cell(self, train: str, judge: str) -> CellStory:
        """One policy before one judge."""
        return next(c for c in self.cells if (c.train, c.judge) == (train, judge))

    def test_cell(self, train: str, judge: str) -> LikelihoodCellStory:
        """One policy on one constitution's tests."""
        return next(c for c in self.tests if (c.train, c.judge) == (train, judge))

    @property
    def tested(self) -> tuple[str, ...]:
        """Constitutions with a column of tests."""
        return tuple(name for name in self.names if name not in self.no_tests)
