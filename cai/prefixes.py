"""Texts that are read and not gone on from: what several of them share is read once.

What is shared depends on the texts of one call only, never on what was read before: sharing moves
the last bits of a result, and a run that is resumed must find the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cai.decoding import GROUP_ROWS, Decoder, Group

MIN_PREFIX = 16
"""Shorter beginnings are not worth a pass of their own, tokens."""
MIN_SPARED = 64
"""Tokens that a pass must spare the other texts, since a pass of few tokens is slow. What all texts
of a call share may spare fewer: it is remembered, and often shared by the next call, too."""

Ids = tuple[int, ...]


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
    return _lot(sorted(limits), limits, above=0, least=MIN_PREFIX)


def _lot(texts: list[Ids], limits: dict[Ids, int], *, above: int, least: int) -> Lot:
    """The lot of sorted texts, whose first `above` tokens are read already."""
    alike = common(texts[0], texts[-1])
    shared = min(alike, *(limits[text] for text in texts))
    if shared - above < MIN_PREFIX or (len(texts) - 1) * (shared - above) < least:
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
        part = _lot(run, limits, above=shared, least=MIN_SPARED)
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
    prefix = decoder.prefix(lot.beginning, known) if lot.shared else None
    found: dict[Ids, Tensor] = {}
    _read(decoder, lot, prefix, most, found)
    return [found[tuple(text)][-num:] for text, num in zip(texts, wanted, strict=True)]


def _read(
    decoder: Decoder,
    lot: Lot,
    prefix: Group | None,
    wanted: dict[Ids, int],
    found: dict[Ids, Tensor],
) -> None:
    own = sorted(lot.own, key=len, reverse=True)
    for first in range(0, len(own), GROUP_ROWS):
        rows = own[first : first + GROUP_ROWS]
        nums = [wanted[row] for row in rows]
        rest = [row[lot.shared :] for row in rows]
        if max(nums) == 1:
            read, _ = decoder.prefill(rest, prefix=prefix)
        else:
            read, _ = decoder.prefill(rest, prefix=prefix, wanted=nums)
        found |= zip(rows, torch.split(read, nums), strict=True)
    for part in lot.parts:
        group = decoder.prefill([part.beginning[lot.shared :]], prefix=prefix, whole=True)[1]
        _read(decoder, part, group, wanted, found)
