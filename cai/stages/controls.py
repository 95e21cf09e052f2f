"""Stages `controls`, `control_comparisons`: do critiques do anything (Bai et al. 2022, fig. 7)?

On held-out red-team prompts the base's response is the draft of three alternatives of one budget of
response tokens and one temperature: a critiqued revision, a revision on the same request without
the critique, and the same prompt sampled again. The feedback then compares the critiqued revision
with each of the others and with the draft, under the principle that was drawn for it.

What is compared is what a chain would hand on: a revision that is not accepted leaves the draft,
so two arms may end with the same text; that is a tie, counted as such where the numbers are made.
Texts that ran into the token limit are cut back to whole sentences in every arm alike, or the
feedback would see which of them were revised.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from cai.acceptance import presentable
from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig, SamplingConfig
from cai.context import RunContext, Stage
from cai.critique import Reviser, Turn, critique_engines, to_sample
from cai.engines import Engine
from cai.feedback.base import Feedback, Pair
from cai.model_config import ModelConfig
from cai.models import BaseModel, role_key
from cai.prompts import direct_revision_wording, revision_wording
from cai.seeds import derive_seed
from cai.stages.comparisons import PAIRS_PER_SHARD, Judge
from cai.types import (
    ControlArm,
    ControlComparison,
    ControlText,
    CritiqueControl,
    PromptKind,
    Response,
    Sample,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What says whether critiques do anything."""

    texts: Artifact
    """`CritiqueControl` records."""
    comparisons: Artifact
    """`ControlComparison` records."""


AGAINST = (ControlArm.uncritiqued, ControlArm.resampled, ControlArm.draft)
"""What the critiqued revision is compared with."""
TEXTS_PER_PROMPT = 4
"""Critique, two revisions, one more sample."""
STEP = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resampler:
    """Samples the policy's prompts again, each from its own stream."""

    base: BaseModel
    generator: Engine
    config: SamplingConfig
    seed: int

    def sample(self, drafts: Sequence[Response]) -> list[Sample | None]:
        """One more response per draft; None where the prompt does not fit."""
        ids = [self.base.prompt_ids(draft.prompt.messages) for draft in drafts]
        rows = [
            row
            for row, prompt in enumerate(ids)
            if self.generator.fits(prompt, self.config.max_new_tokens)
        ]
        seeds = [derive_seed(self.seed, "resampled", drafts[row].prompt.id) for row in rows]
        sampled = self.generator.sample(
            [ids[row] for row in rows],
            seeds=seeds,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
        )
        found: list[Sample | None] = [None] * len(drafts)
        for row, seed, tokens in zip(rows, seeds, sampled, strict=True):
            found[row] = to_sample(self.base.encoder, tokens, seed)
        return found


def make_controls(
    reviser: Reviser,
    resample: Callable[[Sequence[Response]], list[Sample | None]],
    drafts: Sequence[Response],
    advance: Callable[[int], None],
) -> list[CritiqueControl]:
    """All arms of one shard of drafts."""
    turns = [
        Turn(
            prompt=draft.prompt,
            draft=draft.sample.text,
            response=draft.sample.text,
            principle=reviser.draw(draft.prompt, STEP),
        )
        for draft in drafts
    ]
    critiques = reviser.critiques(turns, STEP)
    advance(len(turns))
    critiqued = reviser.revisions(turns, critiques, STEP)
    advance(len(turns))
    uncritiqued = reviser.direct_revisions(turns, STEP)
    advance(len(turns))
    resampled = resample(drafts)
    return [
        CritiqueControl(
            prompt=draft.prompt,
            principle_id=turn.principle.id,
            critique=critique,
            texts=(
                _sampled(ControlArm.draft, draft, draft.sample),
                _revised(reviser, ControlArm.critiqued, draft, turn, critique, revision),
                _revised(reviser, ControlArm.uncritiqued, draft, turn, None, direct),
                _sampled(ControlArm.resampled, draft, again),
            ),
        )
        for draft, turn, critique, revision, direct, again in zip(
            drafts, turns, critiques, critiqued, uncritiqued, resampled, strict=True
        )
    ]


def _sampled(arm: ControlArm, draft: Response, sample: Sample | None) -> ControlText:
    return ControlText(
        arm=arm, sample=sample, outcome=None, response=presentable(sample or draft.sample)
    )


