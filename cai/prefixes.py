"""Texts that are read and not gone on from: what several of them share is read once.

What is shared depends on the texts of one call only, never on what was read before: sharing moves
the last bits of a result, and a run that is resumed must find the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from cai.decoding import GROUP_ROWS, Decoder, Group

MIN_PREFIX = 16
"""Shorter beginnings are not worth a pass of their own, tokens."""
MIN_SPARED = 64
"""Tokens that a pass must spare, since a pass of few tokens is slow; divided by the beginnings that
are read at once. What all texts of a call share may spare fewer: it is remembered, and often shared
by the next call, too."""

Ids = tuple[int, ...]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """Texts that go on from one beginning."""

    shared: int
    """Tokens that all texts of the lot and of its parts begin with."""
    own: tuple[Ids, ...]
    """Texts that are read on from there, whole."""
    parts: tuple[Lot, ...]
    """Lots of texts that share more."""

    @property
    def beginning(self) -> Ids:
        """The tokens that are shared."""
        lot = self
        while not lot.own:
            lot = lot.parts[0]
        return lot.own[0][: self.shared]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two texts begin with."""
    length = min(len(one), len(other))
    if tuple(one[:length]) == tuple(other[:length]):
        return length
    return next(i for i in range(length) if one[i] != other[i])


def lots(texts: Sequence[Ids], *, most: Sequence[int]) -> Lot:
    """What texts share, as a tree.

    Args:
        texts: All different.
        most: Tokens of each that a shared beginning may have.
    """
    limits = dict(zip(texts, most, strict=True))
    together = min(max(len(limits) // 2, 1), GROUP_ROWS)
    return _lot(sorted(limits), limits, above=0, worth=(MIN_PREFIX, MIN_SPARED // together))


def _lot(texts: list[Ids], limits: dict[Ids, int], *, above: int, worth: tuple[int, int]) -> Lot:
    """The lot of sorted texts, whose first `above` tokens are read already.

    Args:
        texts: Its own and those of its parts.
        limits: Tokens of each text that may be shared.
        above: As said.
        worth: Tokens that a pass must spare, of this lot and of its parts.
    """
    alike = common(texts[0], texts[-1])
    shared = min(alike, *(limits[text] for text in texts))
    further = shared - above
    if further < MIN_PREFIX or (len(texts) - 1) * further < worth[0]:
        shared = above
    runs = [texts[:1]]
    for last, text in pairwise(texts):
        if common(last, text) > alike:
            runs[-1].append(text)
        else:
            runs.append([text])
    own: list[Ids] = []
    parts: list[Lot] = []
    for run in runs:
        if len(run) == 1:
            own += run
            continue
        part = _lot(run, limits, above=shared, worth=(worth[1], worth[1]))
        if part.shared > shared:
            parts.append(part)
        else:
            own += part.own
            parts += part.parts
    return Lot(shared=shared, own=tuple(own), parts=tuple(parts))


def states(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    wanted: Sequence[int],
    known: dict[Ids, Group],
) -> list[Tensor]:
    """Final hidden states (n, H) at the last n tokens of each text.

    Args:
        decoder: The model.
        texts: Token ids; equal ones are read once.
        wanted: How many last tokens of each text, at least one.
        known: What the texts of the last call shared; what these share takes its place.
    """
    most: dict[Ids, int] = {}
    for text, num in zip(texts, wanted, strict=True):
        most[tuple(text)] = max(num, most.get(tuple(text), 0))
    lot = lots(list(most), most=[len(text) - num for text, num in most.items()])
    found: dict[Ids, Tensor] = {}
    prefix = decoder.prefix(lot.beginning, known) if lot.shared else None
    for rows in _batches(_beginnings(decoder, lot, prefix), len):
        nums = [most[row] for row, _ in rows]
        read, _ = decoder.prefill(
            [row[_used(group) :] for row, group in rows],
            after=[group for _, group in rows],
            wanted=nums if max(nums) > 1 else None,
        )
        found |= zip((row for row, _ in rows), torch.split(read, nums), strict=True)
    return [found[tuple(text)][-num:] for text, num in zip(texts, wanted, strict=True)]


def _beginnings(decoder: Decoder, lot: Lot, prefix: Group | None) -> list[tuple[Ids, Group | None]]:
    """All texts of a lot with what they go on from; beginnings of one depth are read together."""
    texts: list[tuple[Ids, Group | None]] = []
    read = [(lot, prefix)]
    while read:
        texts += [(text, group) for one, group in read for text in one.own]
        parts = [(part, group) for one, group in read for part in one.parts]
        read = []
        for some in _batches(parts, lambda part: part.shared):
            rest = [part.beginning[_used(group) :] for part, group in some]
            _, group = decoder.prefill(rest, after=[group for _, group in some], whole=True)
            read += [(part, group.row(row)) for row, (part, _) in enumerate(some)]
    return texts


def _used(group: Group | None) -> int:
    return 0 if group is None else group.used


def _batches(
    items: Sequence[tuple[Item, Group | None]], length: Callable[[Item], int]
) -> list[list[tuple[Item, Group | None]]]:
    """Items with as many tokens left to read, and what each goes on from."""
    longest = sorted(items, key=lambda item: length(item[0]) - _used(item[1]), reverse=True)
    return [longest[first : first + GROUP_ROWS] for first in range(0, len(longest), GROUP_ROWS)]
