"""What the report tells of a comparison of runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cai.statistics import Estimate

ALPHA = 0.05
"""Corrected p-values below it count."""


class Spread(StrEnum):
    """What an interval is over."""

    seeds = "seeds"
    """Student's t over runs that differ in nothing but the seed."""
    prompts = "prompts"
    """One run's own interval: other seeds may give something else altogether."""
    none = "none"


class Verdict(StrEnum):
    """What may be said of a difference."""

    real = "real"
    """Outside the seed spread after correction, and more than prompts make."""
    not_after_correction = "not after correction"
    inside_seed_spread = "inside the seed spread"
    inside_prompt_spread = "inside the prompt spread"
    not_enough_seeds = "not enough seeds"
    identical = "identical"
    not_comparable = "not comparable"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run that takes part."""

    folder: str
    group: str
    seed: int
    phase: str
    constitution: str
    started: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A folder that does not take part."""

    folder: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """A configuration: runs that differ in nothing but the seed."""

    name: str
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """A setting on which the configurations differ."""

    key: str
    values: tuple[str | None, ...]
    """By group; None where the setting does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A metric of a group."""

    value: float
    """Mean over its seeds."""
    interval: tuple[float, float] | None
    spread: Spread
    by_seed: dict[int, float]

    @property
    def estimate(self) -> Estimate | None:
        """For people; None without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return Estimate(value=self.value, low=low, high=high, num=len(self.by_seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """A metric of every group."""

    name: str
    cells: tuple[Cell | None, ...]
    tested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTest:
    """A difference against the spread over seeds."""

    difference: Estimate
    p_value: float
    p_adjusted: float
    """Holm's, over all seed tests of the comparison."""
    paired: bool
    """By seed; else Welch's test of different seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTest:
    """A difference against the spread over evaluation prompts."""

    difference: Estimate
    p_value: float | None
    """Of flipped signs; None where the prompts differ, and so nothing is paired."""
    p_adjusted: float | None
    """Holm's, over all prompt tests of the comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of one group less that of the first."""

    metric: str
    group: str
    baseline: str
    value: float
    seeds: SeedTest | None
    prompts: PromptTest | None
    verdict: Verdict
    why: str = ""
    """Where nothing is tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveGroup:
    """The curves of one group: a line for each run."""

    name: str
    lines: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlaidCurves:
    """One quantity of training, of every run."""

    title: str
    x_label: str
    y_label: str
    groups: tuple[CurveGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """A run's value of a metric."""

    value: float
    interval: tuple[float, float] | None
    """The run's own, over its prompts or pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPoint:
    """One run."""

    folder: str
    group: str
    seed: int
    x: Coordinate
    y: Coordinate


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """One metric against another, over runs."""

    x_name: str
    y_name: str
    points: tuple[ScatterPoint, ...]
    correlation: Estimate | None
    """Spearman's rank correlation; None for too few runs, or where a metric never changes."""
    why: str
    """Why nothing is drawn; empty when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringMatrix:
    """What each constitution's policy does under each measure, of a run of `phase=matrix`."""

    folder: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    real: tuple[tuple[bool, ...], ...]
    """Cells beyond the spread over the matrix's own seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareStory:
    """A whole comparison."""

    groups: tuple[GroupRow, ...]
    """The first is what the others are compared with."""
    runs: tuple[RunRow, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    settings: tuple[SettingRow, ...]
    metrics: tuple[MetricRow, ...]
    differences: tuple[Difference, ...]
    scatter: Scatter | None = None
    """None unless it is asked for."""
    curves: tuple[OverlaidCurves, ...] = ()
    matrices: tuple[SteeringMatrix, ...] = ()

    @property
    def num_seed_tests(self) -> int:
        """How many p-values over seeds were corrected together."""
        return sum(one.seeds is not None for one in self.differences)

    @property
    def num_prompt_tests(self) -> int:
        """How many p-values over prompts were corrected together."""
        return sum(
            one.prompts is not None and one.prompts.p_value is not None for one in self.differences
        )

    def counts(self) -> dict[Verdict, int]:
        """Differences by verdict."""
        return {v: sum(one.verdict is v for one in self.differences) for v in Verdict}
