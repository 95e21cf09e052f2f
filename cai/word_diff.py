"""Word differences of two texts, made to be read (difflib)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_DIFF_WORDS = 1500
"""difflib takes quadratic time; longer texts are shown without marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffPart:
    """A stretch of words: `same`, `ins` or `del`."""

    kind: str
    text: str


def word_diff(before: str, after: str) -> tuple[DiffPart, ...]:
    """Word-level differences; texts too long for difflib come back as one unmarked part.

    White space before a change is outside of it, and removed words are set apart from added ones:
    marks then hold words only.
    """
    old, new = _words(before), _words(after)
    if max(len(old), len(new)) > MAX_DIFF_WORDS:
        return (DiffPart(kind="same", text=after),)
    parts: list[DiffPart] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for same, a0, a1, b0, b1 in _without_scraps(matcher.get_opcodes()):
        removed, added = "".join(old[a0:a1]), "".join(new[b0:b1])
        if same:
            parts.append(DiffPart(kind="same", text=added))
            continue
        bare_removed, bare_added = removed.lstrip(), added.lstrip()
        whole, bare = (added, bare_added) if added else (removed, bare_removed)
        gap = "\n" if "\n" in bare_removed + bare_added else " "
        parts += [
            DiffPart(kind="same", text=whole[: len(whole) - len(bare)]),
            DiffPart(kind="del", text=bare_removed),
            DiffPart(kind="same", text=gap if bare_removed and bare_added else ""),
            DiffPart(kind="ins", text=bare_added),
        ]
    return tuple(part for part in parts if part.text)


def _without_scraps(
    opcodes: Sequence[tuple[str, int, int, int, int]],
) -> list[tuple[bool, int, int, int, int]]:
    """Opcodes as (same, a0, a1, b0, b1), where words kept by accident are part of a change.

    A kept stretch that is no longer than the change on either side of it is scrap: a rewritten
    paragraph that shares only "the" and "a day" reads better as one removal and one addition. The
    rule is the semantic clean-up of google/diff-match-patch (Fraser).
    """
    merged = [(tag == "equal", a0, a1, b0, b1) for tag, a0, a1, b0, b1 in opcodes]
    place = 1
    while place < len(merged) - 1:
        before, kept, after = merged[place - 1 : place + 2]
        sides = (max(op[2] - op[1], op[4] - op[3]) for op in (before, after))
        if kept[0] and not before[0] and not after[0] and kept[2] - kept[1] <= min(sides):
            merged[place - 1 : place + 2] = [(False, before[1], after[2], before[3], after[4])]
            place = max(1, place - 2)
        else:
            place += 1
    return merged


def _words(text: str) -> list[str]:
    """Words with the white space before them, so that a changed phrase is one stretch."""
    return re.findall(r"\s*\S+|\s+", text)
