"""Cases, methods and engines that the tests of the feedback methods share."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from cai import paths
from cai.choices import Gate, LabelMode, PrincipleSampling
from cai.constitution import Constitution, load
from cai.engines.transformers import TransformersEngine
from cai.feedback.base import Case, Feedback, Judged, Method, Pair
from cai.feedback.single import Examples
from cai.tokens import ChatEncoder
from cai.types import Comparison, Judgement, Message, Prompt, PromptKind, Split, Unjudged
from tests.conftest import byte_tokenizer
from tests.tiny import tiny_model

BASE = {"model": None, "label": LabelMode.soft, "clamp": 0.4, "gate": Gate.off}
"""What every method's settings have."""


def encoder_with(*words: str) -> ChatEncoder:
    """One token per byte, and one for each of some words."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(words))
    return ChatEncoder(tokenizer)


def tiny_engine(encoder: ChatEncoder) -> TransformersEngine:
    """A random model in float32."""
    return TransformersEngine(tiny_model(), eos_id=encoder.eos_id, max_context=8000)


def examples(constitution: Constitution, num: int = 0) -> Examples:
    return Examples(constitution=constitution, sampling=PrincipleSampling.weighted, num=num)


def case(constitution: Constitution, a: str, b: str, *, number: int = 0) -> Case:
    """A case under one of the principles, or under the question of a document without any."""
    drawn = constitution.draw(random.Random(number), weighted=False)
    return Case(
        messages=(Message(role="user", content=f"PROMPT {number}"),),
        response_a=a,
        response_b=b,
        principle=drawn,
        seed=number,
    )


def unguided() -> Constitution:
    return load("none", folder=paths.CONSTITUTIONS)


def several(constitution: Constitution) -> list[Case]:
    """Cases of very different lengths."""
    texts = [("yes", "no, not at all"), ("a " * 90, "b"), ("c", "d " * 30), ("e", "f")]
    return [case(constitution, a, b, number=i) for i, (a, b) in enumerate(texts)]


def swapped(one: Case) -> Case:
    return dataclasses.replace(one, response_a=one.response_b, response_b=one.response_a)


def only(judged: Sequence[Judged]) -> Judgement:
    """The one judgement of one case."""
    (of_case,) = judged
    assert not isinstance(of_case, Unjudged)
    (judgement,) = of_case
    return judgement


def judgements(judged: Sequence[Judged]) -> list[Judgement]:
    """All judgements in order."""
    assert not any(isinstance(of_case, Unjudged) for of_case in judged)
    return [judgement for of_case in judged for judgement in of_case]


def compare(method: Method, constitution: Constitution, a: str, b: str) -> Comparison:
    """A whole comparison under the first principle."""
    feedback = Feedback(
        method=method,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
        seed=3,
    )
    prompt = Prompt(
        id="p",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content="PROMPT"),),
    )
    pair = Pair(prompt=prompt, response_a=a, response_b=b, principles=constitution.principles[:1])
    return feedback.compare([pair])[0]
