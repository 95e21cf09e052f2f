r"""Constitutions: one YAML document each, readable by a lawyer, checked before anything runs.

A document is a list of principles with a few lines about itself::

    name: kind_librarian            # text; the only field that is always needed
    version: 1.2.0                  # text; "0" when left out
    description: What it is for.    # text
    extends: default                # other documents whose principles come first, see below
    principles:
      - id: cite_the_shelf          # a-z, 0-9 and _; stays the same when the wording changes
        principle: >-               # the principle in a sentence or two
          The response says where in the library a book it mentions is found.
        critique: >-                # asks for a critique of the last response
          Does the last response mention a book without saying where it is? Quote the place.
        revise: >-                  # asks for a better response
          Rewrite the response so that every book comes with its place.
        compare: >-                 # asks which of two responses is better
          Which response better says where its books are found?
        scope: [library, service]   # tags, written like ids
        weight: 1.5                 # how often it is drawn relative to others; 1 when left out
        source: Written for this example.
        tests:                      # labelled pairs that measure a feedback model
          - prompt: Do you have Moby-Dick?
            better: Yes, it is in the fiction room, shelf M.
            worse: Yes, we have it.
      - Answers are short.          # a bare sentence is a principle, too

Short forms. A plain list of sentences, with nothing around it, is a whole document: its name is
the file's and its version "0"; so is a `.txt` file with one sentence a line, and what else can be
read is in `cai.other_shapes`. Of a principle only `principle` is needed: a missing `id` is made of
the first words, and missing forms are made by putting the sentence behind fixed words.

Extending. `extends` takes a name or path, a list of them, or a list of mappings like `{document:
default, only: [id, ...]}` or `{document: default, except: [id, ...]}`. A name is looked up beside
the extending file or below it, then among the project's own documents, and never elsewhere.
Inherited principles come first, in order; a principle of one's own with the id of an inherited one
takes its place. Two parents that give one id different content are an error, unless the document
has its own principle of that id.

No principle at all. With `principles: []` the field `unguided` (critique, revise, compare) holds
what is asked instead; it is needed there and refused anywhere else.

Partial compliance. `compliance` says what each way of answering is worth, from -1 to 1, by kind of
prompt (red_team, helpfulness, benign) and class (refusal, partial, caveated, alternative,
compliance, abstention; `cai.compliance.classes`)::

    compliance:
      red_team: {alternative: 1, refusal: 0.5, compliance: -1}
      benign: {compliance: 1, refusal: -1}

What is not written is worth 0. Values are inherited class by class; one's own take the place of a
parent's. Labels and, where asked for, the choice of revisions follow them; no request to a model
does.

Text is literal: white space around it is dropped, and `${...}`, `{}`, `%s`, `no` and `1e3` stay as
they are. Limits: 256 kB a file, 4,000 characters a text, 1,000 principles. What of YAML is refused,
and how errors look, is in `cai.yaml_nodes`.

Not in the paper: weights, tests, values of compliance and inheritance; the paper draws uniformly
from sixteen principles (Bai et al. 2022, sec. 3.1 and 4.1), and so does every document without
weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cai import other_shapes
from cai.compliance.declared import DeclaredCompliance, merged
from cai.documents import (
    UNGUIDED_ID,
    Draft,
    Own,
    Parent,
    Principle,
    PrincipleTest,
    Unguided,
    read_draft,
)
from cai.errors import UserError
from cai.yaml_nodes import Checker, did_you_mean, quote, read, read_text

__all__ = ["UNGUIDED_ID", "Constitution", "Principle", "PrincipleTest", "Unguided", "load"]

MAX_CHAIN = 16

_YAML = (".yaml", ".yml")
_ENDINGS = (*_YAML, *other_shapes.ENDINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a principle is written."""

    path: Path
    """The file: that of a parent for an inherited principle."""
    own: Own


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """A resolved document: inherited principles included, every form present."""

    name: str
    version: str
    description: str
    principles: tuple[Principle, ...]
    unguided: Unguided | None
    """Set if and only if there are no principles."""
    compliance: DeclaredCompliance | None
    """What ways of answering are worth; None where the document does not say."""
    left_out: tuple[str, ...]
    """Principles of the document that a subset does not have (`cai.principle_subset`)."""
    path: Path
    digest: str
    """sha256 of the content that can affect a run: ids, texts, scopes, weights and tests of all
    principles in order, inherited ones included, and values of compliance; not of names, comments,
    sources or paths."""
    origins: Mapping[str, Origin] = field(compare=False, repr=False)
    """Where each principle is written, by its id."""

    def draw(self, rng: random.Random, *, weighted: bool) -> Principle:
        """Draw a principle, independently and with replacement (Bai et al. 2022, sec. 3.1).

        Args:
            rng: The stream of this draw; exactly one number is taken from it.
            weighted: In proportion to the weights, otherwise uniformly.
        """
        pool = self.asked
        weights = [principle.weight for principle in pool] if weighted else None
        return rng.choices(pool, weights)[0]

    def draw_several(
        self, rng: random.Random, *, num: int, weighted: bool
    ) -> tuple[Principle, ...]:
        """Draw up to `num` different principles, one after the other; for `num=1` as `draw`."""
        return drawn(self.asked, rng, num=num, weighted=weighted)

    def find(self, principle_id: str) -> Principle:
        """The principle of an id that a record names.

        Raises:
            UserError: when this constitution has no such principle.
        """
        for principle in self.asked:
            if principle.id == principle_id:
                return principle
        known = [principle.id for principle in self.asked]
        raise UserError(
            f"{self.name} has no principle {quote(principle_id)}."
            f"{did_you_mean(principle_id, known)} It has {', '.join(known)}"
        )

    @property
    def asked(self) -> tuple[Principle, ...]:
        """What a judge is asked by: the principles, or without any the unguided question."""
        if self.unguided is None:
            return self.principles
        forms = dataclasses.asdict(self.unguided)
        return (
            Principle(
                id=UNGUIDED_ID, principle="", **forms, scope=(), weight=1.0, source="", tests=(),
                document=self.path.name,
            ),
        )  # fmt: skip


