"""What a steering matrix says: numbers from judgements, by hand.

A cell is a policy (trained under one constitution) before a judge (the feedback under one
constitution): the mean probability that the judge prefers the policy's response to the base's on
the same prompt; 0.5 is no change.

Judges differ in leniency, so cells of two columns cannot be compared: what steers is an *effect*, a
cell less the mean of its column, taken prompt by prompt over the prompts where every policy was
judged. *Dominance* of a constitution is its own policy's cell less the mean of all other policies'
in its column; it is 0 where a judge does not care which constitution a policy was trained under.

The same differences on the judge's own tests, where nobody judges: the log-probability per token of
the better response less that of the worse one, under the policy less under the base (*shift*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cai.matrix.seeded import Seeded, over_seeds

Observed = Mapping[int, Mapping[str, float]]
"""Seed -> prompt or test -> what was observed of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are resampled."""

    num: int
    seed: int

    def mean(
        self, observed: Observed, *, bounds: tuple[float, float] | None = None
    ) -> Seeded | None:
        """Over all that was observed, seeds alike."""
        groups = [list(own.values()) for _, own in sorted(observed.items())]
        return over_seeds(groups, num_resamples=self.num, seed=self.seed, bounds=bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """One quantity for every policy and judge, e.g. P(policy preferred)."""

    names: tuple[str, ...]
    """Constitutions, each a policy's."""
    judges: tuple[str, ...]
    """Those that have a column."""
    observed: Mapping[tuple[str, str], Observed]
    """(policy, judge) -> what was observed."""

    def cell(self, train: str, judge: str) -> Observed:
        """What was observed of one policy before one judge."""
        return self.observed[train, judge]

    def effect(self, train: str, judge: str) -> dict[int, dict[str, float]]:
        """The cell less the column's mean over policies, paired."""
        return self._contrast(judge, lambda v: v[train] - math.fsum(v.values()) / len(v))

    def dominance(self, judge: str) -> dict[int, dict[str, float]]:
        """The judge's own policy less the mean of all others, paired."""

        def gap(values: Mapping[str, float]) -> float:
            others = [value for name, value in values.items() if name != judge]
            return values[judge] - math.fsum(others) / len(others)

        return self._contrast(judge, gap)

    def over(self, judge: str, other: str) -> dict[int, dict[str, float]]:
        """The judge's own policy less another one, paired."""
        return self._contrast(judge, lambda v: v[judge] - v[other])

    def mean_dominance(self, judges: Sequence[str]) -> dict[int, dict[str, float]]:
        """Dominance averaged over judges, prompt by prompt, where all judged the prompt."""
        parts = [self.dominance(judge) for judge in judges]
        return {
            seed: {
                key: math.fsum(one[seed][key] for one in parts) / len(parts)
                for key in first
                if all(key in one[seed] for one in parts)
            }
            for seed, first in parts[0].items()
        }

    def mean_own_dominance(self, judges: Sequence[str]) -> dict[int, dict[str, float]]:
        """Dominance on what each judge has to itself, its tests: the mean of the judges' means.

        Observations are weighed so that judges count alike, however many tests they have.
        """
        parts = {judge: self.dominance(judge) for judge in judges}
        found: dict[int, dict[str, float]] = {}
        for seed in parts[judges[0]]:
            num = sum(len(own[seed]) for own in parts.values())
            found[seed] = {
                f"{judge}:{key}": value * num / (len(judges) * len(own[seed]))
                for judge, own in parts.items()
                for key, value in own[seed].items()
            }
        return found

    def _contrast(
        self, judge: str, make: Callable[[Mapping[str, float]], float]
    ) -> dict[int, dict[str, float]]:
        cells = {name: self.observed[name, judge] for name in self.names}
        first = cells[self.names[0]]
        found: dict[int, dict[str, float]] = {}
        for seed, own in first.items():
            shared = [key for key in own if all(key in cells[n][seed] for n in self.names)]
            found[seed] = {
                key: make({name: cells[name][seed][key] for name in self.names}) for key in shared
            }
        return found

    def correlation(self, judge: str, other: str) -> float | None:
        """Pearson's r of two judges over all policies, seeds and prompts; None without spread."""
        pairs = [
            (own[seed][key], self.observed[name, other][seed][key])
            for name in self.names
            for own in [self.observed[name, judge]]
            for seed in own
            for key in own[seed]
            if key in self.observed[name, other][seed]
        ]
        if len(pairs) < 2:
            return None
        first, second = np.asarray(pairs, dtype=np.float64).T
        if first.std() == 0 or second.std() == 0:
            return None
        return float(np.corrcoef(first, second)[0, 1])
