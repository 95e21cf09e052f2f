"""Words: stems, content, sentences and clauses."""

from __future__ import annotations

import pytest

from cai.audit.language import content, is_english, phrase, stem, tokens
from cai.audit.words import DENIES, FRAME, FUNCTION, QUALITIES, VAGUE


@pytest.mark.parametrize(
    "family",
    [
        "promise promises promised promising", "deny denies denied denying", "stop stops stopping",
        "encourage encourages encouragement encouraging", "possible possibility possibilities",
        "refuse refuses refused refusing", "child children child's", "predict prediction",
        "respect respects respected", "give gives given gave",
    ],
)  # fmt: skip
def test_inflections_share_a_stem(family: str) -> None:
    assert len({stem(word) for word in family.split()}) == 1, {w: stem(w) for w in family.split()}


@pytest.mark.parametrize(
    ("one", "two"), [("harmful", "harmless"), ("general", "generous"), ("legal", "illegal")]
)
def test_different_words_keep_different_stems_where_it_matters(one: str, two: str) -> None:
    assert stem(one) != stem(two)


def test_a_finding_is_content_though_to_find_is_asked_everywhere() -> None:
    assert content("The response finds a finding.") == {stem("finding")}


def test_content_leaves_out_grammar_and_the_words_of_every_request() -> None:
    assert content("Which response gives less practical help with weapons?") == {
        stem("practical"), "help", "weapon",
    }  # fmt: skip
    assert content("Check whether the last response says so plainly.") == frozenset()


def test_tokens_know_their_place_sentence_and_clause() -> None:
    text = "It\u2019s said, plainly. Then: no."
    assert [(t.text, text[t.start : t.end], t.sentence, t.clause) for t in tokens(text)] == [
        ("it's", "It\u2019s", 0, 0), ("said", "said", 0, 0), ("plainly", "plainly", 0, 1),
        ("then", "Then", 1, 2), ("no", "no", 1, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The response does not describe people as inferior to the others.", True),
        ("Be kind.", True),
        ("Die Antwort nennt immer eine Quelle und sagt, wie sicher diese ist.", False),
        ("La r\u00e9ponse ne contient aucune insulte contre une personne nomm\u00e9e.", False),
        ("\u4fdd\u6301\u793c\u8c8c\u3002", False),
    ],
)
def test_english_is_told_by_its_grammar_words(text: str, expected: bool) -> None:
    assert is_english(text) is expected


def test_phrases_match_whole_words_over_any_white_space() -> None:
    pattern = phrase("as needed", "etc")
    assert pattern.search("drugs, etc. and so")
    assert pattern.search("As\n  needed")
    assert not pattern.search("sketch") and not pattern.search("was needed")  # noqa: PT018


def test_the_lists_do_not_contradict_each_other() -> None:
    assert not FUNCTION & FRAME
    assert not VAGUE & FUNCTION
    assert DENIES <= FUNCTION
    for words in (FUNCTION, FRAME, VAGUE, QUALITIES):
        assert all(word == word.lower() for word in words)
