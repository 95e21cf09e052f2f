"""Stage `preference_model`: soft AI labels, human comparisons when given, calibrated scores.

`rlhf_preference_model` is the same stage on comparisons by people alone (`PeopleLabels`).

With several members each has its own random start and order of the pairs. The first one's adapter
is in the folder `adapter/`, the others' in `adapter_2/` and so on; all of them are on one base.
`gold_preference_model` is the same stage on the other half of the comparisons (`Half`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import adapters, data, training
from cai.artifacts import Artifact, Work, digest_of
from cai.choices import Condition, PrincipleSampling
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.measures import a_is_longer
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.model_config import ModelConfig
from cai.models import PREFERENCE, BaseModel
from cai.prompts import criterion_wording
from cai.scoring import Criteria, Member, Reader, Row, Scorer
from cai.seeds import derive_seed
from cai.stages.preference_labels import (
    AILabels,
    Labels,
    LearnedPairs,
    PeopleLabels,
    load_pairs,
    pair_example,
)
from cai.stages.preference_pairs import Half
from cai.stages.training import ADAPTER, detached, reported, save, training_identity
from cai.training_config import PreferenceModelConfig
from cai.types import PreferencePair, PreferencePrediction, Response

VALIDATION = "validation.jsonl"


def _name(first: str, member: int) -> str:
    """A member's adapter or folder: the first one has the plain name."""
    return first if member == 0 else f"{first}_{member + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceModel:
    """A trained preference model as later stages use it."""

    artifact: Artifact
    model: ModelConfig
    """Its base."""
    config: PreferenceModelConfig
    principles: PrincipleSampling
    half: Half | None
    """What of the comparisons it learned from; None: all that were not held out."""

    def identity(self) -> dict[str, Any]:
        """What decides its scores, besides the artifact."""
        return {"combine": str(self.config.combine)}

    @contextlib.contextmanager
    def scorer(self, context: RunContext) -> Iterator[Scorer]:
        """Itself, while it is on its own base alone."""
        base = context.models.base(self.model)
        folder = self.artifact.verified_folder() / ADAPTER
        tuned = adapters.load(base.model, folder, adapter=PREFERENCE, base_sha256=base.sha256)
        with detached(tuned):
            self._load(base, tuned, range(1, self.config.num_members))
            yield self._scorer(context, base, tuned)

    @contextlib.contextmanager
    def beside(self, context: RunContext, policy: BaseModel, tuned: Tuned) -> Iterator[Scorer]:
        """Itself on a policy's base, next to the policy; on another base, by itself.

        Args:
            context: The run.
            policy: The policy's base.
            tuned: That base with the policy's adapters, which gets the preference model's too.
        """
        base = context.models.base(self.model)
        if base.sha256 != policy.sha256:
            with self.scorer(context) as scorer:
                yield scorer
            return
        self._load(base, tuned, range(self.config.num_members))
        yield self._scorer(context, base, tuned)

    def short_enough(self, context: RunContext, pairs: Sequence[PreferencePair]) -> list[bool]:
        """Which pairs were learned from as far as `max_length` decides it."""
        base = context.models.base(self.model)
        reader = _reader(context, base, self.config, self.principles)
        lengths = [pair_example(context, reader, pair).length for pair in pairs]
        return [length <= self.config.max_length for length in lengths]

    def _folder(self, member: int) -> Path:
        return self.artifact.verified_folder() / _name(ADAPTER, member)

    def _load(self, base: BaseModel, tuned: Tuned, members: range) -> None:
        for member in members:
            adapters.load_adapter(
                tuned,
                self._folder(member),
                adapter=_name(PREFERENCE, member),
                base_sha256=base.sha256,
            )

    def _scorer(self, context: RunContext, base: BaseModel, tuned: Tuned) -> Scorer:
        heads = [adapters.load_head(self._folder(k)) for k in range(self.config.num_members)]
        return _scorer(
            context, _reader(context, base, self.config, self.principles), tuned, heads, self.config
        )


