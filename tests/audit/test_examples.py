"""Principle tests: alike, lopsided, solved by length, repeated, contradictory, missing."""

from __future__ import annotations

import pytest

from cai.audit.examples import alike, given_away, lengths, lopsided, repeated, untested
from tests.audit.written import Write, found, limits

RATIO = {"test_length_ratio": limits().test_length_ratio}
ACCURACY = {"length_accuracy": limits().length_accuracy}


def principle_with(*pairs: tuple[str, str]) -> str:
    items = [
        f"  - prompt: Which? {n}\n    better: {better}\n    worse: {worse}\n"
        for n, (better, worse) in enumerate(pairs)
    ]
    return "- id: own\n  principle: Be kind.\n  tests:\n" + "".join(items)


def words(num: int, word: str = "a") -> str:
    return " ".join([word] * num)


@pytest.mark.parametrize(
    ("better", "worse", "hit"),
    [
        ("Yes, it is.", "yes it is", True),
        ("Caf\u00e9 \u2014 open!", "CAF\u00c9 open", True),
        ("Yes, it is.", "Yes, it is not.", False),
        ("!", "?", False),
    ],
)
def test_responses_that_differ_in_form_alone(
    write: Write, better: str, worse: str, hit: bool
) -> None:
    text = principle_with((repr(better), repr(worse)))
    findings = found(alike(write(text)))
    assert findings == ([("C501", 6, worse)] if hit else [])


@pytest.mark.parametrize(
    ("better", "worse", "hit"),
    [(30, 15, True), (10, 40, True), (29, 15, False), (4, 1, False), (23, 11, True)],
)
def test_one_test_that_length_gives_away(write: Write, better: int, worse: int, hit: bool) -> None:
    findings = list(lopsided(write(principle_with((words(better), words(worse, "b")))), **RATIO))
    assert [finding.code for finding in findings] == ["C503"] * hit
    for finding in findings:
        assert len(finding.place.text.split()) == max(better, worse)
        assert finding.place.line == (5 if better > worse else 6)


def balance(longer: int, shorter: int) -> str:
    pairs = [(words(3), words(2, "b"))] * longer + [(words(2), words(3, "b"))] * shorter
    return principle_with(*pairs, (words(4), words(4, "b")))


@pytest.mark.parametrize(
    ("longer", "shorter", "says"),
    [
        (14, 6, None),  # 0.7 of 20: a Wilson interval of [0.48, 0.86]
        (28, 12, "longer response is right on 0.70 of the document's 40 tests"),
        (12, 28, "shorter response is right on 0.70 of the document's 40 tests"),
        (20, 20, None),
        (5, 0, "longer response is right on 1.00 of the document's 5 tests"),
        (0, 0, None),
    ],
)
def test_length_over_the_whole_document(
    write: Write, longer: int, shorter: int, says: str | None
) -> None:
    document = write(balance(longer, shorter))
    findings = list(given_away(document, **ACCURACY))
    assert [finding.code for finding in findings] == (["C502"] if says else [])
    assert all(says in finding.message for finding in findings if says)
    assert lengths(document).num == longer + shorter + 1


def test_a_small_lead_is_no_finding_even_when_it_is_significant(write: Write) -> None:
    document = write("name: x\nprinciples:\n" + balance(590, 410))
    assert lengths(document).longer_better.low > 0.5
    assert list(given_away(document, **ACCURACY)) == []


def test_repeated_and_contradicting_tests(write: Write) -> None:
    text = principle_with(("yes", "no"), ("one", "two"))
    other = principle_with(("No.", "Yes!"), ("one", "Two"), ("one", "three")).replace(
        "own", "other"
    )
    findings = list(repeated(write(text + other)))
    assert [(f.code, f.place.line, f.place.principle_id) for f in findings] == [
        ("C305", 14, "other"), ("C306", 16, "other"),
    ]  # fmt: skip
    assert [quote.line for quote in findings[0].quotes] == [14, 6]
    assert findings[0].message == "other and own disagree here."


def test_principles_without_tests_are_named_unless_none_has_any(write: Write) -> None:
    some = write(principle_with(("yes", "no")) + "- id: bare\n  principle: Be brief.\n")
    assert found(untested(some)) == [("C504", 7, "bare")]
    (finding,) = untested(write("name: x\nprinciples: [Be kind., Be brief.]\n"))
    assert (finding.code, finding.place.line) == ("C505", 1)
    assert list(untested(write(principle_with(("yes", "no"))))) == []
