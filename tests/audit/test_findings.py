"""Waivers: what they reach, what they must say, and that none hides."""

from __future__ import annotations

import pytest

from cai.audit.codes import CODES, Severity
from cai.audit.findings import apply_waivers
from cai.audit.wording import escapes
from tests.audit.written import Write, found

HEAD = "name: x\nprinciples:\n"
ITEM = (
    "- id: a\n  principle: >-\n    The response cites a dated newspaper\n    where appropriate.\n"
)


def codes(document) -> list[str]:
    return [finding.code for finding in apply_waivers(document, escapes(document)).findings]


@pytest.mark.parametrize(
    "text",
    [
        ITEM.replace(">-", ">- # noqa: C202 readers of this paper know when"),
        ITEM.replace("  principle", "  # noqa: C202 readers of this paper know when\n  principle"),
        ITEM.replace("  principle", "  # noqa: C202 they know when\n  # so much\n  principle"),
        ITEM.replace(">-", ">- # noqa: C201,C202 readers of this paper know when"),
        ITEM.replace(">-", ">- # NOQA: C202 - they know when"),
        "- >- # noqa: C202 readers of this paper know when\n  Cites a paper\n  as needed.\n",
        "# noqa: C202 readers know when\n- Cites a paper as needed.\n",
        "- Cites a paper as needed. # noqa: C202 readers know when\n",
    ],
)
def test_a_waiver_on_the_line_or_the_one_above_takes_a_finding_back(
    write: Write, text: str
) -> None:
    document = write(HEAD + text)
    result = apply_waivers(document, escapes(document))
    assert [item.finding.code for item in result.waived] == ["C202"]
    assert "know when" in result.waived[0].waiver.reason
    assert {finding.code for finding in result.findings} <= {"C003"}  # C201 is not found there


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ITEM.replace(">-", ">- # noqa: C202"), ["C001", "C202"]),
        (ITEM.replace(">-", ">- # noqa: C202 fine"), ["C001", "C202"]),
        (ITEM.replace(">-", ">- # noqa"), ["C002", "C202"]),
        (ITEM.replace(">-", ">- # noqa: all of it is meant"), ["C002", "C202"]),
        (ITEM.replace(">-", ">- # noqa: C999 no such code at all"), ["C002", "C202"]),
        (ITEM.replace(">-", ">- # noqa: C203 another code's reason"), ["C003", "C202"]),
        (ITEM.replace("appropriate.", "appropriate # noqa: C202 in the text."), ["C202"]),
        (ITEM + "# noqa: C202 too far down\n", ["C202", "C003"]),
        ("# noqa: C202 too far up\n" + ITEM, ["C003", "C202"]),
        (ITEM.replace("- id: a", "- id: a # noqa: C202 of another field"), ["C003", "C202"]),
    ],
)
def test_what_is_no_waiver_hides_nothing_and_is_reported(
    write: Write, text: str, expected: list[str]
) -> None:
    assert codes(write(HEAD + text)) == expected


def test_an_unknown_code_gets_the_nearest_one(write: Write) -> None:
    document = write(HEAD + ITEM.replace(">-", ">- # noqa: C2022 they know when"))
    (finding, _) = apply_waivers(document, escapes(document)).findings
    assert finding.message == "C2022 is no code. Did you mean C202?"


def test_a_parent_s_waivers_count_there_and_an_unused_one_is_its_own_affair(
    write: Write, tmp_path
) -> None:
    parent = ITEM.replace(">-", ">- # noqa: C202 they know when")
    parent += "- Be kind. # noqa: C301 left over\n"
    (tmp_path / "parent.yaml").write_text(HEAD + parent)
    child = write("name: c\nextends: parent\nprinciples: [Cites a book as needed.]\n")
    result = apply_waivers(child, escapes(child))
    assert found(result.findings) == [("C202", 3, "as needed")]
    assert len(result.waived) == 1


def test_sentences_in_a_text_file_are_waived_by_a_line_above(write: Write) -> None:
    document = write("# noqa: C202 they know when\nCites a paper as needed.\n", "my.txt")
    assert codes(document) == []


def test_every_code_says_what_to_do() -> None:
    for code, kind in CODES.items():
        assert code[0] == "C" and code[1:].isdigit() and len(code) == 4  # noqa: PT018
        assert kind.advice.endswith(".")
        assert kind.severity in Severity
    assert len({kind.name for kind in CODES.values()}) == len(CODES)
