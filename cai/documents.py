"""One constitution document as it is written: its records, and its reader.

The format is described in `cai.constitution`, which also resolves `extends`; this file turns the
nodes of one file into a `Draft` and notes every problem with its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cai.compliance.declared import FIELD, Written, read_compliance
from cai.yaml_nodes import MAX_TEXT, Checker, Mapping, Node, Scalar, Sequence, quote

UNGUIDED_ID = "unguided"
MAX_PRINCIPLES = 1_000
MAX_WEIGHT = 1_000_000.0
MAX_NAME = 100

_TOP = ("name", "version", "description", "extends", "principles", "unguided", FIELD)
_PRINCIPLE = (
    "id", "principle", "critique", "revise", "compare", "scope", "weight", "source", "tests",
)  # fmt: skip
_TEST = ("prompt", "better", "worse")
_FORMS = ("critique", "revise", "compare")
_PARENT = ("document", "only", "except")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleTest:
    """A labelled pair: by this principle, `better` is the better response to `prompt`."""

    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One principle with the three forms it is used in."""

    id: str
    """Stable and unique in the constitution; logged with everything the principle touches."""
    principle: str
    """The sentence itself; empty for an unguided control."""
    critique: str
    """Asks for a critique of the last response."""
    revise: str
    """Asks for a revision after the critique."""
    compare: str
    """Asks which of two responses is better."""
    scope: tuple[str, ...]
    """Tags, for reports."""
    weight: float
    """Relative frequency under weighted drawing; above 0."""
    source: str
    """Where the wording or the rule behind it comes from; may be empty."""
    tests: tuple[PrincipleTest, ...]
    document: str
    """File name of the document that holds the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unguided:
    """What is asked when there is no principle."""

    critique: str
    revise: str
    compare: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A principle as written; `principle.id` is empty when it has to be derived."""

    principle: Principle
    node: Node
    path: str
    fields: dict[str, Node]
    """What is written, by the name of a `Principle`'s field; derived forms are not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Id:
    """An id named in `extends` or a tag."""

    text: str
    node: Node
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """One entry of `extends`."""

    document: str
    only: tuple[Id, ...] | None
    left_out: tuple[Id, ...]
    node: Node
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A document before its parents are read."""

    name: str
    version: str
    description: str
    parents: tuple[Parent, ...]
    own: tuple[Own, ...]
    unguided: Unguided | None
    compliance: Written | None
    root: Node
    unguided_node: Node | None


def derive_forms(principle: str) -> Unguided:
    """Critique, revision and comparison requests for a bare sentence, by concatenation only."""
    ended = principle if principle[-1:] in ".!?…。！？\"'”’)" else principle + "."  # noqa: RUF001
    return Unguided(
        critique="Check the last response against one principle: " + ended + " Quote each part of "
        "the response that falls short of the principle and say how. If no part does, say so "
        "plainly.",
        revise="Rewrite the last response so that it keeps to this principle: " + ended + " Change "
        "what the critique found and leave the rest as it is.",
        compare="Read this principle: " + ended + " Which of the two responses keeps to it better?",
    )


def read_draft(root: Node, *, path: Path, check: Checker) -> Draft:
    """The document in a file's nodes; its problems are noted, and `check.finish` raises them.

    Raises:
        UserError: when the root is neither a mapping nor a list.
    """
    if isinstance(root, Sequence):
        return _read_list(root, path=path, check=check)
    if not isinstance(root, Mapping):
        found = f"must be a mapping or a list of sentences, found text {quote(root.text)}"
        check.add(root, "", found)
        check.finish()
    return _read_mapping(root, path=path, check=check)


def name_of_file(path: Path) -> Scalar:
    """What a document is called that has no name of its own."""
    return Scalar(text=path.stem, plain=False, line=1, column=1, end_line=1, end_column=1)


def _read_list(root: Sequence, *, path: Path, check: Checker) -> Draft:
    name = check.text(name_of_file(path), "name", limit=MAX_NAME)
    if not root.items:
        check.add(root, "principles", "is empty; a control without principles is a mapping with "
                  "`principles: []` and `unguided`")  # fmt: skip
    own = _read_principles(root, path=path, check=check)
    return Draft(
        name=name, version="0", description="", parents=(), own=own, unguided=None,
        compliance=None, root=root, unguided_node=None,
    )  # fmt: skip


def _read_mapping(root: Node, *, path: Path, check: Checker) -> Draft:
    extends = isinstance(root, Mapping) and "extends" in root.fields
    required = ("name",) if extends else ("name", "principles")
    fields = check.fields(root, "", known=_TOP, required=required)

    def text(name: str, otherwise: str, limit: int = MAX_TEXT) -> str:
        return check.text(fields[name], name, limit=limit) if name in fields else otherwise

    principles = fields.get("principles")
    name = text("name", "", MAX_NAME)
    if re.search(r"[/\\]", name) or name in (".", ".."):
        check.add(fields["name"], "name", f"must be no path, without / and \\, found {quote(name)}")
    return Draft(
        name=name,
        version=text("version", "0", MAX_NAME),
        description=text("description", ""),
        parents=_read_parents(fields["extends"], check) if "extends" in fields else (),
        own=_read_principles(principles, path=path, check=check) if principles else (),
        unguided=_read_unguided(fields["unguided"], check) if "unguided" in fields else None,
        compliance=read_compliance(fields[FIELD], check) if FIELD in fields else None,
        root=root,
        unguided_node=fields.get("unguided"),
    )


