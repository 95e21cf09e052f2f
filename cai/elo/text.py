"""What a tournament's numbers say: metrics, key lines, warnings, and tables for the mirror."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cai.elo.story import Contest, EloStory, Rated
from cai.statistics import Estimate, at_chance
from cai.story import label

MAX_UNJUDGED_FRAC = 0.1
"""Matches without a label above which the ratings come with a warning."""
MAX_KEY_LINES = 8
"""Ratings that the terminal shows; the report has them all."""


def slug(player: str) -> str:
    """A player's name as part of a metric's."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", player).strip("-")


def elo_metrics(story: EloStory | None) -> Iterator[tuple[str, Estimate | float]]:
    """Flat names and numbers."""
    if story is None:
        return
    yield "elo/judge_supplied_labels", float(story.supplied_labels)
    if story.judge_accuracy is not None:
        yield "elo/judge_accuracy", story.judge_accuracy
    for one in story.rated:
        for player in one.players:
            yield f"elo/{one.criterion}/{slug(player.name)}", player.elo
            yield f"elo_length_controlled/{one.criterion}/{slug(player.name)}", player.controlled
        for contest in one.contests:
            if contest.win_rate is not None:
                pair = f"{slug(contest.name)}_vs_{slug(contest.against)}"
                yield f"win_rate/{one.criterion}/{pair}", contest.win_rate
        yield f"elo/{one.criterion}/length_effect", one.length_effect


def elo_lines(story: EloStory | None) -> list[tuple[str, Estimate, str]]:
    """Label, estimate and comment of the ratings that matter most."""
    if story is None:
        return []
    circular = "; circular: it supplied the labels" if story.supplied_labels else ""
    lines = [
        (one.criterion, player, f"judge: {story.judge}{circular}")
        for one in story.main()
        for player in one.players
        if player.name != story.anchor
    ]
    return [
        (f"Elo, {criterion}: {title(player.name)} - {title(story.anchor)}", player.elo, comment)
        for criterion, player, comment in lines[:MAX_KEY_LINES]
    ]


def elo_findings(story: EloStory | None) -> list[str]:
    """Warnings: a circular judge, a judge at chance, and no difference at all."""
    if story is None:
        return []
    found = []
    if story.supplied_labels:
        found.append(
            f"The Elo ratings are circular: {story.judge} also supplied the labels that policies "
            "were trained on, so they show that its labels were learned. Another judge: "
            "feedback@evaluation.judge=<option>, e.g. likelihood."
        )
    accuracy = story.judge_accuracy
    if accuracy is None:
        found.append(
            f"Nothing is known of the judge of the Elo ratings, {story.judge}: there is no "
            "labelled pair to measure it on."
        )
    elif at_chance(accuracy) or accuracy.high < 0.5:
        what = "at chance" if at_chance(accuracy) else "worse than chance"
        found.append(
            f"The judge of the Elo ratings, {story.judge}, is {what} on {story.judge_source}: "
            f"{accuracy.format()}. They say little about the policies."
        )
    if story.not_rated:
        found.append(f"No match could be judged under {', '.join(story.not_rated)}: no ratings.")
    for one in story.main():
        if one.num_unjudged > MAX_UNJUDGED_FRAC * (one.num_matches + one.num_unjudged):
            found.append(
                f"{one.num_unjudged} of {one.num_matches + one.num_unjudged} matches in "
                f"{one.criterion} could not be judged, e.g. an empty response: the ratings are of "
                "the others alone, and flatter a policy that falls silent."
            )
        if not decided(one):
            found.append(
                f"No difference in {one.criterion} was found between policies: every Elo interval "
                f"covers 0 (n = {one.num_prompts} prompts). {_widest(one)}"
            )
        controlled = [c for c in decided(one) if _covers_zero(c.controlled)]
        if controlled:
            told = ", ".join(f"{title(c.name)} over {title(c.against)}" for c in controlled)
            found.append(
                f"At equal length a difference in {one.criterion} is no longer told from none: "
                f"{told}."
            )
    return found


def decided(one: Rated) -> list[Contest]:
    """Pairs of policies whose Elo difference is told from none."""
    return [contest for contest in one.contests if not _covers_zero(contest.difference)]


def _covers_zero(estimate: Estimate) -> bool:
    return estimate.low <= 0 <= estimate.high


def _widest(one: Rated) -> str:
    contest = max(one.contests, key=lambda c: c.difference.high - c.difference.low)
    return (
        f"The widest, {title(contest.name)} less {title(contest.against)}: "
        f"{contest.difference.format()}."
    )


def title(player: str) -> str:
    """A player's name for people."""
    policy, _, run = player.partition(" ")
    return f"{label(policy)} {run}".rstrip()


def elo_table(story: EloStory) -> tuple[tuple[str, ...], list[list[object]]]:
    """Columns and rows: every policy under every criterion."""
    columns = (
        "criterion", "policy", "elo", "elo_low", "elo_high",
        "length_controlled", "length_controlled_low", "length_controlled_high", "win_rate",
        "num_prompts", "judge", "judge_supplied_labels",
    )  # fmt: skip
    rows: list[list[object]] = [
        [
            one.criterion, player.name, *_numbers(player.elo), *_numbers(player.controlled),
            None if player.win_rate is None else player.win_rate.value,
            one.num_prompts, story.judge, story.supplied_labels,
        ]
        for one in story.rated
        for player in one.players
    ]  # fmt: skip
    return columns, rows


def contest_table(story: EloStory) -> tuple[tuple[str, ...], list[list[object]]]:
    """Columns and rows: every two policies under every criterion."""
    columns = (
        "criterion", "policy", "against", "win_rate", "win_rate_low", "win_rate_high",
        "elo_difference", "elo_difference_low", "elo_difference_high",
    )  # fmt: skip
    rows: list[list[object]] = [
        [one.criterion, contest.name, contest.against, *_numbers(contest.win_rate),
         *_numbers(contest.difference)]
        for one in story.rated
        for contest in one.contests
    ]  # fmt: skip
    return columns, rows


def _numbers(estimate: Estimate | None) -> list[float | None]:
    return [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]
