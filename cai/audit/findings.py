"""A finding of the lint, and the waivers that authors put beside what they mean.

A waiver is a comment `# noqa: C203 reason` on the line of the finding, on the line of the field it
is in, or in a comment of its own right above one of these; for a finding about a whole principle
that is the principle's first line, for one about the whole document the line of its `name`. Several
codes are separated by commas. A waiver without a reason, or without a code, waives nothing and is a
finding itself, and so is one that nothing needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cai.audit.codes import CODES, Code
from cai.audit.comments import Comment
from cai.audit.document import Document, File, Quote
from cai.yaml_nodes import did_you_mean

_NOQA = re.compile(r"#+\s*noqa\b[:\s]*(?P<rest>.*)", re.IGNORECASE)
_CODES = re.compile(r"(?P<codes>[A-Z]+\d+(?:\s*,\s*[A-Z]+\d+)*)\b[\s:-]*(?P<reason>.*)")
MIN_REASON = 2
"""Words; one word is no reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a reader of the document should know."""

    code: str
    message: str
    """What is the matter here."""
    quotes: tuple[Quote, ...]
    """The place first; for two sides, both."""

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code
        assert self.quotes

    @property
    def kind(self) -> Code:
        """Name, severity, advice."""
        return CODES[self.code]

    @property
    def place(self) -> Quote:
        """Where it is reported."""
        return self.quotes[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """A comment that takes findings back."""

    codes: tuple[str, ...]
    reason: str
    file: str
    line: int
    column: int
    lines: frozenset[int]
    """Lines whose findings it reaches: its own, and the next one below a comment of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waived:
    """A finding that its author means."""

    finding: Finding
    waiver: Waiver


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterWaivers:
    """What is left of the findings, and what was taken back."""

    findings: tuple[Finding, ...]
    waived: tuple[Waived, ...]


def apply_waivers(document: Document, findings: Iterable[Finding]) -> AfterWaivers:
    """Take back what is waived, and add what is wrong with the waivers, by file and line.

    A parent's waivers count for findings in the parent; one that nothing needs is reported in the
    document itself only, since a child may leave out what the parent's author meant.
    """
    waivers: list[Waiver] = []
    kept: list[Finding] = []
    for file in document.files:
        good, bad = read_waivers(file)
        waivers += good
        kept += bad
    waived = []
    used: set[tuple[Waiver, str]] = set()
    for finding in findings:
        waiver = next((w for w in waivers if _reaches(w, finding)), None)
        if waiver is None:
            kept.append(finding)
        else:
            waived.append(Waived(finding=finding, waiver=waiver))
            used |= {(w, finding.code) for w in waivers if _reaches(w, finding)}
    for waiver in waivers:
        for code in waiver.codes:
            if waiver.file == document.main.shown and (waiver, code) not in used:
                quote = _quote(waiver.file, waiver.line, waiver.column, f"noqa: {code}")
                message = f"Nothing here is found under {code}."
                kept.append(Finding(code="C003", message=message, quotes=(quote,)))
    return AfterWaivers(
        findings=tuple(sorted(kept, key=_order)),
        waived=tuple(sorted(waived, key=lambda item: _order(item.finding))),
    )


def read_waivers(file: File) -> tuple[list[Waiver], list[Finding]]:
    """The waivers of a file, and findings about those that are none."""
    good, bad = [], []
    for comment in file.comments:
        if (match := _NOQA.match(comment.text)) is None:
            continue
        quote = _quote(file.shown, comment.line, comment.column, comment.text)
        parts = _CODES.match(match["rest"])
        codes = tuple(re.split(r"\s*,\s*", parts["codes"])) if parts else ()
        unknown = [code for code in codes if code not in CODES]
        if not codes or unknown:
            what = f"{unknown[0]} is no code." if unknown else "It names no code."
            hint = did_you_mean(unknown[0], list(CODES)) if unknown else ""
            bad.append(Finding(code="C002", message=what + hint, quotes=(quote,)))
        elif parts is None or len(parts["reason"].split()) < MIN_REASON:
            message = f"{', '.join(codes)} is waived and nobody can know why."
            bad.append(Finding(code="C001", message=message, quotes=(quote,)))
        else:
            good.append(
                Waiver(
                    codes=codes,
                    reason=parts["reason"].strip(),
                    file=file.shown,
                    line=comment.line,
                    column=comment.column,
                    lines=_reached(comment, file.comments),
                )
            )
    return good, bad


def _reached(comment: Comment, all_comments: Sequence[Comment]) -> frozenset[int]:
    """Its line; from a comment of its own, the first line below that is none."""
    if not comment.alone:
        return frozenset({comment.line})
    alone = {other.line for other in all_comments if other.alone}
    below = comment.line + 1
    while below in alone:
        below += 1
    return frozenset({comment.line, below})


def _reaches(waiver: Waiver, finding: Finding) -> bool:
    return finding.code in waiver.codes and any(
        quote.file == waiver.file and waiver.lines & set(quote.anchors) for quote in finding.quotes
    )


def _quote(file: str, line: int, column: int, text: str) -> Quote:
    return Quote(
        text=text, file=file, line=line, column=column, field="", principle_id="", anchors=()
    )


def _order(finding: Finding) -> tuple[str, int, int, str, str]:
    place = finding.place
    return (place.file, place.line, place.column, finding.code, finding.message)
