"""The chapters of critics and of direct rewards: artifacts read back and told as stories."""

from __future__ import annotations

from cai.chapters import Bootstrap, Outputs
from cai.choices import Learner, RewardKind
from cai.config import Config
from cai.context import CURVE
from cai.critic_record import CriticComparison, RolloutJudgement, TrustedCheck
from cai.critic_story import CriticStory, RewardStory, critic_story, judged_story, reward_story
from cai.critique_config import CritiqueRLConfig
from cai.phases import critique_model, critique_rl
from cai.ppo_story import ppo_of
from cai.roles import judge_name
from cai.stages.direct_reward import JUDGEMENTS
from cai.story import Curve, PPOStory, curve

Counts = dict[str, dict[str, int]]


def told_critic(
    config: Config, outputs: Outputs, counts: Counts, bootstrap: Bootstrap
) -> CriticStory | None:
    """What the critic is worth; None in phases that train none."""
    if not isinstance(outputs, critique_model.Outputs):
        return None
    measured = outputs.measured
    resampling = {"num_bootstrap": bootstrap.num, "seed": bootstrap.seed}
    return critic_story(
        {name: one.records(TrustedCheck) for name, one in measured.checks.items()},
        [
            judged_story(
                judge_name(match.judge.config, match.judge.model),
                match.artifact.records(CriticComparison),
                circular=match.circular,
                **resampling,
            )
            for match in measured.matches
        ],
        learned=_learned(outputs, counts),
        **resampling,
    )


def _learned(outputs: critique_model.Outputs, counts: Counts) -> str:
    own = counts[outputs.critic.stage]
    if outputs.samples is None:
        return (
            f"PPO over {own['rounds']} rounds of {own['rollouts']} critiques in all, each paid by "
            "what the base's revision after it is worth to the feedback."
        )
    sampled = counts["critique_samples"]
    return (
        f"Fine-tuned on {own['examples']} critiques: {own['trusted']} trusted ones and "
        f"{own['sampled']} of {sampled['critiques']} sampled ones ({sampled['valid']} valid), each "
        "the best of its draft by what the revision after it gained."
    )


def critic_curves(outputs: Outputs) -> tuple[Curve, ...]:
    """The critic's fine-tune; empty where there is none."""
    if not isinstance(outputs, critique_model.Outputs) or outputs.samples is None:
        return ()
    drawn = curve(
        outputs.critic.json(CURVE),
        {"train/loss": "training"},
        title="Loss of the critic",
        x_label="optimizer step",
        y_label="nats per token",
        note="Lower is better.",
    )
    return (drawn,) if drawn else ()


def told_reward(config: Config, outputs: Outputs, bootstrap: Bootstrap) -> RewardStory | None:
    """What the feedback paid; None in phases that train a preference model, or nothing by PPO."""
    phase = config.phase
    if not isinstance(phase, CritiqueRLConfig):
        return None
    single = phase.learner is Learner.policy and phase.reward is RewardKind.score
    if isinstance(outputs, critique_model.Outputs):
        artifact, asked = outputs.critic, "whether the revision after a critique beats the draft"
    elif isinstance(outputs, critique_rl.Outputs):
        artifact = outputs.policy
        asked = (
            "what a response is worth by itself"
            if single
            else "whether a response beats the SL-CAI policy's own"
        )
    else:
        return None
    return reward_story(
        artifact.records(RolloutJudgement, JUDGEMENTS),
        asked=asked,
        bound=None if single else phase.max_log_odds,
        num_bootstrap=bootstrap.num,
        seed=bootstrap.seed,
    )


def direct_ppo(config: Config, outputs: Outputs, counts: Counts) -> PPOStory | None:
    """PPO by round where the feedback is the score; None elsewhere."""
    phase = config.phase
    if not isinstance(phase, CritiqueRLConfig):
        return None
    note = "Mean over the round's rollouts; above 0 the feedback prefers them."
    if isinstance(outputs, critique_model.Outputs):
        return ppo_of(
            phase.ppo,
            outputs.critic,
            counts,
            reference="critic at the start",
            unit="nats, log-odds",
            note=note,
        )
    if isinstance(outputs, critique_rl.Outputs):
        if phase.reward is RewardKind.score:
            note = "Mean over the round's rollouts of the feedback's value of one response."
        marks = phase.reward is RewardKind.score and config.feedback.method == "score"
        unit = "marks, 0 to 10" if marks else "nats"
        return ppo_of(phase.ppo, outputs.policy, counts, reference="SL-CAI", unit=unit, note=note)
    return None
