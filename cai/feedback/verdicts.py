"""Whether a principle holds for one response: a verdict as a probability.

* `pointwise`: P(Yes), from the log-odds of its question.
* `score`: the expected mark as a share of the range, (mark - 0) / 10.
* `tuned`: a logistic in the probe's value against plain responses (`Tuned.values`), with slope and
  offset fitted to the constitution's tests, whose better responses hold and whose worse ones do
  not. A test is judged by the probe and by the logistic that have not seen its fold.

Other methods compare two responses and have no opinion on one (`cai.revisions_config`). Whether a
verdict means anything is measured on the same tests (`cai.stages.verdicts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cai.feedback.pointwise import Pointwise
from cai.feedback.score import Score
from cai.feedback.single import Single
from cai.feedback.tuned import Tuned
from cai.feedback.wording import HIGHEST, LOWEST
from cai.types import Unjudged

RIDGE = 1e-3
"""L2 penalty of the logistic, on values of unit spread: values that separate the tests would make
the slope infinite."""
MAX_STEPS = 100
TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """P(holds) = sigmoid(slope * value + offset)."""

    slope: float
    offset: float

    def prob(self, value: float) -> float:
        """P(holds) of a value."""
        return sigmoid(self.slope * value + self.offset)


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value < 0:
        return math.exp(value) / (1 + math.exp(value))
    return 1 / (1 + math.exp(-value))


def calibrated(values: Sequence[float], holds: Sequence[bool]) -> Calibration:
    """The logistic of lowest penalised log loss on labelled values, by Newton steps."""
    x = torch.tensor(values, dtype=torch.float64)
    spread = float(x.std(correction=0)) or 1.0
    rows = torch.stack([x / spread, torch.ones_like(x)], dim=1)
    labels = torch.tensor(holds, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(MAX_STEPS):
        probs = torch.sigmoid(rows @ weights)
        slope = rows.T @ (probs - labels) + RIDGE * weights
        curvature = rows.T @ (rows * (probs * (1 - probs))[:, None]) + RIDGE * torch.eye(
            2, dtype=torch.float64
        )
        step = torch.linalg.solve(curvature, slope)
        weights = weights - step
        if float(step.abs().max()) < TOLERANCE:
            break
    return Calibration(slope=float(weights[0]) / spread, offset=float(weights[1]))


def held_out(values: Sequence[float], holds: Sequence[bool], folds: Sequence[int]) -> list[float]:
    """P(holds) of every labelled value by the logistic of the other folds.

    Raises:
        ValueError: when all values are of one fold.
    """
    if len(set(folds)) < 2:
        raise ValueError("all values are of one fold")
    probs = [0.0] * len(values)
    for fold in set(folds):
        others = [row for row, own in enumerate(folds) if own != fold]
        fitted = calibrated([values[row] for row in others], [holds[row] for row in others])
        for row, own in enumerate(folds):
            if own == fold:
                probs[row] = fitted.prob(values[row])
    return probs


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """A feedback method asked about one response at a time."""

    method: Pointwise | Score | Tuned
    calibration: Calibration | None
    """Of a tuned method; None for the others."""

    def probs(self, singles: Sequence[Single]) -> list[float | Unjudged]:
        """P(holds) of each response under its principle, or why there is none; one batch."""
        values: Sequence[float | Unjudged]
        if isinstance(self.method, Tuned):
            values = self.method.values(singles, probes=[-1] * len(singles))
        else:
            values = self.method.values(singles)
        return [v if isinstance(v, Unjudged) else self.prob(v) for v in values]

    def prob(self, value: float) -> float:
        """P(holds) of a value."""
        match self.method:
            case Tuned():
                assert self.calibration is not None
                return self.calibration.prob(value)
            case Pointwise():
                return sigmoid(value)
            case Score():
                return (value - LOWEST) / (HIGHEST - LOWEST)
