"""What several critique models proposed and voted for: story, numbers and findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai.agreement import fleiss_kappa
from cai.choices import RevisionVote
from cai.config import RevisionsConfig
from cai.model_config import ModelConfig
from cai.revision_records import FEEDBACK, StepVote
from cai.revisions_config import UNCHANGED, in_order, reviewer_systems
from cai.statistics import Estimate, bootstrap_mean, wilson_interval

MIN_STEPS = 8
"""Fewer contested steps are too few to say that members are alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStory:
    """One member, or the response as it was."""

    name: str
    model: str
    """Empty for the response as it was."""
    system: str
    """Its own system turn; empty: the reviewer's."""
    start: str
    """Adapter; empty: the model as it is."""
    num_accepted: int
    num_proposed: int
    wins: Estimate | None
    """Share of the contested steps it stood in that it won."""
    by_chance: float | None
    """The share that a draw would give it."""
    own_votes: Estimate | None
    """Share of its votes, where its own revision stood, that put it first; None for the feedback's
    vote."""
    own_by_chance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step of all chains."""

    step: int
    num: int
    num_contested: int
    wins: tuple[int, ...]
    """Of each member, in their order."""
    disagreement: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VotesStory:
    """The votes of a run."""

    voters: str
    """Who voted, for people."""
    members: tuple[MemberStory, ...]
    num_steps: int
    num_contested: int
    num_unopposed: int
    """One revision stood, and was taken."""
    num_none: int
    """None was accepted."""
    num_unjudged: int
    """Pairs without a label."""
    disagreement: Estimate | None
    own_votes: Estimate | None
    own_by_chance: float | None
    kappa: float | None
    """Fleiss' kappa of the first places; None below three voters."""
    rows: tuple[StepRow, ...]


def votes_story(
    votes: Sequence[StepVote],
    *,
    models: Mapping[str, ModelConfig],
    config: RevisionsConfig,
    judge: str,
    num_bootstrap: int,
    seed: int,
) -> VotesStory:
    """The votes as a story.

    Args:
        votes: Of all steps.
        models: The members.
        config: Of the run's revisions.
        judge: How the run's feedback is called.
        num_bootstrap: Resamples for intervals of means.
        seed: Of the resampling.
    """
    contested = [vote for vote in votes if vote.ballots]
    names = [*in_order(models), *[UNCHANGED] * config.keep_candidate]
    systems = reviewer_systems(models)
    own = [row for vote in contested for row in _own_votes(vote)]

    def disagreements(some: Sequence[StepVote]) -> Estimate | None:
        values = [vote.disagreement for vote in some if vote.disagreement is not None]
        return bootstrap_mean(values, num_resamples=num_bootstrap, seed=seed)

    return VotesStory(
        voters=judge if config.vote is RevisionVote.feedback else _members_told(config),
        members=tuple(_member(name, votes, contested, models, systems) for name in names),
        num_steps=len(votes),
        num_contested=len(contested),
        num_unopposed=sum(not vote.ballots and vote.winner is not None for vote in votes),
        num_none=sum(vote.winner is None for vote in votes),
        num_unjudged=sum(
            pair.prob_first is None
            for vote in contested
            for ballot in vote.ballots
            for pair in ballot.pairs
        ),
        disagreement=disagreements(contested),
        own_votes=wilson_interval(sum(first for _, first, _ in own), len(own)),
        own_by_chance=sum(chance for _, _, chance in own) / len(own) if own else None,
        kappa=_kappa(contested),
        rows=tuple(
            _row(step, [vote for vote in votes if vote.step == step], names, disagreements)
            for step in sorted({vote.step for vote in votes})
        ),
    )


def _members_told(config: RevisionsConfig) -> str:
    return f"every member by {config.vote_method.method}"


def _row(
    step: int,
    own: Sequence[StepVote],
    names: Sequence[str],
    disagreements: Callable[[Sequence[StepVote]], Estimate | None],
) -> StepRow:
    contested = [vote for vote in own if vote.ballots]
    return StepRow(
        step=step,
        num=len(own),
        num_contested=len(contested),
        wins=tuple(sum(vote.winner == name for vote in contested) for name in names),
        disagreement=disagreements(contested),
    )


