r"""Prompts and human comparisons: which side of the split each is on, and which ones a run draws.

A prompt's side is decided by the sha256 of its normalised conversation (case and white space do not
count), never by its place in a file, so the same prompt is always on the same side, whatever file
it comes from; of prompts that normalise alike the first is kept. A run draws prompts in hash order,
which depends on the seed alone: asking for more only adds to what was drawn before.

The paper's own prompts are not public in a form that could be shipped (`method.md` 7), so the sets
in `cai/datasets/` are written for this project. How files are read is in `cai.data_formats`, human
comparisons are in `cai.human_comparisons`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.choices import DataFormat
from cai.config import ComparisonSourceConfig, PromptSourceConfig
from cai.data_formats import (
    Layout,
    Location,
    Row,
    builtin_names,
    content_hash,
    conversation,
    file_bytes,
    locate,
    looks_like_transcript,
    normalised,
    quote_name,
    rows,
    text_cell,
)
from cai.errors import UserError
from cai.human_comparisons import SETTING, load_comparisons
from cai.types import Message, Prompt, PromptKind, Split
from cai.yaml_nodes import did_you_mean

__all__ = [
    "PromptSet", "builtin_source", "domain_digest", "hash_order", "load_comparisons", "load_domain",
    "load_prompts", "read_prompts", "select", "source_digest", "split_of",
]  # fmt: skip

_DOMAIN = "domain_"
_MAX_LABEL = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts of one source."""

    prompts: tuple[Prompt, ...]
    num_duplicates: int
    """Rows left out because an earlier one normalises alike."""


def split_of(turns: Sequence[Message], *, evaluation_frac: float) -> Split:
    """The side a conversation is on, from its content alone."""
    share = int(content_hash("split", normalised(turns))[:13], 16) / 16**13
    return Split.evaluation if share < evaluation_frac else Split.train


