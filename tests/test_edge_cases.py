from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.edge_cases import (
    EdgeCase,
    EdgeLabel,
    EdgeReason,
    as_rows,
    doubt_of,
    member_labels,
    most_doubtful,
    read_labels,
)
from cai.errors import ConfigError, UserError
from cai.people_story import EdgeRow, EdgeStory, edge_findings, next_steps
from cai.types import Judgement, Message, PrincipleLabel, Prompt, PromptKind, Split

T = 0.1


def case(name: str, *probs: float, doubt: float = 1.0) -> EdgeCase:
    return EdgeCase(
        id=name,
        prompt=Prompt(
            id=f"p-{name}",
            kind=PromptKind.red_team,
            category="c",
            source="s",
            split=Split.train,
            messages=(Message(role="user", content="How?"),),
        ),
        response_a="One.",
        response_b="Two.",
        finished_a=True,
        finished_b=False,
        reason=EdgeReason.principles_disagree,
        doubt=doubt,
        labels=tuple(
            PrincipleLabel(principle_id=f"k{i}", prob_a=p, weight=1.0) for i, p in enumerate(probs)
        ),
        members=(),
    )


@pytest.mark.parametrize(
    ("labels", "members", "reason", "value"),
    [
        # For a: .9; for b: .1 and .2; .55 has no opinion. 2 min(1, 2) / 3.
        ([0.9, 0.1, 0.2, 0.55], [], EdgeReason.principles_disagree, 2 / 3),
        ([0.9, 0.1], [], EdgeReason.principles_disagree, 1.0),
        # No label is further than .1 from a half; the clearest is .05 from it: 1 - .05 / .1.
        ([0.55, 0.48], [], EdgeReason.not_covered, 0.5),
        ([0.5, 0.5], [], EdgeReason.not_covered, 1.0),
        # Principles agree, members do not: 2 min(1, 1) / 2.
        ([0.7, 0.8], [0.9, 0.2], EdgeReason.members_disagree, 1.0),
        # Both disagree: the larger doubt counts.
        ([0.9, 0.8, 0.1], [0.9, 0.2], EdgeReason.members_disagree, 1.0),
    ],
)
def test_doubt_by_hand(labels, members, reason, value):
    found = doubt_of(labels, members, threshold=T)
    assert found is not None
    assert (found.reason, found.value) == (reason, pytest.approx(value))


@pytest.mark.parametrize("labels", [[0.9, 0.8], [0.65], [0.9, 0.55], [0.9, 0.41]])
def test_feedback_of_one_mind_is_no_edge_case(labels):
    assert doubt_of(labels, [], threshold=T) is None
    assert doubt_of([1 - p for p in labels], [], threshold=T) is None


def test_doubt_does_not_know_which_response_is_a():
    labels, members = [0.9, 0.3, 0.7, 0.2], [0.8, 0.45, 0.1]
    turned = doubt_of([1 - p for p in labels], [1 - p for p in members], threshold=T)
    assert turned == doubt_of(labels, members, threshold=T)


def test_members_are_averaged_over_what_they_were_asked():
    def judged(member: str | None, prob: float) -> Judgement:
        return Judgement(
            principle_id="k",
            member=member,
            first=None,
            letter_a=None,
            letter_b=None,
            value_a=0.0,
            value_b=0.0,
            prob_a=prob,
            text=None,
        )

    found = member_labels([judged("x", 0.2), judged("y", 0.9), judged("x", 0.4)])
    assert {one.member: one.prob_a for one in found} == pytest.approx({"x": 0.3, "y": 0.9})
    assert member_labels([judged(None, 0.2)]) == ()


def test_the_most_doubtful_come_first_and_ties_go_to_the_mean_nearer_to_a_half():
    cases = [
        case("far", 0.9, 0.3, doubt=0.5),  # mean .6
        case("b", 0.9, 0.1, doubt=0.5),  # mean .5
        case("top", 0.9, 0.2, doubt=0.9),
        case("a", 0.8, 0.2, doubt=0.5),  # mean .5, earlier id
    ]
    for order in (cases, cases[::-1]):
        assert [one.id for one in most_doubtful(order, num=3)] == ["top", "a", "b"]


