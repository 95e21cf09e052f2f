"""Features of questions behind responses: branches do not see each other."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from cai.feedback.features import QUESTIONS_AT_ONCE, Asked, Reader, trunk_of
from cai.tokens import ChatEncoder
from cai.types import Message
from tests.conftest import byte_tokenizer
from tests.tiny import tiny_model

ENCODER = ChatEncoder(byte_tokenizer())
FIRST = (Message(role="user", content="hello there"),)
SECOND = (Message(role="user", content="x" * 30),)
ASKED = [
    Asked(messages=messages, response=response, question=question)
    for messages, responses in [
        (FIRST, ("one answer", "another, longer answer")),
        (SECOND, ("short", "y" * 40)),
    ]
    for response, question in itertools.product(responses, ("Is it kind?", "Which is shorter?"))
]


def reader(**changes: object) -> Reader:
    values = {
        "trunk": trunk_of(tiny_model(), 2),
        "encoder": ENCODER,
        "layers": (1, 2),
        "max_length": 200,
    }
    return Reader(**(values | changes))


def slow(asked: Asked) -> torch.Tensor:
    """One question behind one response, alone through the model's first layer."""
    before = ENCODER.conversation(asked.messages) + ENCODER.text_ids(asked.response)
    question = ENCODER.text_ids(f"\n\n{asked.question}")
    states = tiny_model()(torch.tensor([before + question]), output_hidden_states=True)
    own = states.hidden_states[1][0, len(before) :]
    return (own / own.norm(dim=-1, keepdim=True)).mean(0)


@torch.no_grad()
def test_a_row_is_what_its_question_behind_its_response_alone_is() -> None:
    features = reader().read(ASKED)
    width = features.shape[1] // 2  # the last layer of the whole model has a norm behind it
    for row, asked in zip(features, ASKED, strict=True):
        assert torch.allclose(row[:width], slow(asked), atol=1e-5)


@torch.no_grad()
def test_a_row_does_not_depend_on_what_else_is_asked() -> None:
    together = reader().read(ASKED)
    alone = torch.cat([reader().read([asked]) for asked in ASKED])
    assert torch.allclose(together, alone, atol=1e-5)
    turned = reader().read(ASKED[::-1] + ASKED[:3])
    assert torch.allclose(turned[: len(ASKED)].flip(0), together, atol=1e-5)
    assert torch.equal(turned[len(ASKED) :], turned[: len(ASKED)].flip(0)[:3])
    assert (together[:, None] - together).abs().amax(-1).fill_diagonal_(1.0).min() > 1e-4


@torch.no_grad()
def test_many_questions_are_several_sequences() -> None:
    many = [
        dataclasses.replace(ASKED[0], question=f"Is it number {k}?")
        for k in range(2 * QUESTIONS_AT_ONCE + 1)
    ]
    read = reader().read(many)
    assert torch.allclose(read[-1], slow_both(many[-1]), atol=1e-5)
    assert torch.allclose(read[3], slow_both(many[3]), atol=1e-5)


def slow_both(asked: Asked) -> torch.Tensor:
    return reader().read([asked])[0]


@torch.no_grad()
def test_a_long_conversation_loses_its_beginning() -> None:
    long = Asked(
        messages=(Message(role="user", content="z" * 500 + "hello there"),),
        response="one answer",
        question="Is it kind?",
    )
    cut = reader(max_length=60).read([long])
    assert torch.isfinite(cut).all()
    longer = dataclasses.replace(
        long, messages=(Message(role="user", content="z" * 600 + "hello there"),)
    )
    assert torch.allclose(cut, reader(max_length=60).read([longer]), atol=1e-6)
    assert not torch.allclose(cut, reader(max_length=900).read([long]), atol=1e-4)


def test_the_trunk_shares_weights_and_leaves_the_model_whole() -> None:
    model = tiny_model()
    before = len(model.model.layers)
    trunk = trunk_of(model, 1)
    assert len(trunk.layers) == 1
    assert len(model.model.layers) == before
    assert trunk.layers[0] is model.model.layers[0]
    with pytest.raises(ValueError, match="layers"):
        trunk_of(model, before + 1)


@torch.no_grad()
def test_a_second_trunk_of_the_same_model_reads_the_same() -> None:
    model = tiny_model()
    model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    first = reader(trunk=trunk_of(model, 2)).read(ASKED)
    second = reader(trunk=trunk_of(model, 2)).read(ASKED)
    assert torch.equal(first, second)
    assert torch.equal(first, reader().read(ASKED))


@torch.no_grad()
def test_a_text_is_the_mean_direction_of_its_tokens_without_the_one_before_them() -> None:
    one = reader(layers=(1,))
    ids = [ENCODER.eos_id, *ENCODER.text_ids("abcd")]
    states = tiny_model()(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, 1:]
    expected = (states / states.norm(dim=-1, keepdim=True)).mean(0)
    assert torch.allclose(one.read_text("abcd"), expected, atol=1e-6)
    assert torch.isfinite(one.read_text("a")).all()
    # One huge state, such as real models have, moves the mean by one token's part and no more.
    huge = trunk_of(tiny_model(), 1)
    huge.layers[0].register_forward_hook(lambda _module, _inputs, out: _enlarged(out))
    moved = reader(trunk=huge, layers=(1,)).read_text("abcd")
    assert torch.allclose(moved, expected, atol=1e-5)


def _enlarged(out: object) -> object:
    states = out[0] if isinstance(out, tuple) else out
    assert isinstance(states, torch.Tensor)
    states[:, :2] *= 300
    return out