def _read_unguided(node: Node, check: Checker) -> Unguided:
    fields = check.fields(node, "unguided", known=_FORMS, required=_FORMS)
    texts = {name: check.text(value, f"unguided.{name}") for name, value in fields.items()}
    return Unguided(**{name: texts.get(name, "") for name in _FORMS})


def _read_parents(node: Node, check: Checker) -> tuple[Parent, ...]:
    if not isinstance(node, Sequence):
        return (_read_parent(node, "extends", check),)
    if not node.items:
        check.add(node, "extends", "is empty; leave the field out")
    return tuple(
        _read_parent(item, path, check) for item, path in check.items(node, "extends", "documents")
    )


def _read_parent(node: Node, path: str, check: Checker) -> Parent:
    if not isinstance(node, Mapping):
        document = _parent_name(node, path, check)
        return Parent(document=document, only=None, left_out=(), node=node, path=path)
    fields = check.fields(node, path, known=_PARENT, required=("document",))
    if "only" in fields and "except" in fields:
        check.add(node.keys["except"], f"{path}.except", "cannot stand beside `only`")
    ids = {
        name: _read_ids(fields[name], f"{path}.{name}", check)
        for name in ("only", "except")
        if name in fields
    }
    inner = f"{path}.document"
    target = fields.get("document")
    return Parent(
        document=_parent_name(target, inner, check) if target else "",
        only=ids.get("only"),
        left_out=ids.get("except", ()),
        node=target or node,
        path=inner,
    )


def _parent_name(node: Node, path: str, check: Checker) -> str:
    """A document beside this one, in a folder below, or of the project.

    One that leads elsewhere is refused: a document that somebody sent would otherwise read any file
    of this machine into prompts and reports.
    """
    name = check.text(node, path)
    target = PurePosixPath(name.replace("\\", "/"))
    if target.is_absolute() or ".." in target.parts or name.startswith("~"):
        check.add(
            node,
            path,
            f"leads out of this document's folder: {quote(name)}. Copy the other document beside "
            "this one, and give its name",
        )
    return name


def _read_ids(node: Node, path: str, check: Checker) -> tuple[Id, ...]:
    """A list of distinct ids or tags."""
    ids: dict[str, Id] = {}
    for item, inner in check.items(node, path, "ids"):
        text = check.identifier(item, inner)
        if text in ids and text:
            check.add(item, inner, f"{text} stands here twice")
        ids.setdefault(text, Id(text=text, node=item, path=inner))
    if isinstance(node, Sequence) and not node.items:
        check.add(node, path, "is empty; leave the field out")
    return tuple(ids.values())


def _read_principles(node: Node, *, path: Path, check: Checker) -> tuple[Own, ...]:
    own: list[Own] = []
    seen: dict[str, Own] = {}
    for item, inner in check.items(node, "principles", "principles"):
        if len(own) == MAX_PRINCIPLES:
            check.add(item, inner, f"is one too many: at most {MAX_PRINCIPLES:,} are allowed")
            break
        entry = _read_principle(item, inner, path_of_file=path, check=check)
        note_id(entry, seen, check)
        own.append(entry)
    return tuple(own)


def note_id(own: Own, seen: dict[str, Own], check: Checker) -> None:
    """Remember a principle by its id; an id that was there before is a problem."""
    identifier = own.principle.id
    if identifier in seen:
        first = seen[identifier]
        check.add(
            own.fields.get("id", own.node),
            f"{own.path}.id",
            f"{identifier} is already the id of {first.path} in line {first.node.line}",
        )
    if identifier:
        seen.setdefault(identifier, own)


def _read_principle(node: Node, path: str, *, path_of_file: Path, check: Checker) -> Own:
    fields: dict[str, Node] = {"principle": node}
    if isinstance(node, Mapping):
        fields = check.fields(node, path, known=_PRINCIPLE, required=("principle",))
    at = {name: f"{path}.{name}" if isinstance(node, Mapping) else path for name in _PRINCIPLE}

    def text(name: str, otherwise: str) -> str:
        return check.text(fields[name], at[name]) if name in fields else otherwise

    sentence = text("principle", "")
    derived = derive_forms(sentence)
    identifier = check.identifier(fields["id"], at["id"]) if "id" in fields else ""
    if identifier == UNGUIDED_ID:
        check.add(fields["id"], at["id"], f"{UNGUIDED_ID} is kept for documents without principles")
    principle = Principle(
        id=identifier,
        principle=sentence,
        critique=text("critique", derived.critique),
        revise=text("revise", derived.revise),
        compare=text("compare", derived.compare),
        scope=tuple(
            tag.text
            for tag in (_read_ids(fields["scope"], at["scope"], check) if "scope" in fields else ())
        ),
        weight=(
            check.positive(fields["weight"], at["weight"], limit=MAX_WEIGHT)
            if "weight" in fields
            else 1.0
        ),
        source=text("source", ""),
        tests=_read_tests(fields["tests"], at["tests"], check) if "tests" in fields else (),
        document=path_of_file.name,
    )
    return Own(principle=principle, node=node, path=path, fields=fields)


def _read_tests(node: Node, path: str, check: Checker) -> tuple[PrincipleTest, ...]:
    tests: list[PrincipleTest] = []
    for item, inner in check.items(node, path, "tests"):
        fields = check.fields(item, inner, known=_TEST, required=_TEST)
        texts = {name: check.text(value, f"{inner}.{name}") for name, value in fields.items()}
        if texts.get("better") and texts.get("better") == texts.get("worse"):
            check.add(fields["worse"], f"{inner}.worse", "is the same text as `better`")
        tests.append(PrincipleTest(**{name: texts.get(name, "") for name in _TEST}))
    return tuple(tests)
