"""A constitution as it is written: every text with the file, line and column it stands at.

The loader gives resolved principles and the nodes they were read from; here both are put together,
so that a finding can quote a piece of a text word for word and say where it is, also inside a
folded block, where one line of text is several lines of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai import yaml_nodes
from cai.audit.comments import Comment, comments
from cai.constitution import Constitution, Origin, read_document, shown_path
from cai.documents import Principle
from cai.other_shapes import OF_PAIR
from cai.yaml_nodes import Checker, Node, Scalar

FORMS = ("critique", "revise", "compare")
MAX_COMPARED = 150
"""Other principles that one is compared with: a lint has to end soon, whatever it is given."""
MAX_TITLE = 60
"""Characters of the line that stands for a whole document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A piece of a document, word for word, and where it stands."""

    text: str
    file: str
    line: int
    column: int
    field: str
    """E.g. `principles[2].critique`; empty for the document as a whole."""
    principle_id: str
    """Empty for the document as a whole."""
    anchors: tuple[int, ...]
    """Lines of the file on which a waiver reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a constitution."""

    shown: str
    """Its path, for people."""
    lines: tuple[str, ...]
    comments: tuple[Comment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text of a document."""

    text: str
    """As it is used: lines folded, white space around it dropped."""
    file: File
    field: str
    principle_id: str
    node: Scalar
    key_line: int
    """Of the field's name."""

    def quote(self, start: int = 0, end: int | None = None) -> Quote:
        """Characters `start:end` of the text."""
        end = len(self.text) if end is None else end
        line, column = self._place(start, end)
        return Quote(
            text=self.text[start:end],
            file=self.file.shown,
            line=line,
            column=column,
            field=self.field,
            principle_id=self.principle_id,
            anchors=(line, self.node.line, self.key_line),
        )

    def _place(self, start: int, end: int) -> tuple[int, int]:
        """Line and column of a piece; of the whole text where the file spells it otherwise."""
        node = self.node
        raw = list(self.file.lines[node.line - 1 : node.end_line])
        if len(raw) > node.end_line - node.line:
            raw[-1] = raw[-1][: node.end_column - 1]
        pattern = re.compile(r"\s+".join(map(re.escape, self.text[start:end].split())))
        earlier = len(pattern.findall(self.text[:start]))
        joined = "\n".join(raw)
        found = [m.start() for m in pattern.finditer(joined, node.column - 1)]
        if earlier >= len(found):
            return node.line, node.column
        place = found[earlier]
        line = joined.count("\n", 0, place)
        return node.line + line, place - (joined.rfind("\n", 0, place) + 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTest:
    """A principle test and its texts."""

    prompt: Passage
    better: Passage
    worse: Passage


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A principle and its texts; what is derived, or stands for a missing one, has no passage."""

    principle: Principle
    place: Quote
    """Its beginning."""
    passages: Mapping[str, Passage]
    """By name: `principle` and those of `FORMS`."""
    tags: tuple[Passage, ...]
    tests: tuple[WrittenTest, ...]

    @property
    def id(self) -> str:
        """Of the principle."""
        return self.principle.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A constitution, its own and inherited principles, and the files they are in."""

    constitution: Constitution
    principles: tuple[Written, ...]
    title: Quote
    """Its name, or its beginning."""
    main: File
    files: tuple[File, ...]
    """With `main`."""


def read_written(constitution: Constitution) -> Document:
    """Read a constitution's files again, this time for their places.

    Raises:
        UserError: when a file was changed since the constitution was loaded so that it is no
            document any more.
    """
    paths = dict.fromkeys([constitution.path])
    paths |= dict.fromkeys(origin.path for origin in constitution.origins.values())
    read = {path: _read_file(path) for path in paths}
    main, root = read[constitution.path]
    return Document(
        constitution=constitution,
        principles=tuple(
            _written(principle, constitution.origins[principle.id], read)
            for principle in constitution.principles
        ),
        title=_title(root, main),
        main=main,
        files=tuple(file for file, _ in read.values()),
    )


def _read_file(path: Path) -> tuple[File, Node]:
    check = Checker(shown_path(path))
    text = yaml_nodes.read_text(path, check)
    root = read_document(path, check).root
    check.finish()
    lines = tuple(re.split(r"\r\n|\r|\n", text))
    return File(shown=check.file, lines=lines, comments=comments(path.suffix, lines, root)), root


def _title(root: Node, file: File) -> Quote:
    name = root.fields.get("name") if isinstance(root, yaml_nodes.Mapping) else None
    node = name if isinstance(name, Scalar) else root
    text = file.lines[node.line - 1].strip()[:MAX_TITLE]
    return Quote(
        text=text, file=file.shown, line=node.line, column=node.column, field="", principle_id="",
        anchors=(node.line,),
    )  # fmt: skip


def _written(
    principle: Principle, origin: Origin, read: Mapping[Path, tuple[File, Node]]
) -> Written:
    file, _ = read[origin.path]
    own = origin.own
    keys = own.node.keys if isinstance(own.node, yaml_nodes.Mapping) else {}
    fields = own.fields

    def passage(text: str, node: Node, field: str, key_line: int) -> Passage:
        assert isinstance(node, Scalar)
        return Passage(
            text=text, file=file, field=field, principle_id=principle.id, node=node,
            key_line=key_line,
        )  # fmt: skip

    def key_line(name: str, node: Node) -> int:
        return keys[name].line if name in keys else node.line

    texts = {
        "principle": principle.principle,
        "critique": principle.critique,
        "revise": principle.revise,
        "compare": principle.compare,
    }

    def path(name: str) -> str:
        return f"{own.path}.{name}" if keys else own.path

    passages = {
        name: passage(text, fields[name], path(name), key_line(name, fields[name]))
        for name, text in texts.items()
        if name in fields and not text.startswith(OF_PAIR)
    }
    tags = tuple(
        passage(tag, node, f"{path('scope')}[{index}]", key_line("scope", node))
        for index, (tag, node) in enumerate(
            zip(principle.scope, _items(fields.get("scope")), strict=True)
        )
    )
    return Written(
        principle=principle,
        place=_beginning(principle, own.node, own.path, file),
        passages=passages,
        tags=tags,
        tests=tuple(_tests(principle, fields.get("tests"), path("tests"), passage)),
    )


def _items(node: Node | None) -> Sequence[Node]:
    return node.items if isinstance(node, yaml_nodes.Sequence) else ()


def _tests(
    principle: Principle,
    node: Node | None,
    path: str,
    passage: Callable[[str, Node, str, int], Passage],
) -> Iterator[WrittenTest]:
    for index, (test, written) in enumerate(zip(principle.tests, _items(node), strict=True)):
        assert isinstance(written, yaml_nodes.Mapping)
        texts = {"prompt": test.prompt, "better": test.better, "worse": test.worse}
        yield WrittenTest(
            **{
                name: passage(
                    text, written.fields[name], f"{path}[{index}].{name}", written.keys[name].line
                )
                for name, text in texts.items()
            }
        )


def _beginning(principle: Principle, node: Node, field: str, file: File) -> Quote:
    return Quote(
        text=principle.id,
        file=file.shown,
        line=node.line,
        column=node.column,
        field=field,
        principle_id=principle.id,
        anchors=(node.line,),
    )
