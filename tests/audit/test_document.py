"""Places: every text is found again in its file, however YAML spells it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from cai import paths
from cai.audit.comments import comments
from cai.audit.document import read_written
from cai.constitution import load
from cai.yaml_nodes import Checker, read
from tests.audit.written import Write

SPELLINGS = {
    "folded": "    principle: >-\n      The response names\n      a source.\n",
    "literal": "    principle: |-\n      The response names\n      a source.\n",
    "plain": "    principle: The response\n      names a source.\n",
    "double": '    principle: "The response\n      names a source."\n',
    "single": "    principle: 'The response names a source.'\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_quote_is_found_on_its_line_in_every_spelling(write: Write, spelling: str) -> None:
    text = "name: x\nprinciples:\n  - id: a\n" + SPELLINGS[spelling] + "    weight: 2\n"
    passage = write(text).principles[0].passages["principle"]
    start = passage.text.index("a source")
    quote = passage.quote(start, start + len("a source"))
    line = text.split("\n")[quote.line - 1]
    assert line[quote.column - 1 :].startswith("a source")
    assert quote.field == "principles[0].principle"
    assert quote.text == "a source"


def test_a_repeated_word_is_found_at_its_own_place(write: Write) -> None:
    document = write("- kind and\n  kind and\n  kind\n")
    passage = document.principles[0].passages["principle"]
    places = [
        passage.quote(match.start(), match.end()) for match in re.finditer("kind", passage.text)
    ]
    assert [(place.line, place.column) for place in places] == [(1, 3), (2, 3), (3, 3)]


def test_a_word_that_the_file_spells_otherwise_is_placed_at_its_text(write: Write) -> None:
    document = write("- \"a\\x20b c\"\n- 'it''s here'\n")
    first, second = (written.passages["principle"] for written in document.principles)
    assert (first.quote(0, 3).text, first.quote(0, 3).line, first.quote(0, 3).column) == (
        "a b", 1, 3,
    )  # fmt: skip
    assert (second.quote(0, 4).line, second.quote(0, 4).column) == (2, 3)


def test_a_byte_order_mark_and_carriage_returns_move_nothing(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffname: x\r\nprinciples:\r\n- The big\r\n  dog.\r\n".encode())
    passage = read_written(load(str(path), folder=tmp_path)).principles[0].passages["principle"]
    quote = passage.quote(8, 11)
    assert (quote.text, quote.line, quote.column) == ("dog", 4, 3)


@pytest.mark.parametrize("name", sorted(path.stem for path in paths.CONSTITUTIONS.glob("*.yaml")))
def test_every_word_of_the_shipped_documents_is_where_it_is_said_to_be(name: str) -> None:
    document = read_written(load(name, folder=paths.CONSTITUTIONS))
    files = {file.shown: file.lines for file in document.files}
    assert len(document.principles) == len(document.constitution.principles)
    for written in document.principles:
        assert set(written.passages) == {"principle", "critique", "revise", "compare"}
        assert len(written.tests) == len(written.principle.tests)
        tests = [(test.prompt, test.better, test.worse) for test in written.tests]
        for passage in (*written.passages.values(), *written.tags, *itertools.chain(*tests)):
            ends = [match.end() for match in re.finditer(r"\S+", passage.text)]
            for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True):
                quote = passage.quote(start, end)
                line = files[quote.file][quote.line - 1]
                if "\\" not in line:  # an escape: the place of the whole text
                    assert line[quote.column - 1 :].startswith(quote.text), (name, quote)
                assert quote.line in quote.anchors


def test_derived_forms_have_no_place_and_inherited_texts_are_in_their_own_file(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "parent.yaml").write_text("- {principle: Be kind., compare: Which is kinder?}\n")
    document = write("name: c\nextends: parent\nprinciples: [Be brief.]\n")
    assert [set(written.passages) for written in document.principles] == [
        {"principle", "compare"}, {"principle"},
    ]  # fmt: skip
    kind, brief = (written.passages["principle"].quote() for written in document.principles)
    assert kind.file.endswith("parent.yaml")
    assert brief.file.endswith("my.yaml")
    assert {Path(file.shown).name for file in document.files} == {"parent.yaml", "my.yaml"}


COMMENTED = """\
# top
name: x # after a value
description: "a # b # c"
principles: # after a key
  - id: one
    principle: >- # on the header
      text # not a comment
      # nor this
    # between
    critique: |
      # text
    revise: 'quoted
      # text' # after a quote
    compare: a#b # c
    source: http://x/#anchor
"""


def test_comments_are_what_yaml_takes_for_comments() -> None:
    check = Checker("x")
    found = comments(".yaml", COMMENTED.split("\n"), read(COMMENTED, check))
    assert [(comment.line, comment.text, comment.alone) for comment in found] == [
        (1, "# top", True), (2, "# after a value", False), (4, "# after a key", False),
        (6, "# on the header", False), (9, "# between", True), (13, "# after a quote", False),
        (14, "# c", False),
    ]  # fmt: skip


def test_a_document_without_principles_has_a_title_and_nothing_else() -> None:
    document = read_written(load("none", folder=paths.CONSTITUTIONS))
    assert document.principles == ()
    assert (document.title.text, document.title.line) == ('name: "none"', 1)
