"""Critique and revision of drafts under drawn principles (Bai et al. 2022, sec. 3.1).

At every step and for every prompt a principle is drawn independently and with replacement; the
critique model sees worked examples, the original conversation and the response as it stands, never
an earlier critique (the context reset); the revision follows from the critique in the same
conversation. A step whose prompt does not fit, or whose revision is empty, keeps the response it
had and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig, SamplingConfig
from cai.constitution import Constitution, Principle
from cai.generation import Generator, Tokens
from cai.prompts import REVIEWER_SYSTEM, clean_revision, critique_prompt, revision_prompt
from cai.seeds import derive_seed, python_rng
from cai.tokens import ChatEncoder
from cai.types import Message, Response, RevisionChain, RevisionOutcome, RevisionStep, Sample


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
class Reviser:
    """Critiques and revises shards of drafts with one critique model."""

    generator: Generator
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

    def _draw(self, chain: _Chain, step: int) -> Principle:
        rng = python_rng(self.seed, "principle", chain.draft.prompt.id, step)
        return self.constitution.draw(rng, weighted=self.sampling is PrincipleSampling.weighted)

    def _step(self, chains: Sequence[_Chain], step: int, advance: Callable[[int], None]) -> None:
        principles = [self._draw(chain, step) for chain in chains]
        asked = [
            critique_prompt(
                chain.draft.prompt.messages,
                chain.response,
                request=principle.critique,
                num_few_shot=self.config.num_few_shot,
            )
            for chain, principle in zip(chains, principles, strict=True)
        ]
        critiques = self._sample(chains, asked, self.config.critique, f"critique{step}")
        advance(len(chains))
        revise = [
            revision_prompt(question, critique=critique.text, request=principle.revise)
            if critique
            else None
            for question, critique, principle in zip(asked, critiques, principles, strict=True)
        ]
        revisions = self._sample(chains, revise, self.config.revision, f"revision{step}")
        advance(len(chains))
        for chain, principle, critique, revision in zip(
            chains, principles, critiques, revisions, strict=True
        ):
            self._record(chain, step, principle, critique, revision)

    def _sample(
        self,
        chains: Sequence[_Chain],
        asked: Sequence[list[Message] | None],
        config: SamplingConfig,
        name: str,
    ) -> list[Sample | None]:
        """One text per chain; None where there is no prompt or it does not fit the context."""
        prompts = {
            row: ids
            for row, messages in enumerate(asked)
            if messages is not None
            and self.generator.fits(
                ids := self.encoder.conversation(messages, system=REVIEWER_SYSTEM),
                config.max_new_tokens,
            )
        }
        samples: list[Sample | None] = [None] * len(chains)
        if not prompts:
            return samples
        seeds = [derive_seed(self.seed, name, chains[row].draft.prompt.id) for row in prompts]
        sampled = self.generator.sample(
            list(prompts.values()),
            seeds=seeds,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        for row, seed, tokens in zip(prompts, seeds, sampled, strict=True):
            samples[row] = to_sample(self.encoder, tokens, seed)
        return samples

    @staticmethod
    def _record(
        chain: _Chain,
        step: int,
        principle: Principle,
        critique: Sample | None,
        revision: Sample | None,
    ) -> None:
        revised = clean_revision(revision.text) if revision else ""
        if critique is None or revision is None:
            outcome = RevisionOutcome.too_long
        elif not revised:
            outcome = RevisionOutcome.empty_revision
        elif revised == clean_revision(chain.response):
            outcome = RevisionOutcome.unchanged
        else:
            outcome = RevisionOutcome.revised
        if outcome is RevisionOutcome.revised:
            chain.response = revised
        chain.steps.append(
            RevisionStep(
                step=step,
                principle_id=principle.id,
                critique=critique,
                revision=revision,
                outcome=outcome,
                response=chain.response,
            )
        )
