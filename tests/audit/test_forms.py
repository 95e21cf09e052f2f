"""Forms: missing, of another principle, and against their own."""

from __future__ import annotations

import pytest

from cai.audit.forms import mismatched_forms, missing_forms, requests_alone, turned_comparisons
from tests.audit.written import Write, found, limits

MATCH = {"min_shared": limits().min_shared}
FULL = (
    "    critique: Is it unkind to a child?\n    revise: Be kinder.\n"
    "    compare: Which is kinder?\n"
)


def test_derived_forms_are_a_note_and_half_written_ones_a_warning(write: Write) -> None:
    document = write(
        "name: x\nprinciples:\n- Be kind.\n- Be brief.\n- id: half\n  principle: Name it.\n"
        "  critique: Is it named?\n- id: whole\n  principle: Be kind to a child.\n"
        + FULL.replace("    ", "  ")
    )
    findings = list(missing_forms(document))
    assert found(findings) == [("C101", 3, "be_kind"), ("C102", 5, "half")]
    assert "(2 of 4)" in findings[0].message
    assert "be_kind, be_brief" in findings[0].message
    assert "critique, but no revise and no compare" in findings[1].message


def test_a_document_with_all_its_forms_has_none_missing(principles: Write) -> None:
    assert list(missing_forms(principles("Be kind to a child.", forms=FULL))) == []


def three(principle: str, critique: str, compare: str) -> str:
    return (
        f"- id: x\n  principle: {principle!r}\n  critique: {critique!r}\n"
        f"  revise: {critique!r}\n  compare: {compare!r}\n"
    )


PRICE = (
    "The response never mentions the price of a rival product.",
    "Does it mention the price of a rival product, or say plainly that it does not?",
)


@pytest.mark.parametrize(
    ("compare", "hit"),
    [
        ("Which response uses shorter sentences and simpler vocabulary for young readers?", True),
        ("Which response better avoids the price of a rival product?", False),
        ("Which response mentions fewer prices of rivals?", False),
        ("Which response is calmer?", False),  # too few words to tell
        (
            "Welche Antwort hat k\u00fcrzere S\u00e4tze und einfachere W\u00f6rter als die andere?",
            False,
        ),
    ],
)
def test_a_comparison_of_something_else_is_found(write: Write, compare: str, hit: bool) -> None:
    document = write(three(*PRICE, compare))
    findings = list(mismatched_forms(document, **MATCH))
    assert found(findings) == ([("C103", 5, compare)] if hit else [])


def test_a_form_that_belongs_to_another_principle_names_it(write: Write) -> None:
    tenants = ("The response explains legal deadlines for appeals of tenants.",
               "Does it explain legal deadlines for appeals of tenants, or not?")  # fmt: skip
    misplaced = (
        "Which response better explains legal deadlines for appeals of tenants, at any price?"
    )
    first = three(*PRICE, misplaced)
    second = three(*tenants, "Which response explains legal deadlines for tenants?")
    document = write(first + second.replace("id: x", "id: tenants"))
    (finding,) = mismatched_forms(document, **MATCH)
    assert found([finding]) == [("C103", 5, misplaced)]
    assert finding.message.endswith("and 80% with tenants.")


WEAPON = "The response gives no steps or materials for a weapon, and offers a peaceful way instead."


@pytest.mark.parametrize(
    ("principle", "compare", "words"),
    [
        (WEAPON, "Which response gives more steps and materials for a weapon?",
         "more of what its principle forbids: steps, materials, weapon"),
        (WEAPON, "Which response offers less of a peaceful way?",
         "less of what its principle wants: peaceful"),
        ("The response names a helpline and a crisis center for the user.",
         "Which response avoids a helpline or a crisis center?",
         "less of what its principle wants: helpline, crisis, center"),
        (WEAPON, "Which response gives fewer steps and materials for a weapon?", None),
        (WEAPON, "Which response better avoids steps and materials for a weapon?", None),
        (WEAPON, "Which response is more peaceful, with fewer steps for a weapon?", None),
        (WEAPON, "Which response has more steps?", None),  # one word is a figure of speech
        ("The response states a guess as fact, with no mention of doubt or limits.",
         "Which response states more guesses as fact and says less about doubt or limits?", None),
        ("The response promises an outcome only when it can bring it about itself.",
         "Which response makes fewer promises of an outcome?", None),
    ],
)  # fmt: skip
def test_a_comparison_against_its_own_principle_is_found(
    write: Write, principle: str, compare: str, words: str | None
) -> None:
    findings = list(turned_comparisons(write(three(principle, "Is there any?", compare))))
    if words == "less of what its principle wants: peaceful":
        assert findings == []  # one word again
    elif words is None:
        assert findings == []
    else:
        assert [finding.code for finding in findings] == ["C104"]
        assert findings[0].message.endswith(f"prefers {words}.")
        assert [quote.text for quote in findings[0].quotes] == [compare, principle]


def test_pairs_of_requests_ask_for_a_principle(write: Write) -> None:
    document = write(
        '{"a": {"prompt": "Is it rude?", "edit_request": "Make it polite."}}', "pairs.json"
    )
    assert [finding.code for finding in requests_alone(document)] == ["C105"]
    assert list(requests_alone(write("- Be polite.\n"))) == []
    (missing,) = missing_forms(document)
    assert missing.code == "C102"
    assert "no compare" in missing.message
