"""Chains of critiques and revisions from drafts: who takes a step, under what, and when it ends.

A step is one critique model's (`Alone`) or voted for (`Together`, `cai.revision_votes`). Chains
have a fixed number of steps under drawn principles (Bai et al. 2022, sec. 3.1), or go on under the
principle that holds least until none fails (`cai.satisfaction`); the two go together in any way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cai.constitution import Principle
from cai.critique import Reviser, Turn
from cai.feedback.base import Feedback
from cai.revision_records import (
    Candidate,
    ChainEnd,
    RevisedDraft,
    RoundVerdicts,
    Satisfaction,
    StepVote,
)
from cai.revision_votes import ballots, decide, standing
from cai.revisions_config import MAIN
from cai.satisfaction import Checker, end_of, failing
from cai.types import Prompt, Response, RevisionChain, RevisionStep

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What a step leaves."""

    candidate: Candidate
    vote: StepVote | None


class Editor(Protocol):
    """Whoever takes responses one step further."""

    def draw(self, prompt: Prompt, step: int) -> Principle:
        """The principle of one step of a prompt's chain, where it is drawn."""
        ...

    def edit(self, turns: Sequence[Turn], step: int, advance: Advance) -> list[Edited]:
        """One step of a batch of turns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One critique model."""

    reviser: Reviser

    def draw(self, prompt: Prompt, step: int) -> Principle:
        """As `Editor`."""
        return self.reviser.draw(prompt, step)

    def edit(self, turns: Sequence[Turn], step: int, advance: Advance) -> list[Edited]:
        """As `Editor`."""
        candidates = self.reviser.candidates(turns, step, advance, member=MAIN)
        return [Edited(candidate=candidate, vote=None) for candidate in candidates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Several critique models, and a vote after every step."""

    members: Mapping[str, Reviser]
    """`main` first."""
    voters: Mapping[str, Feedback]
    keep_candidate: bool

    def draw(self, prompt: Prompt, step: int) -> Principle:
        """As `Editor`; `main` draws for all."""
        return self.members[MAIN].draw(prompt, step)

    def edit(self, turns: Sequence[Turn], step: int, advance: Advance) -> list[Edited]:
        """As `Editor`; the members one after the other, then the voters."""
        made = [
            reviser.candidates(turns, step, advance, member=name)
            for name, reviser in self.members.items()
        ]
        candidates = [tuple(own) for own in zip(*made, strict=True)]
        stands = [
            standing(
                turn.prompt,
                turn.principle,
                own,
                unchanged=turn.response if self.keep_candidate else None,
            )
            for turn, own in zip(turns, candidates, strict=True)
        ]
        cast = ballots(self.voters, stands)
        found = []
        for stand, own, votes in zip(stands, candidates, cast, strict=True):
            vote, candidate = decide(step, stand, own, votes)
            found.append(Edited(candidate=candidate, vote=vote))
        return found


@dataclass(slots=True)
class _Chain:
    """A chain while it grows."""

    draft: Response
    response: str
    steps: list[RevisionStep] = field(default_factory=list)
    votes: list[StepVote] = field(default_factory=list)
    rounds: list[RoundVerdicts] = field(default_factory=list)
    end: ChainEnd | None = None

    def turn(self, principle: Principle) -> Turn:
        """The next step's."""
        return Turn(
            prompt=self.draft.prompt,
            draft=self.draft.sample.text,
            response=self.response,
            principle=principle,
        )

    def record(self) -> RevisedDraft:
        """As it is kept."""
        chain = RevisionChain(
            prompt=self.draft.prompt, draft=self.draft.sample, steps=tuple(self.steps)
        )
        satisfaction = None
        if self.end is not None:
            satisfaction = Satisfaction(
                prompt_id=self.draft.prompt.id, rounds=tuple(self.rounds), end=self.end
            )
        return RevisedDraft(chain=chain, satisfaction=satisfaction, votes=tuple(self.votes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Revises shards of drafts."""

    editor: Editor
    num_steps: int
    """Of every chain, or at most of one that goes on until satisfied."""
    checker: Checker | None
    """Whose verdicts end chains; None: all have the same number of steps."""

    def revise(self, drafts: Sequence[Response], advance: Advance) -> list[RevisedDraft]:
        """All steps of one shard of drafts, batched over its rows.

        Args:
            drafts: The shard.
            advance: Called with the number of rows after every batch of critiques or revisions.
        """
        chains = [_Chain(draft, draft.sample.text) for draft in drafts]
        if self.checker is not None:
            self.checker.forget()
        for step in range(1, self.num_steps + 1):
            going = [chain for chain in chains if chain.end is None]
            turns = self._turns(going, step)
            going = [chain for chain in going if chain.end is None]
            if not going:
                break
            edited = self.editor.edit(turns, step, advance)
            for chain, turn, own in zip(going, turns, edited, strict=True):
                _take(chain, turn.principle, step, own)
        self._last_check(chains)
        return [chain.record() for chain in chains]

    def _turns(self, chains: Sequence[_Chain], step: int) -> list[Turn]:
        """The turns of chains that go on; ends those that need no further step."""
        if self.checker is None:
            return [chain.turn(self.editor.draw(chain.draft.prompt, step)) for chain in chains]
        self._check(chains)
        return [self._worst(chain) for chain in chains if chain.end is None]

    def _worst(self, chain: _Chain) -> Turn:
        """A turn under the principle that holds least."""
        assert self.checker is not None
        worst = failing(chain.rounds[-1].verdicts, self.checker.config.threshold)[0]
        return chain.turn(self.checker.constitution.find(worst.principle_id))

    def _check(self, chains: Sequence[_Chain]) -> None:
        assert self.checker is not None
        asked = [(chain.draft.prompt, chain.response) for chain in chains]
        for chain, verdicts in zip(chains, self.checker.check(asked), strict=True):
            chain.rounds.append(RoundVerdicts(round=len(chain.steps), verdicts=verdicts))
            chain.end = end_of(verdicts, self.checker.config.threshold)

    def _last_check(self, chains: Sequence[_Chain]) -> None:
        """Whether the chains that used all rounds are satisfied after them."""
        if self.checker is None:
            return
        left = [chain for chain in chains if chain.end is None]
        self._check(left)
        for chain in left:
            chain.end = chain.end or ChainEnd.max_rounds


def _take(chain: _Chain, principle: Principle, step: int, edited: Edited) -> None:
    """Add a step to a chain."""
    candidate = edited.candidate
    chain.response = candidate.response
    chain.steps.append(
        RevisionStep(
            step=step,
            principle_id=principle.id,
            critique=candidate.critique,
            revision=candidate.revision,
            outcome=candidate.outcome,
            response=candidate.response,
        )
    )
    if edited.vote is not None:
        chain.votes.append(edited.vote)
