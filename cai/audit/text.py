"""What the person reads in the terminal when a document was audited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai.audit.changes import Changes
from cai.audit.findings import Finding, Waived
from cai.audit.lint import Lint
from cai.phases.audit import Outputs
from cai.summary import WIDTH, Page, columns
from cai.word_diff import word_diff

QUOTE_LINES = 3


def _page(encoding: str) -> Page:
    return Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))


def places(run_dir: Path, *, encoding: str) -> str:
    """Where everything is, for the end."""
    page = _page(encoding)
    page.gap()
    page.line(f"For machines: {run_dir / 'audit.json'}")
    page.line(f"Report: {run_dir / 'report.html'}")
    return "\n".join(page.lines)


def terminal_audit(outputs: Outputs, *, encoding: str) -> str:
    """What reading the document tells as a text, without a final newline."""
    page = _page(encoding)
    constitution = outputs.document.constitution
    page.text(
        f"Audit of the constitution {constitution.name} {constitution.version}: "
        f"{_count(len(constitution.principles), 'principle')}, "
        f"{_count(outputs.lint.lengths.num, 'test')}, {outputs.document.main.shown}"
    )
    advised: set[str] = set()
    for finding in outputs.lint.findings:
        _finding(page, finding, advise=finding.code not in advised)
        advised.add(finding.code)
    if outputs.lint.waived:
        page.gap("Waived")
        for waived in outputs.lint.waived:
            _waived(page, waived)
    if outputs.changes is not None:
        _changes(page, outputs.changes)
    page.gap()
    page.text(total(outputs.lint))
    return "\n".join(page.lines)


def total(found: Lint) -> str:
    """The counts in a sentence."""
    counts = [_count(num, str(severity)) for severity, num in found.counts().items()]
    waived = f"; {len(found.waived)} waived" if found.waived else ""
    told = f"{', '.join(counts)}{waived}."
    if (share := found.lengths.longer_better) is not None:
        told += f" The longer response is the better one in {share.format()} of the tests."
    return told


def _count(num: int, noun: str) -> str:
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def _finding(page: Page, finding: Finding, *, advise: bool) -> None:
    """Place, code, message, quotes, and what to do, which is said once for each code."""
    place = finding.place
    page.gap()
    head = f"{place.file}:{place.line}:{place.column}"
    kind = f"{finding.code} {finding.kind.severity}: {finding.kind.name}"
    if columns(page.clean(f"{head}  {kind}")) <= WIDTH:
        page.line(f"{head}  {kind}")
    else:
        page.line(head)
        page.text(kind, first="  ", rest="  ")
    page.text(finding.message, first="  ", rest="  ")
    for number, quote in enumerate(finding.quotes):
        if quote.text == quote.principle_id:  # a whole principle; the message has its id
            continue
        elsewhere = f" ({quote.file}:{quote.line})" if number else ""
        told = f"\u201c{quote.text}\u201d{elsewhere}"
        page.text(told, first="    ", rest="     ", max_lines=QUOTE_LINES)
    if advise:
        page.text(finding.kind.advice, first="  > ", rest="    ")


def _waived(page: Page, waived: Waived) -> None:
    place = waived.finding.place
    page.text(
        f"{place.file}:{place.line} {waived.finding.code} {waived.finding.kind.name}: "
        f"{waived.waiver.reason}",
        first="  ",
        rest="    ",
    )


def _changes(page: Page, changes: Changes) -> None:
    page.gap(f"From {page.clean(changes.before)} to {page.clean(changes.after)}")
    if changes.same_digest:
        page.text("Nothing that a run reads is different.", first="  ")
        return
    for sign, principles in (("+", changes.added), ("-", changes.removed)):
        for principle in principles:
            page.text(f"{principle.id}: {principle.principle}", first=f"  {sign} ", rest="    ")
    for new, old in changes.renamed.items():
        page.text(f"{old} is now {new}", first="  = ", rest="    ")
    for change in changes.fields:
        told = _told(change.before, change.after)
        page.text(f"{change.principle_id}.{change.field}: {told}", first="  ~ ", rest="    ")
    _titles(page, "new finding", changes.new_findings)
    _titles(page, "gone", changes.gone_findings)


def _told(before: str, after: str) -> str:
    """The new text with what was taken out and put in, marked as in `wdiff`."""
    marks = {"ins": ("{+", "+}"), "del": ("[-", "-]"), "same": ("", "")}
    parts = word_diff(before, after)
    return "".join(f"{marks[part.kind][0]}{part.text}{marks[part.kind][1]}" for part in parts)


def _titles(page: Page, what: str, findings: Sequence[Finding]) -> None:
    for finding in findings:
        page.text(
            f"{what}: {finding.code} {finding.kind.name}. {finding.message}",
            first="  ! ",
            rest="    ",
        )
