"""Edge cases: AI comparisons that Constitutional AI is unsure of, listed for people to label.

A label p = P(a preferred) is an opinion when |p - 1/2| is above a threshold, as in the audit
(`cai.audit.diagnostics`). A pair is an edge case where

* principles disagree: judged under every principle of the constitution, some decide for a and some
  for b. Doubt: 2 min(n_a, n_b) / (n_a + n_b), 1 where as many are on each side;
* members of an ensemble disagree, each by its mean over the principles. Doubt: the same of members;
* no principle covers it: none has an opinion. Doubt: 1 - max |p - 1/2| / threshold, 1 where every
  label is a half.

A pair that is one in several ways counts by the largest doubt. Ties: the mean label nearer to a
half first, then by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cai.errors import ConfigError, UserError
from cai.types import Judgement, PrincipleLabel, Prompt
from cai.yaml_nodes import did_you_mean

FILE = "edge_cases.jsonl"
LABELLED = "edge_cases.labelled.jsonl"
"""What its copy with labels is called in messages; any name will do."""
SETTING = "phase.labels"


class EdgeReason(StrEnum):
    """Why a pair is put to people."""

    principles_disagree = "principles_disagree"
    members_disagree = "members_disagree"
    not_covered = "not_covered"
    """No principle has an opinion."""


class EdgeLabel(StrEnum):
    """What a person says of an edge case."""

    a = "a"
    b = "b"
    tie = "tie"

    @property
    def prob_a(self) -> float:
        """As a label to learn from."""
        return {EdgeLabel.a: 1.0, EdgeLabel.b: 0.0, EdgeLabel.tie: 0.5}[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLabel:
    """One member of an ensemble on one pair."""

    member: str
    prob_a: float
    """Mean over the principles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCase:
    """One pair that is put to people."""

    id: str
    prompt: Prompt
    response_a: str
    response_b: str
    finished_a: bool
    """Whether the policy ended the response itself."""
    finished_b: bool
    reason: EdgeReason
    doubt: float
    """In [0, 1], by the reason's definition."""
    labels: tuple[PrincipleLabel, ...]
    """Under every principle."""
    members: tuple[MemberLabel, ...]
    """Empty without an ensemble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """How unsure the feedback is of a pair, and in what way."""

    reason: EdgeReason
    value: float


def member_labels(judgements: Iterable[Judgement]) -> tuple[MemberLabel, ...]:
    """Each member's mean probability over everything that it was asked about a pair."""
    found: dict[str, list[float]] = {}
    for judgement in judgements:
        if judgement.member is not None:
            found.setdefault(judgement.member, []).append(judgement.prob_a)
    return tuple(
        MemberLabel(member=name, prob_a=sum(own) / len(own)) for name, own in found.items()
    )


def doubt_of(
    labels: Sequence[float], members: Sequence[float], *, threshold: float
) -> Doubt | None:
    """The largest doubt about a pair; None where the feedback is of one mind.

    Args:
        labels: P(a preferred) under every principle.
        members: P(a preferred) by every member of an ensemble.
        threshold: From which |p - 1/2| on a label is an opinion.
    """
    found = [
        Doubt(reason=EdgeReason.principles_disagree, value=_split(labels, threshold)),
        Doubt(reason=EdgeReason.members_disagree, value=_split(members, threshold)),
        Doubt(reason=EdgeReason.not_covered, value=_uncovered(labels, threshold)),
    ]
    largest = max(found, key=lambda one: one.value)
    return largest if largest.value > 0 else None


def _split(probs: Sequence[float], threshold: float) -> float:
    for_a = sum(p - 0.5 > threshold for p in probs)
    for_b = sum(0.5 - p > threshold for p in probs)
    return 2 * min(for_a, for_b) / (for_a + for_b) if for_a + for_b else 0.0


def _uncovered(labels: Sequence[float], threshold: float) -> float:
    clearest = max((abs(p - 0.5) for p in labels), default=0.5)
    if clearest > threshold:
        return 0.0
    return 1.0 if clearest == 0 else 1 - clearest / threshold


def most_doubtful(cases: Sequence[EdgeCase], *, num: int) -> list[EdgeCase]:
    """The first `num` cases, the least sure first."""

    def key(case: EdgeCase) -> tuple[float, float, str]:
        mean = sum(label.prob_a for label in case.labels) / len(case.labels)
        return -case.doubt, abs(mean - 0.5), case.id

    return sorted(cases, key=key)[:num]


def as_rows(cases: Sequence[EdgeCase], labels: Mapping[str, EdgeLabel]) -> str:
    """The list for people, one JSON object a line; `label` is null where nobody has said."""
    rows: list[dict[str, Any]] = [
        {
            "id": case.id,
            "label": str(labels[case.id]) if case.id in labels else None,
            "prompt": [{"role": m.role, "content": m.content} for m in case.prompt.messages],
            "response_a": case.response_a,
            "response_b": case.response_b,
            "reason": str(case.reason),
            "doubt": round(case.doubt, 4),
            "probs_a": {label.principle_id: round(label.prob_a, 4) for label in case.labels},
            "members": {one.member: round(one.prob_a, 4) for one in case.members},
        }
        for case in cases
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFile:
    """What people said, as their file has it."""

    path: str
    labels: dict[str, EdgeLabel]
    """By id of the edge case."""
    lines: dict[str, int]
    """Line of every id, with or without a label."""

    def check_known(self, known: Sequence[str]) -> None:
        """See that every id is one of the run's edge cases.

        Raises:
            UserError: naming the first line that is not.
        """
        for name, line in self.lines.items():
            if name not in known:
                raise UserError(
                    f"{self.path}:{line}: id: {name} is no edge case of this run."
                    f"{did_you_mean(name, list(known))} Labels belong to the settings and the seed "
                    f"that made the list; the run's own is in its {FILE}"
                )


def read_labels(path: str) -> LabelFile:
    """The labels of a file; whether they are of this run is known when its cases are.

    Raises:
        ConfigError: when there is no such file, or a line of it is not valid, or none has a label.
    """
    file, told = Path(path).expanduser(), f"{SETTING}={path}"
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{told}: cannot be read ({type(error).__name__}). It is a run's {FILE} with a label "
            f"in place of null; without {SETTING} the run makes that list"
        ) from error
    labels: dict[str, EdgeLabel] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, label = _row(line, f"{path}:{number}")
        if name in lines:
            raise ConfigError(f"{path}:{number}: id: {name} is in line {lines[name]} already")
        lines[name] = number
        if label is not None:
            labels[name] = label
    if not labels:
        raise ConfigError(
            f"{told}: none of its {len(lines)} rows has a label; put one of {', '.join(EdgeLabel)} "
            "in place of null, in quotation marks"
        )
    return LabelFile(path=path, labels=labels, lines=lines)


def _row(line: str, where: str) -> tuple[str, EdgeLabel | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not valid JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ConfigError(f"{where}: id: must be there, as in the run's {FILE}")
    if "label" not in row:
        raise ConfigError(f"{where}: label: must be there; null where nobody has decided")
    label = row["label"]
    if label is not None and label not in list(EdgeLabel):
        raise ConfigError(
            f"{where}: label: must be one of {', '.join(EdgeLabel)}, or null; found "
            f"{json.dumps(label)[:40]}"
        )
    return row["id"], None if label is None else EdgeLabel(label)