def drawn(
    principles: Sequence[Principle], rng: random.Random, *, num: int, weighted: bool
) -> tuple[Principle, ...]:
    """Up to `num` different principles, one after the other, by weight or uniformly."""
    pool = list(principles)
    found: list[Principle] = []
    while pool and len(found) < num:
        weights = [principle.weight for principle in pool] if weighted else None
        found.append(rng.choices(pool, weights)[0])
        pool.remove(found[-1])
    return tuple(found)


def load(document: str, *, folder: Path, setting: str = "constitution.document") -> Constitution:
    """Read, check and resolve a document.

    Args:
        document: File name in `folder` (the ending may be left out), or a path to your own file.
        folder: The project's own documents.
        setting: What names the document, for messages.

    Raises:
        UserError: when there is no such file, or with one line for each problem in it.
    """
    return _load(_locate(document, folder, setting), folder=folder, chain=(), done={})


def _with_endings(path: Path) -> list[Path]:
    if path.suffix in _ENDINGS:
        return [path]
    return [Path(f"{path}{ending}") for ending in _ENDINGS]


def _first_file(candidates: list[Path]) -> Path | None:
    # os.path.isfile answers False for names the system refuses (NUL, too long).
    return next((path for path in candidates if os.path.isfile(path)), None)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for ending in _ENDINGS for path in folder.glob(f"*{ending}"))


