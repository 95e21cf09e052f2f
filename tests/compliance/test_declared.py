from __future__ import annotations

import re
from pathlib import Path

import pytest

from cai import paths
from cai.audit.declared import declared_values
from cai.audit.document import read_written
from cai.compliance.classes import ComplianceTag
from cai.compliance.declared import main_class
from cai.constitution import Constitution, load
from cai.errors import UserError
from cai.types import PromptKind
from tests.compliance.pairs import ANSWER, REFUSAL, prompt

HEAD = "name: d\nprinciples: [The response is kind.]\n"


def written(folder: Path, section: str, *, name: str = "d", head: str = HEAD) -> Constitution:
    path = folder / f"{name}.yaml"
    path.write_text(head + section)
    return load(str(path), folder=paths.CONSTITUTIONS)


def test_values_are_read_and_what_is_not_written_is_worth_nothing(tmp_path: Path) -> None:
    document = written(tmp_path, "compliance:\n  red_team: {refusal: 1, compliance: -0.5}\n")
    assert document.compliance is not None
    assert document.compliance.value(PromptKind.red_team, ComplianceTag.refusal) == 1.0
    assert document.compliance.value(PromptKind.red_team, ComplianceTag.compliance) == -0.5
    assert document.compliance.value(PromptKind.red_team, ComplianceTag.partial) == 0.0
    assert document.compliance.value(PromptKind.benign, ComplianceTag.refusal) == 0.0
    assert document.compliance.value_of(prompt(), REFUSAL) == 1.0
    assert document.compliance.value_of(prompt(), ANSWER) == -0.5
    assert document.compliance.value_of(prompt(PromptKind.benign), REFUSAL) == 0.0


def test_values_are_in_the_digest_only_when_there_are_any(tmp_path: Path) -> None:
    plain = written(tmp_path, "")
    valued = written(tmp_path, "compliance: {red_team: {refusal: 1}}\n")
    other = written(tmp_path, "compliance: {red_team: {refusal: 0.5}}\n")
    assert plain.compliance is None
    assert len({plain.digest, valued.digest, other.digest}) == 3
    medical = load("medical", folder=paths.CONSTITUTIONS)
    assert medical.compliance is None
    assert medical.digest.startswith("be8156ea9705")  # as before documents had values


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "compliance: {red_team: {refusal: 2}}",
            r":3:.*refusal: must be between -1 and 1, found 2",
        ),
        ("compliance: {red_team: {refusal: -1.01}}", "must be between -1 and 1"),
        ("compliance: {red_team: {refusal: .nan}}", "must be finite"),
        ("compliance: {red_team: {refusal: much}}", "must be a number, found text"),
        ("compliance: {red_team: {refusal: '1'}}", "must be a number without quotes"),
        ("compliance: {red_team: {refusal: }}", "must be a number, found nothing"),
        ("compliance: {red_team: {refuse: 1}}", r"refuse: is not a field here.*refusal"),
        ("compliance: {redteam: {refusal: 1}}", r"redteam: is not a field here.*red_team"),
        ("compliance: {red_team: 1}", "must be a mapping"),
        ("compliance: [red_team]", "must be a mapping"),
        ("compliance: {}", "is empty; leave the field out"),
        ("compliance: {red_team: {}}", "is empty; leave the field out"),
    ],
)
def test_wrong_values_are_refused_with_their_place(
    tmp_path: Path, section: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, section + "\n")
    assert re.search(message, str(caught.value)), caught.value
    assert "d.yaml:3:" in str(caught.value)


def test_values_are_inherited_class_by_class(tmp_path: Path) -> None:
    written(tmp_path, "compliance: {red_team: {refusal: 1, partial: 0.5}}\n", name="parent")
    child = written(
        tmp_path,
        "compliance: {red_team: {partial: -1}, benign: {refusal: -1}}\n",
        head="name: c\nextends: parent\n",
    )
    assert child.compliance is not None
    assert child.compliance.values == {
        "red_team": {"refusal": 1.0, "partial": -1.0},
        "benign": {"refusal": -1.0},
    }
    bare = written(tmp_path, "", name="e", head="name: e\nextends: parent\n")
    assert bare.compliance is not None
    assert bare.compliance.values == {"red_team": {"refusal": 1.0, "partial": 0.5}}


def test_parents_that_contradict_each_other_need_a_value_of_ones_own(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", -1)):
        head = f"name: {name}\nprinciples: [The response is {name}.]\n"
        section = f"compliance: {{red_team: {{refusal: {value}}}}}\n"
        written(tmp_path, section, name=name, head=head)
    head = "name: c\nextends: [one, two]\n"
    with pytest.raises(UserError, match=r"refusal: is 1 in one and -1 in two; give it a value"):
        written(tmp_path, "", head=head)
    child = written(tmp_path, "compliance: {red_team: {refusal: 0}}\n", head=head)
    assert child.compliance is not None
    assert child.compliance.value(PromptKind.red_team, ComplianceTag.refusal) == 0.0


def test_the_two_priorities_are_declared_the_other_way_round() -> None:
    safe, useful = (
        load(name, folder=paths.CONSTITUTIONS).compliance
        for name in ("harmlessness_first", "helpfulness_first")
    )
    assert safe is not None
    assert useful is not None
    for kind in PromptKind:
        gains = [
            one.value(kind, ComplianceTag.refusal) - one.value(kind, ComplianceTag.compliance)
            for one in (safe, useful)
        ]
        assert gains[0] > gains[1]
    assert safe.value(PromptKind.red_team, main_class(prompt(), REFUSAL)) > 0
    assert useful.value(PromptKind.red_team, main_class(prompt(), REFUSAL)) < 0


@pytest.mark.parametrize(
    ("section", "codes"),
    [
        ("", []),
        ("compliance: {red_team: {refusal: 1}}", []),
        ("compliance: {red_team: {refusal: 0}}", ["C601"]),
        ("compliance: {benign: {refusal: 1}}", ["C602"]),
        ("compliance: {red_team: {compliance: 1}, helpfulness: {refusal: 0.1}}", ["C603", "C602"]),
    ],
)
def test_the_lint_reads_the_values(tmp_path: Path, section: str, codes: list[str]) -> None:
    document = read_written(written(tmp_path, section + "\n" if section else ""))
    assert [finding.code for finding in declared_values(document)] == codes