def _own_votes(vote: StepVote) -> Iterator[tuple[str, bool, float]]:
    """Of each member that votes and stands: name, whether it put itself first, and by chance."""
    for ballot in vote.ballots:
        if ballot.voter != FEEDBACK and ballot.voter in ballot.ranking:
            yield ballot.voter, ballot.ranking[0] == ballot.voter, 1 / len(ballot.ranking)


def _member(
    name: str,
    votes: Sequence[StepVote],
    contested: Sequence[StepVote],
    models: Mapping[str, ModelConfig],
    systems: Mapping[str, str | None],
) -> MemberStory:
    stood = [vote for vote in contested if name in vote.ballots[0].ranking]
    own = [row for vote in contested for row in _own_votes(vote) if row[0] == name]
    proposed = [c for vote in votes for c in vote.candidates if c.member == name]
    model = models.get(name)
    return MemberStory(
        name=name,
        model=model.name if model else "",
        system=systems.get(name) or "",
        start=(model.start or "") if model else "",
        num_accepted=sum(candidate.outcome.accepted for candidate in proposed),
        num_proposed=len(proposed),
        wins=wilson_interval(sum(vote.winner == name for vote in stood), len(stood)),
        by_chance=_mean_share(stood),
        own_votes=wilson_interval(sum(first for _, first, _ in own), len(own)),
        own_by_chance=sum(chance for _, _, chance in own) / len(own) if own else None,
    )


def _mean_share(stood: Sequence[StepVote]) -> float | None:
    shares = [1 / len(vote.ballots[0].ranking) for vote in stood]
    return sum(shares) / len(shares) if shares else None


def _kappa(contested: Sequence[StepVote]) -> float | None:
    firsts = [[ballot.ranking[0] for ballot in vote.ballots] for vote in contested]
    if not firsts or len(firsts[0]) < 3:
        return None
    return fleiss_kappa(firsts)


def votes_metrics(story: VotesStory | None) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat names and numbers."""
    if story is None:
        return
    yield "revisions/vote_contested", float(story.num_contested)
    yield "revisions/vote_unopposed", float(story.num_unopposed)
    yield "revisions/vote_none", float(story.num_none)
    yield "revisions/vote_unjudged_pairs", float(story.num_unjudged)
    yield "revisions/vote_disagreement", story.disagreement
    yield "revisions/self_preference", story.own_votes
    yield "revisions/vote_kappa", story.kappa
    for member in story.members:
        yield f"revisions/member/{member.name}/win_rate", member.wins


def votes_lines(story: VotesStory | None) -> Iterator[tuple[str, Estimate | None, str]]:
    """The numbers that matter: name, value, what to compare it with."""
    if story is None:
        return
    for member in story.members:
        chance = "" if member.by_chance is None else f"by a draw {member.by_chance:.2f}"
        name = "the response as it was" if member.name == UNCHANGED else member.name
        yield f"Votes about revisions won by {name}", member.wins, chance
    yield "Disagreement about revisions", story.disagreement, "of one mind 0"
    chance = "" if story.own_by_chance is None else f"by a draw {story.own_by_chance:.2f}"
    yield "Members that put their own revision first", story.own_votes, chance


def votes_findings(story: VotesStory | None) -> list[str]:
    """Where a vote decided nothing, or voters chose themselves."""
    if story is None:
        return []
    found = []
    if 2 * story.num_contested < story.num_steps:
        found.append(
            f"Only {story.num_contested:,} of {story.num_steps:,} steps were voted about: in "
            f"{story.num_unopposed:,} one revision stood, in {story.num_none:,} none was accepted. "
            "The ensemble is mostly whoever's revision was usable."
        )
    own, chance = story.own_votes, story.own_by_chance
    if own is not None and chance is not None and own.num >= MIN_STEPS and own.low > chance:
        found.append(
            f"Members prefer their own revisions: they put them first in {_shown(own)} of their "
            f"votes, where a draw would in {chance:.2f}. With two members such a vote is decided "
            "by the order of the members; phase.revisions.vote=feedback has one judge for all."
        )
    return found


def _shown(estimate: Estimate) -> str:
    return estimate.format().replace(" ", "\u00a0")
