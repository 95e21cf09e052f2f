"""PPO on the feedback's own answers, of the policy or of the critic.

`learner: policy` is direct RLAIF (Lee et al. 2023, arXiv:2309.00267): phase 1 as in `sl_cai`, then
PPO whose score of a rollout comes straight from the feedback, at every rollout, without comparisons
beforehand and without a preference model that could go stale or be fooled. `learner:
critique_model` trains the critic on whether following its critiques improves revisions.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.choices import Learner, RewardKind
from cai.context import RunContext
from cai.critique_config import CritiqueRLConfig
from cai.phases import critique_model, sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, evaluation, sampling
from cai.stages.controls import Controls
from cai.stages.critic_policy import rl_critic
from cai.stages.direct_reward import DirectReward, check_reward
from cai.stages.matches import Tournament
from cai.stages.policy import policy as rl_policy
from cai.stages.start import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was made and measured with `learner: policy`."""

    trained: sl_cai.Trained
    feedback: comparisons.Checked
    policy: Artifact
    evaluation: evaluation.Evaluation
    principle_scores: tuple[Artifact, ...]
    controls: Controls | None
    tournament: Tournament | None


def _policy(config: CritiqueRLConfig, inputs: Inputs, context: RunContext) -> Outputs:
    start = sl_cai.start_of(config, inputs, context)
    judge, checked = critique_model.checked_judge(config, inputs, context)
    trained = sl_cai.train(config, inputs, context, start=start)
    references = None
    if config.reward is RewardKind.pairwise:
        references = sampling.samples(
            context,
            policy=Start(name="sl_cai", adapter=trained.sl_policy),
            model=inputs.model,
            config=config.references,
            source=trained.prompts,
            num=config.prompts.num_red_team + config.prompts.num_helpfulness,
            name="reward_references",
        )
    policy = rl_policy(
        context,
        model=inputs.model,
        config=config.ppo,
        prompts=trained.prompts,
        sl_policy=trained.sl_policy,
        reward=DirectReward(judge=judge, config=config, references=references),
        snapshots=(),
        name="direct_policy",
    )
    measured = sl_cai.measure_policies(
        config,
        inputs,
        context,
        trained=trained,
        judge=judge,
        checked=checked,
        last={"critique_rl": policy},
        preference_model=None,
    )
    return Outputs(
        trained=trained,
        feedback=checked,
        policy=policy,
        evaluation=measured.evaluation,
        principle_scores=measured.principle_scores,
        controls=measured.controls,
        tournament=measured.tournament,
    )


def _critic(
    config: CritiqueRLConfig, inputs: Inputs, context: RunContext
) -> critique_model.Outputs:
    prompts, drafts = critique_model.begin(config, inputs, context)
    judge, checked = critique_model.checked_judge(config, inputs, context)
    trained = rl_critic(
        context,
        model=config.critique_models["main"],
        sampling=inputs.principles,
        revisions=config.revisions,
        config=config,
        judge=judge,
        drafts=drafts,
    )
    measured = critique_model.measure(
        config, inputs, context, prompts=prompts, trained=trained, judge=judge, checked=checked
    )
    return critique_model.Outputs(
        critic=trained, samples=None, gains=None, feedback=checked, measured=measured
    )


def run(
    config: CritiqueRLConfig, inputs: Inputs, context: RunContext
) -> Outputs | critique_model.Outputs:
    """Train the policy or the critic, and measure it against what it began as."""
    if config.learner is Learner.critique_model:
        return _critic(config, inputs, context)
    check_reward(config, inputs.feedback)
    return _policy(config, inputs, context)
