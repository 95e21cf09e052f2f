"""PPO's chapter of a run's account: its settings, and its rounds as curves."""

from __future__ import annotations

import statistics

from cai.artifacts import Artifact
from cai.chapters import Outputs, curves_of
from cai.config import Config, RLAIFConfig
from cai.context import CURVE
from cai.phases import rlaif, rlhf
from cai.rlhf_config import RLHFConfig
from cai.story import PPOStory, label
from cai.training_config import PPOConfig

EXPLAINED_VARIANCE = "val/explained_variance"


def ppo_story(
    config: Config,
    outputs: Outputs,
    counts: dict[str, dict[str, int]],
) -> PPOStory | None:
    """PPO by round; None before phase 2."""
    match outputs, config.phase:
        case rlaif.Outputs(), RLAIFConfig():
            return _ppo_story(config.phase.ppo, outputs.policy, counts, reference="SL-CAI")
        case rlhf.Outputs(), RLHFConfig():
            people = outputs.people
            reference = label(people.begun.name)
            return _ppo_story(config.phase.ppo, people.policy, counts, reference=reference)
        case _:
            return None


def _ppo_story(
    ppo: PPOConfig, policy: Artifact, counts: dict[str, dict[str, int]], *, reference: str
) -> PPOStory:
    return ppo_of(
        ppo,
        policy,
        counts,
        reference=reference,
        unit=f"{reference} standard deviations",
        note=f"Mean over the round's rollouts; 0 is the mean of {reference} samples.",
    )


def ppo_of(
    ppo: PPOConfig,
    policy: Artifact,
    counts: dict[str, dict[str, int]],
    *,
    reference: str,
    unit: str,
    note: str,
) -> PPOStory:
    """PPO by round.

    Args:
        ppo: Its settings.
        policy: What it trained.
        counts: By stage.
        reference: What the KL is measured from.
        unit: Of the score.
        note: How to read the score.
    """
    rounds = [row[EXPLAINED_VARIANCE] for row in policy.json(CURVE) if EXPLAINED_VARIANCE in row]
    later = rounds[len(rounds) // 2 :]
    return PPOStory(
        reference=reference,
        explained_variance=statistics.fmean(later) if later else None,
        num_rounds=counts[policy.stage]["rounds"],
        num_rollouts=counts[policy.stage]["rollouts"],
        settings={
            "kl_coef": f"{ppo.kl_coef:g}",
            "kl_where": ppo.kl_where.value,
            "clip_ratio": f"{ppo.clip_ratio:g}",
            "ppo_epochs": str(ppo.ppo_epochs),
            "learning_rate": f"{ppo.optimizer.learning_rate:g}",
            "temperature": f"{ppo.temperature:g}",
            "sampler_correction": ppo.sampler_correction.value,
        },
        curves=curves_of(
            policy,
            (
                {
                    "objective/scores": "score",
                    "objective/rlhf_reward": "score minus penalties",
                },
                "Reward",
                unit,
                note,
            ),
            (
                {"objective/kl": f"KL to {reference}"},
                f"KL to the {reference} policy",
                "nats per response",
                "Sum over tokens, mean over rollouts; sampled, so it can dip below 0.",
            ),
            ({"val/response_length": "length"}, "Response length", "tokens", ""),
            ({"objective/entropy": "entropy"}, "Entropy", "nats per token", ""),
            (
                {"policy/clipfrac_avg": "clipped", "val/eos_rate": "ended by the model"},
                "Clip fraction and responses ended",
                "share",
                "",
            ),
            (
                {EXPLAINED_VARIANCE: "explained variance"},
                "Explained variance of the value head",
                "share",
                "1 is perfect, 0 is no better than the mean.",
            ),
            (
                {"val/sampler_kl": "KL", "val/sampler_gap": "difference"},
                "Sampler against trainer",
                "nats per token",
                "How far what sampled is from what is trained; 0 where both compute alike.",
            ),
        ),
    )
