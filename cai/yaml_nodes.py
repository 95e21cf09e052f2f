"""Strict YAML: a small, safe subset read into nodes that know their line and column.

What YAML offers beyond text, lists and mappings is refused, because a document people rely on must
mean what it looks like: no tags, anchors, aliases or merge keys, no duplicate keys, no second
document, no control or invisible formatting characters, no control tokens of chat templates, no
nesting deeper than eight levels. Every scalar is literal text: `no`, `1e3`, `2024-01-01` and
`${...}` stay as they are written, and the reader of a field decides whether it wants a number.
Events are checked as they are parsed, so an alias bomb or a deeply nested file is refused before
anything is built from it.

Every problem becomes one line `file:line:column: field.path: what is wrong`; a document's problems
are collected and raised together. Where a whole file is at fault the field path is `document`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cai.errors import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 8
MAX_TEXT = 4_000
MAX_PROBLEMS = 50
IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,63}")

# libyaml takes milliseconds where the pure Python parser takes a second for the largest file.
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_NON_FINITE = re.compile(r"[+-]?\.?(?:inf|nan|infinity)", re.IGNORECASE)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
# Control characters, line and paragraph separators, text-direction controls, byte order marks and
# what is not a character at all.
_FORBIDDEN = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff"
)
_FORBIDDEN_IN_FILE = re.compile(f"[{_FORBIDDEN}]")
_FORBIDDEN_IN_TEXT = re.compile(f"[{_FORBIDDEN}\r]")
# Turns and ends of text in the chat templates of the common model families. They are encoded as
# plain letters here, but a document is passed on, and nobody writes one into a principle honestly.
_CONTROL_TOKEN = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<｜[^<>\s]{1,64}｜>|\[/?INST\]|<</?SYS>>"  # noqa: RUF001
    r"|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|endoftext)>"
)
LINE_END = re.compile(r"\r\n|\r|\n")
_HINTS = {
    "mapping values are not allowed": "text that contains ': ' needs quotes, or `>-` before it",
    "did not find expected alphabetic": "text that begins with & or * needs quotes",
    "did not find expected key": "check the indentation, and put quotes around text that begins "
    "with a quotation mark or contains ': '",
    "unexpected end of stream": "a quotation mark is opened and never closed",
    "cannot start any token": "indent with spaces, not tabs; text that begins with @, ` or % "
    "needs quotes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """Literal text."""

    text: str
    plain: bool
    """Written without quotes or block marker."""
    line: int
    column: int
    end_line: int
    end_column: int
    """The first place after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """Fields by name, with the node of each name."""

    fields: dict[str, Node]
    keys: dict[str, Scalar]
    line: int
    column: int


Node = Scalar | Sequence | Mapping


