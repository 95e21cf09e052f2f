"""Middle-layer features of a question asked about a response, from a frozen model.

What a small model knows about a response is in its middle layers long before it can say it: asked
in words it answers at chance, read by a linear probe it does not (README, table of methods). So the
question is put behind the response, and what the model makes of it is read off the question's own
tokens: they see the conversation and the response, and an answer is never waited for. One pass
through the first layers; all responses to a conversation and all questions about them share it.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from cai.tokens import ChatEncoder
from cai.types import Message

BATCH = 8
"""Sequences per forward pass, of similar length."""
QUESTIONS_AT_ONCE = 16
"""Questions about one conversation's responses in one sequence; more make another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about a response to a conversation."""

    messages: tuple[Message, ...]
    response: str
    question: str


def trunk_of(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """The decoder up to a layer, without its last norm; shares its weights with the model.

    Raises:
        ValueError: when the model has no such layer, or is not built as decoder, layers and norm.
    """
    decoder = model.get_decoder()
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
        raise ValueError(f"{type(model).__name__} has no decoder with layers and a norm")
    if not 0 < num_layers <= len(decoder.layers):
        raise ValueError(f"there are {len(decoder.layers)} layers, not {num_layers}")
    trunk = copy.copy(decoder)
    trunk._modules = dict(decoder._modules)
    trunk.layers = nn.ModuleList(list(decoder.layers)[:num_layers])
    trunk.norm = nn.Identity()
    return trunk.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads features off one model at one layer."""

    trunk: nn.Module
    """Up to the last of `layers`."""
    encoder: ChatEncoder
    layers: tuple[int, ...]
    """Hidden states after so many layers, ascending."""
    max_length: int
    """Prompt plus response, tokens."""

    def read(self, asked: Sequence[Asked]) -> torch.Tensor:
        """Features (n, layers * d) of n questions behind their responses.

        Of each layer the mean direction of the states of the question's tokens. What is asked about
        one conversation shares a sequence: a response sees the conversation, a question the
        conversation and its response, and neither sees others of its kind. Sequences are batched by
        length, so a row's last digits depend on its neighbours.
        """
        trees = [self._tree(part) for part in _parts(asked)]
        trees.sort(key=lambda tree: len(tree.ids))
        rows: dict[Asked, torch.Tensor] = {}
        for start in range(0, len(trees), BATCH):
            batch = trees[start : start + BATCH]
            for tree, states in zip(batch, self._hidden(batch), strict=True):
                rows |= tree.features(states)
        return torch.stack([rows[one] for one in asked]).cpu()

    @property
    def middle(self) -> int:
        """Which of the layers is read for a text by itself."""
        return len(self.layers) // 2

    @torch.inference_mode()
    def read_text(self, text: str) -> torch.Tensor:
        """Mean direction (d,) of the middle layer's states of a text by itself.

        The first token, and sometimes another, has a state some hundred times as long as the others
        (Sun et al. 2024, arXiv:2402.17762): a plain mean says how long the text is, and little
        else. So a token is put before the text and left out, and every state has length 1 before
        the mean.
        """
        ids = [self.encoder.eos_id, *self.encoder.text_ids(text)][: self.max_length]
        states = self._hidden([_Tree(ids=ids, branch=[0] * len(ids), parents=[0], leaves={})])[0]
        return _direction(states[self.middle, 1:]).cpu()

    def _tree(self, asked: Sequence[Asked]) -> _Tree:
        """The end of one conversation, then each response with its questions behind it."""
        questions = {
            one: self.encoder.text_ids(f"\n\n{one.question}")[: self.max_length // 4]
            for one in asked
        }
        responses = {
            text: self.encoder.text_ids(text)[: self.max_length // 2]
            for text in dict.fromkeys(one.response for one in asked)
        }
        longest = sum(max(map(len, texts.values())) for texts in (responses, questions))
        prompt = self.encoder.conversation(asked[0].messages)[longest - self.max_length :]
        tree = _Tree(ids=prompt, branch=[0] * len(prompt), parents=[0], leaves={})
        for text, ids in responses.items():
            own = tree.grow(ids, parent=0)
            for one in asked:
                if one.response == text:
                    tree.leaves[one] = tree.grow(questions[one], parent=own)
        return tree

    @torch.inference_mode()
    def _hidden(self, trees: Sequence[_Tree]) -> torch.Tensor:
        """Hidden states (B, layers, S, d) of right-padded sequences, float32."""
        width = max(len(tree.ids) for tree in trees)
        device = next(self.trunk.parameters()).device
        ids = torch.full((len(trees), width), self.encoder.eos_id)
        positions = torch.zeros_like(ids)
        seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
        for row, tree in enumerate(trees):
            num = len(tree.ids)
            ids[row, :num] = torch.tensor(tree.ids)
            positions[row, :num] = tree.positions()
            seen[row, 0, :num, :num] = tree.seen()
        states: dict[int, torch.Tensor] = {}
        with _watched(self.trunk, self.layers, states):
            self.trunk(
                input_ids=ids.to(device),
                attention_mask=seen.to(device),
                position_ids=positions.to(device),
                use_cache=False,
            )
        return torch.stack([states[layer] for layer in self.layers], dim=1).float()


@contextlib.contextmanager
def _watched(
    trunk: nn.Module, layers: Sequence[int], states: dict[int, torch.Tensor]
) -> Iterator[None]:
    """Keep what some layers return while the block runs.

    `output_hidden_states` would do, but installs hooks for good, once for every trunk that shares
    the layers: the second trunk's list then has every state twice.
    """

    def keep(layer: int) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found = output[0] if isinstance(output, tuple) else output
            assert isinstance(found, torch.Tensor)
            states[layer] = found

        return hook

    handles = [trunk.layers[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(asked: Sequence[Asked]) -> list[list[Asked]]:
    """What is read in one sequence: different questions about one conversation's responses."""
    by_messages: dict[tuple[Message, ...], list[Asked]] = defaultdict(list)
    for one in dict.fromkeys(asked):
        by_messages[one.messages].append(one)
    return [
        own[start : start + QUESTIONS_AT_ONCE]
        for own in by_messages.values()
        for start in range(0, len(own), QUESTIONS_AT_ONCE)
    ]


def _direction(states: torch.Tensor) -> torch.Tensor:
    """Mean over tokens (..., d) of states (..., S, d) brought to length 1."""
    return functional.normalize(states, dim=-1).mean(-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """A conversation and what branches off it, in one sequence: responses, and questions off them.

    Branch 0 is the conversation.
    """

    ids: list[int]
    branch: list[int]
    """Of each token."""
    parents: list[int]
    """Of each branch; the conversation is its own."""
    leaves: dict[Asked, int]
    """Branch of each question."""

    def grow(self, ids: Sequence[int], *, parent: int) -> int:
        """Add a branch behind another and return its number."""
        number = len(self.parents)
        self.ids.extend(ids)
        self.branch.extend([number] * len(ids))
        self.parents.append(parent)
        return number

    def positions(self) -> torch.Tensor:
        """(S,): every branch goes on where its parent ends."""
        ends: list[int] = []
        found = []
        for number, parent in enumerate(self.parents):
            start = ends[parent] if number else 0
            length = self.branch.count(number)
            found.append(start + torch.arange(length))
            ends.append(start + length)
        return torch.cat(found)

    def seen(self) -> torch.Tensor:
        """(S, S) bool: a token sees its branch up to itself, and the branches that led to it."""
        leads = torch.eye(len(self.parents), dtype=torch.bool)
        for number, parent in enumerate(self.parents):
            leads[number] |= leads[parent]
        branch = torch.tensor(self.branch)
        size = len(self.branch)
        return leads[branch][:, branch] & torch.ones(size, size, dtype=torch.bool).tril()

    def features(self, states: torch.Tensor) -> dict[Asked, torch.Tensor]:
        """(layers * d,) of each question, from hidden states (layers, S, d)."""
        branch = torch.tensor(self.branch, device=states.device)
        own = states[:, : len(self.branch)]
        return {
            one: _direction(own[:, branch == number]).flatten()
            for one, number in self.leaves.items()
        }
