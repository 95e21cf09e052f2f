"""Stages `critique_samples`, `critique_gains` and `critic`: a critic's data and its fine-tune.

Examples are critique prompts with critiques: trusted ones that ship with the package, and the best
of several sampled ones by what the base's revision after it gains under the feedback (rejection
sampling, as best-of-n). The critic learns critiques alone: revisions stay the generator's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from cai import trusted_critiques
from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig
from cai.context import RunContext, Stage
from cai.critic_record import CritiqueGain, CritiqueSample, TrustedCritique
from cai.critique import Reviser, Turn, critique_engines
from cai.critique_config import CritiqueSamplesConfig
from cai.critique_rules import invalid
from cai.errors import UserError
from cai.feedback.base import Feedback, Pair
from cai.loaders import SFTExample
from cai.model_config import ModelConfig
from cai.models import BaseModel, role_key
from cai.prompts import REVIEWER_SYSTEM, critique_prompt, revision_examples, revision_wording
from cai.seeds import derive_seed
from cai.stages.comparisons import PAIRS_PER_SHARD, Judge
from cai.stages.training import fine_tune, training_identity
from cai.training_config import FineTuneConfig
from cai.types import Comparison, Message, Response, Sample

STEP = 1


def reviser_of(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    config: RevisionsConfig,
    seed: int,
) -> Reviser:
    """Critiques and revisions by the base; whoever else critiques has an engine of its own."""
    engines = critique_engines(context.models, dataclasses.replace(model, start=None))
    return Reviser(
        generator=engines.generator,
        critic=engines.critic,
        encoder=engines.encoder,
        constitution=context.constitution,
        sampling=sampling,
        config=config,
        seed=seed,
    )


def is_valid(critique: Sample | None, *, turn: Turn, num_few_shot: int) -> bool:
    """Whether a sampled critique of a turn is one to go by."""
    if critique is None:
        return False
    return not invalid(
        critique.text,
        finished=critique.finished,
        response=turn.response,
        request=turn.principle.critique,
        examples=worked_texts(num_few_shot),
    )


def worked_texts(num_few_shot: int) -> tuple[str, ...]:
    """What a critique may repeat instead of criticising."""
    return tuple(text for shot in revision_examples(num_few_shot) for text in shot.texts())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _OfDraft:
    """All critiques of one draft, which are sampled in one shard."""

    samples: tuple[CritiqueSample, ...]


def critique_samples(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    revisions: RevisionsConfig,
    config: CritiqueSamplesConfig,
    drafts: Artifact,
    num: int,
) -> Artifact:
    """Several critiques of every draft under its drawn principle, and a revision after each."""

    def run(work: Work) -> None:
        seed = derive_seed(context.seed, "critique_samples")
        reviser = reviser_of(context, model=model, sampling=sampling, config=revisions, seed=seed)

        def make(drafts: Sequence[Response], advance: Callable[[int], None]) -> list[_OfDraft]:
            turns = [
                Turn(
                    prompt=draft.prompt,
                    draft=draft.sample.text,
                    response=draft.sample.text,
                    principle=reviser.draw(draft.prompt, STEP),
                )
                for draft in drafts
            ]
            columns = []
            for index in range(config.samples_per_draft):
                critiques = reviser.critiques(turns, STEP + index)
                advance(len(turns))
                revised = reviser.revisions(turns, critiques, STEP + index)
                advance(len(turns))
                columns.append(
                    [
                        _sampled(reviser, index, turn, critique, revision)
                        for turn, critique, revision in zip(turns, critiques, revised, strict=True)
                    ]
                )
            return [_OfDraft(samples=row) for row in zip(*columns, strict=True)]

        by_draft = in_shards(
            work,
            drafts.records(Response),
            kind=_OfDraft,
            shard_size=revisions.revision.shard_size,
            make=make,
            unit="texts",
            units_per_item=2 * config.samples_per_draft,
        )
        records = [sample for own in by_draft for sample in own.samples]
        work.write_records(records)
        outcomes = Counter(str(record.outcome) for record in records)
        work.counts = {
            "critiques": len(records),
            "valid": sum(record.valid for record in records),
            **dict(sorted(outcomes.items())),
        }

    return context.run(
        Stage(
            name="critique_samples",
            version=1,
            config={
                "revisions": _sampled_with(revisions),
                "samples_per_draft": config.samples_per_draft,
            },
            inputs={"drafts": drafts},
            identity={
                "critique_model": role_key(dataclasses.replace(model, start=None)),
                "constitution": context.constitution.digest,
                "principles": str(sampling),
                "wording": digest_of(revision_wording()),
            },
            expect={
                "critiques": num * config.samples_per_draft,
                "texts": 2 * num * config.samples_per_draft,
            },
            run=run,
        )
    )


def _sampled_with(config: RevisionsConfig) -> dict[str, object]:
    """What of the revisions' settings decides one critique and one revision."""
    return {
        "num_few_shot": config.num_few_shot,
        "critique": dataclasses.asdict(config.critique),
        "revision": dataclasses.asdict(config.revision),
    }


