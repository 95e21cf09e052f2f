"""From a run's settings to what its stages are sized with."""

from __future__ import annotations

from collections.abc import Iterator

from cai.choices import EngineName, Strategy
from cai.config import Config, RLAIFConfig, SLCAIConfig
from cai.constitution import Constitution
from cai.errors import ConfigError, UserError
from cai.feedback_config import (
    EndpointConfig,
    EnsembleConfig,
    FeedbackConfig,
    LikelihoodConfig,
    RandomConfig,
    TunedConfig,
)
from cai.model_config import ModelConfig
from cai.roles import Asked, roles, trained_roles
from cai.sizes import memory
from cai.sizes.device import device_memory, place_of
from cai.sizes.memory import Memory
from cai.sizes.shape import Shape, model_shape, model_tokenizer
from cai.sizes.text import gigabytes
from cai.sizes.texts import texts_of
from cai.sizes.work import Judge, Scene, Trained
from cai.tokens import ChatEncoder

JUDGES = ("feedback model", "judge of policies")
"""What roles are called that compare."""


_shapes: dict[tuple[str, str, str | None], Shape] = {}
"""Found so far in this process."""


def shape_of_model(model: ModelConfig) -> Shape:
    """A configured model's shape, found once."""
    name = _name(model)
    if name not in _shapes:
        _shapes[name] = model_shape(model)
    return _shapes[name]


def _here(asked: Asked) -> bool:
    """Whether a role is computed in this process by transformers."""
    return isinstance(asked, ModelConfig) and asked.engine.name is EngineName.transformers


def _name(model: ModelConfig) -> tuple[str, str, str | None]:
    return str(model.source), model.path, model.revision


def loaded(config: Config) -> dict[tuple[str, str, str | None], Shape]:
    """Every base that a run loads into this process, once."""
    asked = [one for one in roles(config).values() if isinstance(one, ModelConfig)]
    if isinstance(config.phase, SLCAIConfig):
        asked.append(config.model)  # it is trained here, whatever samples from it
    here = [one for one in asked if _here(one) or one is config.model]
    return {_name(one): shape_of_model(one) for one in here}


def _other_engines(config: Config, number_bytes: int) -> int:
    """Bytes of a device that vLLM takes: its own weights, and what it is given for keys."""
    taken = 0
    models = {_name(one): one for one in roles(config).values() if isinstance(one, ModelConfig)}
    for model in models.values():
        if (vllm := model.engine.vllm) is not None:
            weights = shape_of_model(model).parameters * number_bytes
            taken += weights // vllm.num_devices + round(vllm.kv_cache_gib * 2**30)
    return taken


def check_weights(config: Config) -> None:
    """Refuse bases whose weights alone are larger than the device, before they are downloaded.

    Raises:
        UserError: with what to type instead.
    """
    limit, place = device_memory(config.hardware), place_of(config.hardware)
    shapes = list(loaded(config).values())
    if limit is None or not config.hardware.check_memory or not shapes:
        return
    needed = (memory.process_memory(place) + memory.base_memory(shapes, place)).total
    if needed > limit:
        raise UserError(
            f"The weights alone need {gigabytes(needed)} ({sum(s.parameters for s in shapes):,} "
            f"parameters of {place.number_bytes} bytes), and the device has {gigabytes(limit)}. "
            "Choose a smaller model"
            + (", or type hardware.precision=bf16" if place.number_bytes == memory.FLOAT else "")
            + ". To try it all the same: hardware.check_memory=false"
        )


def check_layers(config: Config) -> None:
    """Refuse what is done layer by layer for a model whose layers nobody knows.

    Raises:
        ConfigError: with what to type instead.
    """
    hardware = config.hardware
    by_layer = hardware.strategy is Strategy.fsdp or hardware.activation_checkpointing
    if not by_layer or not isinstance(config.phase, SLCAIConfig):
        return
    learning = trained_roles(config) | {"policy", "preference model"}
    for role, model in roles(config).items():
        trained_here = role in learning and isinstance(model, ModelConfig)
        if trained_here and not shape_of_model(model).names_layers:
            raise ConfigError(
                f"hardware={hardware.name}: transformers does not say what the layers of "
                f"{model.path} are, so they can neither be split over devices nor be computed "
                "again.\n  Type: hardware.strategy=ddp hardware.activation_checkpointing=false"
            )


def _judges(config: FeedbackConfig, default: ModelConfig) -> Iterator[Judge]:
    """Who is asked in this process by a feedback method."""
    match config:
        case EnsembleConfig():
            for member in config.members.values():
                yield from _judges(member, default)
        case EndpointConfig() | RandomConfig():
            return
        case _:
            model = config.model or default
            if _here(model):
                tuned = config if isinstance(config, TunedConfig) else None
                yield Judge(
                    shape=shape_of_model(model),
                    tuned=tuned,
                    scores=isinstance(config, LikelihoodConfig),
                )


def judges_of(config: Config) -> tuple[Judge, ...]:
    """Who judges in a run: its feedback, and the judge of policies where that is another."""
    if not any(role.startswith(JUDGES) for role in roles(config)):
        return ()
    default = config.phase.feedback_model
    found = list(_judges(config.feedback, default))
    if config.evaluation.judge is not None:
        found += _judges(config.evaluation.judge, default)
    return tuple(found)


def scene_of(config: Config, document: Constitution) -> Scene | None:
    """What the stages of a run share; None for a run that loads no model."""
    place, shapes = place_of(config.hardware), loaded(config)
    phase, asked = config.phase, roles(config)
    models = [one for one in asked.values() if isinstance(one, ModelConfig)]
    if not models:
        return None
    policy = asked.get("policy", models[0])
    assert isinstance(policy, ModelConfig)
    preference = policy
    if isinstance(phase, RLAIFConfig) and phase.preference_base is not None:
        preference = phase.preference_base
    critique, num_few_shot = None, 0
    if isinstance(phase, SLCAIConfig):
        first = next(iter(phase.critique_models.values()))
        critique, num_few_shot = shape_of_model(first), phase.revisions.num_few_shot
    extra = memory.process_memory(place)
    if shapes:
        extra += memory.base_memory(list(shapes.values()), place)
    extra += Memory(copies=_other_engines(config, place.number_bytes))
    return Scene(
        place=place,
        policy=Trained(shape=shape_of_model(policy), lora=policy.trained),
        preference=Trained(shape=shape_of_model(preference), lora=preference.trained),
        critique=critique,
        judges=judges_of(config),
        extra=extra,
        loading=memory.largest(
            [memory.loading_memory(shape, place) for shape in shapes.values()] or [Memory()]
        ),
        texts=texts_of(
            config,
            document,
            ChatEncoder(model_tokenizer(policy)),
            num_few_shot=num_few_shot,
        ),
        micro_batch_size=config.hardware.micro_batch_size,
        spare=policy.lora,
    )
