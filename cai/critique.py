"""Critique and revision of drafts under drawn principles (Bai et al. 2022, sec. 3.1).

At every step and for every prompt a principle is drawn independently and with replacement; the
critique model sees worked examples, the original conversation and the response as it stands, never
an earlier critique (the context reset); the revision follows from the critique in the same
conversation. A step whose prompt does not fit, or whose revision `cai.acceptance` does not accept,
keeps the response it had and says why.

The same reviser revises without a critique: the control that says whether critiques do anything
(Bai et al. 2022, fig. 7; `cai.stages.controls`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.acceptance import Assessed, assess
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig, SamplingConfig
from cai.constitution import Constitution, Principle
from cai.engines import Engine
from cai.generation import Tokens
from cai.prompts import (
    ONLY_RESPONSE,
    REVIEWER_SYSTEM,
    critique_prompt,
    direct_revision_prompt,
    revision_examples,
    revision_prompt,
)
from cai.seeds import derive_seed, python_rng
from cai.tokens import ChatEncoder
from cai.types import (
    Message,
    Prompt,
    Response,
    RevisionChain,
    RevisionOutcome,
    RevisionStep,
    Sample,
)


def to_sample(encoder: ChatEncoder, tokens: Tokens, seed: int) -> Sample:
    """Sampled tokens as a record."""
    return Sample(
        text=encoder.decode(tokens.ids),
        num_tokens=len(tokens.ids),
        logprob=tokens.logprob,
        finished=tokens.finished,
        seed=seed,
    )


@dataclass(slots=True)
class _Chain:
    """A chain while it grows."""

    draft: Response
    response: str
    steps: list[RevisionStep]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A response that is to be revised under one principle."""

    prompt: Prompt
    draft: str
    """What the chain began with."""
    response: str
    """As it stands now."""
    principle: Principle


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviser:
    """Critiques and revises shards of drafts with one critique model."""

    generator: Engine
    encoder: ChatEncoder
    constitution: Constitution
    sampling: PrincipleSampling
    config: RevisionsConfig
    seed: int

    def revise(
        self, drafts: Sequence[Response], advance: Callable[[int], None]
    ) -> list[RevisionChain]:
        """All steps of one shard of drafts, batched over its rows.

        Args:
            drafts: The shard.
            advance: Called with the number of rows after every batch of critiques or revisions.
        """
        chains = [_Chain(draft=d, response=d.sample.text, steps=[]) for d in drafts]
        for step in range(1, self.config.num_revisions + 1):
            self._step(chains, step, advance)
        return [
            RevisionChain(prompt=c.draft.prompt, draft=c.draft.sample, steps=tuple(c.steps))
            for c in chains
        ]

    def draw(self, prompt: Prompt, step: int) -> Principle:
        """The principle of one step of a prompt's chain."""
        rng = python_rng(self.seed, "principle", prompt.id, step)
        return self.constitution.draw(rng, weighted=self.sampling is PrincipleSampling.weighted)

    def critiques(self, turns: Sequence[Turn], step: int) -> list[Sample | None]:
        """One critique per turn; None where the prompt does not fit the context."""
        return self._sample(
            turns, [self._asked(turn) for turn in turns], self.config.critique, f"critique{step}"
        )

    def revisions(
        self, turns: Sequence[Turn], critiques: Sequence[Sample | None], step: int
    ) -> list[Sample | None]:
        """One revision per turn after its critique; None where there is none or no room."""
        asked = [
            revision_prompt(
                self._asked(turn), critique=critique.text, request=turn.principle.revise
            )
            if critique
            else None
            for turn, critique in zip(turns, critiques, strict=True)
        ]
        return self._sample(turns, asked, self.config.revision, f"revision{step}")

    def direct_revisions(self, turns: Sequence[Turn], step: int) -> list[Sample | None]:
        """One revision per turn on the same request without a critique, from the same numbers."""
        asked = [
            direct_revision_prompt(
                turn.prompt.messages,
                turn.response,
                request=turn.principle.revise,
                num_few_shot=self.config.num_few_shot,
            )
            for turn in turns
        ]
        return self._sample(turns, asked, self.config.revision, f"revision{step}")

    def assess(self, turn: Turn, *, critique: Sample | None, revision: Sample | None) -> Assessed:
        """What became of a turn's revision; without an accepted one the response stays."""
        if revision is None:
            return Assessed(outcome=RevisionOutcome.too_long, text=turn.response)
        principle = turn.principle
        shots = revision_examples(self.config.num_few_shot)
        found = assess(
            revision,
            critique=critique.text if critique else None,
            responses=(turn.response, turn.draft),
            sources=(
                *(message.content for message in turn.prompt.messages),
                principle.principle,
                principle.critique,
                f"{principle.revise} {ONLY_RESPONSE}",
                *(text for shot in shots for text in shot.texts()),
            ),
        )
        if found.outcome.accepted:
            return found
        return Assessed(outcome=found.outcome, text=turn.response)

    def _step(self, chains: Sequence[_Chain], step: int, advance: Callable[[int], None]) -> None:
        turns = [
            Turn(
                prompt=chain.draft.prompt,
                draft=chain.draft.sample.text,
                response=chain.response,
                principle=self.draw(chain.draft.prompt, step),
            )
            for chain in chains
        ]
        critiques = self.critiques(turns, step)
        advance(len(turns))
        revisions = self.revisions(turns, critiques, step)
        advance(len(turns))
        for chain, turn, critique, revision in zip(
            chains, turns, critiques, revisions, strict=True
        ):
            found = self.assess(turn, critique=critique, revision=revision)
            chain.response = found.text
            chain.steps.append(
                RevisionStep(
                    step=step,
                    principle_id=turn.principle.id,
                    critique=critique,
                    revision=revision,
                    outcome=found.outcome,
                    response=found.text,
                )
            )

    def _asked(self, turn: Turn) -> list[Message]:
        return critique_prompt(
            turn.prompt.messages,
            turn.response,
            request=turn.principle.critique,
            num_few_shot=self.config.num_few_shot,
        )

    def _sample(
        self,
        turns: Sequence[Turn],
        asked: Sequence[list[Message] | None],
        config: SamplingConfig,
        name: str,
    ) -> list[Sample | None]:
        """One text per turn; None where there is no prompt or it does not fit the context."""
        prompts = {
            row: ids
            for row, messages in enumerate(asked)
            if messages is not None
            and self.generator.fits(
                ids := self.encoder.conversation(messages, system=REVIEWER_SYSTEM),
                config.max_new_tokens,
            )
        }
        samples: list[Sample | None] = [None] * len(turns)
        if not prompts:
            return samples
        seeds = [derive_seed(self.seed, name, turns[row].prompt.id) for row in prompts]
        sampled = self.generator.sample(
            list(prompts.values()),
            seeds=seeds,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        for row, seed, tokens in zip(prompts, seeds, sampled, strict=True):
            samples[row] = to_sample(self.encoder, tokens, seed)
        return samples
