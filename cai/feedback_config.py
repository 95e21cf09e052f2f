"""Types of the feedback methods; `cai.config` says what holds for all settings.

One class for each option of the group `feedback`. A member of an ensemble is a whole feedback
method with its own model, label mode and gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import Contrast, Gate, LabelMode, TunedKind, Vote
from cai.model_config import ModelConfig
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
class ServerConfig:
    """An OpenAI-compatible server."""

    url: str
    """Up to and including `/v1`."""
    model: str
    """The server's name for the model."""
    key_env: str | None
    """Environment variable that holds the key; null: none is sent."""
    num_parallel: int
    """Requests in flight."""
    requests_per_minute: float
    """0: no limit."""
    max_retries: int
    """After a timeout, a lost connection, status 408, 409, 429 or 5xx; with growing pauses."""
    timeout_seconds: float
    """Of one request."""
    price_input: float
    """US dollars per million tokens, for the cost count."""
    price_output: float

    def __post_init__(self) -> None:
        check(
            self.url.startswith(("http://", "https://")),
            f"url must begin with http:// or https://, not {self.url!r}",
        )
        positive(self, "num_parallel", "timeout_seconds")
        not_negative(self, "requests_per_minute", "max_retries", "price_input", "price_output")


@dataclass(kw_only=True, slots=True)
class EndpointConfig(FeedbackConfig):
    """The two-option question put to a server's chat interface."""

    both_orders: bool
    num_few_shot: int
    server: ServerConfig

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        not_negative(self, "num_few_shot")


@dataclass(kw_only=True, slots=True)
class TunedConfig(FeedbackConfig):
    """Trained from the constitution's tests and labelled comparisons; measured held out."""

    kind: TunedKind
    num_folds: int
    """Cross-validation: a pair it was trained on is judged by the fold that did not see it."""
    max_length: int
    """Prompt plus response, tokens; the beginning of longer conversations is cut off."""

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        check(self.num_folds >= 2, f"num_folds must be at least 2, not {self.num_folds}")
        positive(self, "max_length")


@dataclass(kw_only=True, slots=True)
class EnsembleConfig(FeedbackConfig):
    """Several methods or models; their disagreement lowers a label's weight."""

    members: dict[str, FeedbackConfig]
    vote: Vote

    def __post_init__(self) -> None:
        FeedbackConfig.__post_init__(self)
        check(len(self.members) > 1, "members must be at least two; see feedback/ensemble.yaml")
        check(self.model is None, "model must be null: every member has its own")
