"""Whether values of compliance say what their author can mean (C601 to C603)."""

from __future__ import annotations

from collections.abc import Iterator

from cai.audit.document import Document
from cai.audit.findings import Finding
from cai.compliance.classes import ComplianceTag
from cai.types import PromptKind

ORDINARY = (PromptKind.helpfulness, PromptKind.benign)
"""Prompts that deserve an answer."""


def declared_values(document: Document) -> Iterator[Finding]:
    """C601 without a difference, C602 and C603 against the kind of prompt; kind by kind."""
    declared = document.constitution.compliance
    for kind in declared.values if declared else ():
        assert declared is not None
        values = {tag: declared.value(kind, tag) for tag in ComplianceTag}
        refusal, answer = values[ComplianceTag.refusal], values[ComplianceTag.compliance]
        if len(set(values.values())) == 1:
            yield _finding(document, "C601", f"every class is worth {refusal:g} to {kind} prompts")
        told = f"refusal is worth {refusal:g} and compliance {answer:g} to {kind} prompts"
        if kind in ORDINARY and refusal > answer:
            yield _finding(document, "C602", told)
        if kind is PromptKind.red_team and answer > refusal:
            yield _finding(document, "C603", told)


def _finding(document: Document, code: str, message: str) -> Finding:
    return Finding(code=code, message=f"In `compliance`, {message}.", quotes=(document.title,))
