"""Phases 1 and 2: SL-CAI, then comparisons, preference model and PPO (sec. 4).

Departures from the paper: both presentation orders of a comparison are averaged (switch
`feedback.both_orders`), no human helpfulness comparisons are mixed in unless
`data.human_comparisons` names some, and the preference model starts without preference pretraining,
from the policy's base unless `preference_base` names another.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import RLAIFConfig
from cai.context import RunContext
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, evaluation
from cai.stages.controls import Controls
from cai.stages.policy import check_value_adapter
from cai.stages.policy import policy as rl_policy
from cai.stages.preference_model import PreferenceModel
from cai.stages.preference_model import preference_model as trained_preference_model
from cai.stages.principle_scores import principle_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What both phases made and measured."""

    trained: sl_cai.Trained
    pairs: Artifact
    feedback: comparisons.Checked
    comparisons: Artifact
    preference_model: PreferenceModel
    policy: Artifact
    evaluation: evaluation.Evaluation
    principle_scores: tuple[Artifact, ...]
    """`PolicyComparison` records, one artifact for each policy but the first; empty unless they are
    asked for."""
    controls: Controls | None


def run(config: RLAIFConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the RL-CAI policy and measure it against the SL-CAI policy and the base."""
    check_value_adapter(config.ppo, model=inputs.model, preference_base=config.preference_base)
    compared = sl_cai.compare(config, inputs, context)
    trained = compared.trained
    preference_model = trained_preference_model(
        context,
        model=config.preference_base or inputs.model,
        config=config.preference_model,
        principles=inputs.principles,
        comparisons=compared.comparisons,
        pairs=compared.pairs,
        human=inputs.data.human_comparisons,
        num=compared.num,
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
    scored = principle_scores(
        context,
        judge=compared.judge,
        responses=measured.responses,
        num=min(inputs.evaluation.num_principle_prompts, config.prompts.num_eval_red_team),
    )
    controlled = sl_cai.control(
        config, inputs, context, judge=compared.judge, base=measured.responses["base"]
    )
    return Outputs(
        trained=trained,
        pairs=compared.pairs,
        feedback=compared.feedback,
        comparisons=compared.comparisons,
        preference_model=preference_model,
        policy=policy,
        evaluation=measured,
        principle_scores=scored,
        controls=controlled,
    )
