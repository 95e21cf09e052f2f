"""Training the probe of tuned feedback: folds, how much the comparisons count, calibration.

How much a general comparison counts beside the constitution's own tests is chosen, not set: under
`inverted` the tests ask for the opposite of what the comparisons say, under a narrow domain they
may say little about it. A pair whose label another question turns round says nothing about what is
better in general and always counts. Every candidate weight is tried by cross-validation, and the
probe that judges a fold has the weight that was best on the tests of the other folds.

Calibration is by held-out pairs that were labelled by their question: the tests, and the pairs
whose label turns. The tests alone are so clearly written that a probe calibrated on them is as good
as certain of everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from cai.feedback.probe import Kernel, folds_of, solve
from cai.feedback.tuned import Probe
from cai.feedback_config import TunedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Labelled pairs as features; rows are pairs."""

    differences: torch.Tensor
    """(n, D), better minus worse."""
    principles: torch.Tensor
    """(n, d)."""
    is_test: torch.Tensor
    """(n,) bool: the constitution's own test."""
    is_general: torch.Tensor
    """(n,) bool: a comparison whose label is taken to hold in general."""
    keys: Sequence[str]
    """`pair_key` of each."""
    groups: Sequence[str]
    """Pairs of one group are held out together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A trained probe and what is known about it."""

    probe: Probe
    comparison_weights: tuple[float, ...]
    """Chosen for each fold's training set, and last for the whole."""
    margins: torch.Tensor
    """(n,) held-out log-odds that the better response is preferred."""


def fit(examples: Examples, config: TunedConfig) -> Fit:
    """Train one probe without each fold and one on everything."""
    pairs = Kernel.of(examples.differences, examples.principles, by_principle=config.by_principle)
    kernel = pairs(examples.differences, examples.principles)
    folds = torch.tensor(folds_of(examples.groups, num_folds=config.num_folds))
    trained = _Trainer(
        kernel=kernel,
        folds=folds,
        is_test=examples.is_test,
        is_general=examples.is_general,
        config=config,
    )
    weights = config.comparison_weights if examples.is_test.any() else config.comparison_weights[:1]
    candidates = [trained.probes(weight) for weight in weights]
    losses = [trained.losses(alphas) for alphas in candidates]
    chosen = [_best(losses, without=fold) for fold in (*range(config.num_folds), None)]
    alphas = torch.stack([candidates[best][row] for row, best in enumerate(chosen)])
    margins = (alphas[folds] * kernel).sum(1)
    by_question = ~examples.is_general
    scale = calibrate(margins[by_question] if by_question.any() else margins)
    probe = Probe(
        differences=examples.differences,
        principles=examples.principles,
        alphas=alphas,
        scale=scale,
        by_principle=config.by_principle,
        folds=dict(zip(examples.keys, folds.tolist(), strict=True)),
    )
    return Fit(
        probe=probe,
        comparison_weights=tuple(weights[best] for best in chosen),
        margins=scale * margins,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trainer:
    """Trains on everything but some folds."""

    kernel: torch.Tensor
    folds: torch.Tensor
    is_test: torch.Tensor
    is_general: torch.Tensor
    config: TunedConfig

    def probes(self, weight: float) -> torch.Tensor:
        """Alpha (folds + 1, n) without each fold and with everything.

        Rows that are left out have alpha 0. The fit to everything is where the others begin.
        """
        weights = torch.where(self.is_general, weight, 1.0).to(self.kernel.dtype)
        whole = self._solve(weights, start=None)
        parts = [
            self._solve(torch.where(self.folds == fold, 0.0, weights), start=whole)
            for fold in range(self.config.num_folds)
        ]
        return torch.stack([*parts, whole])

    def _solve(self, weights: torch.Tensor, *, start: torch.Tensor | None) -> torch.Tensor:
        return solve(self.kernel, weights, penalty=self.config.penalty, start=start)

    def losses(self, alphas: torch.Tensor) -> list[tuple[float, int]]:
        """Held-out log loss summed over the tests of each fold, and how many they are."""
        margins = (alphas[self.folds] * self.kernel).sum(1)
        loss = functional.softplus(-margins)
        rows = [(self.folds == fold) & self.is_test for fold in range(self.config.num_folds)]
        return [(float(loss[own].sum()), int(own.sum())) for own in rows]


def _best(losses: Sequence[Sequence[tuple[float, int]]], *, without: int | None) -> int:
    """Number of the candidate with the lowest mean held-out loss outside one fold."""

    def mean(candidate: Sequence[tuple[float, int]]) -> float:
        kept = [one for fold, one in enumerate(candidate) if fold != without]
        num = sum(count for _, count in kept)
        return sum(loss for loss, _ in kept) / num if num else math.inf

    return min(range(len(losses)), key=lambda number: mean(losses[number]))


FAINT = 0.05
"""Least factor of calibration: a probe at chance still takes sides, faintly; it is the feedback
check that says that it is at chance."""
SURE = 10.0


def calibrate(margins: torch.Tensor) -> float:
    """The factor on held-out margins (n,) with the lowest log loss, from `FAINT` to `SURE`.

    One number for all folds; that it has seen the margins it scales is a matter of 1 / n.
    """
    low, high = FAINT, SURE
    for _ in range(60):  # the loss is convex in the factor: bisect its derivative
        factor = (low + high) / 2
        slope = -(margins * torch.sigmoid(-factor * margins)).sum()
        low, high = (factor, high) if slope < 0 else (low, factor)
    return (low + high) / 2
