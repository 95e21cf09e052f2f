"""Bradley-Terry ratings against hand values, a slow independent optimiser, and their symmetries."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from cai.elo.ratings import Match, Ratings, expected_win_rate, rate


def match(prompt: int, a: int, b: int, prob_a: float, log_length_ratio: float = 0.0) -> Match:
    return Match(prompt=prompt, a=a, b=b, prob_a=prob_a, log_length_ratio=log_length_ratio)


def rated(matches: Sequence[Match], num_players: int = 3, **changes) -> Ratings:
    settings = {
        "anchor": 0, "prior": 1.0, "control_length": False, "num_resamples": 0, "seed": 0,
    }  # fmt: skip
    return rate(matches, num_players=num_players, **settings | changes)


def drawn(seed: int, *, num_players: int = 3, num_prompts: int = 12) -> list[Match]:
    """Matches of every two players on every prompt, with probabilities and lengths at random."""
    rng = random.Random(seed)
    return [
        match(prompt, a, b, rng.random(), rng.gauss(0, 0.7))
        for prompt in range(num_prompts)
        for a in range(num_players)
        for b in range(a + 1, num_players)
    ]


@pytest.mark.parametrize(("wins", "losses"), [(7, 3), (1, 9), (5, 5)])
def test_two_players_by_hand(wins: int, losses: int) -> None:
    matches = [match(i, 1, 0, 1.0) for i in range(wins)]
    matches += [match(i, 1, 0, 0.0) for i in range(losses)]
    # A tie more is half a win for each: p = (w + 1/2) / (n + 1), Elo = 400 log10(p / (1 - p)).
    expected = 400 * math.log10((wins + 0.5) / (losses + 0.5))
    assert rated(matches, 2).elo[0] == pytest.approx([0, expected], abs=1e-8)
    nearly = rated(matches, 2, prior=1e-9).elo[0, 1]
    assert nearly == pytest.approx(400 * math.log10(wins / losses), abs=1e-5)
    assert expected_win_rate(nearly) == pytest.approx(wins / (wins + losses), abs=1e-8)


def test_ten_to_one_is_400_points() -> None:
    matches = [match(i, 1, 0, 10 / 11) for i in range(5)]
    assert rated(matches, 2, prior=1e-9).elo[0, 1] == pytest.approx(400, abs=1e-5)


def test_three_players_of_a_consistent_table_have_its_strengths() -> None:
    elo = [0.0, 120.0, -75.0]
    matches = [
        match(0, a, b, expected_win_rate(elo[a] - elo[b])) for a, b in [(0, 1), (0, 2), (1, 2)]
    ]
    assert rated(matches, prior=1e-9).elo[0] == pytest.approx(elo, abs=1e-4)


def slow(matches: Sequence[Match], num_players: int, prior: float) -> list[float]:
    """Zermelo's iteration (Hunter 2004, Ann. Statist. 32, p. 384): no gradients, no matrices."""
    won = [[0.0] * num_players for _ in range(num_players)]
    for one in matches:
        won[one.a][one.b] += one.prob_a
        won[one.b][one.a] += 1 - one.prob_a
    others = [[j for j in range(num_players) if j != i] for i in range(num_players)]
    strength = [1.0] * num_players
    for _ in range(20000):
        for i in range(num_players):
            wins = sum(won[i][j] + prior / 2 for j in others[i])
            games = sum(
                (won[i][j] + won[j][i] + prior) / (strength[i] + strength[j]) for j in others[i]
            )
            strength[i] = wins / games
    return [400 * math.log10(s / strength[0]) for s in strength]


