"""What a sentence asks for and what it forbids: clauses, and the sign of every word in them.

`The response gives no dose, and names a place to get help` has two segments: in the first `dose` is
denied, in the second `place` and `help` are asserted. In `Which response says less about doses?`
`doses` is denied, in `gives more doses` it is increased. The sign of a word is that of the nearest
operator before it in its segment. What stands under a condition (`When the user asks, ...`) or
gives a reason (`because ...`) is neither asked for nor forbidden, and a word that is restricted
(`only if`, `no ... except`) is both, so such parts are marked and left alone by who compares signs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from cai.audit import words
from cai.audit.language import Token, stem, tokens


class Sign(StrEnum):
    """What is wanted of a word's matter."""

    asserted = "asserted"
    denied = "denied"
    """None or less of it."""
    increased = "increased"
    """More of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A clause with one verb."""

    tokens: tuple[Token, ...]
    signs: tuple[Sign | None, ...]
    """One per token; None for the operators themselves."""
    main: bool
    """Says what is wanted; not a condition, reason or comparison."""
    own: bool
    """Asks for something of its own, not for one of two things (`refuses or stalls`)."""
    restricted: bool
    """Holds `only`, `except` or the like."""

    @property
    def start(self) -> int:
        """First character."""
        return self.tokens[0].start

    @property
    def end(self) -> int:
        """One past the last character."""
        return self.tokens[-1].end

    def content(self) -> dict[str, Sign]:
        """Content stems and their signs; of a stem that is there twice, the last."""
        pairs = zip(self.tokens, self.signs, strict=True)
        return {token.stem: sign for token, sign in pairs if sign and token.is_content}


@cache
def segments(text: str) -> tuple[Segment, ...]:
    """The segments of a text in order."""
    found = []
    for sentence in _sentences(tokens(text)):
        body = _after_condition(sentence)
        if body:
            found.append(_segment(sentence[:body], main=False, before=""))
        found += _split(sentence[body:])
    return tuple(found)


def signs(text: str) -> dict[Sign, frozenset[str]]:
    """Content stems by sign, over the main segments that restrict nothing."""
    found: dict[Sign, set[str]] = {sign: set() for sign in Sign}
    for segment in segments(text):
        if segment.main and not segment.restricted:
            for word, sign in segment.content().items():
                found[sign].add(word)
    return {sign: frozenset(stems) for sign, stems in found.items()}


def requirements(text: str) -> tuple[Segment, ...]:
    """The segments of a principle that each ask for something of their own."""
    return tuple(segment for segment in segments(text) if segment.main and segment.own)


def _sentences(found: tuple[Token, ...]) -> Iterator[tuple[Token, ...]]:
    start = 0
    for place, token in enumerate(found):
        if token.sentence != found[start].sentence:
            yield found[start:place]
            start = place
    if found:
        yield found[start:]


def _after_condition(sentence: tuple[Token, ...]) -> int:
    """Where the main clause begins: at its subject, when a condition or place stands before it."""
    if sentence[0].text not in words.OPENS_CONDITION:
        return 0
    for place, token in enumerate(sentence):
        before = sentence[place - 1].text if place else ""
        if token.text in words.SUBJECTS and before in ("the", "a", "which", "an"):
            return place - 1
    return 0


def _split(body: tuple[Token, ...]) -> Iterator[Segment]:
    start, main, before = 0, True, ""
    for place in range(1, len(body)):
        opens = body[place].text in words.OPENS_ASIDE
        if opens or _begins_predicate(body, place):
            yield _segment(body[start:place], main=main, before=before)
            start, main, before = place, not opens, body[place - 1].text
    if body[start:]:
        yield _segment(body[start:], main=main, before=before)


def _begins_predicate(body: tuple[Token, ...], place: int) -> bool:
    """Whether a verb in the third person starts here: `, names the sign`, `and says what`."""
    token, before = body[place], body[place - 1]
    after = body[place + 1] if place + 1 < len(body) else None
    if token.clause == before.clause and before.text not in words.JOINS:
        return False
    if token.text == "does":
        return True
    if not re.fullmatch(r"\w{2,}[^s'\W]s", token.text) or after is None:
        return False
    # After `or` an object may be one of a list: `crimes, vices or humiliations to a person`.
    opens = words.OPENS_OBJECT - (words.PREPOSITIONS if before.text == "or" else set())
    return after.clause == token.clause and (after.text in opens or after.text.endswith("ly"))


def _ends_list(body: tuple[Token, ...], place: int) -> bool:
    """Whether an enumeration is over: after a comma comes an article, or `and with`."""
    token, before = body[place], body[place - 1]
    if token.clause != before.clause:
        return token.text in words.ARTICLES
    return before.text in ("and", "but") and token.text in words.PREPOSITIONS


def _segment(part: tuple[Token, ...], *, main: bool, before: str) -> Segment:
    """Give every word its sign; `before` is the word that joins the segment to the one before."""
    found: list[Sign | None] = []
    sign = Sign.denied if before == "nor" else Sign.asserted
    for place, token in enumerate(part):
        after = part[place + 1].text if place + 1 < len(part) else ""
        if place and _ends_list(part, place):
            sign = Sign.asserted
        operator = _operator(token, after)
        if operator is None:
            found.append(sign)
            continue
        found.append(None)
        sign = operator
    restricted = any(token.text in words.RESTRICTS for token in part)
    return Segment(
        tokens=part,
        signs=tuple(found),
        main=main,
        own=before not in ("or", "nor"),
        restricted=restricted,
    )


def _operator(token: Token, after: str) -> Sign | None:
    if token.text in words.DENIES or token.text.endswith("n't"):
        return Sign.denied
    if token.stem in _denying_verbs() or (token.stem, after) in words.DENIES_IN_TWO:
        return Sign.denied
    if token.text in words.DENIES_BEFORE and after in words.DENIES_BEFORE[token.text]:
        return Sign.denied
    return Sign.increased if token.text in words.INCREASES else None


@cache
def _denying_verbs() -> frozenset[str]:
    return frozenset(stem(word) for word in words.DENYING_VERBS)
