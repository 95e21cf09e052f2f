"""Phase 1, SL-CAI: drafts, critiques and revisions, fine-tune, evaluation (sec. 3).

Departures from the paper: the fine-tune starts from the model that drafted (the paper drafts with
a helpful-only RLHF model and fine-tunes a pretrained one; `start` names a trained policy that does
both), sampling is at the configured temperature, prompts and worked examples are this project's
own, and revisions that `cai.acceptance` does not accept are left out of the fine-tune.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.choices import PrincipleSampling, RevisionsUsed, Until
from cai.config import ComparedConfig, DataConfig, EvaluationConfig, SLCAIConfig
from cai.constitution import Constitution
from cai.context import RunContext
from cai.critique_config import CritiqueRLConfig
from cai.feedback.labelled import LabelledSet, labelled_set
from cai.feedback_config import FeedbackConfig
from cai.model_config import ModelConfig
from cai.rlhf_config import RLHFConfig
from cai.stages import comparisons, evaluation, revisions, sampling, training
from cai.stages.comparisons import Checked, Judge
from cai.stages.controls import Controls, control_comparisons, controls
from cai.stages.matches import MatchJudge, Tournament, tournament
from cai.stages.preference_model import PreferenceModel
from cai.stages.principle_scores import principle_scores
from cai.stages.start import Start, start_policy
from cai.stages.tuned import fitted
from cai.stages.verdicts import check_satisfiable, verdict_check
from cai.types import PromptKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a phase gets besides its own section."""

    model: ModelConfig
    """The policy's base."""
    principles: PrincipleSampling
    domain: str | None
    data: DataConfig
    feedback: FeedbackConfig
    evaluation: EvaluationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFeedback:
    """The run's feedback and its measurement."""

    judge: Judge
    """Made of its own measurement, where that decides its labels."""
    checked: Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The artifacts of phase 1, up to the fine-tuned policy."""

    prompts: Artifact
    start: Start | None
    """The policy that it began with; None: the base."""
    drafts: Artifact
    revisions: Artifact
    helpfulness: Artifact
    sl_policy: Artifact
    verdicts: Artifact | None
    """`verdict_check`, where revisions go on until satisfied."""
    feedback: JudgedFeedback | None
    """The run's feedback, where revisions asked it."""

    def policies(self) -> dict[str, Artifact | None]:
        """Every policy so far by its name, the least trained one first; None is the base."""
        begun: dict[str, Artifact | None] = {"base": None}
        if self.start is not None:
            begun[self.start.name] = self.start.adapter
        return begun | {"sl_cai": self.sl_policy}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What phase 1 made and measured."""

    trained: Trained
    evaluation: evaluation.Evaluation
    controls: Controls | None
    tournament: Tournament | None
    feedback: Checked | None
    """The feedback measured, since it judges controls and matches; None without both."""


def _num_examples(config: SLCAIConfig) -> int:
    """Examples of the fine-tune when every revision and sample is usable."""
    steps = config.revisions.num_steps if config.sl_policy.revisions is RevisionsUsed.all else 1
    revised = config.prompts.num_red_team * steps
    return revised + config.prompts.num_helpfulness * config.helpfulness.samples_per_prompt


def start_of(config: SLCAIConfig, inputs: Inputs, context: RunContext) -> Start | None:
    """The policy that `phase.start` names; a folder without one is refused before any work."""
    return start_policy(context, model=inputs.model, start=config.start)


def check_document(config: SLCAIConfig, inputs: Inputs, document: Constitution) -> None:
    """Refuse a document that the settings ask for more than it says, before anything is computed.

    Raises:
        UserError: saying what to type instead.
    """
    training.check_revisions_used(config.sl_policy, document)
    if config.revisions.until is Until.satisfied:
        num = inputs.evaluation.num_feedback_tests
        check_satisfiable(document, inputs.feedback, num_tests=num)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewing:
    """Who makes the revisions."""

    reviewers: revisions.Reviewers
    feedback: JudgedFeedback | None
    """The run's feedback, where it decides about them."""


def judged(
    model: ModelConfig, inputs: Inputs, context: RunContext, *, labelled: LabelledSet
) -> JudgedFeedback:
    """The run's feedback by the phase's model, trained where it is a trained one, and measured."""
    judge = judge_of(model, inputs, context)
    checked = comparisons.feedback_check(context, judge=judge, labelled=labelled)
    return JudgedFeedback(judge=judge.measured(checked), checked=checked)


