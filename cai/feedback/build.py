"""From settings to a method: what each needs, and what identifies its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cai.artifacts import Artifact, digest_of
from cai.choices import PrincipleSampling
from cai.constitution import Constitution
from cai.feedback.base import Method
from cai.feedback.multiple_choice import MultipleChoice
from cai.feedback_config import FeedbackConfig, MultipleChoiceConfig
from cai.model_config import ModelConfig
from cai.models import Models, role_key
from cai.prompts import comparison_wording

USE_ONLY = ("gate", "model")
"""Settings of a method that do not change what it answers, or that `identity` names by content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What methods are built from."""

    models: Models
    model: ModelConfig
    """The phase's feedback model, for methods without one of their own."""
    constitution: Constitution
    sampling: PrincipleSampling
    fitted: Mapping[str, Artifact]
    """What tuned methods were trained to, by member name; "" outside an ensemble."""


def build(config: FeedbackConfig, around: Surroundings, *, member: str = "") -> Method:
    """The method that a feedback section asks for."""
    base = around.models.base(config.model or around.model)
    match config:
        case MultipleChoiceConfig():
            return MultipleChoice(
                config,
                generator=base.generator(),
                encoder=base.encoder,
                constitution=around.constitution,
                sampling=around.sampling,
            )
        case _:
            raise AssertionError(f"no feedback method for {type(config).__name__}")


def identity(config: FeedbackConfig, model: ModelConfig) -> dict[str, Any]:
    """What decides a method's answers, for a stage's digest."""
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in USE_ONLY
    }
    return {
        "settings": settings,
        "model": role_key(config.model or model),
        "wording": digest_of(comparison_wording()),
    }
