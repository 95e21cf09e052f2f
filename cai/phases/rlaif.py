"""Phases 1 and 2: SL-CAI, then comparisons, preference model and PPO (sec. 4).

Departures from the paper: both presentation orders of a comparison are averaged (switch
`feedback.both_orders`), no human helpfulness comparisons are mixed in unless
`data.human_comparisons` names some, and the preference model starts from the policy's base without
preference pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import RLAIFConfig
from cai.context import RunContext
from cai.feedback.labelled import labelled_set
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, evaluation, sampling, training
from cai.stages.controls import Controls
from cai.stages.policy import policy as rl_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What both phases made and measured."""

    trained: sl_cai.Trained
    pairs: Artifact
    feedback: comparisons.Checked
    comparisons: Artifact
    preference_model: Artifact
    policy: Artifact
    evaluation: evaluation.Evaluation
    controls: Controls | None


def run(config: RLAIFConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the RL-CAI policy and measure it against the SL-CAI policy and the base."""
    num_prompts = config.prompts.num_red_team
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    trained = sl_cai.train(config, inputs, context)
    pairs = sampling.pairs(
        context,
        model=inputs.model,
        config=config.pairs,
        source=trained.prompts,
        sl_policy=trained.sl_policy,
        num=num_prompts,
    )
    judge = sl_cai.judge_of(config.feedback_model, inputs, context)
    checked = comparisons.feedback_check(context, judge=judge, labelled=labelled)
    comparisons.pass_gate(context, judge=judge, checked=checked)
    judge = judge.measured(checked)
    compared = comparisons.comparisons(
        context,
        judge=judge,
        config=config.comparisons,
        pairs=pairs,
        num=num_prompts * config.pairs.pairs_per_prompt,
    )
    preference_model = training.preference_model(
        context,
        model=inputs.model,
        config=config.preference_model,
        comparisons=compared,
        pairs=pairs,
        human=inputs.data.human_comparisons,
        num=num_prompts * config.pairs.pairs_per_prompt,
    )
    policy = rl_policy(
        context,
        model=inputs.model,
        config=config.ppo,
        prompts=trained.prompts,
        sl_policy=trained.sl_policy,
        preference_model=preference_model,
    )
    measured = evaluation.evaluate(
        context,
        model=inputs.model,
        config=inputs.evaluation,
        counts=config.prompts,
        prompts=trained.prompts,
        policies={"base": None, "sl_cai": trained.sl_policy, "rl_cai": policy},
        preference_model=preference_model,
    )
    controlled = sl_cai.control(
        config, inputs, context, judge=judge, base=measured.responses["base"]
    )
    return Outputs(
        trained=trained,
        pairs=pairs,
        feedback=checked,
        comparisons=compared,
        preference_model=preference_model,
        policy=policy,
        evaluation=measured,
        controls=controlled,
    )