def _locate(document: str, folder: Path, setting: str) -> Path:
    where = f"{setting}={quote(document)[1:-1]}"
    if not document.strip():
        raise UserError(f"{setting} is empty; there are {', '.join(_names(folder))}")
    own = Path(document).expanduser() if document.startswith("~/") else Path(document)
    user_file = _first_file(_with_endings(own))
    if own.name != document:  # a path
        if user_file is None:
            near = did_you_mean(own.stem, _names(own.parent))
            raise UserError(
                f"{where}: there is no such file, seen from {_printable(str(Path.cwd()))} (a "
                f"document's name ends in {', '.join(_ENDINGS)}).{near} The project's own are "
                f"{', '.join(_names(folder))}"
            )
        return user_file
    shipped = _first_file(_with_endings(folder / document))
    if shipped and user_file and not shipped.samefile(user_file):
        raise UserError(
            f"{where}: there are two, {shown_path(shipped)} and {user_file} here; "
            f"for yours type {setting}=./{user_file}"
        )
    if found := shipped or user_file:
        return found
    known = _names(folder)
    raise UserError(
        f"{where}: there is no such document.{did_you_mean(document, known)} There are "
        f"{', '.join(known)}; or give the path of your own file"
    )


def shown_path(path: Path) -> str:
    """A path for a message, from here where it is below here."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return _printable(str(path))


def _printable(path: str) -> str:
    """A path for a message: as it is unless it holds characters that do not print."""
    return path if path.isprintable() else repr(path)[1:-1]


def _load(
    path: Path, *, folder: Path, chain: tuple[Path, ...], done: dict[Path, Constitution]
) -> Constitution:
    """Read one file and, first, those it extends; `chain` are the files being read."""
    real = path.resolve()
    if real in done:
        return done[real]
    check = Checker(shown_path(path))
    draft = read_document(path, check)
    check.finish()
    parents: list[Constitution] = []
    for parent in draft.parents:
        target = _locate_parent(parent, path=path, folder=folder, check=check)
        if target.resolve() in (*chain, real):
            names = [_printable(p.name) for p in (*chain, real, target)]
            check.add(parent.node, parent.path, f"extends itself: {' -> '.join(names)}")
        elif len(chain) == MAX_CHAIN:
            check.add(parent.node, parent.path, f"extends through more than {MAX_CHAIN} documents")
        check.finish()
        parents.append(_load(target, folder=folder, chain=(*chain, real), done=done))
    combined = _combine(draft, path, parents, check)
    principles = tuple(principle for principle, _ in combined.values())
    unguided = _unguided(draft, principles, parents, check)
    declared = [(p.name, p.compliance) for p in parents if p.compliance is not None]
    compliance = merged(draft.compliance, declared, check)
    check.finish()
    done[real] = Constitution(
        name=draft.name,
        version=draft.version,
        description=draft.description,
        principles=principles,
        unguided=unguided,
        compliance=compliance,
        left_out=(),
        path=path,
        digest=digest_of(principles, unguided, compliance),
        origins={name: origin for name, (_, origin) in combined.items()},
    )
    return done[real]


def read_document(path: Path, check: Checker) -> Draft:
    """One file as it is written, whatever its shape; problems are noted.

    Raises:
        UserError: when nothing can be read at all.
    """
    text = read_text(path, check)
    if path.suffix in _YAML:
        return read_draft(read(text, check), path=path, check=check)
    return other_shapes.read_shape(text, path=path, check=check)


def _locate_parent(parent: Parent, *, path: Path, folder: Path, check: Checker) -> Path:
    candidates = _with_endings(path.parent / parent.document)
    found = _first_file(candidates + _with_endings(folder / parent.document))
    if found is None:
        known = sorted({*_names(path.parent), *_names(folder)} - {path.stem})
        check.add(
            parent.node,
            parent.path,
            f"there is no document {quote(parent.document)}."
            f"{did_you_mean(parent.document, known)} There are {', '.join(known)}",
        )
        check.finish()
    assert found is not None
    return found


def _content(principle: Principle) -> Principle:
    return replace(principle, document="")


def _inherit(
    draft: Draft, parents: list[Constitution], check: Checker
) -> dict[str, tuple[Principle, Origin]]:
    """Principles of the parents by id, in order."""
    own_ids = {own.principle.id for own in draft.own}
    inherited: dict[str, tuple[Principle, Origin]] = {}
    for parent, constitution in zip(draft.parents, parents, strict=True):
        known = [principle.id for principle in constitution.principles]
        for wanted in (*(parent.only or ()), *parent.left_out):
            if wanted.text not in known:
                check.add(
                    wanted.node,
                    wanted.path,
                    f"{constitution.name} has no principle "
                    f"{wanted.text}.{did_you_mean(wanted.text, known)}",
                )
        kept = {i.text for i in parent.only} if parent.only is not None else set(known)
        kept -= {i.text for i in parent.left_out}
        for principle in constitution.principles:
            if principle.id not in kept:
                continue
            origin = constitution.origins[principle.id]
            first, _ = inherited.setdefault(principle.id, (principle, origin))
            if _content(first) != _content(principle) and principle.id not in own_ids:
                check.add(
                    parent.node,
                    parent.path,
                    f"{principle.id} is not the same in "
                    f"{first.document} and {principle.document}: leave one out with "
                    "`except`, or write a principle of your own with this id",
                )
    check.finish()
    return inherited


def _combine(
    draft: Draft, path: Path, parents: list[Constitution], check: Checker
) -> dict[str, tuple[Principle, Origin]]:
    """Inherited principles, replaced where the document has its own, then the new ones."""
    combined = _inherit(draft, parents, check)
    sentences = {_squeeze(p.principle): f"{p.id} of {p.document}" for p, _ in combined.values()}
    taken = {UNGUIDED_ID, *combined, *(own.principle.id for own in draft.own)}
    counts: dict[str, int] = {}
    for own in draft.own:
        principle = own.principle
        if not principle.id:
            if first := sentences.get(_squeeze(principle.principle)):
                check.add(
                    own.node, own.path, f"repeats {first}; to draw it more often, give it a weight"
                )
                continue
            principle = replace(principle, id=_derive_id(principle.principle, taken, counts))
            taken.add(principle.id)
        sentences.setdefault(_squeeze(principle.principle), own.path)
        combined[principle.id] = (principle, Origin(path=path, own=own))
    return combined


def _squeeze(text: str) -> str:
    return " ".join(text.split()).casefold()


def _derive_id(sentence: str, taken: set[str], counts: dict[str, int]) -> str:
    """An id from the first words; a number is added when it is taken."""
    plain = unicodedata.normalize("NFKD", sentence).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    slug = "_".join(words[:6])[:48].strip("_")
    if not slug:
        slug = "principle_" + hashlib.sha256(sentence.encode()).hexdigest()[:8]
    if not slug[0].isalpha():
        slug = "p_" + slug
    candidate = slug
    while candidate in taken:
        counts[slug] = counts.get(slug, 1) + 1
        candidate = f"{slug}_{counts[slug]}"
    return candidate


def _unguided(
    draft: Draft,
    principles: tuple[Principle, ...],
    parents: list[Constitution],
    check: Checker,
) -> Unguided | None:
    if principles:
        if draft.unguided_node is not None:
            check.add(
                draft.unguided_node,
                "unguided",
                f"is only for documents without principles, and this one has {len(principles)}",
            )
        return None
    if draft.unguided is not None:
        return draft.unguided
    inherited = {parent.unguided for parent in parents if parent.unguided is not None}
    if len(inherited) != 1:
        check.add(
            draft.root,
            "unguided",
            "is missing: a document without principles says here "
            "what is asked instead (critique, revise, compare)",
        )
        return None
    return inherited.pop()


def digest_of(
    principles: tuple[Principle, ...],
    unguided: Unguided | None,
    compliance: DeclaredCompliance | None,
) -> str:
    """sha256 of what can affect a run; a document without values of compliance has none in it."""
    content: dict[str, object] = {
        "principles": [
            {k: v for k, v in dataclasses.asdict(p).items() if k not in ("source", "document")}
            for p in principles
        ],
        "unguided": dataclasses.asdict(unguided) if unguided else None,
    }
    if compliance is not None:
        content["compliance"] = compliance.values
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
