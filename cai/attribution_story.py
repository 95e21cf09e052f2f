"""Attribution's chapter of a run's account: which labels were learned, and by which principles."""

from __future__ import annotations

from collections.abc import Sequence

from cai import data
from cai.attribution import (
    AttributionStory,
    LearnedLabel,
    effective_number,
    policy_scores,
    principle_attribution,
    share_of,
    split_labels,
)
from cai.chapters import Bootstrap, Outputs, Records
from cai.choices import Condition
from cai.config import Config, DPOPhaseConfig
from cai.context import RunContext
from cai.phases import dpo, rlaif
from cai.seeds import derive_seed
from cai.stages import dpo as dpo_stage
from cai.stages.preference_pairs import (
    ai_pairs,
    half_of,
    mixed,
    principle_pairs,
    validation_prompts,
)
from cai.types import Comparison, PolicyComparison, PreferencePair, Response


def attribution_story(
    config: Config,
    context: RunContext,
    outputs: Outputs,
    records: Records,
    counts: dict[str, dict[str, int]],
    bootstrap: Bootstrap,
) -> AttributionStory | None:
    """What each principle did; None where nothing learned from comparisons."""
    if isinstance(outputs, rlaif.Outputs):
        labels = _by_preference_model(config, context, outputs, records, counts)
        learner = "preference model"
    elif isinstance(outputs, dpo.Outputs):
        labels = _by_dpo(config, context, outputs, records, counts)
        learner = "policy (DPO)"
    else:
        return None
    document = context.constitution
    pool = document.asked
    rows = [principle_attribution(p.id, p.principle, labels, records.chains) for p in pool]
    shares = [row.share for row in rows if row.share is not None]
    return AttributionStory(
        learner=learner,
        principles=tuple(rows),
        people_share=share_of(labels, None)
        if any(label.principle_id is None for label in labels)
        else None,
        max_share=max(shares, default=None),
        effective_principles=effective_number(shares),
        num_comparisons=len({c for label in labels if (c := label.comparison) is not None}),
        scores=policy_scores(
            [row for a in outputs.principle_scores for row in a.records(PolicyComparison)],
            [principle.id for principle in pool],
            num_bootstrap=bootstrap.num,
            seed=bootstrap.seed,
        ),
    )


def _rows(
    context: RunContext, comparisons: Sequence[Comparison], *, validation_frac: float
) -> list[int]:
    """Rows of the judged comparisons that are not held out."""
    held_out = validation_prompts(
        comparisons, frac=validation_frac, seed=derive_seed(context.seed, "pm")
    )
    return [
        row
        for row, c in enumerate(comparisons)
        if c.prob_a is not None and c.prompt.id not in held_out
    ]


def _people(pairs: Sequence[PreferencePair]) -> list[LearnedLabel]:
    return [
        LearnedLabel(comparison=None, principle_id=None, prob_a=p.prob_a, weight=p.weight)
        for p in pairs
    ]


def _human(config: Config, counts: dict[str, int]) -> list[PreferencePair]:
    """Comparisons by people, read only where there were any."""
    return data.load_comparisons(config.data.human_comparisons) if counts["human"] else []


def _by_preference_model(
    config: Config,
    context: RunContext,
    outputs: rlaif.Outputs,
    records: Records,
    counts: dict[str, dict[str, int]],
) -> list[LearnedLabel]:
    model = outputs.preference_model
    own = counts["preference_model"]
    conditioned = model.config.condition is Condition.principle
    compared = records.comparisons
    rows = _rows(context, compared, validation_frac=model.config.validation_frac)
    human = _human(config, own)
    if (half := model.half) is not None:
        kept = half_of(
            [compared[row].prompt.messages for row in rows],
            [pair.messages for pair in human],
            half=half,
            seed=context.seed,
        )
        rows = [row for row in rows if compared[row].prompt.messages in kept]
        human = [pair for pair in human if pair.messages in kept]
    # One entry for each training pair: its labels, and the pair as the model reads it.
    labels = [split_labels(row, compared[row].labels, conditioned=conditioned) for row in rows]
    if conditioned:
        labels = [[label] for group in labels for label in group]
    if own["dropped_too_long"]:
        of = principle_pairs if conditioned else ai_pairs
        fits = model.short_enough(context, of([compared[row] for row in rows]))
        labels = [group for group, fit in zip(labels, fits, strict=True) if fit]
        fits = model.short_enough(context, human)
        human = [pair for pair, fit in zip(human, fits, strict=True) if fit]
    return mixed(
        [label for group in labels for label in group],
        _people(human),
        human_frac=model.config.human_frac,
        setting="phase.preference_model",
    )


def _by_dpo(
    config: Config,
    context: RunContext,
    outputs: dpo.Outputs,
    records: Records,
    counts: dict[str, dict[str, int]],
) -> list[LearnedLabel]:
    assert isinstance(config.phase, DPOPhaseConfig)
    settings = config.phase.dpo
    own = counts["dpo_policy"]
    rows = _rows(context, records.comparisons, validation_frac=settings.validation_frac)
    human = _human(config, own)
    if own["dropped_too_long"]:
        base = context.models.base(config.model)
        labelled = dpo_stage.labelled_pairs(records.comparisons, outputs.pairs.records(Response))
        places = [row for row, c in enumerate(records.comparisons) if c.prob_a is not None]
        by_row = dict(zip(places, labelled, strict=True))
        limit = settings.max_length
        rows = [row for row in rows if dpo_stage.ai_example(base, by_row[row]).length <= limit]
        human = [p for p in human if dpo_stage.human_example(base, p).length <= limit]
    labels = [
        label
        for row in rows
        for label in split_labels(row, records.comparisons[row].labels, conditioned=False)
    ]
    return mixed(labels, _people(human), human_frac=settings.human_frac, setting="phase.dpo")