@pytest.mark.parametrize("num_players", [2, 3, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_independent_optimiser_finds_the_same(num_players: int, seed: int) -> None:
    matches = drawn(seed, num_players=num_players)[: 7 * num_players]
    expected = slow(matches, num_players, prior=0.3)
    assert rated(matches, num_players, prior=0.3).elo[0] == pytest.approx(expected, abs=1e-6)


def log_likelihood(
    matches: Sequence[Match], log_odds: Sequence[float], length: float, prior: float
) -> float:
    def term(value: float, outcome: float) -> float:
        return outcome * value - math.log1p(math.exp(value))

    total = sum(
        term(log_odds[m.a] - log_odds[m.b] + length * m.log_length_ratio, m.prob_a) for m in matches
    )
    num = len(log_odds)
    ties = [log_odds[a] - log_odds[b] for a in range(num) for b in range(a + 1, num)] + [length]
    return total + prior * sum(term(value, 0.5) for value in ties)


def test_no_step_away_from_the_length_controlled_ratings_is_likelier() -> None:
    matches = drawn(5)
    found = rated(matches, control_length=True, prior=0.5)
    assert found.length_effect is not None
    best, effect = list(found.log_odds[0]), float(found.length_effect[0])
    peak = log_likelihood(matches, best, effect, 0.5)
    rng = random.Random(0)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(50):
            other = [value + rng.gauss(0, size) for value in best]
            assert log_likelihood(matches, other, effect + rng.gauss(0, size), 0.5) < peak


def test_length_alone_gives_no_rating_under_control() -> None:
    """A judge that follows length alone: log-odds of 2 for e times the length, nothing else."""
    rng = random.Random(0)
    matches = []
    for prompt in range(200):
        ratio = rng.gauss(0.7, 0.5)  # player 1 is longer on average
        matches.append(match(prompt, 1, 0, 1 / (1 + math.exp(-2 * ratio)), ratio))
    plain, controlled = (rated(matches, 2, control_length=c, prior=1e-8) for c in (False, True))
    assert plain.elo[0, 1] > 150
    assert controlled.elo[0, 1] == pytest.approx(0, abs=1e-4)
    assert controlled.length_effect[0] == pytest.approx(2, abs=1e-6)


def test_equal_lengths_change_nothing() -> None:
    matches = [dataclasses.replace(m, log_length_ratio=0.0) for m in drawn(3)]
    plain, controlled = (rated(matches, control_length=c) for c in (False, True))
    assert controlled.elo[0] == pytest.approx(plain.elo[0], abs=1e-9)
    assert controlled.length_effect[0] == pytest.approx(0, abs=1e-9)


def swapped(one: Match) -> Match:
    return match(one.prompt, one.b, one.a, 1 - one.prob_a, -one.log_length_ratio)


@pytest.mark.parametrize("control_length", [False, True])
def test_who_is_called_a_does_not_matter(control_length: bool) -> None:
    matches = drawn(4)
    settings = {"control_length": control_length, "num_resamples": 7}
    turned = rated([swapped(m) if i % 2 else m for i, m in enumerate(matches)], **settings)
    np.testing.assert_allclose(turned.elo, rated(matches, **settings).elo, atol=1e-8)


def test_numbers_of_players_and_the_anchor_are_only_names() -> None:
    matches = drawn(6)
    before = rated(matches, anchor=0, num_resamples=5).elo
    order = [2, 0, 1]  # old number -> new number
    renamed = [dataclasses.replace(m, a=order[m.a], b=order[m.b]) for m in matches]
    after = rated(renamed, anchor=order[0], num_resamples=5).elo
    np.testing.assert_allclose(after[:, order], before, atol=1e-8)
    other = rated(matches, anchor=2, num_resamples=5).elo
    np.testing.assert_allclose(other - other[:, :1], before, atol=1e-8)
    assert np.all(other[:, 2] == 0)


def test_ties_are_equal() -> None:
    matches = [dataclasses.replace(m, prob_a=0.5) for m in drawn(7)]
    assert rated(matches, num_resamples=9).elo == pytest.approx(np.zeros((10, 3)), abs=1e-9)


def test_the_prior_keeps_ratings_finite_and_in_order() -> None:
    """Player 2 wins everything, player 0 nothing."""
    matches = [match(p, a, b, 0.0) for p in range(16) for a, b in [(0, 1), (0, 2), (1, 2)]]
    elo = rated(matches, control_length=True, num_resamples=20).elo
    assert np.isfinite(elo).all()
    assert np.all(np.diff(elo, axis=1) > 300)
    weaker = rated(matches, prior=4.0).elo[0]
    assert 0 < weaker[1] < elo[0, 1]


def test_resampling_takes_prompts_with_all_their_matches() -> None:
    """On every prompt player 1 does to 0 what 2 does to 1, so every sample has equal distances."""
    rng = random.Random(1)
    matches = []
    for prompt in range(10):
        prob = rng.random()
        matches += [match(prompt, 1, 0, prob), match(prompt, 2, 1, prob), match(prompt, 2, 0, 0.5)]
    elo = rated(matches, num_resamples=200).elo
    np.testing.assert_allclose(elo[:, 1] - elo[:, 0], elo[:, 2] - elo[:, 1], atol=1e-7)
    assert elo[1:, 1].std() > 10


def test_a_bootstrap_is_its_seed_and_has_the_spread_of_new_prompts() -> None:
    rng = random.Random(2)
    matches = [match(p, 1, 0, float(rng.random() < 0.65)) for p in range(60)]
    settings = {"num_players": 2, "num_resamples": 2000}
    first = rated(matches, **settings, seed=3).elo
    assert np.array_equal(first, rated(matches, **settings, seed=3).elo)
    assert not np.array_equal(first[1:], rated(matches, **settings, seed=4).elo[1:])
    assert first[0] == pytest.approx(rated(matches, 2).elo[0], abs=1e-9)
    wins = sum(m.prob_a for m in matches)
    p = (wins + 0.5) / 61
    error = 400 / math.log(10) / math.sqrt(60 * p * (1 - p))  # delta method
    assert first[1:, 1].std() == pytest.approx(error, rel=0.1)
