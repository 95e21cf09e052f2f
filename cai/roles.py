"""Which models a run asks, by role; a model that is configured and never asked is none of them."""

from __future__ import annotations

from cai.choices import EngineName
from cai.config import (
    AuditPhaseConfig,
    ComparedConfig,
    Config,
    EvaluateConfig,
    MatrixConfig,
    RLAIFConfig,
    SLCAIConfig,
)
from cai.critique_config import CritiqueModelConfig, CritiqueRLConfig
from cai.feedback_config import EndpointConfig, EnsembleConfig, FeedbackConfig, RandomConfig
from cai.model_config import ModelConfig, ServerConfig
from cai.rlhf_config import RLHFConfig

Asked = ModelConfig | ServerConfig
"""A model, or a server that has one."""


def roles(config: Config) -> dict[str, Asked]:
    """Every role that the run has work for, the policy first."""
    phase = config.phase
    found: dict[str, Asked] = {}
    if isinstance(phase, SLCAIConfig):
        found["policy"] = config.model
        critics = phase.critique_models.items()
        found |= {f"critique model ({name})": model for name, model in critics}
    if isinstance(phase, RLAIFConfig) and phase.preference_base is not None:
        found["preference model"] = phase.preference_base
    if isinstance(phase, RLHFConfig):
        found["policy"] = config.model
    learns = isinstance(phase, ComparedConfig | CritiqueModelConfig | CritiqueRLConfig)
    revises = isinstance(phase, SLCAIConfig) and phase.revisions.asks_feedback
    compares = learns or revises or config.evaluation.asks_feedback
    if isinstance(phase, EvaluateConfig) or (isinstance(phase, SLCAIConfig) and compares):
        found |= feedback_roles(config.feedback, phase.feedback_model)
    if isinstance(phase, RLHFConfig) and _plays(config):
        found |= feedback_roles(config.feedback, phase.feedback_model)
    if config.evaluation.judge is not None and _plays(config):
        judge = config.evaluation.judge
        found |= feedback_roles(judge, phase.feedback_model, role="judge of policies")
    if isinstance(phase, AuditPhaseConfig) and config.audit.num_pairs > 0:
        if config.audit.pairs_from is None:
            found["policy"] = config.model
        found |= feedback_roles(config.feedback, phase.feedback_model)
    return found


def served_roles(config: Config) -> dict[str, Asked]:
    """Roles that a server or vLLM has."""
    return {
        name: one
        for name, one in roles(config).items()
        if isinstance(one, ServerConfig) or one.engine.name is not EngineName.transformers
    }


def trained_roles(config: Config) -> set[str]:
    """Roles that adapters are trained for, which are then sampled from."""
    phase, found = config.phase, set()
    if isinstance(phase, CritiqueModelConfig | CritiqueRLConfig):
        found |= {name for name in roles(config) if name.startswith("critique model")}
    if isinstance(phase, SLCAIConfig | RLHFConfig) and not isinstance(phase, CritiqueModelConfig):
        found.add("policy")
    return found


def _plays(config: Config) -> bool:
    """Whether policies meet in a tournament."""
    if isinstance(config.phase, EvaluateConfig):
        return config.evaluation.elo.runs is not None
    if isinstance(config.phase, RLHFConfig):
        return config.evaluation.elo.num_prompts > 0
    trains = isinstance(config.phase, SLCAIConfig) and not isinstance(config.phase, MatrixConfig)
    return trains and config.evaluation.elo.num_prompts > 0


def feedback_roles(
    config: FeedbackConfig, default: ModelConfig, *, role: str = "feedback model"
) -> dict[str, Asked]:
    """Who judges: one role, or one for each member of an ensemble.

    Args:
        config: The feedback method.
        default: The phase's feedback model, for methods without one of their own.
        role: What the role is called.
    """
    match config:
        case EnsembleConfig():
            found: dict[str, Asked] = {}
            for name, member in config.members.items():
                found |= feedback_roles(member, default, role=f"feedback model ({name})")
            return found
        case EndpointConfig():
            return {role: config.server}
        case RandomConfig():
            return {}
        case _:
            return {role: config.model or default}


def name_of(asked: Asked) -> str:
    """How reports call a model."""
    return f"{asked.model} (server)" if isinstance(asked, ServerConfig) else asked.name


def told_of(asked: Asked) -> str:
    """A model's name, and what samples from it and scores with it where that is not this process.

    A policy is trained in this process whatever samples from it.
    """
    if isinstance(asked, ServerConfig) or asked.engine.name is EngineName.transformers:
        return name_of(asked)
    by = f"a server at {asked.engine.server.url}" if asked.engine.server else "vLLM"
    return f"{asked.name} (sampled by {by})"


def judge_name(config: FeedbackConfig, default: ModelConfig) -> str:
    """How reports call a judge: its method and the models that it asks.

    Args:
        config: The feedback method.
        default: The phase's feedback model, for methods without one of their own.
    """
    asked = ", ".join(dict.fromkeys(map(name_of, feedback_roles(config, default).values())))
    return f"{config.method} on {asked}" if asked else config.method