def review(config: SLCAIConfig, inputs: Inputs, context: RunContext) -> Reviewing:
    """The critique models, and the feedback where revisions ask it.

    Raises:
        UserError: when the feedback does not pass its gate.
    """
    models, asked = config.critique_models, config.revisions
    if not asked.asks_feedback:
        return Reviewing(reviewers=revisions.Reviewers(models=models), feedback=None)
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    found = judged(config.feedback_model, inputs, context, labelled=labelled)
    comparisons.pass_gate(context, judge=found.judge, checked=found.checked)
    checked = None
    if asked.until is Until.satisfied:
        num = inputs.evaluation.num_feedback_tests
        checked = verdict_check(context, judge=found.judge, num_tests=num)
    return Reviewing(
        reviewers=revisions.Reviewers(models=models, judge=found.judge, verdicts=checked),
        feedback=found,
    )


def train(
    config: SLCAIConfig, inputs: Inputs, context: RunContext, *, start: Start | None
) -> Trained:
    """Everything up to the SL-CAI policy; phase 2 begins with the same stages."""
    reviewing = review(config, inputs, context)
    num = config.prompts
    prompts = sampling.prompts(context, config=num, sources=inputs.data, domain=inputs.domain)
    drafts = sampling.drafts(
        context,
        model=inputs.model,
        start=start,
        config=config.drafts,
        source=prompts,
        num=num.num_red_team,
    )
    revised = revisions.revisions(
        context,
        reviewers=reviewing.reviewers,
        sampling=inputs.principles,
        config=config.revisions,
        drafts=drafts,
        num=num.num_red_team,
    )
    helpfulness = sampling.helpfulness(
        context,
        model=inputs.model,
        start=start,
        config=config.helpfulness,
        source=prompts,
        num=num.num_helpfulness,
    )
    sl_policy = training.sl_policy(
        context,
        model=inputs.model,
        config=config.sl_policy,
        start=start.adapter if start else None,
        revisions=revised,
        helpfulness=helpfulness,
        num=_num_examples(config),
    )
    return Trained(
        prompts=prompts,
        start=start,
        drafts=drafts,
        revisions=revised,
        helpfulness=helpfulness,
        sl_policy=sl_policy,
        verdicts=reviewing.reviewers.verdicts,
        feedback=reviewing.feedback,
    )