def hash_order(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """Prompts in an order that depends on their content and the seed alone."""
    return sorted(prompts, key=lambda p: content_hash("order", str(seed), normalised(p.messages)))


def load_prompts(
    source: PromptSourceConfig, *, kind: PromptKind, evaluation_frac: float
) -> list[Prompt]:
    """Prompts of one kind, in the order of the file; duplicates are dropped and logged.

    Raises:
        UserError: when the source is not there, empty, or has a row that is not valid.
    """
    setting = f"data.{kind.value}"
    location = locate(source.path, source.format, setting=setting)
    return list(read_prompts(location, source, kind=kind, evaluation_frac=evaluation_frac).prompts)


def load_domain(domain: str, evaluation_frac: float) -> list[Prompt]:
    """Prompts of a built-in domain set; each row says its kind.

    Raises:
        UserError: when there is no such set.
    """
    names = [name.removeprefix(_DOMAIN) for name in builtin_names() if name.startswith(_DOMAIN)]
    if domain not in names:
        hint = did_you_mean(domain, names)
        raise UserError(
            f"constitution.domain: there are no prompts for {domain!r}.{hint} There are "
            f"{', '.join(names)}; or type constitution.domain=null"
        )
    source = builtin_source(_DOMAIN + domain)
    location = locate(source.path, source.format, setting="constitution.domain")
    return list(read_prompts(location, source, kind=None, evaluation_frac=evaluation_frac).prompts)


def builtin_source(name: str) -> PromptSourceConfig:
    """Settings that read a set inside the package."""
    return PromptSourceConfig(
        path=name,
        format=DataFormat.builtin,
        prompt_column="prompt",
        id_column="id",
        category_column="category",
        hub_split="train",
    )


def read_prompts(
    location: Location,
    source: PromptSourceConfig,
    *,
    kind: PromptKind | None,
    evaluation_frac: float,
) -> PromptSet:
    """Prompts with the number of duplicates.

    Args:
        location: Where `source` points to.
        source: Columns.
        kind: Of all prompts; None reads it from each row's column `kind`.
        evaluation_frac: Share of all possible prompts on the evaluation side.

    Raises:
        UserError: when there is no row, or one that is not valid.
    """
    if location.format is DataFormat.builtin:
        source = builtin_source(location.path)
    kept: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    number = 0
    as_transcript = location.layout is Layout.transcript
    for number, row in enumerate(rows(location, hub_split=source.hub_split), start=1):
        column = _prompt_column(row, source)
        if number == 1 and location.layout is Layout.detect:
            as_transcript = looks_like_transcript(row.value(column))
        turns = conversation(row, column, row.value(column), as_transcript=as_transcript)
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        row_kind = kind or _prompt_kind(row)
        prompt = Prompt(
            id=_prompt_id(row, source, kind=row_kind, number=number, places=places),
            kind=row_kind,
            category=_label(row, source.category_column, otherwise="uncategorised"),
            source=location.path,
            split=split_of(turns, evaluation_frac=evaluation_frac),
            messages=turns,
        )
        kept.setdefault(normalised(turns), prompt)
    if number > len(kept):
        log.warning("%s: %d of %d prompts are duplicates and left out", quote_name(location.path),
                    number - len(kept), number)  # fmt: skip
    return PromptSet(prompts=tuple(kept.values()), num_duplicates=number - len(kept))


def _prompt_column(row: Row, source: PromptSourceConfig) -> str:
    # The built-in sets, and files made from them, have `prompt` or `messages`, row by row.
    if source.prompt_column == "prompt" and "prompt" not in row.fields:
        return "messages" if "messages" in row.fields else "prompt"
    return source.prompt_column


def _label(row: Row, column: str | None, *, otherwise: str) -> str:
    """A short text or whole number from a column."""
    # The names that the built-in sets use are optional in other files.
    if column is None or (column in ("id", "category") and column not in row.fields):
        return otherwise
    value = row.value(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = text_cell(row, column, value)
    if not text:
        raise row.fail(column, "is empty")
    if len(text) > _MAX_LABEL or not text.isprintable():
        raise row.fail(column, f"must be at most {_MAX_LABEL} characters that print")
    return text


def _prompt_id(
    row: Row, source: PromptSourceConfig, *, kind: PromptKind, number: int, places: dict[str, str]
) -> str:
    stem = Path(source.path.partition("@")[0]).name.split(".")[0]
    numbered = f"{kind.value}-{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:40]}-{number:06d}"
    identifier = _label(row, source.id_column, otherwise=numbered)
    if identifier in places:
        raise row.fail(source.id_column or "id", f"{identifier!r} is already the id of "
                       f"{places[identifier]}")  # fmt: skip
    places[identifier] = row.where
    return identifier


def _prompt_kind(row: Row) -> PromptKind:
    value = row.value("kind")
    kinds = [kind.value for kind in PromptKind]
    if value not in kinds:
        raise row.fail("kind", f"must be one of {', '.join(kinds)}")
    return PromptKind(value)


def select(
    prompts: Sequence[Prompt],
    split: Split,
    num: int,
    *,
    seed: int,
    domain: Sequence[Prompt] = (),
    domain_frac: float = 0.0,
) -> list[Prompt]:
    """The first `num` prompts of one split in hash order, a share of them from a domain.

    Where the domain has fewer prompts than its share, all of them are taken, general ones fill up,
    and the log says so.

    Args:
        prompts: General prompts, all of one kind.
        split: Side of the split.
        num: How many; 0 gives none.
        seed: Of the order.
        domain: Domain prompts; those of another kind are passed over.
        domain_frac: Share of `num` from the domain, rounded half up.

    Raises:
        UserError: when there are fewer than `num`, naming the setting to change.
    """
    if num == 0:
        return []
    kinds = {prompt.kind for prompt in prompts}
    if len(kinds) != 1:
        raise ValueError(f"prompts must be of one kind, found {sorted(kinds)}")
    (kind,) = kinds
    override = f"phase.prompts.num_{'eval_' if split is Split.evaluation else ''}{kind.value}"
    own = hash_order((p for p in domain if p.split is split and p.kind is kind), seed)
    known = {normalised(p.messages) for p in own}
    general = hash_order(
        (p for p in prompts if p.split is split and normalised(p.messages) not in known), seed
    )
    shares = [min(int(n * domain_frac + 0.5), len(own)) for n in range(num + 1)]
    usable = max(n for n, share in enumerate(shares) if n - share <= len(general))
    if usable < num:
        raise UserError(
            f"{override}={num}: there are only {usable} {kind.value} prompts for {split.value}"
            f"{f' with data.domain_frac={domain_frac:g}' if own else ''}; type "
            f"{override}={usable}, or give more with data.{kind.value}.path="
        )
    wanted, share = int(num * domain_frac + 0.5), shares[num]
    chosen = own[:share] + general[: num - share]
    if share < wanted:
        log.info(
            "%s=%d: %d prompts of the domain were asked for (data.domain_frac=%g), there are %d "
            "for %s; general prompts fill up", override, num, wanted, domain_frac, share,
            split.value,
        )  # fmt: skip
    _check_ids(chosen)
    return hash_order(chosen, seed)


def _check_ids(prompts: Sequence[Prompt]) -> None:
    sources: dict[str, str] = {}
    for prompt in prompts:
        if prompt.id in sources:
            raise UserError(
                f"the prompt id {prompt.id!r} is in {quote_name(sources[prompt.id])} and in "
                f"{quote_name(prompt.source)}; give one of them other ids, or number its rows with "
                f"data.{prompt.kind.value}.id_column=null"
            )
        sources[prompt.id] = prompt.source


def source_digest(
    source: PromptSourceConfig | ComparisonSourceConfig, *, setting: str = "data.*"
) -> str:
    """sha256 of what a source holds, for content-addressed stages.

    Of a file or built-in set the bytes as stored; of a hub dataset its id, split and revision, so
    pin `owner/name@revision` where that matters; of no source at all the empty string. Columns and
    format are not in it: a stage has them in its config.

    Args:
        source: Of prompts or comparisons.
        setting: Config section that holds it, for messages, e.g. `data.red_team`.

    Raises:
        UserError: when the source is not there.
    """
    if source.path is None:
        return hashlib.sha256(b"").hexdigest()
    if isinstance(source, ComparisonSourceConfig):
        setting = SETTING
    location = locate(source.path, source.format, setting=setting)
    if location.format is DataFormat.hub:
        return content_hash("hub", location.path, source.hub_split, location.revision or "")
    return hashlib.sha256(file_bytes(location)).hexdigest()


def domain_digest(domain: str) -> str:
    """`source_digest` of a built-in domain set.

    Raises:
        UserError: when there is no such set.
    """
    return source_digest(builtin_source(_DOMAIN + domain))
