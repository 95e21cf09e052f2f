"""How long the texts of a run are, in tokens: from its prompts and its tokenizer, before it runs.

Prompts are those of the sets that the run draws from. Responses end early as they like, so they
count with the most tokens that they may have.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cai import data
from cai.choices import DataFormat
from cai.config import Config, DataConfig, DPOPhaseConfig, RLAIFConfig
from cai.constitution import Constitution
from cai.model_config import ModelConfig
from cai.prompts import critique_prompt, revision_prompt
from cai.rlhf_config import RLHFConfig
from cai.roles import roles
from cai.tokens import ChatEncoder
from cai.types import Message, PromptKind

UNKNOWN_PROMPT = 64
"""Tokens of a prompt of a set that is not on this machine yet (`format: hub`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Lengths in tokens."""

    prompt_mean: float
    """Of a prompt with its system turn and template."""
    prompt_longest: int
    context: int
    """The longest prompt and response that a role takes; what is longer is never computed."""
    response: int
    """The most that any sampling of the phase may write."""
    people: int
    """The longest of people's comparisons, prompt and response; 0 without any."""
    critique_request: int
    """What stands around a prompt and its draft when a critique is asked for: worked examples and
    the longest request of a principle."""
    revision_request: int
    """What more there is when a revision is asked for."""


def _lengths(texts: Sequence[str], encoder: ChatEncoder) -> list[int]:
    """Tokens of texts by themselves."""
    return list(map(len, encoder.tokenizer(list(texts), add_special_tokens=False).input_ids))


def _prompts(sources: DataConfig, domain: str | None) -> list[str]:
    """Texts of all prompts of the sets on this machine; of several turns one after the other."""
    kinds = {
        PromptKind.red_team: sources.red_team,
        PromptKind.helpfulness: sources.helpfulness,
        PromptKind.benign: sources.benign,
    }
    found = [
        prompt
        for kind, source in kinds.items()
        if source.format is not DataFormat.hub
        for prompt in data.load_prompts(source, kind=kind, evaluation_frac=sources.evaluation_frac)
    ]
    if domain:
        found += data.load_domain(domain, evaluation_frac=sources.evaluation_frac)
    return ["\n".join(message.content for message in prompt.messages) for prompt in found]


def _people(sources: DataConfig, encoder: ChatEncoder) -> int:
    source = sources.human_comparisons
    if source.path is None or source.format is DataFormat.hub:
        return 0
    longest = 0
    for pair in data.load_comparisons(source):
        asked = encoder.conversation(pair.messages)
        longest = max(
            longest, len(asked) + max(_lengths([pair.response_a, pair.response_b], encoder))
        )
    return longest


def response_limits(section: object) -> list[int]:
    """Every `max_new_tokens` in a section of settings."""
    if not dataclasses.is_dataclass(section):
        parts = list(section.values()) if isinstance(section, dict) else []
        return [limit for part in parts for limit in response_limits(part)]
    own = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        own += [value] if field.name == "max_new_tokens" else response_limits(value)
    return own


LEARNS_PAIRS = (RLAIFConfig, DPOPhaseConfig, RLHFConfig)
"""Phases that read `data.human_comparisons`."""


def texts_of(
    config: Config, document: Constitution, encoder: ChatEncoder, *, num_few_shot: int
) -> Texts:
    """The lengths of a run's texts.

    Args:
        config: The run.
        document: Its constitution.
        encoder: The policy's.
        num_few_shot: Worked examples in front of a request for a critique.
    """
    said = Message(role="user", content="x")
    around = len(encoder.conversation([said], system=config.model.system_prompt)) - 1
    models = [one for one in roles(config).values() if isinstance(one, ModelConfig)]
    context = max(model.max_context for model in models)
    every = _lengths(_prompts(config.data, config.constitution.domain), encoder)
    lengths = [length for length in every if around + length < context]
    critique, revise = (
        max([principle.critique for principle in document.asked], key=len),
        max([principle.revise for principle in document.asked], key=len),
    )
    asked = critique_prompt([said], "x", request=critique, num_few_shot=num_few_shot)
    revised = revision_prompt(asked, critique="x", request=revise)
    requests = [len(encoder.conversation(turns)) for turns in (asked, revised)]
    return Texts(
        prompt_mean=around + (statistics.fmean(lengths) if lengths else UNKNOWN_PROMPT),
        prompt_longest=around + max(lengths, default=UNKNOWN_PROMPT),
        context=context,
        response=max(response_limits(config.phase), default=0),
        people=_people(config.data, encoder) if isinstance(config.phase, LEARNS_PAIRS) else 0,
        critique_request=requests[0],
        revision_request=requests[1] - requests[0],
    )
