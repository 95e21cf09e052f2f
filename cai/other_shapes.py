r"""Constitutions in other shapes than ours: sentences in a text file, and JSON.

A `.txt` file has one principle a line; empty lines and lines that begin with `#` are passed over,
and so are the marks of a list (`- `, `* `, `1. `) before a sentence. A `.json` file holds our own
fields, a list of sentences, or pairs of a critique and a revision request as others publish them::

    {"harmful0": {"prompt": ["\n\nCritiqueRequest: ...\n\nCritique:"],
                  "edit_request": "\n\nRevisionRequest: ...\n\nRevision:"}, ...}
    [{"name": "...", "critique_request": "...", "revision_request": "..."}, ...]
    {"constitutions": [{"critic": "...", "revision": "..."}], ...}

(the files of Bai et al. 2022, of LangChain's chain, and of Hugging Face's recipe). The marks around
a request (`CritiqueRequest:`, `Critique:`) are dropped, because ours are added when it is asked.
Such a pair has no principle: `principle_of_pair` says what stands for it, and an audit asks for a
sentence in its place. JSON is read into the same nodes as YAML, with line and column, under the
same limits.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from json.decoder import JSONDecodeError, scanstring
from pathlib import Path
from typing import NoReturn

from cai.documents import (
    MAX_NAME,
    MAX_PRINCIPLES,
    UNGUIDED_ID,
    Draft,
    Own,
    Principle,
    derive_forms,
    name_of_file,
    note_id,
    read_draft,
)
from cai.yaml_nodes import (
    IDENTIFIER,
    LINE_END,
    MAX_DEPTH,
    Checker,
    Mapping,
    Node,
    Scalar,
    Sequence,
    join,
)

ENDINGS = (".json", ".txt")

OF_PAIR = "Nothing in the response would have to change under this request: "

_LIST_MARK = re.compile(r"(?:[-*\u2022]|\d{1,3}[.)])\s+")
_SPACE = re.compile(r"[ \t\r\n]*")
_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_CRITIQUE = ("prompt", "critique_request", "critic")
_REVISE = ("edit_request", "revision_request", "revision")
_MARK = re.compile(r"\A\s*(?:Critique|Revision)\s*Request:\s*|\s*\b(?:Critique|Revision):\s*\Z")


def read_shape(text: str, *, path: Path, check: Checker) -> Draft:
    """The document in a `.txt` or `.json` file; problems are noted as `read_draft` does.

    Raises:
        UserError: when nothing can be read at all.
    """
    if path.suffix == ".txt":
        return read_draft(_sentences(text, check), path=path, check=check)
    root = _Reader(text, check).document()
    pairs = _pairs(root)
    if pairs is None:
        return read_draft(root, path=path, check=check)
    if len(pairs) > MAX_PRINCIPLES:
        one = pairs[MAX_PRINCIPLES]
        check.add(one.node, one.path, f"is one too many: at most {MAX_PRINCIPLES:,} are allowed")
        check.finish()
    own, seen = [], {}
    for pair in pairs:
        own.append(_own(pair, path=path, check=check))
        note_id(own[-1], seen, check)
    return Draft(
        name=check.text(name_of_file(path), "name", limit=MAX_NAME),
        version="0",
        description="",
        parents=(),
        own=tuple(own),
        unguided=None,
        compliance=None,
        root=root,
        unguided_node=None,
    )


def _sentences(text: str, check: Checker) -> Sequence:
    items: list[Node] = []
    for number, line in enumerate(text.splitlines(), start=1):
        sentence = line.strip()
        if not sentence or sentence.startswith("#"):
            continue
        if mark := _LIST_MARK.match(sentence):
            sentence = sentence[mark.end() :]
        column = line.find(sentence) + 1
        items.append(
            Scalar(
                text=sentence, plain=False, line=number, column=column, end_line=number,
                end_column=column + len(sentence),
            )
        )  # fmt: skip
    if not items:
        check.add_at(1, 1, "", "is empty")
        check.finish()
    return Sequence(items=tuple(items), line=items[0].line, column=items[0].column)


def principle_of_pair(revise: str) -> str:
    """What stands for the principle that a pair of requests has not got."""
    return OF_PAIR + revise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    name: str
    node: Mapping
    path: str


def _pairs(root: Node) -> list[_Pair] | None:
    """The pairs of a document, or None when it is in another shape."""
    if isinstance(root, Mapping) and isinstance(root.fields.get("constitutions"), Sequence):
        return _pairs(root.fields["constitutions"])
    if isinstance(root, Mapping):
        named = [(key, value, join("", key)) for key, value in root.fields.items()]
    elif isinstance(root, Sequence):
        named = [("", item, f"principles[{index}]") for index, item in enumerate(root.items)]
    else:
        return None
    known = {*_CRITIQUE, *_REVISE}
    pairs = []
    for name, value, path in named:
        if not isinstance(value, Mapping) or not known & set(value.fields):
            return None
        own = value.fields.get("name")
        pairs.append(
            _Pair(name=own.text if isinstance(own, Scalar) else name, node=value, path=path)
        )
    return pairs or None


def _own(pair: _Pair, *, path: Path, check: Checker) -> Own:
    critique = _request(pair, _CRITIQUE, check)
    revise = _request(pair, _REVISE, check)
    texts = {
        name: _MARK.sub("", _MARK.sub("", check.text(node, where)))
        for name, (node, where) in {"critique": critique, "revise": revise}.items()
    }
    for name, (node, where) in {"critique": critique, "revise": revise}.items():
        if not texts[name] and isinstance(node, Scalar) and node.text.strip():
            check.add(node, where, "holds nothing but marks")
    sentence = principle_of_pair(texts["revise"])
    usable = IDENTIFIER.fullmatch(pair.name) and pair.name != UNGUIDED_ID
    return Own(
        principle=Principle(
            id=pair.name if usable else "",
            principle=sentence,
            critique=texts["critique"],
            revise=texts["revise"],
            compare=derive_forms(sentence).compare,
            scope=(),
            weight=1.0,
            source="",
            tests=(),
            document=path.name,
        ),
        node=pair.node,
        path=pair.path,
        fields={"critique": critique[0], "revise": revise[0]},
    )


def _request(pair: _Pair, names: tuple[str, ...], check: Checker) -> tuple[Node, str]:
    """The request under any of these names; the paper's files have lists of one text."""
    for name in names:
        if name in pair.node.fields:
            node, path = pair.node.fields[name], join(pair.path, name)
            if isinstance(node, Sequence) and len(node.items) == 1:
                return node.items[0], f"{path}[0]"
            return node, path
    check.add(pair.node, join(pair.path, names[0]), f"is missing; also known as {names[1]}")
    line, column = pair.node.line, pair.node.column
    nothing = Scalar(
        text="-", plain=False, line=line, column=column, end_line=line, end_column=column
    )
    return nothing, pair.path


