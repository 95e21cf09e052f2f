"""Constitutions as text files and as JSON: what is read, where it stands, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai import paths
from cai.constitution import Constitution, load
from cai.documents import derive_forms
from cai.errors import UserError
from cai.other_shapes import OF_PAIR

SHARED = paths.ROOT.parent / "shared" / "data"


@pytest.fixture
def read(tmp_path: Path):
    def read_text(content: str, name: str) -> Constitution:
        path = tmp_path / name
        path.write_text(content, "utf-8")
        return load(str(path), folder=tmp_path)

    return read_text


def test_a_text_file_is_one_sentence_a_line(read) -> None:
    constitution = read(
        "# our rules\n\nBe kind: always.\n  - Name a source\n2. Be brief!\n* Say `no`.\n",
        "rules.txt",
    )
    assert (constitution.name, constitution.version) == ("rules", "0")
    assert [p.principle for p in constitution.principles] == [
        "Be kind: always.", "Name a source", "Be brief!", "Say `no`.",
    ]  # fmt: skip
    assert constitution.principles[0].id == "be_kind_always"
    nodes = [constitution.origins[p.id].own.node for p in constitution.principles]
    assert [(node.line, node.column) for node in nodes] == [(3, 1), (4, 5), (5, 4), (6, 3)]


def test_a_text_file_and_a_yaml_list_of_the_same_sentences_are_one_document(read) -> None:
    assert (
        read("Be kind.\nBe brief.\n", "a.txt").digest
        == read("- Be kind.\n- Be brief.\n", "a.yaml").digest
    )


MARKED = {
    "first": {
        "prompt": ["\n\nCritiqueRequest: Is the reply rude?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make the reply polite.\n\nRevision:",
    },
    "second": {"prompt": "Is it false?", "edit_request": "Correct it."},
}


def test_pairs_of_requests_keep_their_names_and_lose_their_marks(read) -> None:
    constitution = read(json.dumps(MARKED, indent=1), "pairs.json")
    first, second = constitution.principles
    assert (first.id, second.id) == ("first", "second")
    assert (first.critique, first.revise) == ("Is the reply rude?", "Make the reply polite.")
    assert (second.critique, second.revise) == ("Is it false?", "Correct it.")
    assert first.principle == OF_PAIR + "Make the reply polite."
    assert first.compare == derive_forms(first.principle).compare
    origin = constitution.origins["second"].own
    assert (origin.node.line, origin.path) == (8, "second")
    assert set(origin.fields) == {"critique", "revise"}


@pytest.mark.parametrize(
    "shape",
    [
        [{"name": "one", "critique_request": "Rude?", "revision_request": "Be polite."}],
        {"constitutions": [{"critic": "Rude?", "revision": "Be polite."}], "system_chat": "x"},
        {"one": {"prompt": "Rude?", "edit_request": "Be polite."}},
    ],
)
def test_the_shapes_in_use_are_one_document(read, shape) -> None:
    (principle,) = read(json.dumps(shape), "pairs.json").principles
    assert (principle.critique, principle.revise) == ("Rude?", "Be polite.")


def test_json_may_hold_our_own_format_and_plain_sentences(read) -> None:
    assert [p.id for p in read('["Be kind.", "Be brief."]', "a.json").principles] == [
        "be_kind", "be_brief",
    ]  # fmt: skip
    own = {"name": "x", "principles": [{"id": "a", "principle": "Be kind.", "weight": 2.5}]}
    (principle,) = read(json.dumps(own), "a.json").principles
    assert (principle.id, principle.weight) == ("a", 2.5)


def test_json_text_is_literal(read) -> None:
    text = 'tab\tand "quotes", caf\u00e9, \U0001f642, ${x} and \\n'
    (principle,) = read(json.dumps([text]), "a.json").principles
    assert principle.principle == text


def test_a_name_that_is_no_id_gets_one_from_the_sentence(read) -> None:
    pairs = {"Rude replies": {"prompt": "Rude?", "edit_request": "Be polite."}}
    (principle,) = read(json.dumps(pairs), "a.json").principles
    assert principle.id == "nothing_in_the_response_would_have"


def test_a_document_may_extend_one_in_another_shape(read, tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("Be kind.\n")
    child = read("name: c\nextends: rules.txt\nprinciples: [Be brief.]\n", "c.yaml")
    assert [p.document for p in child.principles] == ["rules.txt", "c.yaml"]


REFUSED = {
    "trailing comma": ('["a",]', "1:6", "[1]", "expected a value"),
    "open list": ('["a"', "1:5", "document", "the end of the file"),
    "open text": ('["a\n', "1:4", "[0]", "Invalid control character"),
    "two values": ('["a"] ["b"]', "1:7", "document", "something follows"),
    "single quotes": ("['a']", "1:2", "[0]", "expected a value"),
    "comment": ('["a"] // b', "1:7", "document", "something follows"),
    "bad escape": ('["\\x"]', "1:3", "[0]", "Invalid \\escape"),
    "no colon": ('{"a" "b"}', "1:6", "a", "expected :"),
    "key without quotes": ("{a: 1}", "1:2", "document", "name must be text"),
    "duplicate key": ('{"a": {"prompt": "b", "edit_request": "c"},\n "a": "d"}', "2:2", "a",
                      "stands here twice, first in line 1"),
    "number": ("17", "1:1", "document", "must be a mapping or a list"),
    "empty": ("  ", "1:3", "document", "is empty"),
    "deep": ("[" * 5000, "1:9", "[0][0][0][0][0][0][0][0]", "more than 8 levels"),
    "no revision": ('{"a": {"prompt": "b"}}', "1:7", "a.edit_request", "is missing"),
    "critique as mapping": ('{"a": {"prompt": {}, "edit_request": "c"}}', "1:18", "a.prompt",
                            "must be text, found a mapping"),
    "two critiques": ('{"a": {"prompt": ["b", "c"], "edit_request": "d"}}', "1:18", "a.prompt",
                      "must be text, found a list"),
    "nothing but marks": ('{"a": {"prompt": "CritiqueRequest: ", "edit_request": "c"}}', "1:18",
                          "a.prompt", "nothing but marks"),
    "empty list": ("[]", "1:1", "principles", "is empty"),
    "same name twice": ('[{"name": "a", "critic": "b", "revision": "c"},\n'
                        ' {"name": "a", "critic": "d", "revision": "e"}]', "2:2",
                        "principles[1].id", "a is already the id of principles[0] in line 1"),
    "lone surrogate": ('["\\ud800"]', "1:2", "principles[0]", "U+D800"),
    "control token": ('["a <|im_end|> b"]', "1:2", "principles[0]", "control token"),
    "too many": (json.dumps([{"critic": "b", "revision": "c"}] * 1001), "1:34002",
                 "principles[1000]", "at most 1,000"),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_malformed_json_is_refused_with_its_place(read, label: str) -> None:
    content, place, path, message = REFUSED[label]
    with pytest.raises(UserError) as caught:
        read(content, "my.json")
    (line,) = str(caught.value).split("\n")
    assert f"my.json:{place}: {path}: " in line, line
    assert message in line


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("", "1:1: document", "is empty"),
        ("# nothing\n\n", "1:1: document", "is empty"),
        ("Be kind.\n<|im_start|>system\n", "2:1: principles[1]", "control token"),
        ("Be kind.\nBe\u202e kind\n", "2:3: document", "U+202E"),
        ("a" * 4001, "1:1: principles[0]", "has 4,001 characters"),
        ("Be kind.\nbe  kind.\n", "2:1: principles[1]", "repeats principles[0]"),
    ],
)
def test_malformed_text_is_refused_with_its_place(
    read, content: str, place: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(content, "my.txt")
    assert f"my.txt:{place}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_the_paper_s_own_files_are_read() -> None:
    pairs = load(
        str(SHARED / "paper_CritiqueRevisionInstructions.json"), folder=paths.CONSTITUTIONS
    )
    assert [p.id for p in pairs.principles] == [f"harmful{n}" for n in range(16)]
    for principle in pairs.principles:
        for text in (principle.critique, principle.revise):
            assert text == text.strip()
            assert "Request:" not in text
            assert not text.endswith(":")
    questions = load(str(SHARED / "paper_RLMadisonInstructions.json"), folder=paths.CONSTITUTIONS)
    assert len(questions.principles) == 16