def did_you_mean(word: str, known: list[str]) -> str:
    """` Did you mean x?` for a close match among `known`, else nothing."""
    close = difflib.get_close_matches(word[:64], known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def quote(text: str) -> str:
    """A short, printable form of untrusted text for a message."""
    shown = repr(text if len(text) <= 40 else text[:39] + "…")
    return shown.encode("utf-8", "backslashreplace").decode()


def _describe(node: Node) -> str:
    match node:
        case Scalar(text=text):
            return f"text {quote(text)}"
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping"


def _bare(node: Node) -> str:
    """A number's text without quotes."""
    assert isinstance(node, Scalar)
    return quote(node.text.strip())[1:-1]


def _name_character(character: str) -> str:
    return f"U+{ord(character):04X}"


def _place(text: str, index: int) -> tuple[int, int]:
    """1-based line and column of a character."""
    ends = list(LINE_END.finditer(text, 0, index))
    return len(ends) + 1, index - (ends[-1].end() if ends else 0) + 1


class Checker:
    """Collects the problems of one file and reads typed values out of its nodes.

    A reading method that finds a problem notes it and returns a placeholder, so that one pass
    finds everything; `finish` must be called before any value is used.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._problems: list[tuple[int, int, str]] = []

    def add_at(self, line: int, column: int, path: str, message: str) -> None:
        """Note a problem.

        Raises:
            UserError: when there are so many that more would not help.
        """
        where = f"{self.file}:{line}:{column}: {path or 'document'}"
        self._problems.append((line, column, f"{where}: {message}"))
        if len(self._problems) >= MAX_PROBLEMS:
            self.finish()

    def add(self, node: Node, path: str, message: str) -> None:
        """Note a problem of a node."""
        self.add_at(node.line, node.column, path, message)

    def finish(self) -> None:
        """Raise what was noted, in the order of the file.

        Raises:
            UserError: one line for each problem.
        """
        if self._problems:
            lines = [text for _, _, text in sorted(self._problems)]
            if len(lines) >= MAX_PROBLEMS:
                lines.append(f"(stopped after {MAX_PROBLEMS} problems)")
            raise UserError("\n".join(lines))

    def text(self, node: Node, path: str, *, limit: int = MAX_TEXT) -> str:
        """Literal text, stripped of surrounding white space."""
        if not isinstance(node, Scalar):
            self.add(
                node,
                path,
                f"must be text, found {_describe(node)} (text that begins with [ "
                "or {, or contains ': ', needs quotes)",
            )
            return ""
        text = node.text.strip()
        if not text or (node.plain and text in _NULLS):
            self.add(node, path, "is empty")
        elif len(text) > limit:
            self.add(node, path, f"has {len(text):,} characters, at most {limit:,} are allowed")
        elif bad := _FORBIDDEN_IN_TEXT.search(node.text):
            self.add(
                node,
                path,
                f"contains the character {_name_character(bad[0])}, which is not allowed",
            )
        elif token := _CONTROL_TOKEN.search(text):
            self.add(
                node,
                path,
                f"contains {quote(token[0])}, a control token of a chat template, which is not "
                "allowed",
            )
        else:
            return text
        return ""

    def identifier(self, node: Node, path: str) -> str:
        """A name that can stand in file names, keys and tables."""
        text = self.text(node, path)
        if text and not IDENTIFIER.fullmatch(text):
            self.add(
                node,
                path,
                "must begin with a lower-case letter and hold only lower-case "
                f"letters, digits and _ (at most 64 characters), found {quote(text)}",
            )
            return ""
        return text

    def positive(self, node: Node, path: str, *, limit: float) -> float:
        """A finite number above 0 and up to `limit`."""
        value = self._number(node, path)
        if value is None:
            return 1.0
        if 0 < value <= limit:
            return value
        bound = "above 0" if value <= 0 else f"at most {limit:g}"
        self.add(node, path, f"must be {bound}, found {_bare(node)}")
        return 1.0

    def between(self, node: Node, path: str, *, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        value = self._number(node, path)
        if value is None:
            return low
        if low <= value <= high:
            return value
        self.add(node, path, f"must be between {low:g} and {high:g}, found {_bare(node)}")
        return low

    def _number(self, node: Node, path: str) -> float | None:
        """A finite number; None after a problem."""
        if not isinstance(node, Scalar) or node.text.strip() in _NULLS:
            found = "nothing" if isinstance(node, Scalar) else _describe(node)
            self.add(node, path, f"must be a number, found {found}")
            return None
        text = node.text.strip()
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if math.isnan(value) and not _NON_FINITE.fullmatch(text):
            self.add(node, path, f"must be a number, found {_describe(node)}")
        elif not node.plain:
            self.add(node, path, f"must be a number without quotes, found {_describe(node)}")
        elif not math.isfinite(value):
            self.add(node, path, f"must be finite, found {_bare(node)}")
        else:
            return value
        return None

    def items(self, node: Node, path: str, what: str) -> Iterator[tuple[Node, str]]:
        """Items of a list with the path of each."""
        if not isinstance(node, Sequence):
            self.add(node, path, f"must be a list of {what}, found {_describe(node)}")
            return
        for index, item in enumerate(node.items):
            yield item, f"{path}[{index}]"

    def fields(
        self, node: Node, path: str, *, known: tuple[str, ...], required: tuple[str, ...]
    ) -> dict[str, Node]:
        """Fields of a mapping; unknown and missing ones are problems."""
        if not isinstance(node, Mapping):
            self.add(
                node,
                path,
                f"must be a mapping with the fields {', '.join(known)}, found {_describe(node)}",
            )
            return {}
        for name, key in node.keys.items():
            if name not in known:
                hint = did_you_mean(name, list(known))
                if " " in name:
                    hint = " A sentence that contains ': ' needs quotes."
                self.add(
                    key,
                    join(path, name),
                    f"is not a field here; known are {', '.join(known)}.{hint}",
                )
        for name in required:
            if name not in node.fields:
                self.add(node, join(path, name), "is missing")
        return {name: value for name, value in node.fields.items() if name in known}


def join(path: str, name: str) -> str:
    """Path of a field; an odd name is quoted."""
    name = name if re.fullmatch(r"\w{1,40}", name) else quote(name)
    return f"{path}.{name}" if path else name


class _Composer:
    """Builds nodes from parse events; knows the path of what it is reading."""

    def __init__(self, text: str, check: Checker) -> None:
        self._events = yaml.parse(text, Loader=_LOADER)
        self._check = check
        self.path = ""

    def document(self) -> Node | None:
        """The only document, or None when there is none."""
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._add(event, "", "a second document begins here; only one is allowed")
                    self._check.finish()
                root = self._node(next(self._events), path="", depth=1)
                self.path = ""
        return root

    def _add(self, event: yaml.Event, path: str, message: str) -> None:
        mark = event.start_mark
        self._check.add_at(mark.line + 1, mark.column + 1, path, message)

    def _node(self, event: yaml.Event, *, path: str, depth: int) -> Node:
        self.path = path
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        end_line, end_column = event.end_mark.line + 1, event.end_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            self._add(
                event,
                path,
                f"the alias *{quote(event.anchor)[1:-1]} is not allowed: write "
                "the text out, or put quotes around text that begins with *",
            )
            return Scalar(
                text="", plain=False, line=line, column=column, end_line=line, end_column=column
            )
        if event.anchor is not None:
            self._add(
                event,
                path,
                f"the anchor &{quote(event.anchor)[1:-1]} is not allowed: put "
                "quotes around text that begins with &",
            )
        if event.tag is not None:
            self._add(
                event,
                path,
                f"the tag {quote(event.tag)} is not allowed: put quotes around "
                "text that begins with !",
            )
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(
                text=event.value,
                plain=not event.style,
                line=line,
                column=column,
                end_line=end_line,
                end_column=end_column,
            )
        if depth > MAX_DEPTH:
            self._add(event, path, f"is nested more than {MAX_DEPTH} levels deep")
            self._check.finish()
        if isinstance(event, yaml.SequenceStartEvent):
            items = tuple(self._items(path=path, depth=depth))
            return Sequence(items=items, line=line, column=column)
        fields, keys = self._fields(path=path, depth=depth)
        return Mapping(fields=fields, keys=keys, line=line, column=column)

    def _items(self, *, path: str, depth: int) -> Iterator[Node]:
        index = 0
        self.path = f"{path}[0]"
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            yield self._node(event, path=f"{path}[{index}]", depth=depth + 1)
            index += 1
            self.path = f"{path}[{index}]"

    def _fields(self, *, path: str, depth: int) -> tuple[dict[str, Node], dict[str, Scalar]]:
        fields: dict[str, Node] = {}
        keys: dict[str, Scalar] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, path=path, depth=depth + 1)
            if not isinstance(key, Scalar):
                self._add(
                    event,
                    path,
                    "a field's name must be text (text that begins with [ or { needs quotes)",
                )
                line, column = key.line, key.column
                key = Scalar(
                    text="", plain=False, line=line, column=column, end_line=line, end_column=column
                )
            inner = join(path, key.text)
            if key.text in keys:
                self._add(event, inner, f"stands here twice, first in line {keys[key.text].line}")
            value = self._node(next(self._events), path=inner, depth=depth + 1)
            fields.setdefault(key.text, value)
            keys.setdefault(key.text, key)
            self.path = path
        return fields, keys


def _decode(data: bytes, check: Checker) -> str:
    if len(data) > MAX_BYTES:
        check.add_at(1, 1, "", f"is larger than {MAX_BYTES:,} bytes")
        check.finish()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data[: error.start].decode("utf-8")
        line, column = _place(text, len(text))
        check.add_at(
            line,
            column,
            "",
            f"is not UTF-8 text: byte {error.start} is "
            f"0x{data[error.start]:02x}; save the file as UTF-8",
        )
        check.finish()
    text = text.removeprefix("\ufeff")
    if bad := _FORBIDDEN_IN_FILE.search(text):
        line, column = _place(text, bad.start())
        check.add_at(line, column, "", f"the character {_name_character(bad[0])} is not allowed")
        check.finish()
    return text


def _syntax_problem(error: yaml.YAMLError, path: str, check: Checker) -> None:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    else:
        problem, (line, column) = str(error).split("\n")[0], (1, 1)
    hint = next((f" ({hint})" for sign, hint in _HINTS.items() if sign in problem), "")
    check.add_at(line, column, path, f"is not valid YAML: {problem}{hint}")


def read_text(path: Path, check: Checker) -> str:
    """The text of a document's file, without a byte order mark.

    Raises:
        UserError: when the file cannot be read, is too large, not UTF-8, or holds a character that
            is refused.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{check.file}:1:1: document: cannot be read: {error.strerror}") from error
    return _decode(data, check)


def read(text: str, check: Checker) -> Node:
    """The root node of a YAML text.

    Raises:
        UserError: when it is empty, not YAML, or uses a part of YAML that is refused.
    """
    composer = _Composer(text, check)
    root = None
    try:
        root = composer.document()
    except yaml.YAMLError as error:
        _syntax_problem(error, composer.path, check)
    check.finish()
    if root is None:
        check.add_at(1, 1, "", "is empty")
        check.finish()
    assert root is not None
    return root
