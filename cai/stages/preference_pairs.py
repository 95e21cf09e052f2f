"""Which pairs a preference model learns from: labels as pairs, prompts held out, halves, weights.

With a gold preference model (`phase.gold`) the prompts that are not held out are split in half. The
proxy, which PPO is trained against, learns from one half and the gold one from the other, as the
train and test preference models of Bai et al. 2022a (arXiv:2204.05862, fig. 4) do. All pairs of
one prompt are on one side, and both models are measured on the same prompts held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Protocol, TypeVar

from cai.artifacts import digest_of
from cai.errors import UserError
from cai.seeds import python_rng
from cai.types import Comparison, Message, PreferencePair

Conversation = tuple[Message, ...]


class Half(StrEnum):
    """A side of the split comparisons."""

    proxy = "proxy"
    """Rewards PPO."""
    gold = "gold"
    """Never enters training."""


def ai_pairs(comparisons: Sequence[Comparison]) -> list[PreferencePair]:
    """Judged comparisons as training pairs; unjudged ones are left out."""
    return [
        PreferencePair(
            messages=c.prompt.messages,
            response_a=c.response_a,
            response_b=c.response_b,
            prob_a=c.prob_a,
            weight=c.weight,
            source="ai",
            principle_ids=c.principle_ids,
        )
        for c in comparisons
        if c.prob_a is not None
    ]


def principle_pairs(comparisons: Sequence[Comparison]) -> list[PreferencePair]:
    """One training pair for each principle that a comparison was judged under, with its label."""
    return [
        PreferencePair(
            messages=c.prompt.messages,
            response_a=c.response_a,
            response_b=c.response_b,
            prob_a=label.prob_a,
            weight=label.weight,
            source="ai",
            principle_ids=(label.principle_id,),
        )
        for c in comparisons
        for label in c.labels
    ]


def validation_prompts(comparisons: Sequence[Comparison], *, frac: float, seed: int) -> set[str]:
    """Ids of the prompts whose pairs are held out; at least one when `frac` is above 0."""
    ids = sorted({c.prompt.id for c in comparisons if c.prob_a is not None})
    python_rng(seed, "validation").shuffle(ids)
    num = max(1, round(frac * len(ids))) if frac > 0 and len(ids) > 1 else 0
    return set(ids[:num])


def half_of(
    ai: Iterable[Conversation], human: Iterable[Conversation], *, half: Half, seed: int
) -> set[Conversation]:
    """The conversations of one half: of AI and of human comparisons the same share each.

    A conversation that is in both kinds is on one side for both. With an odd number the proxy has
    one more.
    """
    judged = set(ai)
    return _half(judged, half=half, seed=seed) | _half(set(human) - judged, half=half, seed=seed)


def _half(conversations: set[Conversation], *, half: Half, seed: int) -> set[Conversation]:
    def digest(messages: Conversation) -> str:
        return digest_of([[message.role, message.content] for message in messages])

    order = sorted(conversations, key=digest)
    python_rng(seed, "halves").shuffle(order)
    middle = (len(order) + 1) // 2
    return set(order[:middle] if half is Half.proxy else order[middle:])


class Weighed(Protocol):
    """A dataclass of what is learned from."""

    @property
    def weight(self) -> float:
        """Its weight in the loss."""


W = TypeVar("W", bound=Weighed)


def mixed(
    ai: Sequence[W], human: Sequence[W], *, human_frac: float | None, setting: str
) -> list[W]:
    """AI and human comparisons together, weighed so that human ones have their share.

    Both kinds are scaled as a whole; the sum of all weights stays what it is.

    Args:
        ai: With the weights of their labels.
        human: The same.
        human_frac: Share of the summed weight; None leaves the weights alone.
        setting: The section that `human_frac` is of, for messages.

    Raises:
        UserError: when a kind is to have a share and has no pair of any weight.
    """
    if human_frac is None:
        return [*ai, *human]
    total = sum(example.weight for example in (*ai, *human))
    found: list[W] = []
    for kind, part, share in (("AI", ai, 1 - human_frac), ("human", human, human_frac)):
        own = sum(example.weight for example in part)
        if share > 0 and own == 0:
            raise UserError(
                f"{setting}.human_frac={human_frac:g}: there is no {kind} comparison to give a "
                f"share to. Name some with data.human_comparisons.path=..., or type "
                f"{setting}.human_frac=null"
            )
        scale = share * total / own if own else 0.0
        found += [dataclasses.replace(e, weight=e.weight * scale) for e in part]
    return found
