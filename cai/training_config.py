"""Types of the training settings; `cai.config` says what holds for all settings."""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import (
    AtCut,
    Combine,
    Condition,
    DPOLoss,
    KLControl,
    KLEstimator,
    KLPlace,
    RevisionsUsed,
    SamplerCorrection,
    Select,
    ValueAdapter,
)
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
class FineTuneConfig:
    """Supervised fine-tuning on responses."""

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
class SLPolicyConfig(FineTuneConfig):
    """SL-CAI fine-tune on revisions and helpfulness samples."""

    revisions: RevisionsUsed


@dataclass(kw_only=True, slots=True)
class PreferenceModelConfig:
    """Preference model on soft labels (sec. 4.1; training as Bai et al. 2022a, app. A)."""

    num_epochs: int
    batch_size: int
    """Pairs per optimizer step."""
    validation_frac: float
    """Share of the prompts whose pairs are held out."""
    human_frac: float | None
    """Share of the total weight that human comparisons have, however many there are; null: every
    pair weighs what its label does."""
    num_members: int
    """Adapters with heads, each from its own random start and in its own order of the pairs."""
    combine: Combine
    """What the members' scores become, in PPO and evaluation."""
    condition: Condition
    principles_per_score: int
    """With `condition: principle`, principles drawn for a prompt whose responses are scored without
    a principle given; the scores are averaged."""
    max_length: int
    checkpoint_every: int
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        positive(self, "num_epochs", "batch_size", "num_members", "principles_per_score")
        positive(self, "max_length", "checkpoint_every")
        fraction(self, "validation_frac")
        if self.human_frac is not None:
            fraction(self, "human_frac")


@dataclass(kw_only=True, slots=True)
class DPOConfig:
    """Direct Preference Optimization (Rafailov et al. 2023) on the same soft labels."""

    loss: DPOLoss
    beta: float
    """Strength of the pull to the SL-CAI policy: the smaller, the further it may go."""
    label_smoothing: float
    """Share of labels taken to be wrong (conservative DPO), below 0.5; 0 trusts them."""
    num_epochs: int
    batch_size: int
    """Pairs per optimizer step."""
    validation_frac: float
    """Share of the prompts whose pairs are held out; a preference model with the same share holds
    out the same ones."""
    human_frac: float | None
    """Share of the total weight that human comparisons have, as in the preference model."""
    max_length: int
    """Prompt plus the longer response, tokens; longer pairs are dropped and counted."""
    checkpoint_every: int
    """Optimizer steps between checkpoints."""
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        positive(self, "beta", "num_epochs", "batch_size", "max_length", "checkpoint_every")
        fraction(self, "validation_frac")
        if self.human_frac is not None:
            fraction(self, "human_frac")
        check(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing must be at least 0 and below 0.5, not {self.label_smoothing}: from "
            "there on a label would count for its other side",
        )