def _sampled(
    reviser: Reviser, index: int, turn: Turn, critique: Sample | None, revision: Sample | None
) -> CritiqueSample:
    found = reviser.assess(turn, critique=critique, revision=revision)
    return CritiqueSample(
        prompt=turn.prompt,
        draft=turn.draft,
        principle_id=turn.principle.id,
        index=index,
        critique=critique,
        revision=revision,
        outcome=found.outcome,
        response=found.text,
        valid=is_valid(critique, turn=turn, num_few_shot=reviser.config.num_few_shot),
    )


def gains(
    samples: Sequence[CritiqueSample],
    comparisons: Sequence[Comparison | None],
    *,
    min_gain: float,
) -> list[CritiqueGain]:
    """What every sampled critique gained, and which one of each draft's is learned."""
    best: dict[str, int] = {}
    found = []
    for row, (sample, comparison) in enumerate(zip(samples, comparisons, strict=True)):
        prob = comparison.prob_a if comparison else None
        gain = None if prob is None else prob - 0.5
        found.append(gain)
        if gain is None or not sample.valid or gain <= min_gain:
            continue
        before = best.get(sample.prompt.id)
        if before is None or gain > (found[before] or 0.0):
            best[sample.prompt.id] = row
    return [
        CritiqueGain(
            prompt_id=sample.prompt.id,
            index=sample.index,
            comparison=comparison,
            gain=gain,
            chosen=best.get(sample.prompt.id) == row,
        )
        for row, (sample, comparison, gain) in enumerate(
            zip(samples, comparisons, found, strict=True)
        )
    ]


def compare_with_drafts(
    feedback: Feedback, samples: Sequence[CritiqueSample]
) -> list[Comparison | None]:
    """The feedback on revision (a) and draft (b); None where no revision was accepted."""
    asked = [sample for sample in samples if sample.outcome.accepted]
    pairs = [
        Pair(
            prompt=sample.prompt,
            response_a=sample.response,
            response_b=sample.draft,
            principles=(feedback.constitution.find(sample.principle_id),),
        )
        for sample in asked
    ]
    compared = iter(feedback.compare(pairs))
    return [next(compared) if sample.outcome.accepted else None for sample in samples]


def critique_gains(
    context: RunContext,
    *,
    judge: Judge,
    samples: Artifact,
    config: CritiqueSamplesConfig,
    num: int,
) -> Artifact:
    """The feedback's choice among the sampled critiques."""

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "critique_gains")
        sampled = samples.records(CritiqueSample)

        def make(
            chunk: Sequence[CritiqueSample], _advance: Callable[[int], None]
        ) -> list[CritiqueGain]:
            return gains(chunk, compare_with_drafts(feedback, chunk), min_gain=config.min_gain)

        records = in_shards(
            work,
            sampled,
            kind=CritiqueGain,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="critiques",
        )
        # A draft's critiques are in several shards: the choice is made over all of them.
        chosen = gains(sampled, [r.comparison for r in records], min_gain=config.min_gain)
        work.write_records(chosen)
        unjudged = Counter(
            str(r.comparison.unjudged)
            for r in chosen
            if r.comparison is not None and r.comparison.unjudged
        )
        work.counts = {
            "critiques": len(chosen),
            "compared": sum(r.comparison is not None for r in chosen),
            "chosen": sum(r.chosen for r in chosen),
            **dict(sorted(unjudged.items())),
        }

    return context.run(
        Stage(
            name="critique_gains",
            version=1,
            config={"min_gain": config.min_gain},
            inputs={"samples": samples, **judge.inputs()},
            identity=judge.identity(context),
            expect={"critiques": num * config.samples_per_draft},
            run=run,
        )
    )


