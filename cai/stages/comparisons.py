"""Stages `feedback_check` and `comparisons`: the feedback measured, then used."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cai.artifacts import Artifact, Work, in_shards
from cai.choices import Gate, PrincipleSampling, Vote
from cai.compliance.classify import RULES_VERSION
from cai.compliance.shift import FILE, ComplianceReward, num_turned
from cai.config import ComparisonsConfig
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback import gate
from cai.feedback.base import Feedback, Pair
from cai.feedback.build import Surroundings, build, identity, judges_in
from cai.feedback.hygiene import is_cut
from cai.feedback.labelled import Labelled, LabelledSet
from cai.feedback.measures import count_unjudged, measure
from cai.feedback_config import EnsembleConfig, FeedbackConfig
from cai.model_config import ModelConfig
from cai.seeds import derive_seed
from cai.types import Comparison, FeedbackCheck, Prompt, PromptKind, Response, Split

PAIRS_PER_SHARD = 8
"""Labelled pairs per batch of `feedback_check`; part of the stage."""

CHECK = "feedback_check"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The run's feedback as stages use it."""

    config: FeedbackConfig
    model: ModelConfig
    """The phase's feedback model."""
    sampling: PrincipleSampling
    fitted: Mapping[str, Artifact] = field(default_factory=dict)
    """What tuned methods were trained to, by member name; "" outside an ensemble."""

    def identity(self, context: RunContext) -> dict:
        """What decides its labels, besides the artifacts that `inputs` names."""
        return {
            "feedback": identity(self.config, self.model),
            "constitution": context.constitution.digest,
            "principles": str(self.sampling),
        }

    def inputs(self) -> dict[str, Artifact]:
        """The artifacts that it is made of."""
        return {f"fitted{'-' if name else ''}{name}": a for name, a in self.fitted.items()}

    def measured(self, checked: Checked) -> Judge:
        """The same feedback, made of its own check where that decides its labels."""
        if not self._weighs_members:
            return self
        return dataclasses.replace(self, fitted={**self.fitted, "": checked.artifact})

    def judges(self) -> frozenset[str]:
        """Who judges: a method with its model, or several; whatever they were tuned to."""
        return judges_in(identity(self.config, self.model))

    @property
    def _weighs_members(self) -> bool:
        return isinstance(self.config, EnsembleConfig) and self.config.vote is Vote.reliability

    def feedback(self, context: RunContext, name: str) -> Feedback:
        """The loaded method with the random streams of one stage."""
        assert name == CHECK or not self._weighs_members or "" in self.fitted, "call `measured`"
        around = Surroundings(
            models=context.models,
            model=self.model,
            constitution=context.constitution,
            sampling=self.sampling,
            fitted=self.fitted,
        )
        return Feedback(
            method=build(self.config, around),
            constitution=context.constitution,
            sampling=self.sampling,
            seed=derive_seed(context.seed, name),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The feedback measured."""

    labelled: LabelledSet
    artifact: Artifact
    """`FeedbackCheck` records."""


def feedback_check(
    context: RunContext, *, judge: Judge, labelled: LabelledSet, name: str = CHECK
) -> Checked:
    """A judge's labels for pairs whose better side is known; a is the better response."""

    def run(work: Work) -> None:
        feedback = judge.feedback(context, CHECK)

        def make(chunk: Sequence[Labelled], _advance: Callable[[int], None]) -> list[FeedbackCheck]:
            pairs = [_labelled_pair(feedback, one) for one in chunk]
            compared = feedback.compare(pairs)
            return [
                FeedbackCheck(name=one.name, comparison=comparison)
                for one, comparison in zip(chunk, compared, strict=True)
            ]

        records = in_shards(
            work,
            labelled.pairs,
            kind=FeedbackCheck,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="pairs",
        )
        held_out = feedback.method.held_out(records)
        work.write_records(held_out.checks)
        work.counts = _counts([r.comparison for r in held_out.checks]) | held_out.counts

    artifact = context.run(
        Stage(
            name=name,
            version=4,
            config={"num": len(labelled.pairs)},
            inputs=judge.inputs(),
            identity=judge.identity(context) | {"labelled": labelled.identity},
            expect={"pairs": len(labelled.pairs)},
            run=run,
        )
    )
    return Checked(labelled=labelled, artifact=artifact)


def pass_gate(context: RunContext, *, judge: Judge, checked: Checked) -> None:
    """Warn of a feedback that does not beat its baselines, or end the run; a plan goes on.

    Raises:
        UserError: when `gate: stop` holds the run back.
    """
    if context.plan:
        return
    measured = measure(checked.artifact.records(FeedbackCheck))
    results = gate.gates(judge.config, measured)
    for result in gate.not_passed(results, Gate.warn):
        log.warning("%s; the run goes on", result.told())
    if message := gate.stop_message(results, source=checked.labelled.source):
        raise UserError(message)


def _labelled_pair(feedback: Feedback, one: Labelled) -> Pair:
    prompt = Prompt(
        id=one.name,
        kind=PromptKind.red_team,
        category=one.principle.id if one.principle else "labelled",
        source=feedback.constitution.name,
        split=Split.evaluation,
        messages=one.messages,
    )
    principles = (one.principle,) if one.principle else feedback.draw(prompt, 0, num=1)
    return Pair(prompt=prompt, response_a=one.better, response_b=one.worse, principles=principles)


def comparisons(
    context: RunContext,
    *,
    judge: Judge,
    config: ComparisonsConfig,
    pairs: Artifact,
    num: int,
) -> Artifact:
    """AI comparisons of SL-CAI samples, each under one drawn principle or several.

    Where the constitution declares values of compliance, labels are moved by them; both classes and
    the label before are in `compliance.jsonl`.
    """
    reward = compliance_reward(config, context)

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "comparisons")
        by_prompt: dict[str, list[Response]] = defaultdict(list)
        for response in pairs.records(Response):
            by_prompt[response.prompt.id].append(response)
        items = [
            Pair(
                prompt=sampled[k].prompt,
                response_a=sampled[k].sample.text,
                response_b=sampled[k + 1].sample.text,
                principles=feedback.draw(sampled[k].prompt, k // 2, num=config.principles_per_pair),
            )
            for sampled in by_prompt.values()
            for k in range(0, len(sampled), 2)
        ]
        records = in_shards(
            work,
            items,
            kind=Comparison,
            shard_size=config.shard_size,
            make=lambda chunk, _advance: feedback.compare(chunk),
            unit="pairs",
        )
        turned = {}
        if reward is not None:
            shifts = [reward.shift(one) for one in records]
            records = [reward.relabelled(one, feedback.method) for one in records]
            work.write_records(shifts, FILE)
            turned = {"turned_by_compliance": num_turned(shifts, records)}
        work.write_records(records)
        work.counts = _counts(records) | feedback.method.counts(records) | turned

    return context.run(
        Stage(
            name="comparisons",
            version=4,
            config=_section(config, reward),
            inputs={"pairs": pairs, **judge.inputs()},
            identity=judge.identity(context)
            | ({"compliance_rules": RULES_VERSION} if reward else {}),
            expect={"pairs": num},
            run=run,
        )
    )


def compliance_reward(config: ComparisonsConfig, context: RunContext) -> ComplianceReward | None:
    """What moves labels besides the feedback; None where the constitution declares no values."""
    declared = context.constitution.compliance
    if declared is None or config.compliance_coef == 0:
        return None
    return ComplianceReward(declared=declared, coef=config.compliance_coef)


def _section(config: ComparisonsConfig, reward: ComplianceReward | None) -> dict[str, Any]:
    """The settings that decide labels: the coefficient is none of them where nothing is moved."""
    section = dataclasses.asdict(config)
    return section if reward else {k: v for k, v in section.items() if k != "compliance_coef"}


def _counts(records: Sequence[Comparison]) -> dict[str, int]:
    """Pairs, those with a label, the others by reason, and those shown with a cut."""
    judged = sum(record.prob_a is not None for record in records)
    cut = sum(is_cut(record.response_a) or is_cut(record.response_b) for record in records)
    found = {"pairs": len(records), "judged": judged, **count_unjudged(records)}
    return found | ({"cut": cut} if cut else {})
