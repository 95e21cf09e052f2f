"""From matches to ratings and words: which matches count, and what is warned of."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from cai.elo.chart import dominated, pareto_chart
from cai.elo.story import (
    Contest,
    EloStory,
    Player,
    Rated,
    Resampling,
    anchor_of,
    log_length_ratio,
    rated_under,
)
from cai.elo.text import (
    contest_table,
    elo_findings,
    elo_lines,
    elo_metrics,
    elo_table,
    slug,
    title,
)
from cai.statistics import Estimate
from cai.types import (
    Comparison,
    Message,
    PolicyComparison,
    PrincipleLabel,
    Prompt,
    PromptKind,
    Split,
    Unjudged,
)

PLAYERS = ("base", "sl_cai", "rl_cai")


def compared(
    number: int,
    labels: dict[str, float],
    *,
    texts: tuple[str, str] = ("aa", "bb"),
    unjudged: Unjudged | None = None,
    criteria: tuple[str, ...] = (),
) -> PolicyComparison:
    """A match whose response a, the later policy's, is preferred with these probabilities."""
    prompt = Prompt(
        id=f"p{number}",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.evaluation,
        messages=(Message(role="user", content="?"),),
    )
    judged = tuple(
        PrincipleLabel(principle_id=name, prob_a=prob, weight=1.0) for name, prob in labels.items()
    )
    comparison = Comparison(
        prompt=prompt,
        response_a=texts[0],
        response_b=texts[1],
        principle_ids=criteria or tuple(labels),
        judgements=(),
        labels=judged,
        prob_a=None if unjudged else 0.5,
        weight=1.0,
        unjudged=unjudged,
        seed=0,
    )
    return PolicyComparison(before="x", after="y", comparison=comparison)


def rated(rows: dict[tuple[str, str], list[PolicyComparison]], **changes) -> Rated | None:
    settings = {
        "players": PLAYERS,
        "sentence": "S",
        "by_constitution": False,
        "prior": 1e-6,
        "resampling": Resampling(num=50, seed=0),
    }
    return rated_under("harmlessness", rows, **settings | changes)


PAIRS = list(itertools.combinations(PLAYERS, 2))


def test_the_later_policy_is_a_and_the_sl_policy_is_at_0() -> None:
    prob = {
        ("base", "sl_cai"): 10 / 11,
        ("base", "rl_cai"): 100 / 101,
        ("sl_cai", "rl_cai"): 10 / 11,
    }
    rows = {
        pair: [compared(i, {"harmlessness": p, "helpfulness": 0.1}) for i in range(4)]
        for pair, p in prob.items()
    }  # fmt: skip
    found = rated(rows)
    assert found is not None
    assert [p.elo.value for p in found.players] == pytest.approx([-400, 0, 400], abs=1e-2)
    assert [p.controlled.value for p in found.players] == pytest.approx([-400, 0, 400], abs=1e-2)
    first = found.contests[0]
    assert (first.name, first.against) == ("sl_cai", "base")
    assert first.win_rate.value == pytest.approx(10 / 11)
    assert first.difference.value == pytest.approx(400, abs=1e-2)
    assert found.contests[1].difference.value == pytest.approx(800, abs=1e-2)
    wins = [p.win_rate.value for p in found.players]
    assert wins[0] == pytest.approx((1 / 11 + 1 / 101) / 2)
    assert wins[1] == pytest.approx(0.5)
    assert (found.num_prompts, found.num_matches) == (4, 12)


def test_identical_responses_tie_and_what_is_unjudged_does_not_count() -> None:
    rows = {pair: [] for pair in PAIRS}
    rows["base", "sl_cai"] = [
        compared(0, {}, unjudged=Unjudged.identical, criteria=("harmlessness",)),
        compared(1, {}, unjudged=Unjudged.empty, criteria=("harmlessness",)),
        compared(2, {"helpfulness": 0.9}),  # another kind of prompt
    ]
    found = rated(rows)
    assert (found.num_matches, found.num_identical, found.num_unjudged) == (1, 1, 1)
    assert [p.elo.value for p in found.players] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.players[2].win_rate is None
    assert found.contests[1].win_rate is None
    rows["base", "sl_cai"].pop(0)
    assert rated(rows) is None


