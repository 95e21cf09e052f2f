"""Records of revision until satisfied and of votes between several critique models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cai.types import RevisionChain, RevisionOutcome, Sample, Unjudged

CHECKS = "checks.jsonl"
"""`Satisfaction` records of the stage `revisions`; there with `until: satisfied`."""
VOTES = "votes.jsonl"
"""`StepVote` records of the stage `revisions`; there with several critique models."""
FEEDBACK = "feedback"
"""The voter that is no member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleVerdict:
    """Whether one principle holds for one response, by the feedback."""

    principle_id: str
    prob: float | None
    """P(holds); None where `unjudged` says why."""
    unjudged: Unjudged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundVerdicts:
    """The response after some rounds under every principle that is checked."""

    round: int
    """Critique-revision steps before it; 0: the draft."""
    verdicts: tuple[PrincipleVerdict, ...]


class ChainEnd(StrEnum):
    """Why a chain has no further round."""

    satisfied = "satisfied"
    """Every principle that was checked holds."""
    max_rounds = "max_rounds"
    """One still fails, and there are no more rounds: the rounds needed are censored."""
    unjudged = "unjudged"
    """None fails, but one could not be judged: neither satisfied nor not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Satisfaction:
    """The checks of one chain; round r is followed by its step r + 1."""

    prompt_id: str
    rounds: tuple[RoundVerdicts, ...]
    end: ChainEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One member's critique and revision, or the response as it was."""

    member: str
    critique: Sample | None
    revision: Sample | None
    outcome: RevisionOutcome
    """Only an accepted revision, and the response as it was, can be voted for."""
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VotePair:
    """A voter's preference between two candidates."""

    first: str
    second: str
    prob_first: float | None
    """0.5 for two equal texts; None where it cannot be judged."""
    weight: float
    unjudged: Unjudged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One voter on the candidates of one step."""

    voter: str
    """A member, or `feedback`."""
    pairs: tuple[VotePair, ...]
    """Every two candidates, in the order of the members."""
    ranking: tuple[str, ...]
    """Best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVote:
    """The vote about one step of one chain."""

    prompt_id: str
    step: int
    principle_id: str
    candidates: tuple[Candidate, ...]
    """Every member's, in order, whether or not it stood."""
    ballots: tuple[Ballot, ...]
    """Empty where fewer than two stood."""
    winner: str | None
    """None where no revision was accepted."""
    disagreement: float | None
    """1 less the winner's share of the votes; None without ballots, or where none was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisedDraft:
    """A chain with its checks and votes, as a shard keeps them."""

    chain: RevisionChain
    satisfaction: Satisfaction | None
    votes: tuple[StepVote, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCheck:
    """The verdict on one response of a principle test, whose better one should hold."""

    name: str
    """`<principle>-<index>`."""
    principle_id: str
    holds: bool
    """By the test: whether it is the better response."""
    value: float | None
    """What the verdict is made of: log-odds, a mark, or a probe's value."""
    prob: float | None
    """P(holds), without the knowledge of this pair; None where `unjudged` says why."""
    unjudged: Unjudged | None
