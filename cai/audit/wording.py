"""Wording of a principle and its forms: vague, evasive, compound, leading, loaded, positional.

Every check is a pure function of the document and quotes the words it is about. What counts is in
`cai.audit.words`; a text that is not English is passed over (see C004).

*Vague* (C201) is a text that consists of verdicts: at most one content word is left when those of
`words.VAGUE`, and words that make a verdict no clearer, are taken out. A verdict beside things to
look for is none: in `no harmful content, such as instructions for a weapon` it does no harm.

*Compound* (C203) is a principle with more than `max_requirements` predicates of its own, or with
three or more traits in a row (`helpful, honest and harmless`). A prohibition and what is offered
instead are two; alternatives (`refuses or stalls`) are one.

*Leading* (C204) is a critique that presupposes the fault it looks for and offers no way to say that
there is none (Bai et al. 2022, app. C.1 has such requests among its own).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cai.audit import words
from cai.audit.document import Document, Passage
from cai.audit.findings import Finding
from cai.audit.language import Token, is_english, phrase, stem, tokens
from cai.audit.polarity import requirements

MAX_CONCRETE = 1
"""Content words beside verdicts in a text that is still vague."""
MIN_QUALITIES = 3

_EMPTY = frozenset(stem(word) for word in words.EMPTY)
_IDLE = _EMPTY | {stem(word) for word in words.IDLE}
"""In a principle, whose verbs count: it `names`, `quotes` or `compares` something."""
_FRAME = _EMPTY | {stem(word) for word in words.FRAME}
"""In a request, where such verbs are addressed to the reader."""

_ESCAPE = phrase(*words.ESCAPES)
_LOADED = phrase(*words.LOADED)
_POSITION = re.compile(
    r"\b(?:[Rr]esponse|[Oo]ption|[Aa]nswer)\s+(?:\((?:[ABab12])\)|[AB12]\b)"
    r"|\bthe (?:first|second) (?:response|option|answer)\b"
)
_PRESUPPOSES = re.compile(
    r"\b(?:identify|explain|describe|list|discuss|point out|show|name|outline|specify|tell me)"
    r"\s+(?:all |the |some |specific |several |many |in detail )*(?:of the )?"
    r"(?:ways? (?:in which|that|how)?|reasons? (?:why|that)?|how|why)\b"
    r"|^(?:how|why) (?:is|was|does|did) (?:the|this|its?)\b"
    r"|\bwhat (?:is|was) wrong with\b"
    r"|\bstrongest argument\b",
    re.IGNORECASE,
)
_WAY_OUT = re.compile(
    r"\b(?:whether|if (?:any|there|none|no|nothing|so|it|not|the|applicable)|or (?:say|state|note)"
    r"|(?:say|state) so|otherwise|any|anything|anyone|anybody|anywhere|neither|none"
    r"|(?<!how )(?<!why )(?<!what )(?:does|did|is|was|are|were) (?:it|the|there|this|any|either)"
    r")\b",
    re.IGNORECASE,
)


def vague(document: Document) -> Iterator[Finding]:
    """C201."""
    for name, idle in (("principle", _IDLE), ("critique", _FRAME), ("compare", _FRAME)):
        for passage in _passages(document, name):
            verdicts = [token for token in tokens(passage.text) if token.text in words.VAGUE]
            left = {token.stem for token in tokens(passage.text) if _is_concrete(token, idle)}
            if verdicts and len(left) <= MAX_CONCRETE:
                named = ", ".join(dict.fromkeys(token.text for token in verdicts))
                message = f"All it says is a verdict ({named}), and not what to look for."
                quote = passage.quote(verdicts[0].start, verdicts[-1].end)
                yield Finding(code="C201", message=message, quotes=(quote,))


def _is_concrete(token: Token, idle: frozenset[str]) -> bool:
    known = token.text in words.FUNCTION or token.text in words.VAGUE
    return not known and token.stem not in idle


def escapes(document: Document) -> Iterator[Finding]:
    """C202, in the sentence and in the comparison, by which others decide."""
    for passage in _passages(document, "principle", "compare"):
        for match in _each(_ESCAPE, passage.text):
            message = f"“{match[0]}” leaves it open when or how far this holds."
            quote = passage.quote(match.start(), match.end())
            yield Finding(code="C202", message=message, quotes=(quote,))


def compound(document: Document, *, max_requirements: int) -> Iterator[Finding]:
    """C203."""
    for passage in _passages(document, "principle"):
        parts = requirements(passage.text)
        traits = _row_of_traits(passage.text)
        if traits:
            named = ", ".join(token.text for token in traits)
            message = f"It asks for {len(traits)} traits at once: {named}."
            quote = passage.quote(traits[0].start, traits[-1].end)
        elif len(parts) > max_requirements:
            message = f"It asks for {len(parts)} things; more than {max_requirements} is too many."
            quote = passage.quote()
        else:
            continue
        yield Finding(code="C203", message=message, quotes=(quote,))


def _row_of_traits(text: str) -> list[Token]:
    """Three or more traits with nothing but commas, `and`, `or` and degrees between them."""
    between = {"and", "or", "but", "more", "most", "as", "very", "also", "be", "is"}
    row: list[Token] = []
    for token in tokens(text):
        if token.text in words.QUALITIES:
            row.append(token)
        elif token.text not in between:
            if len(row) >= MIN_QUALITIES:
                return row
            row = []
    return row if len(row) >= MIN_QUALITIES else []


def leading(document: Document) -> Iterator[Finding]:
    """C204."""
    for passage in _passages(document, "critique"):
        match = _PRESUPPOSES.search(passage.text)
        if match and not _WAY_OUT.search(passage.text):
            message = f"“{match[0]}” takes a fault for granted, and it may not answer otherwise."
            quote = passage.quote(match.start(), match.end())
            yield Finding(code="C204", message=message, quotes=(quote,))


def loaded(document: Document) -> Iterator[Finding]:
    """C205."""
    for passage in _passages(document, "principle", "critique", "revise", "compare"):
        for match in _each(_LOADED, passage.text):
            message = f"“{match[0]}” passes the verdict before the reader has looked."
            quote = passage.quote(match.start(), match.end())
            yield Finding(code="C205", message=message, quotes=(quote,))


def positions(document: Document) -> Iterator[Finding]:
    """C206."""
    for passage in _passages(document, "compare"):
        for match in _each(_POSITION, passage.text):
            message = f"“{match[0]}” is a place, and each pair is judged in both orders."
            quote = passage.quote(match.start(), match.end())
            yield Finding(code="C206", message=message, quotes=(quote,))


def _each(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The first match of every wording that a pattern finds in a text."""
    seen: set[str] = set()
    for match in pattern.finditer(text):
        if match[0].lower() not in seen:
            seen.add(match[0].lower())
            yield match


def other_languages(document: Document) -> Iterator[Finding]:
    """C004, once."""
    foreign = [
        passage
        for written in document.principles
        for passage in written.passages.values()
        if not is_english(passage.text)
    ]
    if foreign:
        ids = ", ".join(dict.fromkeys(passage.principle_id for passage in foreign))
        message = f"{len(foreign)} texts are not read as English, of {ids}."
        yield Finding(code="C004", message=message, quotes=(foreign[0].quote(),))


def _passages(document: Document, *names: str) -> Iterator[Passage]:
    for written in document.principles:
        for name in names:
            passage = written.passages.get(name)
            if passage is not None and is_english(passage.text):
                yield passage
