r"""A logistic probe on pairs whose direction depends on the principle.

One direction in feature space cannot serve every principle: refusing is better under one and worse
under another. The value of a response under a principle q is linear in the features f that are read
with q's question behind the response, with weights that depend on q again:

    value(f; q) = sum_i alpha_i k(q_i, q) <D_i, f> / D
    k(q', q) = 1 + by_principle <q', q>

D_i is the difference of features of training pair i (better minus worse), in units of the root mean
square over the training pairs; D is their number; q are centred unit vectors, of the questions by
themselves. alpha minimises the weighted sum of log(1 + exp(-m_i)) over the margins m = K alpha,
plus penalty / 2 alpha' K alpha: kernel logistic regression on differences (Bradley-Terry), convex,
so solved to its optimum by Newton steps. P(a preferred) = sigmoid(value(a) - value(b)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

MAX_STEPS = 50
TOLERANCE = 1e-5
"""Newton ends when no margin moves by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """k(q_i, q) <D_i, f> / D between training pairs and anything that was read."""

    differences: torch.Tensor
    """(n, D), of unit mean square."""
    scale: torch.Tensor
    """(D,), what features are divided by."""
    principles: torch.Tensor
    """(n, d), unit vectors."""
    mean: torch.Tensor
    """(d,), of the training pairs' principles."""
    std: torch.Tensor
    by_principle: float

    @classmethod
    def of(
        cls, differences: torch.Tensor, principles: torch.Tensor, *, by_principle: float
    ) -> Kernel:
        """Of training pairs as read, (n, D) and (n, d)."""
        scale = differences.square().mean(0).sqrt() + 1e-6
        mean, std = principles.mean(0), principles.std(0, correction=0) + 1e-6
        return cls(
            differences=differences / scale,
            scale=scale,
            principles=functional.normalize((principles - mean) / std, dim=-1),
            mean=mean,
            std=std,
            by_principle=by_principle,
        )

    def __call__(self, features: torch.Tensor, principles: torch.Tensor) -> torch.Tensor:
        """(m, n) between rows as read, (m, D) and (m, d), and the training pairs."""
        linear = (features / self.scale) @ self.differences.T / len(self.scale)
        units = functional.normalize((principles - self.mean) / self.std, dim=-1)
        return linear * (1 + self.by_principle * units @ self.principles.T)


def solve(
    kernel: torch.Tensor,
    weights: torch.Tensor,
    *,
    penalty: float,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """The minimising alpha (n,), by iteratively reweighted least squares.

    Args:
        kernel: (n, n), symmetric and positive semi-definite.
        weights: (n,) of the pairs, at least 0.
        penalty: Above 0.
        start: An alpha (n,) near the optimum, which saves steps and changes nothing else.
    """
    alpha = kernel.new_zeros(len(kernel))
    used = weights > 0
    if not used.any():
        return alpha
    inner, own = kernel[used][:, used], weights[used]
    alpha_used = alpha[used] if start is None else start[used]
    margins = inner @ alpha_used
    for _ in range(MAX_STEPS):
        wrong = torch.sigmoid(-margins)
        curvature = own * wrong * (1 - wrong) + 1e-12
        target = margins + own * wrong / curvature
        factor = torch.linalg.cholesky(inner + torch.diag(penalty / curvature))
        alpha_used = torch.cholesky_solve(target[:, None], factor)[:, 0]
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
