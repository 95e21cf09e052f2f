"""Pairs to compare, and who compares them: the project's own prompts, methods and batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hydra import compose, initialize_config_dir

from cai import constitution, paths
from cai.choices import PrincipleSampling
from cai.constitution import Constitution, Principle
from cai.engines import Engine
from cai.feedback.base import Case, Method
from cai.feedback.build import reader_of
from cai.feedback.multiple_choice import MultipleChoice
from cai.feedback.tuned import Probe, Tuned
from cai.feedback_config import FeedbackConfig, MultipleChoiceConfig, TunedConfig
from cai.models import BaseModel
from cai.schema import to_config
from cai.types import Message

PAIRS = 8
"""One shard of the stage `feedback_check`."""
TRAINED_ON = 2550
"""Rows of the probe's kernel: about as many pairs train the default probe."""


def document() -> Constitution:
    """The constitution of the default run."""
    return constitution.load("default", folder=paths.CONSTITUTIONS)


def cases() -> list[Case]:
    """Tests of the constitution, as the stage `feedback_check` puts them, each of a principle."""
    return [
        Case(
            messages=(Message(role="user", content=principle.tests[0].prompt),),
            response_a=principle.tests[0].better,
            response_b=principle.tests[0].worse,
            principle=principle,
            seed=number,
        )
        for number, principle in enumerate(document().principles[:PAIRS])
    ]


def _config(*overrides: str) -> FeedbackConfig:
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return to_config(compose("config", overrides=list(overrides))).feedback


class SameExamples(MultipleChoice):
    """Multiple choice whose solved examples are the same for every pair."""

    def _shots(self, principle: Principle, rng: random.Random) -> list[Message]:
        return super()._shots(self.constitution.principles[-1], random.Random(0))


def multiple_choice(
    base: BaseModel, *, num_few_shot: int, kind: type[MultipleChoice], engine: Engine | None = None
) -> Method:
    """The paper's method with both orders; examples are drawn per pair unless `kind` does not."""
    config = _config("feedback=multiple_choice", f"feedback.num_few_shot={num_few_shot}")
    assert isinstance(config, MultipleChoiceConfig)
    return kind(
        config,
        generator=engine or base.generator(),
        encoder=base.encoder,
        constitution=document(),
        sampling=PrincipleSampling.weighted,
    )


@dataclass
class _Recorder:
    """An engine that keeps what it is asked."""

    prompts: list[list[int]] = field(default_factory=list)

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        return True

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int]
    ) -> torch.Tensor:
        self.prompts += [list(prompt) for prompt in prompts]
        return torch.zeros(len(prompts), max(candidates) + 1)


def judge_prompts(
    base: BaseModel, *, num_few_shot: int, kind: type[MultipleChoice]
) -> list[list[int]]:
    """What `multiple_choice` asks about the cases, both orders of each one after the other."""
    asked = _Recorder()
    multiple_choice(base, num_few_shot=num_few_shot, kind=kind, engine=asked).judge(cases())
    return asked.prompts


def tuned(base: BaseModel) -> Method:
    """The default method with a probe of the default's size and arbitrary numbers."""
    config = _config()
    assert isinstance(config, TunedConfig)
    reader = reader_of(base, config)
    width = base.model.config.hidden_size

    probe = Probe(
        differences=torch.randn(TRAINED_ON, len(reader.layers) * width).double(),
        principles=torch.randn(TRAINED_ON, width).double(),
        alphas=torch.randn(config.num_folds + 1, TRAINED_ON).double(),
        scale=1.0,
        by_principle=config.by_principle,
        folds={},
    )
    return Tuned(config, reader=reader, probe=probe)
