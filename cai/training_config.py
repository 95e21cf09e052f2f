"""Types of the training settings; `cai.config` says what holds for all settings."""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import KLControl, KLEstimator, RevisionsUsed
from cai.ranges import check, fraction, not_negative, positive


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float
    weight_decay: float
    warmup_frac: float
    """Linear warm-up over this share of the steps; constant afterwards (the paper's schedule)."""
    max_grad_norm: float

    def __post_init__(self) -> None:
        not_negative(self, "learning_rate", "weight_decay")
        positive(self, "max_grad_norm")
        fraction(self, "warmup_frac")


@dataclass(kw_only=True, slots=True)
class SLPolicyConfig:
    """SL-CAI fine-tune on revisions and helpfulness samples."""

    revisions: RevisionsUsed
    num_epochs: int
    batch_size: int
    """Sequences per optimizer step."""
    max_length: int
    """Prompt plus response, tokens; longer examples are dropped and counted."""
    checkpoint_every: int
    """Optimizer steps between checkpoints."""
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        positive(self, "num_epochs", "batch_size", "max_length", "checkpoint_every")


@dataclass(kw_only=True, slots=True)
class PreferenceModelConfig:
    """Preference model on soft labels (sec. 4.1; training as Bai et al. 2022a, app. A)."""

    num_epochs: int
    batch_size: int
    """Pairs per optimizer step."""
    validation_frac: float
    """Share of the prompts whose pairs are held out."""
    human_weight: float
    """Weight of a human comparison relative to an AI comparison."""
    max_length: int
    checkpoint_every: int
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        positive(self, "num_epochs", "batch_size", "max_length", "checkpoint_every")
        fraction(self, "validation_frac")
        not_negative(self, "human_weight")


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """PPO against the preference model (sec. 4.1; Bai et al. 2022a, app. B)."""

    num_iterations: int
    """Rollout-then-update rounds."""
    rollouts_per_iteration: int
    """Prompts per round, one response each."""
    helpfulness_frac: float
    """Share of them that are helpfulness prompts."""
    max_new_tokens: int
    temperature: float
    """Applied alike to sampling and to policy, old and reference log-probabilities."""
    ppo_epochs: int
    """Passes over each round's rollouts."""
    num_minibatches: int
    """Optimizer steps per pass."""
    kl_coef: float
    """Weight of the per-token KL to the SL-CAI policy in the reward."""
    kl_estimator: KLEstimator
    kl_control: KLControl
    kl_target: float
    """Nats per response, for `kl_control: adaptive`."""
    kl_horizon: int
    """Responses over which adaptive control acts."""
    clip_ratio: float
    value_clip: float
    value_coef: float
    discount: float
    gae_lambda: float
    whiten_rewards: bool
    """Divide rewards by their standard deviation (no shift)."""
    missing_eos_penalty: float
    """Subtracted from the score of a response cut at `max_new_tokens`."""
    checkpoint_every: int
    """Rounds between checkpoints."""
    optimizer: OptimizerConfig
    value_learning_rate: float

    def __post_init__(self) -> None:
        positive(
            self,
            "num_iterations",
            "rollouts_per_iteration",
            "max_new_tokens",
            "temperature",
            "ppo_epochs",
            "num_minibatches",
            "kl_target",
            "kl_horizon",
            "clip_ratio",
            "value_clip",
            "checkpoint_every",
        )
        not_negative(self, "kl_coef", "value_coef", "missing_eos_penalty", "value_learning_rate")
        fraction(self, "helpfulness_frac", "discount", "gae_lambda")
        check(
            self.num_minibatches <= self.rollouts_per_iteration,
            f"num_minibatches ({self.num_minibatches}) must not exceed "
            f"rollouts_per_iteration ({self.rollouts_per_iteration})",
        )
