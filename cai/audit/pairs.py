"""Two principles at a time: duplicates, near-duplicates, contradictions.

*Similarity* (C302) is the Dice coefficient of the content words of two sentences: twice the number
they share over the sum of both. Words alone cannot tell a principle from its contrary, so two whose
shared words have opposite signs are a contradiction instead.

*Contradiction* (C304) compares clauses: when a clause of one principle asserts what a clause of the
other denies (`explains the idea and holds back steps and amounts` against `supplies the specific
steps and amounts`), at least two content words have to be turned round, more than stay alike, and
they have to be at least the share `contradiction` of the shorter clause. Conditions, reasons and
restricted clauses (`only if`) are left out, so what is found is a candidate worth reading and not a
proof; both sides are quoted word for word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from cai.audit import words
from cai.audit.document import FORMS, MAX_COMPARED, Document, Passage, Quote
from cai.audit.findings import Finding
from cai.audit.language import content, is_english, tokens
from cai.audit.polarity import Segment, Sign, segments

MIN_TURNED = 2
"""Content words with opposite signs, fewer of which are chance."""
MIN_WORDS = 3
"""Content words of a sentence that can be a near-duplicate."""
MAX_CLAUSES = 24
"""Of one sentence; no honest principle has more, and every two are compared."""


def duplicates(document: Document, *, near_duplicate: float) -> Iterator[Finding]:
    """C301 and C302: each principle beside the earlier one that is most like it.

    Pairs of requests are compared by what they ask to revise.
    """
    earlier: list[Passage] = []
    seen: dict[str, Passage] = {}
    for passage in _sentences(document, "principle", "revise"):
        same = seen.setdefault(_squeezed(passage.text), passage)
        near, similarity = _nearest(passage, earlier[-MAX_COMPARED:])
        if same is not passage:
            message = f"{passage.principle_id} says what {same.principle_id} says."
            quotes = (passage.quote(), same.quote())
            yield Finding(code="C301", message=message, quotes=quotes)
        elif near is not None and similarity >= near_duplicate:
            message = (
                f"{passage.principle_id} and {near.principle_id} share {similarity:.0%} of their "
                "words."
            )
            yield Finding(code="C302", message=message, quotes=(passage.quote(), near.quote()))
        earlier.append(passage)


def _nearest(passage: Passage, earlier: Sequence[Passage]) -> tuple[Passage | None, float]:
    """The most similar of some sentences that does not say the contrary."""
    own = content(passage.text)
    found: Passage | None = None
    most = 0.0
    if len(own) < MIN_WORDS or not is_english(passage.text):
        return found, most
    for first in earlier:
        other = content(first.text)
        similarity = dice(own, other)
        enough = len(other) >= MIN_WORDS and similarity > most and is_english(first.text)
        if enough and opposite(first, passage, share=0.0) is None:
            found, most = first, similarity
    return found, most


def dice(one: frozenset[str], two: frozenset[str]) -> float:
    """2 |A and B| / (|A| + |B|); 0 for two empty sets."""
    return 2 * len(one & two) / (len(one) + len(two)) if one or two else 0.0


def repeated_forms(document: Document) -> Iterator[Finding]:
    """C303: a form word for word in a second principle, or twice in one."""
    seen: dict[str, Passage] = {}
    for written in document.principles:
        for name in FORMS:
            passage = written.passages.get(name)
            if passage is None:
                continue
            first = seen.setdefault(_squeezed(passage.text), passage)
            if first is not passage:
                message = (
                    f"{name} of {written.id} is the same text as "
                    f"{first.field.rpartition('.')[2]} of {first.principle_id}."
                )
                yield Finding(code="C303", message=message, quotes=(passage.quote(), first.quote()))


def contradictions(document: Document, *, contradiction: float) -> Iterator[Finding]:
    """C304: each principle beside the earlier one that contradicts it the most."""
    earlier: list[Passage] = []
    for passage in _sentences(document, "principle"):
        if not is_english(passage.text):
            continue
        others = earlier[-MAX_COMPARED:]
        found = [opposite(first, passage, share=contradiction) for first in others]
        earlier.append(passage)
        worst = max((side for side in found if side), key=lambda side: side.num, default=None)
        if worst is None:
            continue
        quotes = (worst.wants, worst.forbids)
        if worst.forbids.principle_id == passage.principle_id:
            quotes = (worst.forbids, worst.wants)
        message = f"{worst.wants.principle_id} wants what {worst.forbids.principle_id} forbids."
        yield Finding(code="C304", message=message, quotes=quotes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opposites:
    """Two clauses that contradict each other."""

    wants: Quote
    forbids: Quote
    num: int
    """Content words that are turned round."""


def opposite(first: Passage, second: Passage, *, share: float) -> Opposites | None:
    """The clauses of two sentences that contradict each other the most, word for word."""
    if len(content(first.text) & content(second.text)) < MIN_TURNED:
        return None
    best: tuple[Segment, Segment] | None = None
    turned_most: frozenset[str] = frozenset()
    for (one, a), (two, b) in itertools.product(_wanted(first.text), _wanted(second.text)):
        shared = a.keys() & b.keys()
        turned = {word for word in shared if (a[word] is Sign.denied) != (b[word] is Sign.denied)}
        enough = max(MIN_TURNED, share * min(len(a), len(b)), len(shared - turned) + 1)
        if len(turned) >= max(enough, len(turned_most) + 1):
            best, turned_most = (one, two), frozenset(turned)
    if best is None:
        return None
    one, two = best
    denied = sum(one.content()[word] is Sign.denied for word in turned_most)
    sides = (_quote(first, one), _quote(second, two))
    wants, forbids = sides if 2 * denied < len(turned_most) else (sides[1], sides[0])
    return Opposites(wants=wants, forbids=forbids, num=len(turned_most))


@cache
def _wanted(text: str) -> tuple[tuple[Segment, dict[str, Sign]], ...]:
    """Clauses that say what is wanted, and the signs of their content words.

    A request to compare names both sides of a matter and wants neither.
    """
    first = {token.sentence: token.text for token in reversed(tokens(text))}
    wanted = (
        (part, part.content())
        for part in segments(text)
        if part.main
        and not part.restricted
        and first[part.tokens[0].sentence] not in words.OPENS_QUESTION
    )
    return tuple(itertools.islice(wanted, MAX_CLAUSES))


def _quote(passage: Passage, segment: Segment) -> Quote:
    kept = list(segment.tokens)
    while len(kept) > 1 and kept[-1].text in words.JOINS:
        kept.pop()
    quote = passage.quote(kept[0].start, kept[-1].end)
    assert quote.text in passage.text
    return quote


def _sentences(document: Document, *names: str) -> Iterator[Passage]:
    """Of every principle the first of these texts that it has."""
    for written in document.principles:
        there = [written.passages[name] for name in names if name in written.passages]
        yield from there[:1]


def _squeezed(text: str) -> str:
    return " ".join(token.text for token in tokens(text)) or text
