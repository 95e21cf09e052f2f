"""Two versions of a constitution side by side, as a reviewer wants them.

Principles are matched by id; one whose id is new and whose sentence is an old one's is the same
principle under another id. Inherited principles count as the document's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cai.audit.findings import Finding
from cai.constitution import Constitution
from cai.documents import Principle


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field of a principle before and after."""

    principle_id: str
    field: str
    before: str
    after: str
    """Of `tests` only the prompts of those that went and came, one a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is different from another version of the document."""

    before: str
    """Name and version."""
    after: str
    same_digest: bool
    """Nothing that a run reads is different."""
    added: tuple[Principle, ...]
    removed: tuple[Principle, ...]
    renamed: Mapping[str, str]
    """New id to old id."""
    fields: tuple[FieldChange, ...]
    new_findings: tuple[Finding, ...]
    gone_findings: tuple[Finding, ...]


def compare(
    before: Constitution,
    after: Constitution,
    *,
    findings_before: Iterable[Finding],
    findings_after: Iterable[Finding],
) -> Changes:
    """What happened on the way from one version to the other."""
    old = {principle.id: principle for principle in before.principles}
    new = {principle.id: principle for principle in after.principles}
    by_sentence = {old[name].principle: name for name in reversed(old) if name not in new}
    renamed = {
        name: by_sentence[principle.principle]
        for name, principle in new.items()
        if name not in old and principle.principle in by_sentence
    }
    pairs = [(old[renamed.get(name, name)], new[name]) for name in new if name in {*old, *renamed}]
    known_before = {_key(finding, {}) for finding in findings_before}
    known_after = {_key(finding, renamed) for finding in findings_after}
    return Changes(
        before=f"{before.name} {before.version}",
        after=f"{after.name} {after.version}",
        same_digest=before.digest == after.digest,
        added=tuple(p for name, p in new.items() if name not in {*old, *renamed}),
        removed=tuple(p for name, p in old.items() if name not in {*new, *renamed.values()}),
        renamed=renamed,
        fields=tuple(change for one, two in pairs for change in _field_changes(one, two)),
        new_findings=tuple(f for f in findings_after if _key(f, renamed) not in known_before),
        gone_findings=tuple(f for f in findings_before if _key(f, {}) not in known_after),
    )


def _field_changes(before: Principle, after: Principle) -> list[FieldChange]:
    one, two = _fields(before), _fields(after)
    lost = [test.prompt for test in before.tests if test not in after.tests]
    gained = [test.prompt for test in after.tests if test not in before.tests]
    one["tests"], two["tests"] = "\n".join(lost), "\n".join(gained)
    return [
        FieldChange(principle_id=after.id, field=name, before=one[name], after=two[name])
        for name in one
        if one[name] != two[name]
    ]


def _fields(principle: Principle) -> dict[str, str]:
    """What a run reads of a principle, besides its id and tests."""
    return {
        "principle": principle.principle,
        "critique": principle.critique,
        "revise": principle.revise,
        "compare": principle.compare,
        "scope": ", ".join(principle.scope),
        "weight": f"{principle.weight:g}",
    }


def _key(finding: Finding, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """A finding wherever it stands: its code, what it says and what it quotes."""
    quotes = [(renamed.get(q.principle_id, q.principle_id), q.text) for q in finding.quotes]
    return (finding.code, finding.message, *(part for quote in quotes for part in quote))
