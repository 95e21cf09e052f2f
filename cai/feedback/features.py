"""Middle-layer features of a response in its conversation, from a frozen model.

What a small model knows about a response is in its middle layers long before it can say it: asked
in words it answers at chance, read by a linear probe it does not (README, table of methods). One
forward pass per response, through the first layers only; nothing is trained here.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from cai.tokens import ChatEncoder
from cai.types import Message

OPENING = 16
"""Tokens of a response that count as its opening."""
BATCH = 8
"""Sequences per forward pass, of similar length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Of n responses, float32."""

    response: torch.Tensor
    """(n, layers * 2 d): per layer, the mean over the opening's tokens and over the response's."""
    context: torch.Tensor
    """(n, d): the middle layer at the last token before the response, where the model is about to
    answer."""


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

    def read(self, asked: Sequence[tuple[Sequence[Message], Sequence[str]]]) -> Features:
        """Features of the responses to each conversation, one row per response, in order.

        A conversation and its responses are one sequence: each response follows the conversation
        and does not see the others. Sequences are batched by length, so a row's last digits depend
        on its neighbours.
        """
        trees = [self._tree(messages, responses) for messages, responses in asked]
        order = sorted(range(len(trees)), key=lambda number: len(trees[number].ids))
        rows: dict[int, list[torch.Tensor]] = {}
        contexts: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            hidden = self._hidden([trees[number] for number in numbers])
            for number, states in zip(numbers, hidden, strict=True):
                tree = trees[number]
                rows[number] = [_means(states[:, own]) for own in tree.branches()]
                contexts[number] = states[self.middle, tree.num_prompt - 1]
        everything = range(len(trees))
        return Features(
            response=torch.stack([row for n in everything for row in rows[n]]).cpu(),
            context=torch.stack([contexts[n] for n in everything for _ in rows[n]]).cpu(),
        )

    @property
    def middle(self) -> int:
        """Which of the layers is read for contexts and principles."""
        return len(self.layers) // 2

    @torch.inference_mode()
    def read_text(self, text: str) -> torch.Tensor:
        """Mean hidden state (d,) over a text's tokens, e.g. of a principle's question."""
        ids = self.encoder.text_ids(text)[: self.max_length]
        tree = _Tree(ids=ids, num_prompt=len(ids), lengths=())
        return self._hidden([tree])[0, self.middle].mean(0).cpu()

    @torch.inference_mode()
    def read_prompt(self, text: str) -> torch.Tensor:
        """Mean direction (d,) of the hidden states of a text's tokens, behind one that is left out.

        The first token, and sometimes another, has a state some hundred times as long as the others
        (Sun et al. 2024, arXiv:2402.17762): a plain mean says how long the text is, and little
        else. So every state has length 1 before the mean.
        """
        ids = [self.encoder.eos_id, *self.encoder.text_ids(text)][: self.max_length]
        tree = _Tree(ids=ids, num_prompt=len(ids), lengths=())
        states = self._hidden([tree])[0, self.middle, 1:]
        return torch.nn.functional.normalize(states, dim=-1).mean(0).cpu()

    def _tree(self, messages: Sequence[Message], responses: Sequence[str]) -> _Tree:
        """The end of a conversation, then its responses."""
        answers = [self.encoder.text_ids(text)[: self.max_length // 2] for text in responses]
        room = self.max_length - max(map(len, answers))
        prompt = self.encoder.conversation(messages)[-room:]
        return _Tree(
            ids=prompt + [token for answer in answers for token in answer],
            num_prompt=len(prompt),
            lengths=tuple(map(len, answers)),
        )

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


def _means(states: torch.Tensor) -> torch.Tensor:
    """(layers * 2 d,) of a response's states (layers, S, d): its opening's mean and its own."""
    return torch.stack([states[:, :OPENING].mean(1), states.mean(1)], dim=1).flatten()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """A prompt and the responses that branch off it, in one sequence."""

    ids: list[int]
    num_prompt: int
    lengths: tuple[int, ...]
    """Tokens of each response."""

    def branches(self) -> list[slice]:
        """Where each response is."""
        starts = [self.num_prompt + sum(self.lengths[:k]) for k in range(len(self.lengths))]
        return [slice(start, start + n) for start, n in zip(starts, self.lengths, strict=True)]

    def positions(self) -> torch.Tensor:
        """(S,): every response goes on where the prompt ends."""
        ranges = [torch.arange(self.num_prompt)]
        ranges += [self.num_prompt + torch.arange(num) for num in self.lengths]
        return torch.cat(ranges)

    def seen(self) -> torch.Tensor:
        """(S, S) bool: a token sees the prompt and its own response, up to itself."""
        branch = torch.cat(
            [torch.full((n,), k) for k, n in enumerate((self.num_prompt, *self.lengths))]
        )
        same = (branch[:, None] == branch) | (branch == 0)
        return same & torch.ones(len(branch), len(branch), dtype=torch.bool).tril()
