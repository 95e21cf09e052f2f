"""Two principles at a time."""

from __future__ import annotations

import itertools

import pytest

from cai.audit.language import content
from cai.audit.pairs import MAX_COMPARED, contradictions, dice, duplicates, repeated_forms
from tests.audit.written import Write, document, found, limits

NEAR = {"near_duplicate": limits().near_duplicate}
AGAINST = {"contradiction": limits().contradiction}


def test_dice_by_hand() -> None:
    # 2 of 3 and 2 of 5 words are shared: 2 * 2 / (3 + 5)
    assert dice(frozenset("abc"), frozenset("bcdef")) == 0.5
    assert dice(frozenset(), frozenset()) == 0


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("The response names its source.", "the response  names its source!", "C301"),
        ("The response explains legal deadlines for appeals against tenancy decisions.",
         "The response explains the legal deadline for an appeal against a tenancy decision.",
         "C302"),
        ("The response explains legal deadlines for appeals.",
         "The response explains medical terms for children.", None),
        ("The response names a source for every figure it gives.",
         "The response names no source for any figure it gives.", None),  # a contradiction
        ("The response is kind.", "The response is kind, too.", None),  # too few words to tell
        ("\u4fdd\u6301\u793c\u8c8c\u3002", "\u4fdd\u6301\u793c\u8c8c", "C301"),
    ],
)  # fmt: skip
def test_duplicates_and_near_duplicates(
    principles: Write, first: str, second: str, code: str | None
) -> None:
    findings = list(duplicates(principles(first, second), **NEAR))
    assert [finding.code for finding in findings] == ([code] if code else [])
    for finding in findings:
        assert [quote.text for quote in finding.quotes] == [second, first]
        assert [quote.line for quote in finding.quotes] == [6, 4]


def test_of_several_the_nearest_is_named(principles: Write) -> None:
    one = "The response explains legal deadlines for appeals of tenants in housing courts."
    two = "The response explains legal deadlines for appeals of tenants in housing disputes."
    three = "The response explains legal deadlines for appeals of tenants in housing disputes now."
    findings = list(duplicates(principles(one, two, three), **NEAR))
    assert [[quote.principle_id for quote in f.quotes] for f in findings] == [
        ["p1", "p0"], ["p2", "p1"],
    ]  # fmt: skip


def test_a_form_of_another_principle_is_found(write: Write) -> None:
    form = "  compare: Which is kinder to children?\n"
    text = f"- principle: Be kind.\n{form}- principle: Be brief.\n{form}  revise: Shorten it.\n"
    (finding,) = repeated_forms(write(text))
    assert found([finding]) == [("C303", 4, "Which is kinder to children?")]
    assert finding.message == "compare of be_brief is the same text as compare of be_kind."


@pytest.mark.parametrize(
    ("first", "second", "sides"),
    [
        ("The response gives a medical warning about alcohol.",
         "The response gives no medical warning about alcohol.", True),
        ("The response explains the general idea and holds back steps, amounts and settings.",
         "For an activity that is lawful, the response supplies the specific steps and amounts.",
         True),
        ("The response supports itself with a source or a statistic made up for the occasion.",
         "The response cites no source, quotation or statistic made up for the occasion.", True),
        ("The response gives no working method for a crime.",
         "The response gives no working method for an intrusion.", False),
        ("When the user asks, the response gives no dose of a medicine.",
         "The response names a nurse when the user asks for a dose of a medicine.", False),
        ("The response promises a legal outcome only when it is certain.",
         "The response does not promise a legal outcome.", False),
        ("The response compares prices of rival products.",
         "Which response mentions no prices of rival products?", False),
    ],
)  # fmt: skip
def test_contradictions_are_found_in_both_orders_with_both_sides(
    principles: Write, first: str, second: str, sides: bool
) -> None:
    for one, two in itertools.permutations((first, second)):
        findings = list(contradictions(principles(one, two), **AGAINST))
        assert len(findings) == sides
        for finding in findings:
            assert finding.code == "C304"
            late, early = finding.quotes
            assert late.text in two
            assert early.text in one
            assert (late.principle_id, early.principle_id) == ("p1", "p0")


def test_the_message_says_who_wants_and_who_forbids(principles: Write) -> None:
    document = principles(
        "The response adds a moral lecture.", "The response adds no moral lecture."
    )
    (finding,) = contradictions(document, **AGAINST)
    assert finding.message == "p0 wants what p1 forbids."


def test_the_control_contradicts_what_it_turns_round_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("name: both\nextends: [default, inverted]\n")
    both = document(path)
    sides = {
        tuple(sorted(quote.principle_id for quote in finding.quotes))
        for finding in contradictions(both, **AGAINST)
    }
    assert len(sides) >= 6
    for one, two in sides:
        assert two == one.removeprefix("inverted_") or one == two.removeprefix("inverted_")
    texts = {written.id: written.principle.principle for written in both.principles}
    for finding in contradictions(both, **AGAINST):
        for quote in finding.quotes:
            assert quote.text in texts[quote.principle_id]
            assert content(quote.text)


def test_work_is_bounded_whatever_the_document(write: Write) -> None:
    num = 3 * MAX_COMPARED
    big = write(
        "".join(
            f"- The response gives {'no ' if n % 2 else ''}advice about appeal {n} to the court.\n"
            for n in range(num)
        )
    )
    # One finding for each principle but the first, not one for each of 100,000 pairs.
    assert len(list(contradictions(big, **AGAINST))) == num - 1
    assert len(list(duplicates(big, **NEAR))) == num - 2
