"""What a preference model learns from: AI comparisons with people's mixed in, or people's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cai import data
from cai.artifacts import Artifact
from cai.choices import Condition
from cai.config import ComparisonSourceConfig
from cai.constitution import Principle
from cai.context import RunContext
from cai.errors import UserError
from cai.feedback.labelled import GENERAL_PRINCIPLE
from cai.loaders import PairExample
from cai.scoring import Reader
from cai.seeds import derive_seed
from cai.stages import human_comparisons as people
from cai.stages.preference_pairs import (
    Half,
    ai_pairs,
    half_of,
    mixed,
    principle_pairs,
    validation_prompts,
)
from cai.training_config import PreferenceModelConfig
from cai.types import Comparison, PreferencePair

SETTING = "phase.preference_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class AILabels:
    """AI comparisons, and those by people that are mixed in."""

    comparisons: Artifact
    """`Comparison` records."""
    human: ComparisonSourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleLabels:
    """Comparisons by people alone."""

    comparisons: Artifact
    """Of the stage `human_comparisons`."""


Labels = AILabels | PeopleLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPairs:
    """What is learned from and what is held out."""

    examples: list[PairExample]
    num_ai: int
    num_human: int
    held_out: list[tuple[str, PreferencePair]]
    """With the name of the prompt, or what stands for one."""

    @property
    def num_dropped(self) -> int:
        """Pairs longer than `max_length`."""
        return self.num_ai + self.num_human - len(self.examples)


def _examples(
    context: RunContext, reader: Reader, pairs: Sequence[PreferencePair], *, max_length: int
) -> list[PairExample]:
    """Pairs as the preference model reads them, without those that are too long."""
    examples = [pair_example(context, reader, pair) for pair in pairs]
    return [example for example in examples if example.length <= max_length]


def pair_example(context: RunContext, reader: Reader, pair: PreferencePair) -> PairExample:
    """A pair as the preference model reads it."""
    encode = reader.base.encoder.response_ids
    principle = _principle(context, pair) if reader.criteria else None
    return PairExample(
        prompt_ids=tuple(reader.prompt_ids(pair.messages, principle)),
        response_a_ids=tuple(encode(pair.response_a)),
        response_b_ids=tuple(encode(pair.response_b)),
        prob_a=pair.prob_a,
        weight=pair.weight,
    )


def _principle(context: RunContext, pair: PreferencePair) -> Principle:
    """What a pair is labelled under; people's labels name none."""
    if not pair.principle_ids:
        return GENERAL_PRINCIPLE
    return context.constitution.find(pair.principle_ids[0])


def _ai_pairs(
    comparisons: Sequence[Comparison], config: PreferenceModelConfig
) -> list[PreferencePair]:
    of = ai_pairs if config.condition is Condition.none else principle_pairs
    return of(comparisons)


def load_pairs(
    context: RunContext,
    reader: Reader,
    config: PreferenceModelConfig,
    *,
    labels: Labels,
    half: Half | None,
) -> LearnedPairs:
    """What is learned from and what is held out.

    Args:
        context: The run.
        reader: How the preference model reads a conversation.
        config: Of its training.
        labels: Whose labels.
        half: A side of the AI comparisons; None: all of them.

    Raises:
        UserError: when nothing is left to learn from.
    """
    match labels:
        case AILabels():
            return _mixed_pairs(context, reader, config, labels=labels, half=half)
        case PeopleLabels():
            return _pairs_by_people(context, reader, config, labels=labels)


def _pairs_by_people(
    context: RunContext, reader: Reader, config: PreferenceModelConfig, *, labels: PeopleLabels
) -> LearnedPairs:
    pairs = labels.comparisons.records(PreferencePair, people.TRAIN)
    examples = _examples(context, reader, pairs, max_length=config.max_length)
    if not examples:
        raise UserError(
            f"preference_model: none of {len(pairs)} comparisons by people fits into {SETTING}."
            f"max_length={config.max_length}; type a larger one"
        )
    held_out = labels.comparisons.records(PreferencePair, people.HELD_OUT)
    return LearnedPairs(
        examples=examples,
        num_ai=0,
        num_human=len(pairs),
        held_out=[(people.prompt_name(pair.messages), pair) for pair in held_out],
    )


def _mixed_pairs(
    context: RunContext,
    reader: Reader,
    config: PreferenceModelConfig,
    *,
    labels: AILabels,
    half: Half | None,
) -> LearnedPairs:
    comparisons = labels.comparisons.records(Comparison)
    held_out = validation_prompts(
        comparisons, frac=config.validation_frac, seed=derive_seed(context.seed, "pm")
    )
    ai = _ai_pairs([c for c in comparisons if c.prompt.id not in held_out], config)
    humans = data.load_comparisons(labels.human)
    if half is not None:
        own = half_of(
            [p.messages for p in ai], [p.messages for p in humans], half=half, seed=context.seed
        )
        ai = [pair for pair in ai if pair.messages in own]
        humans = [pair for pair in humans if pair.messages in own]
    kept = [
        _examples(context, reader, pairs, max_length=config.max_length) for pairs in (ai, humans)
    ]
    examples = mixed(kept[0], kept[1], human_frac=config.human_frac, setting=SETTING)
    if not any(example.weight for example in examples):
        whose = f"preference_model: none of {len(comparisons)} comparisons"
        if half is not None:
            whose += f" on the {half} side (phase.gold=true splits them in half by prompt)"
        raise UserError(
            f"{whose} has a label to learn from. See the counts of the stage comparisons; other "
            "seeds or longer phase.pairs.sampling.max_new_tokens give other pairs"
        )
    return LearnedPairs(
        examples=examples,
        num_ai=len(ai),
        num_human=len(humans),
        held_out=[
            (c.prompt.id, pair)
            for c in comparisons
            if c.prompt.id in held_out
            for pair in _ai_pairs([c], config)
        ],
    )
