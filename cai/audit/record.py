"""`audit.json`: an audit for machines, in the run folder.

Schema, version 1. A reader may rely on every field below; a new field does not raise the version, a
changed meaning does. Places are 1-based; `file` is as the command was given it.

* `schema`: `"cai.audit"`; `schema_version`: 1; `cai`: version of the program
* `constitution`: `name`, `version`, `digest`, `file`, `files` (those that it extends included),
  `num_principles`, `num_tests`
* `settings`: the section `audit` of the config
* `counts`: findings by severity: `error`, `warning`, `note`; and `waived`
* `findings`: list of `code`, `name`, `severity` (`error`, `warning`, `note`), `message`, `advice`,
  and `quotes`: list of `text` (word for word), `file`, `line`, `column`, `field`
  (`principles[2].compare`), `principle_id` (both empty for the document as a whole); the first is
  the place of the finding, a second one the other side
* `waived`: the same, with `waiver`: `reason`, `file`, `line`
* `coverage`: kinds of harm: `category`, `source`, `num_prompts`, `of_domain`, `principles` (ids of
  those that speak of it), `known` (false: the category's name gives nothing to look for)
* `lengths`: `num_tests`, and `longer_better`: share of tests whose better response is the longer
  one: `value`, `low`, `high` (95 % Wilson interval), `num`; or null without tests
* `changes`: null, or since another version: `before`, `after` (name and version), `same_digest`,
  `added`, `removed` (ids), `renamed` (new id to old), `fields` (list of `principle_id`, `field`,
  `before`, `after`), `new_findings`, `gone_findings` (as `findings`)
* `measured`: null, or what its labels tell (`cai.audit.measured_record`)
* `observed`: null, or the conflicts that the revisions of `run` saw: `run` (its folder's name),
  `threshold`, `num_chains`, `num_steps`, `pairs`: list of `broken`, `under`, `num`,
  `num_oscillations`, and of an example `prompt`, `round`, `before`, `after` (P(holds))
"""

from __future__ import annotations

from typing import Any

from cai import __version__
from cai.audit.changes import Changes
from cai.audit.document import Document, Quote
from cai.audit.findings import Finding, Waived
from cai.audit.lint import Lint
from cai.audit_config import AuditConfig
from cai.phases.audit import Outputs
from cai.statistics import Estimate
from cai.tracking import config_record

SCHEMA = "cai.audit"
SCHEMA_VERSION = 1


def record(outputs: Outputs, config: AuditConfig) -> dict[str, Any]:
    """The audit as plain JSON values."""
    found = outputs.lint
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "cai": __version__,
        "constitution": _constitution(outputs.document),
        "settings": config_record(config),
        "counts": {str(severity): num for severity, num in found.counts().items()}
        | {"waived": len(found.waived)},
        "findings": [_finding(finding) for finding in found.findings],
        "waived": [_waived(waived) for waived in found.waived],
        "coverage": _coverage(found),
        "lengths": {
            "num_tests": found.lengths.num,
            "longer_better": _estimate(found.lengths.longer_better),
        },
        "changes": None if outputs.changes is None else _changes(outputs.changes),
    }


def _constitution(document: Document) -> dict[str, Any]:
    constitution = document.constitution
    return {
        "name": constitution.name,
        "version": constitution.version,
        "digest": constitution.digest,
        "file": document.main.shown,
        "files": [file.shown for file in document.files],
        "num_principles": len(constitution.principles),
        "num_tests": sum(len(principle.tests) for principle in constitution.principles),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.kind.name,
        "severity": str(finding.kind.severity),
        "message": finding.message,
        "advice": finding.kind.advice,
        "quotes": [_quote(quote) for quote in finding.quotes],
    }


def _quote(quote: Quote) -> dict[str, Any]:
    return {
        "text": quote.text,
        "file": quote.file,
        "line": quote.line,
        "column": quote.column,
        "field": quote.field,
        "principle_id": quote.principle_id,
    }


def _waived(waived: Waived) -> dict[str, Any]:
    waiver = waived.waiver
    told = {"reason": waiver.reason, "file": waiver.file, "line": waiver.line}
    return _finding(waived.finding) | {"waiver": told}


def _coverage(found: Lint) -> list[dict[str, Any]]:
    return [
        {
            "category": row.harm.category,
            "source": row.harm.source,
            "num_prompts": row.harm.num_prompts,
            "of_domain": row.harm.of_domain,
            "principles": list(row.principles),
            "known": row.known,
        }
        for row in found.coverage
    ]


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "num": estimate.num,
    }


def _changes(changes: Changes) -> dict[str, Any]:
    return {
        "before": changes.before,
        "after": changes.after,
        "same_digest": changes.same_digest,
        "added": [principle.id for principle in changes.added],
        "removed": [principle.id for principle in changes.removed],
        "renamed": dict(changes.renamed),
        "fields": [
            {
                "principle_id": change.principle_id,
                "field": change.field,
                "before": change.before,
                "after": change.after,
            }
            for change in changes.fields
        ],
        "new_findings": [_finding(finding) for finding in changes.new_findings],
        "gone_findings": [_finding(finding) for finding in changes.gone_findings],
    }
