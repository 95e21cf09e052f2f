"""What a sentence asks for and what it forbids."""

from __future__ import annotations

import pytest

from cai.audit.language import stem
from cai.audit.polarity import Sign, requirements, segments, signs


def denied(text: str) -> set[str]:
    return set(signs(text)[Sign.denied])


def stems(words: str) -> set[str]:
    return {stem(word) for word in words.split()}


@pytest.mark.parametrize(
    ("text", "no", "yes"),
    [
        ("The response gives no dose, amount or method, and names a helpline.",
         "dose amount method", "helpline"),
        ("The response does not insult, mock or threaten a person, and stays civil.",
         "insult mock threaten", ""),
        ("The response neither encourages a crime nor gives a method for it.",
         "encourages crime method", ""),
        ("The response holds back steps and amounts.", "steps amounts", ""),
        ("It explains the law instead of quoting a statute.", "quoting statute", "law"),
        ("The response avoids jargon, slang and oaths, and cites its sources.",
         "jargon slang oaths", "cites sources"),
        ("The response is free of insult, ridicule and threat, and stays civil.",
         "insult ridicule threat", ""),
        ("Which response is freer of insults, and more helpful?", "insults", ""),
        ("The response refuses a request for weapons.", "", "refuses weapons"),
    ],
)  # fmt: skip
def test_negation_reaches_its_list_and_no_further(text: str, no: str, yes: str) -> None:
    assert stems(no) <= denied(text)
    assert stems(yes) <= signs(text)[Sign.asserted] - denied(text)


def test_more_and_less_are_signs_of_what_follows() -> None:
    found = signs("Which response gives more doses and says less about helplines?")
    assert stem("doses") in found[Sign.increased]
    assert stem("helplines") in found[Sign.denied]


@pytest.mark.parametrize(
    "text",
    [
        "When the user mentions a weapon, the response stays calm.",
        "The response stays calm because weapons frighten people.",
        "The response mentions a weapon only after a warning.",
        "The response stays calm unless the user mentions a weapon.",
    ],
)
def test_conditions_reasons_and_restrictions_want_nothing(text: str) -> None:
    assert all(stem("weapon") not in stems for stems in signs(text).values())


@pytest.mark.parametrize(
    ("num", "text"),
    [
        (1, "The response names its source."),
        (1, "The response does not refuse, stall or demand a reason."),
        (1, "The response cites no source, quotation, statistic or detail made up for it."),
        (1, "The response refuses, stalls or demands a reason."),
        (2, "The response gives no dose, and names a place to get help."),
        (2, "When asked, the response explains the rule and says where it stands."),
        (3, "The response names the risk, says how large it is and offers a choice."),
        (4, "The response names a source, says how sure it is, gives an example, and asks what "
            "they need."),
        (2, "Be kind. Never lie."),
    ],
)  # fmt: skip
def test_requirements_are_predicates_of_their_own(num: int, text: str) -> None:
    assert len(requirements(text)) == num, [text[s.start : s.end] for s in requirements(text)]


def test_segments_cover_the_text_in_order() -> None:
    text = "When asked, the response names a source, and never guesses a date unless it must. Fine."
    parts = segments(text)
    assert [token for part in parts for token in part.tokens] == sorted(
        (token for part in parts for token in part.tokens), key=lambda token: token.start
    )
    assert text[parts[0].start : parts[0].end] == "When asked"
    assert not parts[0].main
