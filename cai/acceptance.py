"""Which sampled revisions are worth learning from, and what is cut off them first.

Small models answer a request for a revision with the critique once more, with the question, with a
worked example, with our own markers, or run into the token limit; 8B models collapsed after a
fine-tune on revisions that ended in the same symbols (arXiv:2504.04918), and announcements such as
"Here is the revised response" had to be stripped in every replication. So a revision is cleaned,
then given one `RevisionOutcome`; only `revised` and `shortened` become the response of their step
and examples of the fine-tune. Rules, in the order in which they are asked:

* `empty_revision`: nothing is left after cleaning.
* `malformed`: no letter or digit, one of our own markers or another turn of the conversation, a
  control token written out, or one sentence `NUM_REPEATS` times.
* `unchanged`: the same words as the response before it or as the draft, or, where the revision ran
  into the token limit, their beginning.
* `copied`: words in runs of `RUN` that one source has as well (the prompt, the critique outside its
  quotation marks, a request, the principle, a worked example) make up `COPIED` of the revision, or
  that share of the source and half of the revision. Under `MIN_WORDS` words, only equality.
* `truncated`: cut at the token limit in the middle of a sentence, and less than half of its words
  are in whole sentences. Otherwise it is cut back to them: `shortened`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cai.prompts import CRITIQUE_REQUEST, ONLY_RESPONSE, QUOTE, REVISION_REQUEST, SPEAKERS
from cai.types import RevisionOutcome, Sample

RUN = 4
"""Words in a row that count as common; shorter runs are in any two texts about one subject."""
COPIED = 0.8
"""Share of a revision's words that makes it a copy."""
MIN_WORDS = 6
"""Shorter texts ("I can't help with that.") are copies only when all of their words are the same.
"""
NUM_REPEATS = 3
"""So many times one sentence of three words or more is a loop."""
KEPT_FRAC = 0.5
"""Least share of the words that cutting back to whole sentences has to leave."""
TAIL_WORDS = 5

_REVISED = r"(?:revised|rewritten|rephrased|reworded|modified|edited)"
_CHANGED = rf"(?:{_REVISED}|new|improved|updated|corrected)"
_TEXT = r"(?:response|revision|version|answer|reply)"
_YES = (
    r"(?:(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|yes|great|understood|got it|"
    r"as requested)[,.!:]*|(?:thank you|thanks|you(?:'|\u2019)re right|i apologi[sz]e)"
    r"[^.!:\n]{0,60}[.!:]+)\s+)*"
)
_HERE = r"(?:here(?:'s|\u2019s| is)|below is) (?:a|an|the|my|your)\b"
_END = r"(?:[*_`\s]*:|[*_.!]*[ \t]*(?:\n|$))[*_]{0,3}\s*"
"""A colon, or the end of a line."""
_WHICH = rf"\b[^:\n]{{0,100}}?{_END}"
"""A clause about the announced text."""
_ANNOUNCED = [
    re.compile(rf"^{_YES}[*_#`\s]*{pattern}", re.IGNORECASE)
    for pattern in (
        # "Here is a response:", "Here's the revised answer that names its source:"
        rf"{_HERE}[^:.\n]{{0,40}}\b{_TEXT}{_END}",
        rf"{_HERE}[^:.\n]{{0,40}}\b{_CHANGED}\b[^:.\n]{{0,30}}\b{_TEXT}{_WHICH}",
        # "I have rewritten the response as follows:"
        rf"i(?:'ve|\u2019ve| have)? {_REVISED} (?:the|my|this|your) {_TEXT}{_WHICH}",
        # "Revised response:", "The response:", "Assistant:", "**Revision**" on a line of its own
        rf"(?:(?:the |my )?(?:{_CHANGED} )?{_TEXT}(?: is)?|assistant)[*_`\s]*:[*_]{{0,3}}\s*",
        rf"(?:the |my )?(?:{_CHANGED} {_TEXT}|revision)[*_#]*[ \t]*\n\s*",
    )
]
_AGREED = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok)[.!:]?\s*\n\s*", re.IGNORECASE
)
_SYMBOL = re.compile(r"[\s\u2600-\u27bf\u2b50\ufe0f\u200d\U0001f000-\U0001faff]")
_RULES = "#*~^|"
"""Three or more of them at the end are decoration."""
_CHANGES = (
    r"(?:changes?|revisions?|edits?|adjustments?|modifications?|improvements?|tweaks?|"
    r"(?:re)?(?:write|written|phrase|vise|word)d?)"
)
_CLOSING = re.compile(
    r"(?:^|(?<=[.!?\"\u201d)])\s+|\n[ \t]*)[*_(\[]*(?:"
    rf"(?:please )?(?:let me know|tell me) if you\b[^.!?\n]{{0,60}}\b{_CHANGES}\b"
    rf"|feel free to (?:make|ask|request|suggest)\b[^.!?\n]{{0,40}}\b{_CHANGES}\b"
    rf"|i hope (?:this|that|the|my)\b[^.!?\n]{{0,20}}\b(?:{_REVISED}|response|revision|version)\b"
    rf"|(?:is there anything|would you like)\b[^.!?\n]{{0,40}}\bme to {_CHANGES}\b"
    rf"|(?:this|the) {_REVISED} {_TEXT}\b"
    rf"|note:? (?:that )?i(?:'ve|\u2019ve| have)? (?:{_REVISED}|removed|added|changed|adjusted)\b"
    r")[^.!?\n]*[.!?)\]*_]*\s*$",
    re.IGNORECASE,
)
_QUOTES = ('"', '"'), ("\u201c", "\u201d")
_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d')

