"""Phases 1 and 2: SL-CAI, then comparisons, preference model and PPO (sec. 4).

Departures from the paper: both presentation orders of a comparison are averaged (switch
`feedback.both_orders`), no human helpfulness comparisons are mixed in unless
`data.human_comparisons` names some, and the preference model starts without preference pretraining,
from the policy's base unless `preference_base` names another.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.choices import Select
from cai.config import RLAIFConfig
from cai.context import RunContext
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, evaluation
from cai.stages.controls import Controls
from cai.stages.goodhart import Goodhart, Policies, selected_policy, snapshot_scores
from cai.stages.matches import Tournament
from cai.stages.policy import check_value_adapter, snapshot_rounds
from cai.stages.policy import policy as rl_policy
from cai.stages.preference_labels import AILabels
from cai.stages.preference_model import PreferenceModel
from cai.stages.preference_model import preference_model as trained_preference_model
from cai.stages.preference_pairs import Half
from cai.stages.rewards import PreferenceReward


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What both phases made and measured."""

    trained: sl_cai.Trained
    pairs: Artifact
    feedback: comparisons.Checked
    comparisons: Artifact
    preference_model: PreferenceModel
    policy: Artifact
    """PPO's; what the run ends with may be another round's (`goodhart.selected`)."""
    evaluation: evaluation.Evaluation
    principle_scores: tuple[Artifact, ...]
    """`PolicyComparison` records, one artifact for each policy but the first; empty unless they are
    asked for."""
    controls: Controls | None
    goodhart: Goodhart | None
    """None unless over-optimisation is measured."""
    tournament: Tournament | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What phase 2 trained."""

    preference_model: PreferenceModel
    policy: Artifact
    """PPO's, after its last round."""
    goodhart: Goodhart | None

    @property
    def final(self) -> Artifact:
        """The policy that is evaluated and exported."""
        selected = self.goodhart.selected if self.goodhart else None
        return selected or self.policy


def _preference_model(
    config: RLAIFConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    compared: sl_cai.Compared,
    half: Half | None,
) -> PreferenceModel:
    return trained_preference_model(
        context,
        model=config.preference_base or inputs.model,
        config=config.preference_model,
        principles=inputs.principles,
        labels=AILabels(comparisons=compared.comparisons, human=inputs.data.human_comparisons),
        pairs=compared.pairs,
        num=compared.num if half is None else compared.num // 2,
        half=half,
    )


def _goodhart(
    config: RLAIFConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    compared: sl_cai.Compared,
    proxy: PreferenceModel,
    policies: Policies,
) -> Goodhart:
    """The gold preference model, PPO's snapshots under both, and the policy that is selected."""
    gold = _preference_model(config, inputs, context, compared=compared, half=Half.gold)
    counts = config.prompts
    scores = snapshot_scores(
        context,
        policies,
        proxy=proxy,
        gold=gold,
        config=inputs.evaluation.sampling,
        prompts=compared.trained.prompts,
        num=counts.num_eval_red_team + counts.num_eval_helpfulness + counts.num_eval_benign,
    )
    selected = None
    if config.ppo.select is Select.gold_peak:
        selected = selected_policy(
            context,
            policies,
            scores=scores,
            gold=gold.artifact,
            combine=config.preference_model.combine,
            num_resamples=inputs.evaluation.num_bootstrap,
        )
    return Goodhart(gold=gold, scores=scores, selected=selected)


def learn(
    config: RLAIFConfig, inputs: Inputs, context: RunContext, *, compared: sl_cai.Compared
) -> Learned:
    """The preference model from the comparisons, and the policy from its scores."""
    half = Half.proxy if config.gold else None
    snapshots = snapshot_rounds(config.ppo) if config.gold else ()
    preference_model = _preference_model(config, inputs, context, compared=compared, half=half)
    policy = rl_policy(
        context,
        model=inputs.model,
        config=config.ppo,
        prompts=compared.trained.prompts,
        sl_policy=compared.trained.sl_policy,
        reward=PreferenceReward(model=preference_model),
        snapshots=snapshots,
    )
    if not config.gold:
        return Learned(preference_model=preference_model, policy=policy, goodhart=None)
    policies = Policies(
        model=inputs.model,
        sl_policy=compared.trained.sl_policy,
        policy=policy,
        num_rounds=config.ppo.num_iterations,
        snapshots=snapshots,
    )
    goodhart = _goodhart(
        config, inputs, context, compared=compared, proxy=preference_model, policies=policies
    )
    return Learned(preference_model=preference_model, policy=policy, goodhart=goodhart)


def run(config: RLAIFConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the RL-CAI policy and measure it against the SL-CAI policy and the base."""
    check_value_adapter(config.ppo, model=inputs.model, preference_base=config.preference_base)
    start = sl_cai.start_of(config, inputs, context)
    compared = sl_cai.compare(config, inputs, context, start=start)
    learned = learn(config, inputs, context, compared=compared)
    measured = sl_cai.measure(
        config,
        inputs,
        context,
        compared=compared,
        last={"rl_cai": learned.final},
        preference_model=learned.preference_model,
    )
    return Outputs(
        trained=compared.trained,
        pairs=compared.pairs,
        feedback=compared.feedback,
        comparisons=compared.comparisons,
        preference_model=learned.preference_model,
        policy=learned.policy,
        evaluation=measured.evaluation,
        principle_scores=measured.principle_scores,
        controls=measured.controls,
        goodhart=learned.goodhart,
        tournament=measured.tournament,
    )
