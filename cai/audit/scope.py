"""What the principles are about: their tags, and the kinds of harm that the prompts bring.

*Tags* are free words, so an unknown one is only a note; one that is almost another tag (of this
document, of the project's own documents, or a kind of harm) is taken for a slip (C401).

*Coverage* (C403, C404). The red-team prompts of a run have categories; a category is covered when a
principle mentions one of its words (`cai.audit.harms`) in its sentence, its critique, its
comparison or its tags. The test is whether the document speaks of the matter at all, not whether
it deals with it well. For a document with a domain of its own, kinds of harm outside the domain are
a note: its author chose the subject, and half of the run's prompts are about something else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cai import constitution, paths
from cai.audit.document import Document, Passage, Written
from cai.audit.findings import Finding
from cai.audit.harms import HARMS, WEAK
from cai.audit.language import stem

NEAR = 0.85
"""Similarity (`difflib`) of two tags that are one tag misspelt: `citation` and `citations`."""
MAX_LISTED = 40
"""Tags that are looked at closely, and names in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """A kind of harm that prompts bring."""

    category: str
    source: str
    """The set of prompts, e.g. `red_team` or a file's name."""
    num_prompts: int
    of_domain: bool
    """The prompts are the constitution's own domain's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """A kind of harm and the principles that speak of it."""

    harm: Harm
    principles: tuple[str, ...]
    """Ids."""
    known: bool
    """False when the category's name says nothing that could be looked for (`S3`)."""


def tags(document: Document) -> Iterator[Finding]:
    """C401 for slips, C402 once for tags that nobody else uses."""
    known = _known_tags()
    places: dict[str, list[Passage]] = {}
    for written in document.principles:
        for tag in written.tags:
            if tag.text not in known:
                places.setdefault(tag.text, []).append(tag)
    common = sorted(places, key=lambda name: -len(places[name]))[:MAX_LISTED]
    unknown = []
    for name, there in places.items():
        near = []
        if len(unknown) < MAX_LISTED:
            others = known | {other for other in common if len(places[other]) > len(there)}
            near = difflib.get_close_matches(name, sorted(others), n=1, cutoff=NEAR)
        if not near:
            unknown.append(name)
            continue
        for tag in there:
            message = f"No other tag is {name}. Did you mean {near[0]}?"
            yield Finding(code="C401", message=message, quotes=(tag.quote(),))
    if unknown:
        message = f"Tags of this document alone: {_listed(unknown)}."
        quote = places[unknown[0]][0].quote()
        yield Finding(code="C402", message=message, quotes=(quote,))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _known_tags() -> frozenset[str]:
    """Tags of the project's own documents, and kinds of harm."""
    known = set(HARMS)
    for path in sorted(paths.CONSTITUTIONS.glob("*.yaml")):
        document = constitution.load(path.stem, folder=paths.CONSTITUTIONS)
        known.update(tag for principle in document.principles for tag in principle.scope)
    return frozenset(known)


def coverage(document: Document, harms: Iterable[Harm]) -> tuple[Coverage, ...]:
    """Which principles speak of which kind of harm."""
    stems = {written.id: _stems(written) for written in document.principles}
    speaking: dict[str, set[str]] = {}

    def speak_of(word: str) -> set[str]:
        if word not in speaking:
            speaking[word] = {name for name, text in stems.items() if f" {word} " in text}
        return speaking[word]

    found = []
    for harm in harms:
        wanted = words_of(harm.category)
        named = {name for word in wanted for name in speak_of(word)}
        speak = tuple(
            written.id
            for written in document.principles
            if written.id in named or harm.category in written.principle.scope
        )
        found.append(Coverage(harm=harm, principles=speak, known=bool(wanted or speak)))
    return tuple(found)


def words_of(category: str) -> frozenset[str]:
    """Stems to look for; those of two words stand close together."""
    parts = [part for part in re.split(r"[\W_]+", category.casefold()) if part]
    listed = HARMS.get("_".join(parts))
    if listed is None:
        strong = [part for part in parts if part not in WEAK and part.isalpha() and len(part) > 2]
        listed = " ".join([*strong, *(HARMS[part] for part in strong if part in HARMS)])
    return frozenset(" ".join(stem(part) for part in word.split("-")) for word in listed.split())


def _stems(written: Written) -> str:
    """All stems in order, with a space on either side of each."""
    principle = written.principle
    texts = [principle.principle, principle.critique, principle.compare, *principle.scope]
    parts = re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", " . ".join(texts).replace("_", " "))
    return f" {' '.join(stem(part) for part in parts)} "


def uncovered(document: Document, covered: Sequence[Coverage]) -> Iterator[Finding]:
    """C403 and C404, one finding for each set of prompts."""
    has_domain = any(item.harm.of_domain for item in covered)
    sources = dict.fromkeys((item.harm.source, item.harm.of_domain) for item in covered)
    for source, of_domain in sources:
        rows = [item for item in covered if item.harm.source == source and item.known]
        gaps = [item.harm for item in rows if not item.principles]
        if not gaps:
            continue
        named = _listed([f"{harm.category} ({harm.num_prompts})" for harm in gaps])
        message = (
            f"{len(gaps)} of {len(rows)} kinds of harm in the red-team prompts of {source} are "
            f"mentioned by no principle (prompts): {named}."
        )
        code = "C404" if has_domain and not of_domain else "C403"
        yield Finding(code=code, message=message, quotes=(document.title,))
