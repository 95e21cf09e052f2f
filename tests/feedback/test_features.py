"""Features of responses: branches do not see each other, batches and layers change nothing."""

from __future__ import annotations

import pytest
import torch

from cai.feedback.features import OPENING, Reader, trunk_of
from cai.tokens import ChatEncoder
from cai.types import Message
from tests.conftest import byte_tokenizer
from tests.tiny import tiny_model

ENCODER = ChatEncoder(byte_tokenizer())
ASKED = [
    ((Message(role="user", content="hello there"),), ("one answer", "another, longer answer")),
    ((Message(role="user", content="x" * 30),), ("short", "y" * 40)),
]


def reader(**changes: object) -> Reader:
    values = {
        "trunk": trunk_of(tiny_model(), 2),
        "encoder": ENCODER,
        "layers": (1, 2),
        "max_length": 200,
    }
    return Reader(**(values | changes))


def slow(messages: tuple[Message, ...], response: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One response alone through the whole model."""
    prompt = ENCODER.conversation(messages)
    answer = ENCODER.text_ids(response)
    states = tiny_model()(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    parts = []
    for layer in (1, 2):
        own = states[layer][0, len(prompt) :]
        parts += [own[:OPENING].mean(0), own.mean(0)]
    return torch.cat(parts), states[2][0, len(prompt) - 1]


@torch.no_grad()
def test_branches_are_what_each_response_alone_is() -> None:
    features = reader().read(ASKED)
    expected = [slow(messages, text) for messages, texts in ASKED for text in texts]
    # The last layer of the whole model has the final norm behind it; layer 1 has not.
    width = features.response.shape[1] // 2
    for row, (response, _) in enumerate(expected):
        assert torch.allclose(features.response[row, :width], response[:width], atol=1e-5)


@torch.no_grad()
def test_a_response_does_not_depend_on_the_others_beside_it() -> None:
    (messages, (first, second)), _ = ASKED
    together = reader().read([(messages, (first, second))])
    alone = reader().read([(messages, (first,)), (messages, (second,))])
    assert torch.allclose(together.response, alone.response, atol=1e-5)
    assert torch.allclose(together.context, alone.context, atol=1e-5)
    turned = reader().read([(messages, (second, first))])
    assert torch.allclose(turned.response.flip(0), together.response, atol=1e-5)


@torch.no_grad()
def test_batches_and_padding_change_nothing() -> None:
    together = reader().read(ASKED * 6)
    for row, asked in enumerate(ASKED):
        alone = reader().read([asked])
        assert torch.allclose(alone.response, together.response[2 * row : 2 * row + 2], atol=1e-5)


@torch.no_grad()
def test_a_long_conversation_loses_its_beginning() -> None:
    (messages, texts), _ = ASKED
    long = (Message(role="user", content="z" * 500 + "hello there"),)
    cut = reader(max_length=60).read([(long, texts)])
    assert torch.isfinite(cut.response).all()
    assert not torch.allclose(cut.context, reader().read([(messages, texts)]).context)


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
    assert torch.equal(first.response, second.response)
    assert torch.equal(first.response, reader().read(ASKED).response)


@torch.no_grad()
def test_a_prompt_is_the_mean_direction_of_its_tokens_without_the_one_before_them() -> None:
    one = reader(layers=(1,))
    ids = [ENCODER.eos_id, *ENCODER.text_ids("abcd")]
    states = tiny_model()(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, 1:]
    expected = (states / states.norm(dim=-1, keepdim=True)).mean(0)
    assert torch.allclose(one.read_prompt("abcd"), expected, atol=1e-6)
    assert torch.isfinite(one.read_prompt("a")).all()
    # One huge state, such as real models have, moves the mean by one token's part and no more.
    huge = trunk_of(tiny_model(), 1)
    huge.layers[0].register_forward_hook(lambda _module, _inputs, out: _enlarged(out))
    moved = reader(trunk=huge, layers=(1,)).read_prompt("abcd")
    assert torch.allclose(moved, expected, atol=1e-5)


def _enlarged(out: object) -> object:
    states = out[0] if isinstance(out, tuple) else out
    assert isinstance(states, torch.Tensor)
    states[:, :2] *= 300
    return out
