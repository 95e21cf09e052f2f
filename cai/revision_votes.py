"""Several critique models revise, then the best revision is voted for: counting the votes.

At every step each member critiques and revises the same response under the same principle. What
stands are the accepted revisions, and the response as it was where `keep_candidate` says so. Every
voter compares every two of them under the principle.

*One voter's ranking.* By Copeland's rule: pairs won less pairs lost, a pair being won with a
probability above 1/2; ties by the mean probability over the pairs, then by the order of the
members. Two equal texts are a tie, and a pair that cannot be judged is in neither count.

*Several voters.* Plurality of the first places; ties by Borda's count (a candidate gets a point for
each candidate that a voter ranks below it), then by the order of the members. A member may vote for
its own revision, and how often it does is reported (`cai.revision_votes_story`).

*Disagreement* is 1 less the winner's share: with the feedback as the only voter the mean
probability that it is preferred, over the pairs it was compared in; with the members as voters its
share of the first places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.constitution import Principle
from cai.feedback.base import Feedback, Pair
from cai.revision_records import FEEDBACK, Ballot, Candidate, StepVote, VotePair
from cai.revisions_config import MAIN, UNCHANGED
from cai.types import Prompt, RevisionOutcome, Unjudged


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The candidates of one step that can be voted for, in order."""

    prompt: Prompt
    principle: Principle
    names: tuple[str, ...]
    texts: tuple[str, ...]


def standing(
    prompt: Prompt,
    principle: Principle,
    candidates: Sequence[Candidate],
    *,
    unchanged: str | None,
) -> Standing:
    """Who stands: accepted revisions, and last the response as it was, unless that is None."""
    rows = [(c.member, c.response) for c in candidates if c.outcome.accepted]
    if unchanged is not None and rows:
        rows.append((UNCHANGED, unchanged))
    return Standing(
        prompt=prompt,
        principle=principle,
        names=tuple(name for name, _ in rows),
        texts=tuple(text for _, text in rows),
    )


def ballots(voters: Mapping[str, Feedback], steps: Sequence[Standing]) -> list[tuple[Ballot, ...]]:
    """Every voter's ballot about each step; none about a step where fewer than two stand."""
    found: list[list[Ballot]] = [[] for _ in steps]
    contested = [row for row, step in enumerate(steps) if len(step.names) > 1]
    for voter, feedback in voters.items():
        pairs = [
            (row, i, j)
            for row in contested
            for i in range(len(steps[row].names))
            for j in range(i + 1, len(steps[row].names))
        ]
        compared = feedback.compare([_pair(steps[row], i, j) for row, i, j in pairs])
        by_step: dict[int, list[VotePair]] = {row: [] for row in contested}
        for (row, i, j), comparison in zip(pairs, compared, strict=True):
            same = comparison.unjudged is Unjudged.identical
            pair = VotePair(
                first=steps[row].names[i],
                second=steps[row].names[j],
                prob_first=0.5 if same else comparison.prob_a,
                weight=comparison.weight,
                unjudged=comparison.unjudged,
            )
            by_step[row].append(pair)
        for row, own in by_step.items():
            ballot = Ballot(voter=voter, pairs=tuple(own), ranking=ranking(steps[row].names, own))
            found[row].append(ballot)
    return [tuple(own) for own in found]


def _pair(step: Standing, i: int, j: int) -> Pair:
    return Pair(
        prompt=step.prompt,
        response_a=step.texts[i],
        response_b=step.texts[j],
        principles=(step.principle,),
    )


def ranking(names: Sequence[str], pairs: Sequence[VotePair]) -> tuple[str, ...]:
    """One voter's candidates, best first, by the rule in this module's text."""

    def key(name: str) -> tuple[float, float]:
        probs = _probs(name, pairs)
        net = sum((prob > 0.5) - (prob < 0.5) for prob in probs)
        return -net, -(sum(probs) / len(probs) if probs else 0.5)

    return tuple(sorted(names, key=key))


def _probs(name: str, pairs: Sequence[VotePair]) -> list[float]:
    """P(a candidate is preferred) in each of its pairs that has a label."""
    found = []
    for pair in pairs:
        if pair.prob_first is not None and name in (pair.first, pair.second):
            found.append(pair.prob_first if name == pair.first else 1 - pair.prob_first)
    return found


def elected(names: Sequence[str], cast: Sequence[Ballot]) -> str:
    """The winner of some ballots, by plurality, then Borda, then the order of the members."""
    firsts = [ballot.ranking[0] for ballot in cast]
    borda = {
        name: sum(len(names) - 1 - ballot.ranking.index(name) for ballot in cast) for name in names
    }
    return min(names, key=lambda name: (-firsts.count(name), -borda[name], names.index(name)))


def disagreement(winner: str, cast: Sequence[Ballot]) -> float | None:
    """1 less the winner's share; None without ballots, or where none of its pairs was judged."""
    if not cast:
        return None
    if [ballot.voter for ballot in cast] == [FEEDBACK]:
        probs = _probs(winner, cast[0].pairs)
        return 1 - sum(probs) / len(probs) if probs else None
    return 1 - sum(ballot.ranking[0] == winner for ballot in cast) / len(cast)


def decide(
    step: int, found: Standing, candidates: Sequence[Candidate], cast: Sequence[Ballot]
) -> tuple[StepVote, Candidate]:
    """The vote about one step as a record, and the candidate that it leaves.

    That is the winner; where the response as it was wins, the best placed revision with the outcome
    `outvoted`; where nothing stands, what `main` made of it.
    """
    named = {candidate.member: candidate for candidate in candidates}
    winner = elected(found.names, cast) if found.names else None
    record = StepVote(
        prompt_id=found.prompt.id,
        step=step,
        principle_id=found.principle.id,
        candidates=tuple(candidates),
        ballots=tuple(cast),
        winner=winner,
        disagreement=None if winner is None else disagreement(winner, cast),
    )
    return record, named[winner or MAIN] if winner != UNCHANGED else _outvoted(found, named, cast)


def _outvoted(found: Standing, named: Mapping[str, Candidate], cast: Sequence[Ballot]) -> Candidate:
    others = [name for name in found.names if name != UNCHANGED]
    best = named[elected(others, [_without(ballot, UNCHANGED) for ballot in cast])]
    return Candidate(
        member=best.member,
        critique=best.critique,
        revision=best.revision,
        outcome=RevisionOutcome.outvoted,
        response=found.texts[found.names.index(UNCHANGED)],
    )


def _without(ballot: Ballot, name: str) -> Ballot:
    left = tuple(other for other in ballot.ranking if other != name)
    return Ballot(voter=ballot.voter, pairs=ballot.pairs, ranking=left)
