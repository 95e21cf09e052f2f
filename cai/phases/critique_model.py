"""A critic: trained on critiques, measured by what its critiques do.

Not part of the paper, whose critiques are by the model that revises. Drafts are those of phase 1;
several critiques of each are sampled, and the one whose revision gains most under the feedback is
learned beside trusted critiques. The critic is an adapter apart from the generator: it critiques,
the base revises. `model@phase.critique_models.main=critic` uses it in any phase.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.context import RunContext
from cai.critique_config import CritiqueModelConfig, CritiqueRLConfig
from cai.errors import ConfigError
from cai.feedback.labelled import labelled_set
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, critic, sampling
from cai.stages.comparisons import Checked, Judge
from cai.stages.controls import controls
from cai.stages.critic_evaluation import (
    BASE,
    Critic,
    CriticMatch,
    critic_comparisons,
    critic_revisions,
    trusted_checks,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Critics on what they did not learn from, the least trained one first."""

    checks: dict[str, Artifact]
    """`TrustedCheck` records, by critic."""
    revisions: Artifact
    """`CriticRevision` records of the last critic."""
    matches: tuple[CriticMatch, ...]
    """The run's feedback first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was made and measured; by `phase=critique_rl phase.learner=critique_model` too."""

    critic: Artifact
    samples: Artifact | None
    """`CritiqueSample` records; None where PPO trained the critic."""
    gains: Artifact | None
    feedback: Checked
    measured: Measured
    tournament: None = None
    """No policy was trained that could meet another."""


def begin(
    config: CritiqueModelConfig | CritiqueRLConfig, inputs: Inputs, context: RunContext
) -> tuple[Artifact, Artifact]:
    """Prompts and drafts, as in phase 1."""
    if config.start is not None:
        raise ConfigError(
            f"phase.start={config.start} is for phases that train a policy; a critic that goes on "
            "learning is phase.critique_models.main.start. Type phase.start=null"
        )
    num = config.prompts
    prompts = sampling.prompts(context, config=num, sources=inputs.data, domain=inputs.domain)
    drafts = sampling.drafts(
        context,
        model=inputs.model,
        start=None,
        config=config.drafts,
        source=prompts,
        num=num.num_red_team,
    )
    return prompts, drafts


def checked_judge(
    config: CritiqueModelConfig | CritiqueRLConfig, inputs: Inputs, context: RunContext
) -> tuple[Judge, Checked]:
    """The feedback, measured; something learns from its labels, so it must pass its gate.

    Raises:
        UserError: when it does not.
    """
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    found = sl_cai.judged(config.feedback_model, inputs, context, labelled=labelled)
    comparisons.pass_gate(context, judge=found.judge, checked=found.checked)
    return found.judge, found.checked


def measure(
    config: CritiqueModelConfig | CritiqueRLConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    prompts: Artifact,
    trained: Artifact,
    judge: Judge,
    checked: Checked,
) -> Measured:
    """The base, the critic that training began with if it is another, and the trained one."""
    model = config.critique_models["main"]
    plain = dataclasses.replace(model, start=None)
    critics = [Critic(name=BASE, model=plain, adapter=None)]
    if model.start is not None:
        critics.append(Critic(name="start", model=model, adapter=None))
    critics.append(Critic(name="critic", model=model, adapter=trained))
    checks = {
        one.name: trusted_checks(
            context,
            critic=one,
            config=config.revisions,
            held_out_frac=config.trusted_held_out_frac,
        )
        for one in critics
    }
    num = min(inputs.evaluation.num_critique_controls, config.prompts.num_eval_red_team)
    counts = config.prompts
    held_out = sampling.responses(
        context,
        policy="base",
        model=inputs.model,
        adapter=None,
        config=inputs.evaluation.sampling,
        source=prompts,
        num=counts.num_eval_red_team + counts.num_eval_helpfulness + counts.num_eval_benign,
    )
    arms = controls(
        context,
        model=inputs.model,
        critique_model=plain,
        sampling=inputs.principles,
        config=config.revisions,
        responses=held_out,
        num=num,
    )
    revised = {
        one.name: critic_revisions(
            context,
            critic=one,
            sampling=inputs.principles,
            config=config.revisions,
            controls=arms,
            num=num,
        )
        for one in critics[1:]
    }
    last = revised.pop("critic")
    other = sl_cai.match_judge(
        inputs, context, feedback=judge, checked=checked, model=config.feedback_model
    ).judge
    matches = tuple(
        CriticMatch(
            judge=one,
            artifact=critic_comparisons(
                context, judge=one, revisions=last, controls=arms, others=revised, num=num
            ),
            circular=bool(one.judges() & judge.judges()),
        )
        for one in ((judge,) if other is judge else (judge, other))
    )
    return Measured(checks=checks, revisions=last, matches=matches)


def run(config: CritiqueModelConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the critic and measure it against its base."""
    model = config.critique_models["main"]
    prompts, drafts = begin(config, inputs, context)
    judge, checked = checked_judge(config, inputs, context)
    num = config.prompts.num_red_team
    samples = critic.critique_samples(
        context,
        model=model,
        sampling=inputs.principles,
        revisions=config.revisions,
        config=config.critique_samples,
        drafts=drafts,
        num=num,
    )
    gained = critic.critique_gains(
        context, judge=judge, samples=samples, config=config.critique_samples, num=num
    )
    trained = critic.critic(
        context,
        model=model,
        sampling=inputs.principles,
        revisions=config.revisions,
        config=config.critic,
        held_out_frac=config.trusted_held_out_frac,
        samples=samples,
        gained=gained,
        num=num,
    )
    measured = measure(
        config, inputs, context, prompts=prompts, trained=trained, judge=judge, checked=checked
    )
    return Outputs(
        critic=trained, samples=samples, gains=gained, feedback=checked, measured=measured
    )
