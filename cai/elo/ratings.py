"""Bradley-Terry ratings by maximum likelihood, with and without control of length.

P(i beats j) = s(r_i - r_j) with s the logistic function (Bradley & Terry 1952, Biometrika 39, p.
324); Bai et al. 2022 (2204.05862, sec. 2.4.3) fit the same to choices of people. Outcomes may be
soft: a judge's P(i preferred) counts as that part of a win, and 0.5 as a tie. Ratings are shown as
Elo, r * 400 / ln 10, less that of an anchor: only differences mean anything.

With control of length, P(i beats j) = s(r_i - r_j + g log(l_i / l_j)) for lengths l, and ratings
are read where responses are equally long: a logistic regression on the length ratio evaluated at
1.0 (Lee et al. 2023, 2309.00267, app. J), for all pairs of policies at once with one g.

Without a prior a policy that wins everything has no finite rating. Every two players therefore
have `prior` more matches that end in a tie; for two players and `prior=1` that is Jeffreys' prior,
half a win for each. The same is done for g: `prior` ties of two equal players, one response e times
as long. The likelihood is strictly concave then, and found by damped Newton steps whose damping
makes them converge from anywhere (Sun & Tran-Dinh 2019, "Generalized self-concordant functions",
case nu = 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ELO_PER_NAT = 400 / math.log(10)
"""Elo points for a unit of log-odds: a win rate of 10/11 is 400."""
_MAX_STEPS = 200
_TOLERANCE = 1e-10
_BLOCK = 4_000_000
"""Numbers held at once by a bootstrap, to bound memory on large tournaments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One prompt's responses of two players, compared."""

    prompt: int
    """Its number; matches of one prompt are resampled together."""
    a: int
    """Number of a player."""
    b: int
    prob_a: float
    """P(a preferred), in [0, 1]."""
    log_length_ratio: float
    """Log of a's length over b's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Ratings of all players, each sample in a row; the first row is the estimate itself."""

    log_odds: np.ndarray
    """(1 + num_resamples, num_players), the anchor's being 0."""
    length_effect: np.ndarray | None
    """(1 + num_resamples,): g, the log-odds of being preferred for e times the length; None without
    control of length."""

    @property
    def elo(self) -> np.ndarray:
        """(1 + num_resamples, num_players) in Elo points."""
        return self.log_odds * ELO_PER_NAT


def expected_win_rate(elo_difference: float) -> float:
    """1 / (1 + 10^(-d / 400))."""
    return 1 / (1 + 10 ** (-elo_difference / 400))


def rate(
    matches: Sequence[Match],
    *,
    num_players: int,
    anchor: int,
    prior: float,
    control_length: bool,
    num_resamples: int,
    seed: int,
) -> Ratings:
    """Ratings, and those of bootstrap samples of the prompts.

    Prompts are drawn with replacement and bring all of their matches, since those of one prompt
    share responses (Efron & Tibshirani 1993, ch. 8: resample what is independent).

    Args:
        matches: At least one, in any order; a player may be a or b.
        num_players: Players are numbered from 0.
        anchor: Whose rating is 0.
        prior: Ties that every two players have besides.
        control_length: Whether ratings are those of equally long responses.
        num_resamples: 0 for the estimate alone.
        seed: Of the resampling.
    """
    prompts = sorted({match.prompt for match in matches})
    place = {prompt: number for number, prompt in enumerate(prompts)}
    of_match = np.array([place[match.prompt] for match in matches], dtype=int)
    generator = np.random.Generator(np.random.PCG64(seed))
    num = len(prompts)
    draws = generator.multinomial(num, [1 / num] * num, size=num_resamples)
    counts = np.vstack([np.ones((1, num)), draws])
    design = _design(matches, num_players=num_players, anchor=anchor, control_length=control_length)
    outcomes = np.array([match.prob_a for match in matches] + [0.5] * (len(design) - len(matches)))
    priors = np.full((len(counts), len(design) - len(matches)), prior)
    weights = np.hstack([counts[:, of_match], priors])
    rows = max(1, _BLOCK // max(1, design.size))
    found = np.vstack(
        [
            _fit(design, outcomes, weights[start : start + rows])
            for start in range(0, len(weights), rows)
        ]
    )
    strengths = np.insert(found[:, : num_players - 1], anchor, 0.0, axis=1)
    return Ratings(log_odds=strengths, length_effect=found[:, -1] if control_length else None)


def _design(
    matches: Sequence[Match], *, num_players: int, anchor: int, control_length: bool
) -> np.ndarray:
    """(num_matches + num_prior_matches, num_coefficients): signs of players, and length."""
    pairs = [(match.a, match.b, match.log_length_ratio) for match in matches]
    pairs += [(a, b, 0.0) for a, b in itertools.combinations(range(num_players), 2)]
    signs = np.zeros((len(pairs), num_players))
    rows = np.arange(len(pairs))
    signs[rows, [a for a, _, _ in pairs]] += 1
    signs[rows, [b for _, b, _ in pairs]] -= 1
    design = np.delete(signs, anchor, axis=1)
    if not control_length:
        return design
    lengths = np.array([length for _, _, length in pairs])[:, None]
    by_length = np.hstack([design, lengths])
    return np.vstack([by_length, np.eye(1, by_length.shape[1], by_length.shape[1] - 1)])


def _fit(design: np.ndarray, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted logistic regressions of one design.

    Args:
        design: (num_rows, num_coefficients), of full rank where weights are above 0.
        outcomes: (num_rows,), in [0, 1].
        weights: (num_fits, num_rows).

    Returns:
        (num_fits, num_coefficients).
    """
    found = np.zeros((len(weights), design.shape[1]))
    for _ in range(_MAX_STEPS):
        predicted = 1 / (1 + np.exp(-found @ design.T))
        gradient = (weights * (outcomes - predicted)) @ design
        curvature = weights * predicted * (1 - predicted)
        hessian = np.einsum("fr,ri,rj->fij", curvature, design, design, optimize=True)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            return found
        reach = np.abs(step @ design.T).max(axis=1, initial=0.0)
        damping = np.log1p(reach) / np.maximum(reach, 1e-12)
        found += damping[:, None] * step
    raise AssertionError("ratings did not converge")
