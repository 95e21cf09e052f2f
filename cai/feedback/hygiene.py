r"""Text under judgement as a reader sees it, before a judge is shown it or encodes it.

A response can carry what no reader sees (zero-width and bidirectional controls, tag characters,
soft hyphens) or letters that only look like others (Cyrillic and Greek twins, mathematical and
full-width alphabets). A judge reads tokens, so to it such a text is another one: an insult spelled
with Cyrillic letters is no insult, and an order in tag characters is an order. `clean` takes the
difference away; records keep the original text.

What is left alone, because readers need it: letters of every script, accents, superscripts,
fractions, ligatures, single mathematical letters and full-width punctuation (so this is not NFKC,
which would make 10\u00b2 into 102), the joiners of Indic scripts and of Arabic, variation selectors
and joiners inside emoji, the flags made of tags, and Cyrillic or Greek words of a text that is
really written in that script. A word of Latin and Greek letters is taken for a disguise when all
its Greek letters have Latin twins: TNF\u03b1 becomes TNFa.

A response of more than `MAX_CHARS` characters is shown with its middle cut out, visibly, so that a
flood of text cannot push the question out of the context; stages count such pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from cai.types import Message

MAX_CHARS = 4_000
"""Characters of one response that a judge sees; some 900 tokens of English."""
CUT = "\n[...]\n"

_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_INVISIBLE = re.compile(
    # Unicode's Default_Ignorable_Code_Point, controls, annotation marks, unpaired surrogates
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_JOINERS = "\u200c\u200d"
_TEXT_OR_EMOJI = "\ufe0e\ufe0f"
_BLACK_FLAG = "\U0001f3f4"
_VIRAMA = 9
"""Combining class of the sign that a joiner may follow in Indic scripts (RFC 5892, app. A)."""
_FLAGS = frozenset(
    "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
)

BOXED = ("<circle>", "<square>", "<narrow>")
STYLED = ("<font>", "<wide>")
"""Unicode's words for compatibility characters; a single letter in one of these may be a symbol."""

_RUN = re.compile(r"[^\W_]{2,}")
_WORD = re.compile(r"[^\W\d_]+")
_TWINS = str.maketrans(
    "АВЕКМНОРСТХУІЈЅЅаеорсухіјѕһԁԛԝ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυ",  # noqa: RUF001
    "ABEKMHOPCTXYIJSSaeopcyxijshdqw" + "ABEZHIKMNOPTYXaikvopu",
)
_TWIN_SCRIPTS = ("CYRILLIC", "GREEK")


def shown(response: str) -> str:
    """A response as judges see it: clean, stripped, with its middle cut out when it is long."""
    text = clean(response).strip()
    if len(text) <= MAX_CHARS:
        return text
    tail = (MAX_CHARS - len(CUT)) // 2
    head = MAX_CHARS - len(CUT) - tail
    return text[:head] + CUT + text[-tail:]


def shown_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation as judges see it: clean."""
    return tuple(Message(role=turn.role, content=clean(turn.content)) for turn in messages)


def is_cut(response: str) -> bool:
    """Whether judges see only the beginning and the end of it."""
    return len(clean(response).strip()) > MAX_CHARS


def clean(text: str) -> str:
    """The text that a reader sees; cleaning it again changes nothing."""
    before = None
    while text != before:
        before = text
        text = _SPACE.sub(" ", _LINE_END.sub("\n", text))
        text = "".join(_plain(character, BOXED) for character in text)
        text = unicodedata.normalize("NFC", _RUN.sub(_upright, text))
        text = unicodedata.normalize("NFC", _INVISIBLE.sub(_needed, text))
        text = _untwinned(text)
    return text


def _upright(found: re.Match[str]) -> str:
    """A word in mathematical or full-width letters or digits as a plain one."""
    return "".join(_plain(character, STYLED) for character in found[0])


@cache
def _plain(character: str, styles: tuple[str, ...]) -> str:
    """The letter or digit behind a character of some styles; half-width forms of any kind, too."""
    style = unicodedata.decomposition(character).partition(" ")[0]
    if style not in styles:
        return character
    plain = unicodedata.normalize("NFKC", character)
    digit = styles is STYLED and plain.isdecimal()
    return plain if style == "<narrow>" or plain.isalpha() or digit else character


def _needed(found: re.Match[str]) -> str:
    """What a script or an emoji needs of a run of invisible characters."""
    run, text = found[0], found.string
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    if not before:
        return ""
    if _is_pictograph(before):
        if before == _BLACK_FLAG and run in _FLAGS:
            return run
        variant = run[0] if run[0] in _TEXT_OR_EMOJI else ""
        joined = run[len(variant) :].startswith("\u200d") and _is_pictograph(after)
        return variant + ("\u200d" if joined else "")
    if before in "0123456789#*":
        return "\ufe0f" if run[0] == "\ufe0f" and after == "\u20e3" else ""
    if unicodedata.combining(before) == _VIRAMA or unicodedata.bidirectional(before) == "AL":
        return run[0] if run[0] in _JOINERS else ""
    if unicodedata.name(before, "").startswith("MONGOLIAN"):
        return run[0] if "\u180b" <= run[0] <= "\u180f" else ""
    return ""


def _is_pictograph(character: str) -> bool:
    """Whether it may be a part of an emoji: symbols, and the punctuation beyond Latin-1."""
    if not character or (character < "\u2000" and character not in "\u00a9\u00ae"):
        return False
    return unicodedata.category(character)[0] in "SP"


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _untwinned(text: str) -> str:
    """Cyrillic and Greek letters that stand for their Latin twins, as these.

    They do so in words of several scripts, and in words of twins alone when the text has Latin
    words and few of that script with other letters.
    """
    if text.isascii():
        return text
    words = [(word, frozenset(map(_script, word))) for word in set(_WORD.findall(text))]
    latin = any(scripts == {"LATIN"} for _, scripts in words)
    posing = {
        script
        for script in _TWIN_SCRIPTS
        if latin and _num_twins(words, script, True) > _num_twins(words, script, False)
    }
    return _WORD.sub(lambda found: _as_latin(found[0], posing), text)


def _num_twins(words: list[tuple[str, frozenset[str]]], script: str, only_twins: bool) -> int:
    """How many different words of one script have only twins, or have other letters."""
    own = [word for word, scripts in words if scripts == {script} and len(word) > 1]
    return sum(_all_twins(word) == only_twins for word in own)


def _all_twins(word: str) -> bool:
    """Whether every letter that is not Latin has a Latin twin."""
    return all(ord(letter) in _TWINS or _script(letter) == "LATIN" for letter in word)


def _as_latin(word: str, posing: set[str]) -> str:
    scripts = frozenset(map(_script, word))
    if not scripts & set(_TWIN_SCRIPTS) or not _all_twins(word):
        return word
    disguised = len(scripts) > 1 or (len(word) > 1 and scripts <= posing)
    return word.translate(_TWINS) if disguised else word
