"""Loaders whose order is a pure function of the seed, and which know where they are.

Lightning saves and restores a loader that has `state_dict` and `load_state_dict`; with any other
loader a resumed run repeats the first batches of the epoch. All epochs are one pass for Lightning,
so that there is no epoch boundary to resume wrongly at. Both loaders have a length, without which
Lightning fetches one batch ahead: a rollout must come from the policy after the last update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from cai.batches import PairBatch, ReferencedBatch, TokenBatch, collate, split_by_length
from cai.errors import UserError
from cai.heads import seeded_generator

E = TypeVar("E", "SFTExample", "PairExample", "ReferencedPair")
M = TypeVar("M", TokenBatch, PairBatch, ReferencedBatch)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class SFTExample:
    """A response to learn."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """With the end-of-sequence token."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class PairExample:
    """Two responses to one prompt and how likely the first is the better one."""

    prompt_ids: tuple[int, ...]
    response_a_ids: tuple[int, ...]
    """With the end-of-sequence token."""
    response_b_ids: tuple[int, ...]
    prob_a: float
    """P(a preferred), in [0, 1]."""
    weight: float

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return len(self.prompt_ids) + max(len(self.response_a_ids), len(self.response_b_ids))


@dataclass(frozen=True, slots=True)
class ReferencedPair:
    """A pair and how likely the reference finds its responses."""

    pair: PairExample
    reference_a: float
    """Log-probability of response a, nats."""
    reference_b: float

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return self.pair.length


def collate_sft(examples: Sequence[SFTExample]) -> TokenBatch:
    """One micro-batch of responses to learn; padding is never looked at, so any id will do."""
    return collate([(e.prompt_ids, e.response_ids) for e in examples], pad_id=0)


def collate_pairs(examples: Sequence[PairExample]) -> PairBatch:
    """One micro-batch of pairs: all sides a, then all sides b."""
    sides = [(e.prompt_ids, e.response_a_ids) for e in examples]
    sides += [(e.prompt_ids, e.response_b_ids) for e in examples]
    return PairBatch(
        tokens=collate(sides, pad_id=0),
        prob_a_P=torch.tensor([e.prob_a for e in examples], dtype=torch.float32),
        weight_P=torch.tensor([e.weight for e in examples], dtype=torch.float32),
        total_weight=float(sum(e.weight for e in examples)),
    )


def collate_referenced(examples: Sequence[ReferencedPair]) -> ReferencedBatch:
    """One micro-batch of pairs with what the reference says of them."""
    return ReferencedBatch(
        pairs=collate_pairs([e.pair for e in examples]),
        reference_a_P=torch.tensor([e.reference_a for e in examples], dtype=torch.float32),
        reference_b_P=torch.tensor([e.reference_b for e in examples], dtype=torch.float32),
    )


class EpochLoader(Generic[E, M]):
    """Optimizer batches over all epochs, each a list of micro-batches alike in length.

    Epoch e takes the examples in an order that is a function of (seed, e); the last batch of an
    epoch may be smaller and is not dropped.

    Args:
        examples: At least one.
        batch_size: Examples per optimizer step.
        micro_batch_size: Examples per forward and backward pass.
        seed: Of the order.
        num_epochs: Passes over the examples.
        collate: Makes a micro-batch.
    """

    def __init__(
        self,
        examples: Sequence[E],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        num_epochs: int,
        collate: Callable[[Sequence[E]], M],
    ) -> None:
        if not examples:
            raise UserError("there is nothing to train on: no example is left after filtering")
        self.examples = examples
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.num_epochs = num_epochs
        self.collate = collate
        self.position = 0
        """Batches given out so far, over all epochs."""

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of one pass over the examples."""
        return math.ceil(len(self.examples) / self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch * self.num_epochs

    def groups(self, position: int) -> list[list[int]]:
        """Numbers of the examples in each micro-batch of one optimizer step."""
        epoch, number = divmod(position, self.batches_per_epoch)
        generator = seeded_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        start = number * self.batch_size
        chosen = order[start : start + self.batch_size]
        lengths = [self.examples[index].length for index in chosen]
        groups = split_by_length(lengths, self.micro_batch_size)
        return [[chosen[index] for index in group] for group in groups]

    def batch(self, position: int) -> list[M]:
        """The micro-batches of one optimizer step."""
        return [
            self.collate([self.examples[index] for index in group])
            for group in self.groups(position)
        ]

    def __iter__(self) -> Iterator[list[M]]:
        while self.position < len(self):
            self.position += 1
            yield self.batch(self.position - 1)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, and in what."""
        return {"position": self.position, "examples": len(self.examples), "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state.

        Raises:
            UserError: when it is of other data; skipping into other examples would go unnoticed.
        """
        if (state["examples"], state["seed"]) != (len(self.examples), self.seed):
            raise UserError(
                f"the checkpoint was made with {state['examples']} examples and seed "
                f"{state['seed']}, not with {len(self.examples)} and {self.seed}. Delete the "
                "stage's work folder to start it again."
            )
        self.position = state["position"]


class RolloutLoader(Generic[R]):
    """Rollouts, each made when it is asked for, with the policy of that moment.

    Args:
        make_rollouts: Given the iteration, counted from 0.
        num_iterations: How many.
    """

    def __init__(self, make_rollouts: Callable[[int], R], num_iterations: int) -> None:
        self.make_rollouts = make_rollouts
        self.num_iterations = num_iterations
        self.position = 0
        """Iterations given out so far."""

    def __len__(self) -> int:
        return self.num_iterations

    def __iter__(self) -> Iterator[R]:
        while self.position < self.num_iterations:
            rollouts = self.make_rollouts(self.position)
            self.position += 1
            yield rollouts

    def state_dict(self) -> dict[str, int]:
        """Where the loader is."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state."""
        self.position = state["position"]
