"""The comments of a document's file: where YAML has a comment and not a `#` in a text.

The parser drops comments, so they are found again: a `#` at the beginning of a line or after white
space begins one unless it lies inside a scalar, and every scalar's extent is known from its node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai import yaml_nodes
from cai.yaml_nodes import Node, Scalar

_HASH = re.compile(r"(?:^|(?<=\s))#")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """One comment, up to the end of its line."""

    text: str
    """From the `#` on."""
    line: int
    column: int
    alone: bool
    """Nothing else is on its line."""


def comments(ending: str, lines: Sequence[str], root: Node) -> tuple[Comment, ...]:
    """The comments of a file.

    Args:
        ending: Of the file's name; JSON has no comments.
        lines: Of the file.
        root: Of the document in it.
    """
    if ending == ".json":
        return ()
    taken = _Extents(root, lines)
    found = []
    for number, line in enumerate(lines, start=1):
        for match in _HASH.finditer(line):
            column = match.start() + 1
            if not taken.holds(number, column):
                alone = not line[: match.start()].strip()
                text = line[match.start() :].rstrip()
                found.append(Comment(text=text, line=number, column=column, alone=alone))
                break
    return tuple(found)


class _Extents:
    """Where scalars are, line by line; columns from the first to one past the last."""

    def __init__(self, root: Node, lines: Sequence[str]) -> None:
        self._lines: dict[int, list[tuple[int, float]]] = {}
        for node in _scalars(root):
            block = node.end_line > node.line and lines[node.line - 1][node.column - 1] in "|>"
            for line in range(node.line, node.end_line + 1):
                begin = node.column if line == node.line else 1
                end = node.end_column if line == node.end_line else float("inf")
                if block and line == node.line:  # the line of the `>-`, which may have a comment
                    end = node.column + 1
                self._lines.setdefault(line, []).append((begin, end))

    def holds(self, line: int, column: int) -> bool:
        return any(begin <= column < end for begin, end in self._lines.get(line, ()))


def _scalars(node: Node) -> Iterator[Scalar]:
    if isinstance(node, Scalar):
        yield node
    elif isinstance(node, yaml_nodes.Sequence):
        for item in node.items:
            yield from _scalars(item)
    else:
        yield from node.keys.values()
        for value in node.fields.values():
            yield from _scalars(value)
