"""From settings to a method: what each needs, and what identifies its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.artifacts import Artifact, digest_of
from cai.choices import PrincipleSampling, Vote
from cai.constitution import Constitution
from cai.endpoint import Client
from cai.errors import UserError
from cai.feedback.base import Method
from cai.feedback.chain_of_thought import ChainOfThought
from cai.feedback.endpoint import Endpoint
from cai.feedback.endpoint import wording as endpoint_wording
from cai.feedback.ensemble import Ensemble
from cai.feedback.features import Reader, trunk_of
from cai.feedback.likelihood import Likelihood
from cai.feedback.multiple_choice import MultipleChoice
from cai.feedback.pointwise import Pointwise
from cai.feedback.random import Random
from cai.feedback.score import Score
from cai.feedback.single import Examples
from cai.feedback.tuned import FOLDS, PROBE, Probe, Tuned
from cai.feedback.wording import (
    CONTENT_FREE,
    likelihood_wording,
    pointwise_wording,
    reasoning_wording,
    score_wording,
)
from cai.feedback_config import (
    ChainOfThoughtConfig,
    EndpointConfig,
    EnsembleConfig,
    FeedbackConfig,
    LikelihoodConfig,
    MultipleChoiceConfig,
    PointwiseConfig,
    RandomConfig,
    ScoreConfig,
    TunedConfig,
)
from cai.model_config import ModelConfig
from cai.models import BaseModel, Models, role_key
from cai.prompts import comparison_wording
from cai.types import FeedbackCheck

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
    """What tuned methods were trained to, by member name; "" outside an ensemble. Of an ensemble
    with `vote: reliability`, "" is the `feedback_check` that its members' weights come from."""


def build(config: FeedbackConfig, around: Surroundings, *, member: str = "") -> Method:
    """The method that a feedback section asks for."""
    if isinstance(config, EnsembleConfig):
        return _ensemble(config, around)
    if isinstance(config, EndpointConfig):
        return Endpoint(
            config,
            client=Client(config.server),
            constitution=around.constitution,
            sampling=around.sampling,
        )
    if isinstance(config, RandomConfig):
        return Random(config)
    base = around.models.base(config.model or around.model)
    match config:
        case MultipleChoiceConfig():
            kind = ChainOfThought if isinstance(config, ChainOfThoughtConfig) else MultipleChoice
            return kind(
                config,
                generator=base.generator(),
                encoder=base.encoder,
                constitution=around.constitution,
                sampling=around.sampling,
            )
        case LikelihoodConfig():
            return Likelihood(config, engine=base.generator(), encoder=base.encoder)
        case PointwiseConfig() | ScoreConfig():
            judge = Pointwise if isinstance(config, PointwiseConfig) else Score
            return judge(
                config,
                engine=base.generator(),
                encoder=base.encoder,
                examples=Examples(
                    constitution=around.constitution,
                    sampling=around.sampling,
                    num=config.num_few_shot,
                ),
            )
        case TunedConfig():
            fitted = around.fitted[member]
            return Tuned(
                config,
                reader=reader_of(base, config),
                probe=Probe.load(fitted.file(PROBE), fitted.file(FOLDS)),
            )
        case _:
            raise AssertionError(f"no feedback method for {type(config).__name__}")


def _ensemble(config: EnsembleConfig, around: Surroundings) -> Ensemble:
    members = {name: build(config.members[name], around, member=name) for name in _names(config)}
    ensemble = Ensemble(config, members=members)
    if config.vote is not Vote.reliability or "" not in around.fitted:
        return ensemble
    return ensemble.measured_on(around.fitted[""].records(FeedbackCheck))


def _names(config: EnsembleConfig) -> list[str]:
    """An ensemble's members in one order, however they were written."""
    return sorted(config.members)


def reader_of(base: BaseModel, config: TunedConfig) -> Reader:
    """What reads features for a tuned method.

    Raises:
        UserError: when the model is not built of layers that can be read.
    """
    num_layers = base.model.config.get_text_config().num_hidden_layers
    layers = sorted({max(1, round(depth * num_layers)) for depth in config.depths})
    try:
        trunk = trunk_of(base.model, layers[-1])
    except ValueError as error:
        raise UserError(
            f"feedback=tuned cannot read {base.config.name}: {error}. Name another "
            "phase.feedback_model or another feedback method"
        ) from error
    return Reader(
        trunk=trunk,
        encoder=base.encoder,
        layers=tuple(layers),
        max_length=config.max_length,
    )


def identity(config: FeedbackConfig, model: ModelConfig) -> dict[str, Any]:
    """What decides a method's answers, for a stage's digest."""
    if isinstance(config, EnsembleConfig):
        return {
            "settings": {"vote": config.vote, "label": config.label, "clamp": config.clamp},
            "members": {name: identity(config.members[name], model) for name in _names(config)},
        }
    settings = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in USE_ONLY
    }
    if isinstance(config, EndpointConfig):
        server = {"url": config.server.url, "model": config.server.model}
        return {
            "settings": settings | {"server": server},
            "wording": digest_of([comparison_wording(), endpoint_wording()]),
        }
    if isinstance(config, RandomConfig):
        return {"settings": settings}
    return {
        "settings": settings,
        "model": role_key(config.model or model),
        "wording": digest_of(_wording(config)),
    }


def judges_in(identity: Mapping[str, Any]) -> frozenset[str]:
    """Who judges, by `identity`: each member's method and its model or server."""
    if "members" in identity:
        return frozenset().union(*(judges_in(one) for one in identity["members"].values()))
    settings = identity["settings"]
    asked = identity.get("model", settings.get("server"))
    return frozenset({digest_of([settings["method"], asked])})


def _wording(config: FeedbackConfig) -> Sequence[object]:
    """All that a method says."""
    match config:
        case ChainOfThoughtConfig():
            return [comparison_wording(), CONTENT_FREE, reasoning_wording()]
        case MultipleChoiceConfig():
            return [comparison_wording(), CONTENT_FREE]
        case LikelihoodConfig():
            return likelihood_wording()
        case PointwiseConfig():
            return pointwise_wording()
        case ScoreConfig():
            return score_wording()
        case _:
            return comparison_wording()