_OTHER_LAW = (
    "a sampler that leaves tokens out does not follow the law that is scored, and ratios and KL "
    "would be those of another policy (a KL below 0 is how it shows). phase.ppo.temperature is "
    "applied to both alike"
)
_LEFT_OUT = ("top_k", "top_p", "min_p", "typical_p", "min_new_tokens", "no_repeat_ngram_size")
PPO_REFUSED = dict.fromkeys((*_LEFT_OUT, "repetition_penalty"), _OTHER_LAW) | {
    "target_kl": "passes are not stopped by the KL from old to new policy, so that two runs do the "
    "same work; it is in the metrics as policy/approxkl_avg. The KL to the SL-CAI policy is held "
    "by phase.ppo.kl_control=adaptive and phase.ppo.kl_target",
    "anneal_lr": "the paper's learning rate is constant after warm-up, so that a run can be made "
    "longer without being another run",
    "dual_clip": "the clipped surrogate has one bound; whitened advantages and "
    "phase.ppo.optimizer.max_grad_norm bound the rest",
    "ptx_coef": "there is no pretraining data to mix in; the pull to the SL-CAI policy is "
    "phase.ppo.kl_coef",
}
"""Settings of other PPO codes that there are none of here, and why; `cai.explain` says it."""


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """PPO against the preference model (sec. 4.1; Bai et al. 2022a, app. B)."""

    num_iterations: int
    """Rollout-then-update rounds."""
    rollouts_per_iteration: int
    """Prompts per round, one response each."""
    shard_size: int
    """Prompts that are sampled, or judged, in one batch; processes share the batches."""
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
    """Weight of the per-token KL to the SL-CAI policy."""
    kl_where: KLPlace
    """In the rewards, or a term of the loss with gradient."""
    kl_estimator: KLEstimator
    """In the loss k2, whose gradient is that of KL(policy || SL-CAI), or k3, of KL(SL-CAI ||
    policy); k1 has none there."""
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
    score_clip: float | None
    """Scores are held within plus and minus this, in SL-CAI standard deviations, before the
    penalty; null: not at all. Metrics have the raw score."""
    at_cut: AtCut
    """What a response cut at `max_new_tokens` counts as."""
    missing_eos_penalty: float
    """Subtracted from the score of a response cut at `max_new_tokens`, for `at_cut: terminal`."""
    sampler_correction: SamplerCorrection
    """For samples of another engine than the one that trains, or of other roundings: weights that
    are 1 where the two laws agree."""
    sampler_ratio_cap: float
    """The largest weight of a token, for `sampler_correction: truncated`."""
    checkpoint_every: int
    """Rounds between checkpoints."""
    optimizer: OptimizerConfig
    value_adapter: ValueAdapter
    """`own` costs a further forward and backward pass."""
    value_learning_rate: float
    """Of the value head, and of its adapter."""
    value_warmup_iterations: int
    """Rounds in which only the value function learns; with a shared adapter only its head."""
    snapshot_every: int
    """Rounds between the snapshots of the policy that are measured with `phase.gold=true`; the last
    round's policy is one in any case."""
    select: Select
    """Which policy is evaluated and exported; `gold_peak` needs `phase.gold=true`."""

    def __post_init__(self) -> None:
        positive(
            self,
            "num_iterations",
            "rollouts_per_iteration",
            "shard_size",
            "max_new_tokens",
            "temperature",
            "ppo_epochs",
            "num_minibatches",
            "kl_target",
            "kl_horizon",
            "clip_ratio",
            "value_clip",
            "checkpoint_every",
            "snapshot_every",
        )
        not_negative(self, "kl_coef", "value_coef", "missing_eos_penalty", "value_learning_rate")
        not_negative(self, "value_warmup_iterations")
        if self.score_clip is not None:
            positive(self, "score_clip")
        check(
            self.sampler_ratio_cap >= 1,
            f"sampler_ratio_cap must be 1 or more, not {self.sampler_ratio_cap}: below it, tokens "
            "of two laws that agree would be weighed down. Type phase.ppo.sampler_ratio_cap=2",
        )
        fraction(self, "helpfulness_frac", "discount", "gae_lambda")
        check(
            self.num_minibatches <= self.rollouts_per_iteration,
            f"num_minibatches ({self.num_minibatches}) must not exceed "
            f"rollouts_per_iteration ({self.rollouts_per_iteration})",
        )
        check(
            self.value_warmup_iterations < self.num_iterations,
            f"value_warmup_iterations ({self.value_warmup_iterations}) must be below "
            f"num_iterations ({self.num_iterations}), or the policy would never learn",
        )
        check(
            self.kl_where is KLPlace.reward or self.kl_estimator is not KLEstimator.k1,
            "kl_estimator must be k2 or k3 with kl_where=loss: the gradient of k1 is 0 in "
            "expectation whatever the SL-CAI policy is, so it would hold back nothing. Type "
            "phase.ppo.kl_estimator=k2",
        )
        check(
            self.at_cut is AtCut.terminal or self.missing_eos_penalty == 0,
            f"missing_eos_penalty must be 0 with at_cut=bootstrap, not {self.missing_eos_penalty}: "
            "it is taken from the score of a cut response, which then has none. Type "
            "phase.ppo.missing_eos_penalty=0",
        )
