"""Stages `trusted_checks`, `critic_revisions`, `critic_comparisons`: what a critic is worth.

On trusted items that it did not learn from: is its critique valid, is its verdict right, how likely
does it find the trusted critique? And on held-out prompts of the controls (`cai.stages.controls`):
the base revises after the critic's critique, and a judge compares that with the base's revision
after its own critique, without one, with sampling again and with the draft. Prompts, principles,
temperatures and the reviser are the same on both sides; only the critique differs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cai import trusted_critiques
from cai.acceptance import presentable
from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig
from cai.context import RunContext, Stage
from cai.critic_record import CriticComparison, CriticRevision, TrustedCheck, TrustedCritique
from cai.critique import Reviser, Turn, critique_engines, to_sample
from cai.critique_rules import Invalid, Verdict, invalid, verdict_of
from cai.engines import Engine
from cai.evaluation import mean_logprobs
from cai.feedback.base import Feedback, Pair
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.prompts import REVIEWER_SYSTEM, revision_wording
from cai.seeds import derive_seed
from cai.stages.comparisons import PAIRS_PER_SHARD, Judge
from cai.stages.critic import STEP, critique_ids, reviser_of, trusted_prompt, worked_texts
from cai.types import ControlArm, CritiqueControl, Sample

BASE = "base"
ARMS = {
    BASE: ControlArm.critiqued,
    "uncritiqued": ControlArm.uncritiqued,
    "resampled": ControlArm.resampled,
    "draft": ControlArm.draft,
}
"""What a critic's revision is compared with, and the arm of the controls that it is."""
ITEMS_PER_SHARD = 8
"""Part of the stage, as batches decide the last digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """Who critiques."""

    name: str
    """`base`, `start` or `critic`."""
    model: ModelConfig
    """The critique model; its `start` counts where there is no adapter."""
    adapter: Artifact | None
    """What the run trained."""

    def engine(self, context: RunContext) -> Engine:
        """What samples its critiques."""
        if self.adapter is None:
            return critique_engines(context.models, self.model).critic
        return context.models.policy(self._base, self.adapter)

    def inputs(self) -> dict[str, Artifact]:
        """What the run trained."""
        return {"critic": self.adapter} if self.adapter else {}

    def identity(self) -> dict[str, object]:
        """Who it is, besides the adapter."""
        asked = self._base if self.adapter else self.model
        return {"critique_model": role_key(asked), "critic": self.name}

    @property
    def _base(self) -> ModelConfig:
        return dataclasses.replace(self.model, start=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticMatch:
    """One judge's comparisons of the trained critic's revisions with others."""

    judge: Judge
    artifact: Artifact
    """`CriticComparison` records."""
    circular: bool
    """Whether the critic was trained on this judge's labels."""


def trusted_checks(
    context: RunContext, *, critic: Critic, config: RevisionsConfig, held_out_frac: float
) -> Artifact:
    """A critic on the trusted items that are held out."""
    items = trusted_critiques.split(held_out_frac).held_out

    def run(work: Work) -> None:
        base = context.models.base(dataclasses.replace(critic.model, start=None))
        engine = critic.engine(context)

        def make(
            chunk: Sequence[TrustedCritique], _advance: Callable[[int], None]
        ) -> list[TrustedCheck]:
            asked = [trusted_prompt(item, num_few_shot=config.num_few_shot) for item in chunk]
            prompts = [critique_ids(base, messages) for messages in asked]
            limit = config.critique.max_new_tokens
            rows = [row for row, ids in enumerate(prompts) if engine.fits(ids, limit)]
            seeds = [derive_seed(context.seed, "trusted", chunk[row].id) for row in rows]
            sampled = engine.sample(
                [prompts[row] for row in rows],
                seeds=seeds,
                max_new_tokens=limit,
                temperature=config.critique.temperature,
            )
            critiques: list[Sample | None] = [None] * len(chunk)
            for row, seed, tokens in zip(rows, seeds, sampled, strict=True):
                critiques[row] = to_sample(base.encoder, tokens, seed)
            likely = mean_logprobs(
                engine,
                base.encoder,
                conversations=asked,
                responses=[item.critique for item in chunk],
                system=REVIEWER_SYSTEM,
            )
            return [
                trusted_check(item, critique, logprob, critic=critic.name, config=config)
                for item, critique, logprob in zip(chunk, critiques, likely, strict=True)
            ]

        records = in_shards(
            work, items, kind=TrustedCheck, shard_size=ITEMS_PER_SHARD, make=make, unit="items"
        )
        work.write_records(records)
        work.counts = {
            "items": len(records),
            "valid": sum(not record.invalid for record in records),
            **dict(sorted(Counter(str(record.verdict) for record in records).items())),
        }

    return context.run(
        Stage(
            name="trusted_checks",
            version=1,
            config={
                "critique": dataclasses.asdict(config.critique),
                "num_few_shot": config.num_few_shot,
                "held_out_frac": held_out_frac,
            },
            inputs=critic.inputs(),
            identity=critic.identity()
            | {"trusted": trusted_critiques.sha256(), "wording": digest_of(revision_wording())},
            expect={"items": len(items)},
            run=run,
        )
    )