def _revised(
    reviser: Reviser,
    arm: ControlArm,
    draft: Response,
    turn: Turn,
    critique: Sample | None,
    revision: Sample | None,
) -> ControlText:
    found = reviser.assess(turn, critique=critique, revision=revision)
    response = found.text if found.outcome.accepted else presentable(draft.sample)
    return ControlText(arm=arm, sample=revision, outcome=found.outcome, response=response)


def controls(
    context: RunContext,
    *,
    model: ModelConfig,
    critique_model: ModelConfig,
    sampling: PrincipleSampling,
    config: RevisionsConfig,
    responses: Artifact,
    num: int,
) -> Artifact:
    """Every arm on the first held-out red-team prompts.

    Args:
        context: The run.
        model: The policy's base, which wrote `responses` and samples again.
        critique_model: Who critiques and revises; of several, `main`, by itself.
        sampling: How principles are drawn.
        config: Of the run's revisions: worked examples, token limits, temperatures, batches.
        responses: The base's responses to held-out prompts.
        num: At most so many prompts.
    """

    def run(work: Work) -> None:
        engines = critique_engines(context.models, critique_model)
        seed = derive_seed(context.seed, "controls")
        reviser = Reviser(
            generator=engines.generator,
            critic=engines.critic,
            encoder=engines.encoder,
            constitution=context.constitution,
            sampling=sampling,
            config=config,
            seed=seed,
        )
        resampler = Resampler(
            base=context.models.base(model),
            generator=context.models.policy(model, None),
            config=config.revision,
            seed=seed,
        )
        held_out = [r for r in responses.records(Response) if r.prompt.kind is PromptKind.red_team]
        records = in_shards(
            work,
            held_out[:num],
            kind=CritiqueControl,
            shard_size=config.revision.shard_size,
            make=lambda shard, advance: make_controls(reviser, resampler.sample, shard, advance),
            unit="texts",
            units_per_item=TEXTS_PER_PROMPT,
        )
        work.write_records(records)
        outcomes = Counter(
            f"{text.arm}_{'used' if text.outcome.accepted else 'kept_out'}"
            for record in records
            for text in record.texts
            if text.outcome is not None
        )
        work.counts = {"prompts": len(records), **dict(sorted(outcomes.items()))}

    return context.run(
        Stage(
            name="controls",
            version=1,
            config={"revisions": config.step_settings(), "num": num},
            inputs={"responses": responses},
            identity={
                "model": role_key(model),
                "critique_model": role_key(critique_model),
                "constitution": context.constitution.digest,
                "principles": str(sampling),
                "wording": digest_of([revision_wording(), direct_revision_wording()]),
            },
            expect={"prompts": num, "texts": num * TEXTS_PER_PROMPT},
            run=run,
        )
    )


def compare_arms(
    feedback: Feedback, asked: Sequence[tuple[CritiqueControl, ControlArm]]
) -> list[ControlComparison]:
    """The feedback's preferences between the critiqued revision (a) and other arms (b)."""
    pairs = [
        Pair(
            prompt=control.prompt,
            response_a=control.text(ControlArm.critiqued).response,
            response_b=control.text(against).response,
            principles=(feedback.constitution.find(control.principle_id),),
        )
        for control, against in asked
    ]
    return [
        ControlComparison(against=against, comparison=comparison)
        for (_, against), comparison in zip(asked, feedback.compare(pairs), strict=True)
    ]


def control_comparisons(
    context: RunContext, *, judge: Judge, controls: Artifact, num: int
) -> Artifact:
    """The feedback on every pair of arms that answers a question."""

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "control_comparisons")
        records = in_shards(
            work,
            [(c, against) for c in controls.records(CritiqueControl) for against in AGAINST],
            kind=ControlComparison,
            shard_size=PAIRS_PER_SHARD,
            make=lambda chunk, _advance: compare_arms(feedback, chunk),
            unit="pairs",
        )
        work.write_records(records)
        unjudged = Counter(str(r.comparison.unjudged) for r in records if r.comparison.unjudged)
        work.counts = {"pairs": len(records), **dict(sorted(unjudged.items()))}

    return context.run(
        Stage(
            name="control_comparisons",
            version=2,
            config={"num": num},
            inputs={"controls": controls, **judge.inputs()},
            identity=judge.identity(context),
            expect={"pairs": num * len(AGAINST)},
            run=run,
        )
    )
