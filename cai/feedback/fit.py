"""Training the probe of tuned feedback: folds, how much the comparisons count, calibration.

How much a general comparison counts beside the constitution's own tests is chosen, not set: under
`inverted` the tests ask for the opposite of what the comparisons say, under a narrow domain they
may say little about it. Each candidate weight is tried by cross-validation on the tests inside
every training set, so the choice never sees the fold that it is measured on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from cai.feedback.probe import Scaling, folds_of, gram, solve
from cai.feedback.tuned import Probe
from cai.feedback_config import TunedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Labelled pairs as features; rows are pairs."""

    better: torch.Tensor
    """(n, 2 d)."""
    worse: torch.Tensor
    contexts: torch.Tensor
    """(n, d)."""
    principles: torch.Tensor
    """(n, d)."""
    is_test: torch.Tensor
    """(n,) bool: the constitution's own test, not a general comparison."""
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
    response = Scaling.of(torch.cat([examples.better, examples.worse]))
    context = Scaling.of(examples.contexts)
    principle = Scaling.of(examples.principles)
    differences = response.apply(examples.better) - response.apply(examples.worse)
    contexts, principles = context.unit(examples.contexts), principle.unit(examples.principles)
    kernel = gram(
        (differences, differences),
        (contexts, contexts),
        (principles, principles),
        by_context=config.by_context,
        by_principle=config.by_principle,
    )
    folds = torch.tensor(folds_of(examples.groups, num_folds=config.num_folds))
    trained = _Trainer(kernel=kernel, folds=folds, is_test=examples.is_test, config=config)
    outer: list[int | None] = [*range(config.num_folds), None]
    chosen = [trained.choose(fold) for fold in outer]
    alphas = torch.stack(
        [trained.solve({fold}, weight) for fold, weight in zip(outer, chosen, strict=True)]
    )
    margins = (alphas[folds] * kernel).sum(1)
    scale = calibrate(margins[examples.is_test] if examples.is_test.any() else margins)
    probe = Probe(
        differences=differences,
        contexts=contexts,
        principles=principles,
        alphas=alphas,
        scale=scale,
        response_scaling=response,
        context_scaling=context,
        principle_scaling=principle,
        by_context=config.by_context,
        by_principle=config.by_principle,
        folds=dict(zip(examples.keys, folds.tolist(), strict=True)),
    )
    return Fit(probe=probe, comparison_weights=tuple(chosen), margins=scale * margins)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trainer:
    """Trains on everything but some folds."""

    kernel: torch.Tensor
    folds: torch.Tensor
    is_test: torch.Tensor
    config: TunedConfig

    def solve(self, without: set[int | None], weight: float) -> torch.Tensor:
        """Alpha (n,), zero for the rows of the folds that are left out."""
        weights = torch.where(self.is_test, 1.0, weight).to(self.kernel.dtype)
        for fold in without - {None}:
            weights = torch.where(self.folds == fold, 0.0, weights)
        return solve(self.kernel, weights, penalty=self.config.penalty)

    def choose(self, without: int | None) -> float:
        """The comparisons' weight with the lowest held-out loss on the tests left to train on."""
        weights = self.config.comparison_weights
        if len(weights) == 1 or not self.is_test.any():
            return weights[0]
        losses = [self._loss(without, weight) for weight in weights]
        return weights[losses.index(min(losses))]

    def _loss(self, without: int | None, weight: float) -> float:
        total, num = 0.0, 0
        for fold in range(self.config.num_folds):
            rows = (self.folds == fold) & self.is_test
            if fold == without or not rows.any():
                continue
            margins = self.kernel[rows] @ self.solve({without, fold}, weight)
            total += float(functional.softplus(-margins).sum())
            num += int(rows.sum())
        return total / num if num else math.inf


def calibrate(margins: torch.Tensor) -> float:
    """The positive factor on held-out margins (n,) with the lowest log loss, at most 10.

    One number for all folds; that it has seen the margins it scales is a matter of 1 / n.
    """
    low, high = 0.0, 10.0
    for _ in range(60):  # the loss is convex in the factor: bisect its derivative
        factor = (low + high) / 2
        slope = -(margins * torch.sigmoid(-factor * margins)).sum()
        low, high = (factor, high) if slope < 0 else (low, factor)
    return (low + high) / 2