def trusted_check(
    item: TrustedCritique,
    critique: Sample | None,
    trusted_logprob: float,
    *,
    critic: str,
    config: RevisionsConfig,
) -> TrustedCheck:
    """What a critic's critique of a trusted item is by the rules; without one it says nothing."""
    verdict, reasons = Verdict.unclear, (Invalid.empty,)
    if critique is not None:
        verdict = verdict_of(critique.text)
        reasons = invalid(
            critique.text,
            finished=critique.finished,
            response=item.response,
            request=item.principle,
            examples=worked_texts(config.num_few_shot),
        )
    return TrustedCheck(
        name=item.id,
        kind=item.kind,
        critic=critic,
        flawed=item.flawed,
        critique=critique,
        verdict=verdict,
        invalid=reasons,
        trusted_logprob=trusted_logprob,
    )


def critic_revisions(
    context: RunContext,
    *,
    critic: Critic,
    sampling: PrincipleSampling,
    config: RevisionsConfig,
    controls: Artifact,
    num: int,
) -> Artifact:
    """The base's revisions of the controls' drafts after a critic's critiques."""

    def run(work: Work) -> None:
        # The controls' own stream: the base would critique and revise as it did there.
        seed = derive_seed(context.seed, "controls")
        reviser = reviser_of(
            context, model=critic.model, sampling=sampling, config=config, seed=seed
        )
        critical = dataclasses.replace(reviser, critic=critic.engine(context))
        records = in_shards(
            work,
            controls.records(CritiqueControl),
            kind=CriticRevision,
            shard_size=config.revision.shard_size,
            make=lambda shard, advance: revise_after(critical, shard, advance, critic=critic.name),
            unit="texts",
            units_per_item=2,
        )
        work.write_records(records)
        outcomes = Counter(str(record.outcome) for record in records)
        work.counts = {"prompts": len(records), **dict(sorted(outcomes.items()))}

    return context.run(
        Stage(
            name="critic_revisions",
            version=1,
            config={
                "num_few_shot": config.num_few_shot,
                "critique": dataclasses.asdict(config.critique),
                "revision": dataclasses.asdict(config.revision),
            },
            inputs={"controls": controls, **critic.inputs()},
            identity=critic.identity()
            | {
                "constitution": context.constitution.digest,
                "wording": digest_of(revision_wording()),
            },
            expect={"prompts": num, "texts": 2 * num},
            run=run,
        )
    )


def revise_after(
    reviser: Reviser,
    controls: Sequence[CritiqueControl],
    advance: Callable[[int], None],
    *,
    critic: str,
) -> list[CriticRevision]:
    """One more arm of the controls, under the principles that were drawn for them."""
    turns = []
    for control in controls:
        draft = control.text(ControlArm.draft)
        assert draft.sample is not None
        turns.append(
            Turn(
                prompt=control.prompt,
                draft=draft.sample.text,
                response=draft.sample.text,
                principle=reviser.constitution.find(control.principle_id),
            )
        )
    critiques = reviser.critiques(turns, STEP)
    advance(len(turns))
    revisions = reviser.revisions(turns, critiques, STEP)
    found = []
    for control, turn, critique, revision in zip(
        controls, turns, critiques, revisions, strict=True
    ):
        draft = control.text(ControlArm.draft).sample
        assert draft is not None
        assessed = reviser.assess(turn, critique=critique, revision=revision)
        found.append(
            CriticRevision(
                prompt=turn.prompt,
                principle_id=turn.principle.id,
                critic=critic,
                critique=critique,
                revision=revision,
                outcome=assessed.outcome,
                response=assessed.text if assessed.outcome.accepted else presentable(draft),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    own: CriticRevision
    against: str
    other: str


def critic_comparisons(
    context: RunContext,
    *,
    judge: Judge,
    revisions: Artifact,
    controls: Artifact,
    others: Mapping[str, Artifact],
    num: int,
) -> Artifact:
    """A judge on the trained critic's revisions (a) and every other text (b).

    Args:
        context: The run.
        judge: Who compares.
        revisions: The trained critic's.
        controls: The other texts, by arm.
        others: Revisions after other critics' critiques, by name.
        num: Prompts, for a plan.
    """

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "critic_comparisons")
        own = revisions.records(CriticRevision)
        arms = controls.records(CritiqueControl)
        asked = [
            _Asked(own=one, against=name, other=control.text(arm).response)
            for one, control in zip(own, arms, strict=True)
            for name, arm in ARMS.items()
        ]
        for name, artifact in others.items():
            asked += [
                _Asked(own=one, against=name, other=other.response)
                for one, other in zip(own, artifact.records(CriticRevision), strict=True)
            ]
        records = in_shards(
            work,
            asked,
            kind=CriticComparison,
            shard_size=PAIRS_PER_SHARD,
            make=lambda chunk, _advance: _compare(feedback, chunk),
            unit="pairs",
        )
        work.write_records(records)
        unjudged = Counter(str(r.comparison.unjudged) for r in records if r.comparison.unjudged)
        work.counts = {"pairs": len(records), **dict(sorted(unjudged.items()))}

    return context.run(
        Stage(
            name="critic_comparisons",
            version=1,
            config={"against": [*ARMS, *others]},
            inputs={
                "revisions": revisions,
                "controls": controls,
                **{f"revisions_{name}": artifact for name, artifact in others.items()},
                **judge.inputs(),
            },
            identity=judge.identity(context),
            expect={"pairs": num * (len(ARMS) + len(others))},
            run=run,
        )
    )


def _compare(feedback: Feedback, asked: Sequence[_Asked]) -> list[CriticComparison]:
    pairs = [
        Pair(
            prompt=one.own.prompt,
            response_a=one.own.response,
            response_b=one.other,
            principles=(feedback.constitution.find(one.own.principle_id),),
        )
        for one in asked
    ]
    return [
        CriticComparison(against=one.against, comparison=comparison)
        for one, comparison in zip(asked, feedback.compare(pairs), strict=True)
    ]