def critique_ids(base: BaseModel, asked: Sequence[Message]) -> list[int]:
    """A conversation that asks for a critique, as a critique model reads it."""
    return base.encoder.conversation(asked, system=REVIEWER_SYSTEM)


def trusted_prompt(item: TrustedCritique, *, num_few_shot: int) -> list[Message]:
    """What asks for a critique of a trusted item, with the worked examples of a run."""
    return critique_prompt(
        item.messages, item.response, request=item.principle, num_few_shot=num_few_shot
    )


def critic(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    revisions: RevisionsConfig,
    config: FineTuneConfig,
    held_out_frac: float,
    samples: Artifact,
    gained: Artifact,
    num: int,
) -> Artifact:
    """The critic: an adapter of the critique model's base, fine-tuned on critiques."""
    trusted = trusted_critiques.split(held_out_frac).train

    def run(work: Work) -> None:
        base = context.models.base(model)
        seed = derive_seed(context.seed, "critic")
        reviser = reviser_of(context, model=model, sampling=sampling, config=revisions, seed=seed)
        ours = _trusted_examples(base, trusted, num_few_shot=revisions.num_few_shot)
        chosen = {(r.prompt_id, r.index) for r in gained.records(CritiqueGain) if r.chosen}
        theirs = [
            _sampled_example(base, reviser, record)
            for record in samples.records(CritiqueSample)
            if (record.prompt.id, record.index) in chosen
        ]
        examples = [e for e in ours + theirs if e.length <= config.max_length]
        if not examples:
            raise UserError(
                "critic: there is nothing to learn: every critique is longer than "
                f"phase.critic.max_length={config.max_length} with its prompt. Type a larger one"
            )
        steps = fine_tune(context, work, base, examples, model=model, config=config, start=None)
        work.counts = {
            "examples": len(examples),
            "trusted": len(ours),
            "sampled": len(theirs),
            "dropped_too_long": len(ours) + len(theirs) - len(examples),
            "steps": steps,
        }

    return context.run(
        Stage(
            name="critic",
            version=1,
            config={
                "critic": dataclasses.asdict(config),
                "held_out_frac": held_out_frac,
                "num_few_shot": revisions.num_few_shot,
            },
            inputs={"samples": samples, "gains": gained},
            identity=training_identity(model)
            | {"trusted": trusted_critiques.sha256(), "wording": digest_of(revision_wording())},
            expect={"examples": (len(trusted) + num) * config.num_epochs},
            run=run,
        )
    )


def _trusted_examples(
    base: BaseModel, items: Sequence[TrustedCritique], *, num_few_shot: int
) -> list[SFTExample]:
    return [
        SFTExample(
            prompt_ids=tuple(critique_ids(base, trusted_prompt(item, num_few_shot=num_few_shot))),
            response_ids=tuple(base.encoder.response_ids(item.critique)),
        )
        for item in items
    ]


def _sampled_example(base: BaseModel, reviser: Reviser, record: CritiqueSample) -> SFTExample:
    """A chosen critique is valid, so it ended by itself and is taught to end."""
    assert record.critique is not None
    turn = Turn(
        prompt=record.prompt,
        draft=record.draft,
        response=record.draft,
        principle=reviser.constitution.find(record.principle_id),
    )
    return SFTExample(
        prompt_ids=tuple(critique_ids(base, reviser.asked(turn))),
        response_ids=tuple(base.encoder.response_ids(record.critique.text)),
    )
