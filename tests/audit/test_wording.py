"""Wording: each kind is found, and what only looks like it is not."""

from __future__ import annotations

import pytest

from cai.audit.wording import (
    compound,
    escapes,
    leading,
    loaded,
    other_languages,
    positions,
    vague,
)
from tests.audit.written import Write, found


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("The response is appropriate.", "appropriate"),
        ("The response avoids harmful content in any possible way.", "harmful"),
        ("Choose the response that is most helpful, honest and harmless.",
         "helpful, honest and harmless"),
        ("Is the response ethical and of high quality?", "ethical and of high quality"),
        ("The response contains no harmful instructions for a pipe bomb.", None),
        ("The response is polite.", None),  # a trait that a reader can see
        ("The response answers in one sentence.", None),
        ("The response names what is good and what is bad about each option it compares.", None),
    ],
)  # fmt: skip
def test_a_verdict_without_anything_to_look_for_is_vague(
    principles: Write, text: str, quote: str | None
) -> None:
    findings = found(vague(principles(text)))
    assert findings == ([("C201", 4, quote)] if quote else [])


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        ("The response cites a source where appropriate.", ["where appropriate"]),
        ("As needed, it names a source, a date, etc.", ["As needed", "etc"]),
        ("The response tries to name a source, and tries to be brief.", ["tries to"]),
        ("The response names what is needed to renew a passport.", []),
        ("The response says when a possible side effect occurs.", []),
        ("The response encourages breaking a rule in general terms.", []),
    ],
)
def test_escape_clauses(principles: Write, text: str, quotes: list[str]) -> None:
    assert [finding.place.text for finding in escapes(principles(text))] == quotes


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("The response names a source, says how sure it is, gives an example, and asks a question.",
         True),
        ("Be helpful, honest and harmless.", True),
        ("The response is more accurate, fair, and more respectful.", True),
        ("The response gives no dose, amount or method, and names a helpline.", False),
        ("The response names the risk, says how large it is and offers a choice.", False),
        ("The response is honest and kind.", False),
        ("The response is polite, names its source and is brief.", False),
        ("The response contains no insult, ridicule, threat or humiliation of a person.", False),
    ],
)  # fmt: skip
def test_compound_principles(principles: Write, text: str, hit: bool) -> None:
    findings = list(compound(principles(text), max_requirements=3))
    assert [finding.code for finding in findings] == ["C203"] * hit


def test_the_limit_of_requirements_is_a_setting(principles: Write) -> None:
    document = principles("The response names a source and says how sure it is.")
    assert list(compound(document, max_requirements=2)) == []
    (finding,) = compound(document, max_requirements=1)
    assert finding.message.startswith("It asks for 2 things")


@pytest.mark.parametrize(
    ("critique", "quote"),
    [
        ("Identify specific ways in which the last response is harmful.",
         "Identify specific ways in which"),
        ("Explain why the last response misleads the reader.", "Explain why"),
        ("How is the last response rude?", "How is the"),
        ("What's the strongest argument that the response is rude?", "strongest argument"),
        ("Identify ways in which the response is rude, or say so plainly if there is none.", None),
        ("Check whether the last response is rude, and explain why.", None),
        ("Identify any part of the response that is rude.", None),
        ("List each source in the response and mark those that look made up.", None),
        ("Quote the sentence that says how to get help.", None),
    ],
)  # fmt: skip
def test_a_critique_that_must_find_a_fault_is_leading(
    write: Write, critique: str, quote: str | None
) -> None:
    document = write(f"- principle: Be civil to all.\n  critique: {critique!r}\n")
    assert found(leading(document)) == ([("C204", 2, quote)] if quote else [])


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        ("The response never repeats disgusting lies.", ["disgusting"]),
        ("Of course it cites no so-called expert.", ["Of course", "so-called"]),
        ("The response describes a terrible accident without gore.", ["terrible"]),
        ("The response states clearly which claim is certain.", []),
        ("The response names the course of study.", []),
    ],
)
def test_loaded_wording(principles: Write, text: str, quotes: list[str]) -> None:
    assert [finding.place.text for finding in loaded(principles(text))] == quotes


@pytest.mark.parametrize(
    ("compare", "quote"),
    [
        ("Is response A kinder than response B?", "response A"),
        ("Is the first response kinder?", "the first response"),
        ("Choose option (2) if it is kinder.", "option (2)"),
        ("Which of the two responses is kinder in its first sentence?", None),
        ("Which response a child would understand is the kinder one?", None),
        ("Which response makes the first move?", None),
    ],
)
def test_a_comparison_names_no_position(write: Write, compare: str, quote: str | None) -> None:
    document = write(f"- principle: Be kind.\n  compare: {compare!r}\n")
    findings = [finding.place.text for finding in positions(document)]
    assert findings[:1] == ([quote] if quote else [])


def test_another_language_is_said_once_and_judged_by_no_word_list(write: Write) -> None:
    document = write(
        "- Die Antwort nennt, wo es passt, eine Quelle und sagt, wie sicher sie ist, etc.\n"
        "- La r\u00e9ponse ne contient aucune insulte contre une personne nomm\u00e9e, etc.\n"
        "- The response names its source.\n"
    )
    (finding,) = other_languages(document)
    assert finding.code == "C004"
    assert finding.place.line == 1
    assert finding.message.startswith("2 texts")
    assert list(escapes(document)) == []
