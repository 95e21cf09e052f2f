"""The constitution as an instrument.

What a document says is read without a model: its wording, its tests, the kinds of harm that it
speaks of, and what changed since another version. It needs no context, and `cai.audit.session`
shows it before anything heavy is imported. What a document does is measured with a feedback model
on pairs of responses; such stages take a `RunContext` as those of other phases do, and come after.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.audit.changes import Changes, compare
from cai.audit.document import Document, read_written
from cai.audit.lint import Lint, lint
from cai.audit.scope import Harm
from cai.audit_config import AuditConfig
from cai.constitution import Constitution


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is read."""

    constitution: Constitution
    compared: Constitution | None
    """The version before, if there is one to compare with."""
    harms: tuple[Harm, ...]
    """In the run's red-team prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What reading tells."""

    document: Document
    lint: Lint
    changes: Changes | None


def run(config: AuditConfig, inputs: Inputs) -> Outputs:
    """Read the document, and the other version of it in the same way."""
    document = read_written(inputs.constitution)
    found = lint(document, inputs.harms, config.lint)
    return Outputs(document=document, lint=found, changes=_changes(config, inputs, found))


def _changes(config: AuditConfig, inputs: Inputs, found: Lint) -> Changes | None:
    if inputs.compared is None:
        return None
    before = lint(read_written(inputs.compared), inputs.harms, config.lint)
    return compare(
        inputs.compared,
        inputs.constitution,
        findings_before=before.findings,
        findings_after=found.findings,
    )
