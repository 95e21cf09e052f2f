"""Types of the phases that learn from comparisons by people; `cai.config` says what holds for all.

Settings of RLHF are flat in `phase=rlhf` and the section `rlhf` in `phase=hybrid`, so that the same
values give the same digests in both.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import Condition, Select
from cai.config import PhaseConfig, PromptsConfig, RLAIFConfig
from cai.evaluation_config import SamplingConfig
from cai.model_config import ModelConfig
from cai.ranges import check, positive
from cai.training_config import DPOConfig, FineTuneConfig, PPOConfig, PreferenceModelConfig


@dataclass(kw_only=True, slots=True)
class RLHFTrainingConfig:
    """From comparisons by people to a policy; the preference model is on the policy's base."""

    sft: FineTuneConfig
    """Fine-tune on the preferred responses; what PPO starts from and is held to."""
    samples: SamplingConfig
    """Of that policy's responses to training prompts, which put the scores on a scale."""
    preference_model: PreferenceModelConfig
    ppo: PPOConfig

    def __post_init__(self) -> None:
        model = self.preference_model
        check(
            model.condition is Condition.none,
            "preference_model.condition must be none: people's comparisons name no principle that "
            "it could read",
        )
        check(
            model.human_frac is None,
            "preference_model.human_frac must be null: all of the comparisons are by people",
        )
        check(
            self.ppo.select is Select.final,
            f"ppo.select={self.ppo.select} needs a gold preference model, which only phase=rlaif "
            "trains; type ppo.select=final",
        )


@dataclass(kw_only=True, slots=True)
class RLHFConfig(PhaseConfig):
    """Comparisons by people, preference model, PPO: the baseline of every claim about CAI."""

    start: str | None
    """The policy that it begins with, instead of a fine-tune on the preferred responses: the folder
    of an adapter as this project saves it, or of a finished run."""
    feedback_model: ModelConfig
    """Who judges the policies; it labels nothing that is learned from."""
    prompts: PromptsConfig
    sft: FineTuneConfig
    """Fine-tune on the preferred responses; what PPO starts from and is held to."""
    samples: SamplingConfig
    """Of that policy's responses to training prompts, which put the scores on a scale."""
    preference_model: PreferenceModelConfig
    ppo: PPOConfig

    def __post_init__(self) -> None:
        _ = self.training  # its checks

    @property
    def training(self) -> RLHFTrainingConfig:
        """What `phase=hybrid` has in its section `rlhf`."""
        return RLHFTrainingConfig(
            sft=self.sft,
            samples=self.samples,
            preference_model=self.preference_model,
            ppo=self.ppo,
        )


@dataclass(kw_only=True, slots=True)
class HybridConfig(RLAIFConfig):
    """RLHF, then both phases of Constitutional AI on its policy, then people on edge cases."""

    rlhf: RLHFTrainingConfig
    """As in `phase=rlhf`; `start` is what it begins with."""
    num_edge_cases: int
    """AI comparisons that are listed for people, at most: those that CAI is least sure of."""
    edge_threshold: float
    """|P(a preferred) - 1/2| above which a label is an opinion, as `audit.threshold`."""
    labels: str | None
    """The run's `edge_cases.jsonl` with labels; null: the run ends with listing them."""
    edge_dpo: DPOConfig
    """The last fine-tune, on these labels."""

    def __post_init__(self) -> None:
        RLAIFConfig.__post_init__(self)
        positive(self, "num_edge_cases")
        check(
            0 <= self.edge_threshold < 0.5,
            f"edge_threshold must be in [0, 0.5), not {self.edge_threshold}",
        )
        check(
            self.edge_dpo.human_frac is None and self.edge_dpo.validation_frac == 0,
            "edge_dpo.human_frac must be null and edge_dpo.validation_frac 0: every label of an "
            "edge case is by people and is learned from",
        )
