"""Forms of a principle: which are missing, which ask for something else, which for the opposite.

*Match* (C103). A form shares its content words with the rest of its principle. Measured on the
documents of this project, by putting every form beside every other principle of its document: below
a shared part of .15 lie 83 to 89 % of the misplaced forms and none of the others, below .25 lie 91
to 96 %. So a form is reported when it shares less than `min_shared`, or when it shares less than
`MIN_SHARED_HERE` and most of its words are those of another principle.

*Direction* (C104). Of the words that a principle denies (`gives no dose`) or asserts (`names a
helpline`), those that its comparison wants the other way round (`gives more doses`, `says less
about a helpline`) are counted against those that it wants alike; see `cai.audit.polarity`. At least
two words and more than twice as many have to be turned round: one alone is often a figure of
speech.
"""

from __future__ import annotations

from collections.abc import Iterator

from cai.audit.document import FORMS, MAX_COMPARED, Document, Passage, Written
from cai.audit.findings import Finding
from cai.audit.language import content, is_english, tokens
from cai.audit.polarity import Sign, signs
from cai.other_shapes import OF_PAIR

MIN_WORDS = 4
"""Content words of a form, fewer of which tell nothing."""
MIN_TURNED = 2
MIN_SHARED_HERE = 0.25
MIN_OTHER = 0.6
"""Share of a form's words in another principle, from which it may belong there."""


def missing_forms(document: Document) -> Iterator[Finding]:
    """C101 for principles that have none of the forms, C102 for those with some; once for each."""
    groups: dict[tuple[str, ...], list[Written]] = {}
    for written in document.principles:
        missing = tuple(name for name in FORMS if name not in written.passages)
        groups.setdefault(missing, []).append(written)
    for missing, group in groups.items():
        if not missing:
            continue
        there = [name for name in FORMS if name not in missing]
        what = (
            f"with {' and '.join(there)}, but no {' and no '.join(missing)}"
            if there
            else "without forms of their own"
        )
        message = (
            f"Principles {what} ({len(group)} of {len(document.principles)}); what is missing is "
            f"derived from the sentence: {', '.join(written.id for written in group)}."
        )
        code = "C102" if there else "C101"
        yield Finding(code=code, message=message, quotes=(group[0].place,))


def requests_alone(document: Document) -> Iterator[Finding]:
    """C105, once: pairs of requests, imported or read as they are, whose principle nobody wrote."""
    found = [w for w in document.principles if w.principle.principle.startswith(OF_PAIR)]
    if found:
        message = (
            f"{len(found)} of {len(document.principles)} principles are requests that stand where "
            f"a sentence belongs: {', '.join(written.id for written in found)}."
        )
        yield Finding(code="C105", message=message, quotes=(found[0].place,))


def mismatched_forms(document: Document, *, min_shared: float) -> Iterator[Finding]:
    """C103: forms that share too few words with the rest of their principle."""
    english = [_english(written) for written in document.principles]
    others = [
        (written.id, _words(iter(passages.values())))
        for written, passages in zip(document.principles, english, strict=True)
    ][:MAX_COMPARED]
    for written, passages in zip(document.principles, english, strict=True):
        for name in FORMS:
            if name not in passages or len(passages) == 1:
                continue
            form = content(passages[name].text)
            rest = _words(text for key, text in passages.items() if key != name)
            shared = _share(form, rest)
            if len(form) < MIN_WORDS or shared >= max(min_shared, MIN_SHARED_HERE):
                continue
            most, other = max(
                ((_share(form, theirs), name) for name, theirs in others if name != written.id),
                default=(0.0, ""),
            )
            elsewhere = most >= MIN_OTHER
            if not elsewhere and shared >= min_shared:
                continue
            message = (
                f"The {name} request of {written.id} shares {shared:.0%} of its words with the "
                "rest of the principle"
            )
            if elsewhere:
                message += f", and {most:.0%} with {other}"
            yield Finding(code="C103", message=f"{message}.", quotes=(passages[name].quote(),))


def turned_comparisons(document: Document) -> Iterator[Finding]:
    """C104: comparisons that prefer what their principle forbids."""
    for written in document.principles:
        passages = _english(written)
        if "compare" not in passages or "principle" not in passages:
            continue
        wanted, asked = signs(passages["principle"].text), signs(passages["compare"].text)
        denied = wanted[Sign.denied] - wanted[Sign.asserted] - wanted[Sign.increased]
        asserted = (wanted[Sign.asserted] | wanted[Sign.increased]) - wanted[Sign.denied]
        more, less = asked[Sign.increased], asked[Sign.denied]
        turned = (denied & (more - less)) | (asserted & (less - more))
        alike = (denied & less) | (asserted & (more | asked[Sign.asserted]))
        if len(turned) >= MIN_TURNED and len(turned) > 2 * len(alike):
            forbids = len(denied & turned) >= len(asserted & turned)
            named = _named(passages["compare"].text, turned)
            wrong = (
                "more of what its principle forbids"
                if forbids
                else "less of what its principle wants"
            )
            message = f"The comparison of {written.id} prefers {wrong}: {named}."
            quotes = (passages["compare"].quote(), passages["principle"].quote())
            yield Finding(code="C104", message=message, quotes=quotes)


def _named(text: str, stems: frozenset[str]) -> str:
    """The words of a text that have these stems."""
    return ", ".join(dict.fromkeys(token.text for token in tokens(text) if token.stem in stems))


def _english(written: Written) -> dict[str, Passage]:
    return {name: text for name, text in written.passages.items() if is_english(text.text)}


def _words(passages: Iterator[Passage]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for passage in passages:
        found |= content(passage.text)
    return found


def _share(form: frozenset[str], rest: frozenset[str]) -> float:
    return len(form & rest) / len(form) if form else 1.0
