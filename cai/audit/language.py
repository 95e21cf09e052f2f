"""Words of a text: tokens with their places, stems, clauses, and which words are negated.

English only, by rules and short word lists: a lint must say the same on every machine and within a
second, so there is no tagger and no model. What the rules cannot see (irony, reference, synonyms
outside the lists) they leave alone: a check built on them should miss rather than accuse.

Stems are made by cutting endings, a light form of Porter (1980): good enough to tell that
`encourages` and `encouragement` are one word, never shown to a person.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from cai.audit import words

_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)]*(?=\s|$)")
_CLAUSE_END = re.compile(r"[,;:.!?()…]|\s[-\u2013\u2014]\s")
_ENDINGS = (
    ("ibilities", "ibl"), ("ibility", "ibl"), ("abilities", "abl"), ("ability", "abl"),
    ("ational", "at"), ("ization", "iz"), ("isation", "iz"), ("ements", ""), ("ement", ""),
    ("ments", ""), ("ment", ""), ("nesses", ""), ("ness", ""), ("ations", "at"), ("ation", "at"),
    ("tions", "t"), ("tion", "t"), ("sions", "s"), ("sion", "s"), ("ities", "it"), ("ity", "it"),
    ("ising", "iz"), ("ises", "iz"), ("ised", "iz"), ("ise", "iz"), ("izing", "iz"),
    ("izes", "iz"), ("ized", "iz"), ("ize", "iz"), ("edly", ""), ("ingly", ""), ("ally", "al"),
    ("ly", ""), ("ings", ""), ("ing", ""), ("ied", "i"), ("ed", ""), ("ies", "i"), ("ates", "at"),
    ("ate", "at"),
)  # fmt: skip
_MIN_STEM = 3
ENGLISH_SHARE = 0.2
"""Running English has about half of its words in `words.FUNCTION`; other languages next to none."""
MIN_WORDS = 8
"""Fewer words are too few to tell a language by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One word of a text."""

    text: str
    """In lower case, with straight apostrophes."""
    stem: str
    start: int
    end: int
    """Characters `start:end` of the text."""
    sentence: int
    clause: int
    """Number of the sentence and of the clause, both from 0; clauses end at punctuation."""

    @property
    def is_content(self) -> bool:
        """Whether it says what the text is about: no function word, no word of every request."""
        if self.text in words.FUNCTION or self.text in words.FRAME:
            return False
        return self.text.removesuffix("s") not in words.FRAME


@cache
def stem(word: str) -> str:
    """What a word shares with its inflections; lower case."""
    word = word.lower().replace("\u2019", "'")
    word = word.removesuffix("'s").removesuffix("'").replace("'", "")
    if word in words.IRREGULAR:
        return words.IRREGULAR[word]
    for ending, kept in _ENDINGS:
        if word.endswith(ending) and _long_enough(word[: -len(ending)]):
            return _trim(word[: -len(ending)] + kept)
    if word.endswith("es") and re.search(r"(?:s|x|z|ch|sh)es$", word):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > _MIN_STEM:
        word = word[:-1]
    return _trim(word)


def _long_enough(rest: str) -> bool:
    return len(rest) >= _MIN_STEM and re.search(r"[aeiouy]", rest) is not None


def _trim(word: str) -> str:
    """Undo a doubled consonant, a final e and y for i, which inflections add and take away."""
    if len(word) > _MIN_STEM and word[-1] == word[-2] and word[-1] in "bdgmnprt":
        word = word[:-1]
    if len(word) > _MIN_STEM:
        word = word.removesuffix("e")
    return word[:-1] + "i" if len(word) > 2 and word.endswith("y") else word


@cache
def tokens(text: str) -> tuple[Token, ...]:
    """The words of a text in order."""
    sentence_ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    clause_ends = [match.end() for match in _CLAUSE_END.finditer(text)]
    found = []
    for match in _TOKEN.finditer(text):
        found.append(
            Token(
                text=match[0].lower().replace("\u2019", "'"),
                stem=stem(match[0]),
                start=match.start(),
                end=match.end(),
                sentence=bisect.bisect(sentence_ends, match.start()),
                clause=bisect.bisect(clause_ends, match.start()),
            )
        )
    return tuple(found)


@cache
def content(text: str) -> frozenset[str]:
    """Stems of the content words."""
    return frozenset(token.stem for token in tokens(text) if token.is_content)


def is_english(text: str) -> bool:
    """Whether word lists apply; short texts count as English."""
    found = tokens(text)
    if len(found) < MIN_WORDS:
        return text.isascii()
    return sum(token.text in words.FUNCTION for token in found) >= ENGLISH_SHARE * len(found)


def span(found: Sequence[Token]) -> tuple[int, int]:
    """First and last character of neighbouring tokens."""
    return found[0].start, found[-1].end


def phrase(*options: str) -> re.Pattern[str]:
    """A pattern for any of several phrases as whole words, white space and case aside."""
    joined = "|".join(
        r"\s+".join(re.escape(word) for word in option.split())
        for option in sorted(options, key=len, reverse=True)
    )
    return re.compile(rf"(?<![\w-])(?:{joined})(?![\w-])", re.IGNORECASE)