def written(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return str(path)


def test_the_list_is_read_back_with_the_labels_that_were_put_in(tmp_path):
    text = as_rows([case("e1", 0.9, 0.1), case("e2", 0.5), case("e3", 0.5)], {})
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["label"] for row in rows] == [None] * 3
    assert rows[0]["prompt"] == [{"role": "user", "content": "How?"}]
    assert rows[0]["probs_a"] == {"k0": 0.9, "k1": 0.1}
    rows[0]["label"], rows[2]["label"] = "b", "tie"
    found = read_labels(written(tmp_path, *rows))
    assert found.labels == {"e1": EdgeLabel.b, "e3": EdgeLabel.tie}
    assert found.lines == {"e1": 1, "e2": 2, "e3": 3}
    assert [found.labels[name].prob_a for name in ("e1", "e3")] == [0.0, 0.5]
    found.check_known(["e1", "e2", "e3"])
    again = as_rows([case("e1", 0.9, 0.1)], found.labels)
    assert json.loads(again)["label"] == "b"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{\n"], ":1: is not valid JSON"),
        (["[]\n"], ":1: id: must be there"),
        ([{"id": "e1", "label": "a"}, {"label": "a"}], ":2: id: must be there"),
        ([{"id": "e1"}], ":1: label: must be there"),
        ([{"id": "e1", "label": "A"}], ':1: label: must be one of a, b, tie, or null; found "A"'),
        ([{"id": "e1", "label": 1}], ":1: label: must be one of"),
        ([{"id": "e1", "label": "a"}, {"id": "e1", "label": "b"}], ":2: id: e1 is in line 1"),
        ([{"id": "e1", "label": None}], "none of its 1 rows has a label"),
        ([], "none of its 0 rows has a label"),
    ],
)
def test_a_bad_file_of_labels_names_its_line(tmp_path, rows, message):
    path = written(tmp_path, *rows)
    with pytest.raises(ConfigError) as caught:
        read_labels(path)
    assert f"{path}{message}" in str(caught.value) or message in str(caught.value)


def test_a_missing_file_and_foreign_ids_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labels(str(tmp_path / "gone.jsonl"))
    found = read_labels(written(tmp_path, {"id": "e1", "label": "a"}, {"id": "x9", "label": None}))
    with pytest.raises(UserError, match=r"labels\.jsonl:2: id: x9 is no edge case of this run"):
        found.check_known(["e1"])


def edge(num_labelled: int | None, num_rows: int = 9) -> EdgeStory:
    row = EdgeRow(
        id="e", prompt="p", response_a="a", response_b="b", reason="r", doubt=1.0, label=""
    )
    return EdgeStory(
        num_pairs=20,
        found=None,
        reasons={},
        rows=(row,) * num_rows,
        num_labelled=num_labelled or 0,
        label_file=None if num_labelled is None else "f.jsonl",
        sides_with_people=None,
        list_file="run/edge_cases.jsonl",
        next_command="cai phase=hybrid phase.labels=f.jsonl",
    )


def test_findings_say_what_waits_and_what_is_too_few():
    assert "9 edge cases have no label yet" in edge_findings(edge(None))[0]
    assert next_steps(edge(None))[1:] == (
        "List: run/edge_cases.jsonl",
        "Type: cai phase=hybrid phase.labels=f.jsonl",
    )
    few = edge_findings(edge(3))
    assert few[0].startswith("6 of 9 edge cases have no label")
    assert "had 3 labels by people: too few" in few[1]
    assert edge_findings(edge(9)) == []
    assert next_steps(edge(9)) == ()
    assert "of one mind about all 20" in edge_findings(edge(None, num_rows=0))[0]
    assert next_steps(edge(None, num_rows=0)) == ()
