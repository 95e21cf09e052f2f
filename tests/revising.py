"""Drafts, critique models and settings of revisions for the tests that script them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cai.choices import (
    Adapter,
    Contrast,
    Gate,
    LabelMode,
    ModelSource,
    PrincipleSampling,
    RevisionVote,
    Until,
)
from cai.config import RevisionsConfig, SamplingConfig
from cai.constitution import Constitution
from cai.critique import Reviser
from cai.feedback_config import LikelihoodConfig
from cai.model_config import ModelConfig
from cai.revising import Alone, Chains
from cai.tokens import ChatEncoder
from cai.types import Message, Prompt, PromptKind, Response, RevisionChain, Sample, Split
from tests.conftest import byte_tokenizer
from tests.scripted import ScriptedGenerator
from tests.tiny import LORA, engine

ENCODER = ChatEncoder(byte_tokenizer())


def draft(text: str = "first answer", number: int = 0, **changes: Any) -> Response:
    prompt = Prompt(
        id=f"p{number}",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content="PROMPT"),),
    )
    sample = Sample(text=text, num_tokens=3, logprob=-1.0, finished=True, seed=0)
    return Response(prompt=replace(prompt, **changes), policy="base", index=0, sample=sample)


def model(name: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "source": ModelSource.path,
        "path": name,
        "revision": None,
        "start": None,
        "max_context": 512,
        "system_prompt": None,
        "adapter": Adapter.lora,
        "lora": LORA,
        "engine": engine(),
    }
    return ModelConfig(name=name, **(values | changes))


def likelihood() -> LikelihoodConfig:
    return LikelihoodConfig(
        method="likelihood",
        model=None,
        label=LabelMode.soft,
        clamp=0.4,
        gate=Gate.off,
        contrast=Contrast.none,
        per_token=True,
        scale=10.0,
    )


def revisions_config(**changes: Any) -> RevisionsConfig:
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0, shard_size=4)
    values: dict[str, Any] = {
        "until": Until.fixed,
        "num_revisions": 2,
        "threshold": 0.5,
        "max_rounds": 4,
        "principles_checked": None,
        "vote": RevisionVote.none,
        "vote_method": likelihood(),
        "keep_candidate": False,
        "num_few_shot": 1,
        "critique": sampling,
        "revision": sampling,
    }
    return RevisionsConfig(**(values | changes))


def reviser(
    generator: ScriptedGenerator, constitution: Constitution, *, seed: int = 7, **changes: Any
) -> Reviser:
    return Reviser(
        generator=generator,
        critic=generator,
        encoder=ENCODER,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
        config=revisions_config(**changes),
        seed=seed,
    )


def revise(
    generator: ScriptedGenerator,
    constitution: Constitution,
    drafts: list[Response],
    num_revisions: int = 2,
) -> list[RevisionChain]:
    """Chains of one critique model under drawn principles."""
    alone = Alone(reviser=reviser(generator, constitution))
    chains = Chains(editor=alone, num_steps=num_revisions, checker=None)
    return [revised.chain for revised in chains.revise(drafts, lambda _: None)]
