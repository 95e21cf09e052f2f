"""Principle tests: whether there are any, whether they differ, and whether length gives them away.

Length is counted in words. Over the whole document, taking the longer response (or the shorter one,
if that is better) must not be right more often than `length_accuracy` and significantly more often
than chance (95 % Wilson interval above one half). A single test gives itself away when one response
has `test_length_ratio` times the words of the other and at least `MIN_DIFFERENCE` words more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cai.audit.document import Document, WrittenTest
from cai.audit.findings import Finding
from cai.statistics import Estimate, wilson_interval

MIN_DIFFERENCE = 12
"""Words: of very short responses one may well be twice as long as the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How far length alone solves the tests of a document."""

    num: int
    longer_better: Estimate | None
    """Share of the tests with unequal lengths whose better response is the longer one."""


def lengths(document: Document) -> Lengths:
    """Measure all tests, inherited ones included."""
    pairs = [
        (len(test.better.text.split()), len(test.worse.text.split()))
        for written in document.principles
        for test in written.tests
    ]
    unequal = [better > worse for better, worse in pairs if better != worse]
    return Lengths(num=len(pairs), longer_better=wilson_interval(sum(unequal), len(unequal)))


def given_away(document: Document, *, length_accuracy: float) -> Iterator[Finding]:
    """C502."""
    share = lengths(document).longer_better
    if share is None:
        return
    longer = share.value >= 0.5
    accuracy = share.value if longer else 1 - share.value
    low = share.low if longer else 1 - share.high
    if low > 0.5 and accuracy > length_accuracy:
        message = (
            f"Taking the {'longer' if longer else 'shorter'} response is right on {accuracy:.2f} "
            f"of the document's {share.num} tests."
        )
        yield Finding(code="C502", message=message, quotes=(document.title,))


def lopsided(document: Document, *, test_length_ratio: float) -> Iterator[Finding]:
    """C503."""
    for test in _tests(document):
        better, worse = len(test.better.text.split()), len(test.worse.text.split())
        more, fewer = max(better, worse), min(better, worse)
        if more - fewer >= MIN_DIFFERENCE and more >= test_length_ratio * fewer:
            message = f"The better response has {better} words, the worse one {worse}."
            longer, shorter = test.better, test.worse
            if worse > better:
                longer, shorter = shorter, longer
            yield Finding(code="C503", message=message, quotes=(longer.quote(), shorter.quote()))


def alike(document: Document) -> Iterator[Finding]:
    """C501: responses that differ in case, space and punctuation alone."""
    for test in _tests(document):
        if _letters(test.better.text) == _letters(test.worse.text):
            message = "The better and the worse response are the same words."
            quotes = (test.worse.quote(), test.better.quote())
            yield Finding(code="C501", message=message, quotes=quotes)


def repeated(document: Document) -> Iterator[Finding]:
    """C305 for a test whose contrary is there, C306 for one that is there twice."""
    seen: dict[tuple[str, str, str], WrittenTest] = {}
    for test in _tests(document):
        prompt, better, worse = (
            _letters(text.text) for text in (test.prompt, test.better, test.worse)
        )
        if better == worse:
            continue
        if (prompt, worse, better) in seen:
            first = seen[prompt, worse, better]
            message = f"{test.prompt.principle_id} and {first.prompt.principle_id} disagree here."
            quotes = (test.better.quote(), first.worse.quote())
            yield Finding(code="C305", message=message, quotes=quotes)
        elif (prompt, better, worse) in seen:
            first = seen[prompt, better, worse]
            message = f"{first.prompt.principle_id} has the same test."
            quotes = (test.prompt.quote(), first.prompt.quote())
            yield Finding(code="C306", message=message, quotes=quotes)
        seen.setdefault((prompt, better, worse), test)


def untested(document: Document) -> Iterator[Finding]:
    """C505 for a document without any test, C504 for single principles without."""
    without = [written for written in document.principles if not written.tests]
    if without and len(without) == len(document.principles):
        message = f"None of the {len(without)} principles has a test."
        yield Finding(code="C505", message=message, quotes=(document.title,))
        return
    for written in without:
        message = f"{written.id} has no test."
        yield Finding(code="C504", message=message, quotes=(written.place,))


def _tests(document: Document) -> Iterator[WrittenTest]:
    for written in document.principles:
        yield from written.tests


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text