class _Reader:
    """JSON into nodes; what is no text, list or mapping becomes the text it is written as."""

    def __init__(self, text: str, check: Checker) -> None:
        self._text = text
        self._check = check
        self._at = 0
        self._lines = [0, *(match.end() for match in LINE_END.finditer(text))]

    def _place(self) -> tuple[int, int]:
        line = bisect.bisect(self._lines, self._at)
        return line, self._at - self._lines[line - 1] + 1

    def document(self) -> Node:
        self._skip()
        if self._at == len(self._text):
            self._fail("", "is empty")
        root = self._value("", depth=1)
        self._skip()
        if self._at < len(self._text):
            self._fail("", "is not valid JSON: something follows the end of the document")
        self._check.finish()
        return root

    def _fail(self, path: str, message: str) -> NoReturn:
        """Raise: what follows a mistake cannot be read."""
        self._check.add_at(*self._place(), path, message)
        self._check.finish()
        raise AssertionError("a noted problem is raised")

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _next(self, path: str, expected: str) -> str:
        self._skip()
        found = self._text[self._at : self._at + 1]
        if not found or found not in expected:
            wanted = " or ".join(expected)
            what = repr(found) if found else "the end of the file"
            self._fail(path, f"is not valid JSON: expected {wanted}, found {what}")
        self._at += 1
        return found

    def _value(self, path: str, *, depth: int) -> Node:
        self._skip()
        begin = self._text[self._at : self._at + 1]
        line, column = self._place()
        if begin in ("{", "[") and depth > MAX_DEPTH:
            self._fail(path, f"is nested more than {MAX_DEPTH} levels deep")
        if begin == "{":
            return self._mapping(path, line, column, depth)
        if begin == "[":
            return self._sequence(path, line, column, depth)
        return self._scalar(path, line, column)

    def _scalar(self, path: str, line: int, column: int) -> Scalar:
        quoted = self._text[self._at : self._at + 1] == '"'
        text = self._quoted(path) if quoted else self._literal(path)
        end_line, end_column = self._place()
        return Scalar(
            text=text, plain=not quoted, line=line, column=column, end_line=end_line,
            end_column=end_column,
        )  # fmt: skip

    def _quoted(self, path: str) -> str:
        try:
            text, self._at = scanstring(self._text, self._at + 1, True)
        except JSONDecodeError as error:
            self._at = min(error.pos, len(self._text))
            self._fail(path, f"is not valid JSON: {error.msg}")
        return text

    def _literal(self, path: str) -> str:
        match = _LITERAL.match(self._text, self._at)
        if match is None:
            self._fail(path, "is not valid JSON: expected a value")
        self._at = match.end()
        return match[0]

    def _sequence(self, path: str, line: int, column: int, depth: int) -> Sequence:
        self._at += 1
        items: list[Node] = []
        self._skip()
        if self._text.startswith("]", self._at):
            self._at += 1
            return Sequence(items=(), line=line, column=column)
        while True:
            items.append(self._value(f"{path}[{len(items)}]", depth=depth + 1))
            if self._next(path, ",]") == "]":
                return Sequence(items=tuple(items), line=line, column=column)

    def _mapping(self, path: str, line: int, column: int, depth: int) -> Mapping:
        self._at += 1
        fields: dict[str, Node] = {}
        keys: dict[str, Scalar] = {}
        self._skip()
        if self._text.startswith("}", self._at):
            self._at += 1
            return Mapping(fields={}, keys={}, line=line, column=column)
        while True:
            self._skip()
            if not self._text.startswith('"', self._at):
                self._fail(path, "is not valid JSON: a field's name must be text in quotes")
            key = self._scalar(path, *self._place())
            inner = join(path, key.text)
            if key.text in keys:
                self._check.add(
                    key, inner, f"stands here twice, first in line {keys[key.text].line}"
                )
            self._next(inner, ":")
            value = self._value(inner, depth=depth + 1)
            fields.setdefault(key.text, value)
            keys.setdefault(key.text, key)
            if self._next(path, ",}") == "}":
                return Mapping(fields=fields, keys=keys, line=line, column=column)