def _scorer(
    context: RunContext,
    reader: Reader,
    tuned: Tuned,
    heads: Sequence[ScoreHead],
    config: PreferenceModelConfig,
) -> Scorer:
    return Scorer(
        reader=reader,
        model=tuned,
        members=tuple(
            Member(
                adapter=_name(PREFERENCE, number),
                head=head.to(tuned.device).requires_grad_(False),
            )
            for number, head in enumerate(heads)
        ),
        combine=config.combine,
        micro_batch_size=context.hardware.micro_batch_size,
    )


def _reader(
    context: RunContext,
    base: BaseModel,
    config: PreferenceModelConfig,
    principles: PrincipleSampling,
) -> Reader:
    if config.condition is Condition.none:
        return Reader(base=base, criteria=None)
    criteria = Criteria(
        constitution=context.constitution,
        sampling=principles,
        num=config.principles_per_score,
        seed=context.seed,
    )
    return Reader(base=base, criteria=criteria)


def _train_member(
    context: RunContext,
    tuned: Tuned,
    pairs: LearnedPairs,
    *,
    member: int,
    stage: str,
    model: ModelConfig,
    config: PreferenceModelConfig,
    work: Work,
    on_step: Callable[[int, dict[str, float]], None],
) -> ScoreHead:
    """Add and train one member; its head, not calibrated yet."""
    seed = _seed(context, stage, member)
    if member > 0:  # the first one is there
        adapters.add(tuned, model.trained, _name(PREFERENCE, member), seed)
    hidden_size = tuned.get_base_model().config.get_text_config().hidden_size
    # From a random head the first margins are noise, which a few steps do not unlearn.
    head = ScoreHead(hidden_size, seed=seed).zeroed().to(tuned.device)
    done = member * _num_steps(pairs, config)
    training.train_preference_model(
        tuned,
        head,
        pairs.examples,
        adapter=_name(PREFERENCE, member),
        config=config,
        seed=seed,
        hardware=context.hardware,
        work_dir=work.scratch / _name("checkpoints", member),
        on_step=lambda step, metrics: on_step(done + step, metrics),
        stage=stage,
    )
    return head


def _stage(labels: Labels, half: Half | None) -> str:
    if isinstance(labels, PeopleLabels):
        return "rlhf_preference_model"
    return "gold_preference_model" if half is Half.gold else "preference_model"


def _seed(context: RunContext, stage: str, member: int) -> int:
    """The two halves' models start apart, so that what they share is what the labels say."""
    names = () if member == 0 else (member,)
    return derive_seed(context.seed, stage, *names)


