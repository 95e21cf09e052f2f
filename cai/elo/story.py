"""Matches told: win rates, ratings with and without control of length, and what they rest on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cai.attribution import after_preferred
from cai.elo.ratings import Match, Ratings, rate
from cai.evaluation_config import HARMLESSNESS, HELPFULNESS
from cai.statistics import CONFIDENCE, Estimate, bootstrap_mean
from cai.types import PolicyComparison, Unjudged

MAIN = (HELPFULNESS, HARMLESSNESS)
"""Criteria that are drawn against each other and told in the terminal."""
ANCHOR = "sl_cai"
"""Whose rating is 0 where it takes part, as PPO and DPO start from it; else the first policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A policy under one criterion."""

    name: str
    elo: Estimate
    """Less the anchor's."""
    controlled: Estimate
    """The same for responses of equal length."""
    win_rate: Estimate | None
    """Mean P(preferred) in its own matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Two policies under one criterion."""

    name: str
    against: str
    win_rate: Estimate | None
    """Mean P(`name` preferred to `against`); None where nothing was judged."""
    difference: Estimate
    """Elo of `name` less that of `against`."""
    controlled: Estimate
    """The same for responses of equal length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """All policies under one criterion."""

    criterion: str
    sentence: str
    by_constitution: bool
    """A principle of the constitution, and none of `evaluation.elo.criteria`."""
    num_prompts: int
    num_matches: int
    """Judged, ties of identical responses included."""
    num_identical: int
    num_unjudged: int
    length_effect: Estimate
    """Log-odds of being preferred for e times the length."""
    players: tuple[Player, ...]
    contests: tuple[Contest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EloStory:
    """A tournament."""

    judge: str
    """Method and models."""
    orders: str
    """How the judge is shown a pair; a sentence."""
    supplied_labels: bool
    """Whether a policy learned from this judge's labels: then the ratings are circular."""
    judge_accuracy: Estimate | None
    """On labelled pairs; None without any."""
    judge_source: str
    """Which pairs these are."""
    anchor: str
    prior: float
    rated: tuple[Rated, ...]
    not_rated: tuple[str, ...]
    """Criteria under which not a single match could be judged."""

    def main(self) -> tuple[Rated, ...]:
        """Those of `MAIN` that were judged."""
        return tuple(one for one in self.rated if one.criterion in MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals are made: prompts are resampled."""

    num: int
    seed: int


def anchor_of(players: Sequence[str]) -> str:
    """Whose rating is 0."""
    return next((name for name in players if name.partition(" ")[0] == ANCHOR), players[0])


def rated_under(
    criterion: str,
    compared: Mapping[tuple[str, str], Sequence[PolicyComparison]],
    *,
    players: Sequence[str],
    sentence: str,
    by_constitution: bool,
    prior: float,
    resampling: Resampling,
) -> Rated | None:
    """Every player under one criterion; None when no match was judged.

    Args:
        criterion: Its id.
        compared: By (earlier, later) player, response a being the later one's.
        players: All, the least trained first.
        sentence: What the criterion asks for.
        by_constitution: As in `Rated`.
        prior: As in `cai.elo.ratings`.
        resampling: Of prompts.
    """
    prompts: dict[str, int] = {}
    matches: dict[tuple[str, str], list[Match]] = {pair: [] for pair in compared}
    identical = unjudged = 0
    for pair, rows in compared.items():
        for row in rows:
            one = row.comparison
            if criterion not in one.principle_ids:
                continue
            probs = after_preferred(row, [criterion])
            if probs is None:
                unjudged += 1
                continue
            identical += one.unjudged is Unjudged.identical
            matches[pair].append(
                Match(
                    prompt=prompts.setdefault(f"{one.prompt.kind}:{one.prompt.id}", len(prompts)),
                    a=players.index(pair[1]),
                    b=players.index(pair[0]),
                    prob_a=probs[0],
                    log_length_ratio=log_length_ratio(one.response_a, one.response_b),
                )
            )
    every = [match for rows in matches.values() for match in rows]
    if not every:
        return None
    ratings, controlled = (
        rate(
            every,
            num_players=len(players),
            anchor=players.index(anchor_of(players)),
            prior=prior,
            control_length=control_length,
            num_resamples=resampling.num,
            seed=resampling.seed,
        )
        for control_length in (False, True)
    )
    num = len(prompts)
    assert controlled.length_effect is not None
    return Rated(
        criterion=criterion,
        sentence=sentence,
        by_constitution=by_constitution,
        num_prompts=num,
        num_matches=len(every),
        num_identical=identical,
        num_unjudged=unjudged,
        length_effect=_estimate(controlled.length_effect, num),
        players=tuple(
            Player(
                name=name,
                elo=_estimate(ratings.elo[:, place], num),
                controlled=_estimate(controlled.elo[:, place], num),
                win_rate=_win_rate(every, place, resampling),
            )
            for place, name in enumerate(players)
        ),
        contests=tuple(
            _contest(earlier, later, players, matches, ratings, controlled, num, resampling)
            for earlier, later in itertools.combinations(players, 2)
        ),
    )


def log_length_ratio(response_a: str, response_b: str) -> float:
    """Log of a's length over b's, in characters; an empty response counts as one of 1."""
    return math.log(max(1, len(response_a)) / max(1, len(response_b)))


def _contest(
    earlier: str,
    later: str,
    players: Sequence[str],
    matches: Mapping[tuple[str, str], Sequence[Match]],
    ratings: Ratings,
    controlled: Ratings,
    num: int,
    resampling: Resampling,
) -> Contest:
    a, b = players.index(later), players.index(earlier)
    own = [match.prob_a for match in matches[earlier, later]]
    return Contest(
        name=later,
        against=earlier,
        win_rate=bootstrap_mean(own, num_resamples=resampling.num, seed=resampling.seed),
        difference=_estimate(ratings.elo[:, a] - ratings.elo[:, b], num),
        controlled=_estimate(controlled.elo[:, a] - controlled.elo[:, b], num),
    )


def _win_rate(matches: Sequence[Match], player: int, resampling: Resampling) -> Estimate | None:
    """Mean over prompts of a player's mean P(preferred) there."""
    by_prompt: dict[int, list[float]] = {}
    for match in matches:
        if player in (match.a, match.b):
            won = match.prob_a if player == match.a else 1 - match.prob_a
            by_prompt.setdefault(match.prompt, []).append(won)
    means = [math.fsum(own) / len(own) for own in by_prompt.values()]
    return bootstrap_mean(means, num_resamples=resampling.num, seed=resampling.seed)


def _estimate(samples: np.ndarray, num: int) -> Estimate:
    """The first sample, with the percentile interval of the others.

    Args:
        samples: (1 + num_resamples,), the estimate and its bootstrap samples.
        num: Prompts.
    """
    value = float(samples[0])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples[1:], [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), num=num)
