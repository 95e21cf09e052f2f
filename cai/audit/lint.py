"""The static audit: every check on a document, then the waivers. No model, no network, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.audit import examples, forms, pairs, scope, wording
from cai.audit.codes import Severity
from cai.audit.declared import declared_values
from cai.audit.document import Document
from cai.audit.examples import Lengths
from cai.audit.findings import Finding, Waived, apply_waivers
from cai.audit.scope import Coverage, Harm
from cai.audit_config import LintConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """What reading a document alone can tell."""

    findings: tuple[Finding, ...]
    waived: tuple[Waived, ...]
    coverage: tuple[Coverage, ...]
    lengths: Lengths

    def counts(self) -> dict[Severity, int]:
        """Findings by severity, every severity included."""
        found = Counter(finding.kind.severity for finding in self.findings)
        return {severity: found[severity] for severity in Severity}


def lint(document: Document, harms: Sequence[Harm], config: LintConfig) -> Lint:
    """Run every check.

    Args:
        document: With its places.
        harms: Kinds of harm in the red-team prompts of a run.
        config: Limits.
    """
    covered = scope.coverage(document, harms) if document.principles else ()
    result = apply_waivers(document, _checks(document, covered, config))
    return Lint(
        findings=result.findings,
        waived=result.waived,
        coverage=covered,
        lengths=examples.lengths(document),
    )


def _checks(
    document: Document, covered: Sequence[Coverage], config: LintConfig
) -> Iterator[Finding]:
    yield from wording.other_languages(document)
    yield from forms.missing_forms(document)
    yield from forms.requests_alone(document)
    yield from forms.mismatched_forms(document, min_shared=config.min_shared)
    yield from forms.turned_comparisons(document)
    yield from wording.vague(document)
    yield from wording.escapes(document)
    yield from wording.compound(document, max_requirements=config.max_requirements)
    yield from wording.leading(document)
    yield from wording.loaded(document)
    yield from wording.positions(document)
    yield from pairs.duplicates(document, near_duplicate=config.near_duplicate)
    yield from pairs.repeated_forms(document)
    yield from pairs.contradictions(document, contradiction=config.contradiction)
    yield from scope.tags(document)
    yield from scope.uncovered(document, covered)
    yield from examples.alike(document)
    yield from examples.given_away(document, length_accuracy=config.length_accuracy)
    yield from examples.lopsided(document, test_length_ratio=config.test_length_ratio)
    yield from examples.repeated(document)
    yield from examples.untested(document)
    yield from declared_values(document)