def test_a_longer_response_counts_as_longer() -> None:
    assert log_length_ratio("aaaa", "a") == pytest.approx(math.log(4))
    assert log_length_ratio("a", "aaaa") == pytest.approx(-math.log(4))
    assert log_length_ratio("", "a") == 0
    pair = ("base", "dpo")
    same, longer = ("aa", "bb"), ("a" * 8, "bb")
    rows = [compared(i, {"harmlessness": 0.5}, texts=same) for i in range(4)]
    rows += [compared(i, {"harmlessness": 0.8}, texts=longer) for i in range(4, 8)]
    found = rated({pair: rows}, players=pair)
    assert found.length_effect.value > 0.5
    assert found.players[1].elo.value > 100
    assert found.players[1].controlled.value == pytest.approx(0, abs=1)


def test_the_anchor_is_the_sl_policy_or_else_the_first() -> None:
    assert anchor_of(PLAYERS) == "sl_cai"
    assert anchor_of(("base", "dpo")) == "base"
    assert anchor_of(("base", "sl_cai (seed=0)", "sl_cai (seed=1)")) == "sl_cai (seed=0)"


def estimate(value: float, half: float = 10.0) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, num=16)


def story(**changes) -> EloStory:
    def one(criterion: str, *elo: float, half: float = 10.0) -> Rated:
        players = tuple(
            Player(
                name=name, elo=estimate(value, half), controlled=estimate(value, half),
                win_rate=estimate(0.5, 0.1),
            )
            for name, value in zip(PLAYERS, elo, strict=True)
        )  # fmt: skip
        contests = tuple(
            Contest(
                name=b.name, against=a.name, win_rate=estimate(0.5, 0.1),
                difference=estimate(b.elo.value - a.elo.value, half),
                controlled=estimate(b.elo.value - a.elo.value, half),
            )
            for a, b in itertools.combinations(players, 2)
        )  # fmt: skip
        return Rated(
            criterion=criterion, sentence="S", by_constitution=False, num_prompts=16,
            num_matches=48, num_identical=2, num_unjudged=1, length_effect=estimate(0.2, 0.1),
            players=players, contests=contests,
        )  # fmt: skip

    settings = {
        "judge": "likelihood on tiny",
        "orders": "One by one.",
        "supplied_labels": False,
        "judge_accuracy": Estimate(value=0.8, low=0.7, high=0.9, num=36),
        "judge_source": "the constitution's own tests",
        "anchor": "sl_cai",
        "prior": 1.0,
        "rated": (one("helpfulness", -5, 0, -80), one("harmlessness", -60, 0, 90)),
        "not_rated": (),
    }
    return EloStory(**settings | changes)


def wide(found: EloStory) -> EloStory:
    """The same with intervals that cover 0."""
    rated = tuple(
        dataclasses.replace(
            one,
            contests=tuple(
                dataclasses.replace(c, difference=estimate(c.difference.value, 500))
                for c in one.contests
            ),
        )
        for one in found.rated
    )
    return dataclasses.replace(found, rated=rated)


def test_metrics_have_ratings_win_rates_and_the_flag() -> None:
    found = dict(elo_metrics(story()))
    assert found["elo/harmlessness/rl_cai"] == estimate(90)
    assert found["elo_length_controlled/helpfulness/rl_cai"] == estimate(-80)
    assert found["win_rate/helpfulness/rl_cai_vs_base"] == estimate(0.5, 0.1)
    assert found["elo/judge_supplied_labels"] == 0.0
    assert dict(elo_metrics(story(supplied_labels=True)))["elo/judge_supplied_labels"] == 1.0
    assert list(elo_metrics(None)) == []
    assert slug("rl_cai (phase.ppo.kl_coef=0.05, seed=1)") == "rl_cai-phase.ppo.kl_coef=0.05-seed=1"


