r"""A logistic probe on pairs whose direction depends on the conversation and on the principle.

One direction in feature space cannot serve every principle: refusing is better under one and worse
under another. The value of a response r in a conversation with context x, under a principle q, is
linear in its features f(r), with weights that depend on x and q:

    value(r; x, q) = sum_i alpha_i k(x_i, q_i; x, q) <D_i, f(r)> / d
    k(x', q'; x, q) = 1 + by_context <x', x> + by_principle <q', q>

D_i is the difference of features of training pair i (better minus worse), x and q are centred unit
vectors. alpha minimises the weighted sum of log(1 + exp(-m_i)) over the margins m = K alpha, plus
penalty / 2 alpha' K alpha: kernel logistic regression on differences (Bradley-Terry), convex, so
solved to its optimum by Newton steps. P(a preferred) = sigmoid(value(a) - value(b)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

MAX_STEPS = 50
TOLERANCE = 1e-8
"""Newton ends when no margin moves by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Means and standard deviations that make features comparable."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> Scaling:
        """Of rows (n, d)."""
        return cls(mean=rows.mean(0), std=rows.std(0, correction=0) + 1e-3)

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Centred rows with unit variance."""
        return (rows - self.mean) / self.std

    def unit(self, rows: torch.Tensor) -> torch.Tensor:
        """Centred rows with unit length."""
        return functional.normalize(self.apply(rows), dim=-1)


def gram(
    differences: tuple[torch.Tensor, torch.Tensor],
    contexts: tuple[torch.Tensor, torch.Tensor],
    principles: tuple[torch.Tensor, torch.Tensor],
    *,
    by_context: float,
    by_principle: float,
) -> torch.Tensor:
    """Kernel (n, m) between two lots of rows: features, contexts and principles of each."""
    left, right = differences
    linear = left @ right.T / left.shape[1]
    gate = 1 + by_context * contexts[0] @ contexts[1].T
    return linear * (gate + by_principle * principles[0] @ principles[1].T)


def solve(kernel: torch.Tensor, weights: torch.Tensor, *, penalty: float) -> torch.Tensor:
    """The minimising alpha (n,), by iteratively reweighted least squares, float64.

    Args:
        kernel: (n, n), symmetric and positive semi-definite.
        weights: (n,) of the pairs, at least 0.
        penalty: Above 0.
    """
    alpha = kernel.new_zeros(len(kernel))
    margins = kernel @ alpha
    used = weights > 0
    alpha_used, inner = alpha[used], kernel[used][:, used]
    margins, own = margins[used], weights[used]
    for _ in range(MAX_STEPS):
        wrong = torch.sigmoid(-margins)
        curvature = own * wrong * (1 - wrong) + 1e-12
        target = margins + own * wrong / curvature
        alpha_used = torch.linalg.solve(inner + torch.diag(penalty / curvature), target)
        moved = inner @ alpha_used
        if (moved - margins).abs().max() < TOLERANCE:
            break
        margins = moved
    alpha[used] = alpha_used
    return alpha


def folds_of(groups: Sequence[str], *, num_folds: int) -> list[int]:
    """A fold for each row; rows of one group share theirs, so near-copies are held out together."""
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [order[group] % num_folds for group in groups]
