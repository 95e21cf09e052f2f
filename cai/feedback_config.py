"""Types of the feedback methods; `cai.config` says what holds for all settings.

One class for each option of the group `feedback`. A member of an ensemble is a whole feedback
method with its own model, label mode and gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import Contrast, Gate, LabelMode, Vote
from cai.model_config import ModelConfig, ServerConfig
from cai.ranges import check, not_negative, positive


@dataclass(kw_only=True, slots=True)
class FeedbackConfig:
    """What every feedback method has."""

    method: str
    model: ModelConfig | None
    """Who judges; null: the phase's `feedback_model`."""
    label: LabelMode
    clamp: float
    """With `label: clamp`, probabilities are held in [clamp, 1 - clamp]; the paper takes 0.4."""
    gate: Gate
    """What happens when the method does not beat chance and "longer wins"."""

    def __post_init__(self) -> None:
        check(0 <= self.clamp < 0.5, f"clamp must be in [0, 0.5), not {self.clamp}")


@dataclass(kw_only=True, slots=True)
class MultipleChoiceConfig(FeedbackConfig):
    """A two-option question, answered by a letter (Bai et al. 2022, sec. 4.1)."""

    both_orders: bool
    """Average both presentation orders (an extension: the paper does not say)."""
    num_few_shot: int
    """Solved tests of other drawn principles before the question; the paper takes 5."""
    calibrate: bool
    """Subtract the log-odds of a content-free pair (contextual calibration, Zhao et al. 2021)."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        not_negative(self, "num_few_shot")


@dataclass(kw_only=True, slots=True)
class ChainOfThoughtConfig(MultipleChoiceConfig):
    """The same question after sampled reasoning; labels are clamped (sec. 4.3)."""

    num_samples: int
    """Chains of thought per presentation, whose probabilities are averaged; the paper takes 1."""
    max_new_tokens: int
    """Of the reasoning."""
    temperature: float
    """0 is greedy."""

    def __post_init__(self) -> None:
        MultipleChoiceConfig.__post_init__(self)
        positive(self, "num_samples", "max_new_tokens")
        not_negative(self, "temperature")


@dataclass(kw_only=True, slots=True)
class LikelihoodConfig(FeedbackConfig):
    """How much likelier a response becomes under the principle; no positions, no letters."""

    contrast: Contrast
    per_token: bool
    """Mean instead of sum over a response's tokens."""
    scale: float
    """Log-odds of the label per nat of difference."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        positive(self, "scale")


@dataclass(kw_only=True, slots=True)
class PointwiseConfig(FeedbackConfig):
    """A yes/no question on each response by itself; the label is the log-odds difference."""

    num_few_shot: int
    """Solved tests of other drawn principles before the question."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        not_negative(self, "num_few_shot")


@dataclass(kw_only=True, slots=True)
class ScoreConfig(FeedbackConfig):
    """A mark from 0 to 10 for each response by itself, as the expected value over the numbers."""

    num_few_shot: int
    """Solved tests of other drawn principles, marked 10 and 0, before the question."""
    calibrate: bool
    """Divide the numbers' probabilities by those of a content-free response."""
    scale: float
    """Log-odds of the label per point of difference."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        not_negative(self, "num_few_shot")
        positive(self, "scale")


@dataclass(kw_only=True, slots=True)
class EndpointConfig(MultipleChoiceConfig):
    """The two-option question put to a server's chat interface."""

    max_new_tokens: int
    """Of the answer, a few; a model that reasons before it answers needs hundreds."""
    server: ServerConfig

    def __post_init__(self) -> None:
        MultipleChoiceConfig.__post_init__(self)
        positive(self, "max_new_tokens")
        check(self.model is None, "model must be null: the server has the model")


@dataclass(kw_only=True, slots=True)
class RandomConfig(FeedbackConfig):
    """A fair coin for every pair; no model is asked."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        check(self.model is None, "model must be null: a coin asks no model")


@dataclass(kw_only=True, slots=True)
class TunedConfig(FeedbackConfig):
    """Trained from the constitution's tests and labelled comparisons; measured held out."""

    comparisons: str | None
    """Labelled comparisons besides the tests: `shipped`, or a file in a form that
    `evaluation.feedback_data` takes; null: the tests alone."""
    max_comparisons: int | None
    """At most so many of them, spread evenly over the file; null: all."""
    comparison_weights: list[float]
    """Candidates for what a comparison counts beside a test; chosen by cross-validation."""
    num_folds: int
    """Cross-validation: a pair it was trained on is judged by the fold that did not see it."""
    max_length: int
    """Prompt, response and question, tokens; longer conversations lose their beginning."""
    depths: list[float]
    """The probe reads the hidden states after these shares of the layers behind a response; of the
    question by itself, those after the middle one."""
    penalty: float
    """L2 penalty of the probe, whose features have unit mean square."""
    by_principle: float
    """How much the probe's direction may depend on the principle."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        check(self.num_folds >= 2, f"num_folds must be at least 2, not {self.num_folds}")
        check(
            bool(self.comparison_weights) and min(self.comparison_weights) >= 0,
            "comparison_weights must be numbers of at least 0, and one at least",
        )
        positive(self, "max_length", "penalty")
        not_negative(self, "by_principle")
        check(
            bool(self.depths) and self.depths[0] > 0 and self.depths[-1] <= 1
            and self.depths == sorted(set(self.depths)),
            "depths must be different numbers in ascending order, above 0 and at most 1, not "
            f"{self.depths}",
        )  # fmt: skip
        if self.max_comparisons is not None:
            positive(self, "max_comparisons")


@dataclass(kw_only=True, slots=True)
class EnsembleConfig(FeedbackConfig):
    """Several methods or models; their disagreement lowers a label's weight."""

    members: dict[str, FeedbackConfig]
    """Whole feedback methods, each of its own class: `dict[str, FeedbackConfig]` takes and keeps
    any of them, and a key that a member's class does not have is an error."""
    vote: Vote

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        check(len(self.members) > 1, "members must be at least two; see feedback/ensemble.yaml")
        check(self.model is None, "model must be null: every member has its own")
        for name, member in self.members.items():
            check(
                not isinstance(member, EnsembleConfig),
                f"members.{name} is an ensemble: put its members here instead",
            )