def test_the_terminal_shows_both_criteria_against_the_anchor() -> None:
    lines = elo_lines(story(supplied_labels=True))
    assert [name for name, _, _ in lines] == [
        "Elo, helpfulness: base - SL-CAI",
        "Elo, helpfulness: RL-CAI - SL-CAI",
        "Elo, harmlessness: base - SL-CAI",
        "Elo, harmlessness: RL-CAI - SL-CAI",
    ]
    assert all("circular" in comment for _, _, comment in lines)
    assert "circular" not in elo_lines(story())[0][2]
    assert elo_lines(None) == []
    assert title("rl_cai (seed=1)") == "RL-CAI (seed=1)"


def test_warnings_name_a_circular_judge_chance_and_no_difference() -> None:
    assert elo_findings(None) == elo_findings(story()) == []
    (circular,) = elo_findings(story(supplied_labels=True))
    assert "circular" in circular
    assert "feedback@evaluation.judge=" in circular
    chance = Estimate(value=0.53, low=0.4, high=0.66, num=36)
    (at_chance,) = elo_findings(story(judge_accuracy=chance))
    assert "at chance" in at_chance
    below = Estimate(value=0.2, low=0.1, high=0.36, num=36)
    (worse,) = elo_findings(story(judge_accuracy=below))
    assert "worse than chance" in worse
    (unknown,) = elo_findings(story(judge_accuracy=None))
    assert "Nothing is known of the judge" in unknown
    none = elo_findings(wide(story()))
    assert [text.split(" was")[0] for text in none] == [
        "No difference in helpfulness", "No difference in harmlessness",
    ]  # fmt: skip
    (missing,) = elo_findings(story(not_rated=("kindness",)))
    silent = dataclasses.replace(story().rated[0], num_matches=45, num_unjudged=5)
    assert elo_findings(story(rated=(silent,))) == []
    silent = dataclasses.replace(silent, num_matches=44, num_unjudged=6)
    (found,) = elo_findings(story(rated=(silent,)))
    assert found.startswith("6 of 50 matches in helpfulness could not be judged")
    assert "kindness" in missing


def test_a_difference_that_length_explains_is_told() -> None:
    (helpful, harmless) = story().rated
    same = dataclasses.replace(
        harmless,
        contests=tuple(dataclasses.replace(c, controlled=estimate(0)) for c in harmless.contests),
    )
    (found,) = elo_findings(story(rated=(helpful, same)))
    assert found.startswith("At equal length")
    assert "RL-CAI over base" in found


def test_tables_have_a_row_for_every_policy_and_every_pair() -> None:
    for columns, rows in (elo_table(story()), contest_table(story())):
        assert len(rows) == 6
        assert all(len(row) == len(columns) for row in rows)
    columns, rows = elo_table(story())
    last = dict(zip(columns, rows[-1], strict=True))
    assert (last["policy"], last["elo"], last["elo_low"]) == ("rl_cai", 90, 80)


def test_a_policy_behind_in_both_is_dominated() -> None:
    helpful, harmless = (one.players for one in story().rated)
    assert dominated(helpful, harmless) == ["base"]
    same = (helpful[1], helpful[1])
    assert dominated(same, same) == []


def test_the_pareto_plot_says_what_it_shows() -> None:
    chart = pareto_chart(story(), key="elo")
    assert chart is not None
    assert "RL-CAI: helpfulness -80 [-90, -70], n = 16, harmlessness 90" in chart.alternative
    assert "base: helpfulness -5 [-15, 5], n = 16, harmlessness -60 [-70, -50], n = 16, behind" in (
        chart.alternative
    )
    assert 'role="img"' in chart.svg
    for word in ("helpfulness, Elo", "harmlessness, Elo", "RL-CAI"):
        assert word in chart.svg
    assert pareto_chart(story(rated=story().rated[:1]), key="elo") is None


def test_a_name_from_a_folder_cannot_become_markup() -> None:
    helpful, harmless = story().rated
    hostile = "rl_cai (<script>alert(1)</script>)"
    rated = tuple(
        dataclasses.replace(
            one, players=(*one.players[:2], dataclasses.replace(one.players[2], name=hostile))
        )
        for one in (helpful, harmless)
    )
    chart = pareto_chart(story(rated=rated), key="elo")
    assert "<script" not in chart.svg