_OURS = "|".join(
    re.escape(text.rstrip(":.")) for text in (CRITIQUE_REQUEST, REVISION_REQUEST, ONLY_RESPONSE)
)
_TURN = "|".join([*SPEAKERS.values(), "human", "user", "critique", "revision"])
_MARKER = re.compile(
    rf"{_OURS}|^(?:[^\w\n]|_)*(?:{_TURN})[*_ ]*:|\bresponse \([A-Z]\)|<\|\w+\|>",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(
    r"(?:[.!?\u2026]+[\"'\u201d\u2019)\]*_]*(?=\s|$)|[\u3002\uff01\uff1f]|(?<=[\w\"'\u201d)])(?=\n))"
)
_NO_END = re.compile(
    r"(?:(?:^|\n)[ \t]*\d+|(?:^|\s)(?:\w|dr|mrs?|ms|prof|st|vs|approx|e\.g|i\.e))\.$",
    re.IGNORECASE,
)
"""Abbreviations, initials and the numbers of a list."""
_LONGEST_NO_END = 12


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: what two texts are compared by."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.casefold().replace("\u2019", "'"))


def clean_revision(text: str) -> str:
    """A sampled revision without quotation marks, announcements and trailing symbols."""
    lines = [line.removeprefix(QUOTE).removeprefix(">") for line in text.split("\n")]
    text = "\n".join(lines).strip()
    before = None
    while text != before:
        before = text
        for pattern in (*_ANNOUNCED, _AGREED):
            text = pattern.sub("", text, count=1)
        text = _unquoted(_CLOSING.sub("", _without_symbols(text))).strip()
    return text


def _without_symbols(text: str) -> str:
    before = None
    while text != before:
        before = text
        while text and _SYMBOL.fullmatch(text[-1]):
            text = text[:-1]
        bare = text.rstrip(_RULES)
        text = bare if len(text) - len(bare) > 2 else text
    return text


def _unquoted(text: str) -> str:
    """The inside of quotation marks around the whole text; an opening one that nothing closes."""
    for opening, closing in _QUOTES:
        inner = text.removeprefix(opening)
        if inner == text or opening in inner[:-1] or closing in inner[:-1]:
            continue
        return inner.removesuffix(closing)
    return text


def ends_whole(text: str) -> bool:
    """Whether a text ends where a sentence or a line does."""
    return whole_sentences(text) == text


def whole_sentences(text: str) -> str:
    """A text up to its last full sentence or line; empty when it has none."""
    for match in reversed(list(_SENTENCE_END.finditer(text))):
        kept = text[: match.end()]
        if not _NO_END.search(kept[-_LONGEST_NO_END:]):
            return kept
    return ""


def cut_back(text: str) -> str | None:
    """A text that was cut off, up to its last full sentence; None when less than half remains."""
    kept = whole_sentences(text)
    return kept if kept and len(words(kept)) >= KEPT_FRAC * len(words(text)) else None


def presentable(sample: Sample) -> str:
    """A sampled response as a judge sees it: cut back to whole sentences where that is possible."""
    return sample.text if sample.finished else cut_back(sample.text) or sample.text


def is_malformed(text: str) -> bool:
    """No word at all, our own markers, another turn, or one sentence over and over."""
    if not words(text) or _MARKER.search(text):
        return True
    said = Counter(
        tuple(own) for part in re.split(r"[.!?\n]+", text) if len(own := words(part)) > 2
    )
    return max(said.values(), default=0) >= NUM_REPEATS


def is_copy(text: str, source: str) -> bool:
    """Whether a text repeats a source, whole or nearly; see the rule in this module's text."""
    own, other = words(text), words(source)
    if min(len(own), len(other)) < MIN_WORDS:
        return own == other and bool(own)
    common = _num_in_common_runs(own, other)
    if common >= COPIED * len(own):
        return True
    return common >= 0.5 * len(own) and _num_in_common_runs(other, own) >= COPIED * len(other)


def _num_in_common_runs(own: Sequence[str], other: Sequence[str]) -> int:
    """Words of `own` that stand in a run of `RUN` words that `other` has as well."""
    runs = {tuple(other[i : i + RUN]) for i in range(len(other) - RUN + 1)}
    found = {
        i + k
        for i in range(len(own) - RUN + 1)
        if tuple(own[i : i + RUN]) in runs
        for k in range(RUN)
    }
    return len(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """What became of a sampled revision."""

    outcome: RevisionOutcome
    text: str
    """Cleaned and, where the outcome says so, shortened; not to be used unless `accepted`."""


def assess(
    revision: Sample,
    *,
    critique: str | None,
    responses: Sequence[str],
    sources: Iterable[str],
) -> Assessed:
    """Clean a sampled revision and say what it is.

    Args:
        revision: As sampled.
        critique: What it answers; None where nothing was criticised.
        responses: What it must not repeat word for word: the response before it and the draft.
        sources: What it must not copy: prompt, requests, principle, worked examples.
    """
    text = clean_revision(revision.text)
    copyable = [*sources, *([] if critique is None else [_QUOTED.sub(" ", critique)])]

    def repeats(candidate: str) -> RevisionOutcome | None:
        if any(_same(candidate, r, cut=not revision.finished) for r in responses):
            return RevisionOutcome.unchanged
        if any(is_copy(candidate, source) for source in copyable):
            return RevisionOutcome.copied
        return None

    if not revision.text.strip() or (not text and words(revision.text)):
        return Assessed(outcome=RevisionOutcome.empty_revision, text=text)
    if is_malformed(text):
        return Assessed(outcome=RevisionOutcome.malformed, text=text)
    if (found := repeats(text)) is not None:
        return Assessed(outcome=found, text=text)
    if revision.finished or ends_whole(text):
        return Assessed(outcome=RevisionOutcome.revised, text=text)
    kept = clean_revision(cut_back(text) or "")
    if not kept:
        return Assessed(outcome=RevisionOutcome.truncated, text=text)
    return Assessed(outcome=repeats(kept) or RevisionOutcome.shortened, text=kept)


def _same(text: str, response: str, *, cut: bool) -> bool:
    own, other = words(text), words(response)
    return own == (other[: len(own)] if cut else other)


def tail(text: str) -> tuple[str, ...]:
    """The last words of a text: what a fine-tune learns to end with."""
    return tuple(words(text)[-TAIL_WORDS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonTail:
    """The ending that most rows share."""

    text: str
    num_rows: int
    num: int
    """Rows with any text."""


def common_tail(rows: Iterable[Sequence[str]]) -> CommonTail | None:
    """The commonest last words over rows of texts; a row that ends so twice counts once.

    None without any text.
    """
    ended = [tails for row in rows if (tails := {end for text in row if (end := tail(text))})]
    counts = Counter(end for tails in ended for end in tails)
    if not counts:
        return None
    end, num = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return CommonTail(text=" ".join(end), num_rows=num, num=len(ended))
