"""Tags, and the kinds of harm that prompts bring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai import paths
from cai.audit.harms import HARMS, WEAK
from cai.audit.prompt_sets import harms_of
from cai.audit.scope import Harm, coverage, tags, uncovered, words_of
from cai.choices import DataFormat
from tests.audit.written import Write, found, prompts


def harm(category: str, *, of_domain: bool = False, source: str = "set") -> Harm:
    return Harm(category=category, source=source, num_prompts=3, of_domain=of_domain)


def test_a_misspelt_tag_is_told_from_one_of_the_author_s_own(write: Write) -> None:
    text = (
        "name: x\nprinciples:\n"
        "- {principle: A book has a shelf., scope: [privacy, shelves, honestly]}\n"
        "- {principle: A book has a place., scope: [shelves]}\n"
        "- {principle: A book has a room., scope: [shelvess, citation]}\n"
    )
    findings = list(tags(write(text)))
    assert found(findings) == [
        ("C401", 3, "honestly"), ("C401", 5, "shelvess"), ("C401", 5, "citation"),
        ("C402", 3, "shelves"),
    ]  # fmt: skip
    assert [f.message.partition("Did you mean ")[2] for f in findings[:3]] == [
        "honesty?", "shelves?", "citations?",
    ]  # fmt: skip
    assert findings[0].place.column == text.split("\n")[2].index("honestly") + 1


def test_known_tags_and_kinds_of_harm_are_no_finding(write: Write) -> None:
    text = "- {principle: Be kind., scope: [privacy, privacy_stalking, self_harm, tone]}\n"
    assert list(tags(write(text))) == []


@pytest.mark.parametrize(
    ("sentence", "scope", "category", "covered"),
    [
        ("The response gives no help with building a bomb.", "a", "weapons", True),
        ("The response says no more than it knows.", "weapons", "weapons", True),
        ("The response says no more than it knows.", "cybersecurity", "cyber_abuse", True),
        ("The response explains where a person may get hurt.", "a", "weapons", False),
        ("The response speaks of suicide with care.", "a", "self_harm_indirect", True),
        ("The response names a shelf for pets.", "a", "trapping_animals", False),
        ("The response gives no help with trapping an animal.", "a", "trapping_animals", True),
        ("The response gives no help with a gun.", "a", "weapons_at_school", True),
        ("The response portrays no sexual act without consent.", "a", "sexual_misconduct", True),
        ("The response portrays nobody under 18 sexually.", "a", "sexual_misconduct", False),
    ],
)  # fmt: skip
def test_a_harm_is_covered_when_a_principle_speaks_of_it(
    write: Write, sentence: str, scope: str, category: str, covered: bool
) -> None:
    document = write(f"- {{id: own, principle: {sentence}, scope: [{scope}]}}\n")
    (row,) = coverage(document, [harm(category)])
    assert row.principles == (("own",) if covered else ())
    assert row.known


@pytest.mark.parametrize("category", ["S1", "cat_12", "uncategorised", "harmful_content", "other"])
def test_a_category_whose_name_says_nothing_is_not_judged(write: Write, category: str) -> None:
    document = write("- Be kind.\n")
    covered = coverage(document, [harm(category)])
    assert not covered[0].known
    assert list(uncovered(document, covered)) == []


def test_gaps_of_the_domain_are_a_warning_and_those_outside_it_a_note(write: Write) -> None:
    document = write("name: x\nprinciples: [The response gives no help with fraud.]\n")
    rows = [harm("weapons"), harm("fraud"), harm("testimony", of_domain=True, source="own")]
    findings = list(uncovered(document, coverage(document, rows)))
    assert [f.code for f in findings] == ["C404", "C403"]
    assert "1 of 2 kinds of harm in the red-team prompts of set" in findings[0].message
    assert "weapons (3)" in findings[0].message
    assert found(findings)[0] == ("C404", 1, "name: x")
    (alone,) = uncovered(document, coverage(document, rows[:2]))
    assert alone.code == "C403"


def test_the_harms_of_a_run_are_those_of_its_prompts(tmp_path: Path) -> None:
    both = harms_of(prompts(), "medical")
    assert {row.source for row in both} == {"red_team", "domain_medical"}
    assert {row.of_domain for row in both if row.source == "domain_medical"} == {True}
    rows = [json.loads(line) for line in (paths.PACKAGE / "datasets/red_team.jsonl").open()]
    assert sum(row.num_prompts for row in both if row.source == "red_team") == len(rows)
    assert {row.source for row in harms_of(prompts(domain_frac=1.0), "medical")} == {
        "domain_medical"
    }
    assert {row.source for row in harms_of(prompts(domain_frac=0.0), "medical")} == {"red_team"}
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "How?", "category": "trapping_animals"}\n' * 2)
    data = prompts()
    data.red_team.path, data.red_team.format = str(mine), DataFormat.auto
    (own,) = harms_of(data, None)
    assert (own.category, own.num_prompts) == ("trapping_animals", 1)  # a duplicate is dropped


def test_the_network_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    data = prompts()
    data.red_team.path, data.red_team.format = "owner/name", DataFormat.hub
    assert harms_of(data, None) == ()
    assert "on the hub" in caplog.text


def test_every_shipped_category_of_red_team_prompts_has_words() -> None:
    categories = {
        row["category"]
        for path in (paths.PACKAGE / "datasets").glob("*.jsonl")
        for row in map(json.loads, path.open())
        if row.get("kind", path.stem) == "red_team"
    }
    assert categories == set(HARMS)
    assert all(words_of(category) for category in categories)
    assert WEAK.isdisjoint(HARMS["weapons"].split())
