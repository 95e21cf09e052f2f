"""Critique and revision of drafts under drawn principles (Bai et al. 2022, sec. 3.1).

The critique model sees worked examples, the original conversation and the response as it stands,
never an earlier critique (the context reset); the revision follows from the critique in the same
conversation. Principles are drawn independently and with replacement, for every step and prompt.
Where a prompt does not fit, or `cai.acceptance` does not accept the revision, the response stays
and the record says why. `cai.revising` makes chains of such steps.

The same reviser revises without a critique: the control that says whether critiques do anything
(Bai et al. 2022, fig. 7; `cai.stages.controls`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.acceptance import Assessed, assess
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig, SamplingConfig
from cai.constitution import Constitution, Principle
from cai.engines import Engine
from cai.generation import Tokens
from cai.model_config import ModelConfig
from cai.models import Models
from cai.prompts import (
    ONLY_RESPONSE,
    REVIEWER_SYSTEM,
    critique_prompt,
    direct_revision_prompt,
    revision_examples,
    revision_prompt,
)
from cai.revision_records import Candidate
from cai.seeds import derive_seed, python_rng
from cai.tokens import ChatEncoder
from cai.types import (
    Message,
    Prompt,
    RevisionOutcome,
    Sample,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueEngines:
    """What critiques and what revises after it."""

    encoder: ChatEncoder
    generator: Engine
    critic: Engine


def critique_engines(models: Models, config: ModelConfig) -> CritiqueEngines:
    """A critique model's engines: with `start` it critiques as a critic, and its base revises.

    So a critic is separate from the generator, and is used as it was trained: on critiques alone.
    """
    base = models.base(dataclasses.replace(config, start=None))
    generator = base.generator()
    critic = generator if config.start is None else models.base(config).generator()
    return CritiqueEngines(encoder=base.encoder, generator=generator, critic=critic)


def to_sample(encoder: ChatEncoder, tokens: Tokens, seed: int) -> Sample:
    """Sampled tokens as a record."""
    return Sample(
        text=encoder.decode(tokens.ids),
        num_tokens=len(tokens.ids),
        logprob=tokens.logprob,
        finished=tokens.finished,
        seed=seed,
    )


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
    """Revises: the critique model's base."""
    critic: Engine
    """Critiques: the base, or the base with the adapter that `start` names."""
    encoder: ChatEncoder
    constitution: Constitution
    sampling: PrincipleSampling
    config: RevisionsConfig
    seed: int
    system: str = REVIEWER_SYSTEM
    """System turn of its conversations."""

    def draw(self, prompt: Prompt, step: int) -> Principle:
        """The principle of one step of a prompt's chain."""
        rng = python_rng(self.seed, "principle", prompt.id, step)
        return self.constitution.draw(rng, weighted=self.sampling is PrincipleSampling.weighted)

    def critiques(self, turns: Sequence[Turn], step: int) -> list[Sample | None]:
        """One critique per turn; None where the prompt does not fit the context."""
        asked = [self.asked(turn) for turn in turns]
        return self._sample(self.critic, turns, asked, self.config.critique, f"critique{step}")

    def revisions(
        self, turns: Sequence[Turn], critiques: Sequence[Sample | None], step: int
    ) -> list[Sample | None]:
        """One revision per turn after its critique; None where there is none or no room."""
        asked = [
            revision_prompt(self.asked(turn), critique=critique.text, request=turn.principle.revise)
            if critique
            else None
            for turn, critique in zip(turns, critiques, strict=True)
        ]
        return self._sample(self.generator, turns, asked, self.config.revision, f"revision{step}")

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
        return self._sample(self.generator, turns, asked, self.config.revision, f"revision{step}")

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

    def candidates(
        self, turns: Sequence[Turn], step: int, advance: Callable[[int], None], *, member: str
    ) -> list[Candidate]:
        """A critique and a revision for each turn, and what became of them.

        Args:
            turns: One batch.
            step: 1-based.
            advance: Called with the number of turns after the critiques and after the revisions.
            member: What this critique model is called.
        """
        critiques = self.critiques(turns, step)
        advance(len(turns))
        revisions = self.revisions(turns, critiques, step)
        advance(len(turns))
        found = []
        for turn, critique, revision in zip(turns, critiques, revisions, strict=True):
            assessed = self.assess(turn, critique=critique, revision=revision)
            candidate = Candidate(
                member=member,
                critique=critique,
                revision=revision,
                outcome=assessed.outcome,
                response=assessed.text,
            )
            found.append(candidate)
        return found

    def asked(self, turn: Turn) -> list[Message]:
        """The conversation that asks for a turn's critique."""
        return critique_prompt(
            turn.prompt.messages,
            turn.response,
            request=turn.principle.critique,
            num_few_shot=self.config.num_few_shot,
        )

    def _sample(
        self,
        engine: Engine,
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
            and engine.fits(
                ids := self.encoder.conversation(messages, system=self.system),
                config.max_new_tokens,
            )
        }
        samples: list[Sample | None] = [None] * len(turns)
        if not prompts:
            return samples
        seeds = [derive_seed(self.seed, name, turns[row].prompt.id) for row in prompts]
        sampled = engine.sample(
            list(prompts.values()),
            seeds=seeds,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        for row, seed, tokens in zip(prompts, seeds, sampled, strict=True):
            samples[row] = to_sample(self.encoder, tokens, seed)
        return samples