def _num_steps(pairs: LearnedPairs, config: PreferenceModelConfig) -> int:
    """Optimizer steps of one member."""
    return -(-len(pairs.examples) // config.batch_size) * config.num_epochs


def _calibrate(scorer: Scorer, responses: Sequence[Response]) -> int:
    """Give every member mean 0 and standard deviation 1 on the samples; how many there were.

    The first pair of every prompt: enough for a mean and a deviation, at half the cost.
    """
    samples = [r for r in responses if r.sample.text and r.index < 2]
    rows = [Row(messages=r.prompt.messages, response=r.sample.text) for r in samples]
    scores = [found for found in scorer.by_member(rows) if found is not None]
    if not scores:
        raise UserError(
            "preference_model: no sample fits the context of its base, so its scores have no "
            "scale. Type a larger max_context for the model"
        )
    for member, own in zip(scorer.members, zip(*scores, strict=True), strict=True):
        member.head.calibrate(list(own))
    return len(scores)


def scored_pairs(
    scorer: Scorer, pairs: Sequence[PreferencePair], names: Sequence[str]
) -> list[PreferencePrediction]:
    """Labelled pairs under the preference model, each under its own principle where it reads one.

    A pair that does not fit is left out.
    """
    find = scorer.reader.criteria.constitution.find if scorer.reader.criteria else None
    rows = []
    for pair in pairs:
        under = tuple(map(find, pair.principle_ids)) if find else ()
        rows.append(
            (
                Row(messages=pair.messages, response=pair.response_a, principles=under),
                Row(messages=pair.messages, response=pair.response_b, principles=under),
            )
        )
    return [
        PreferencePrediction(
            name=name,
            principle_ids=pair.principle_ids,
            prob_a=pair.prob_a,
            scores_a=scores.a,
            scores_b=scores.b,
            predicted=scores.prob_a,
            a_is_longer=a_is_longer(pair.response_a, pair.response_b),
        )
        for name, pair, scores in zip(names, pairs, scorer.pairs(rows), strict=True)
        if scores is not None
    ]


def preference_model(
    context: RunContext,
    *,
    model: ModelConfig,
    config: PreferenceModelConfig,
    principles: PrincipleSampling,
    labels: Labels,
    pairs: Artifact,
    num: int,
    half: Half | None,
) -> PreferenceModel:
    """The preference model on `model`, trained and calibrated.

    Args:
        context: The run.
        model: Its base.
        config: Everything about its training.
        principles: How principles are drawn where it reads some and none is given.
        labels: What it learns from.
        pairs: Samples of the policy that PPO starts from; they put its scores on a scale.
        num: Comparisons, for a plan.
        half: What it learns from; None: everything that is not held out.
    """
    name = _stage(labels, half)

    def run(work: Work) -> None:
        base = context.models.base(model)
        reader = _reader(context, base, config, principles)
        learned = load_pairs(context, reader, config, labels=labels, half=half)
        steps = _num_steps(learned, config) * config.num_members
        tuned = adapters.attach(
            base.model, model.trained, adapter=PREFERENCE, seed=_seed(context, name, 0)
        )
        with (
            detached(tuned),
            reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step,
        ):
            heads = [
                _train_member(
                    context,
                    tuned,
                    learned,
                    member=member,
                    stage=name,
                    model=model,
                    config=config,
                    work=work,
                    on_step=on_step,
                )
                for member in range(config.num_members)
            ]
            scorer = _scorer(context, reader, tuned, heads, config)
            num_calibrated = _calibrate(scorer, pairs.records(Response))
            for number, member in enumerate(scorer.members):
                save(base, tuned, member.adapter, work, member.head, name=_name(ADAPTER, number))
            validation = scored_pairs(
                scorer, [p for _, p in learned.held_out], [prompt for prompt, _ in learned.held_out]
            )
            work.write_records(validation, VALIDATION)
        work.counts = {
            "pairs": len(learned.examples),
            "ai": learned.num_ai,
            "human": learned.num_human,
            "dropped_too_long": learned.num_dropped,
            "held_out": len(learned.held_out),
            "held_out_too_long": len(learned.held_out) - len(validation),
            "calibrated_on": num_calibrated,
            "steps": steps,
        }

    identity = training_identity(model)
    if isinstance(labels, AILabels):
        identity |= {
            "human": dataclasses.asdict(labels.human),
            "human_data": data.source_digest(labels.human, setting="data.human_comparisons"),
        }
    if half is not None:
        identity["half"] = str(half)
    if config.condition is Condition.principle:
        identity |= {
            "constitution": context.constitution.digest,
            "principles": str(principles),
            "wording": digest_of(criterion_wording()),
        }
    section = dataclasses.asdict(config)
    del section["combine"]  # what is made of the members' scores is up to those who use them
    artifact = context.run(
        Stage(
            name=name,
            version=4,
            config=section,
            inputs={"comparisons": labels.comparisons, "pairs": pairs},
            identity=identity,
            expect={"pairs": num * config.num_epochs * config.num_members},
            run=run,
        )
    )
    return PreferenceModel(
        artifact=artifact, model=model, config=config, principles=principles, half=half
    )