def judge_of(model: ModelConfig, inputs: Inputs, context: RunContext) -> Judge:
    """The run's feedback, trained where it is a trained one; `model` is the phase's."""
    return Judge(
        config=inputs.feedback,
        model=model,
        sampling=inputs.principles,
        fitted=fitted(context, feedback=inputs.feedback, model=model),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Phase 1 and the AI comparisons of its samples."""

    trained: Trained
    pairs: Artifact
    judge: Judge
    """The feedback, measured."""
    feedback: Checked
    comparisons: Artifact
    num: int
    """Comparisons that were asked for."""


def compare(
    config: ComparedConfig, inputs: Inputs, context: RunContext, *, start: Start | None
) -> Compared:
    """Phase 1 and AI comparisons; everything that learns from them begins with these stages.

    Raises:
        UserError: when the feedback does not pass its gate.
    """
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    trained = train(config, inputs, context, start=start)
    pairs = sampling.pairs(
        context,
        model=inputs.model,
        config=config.pairs,
        source=trained.prompts,
        sl_policy=trained.sl_policy,
        num=config.prompts.num_red_team,
    )
    asked = trained.feedback or judged(config.feedback_model, inputs, context, labelled=labelled)
    judge, checked = asked.judge, asked.checked
    if trained.feedback is None:
        comparisons.pass_gate(context, judge=judge, checked=checked)
    num = config.prompts.num_red_team * config.pairs.pairs_per_prompt
    compared = comparisons.comparisons(
        context, judge=judge, config=config.comparisons, pairs=pairs, num=num
    )
    return Compared(
        trained=trained,
        pairs=pairs,
        judge=judge,
        feedback=checked,
        comparisons=compared,
        num=num,
    )


def control(
    config: SLCAIConfig, inputs: Inputs, context: RunContext, *, judge: Judge, base: Artifact
) -> Controls | None:
    """Critiqued revisions against the alternatives, on the base's held-out responses."""
    num = min(inputs.evaluation.num_critique_controls, config.prompts.num_eval_red_team)
    if num == 0:
        return None
    texts = controls(
        context,
        model=inputs.model,
        critique_model=config.critique_models["main"],
        sampling=inputs.principles,
        config=config.revisions,
        responses=base,
        num=num,
    )
    compared = control_comparisons(context, judge=judge, controls=texts, num=num)
    return Controls(texts=texts, comparisons=compared)


def match_judge(
    inputs: Inputs, context: RunContext, *, feedback: Judge, checked: Checked, model: ModelConfig
) -> MatchJudge:
    """Who judges policies: `evaluation.judge`, measured on the same pairs, or the run's feedback.

    Args:
        inputs: The phase's.
        context: The run.
        feedback: The run's, measured.
        checked: Its measurement.
        model: The phase's feedback model.
    """
    config = inputs.evaluation.judge
    if config is None:
        return MatchJudge(judge=feedback, checked=checked)
    judge = judge_of(model, dataclasses.replace(inputs, feedback=config), context)
    measured = comparisons.feedback_check(
        context, judge=judge, labelled=checked.labelled, name="judge_check"
    )
    return MatchJudge(judge=judge.measured(measured), checked=measured)


def play(
    config: SLCAIConfig | RLHFConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    feedback: Judge,
    checked: Checked,
    responses: Mapping[str, Artifact],
) -> Tournament | None:
    """A round-robin of the phase's policies; None when none is asked for.

    Args:
        config: The phase's.
        inputs: The phase's.
        context: The run.
        feedback: The run's, measured; in phases with comparisons it supplied the training labels.
        checked: Its measurement.
        responses: By policy, the least trained one first.
    """
    if inputs.evaluation.elo.num_prompts == 0:
        return None
    judge = match_judge(
        inputs, context, feedback=feedback, checked=checked, model=config.feedback_model
    )
    return tournament(
        context,
        judge=judge,
        supplied_labels=isinstance(config, ComparedConfig | CritiqueRLConfig)
        and bool(judge.judge.judges() & feedback.judges()),
        players=responses,
        config=inputs.evaluation.elo,
        counts={
            PromptKind.red_team: config.prompts.num_eval_red_team,
            PromptKind.helpfulness: config.prompts.num_eval_helpfulness,
            PromptKind.benign: config.prompts.num_eval_benign,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is measured on every policy of a phase that learns from comparisons."""

    evaluation: evaluation.Evaluation
    principle_scores: tuple[Artifact, ...]
    controls: Controls | None
    tournament: Tournament | None


def measure(
    config: ComparedConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    compared: Compared,
    last: dict[str, Artifact],
    preference_model: PreferenceModel | None,
) -> Measured:
    """Base, start, SL-CAI policy and the `last` ones by name, on held-out prompts and tests."""
    return measure_policies(
        config,
        inputs,
        context,
        trained=compared.trained,
        judge=compared.judge,
        checked=compared.feedback,
        last=last,
        preference_model=preference_model,
    )


def measure_policies(
    config: SLCAIConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    trained: Trained,
    judge: Judge,
    checked: Checked,
    last: dict[str, Artifact],
    preference_model: PreferenceModel | None,
) -> Measured:
    """Like `measure`, of policies that learned from the feedback in another way.

    Args:
        config: The phase's.
        inputs: The phase's.
        context: The run.
        trained: Phase 1.
        judge: The run's feedback, measured.
        checked: Its measurement.
        last: What was trained after phase 1, by name.
        preference_model: Scores the responses; None where there is none.
    """
    measured = evaluation.evaluate(
        context,
        model=inputs.model,
        config=inputs.evaluation,
        counts=config.prompts,
        prompts=trained.prompts,
        policies=trained.policies() | last,
        preference_model=preference_model,
    )
    scored = principle_scores(
        context,
        judge=judge,
        responses=measured.responses,
        num=min(inputs.evaluation.num_principle_prompts, config.prompts.num_eval_red_team),
    )
    base = measured.responses["base"]
    controlled = control(config, inputs, context, judge=judge, base=base)
    played = play(
        config,
        inputs,
        context,
        feedback=judge,
        checked=checked,
        responses=measured.responses,
    )
    return Measured(
        evaluation=measured, principle_scores=scored, controls=controlled, tournament=played
    )


def run(config: SLCAIConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the SL-CAI policy and measure it against the base."""
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    trained = train(config, inputs, context, start=start_of(config, inputs, context))
    measured = evaluation.evaluate(
        context,
        model=inputs.model,
        config=inputs.evaluation,
        counts=config.prompts,
        prompts=trained.prompts,
        policies=trained.policies(),
        preference_model=None,
    )
    if not inputs.evaluation.asks_feedback and trained.feedback is None:
        return Outputs(
            trained=trained, evaluation=measured, controls=None, tournament=None, feedback=None
        )
    asked = trained.feedback or judged(config.feedback_model, inputs, context, labelled=labelled)
    judge, checked = asked.judge, asked.checked
    controlled = control(config, inputs, context, judge=judge, base=measured.responses["base"])
    played = play(
        config,
        inputs,
        context,
        feedback=judge,
        checked=checked,
        responses=measured.responses,
    )
    return Outputs(
        trained=trained,
        evaluation=measured,
        controls=controlled,
        tournament=played,
        feedback=checked,
    )
