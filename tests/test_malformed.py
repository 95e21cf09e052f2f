"""Malformed and hostile documents: one error each, with its place, and nothing else happens.

Every case is a file that a person might be sent. What must not happen is watched by an audit hook
of the interpreter: no other file is opened, nothing is imported, run or connected to.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cai.constitution import Constitution, load
from cai.errors import UserError

_seen: list[tuple[str, str]] | None = None
"""Events since `watched` began; None outside of it."""

_ACTS = ("open", "import", "exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.",
         "urllib.", "pickle.")  # fmt: skip
_LOOKS = ("os.listdir", "os.scandir", "os.getxattr")


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event.startswith(_ACTS) and event not in _LOOKS:
        _seen.append((event, str(arguments[0]) if arguments else ""))


sys.addaudithook(_note)  # for the life of the process; it sleeps unless a test is watching


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """What the interpreter does in the block: files, imports, processes, connections."""
    global _seen
    events: list[tuple[str, str]] = []
    _seen = events
    try:
        yield events
    finally:
        _seen = None


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: str | bytes, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def read(write):
    def read_text(content: str | bytes, name: str = "my.yaml") -> Constitution:
        path = write(content, name)
        return load(str(path), folder=path.parent)

    return read_text


def principles(*texts: str) -> str:
    return "name: x\nprinciples:\n" + "".join(texts)


P = "name: x\nprinciples:\n"
UNGUIDED = "unguided: {critique: c, revise: r, compare: m}\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: [*c, *c]\n"
TEST = "  tests:\n  - prompt: p\n    better: b\n    worse: "

# label: content, line:column, field path, part of the message
MALFORMED: dict[str, tuple[str | bytes, str, str, str]] = {
    "empty": ("", "1:1", "document", "is empty"),
    "white space": ("  \n\n", "1:1", "document", "is empty"),
    "comment only": ("# nothing\n", "1:1", "document", "is empty"),
    "latin-1": (b"name: caf\xe9\n", "1:10", "document", "byte 9 is 0xe9"),
    "utf-16": ("name: x".encode("utf-16"), "1:1", "document", "byte 0 is 0xff"),
    "truncated utf-8": (b"name: x\n# \xe6\xbc", "2:3", "document", "byte 10 is 0xe6"),
    "encoded surrogate": (b"name: \xed\xa0\x80", "1:7", "document", "not UTF-8"),
    "NUL": ("name: x\n- \0", "2:3", "document", "U+0000"),
    "escape": ("name: \x1b[31m", "1:7", "document", "U+001B"),
    "line separator": ("name: a\u2028b", "1:8", "document", "U+2028"),
    "next line": ("name: a\x85b", "1:8", "document", "U+0085"),
    "bidi override": ("name: a\u202eb", "1:8", "document", "U+202E"),
    "escaped bell": (P + '- "a\\x07"', "3:3", "principles[0]", "U+0007"),
    "escaped carriage return": (P + '- "a\\r"', "3:3", "principles[0]", "U+000D"),
    "lone surrogate": (P + '- "\\ud800"', "3:6", "principles[0]", "not valid YAML"),
    "too large": ("x" * 262_145, "1:1", "document", "larger than 262,144 bytes"),
    "ten megabytes": ("- Be kind.\n" * 1_000_000, "1:1", "document", "larger than 262,144 bytes"),
    "control token": (P + "- a <|im_start|>system", "3:3", "principles[0]", "'<|im_start|>'"),
    "instruction mark": (P + "- '[INST] a'", "3:3", "principles[0]", "'[INST]'"),
    "end of text": (P + "- Be kind.</s>", "3:3", "principles[0]", "'</s>'"),
    "turn mark": (P + "- {principle: a, source: <start_of_turn>}", "3:26", "principles[0].source",
                  "a control token of a chat template"),
    "token of another family": (P + "- <\uff5cUser\uff5c> a", "3:3", "principles[0]", "control"),
    "control token in a name": ("name: <|system|>\nprinciples: [a]", "1:7", "name", "control"),
    "name as path": ("name: ../../etc/x\nprinciples: [a]", "1:7", "name", "must be no path"),
    "name with backslash": ("name: a\\b\nprinciples: [a]", "1:7", "name", "must be no path"),
    "name of dots": ("name: ..\nprinciples: [a]", "1:7", "name", "must be no path"),
    "extends up": ("name: x\nextends: ../secret", "2:10", "extends", "leads out of"),
    "extends absolute": ("name: x\nextends: [/etc/secret]", "2:11", "extends[0]", "leads out of"),
    "extends home": ("name: x\nextends: ~/secret", "2:10", "extends", "leads out of"),
    "extends through below": ("name: x\nextends: {document: a/../../secret}", "2:21",
                              "extends.document", "leads out of"),
    "extends with backslashes": ("name: x\nextends: ..\\secret", "2:10", "extends", "leads out of"),
    "second document": ("name: x\n---\nname: y\n", "2:1", "document", "a second document"),
    "python tag": ("name: !!python/object/apply:os.system [id]", "1:7", "name", "the tag"),
    "local tag": (P + "- !x y", "3:3", "principles[0]", "the tag '!x'"),
    "string tag": ("name: !!str x", "1:7", "name", "the tag"),
    "anchor": (P + "- &a b", "3:3", "principles[0]", "the anchor &a"),
    "alias": (P + "- *a", "3:3", "principles[0]", "the alias *a"),
    "alias bomb": (BOMB, "1:4", "a", "the anchor &a"),
    "merge key": (P + "- {<<: {id: a}}", "3:4", "principles[0].'<<'", "not a field"),
    "asterisk": (P + "- *Never* lie", "3:9", "principles[0]", "needs quotes"),
    "tab": ("name: x\nprinciples:\n\t- a", "3:1", "document", "spaces, not tabs"),
    "open quote": (P + "- 'a\n", "4:1", "principles[0]", "never closed"),
    "open brace": ("{name: x\n", "2:1", "document", "not valid YAML"),
    "colon in text": (P + "- principle: a: b", "3:15", "principles[0]", "needs quotes"),
    "sentence with colon": (P + "- Be kind: always", "3:3", "principles[0].'Be kind'", "quotes"),
    "at sign": ("name: @x", "1:7", "document", "needs quotes"),
    "deep": ("[" * 100_000, "1:9", "[0][0][0][0][0][0][0][0]", "more than 8 levels"),
    "list as key": ("? [a]\n: b", "1:3", "document", "name must be text"),
    "duplicate field": ("name: x\nname: y", "2:1", "name", "twice, first in line 1"),
    "duplicate inner field": (P + "- id: a\n  id: b", "4:3", "principles[0].id", "twice"),
    "text": ("just text", "1:1", "document", "must be a mapping or a list"),
    "empty list": ("[]", "1:1", "principles", "is empty"),
    "no name": ("version: 1\nprinciples: [a]", "1:1", "name", "is missing"),
    "no principles": ("name: x", "1:1", "principles", "is missing"),
    "unknown field": ("name: x\nprincipals: [a]\n", "2:1", "principals", "Did you mean principles"),
    "unknown in principle": (P + "- {id: a, weigth: 1}", "3:11", "principles[0].weigth", "weight?"),
    "unknown in test": (P + "- tests: [{promt: a}]", "3:12", "principles[0].tests[0].promt", "pro"),
    "principles as text": ("name: x\nprinciples: a", "2:13", "principles", "must be a list"),
    "principles as mapping": (P + "  a: b", "3:3", "principles", "must be a list"),
    "principle as list": (P + "- [a]", "3:3", "principles[0]", "must be text, found a list"),
    "no sentence": (P + "- {id: a}", "3:3", "principles[0].principle", "is missing"),
    "form as list": (P + "- {principle: a, revise: [b]}", "3:26", "principles[0].revise", "text"),
    "form as mapping": (P + "- principle: {a}", "3:14", "principles[0].principle", "a mapping"),
    "empty item": (P + "- a\n-\n", "4:2", "principles[1]", "is empty"),
    "blank text": (P + "- '  '", "3:3", "principles[0]", "is empty"),
    "null": (P + "- principle: ~", "3:14", "principles[0].principle", "is empty"),
    "empty source": (P + "- {principle: a, source: ''}", "3:26", "principles[0].source", "empty"),
    "long text": (P + "- " + "a" * 4001, "3:3", "principles[0]", "has 4,001 characters"),
    "upper-case id": (P + "- {id: A, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "id with dash": (P + "- {id: a-b, principle: b}", "3:8", "principles[0].id", "'a-b'"),
    "path as id": (P + "- {id: ../a, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "long id": (P + f"- {{id: {'a' * 65}, principle: b}}", "3:8", "principles[0].id", "64"),
    "number as id": (P + "- {id: 1, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "id with newline": (P + '- {id: "a\\nb", principle: b}', "3:8", "principles[0].id", "lower-c"),
    "reserved id": (P + "- {id: unguided, principle: b}", "3:8", "principles[0].id", "kept for"),
    "duplicate id": (P + "- {id: a, principle: b}\n- {id: a, principle: c}", "4:8",
                     "principles[1].id", "already the id of principles[0] in line 3"),
    "repeated sentence": (P + "- Be kind.\n- be  kind.", "4:3", "principles[1]", "repeats"),
    "negative weight": (P + "- {principle: a, weight: -1}", "3:26", "principles[0].weight",
                        "must be above 0, found -1"),
    "weight 0": (P + "- {principle: a, weight: 0.0}", "3:26", "principles[0].weight", "above 0"),
    "weight nan": (P + "- {principle: a, weight: .nan}", "3:26", "principles[0].weight", "finite"),
    "weight inf": (P + "- {principle: a, weight: inf}", "3:26", "principles[0].weight", "finite"),
    "weight 1e999": (P + "- {principle: a, weight: 1e999}", "3:26", "principles[0].weight", "fini"),
    "weight huge": (P + "- {principle: a, weight: 1e7}", "3:26", "principles[0].weight", "at most"),
    "weight as word": (P + "- {principle: a, weight: high}", "3:26", "principles[0].weight",
                       "must be a number, found text 'high'"),
    "weight quoted": (P + "- {principle: a, weight: '2'}", "3:26", "principles[0].weight",
                      "without quotes"),
    "weight hex": (P + "- {principle: a, weight: 0x10}", "3:26", "principles[0].weight", "number"),
    "weight as list": (P + "- {principle: a, weight: [1]}", "3:26", "principles[0].weight", "list"),
    "weight missing": (P + "- principle: a\n  weight:\n", "4:10", "principles[0].weight",
                       "found nothing"),
    "scope as text": (P + "- {principle: a, scope: b}", "3:25", "principles[0].scope", "a list"),
    "scope tag": (P + "- {principle: a, scope: [B]}", "3:26", "principles[0].scope[0]", "lower"),
    "scope twice": (P + "- {principle: a, scope: [b, b]}", "3:29", "principles[0].scope[1]",
                    "twice"),
    "scope empty": (P + "- {principle: a, scope: []}", "3:25", "principles[0].scope", "leave"),
    "tests as mapping": (P + "- {principle: a, tests: {}}", "3:25", "principles[0].tests", "a lis"),
    "test as text": (P + "- {principle: a, tests: [b]}", "3:26", "principles[0].tests[0]", "mapp"),
    "test without worse": (P + "- principle: a\n" + TEST + "''", "7:12",
                           "principles[0].tests[0].worse", "is empty"),
    "test with equals": (P + "- principle: a\n" + TEST + "b", "7:12",
                         "principles[0].tests[0].worse", "the same text as `better`"),
    "too many": (P + "- a\n" * 2_000, "1003:3", "principles[1000]", "at most 1,000"),
    "unguided missing": ("name: x\nprinciples: []", "1:1", "unguided", "is missing"),
    "unguided with principles": (P + "- a\n" + UNGUIDED, "4:11", "unguided", "only for documents"),
    "unguided incomplete": ("name: x\nprinciples: []\nunguided: {revise: r, compare: c}", "3:11",
                            "unguided.critique", "is missing"),
    "unguided as text": ("name: x\nprinciples: []\nunguided: a", "3:11", "unguided", "a mapping"),
    "extends nobody": ("name: x\nextends: nobody", "2:10", "extends", "no document 'nobody'"),
    "extends close": ("name: x\nextends: [oter]", "2:11", "extends[0]", "Did you mean other?"),
    "extends itself": ("name: x\nextends: my", "2:10", "extends", "my.yaml -> my.yaml"),
    "extends empty list": ("name: x\nextends: []", "2:10", "extends", "is empty"),
    "extends unnamed": ("name: x\nextends: {only: [a]}", "2:10", "extends.document", "is missing"),
    "extends both": ("name: x\nextends: {document: other, only: [a], except: [a]}", "2:39",
                     "extends.except", "beside `only`"),
    "extends wrong id": ("name: x\nextends: {document: other, only: [be_knd]}", "2:35",
                         "extends.only[0]", "Did you mean be_kind?"),
    "extends unknown": ("name: x\nextends: {document: other, without: [a]}", "2:28",
                        "extends.without", "known are document, only, except"),
    "directive": ("%YAML 9.9\n---\n- a\n", "1:1", "document", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("label", MALFORMED)
def test_a_malformed_document_is_one_error_with_its_place_and_nothing_else_happens(
    write, tmp_path: Path, label: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "secret.yaml").write_text("- Be kind.\n")
    write("- Be kind.\n", "own/other.yaml")
    content, place, path, message = MALFORMED[label]
    document = write(content, "own/my.yaml")
    with watched() as events, pytest.raises(UserError) as caught:
        load(str(document), folder=folder)
    lines = str(caught.value).split("\n")
    assert all(re.search(r"(^|/)my\.yaml:\d+:\d+: \S.*?: \S", line) for line in lines)
    expected = re.compile(rf"(^|/)my\.yaml:{place}: {re.escape(path)}: .*{re.escape(message)}")
    assert any(expected.search(line) for line in lines), lines
    assert {event for event, _ in events} <= {"open"}
    assert {Path(opened).parent for _, opened in events} <= {folder}


def test_the_watch_sees_what_a_document_must_not_do(tmp_path: Path) -> None:
    with watched() as events:
        (tmp_path / "x").write_text("x")
        exec("import wave")
    assert {"open", "exec", "import"} <= {event for event, _ in events}


def test_there_are_enough_malformed_cases() -> None:
    assert len(MALFORMED) >= 60


def test_a_cycle_of_documents_is_one_error_at_the_field_that_closes_it(read, write) -> None:
    write("name: a\nextends: b\n", "a.yaml")
    write("name: b\nextends: c\n", "b.yaml")
    with pytest.raises(UserError) as caught:
        read("name: c\nextends: [a]\n", "c.yaml")
    (line,) = str(caught.value).split("\n")
    assert re.search(r"b\.yaml:2:10: extends: extends itself: c\.yaml -> a\.yaml -> b\.yaml", line)


def test_all_problems_are_reported_in_the_order_of_the_file(read):
    with pytest.raises(UserError) as caught:
        read("nam: x\nprinciples:\n- {id: A, principle: b, weight: 0}\n- ''\n- {id: b, scope: c}\n")
    places = re.findall(r"my\.yaml:(\d+:\d+): ([\w\[\].]+):", str(caught.value))
    assert places == [
        ("1:1", "nam"), ("1:1", "name"), ("3:8", "principles[0].id"),
        ("3:33", "principles[0].weight"), ("4:3", "principles[1]"),
        ("5:3", "principles[2].principle"), ("5:18", "principles[2].scope"),
    ]  # fmt: skip


HOSTILE = {
    "unknown fields": "".join(f"k{i}: a\n" for i in range(25_000)),
    "duplicate fields": "a: a\n" * 50_000,
    "braces": "{" * 250_000,
    "questions": "? " * 100_000,
    "anchors": "- &a b\n" * 35_000,
    "colons": "a: " * 80_000,
    "equal slugs": "".join(f"- a{'!' * (i % 40)}{chr(0x4E00 + i)}\n" for i in range(5_000)),
    "one long quote": '"' + "\\x20" * 60_000,
    "long key": "a" * 250_000 + ": b",
}


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_documents_are_refused_with_a_bounded_message(read, label: str) -> None:
    with watched() as events, pytest.raises(UserError) as caught:
        read(HOSTILE[label])
    assert len(str(caught.value)) < 60_000
    assert {event for event, _ in events} <= {"open"}


def test_messages_never_carry_control_characters_of_the_document(read):
    with pytest.raises(UserError) as caught:
        read(principles('- {id: "\\e[31mred", principle: b, "\\a": c}\n'))
    assert str(caught.value).replace("\n", "").isprintable()
