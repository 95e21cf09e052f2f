r"""Human comparisons as preference pairs: hh-rlhf, TRL's preference format, or columns of text.

A row has a chosen and a rejected response, and a prompt: in a column of its own, or as the turns
that two whole conversations share. One set in TRL's format comes with the package, so that phases
which need labels by people run at once; nobody outside this project labelled it. Which of the two
becomes response a is decided by their content. Always putting the chosen one first would make every
label 1, and a preference model can learn that without reading anything.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from cai.choices import DataFormat
from cai.config import ComparisonSourceConfig
from cai.data_formats import (
    Layout,
    Row,
    content_hash,
    conversation,
    locate,
    looks_like_transcript,
    messages,
    normalised,
    quote_name,
    rows,
    text_cell,
    transcript,
)
from cai.errors import UserError
from cai.types import Message, PreferencePair

SETTING = "data.human_comparisons"
SHIPPED = "human_comparisons"
"""The set that comes with the package: written and labelled for this project by its authors."""
MAX_UNUSABLE_FRAC = 0.1
"""More rows than this share without two different responses to one prompt are a mistake."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSet:
    """The human comparisons of one source, in hash order."""

    pairs: tuple[PreferencePair, ...]
    num_rows: int
    dropped: dict[str, int]
    """Rows left out by reason: `duplicate`, `empty_response`, `identical_responses`,
    `no_shared_prompt`."""


def load_comparisons(source: ComparisonSourceConfig) -> list[PreferencePair]:
    """Human comparisons, the first `max_rows` in hash order; none when no path is set.

    Raises:
        UserError: when the source is not there, empty, or has a row that is not valid.
    """
    return list(read_comparisons(source).pairs)


def read_comparisons(source: ComparisonSourceConfig) -> ComparisonSet:
    """Human comparisons with the number of rows that were left out, by reason.

    Raises:
        UserError: when the source is not there, empty, has a row that is not valid, or more than a
            tenth of its rows do not hold two different responses to one prompt.
    """
    if source.path is None:
        return ComparisonSet(pairs=(), num_rows=0, dropped={})
    if source.max_rows < 1:
        raise UserError(f"{SETTING}.max_rows must be at least 1, not {source.max_rows}")
    location = locate(source.path, source.format, setting=SETTING)
    if location.format is DataFormat.builtin and location.path != SHIPPED:
        raise UserError(
            f"{SETTING}.path={location.path}: this built-in set has prompts and no comparisons; "
            f"type {SETTING}.path={SHIPPED} for those that come with the package, or a file, e.g. "
            f"{SETTING}.path=comparisons.jsonl"
        )
    pairs: dict[str, PreferencePair] = {}
    dropped: Counter[str] = Counter()
    number = 0
    as_transcript = location.layout is Layout.transcript
    columns = _columns(source, shipped=location.format is DataFormat.builtin)
    for number, row in enumerate(rows(location, hub_split=source.hub_split), start=1):
        if number == 1 and location.layout is Layout.detect:
            first = row.value(columns.prompt or columns.chosen)
            as_transcript = looks_like_transcript(first)
        found = read_pair(row, columns, as_transcript=as_transcript)
        if reason := _unusable(found):
            dropped[reason] += 1
            continue
        key = content_hash("comparison", normalised(found.messages), found.chosen, found.rejected)
        dropped["duplicate"] += key in pairs
        pairs.setdefault(key, _orient(found))
    _check_dropped(dropped, number, quote_name(location.path))
    ordered = [pair for _, pair in sorted(pairs.items(), key=lambda item: item[0])]
    return ComparisonSet(
        pairs=tuple(ordered[: source.max_rows]), num_rows=number, dropped=dict(+dropped)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where a row has its prompt and its two responses, and what to do when they are not there."""

    prompt: str | None
    """None: chosen and rejected are whole conversations."""
    chosen: str
    rejected: str
    if_no_prompt: str
    """What to type or write when a response is plain text and there is no prompt."""
    if_whole: str
    """The same when a response is a whole conversation beside a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanPair:
    """What one person preferred, as the row has it."""

    messages: tuple[Message, ...]
    """Empty when two whole conversations have no first turn in common."""
    chosen: str
    """May be empty, and the same as `rejected`."""
    rejected: str


def read_pair(row: Row, columns: Columns, *, as_transcript: bool) -> HumanPair:
    """The prompt and the two responses of a row.

    Raises:
        UserError: when they are not there.
    """
    both = (columns.chosen, columns.rejected)
    if columns.prompt is None:
        whole = [_whole(row, column, columns, as_transcript=as_transcript) for column in both]
        return common_prompt(*whole)
    value = row.value(columns.prompt)
    prompt = conversation(row, columns.prompt, value, as_transcript=as_transcript)
    if prompt[-1].role == "assistant":
        problem = "ends with the assistant's turn; a prompt ends with the user's"
        raise row.fail(columns.prompt, problem)
    chosen, rejected = (_response(row, column, columns) for column in both)
    return HumanPair(messages=prompt, chosen=chosen, rejected=rejected)


def _columns(source: ComparisonSourceConfig, *, shipped: bool) -> Columns:
    """The configured columns; the package's own set has TRL's names, whatever is configured."""
    return Columns(
        prompt="prompt" if shipped else source.prompt_column,
        chosen="chosen" if shipped else source.chosen_column,
        rejected="rejected" if shipped else source.rejected_column,
        if_no_prompt=f"type {SETTING}.prompt_column= and its column, or "
        f"{SETTING}.format=transcript",
        if_whole=f"for whole conversations type {SETTING}.prompt_column=null",
    )


def _unusable(pair: HumanPair) -> str | None:
    """The reason why a pair teaches nothing."""
    if not pair.messages:
        return "no_shared_prompt"
    if not pair.chosen or not pair.rejected:
        return "empty_response"
    return "identical_responses" if pair.chosen == pair.rejected else None


def _whole(row: Row, column: str, columns: Columns, *, as_transcript: bool) -> tuple[Message, ...]:
    """A conversation that holds prompt and response; an empty last response stays empty."""
    value = row.value(column)
    if isinstance(value, str) and not as_transcript:
        problem = f"is plain text, and there is no prompt: {columns.if_no_prompt}"
        raise row.fail(column, problem)
    if isinstance(value, list):
        return conversation(row, column, value, as_transcript=False)
    return transcript(row, column, value)


def common_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> HumanPair:
    """Shared turns up to a user's, and the assistant's turn that follows in each, or empty text.

    In almost all rows only the last turn differs. Where earlier ones do, the comparison is of the
    first turns that differ.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role != "user":
        shared -= 1
    after = [turns[shared].content if shared < len(turns) else "" for turns in (chosen, rejected)]
    return HumanPair(messages=chosen[:shared], chosen=after[0], rejected=after[1])


def _response(row: Row, column: str, columns: Columns) -> str:
    """A response alone: text, or a list with one message of the assistant."""
    value = row.value(column)
    if not isinstance(value, list):
        return text_cell(row, column, value)
    turns = messages(row, column, value)
    if [turn.role for turn in turns] != ["assistant"]:
        raise row.fail(column, f"must be one message of the assistant; {columns.if_whole}")
    return turns[0].content


def _orient(found: HumanPair) -> PreferencePair:
    """Put the responses in an order that does not know which was chosen."""
    prompt = normalised(found.messages)
    chosen_first = content_hash("a", prompt, found.chosen) < content_hash(
        "a", prompt, found.rejected
    )
    first, second = (found.chosen, found.rejected)[:: 1 if chosen_first else -1]
    return PreferencePair(
        messages=found.messages,
        response_a=first,
        response_b=second,
        prob_a=1.0 if chosen_first else 0.0,
        weight=1.0,
        source="human",
        principle_ids=(),
    )


def _check_dropped(dropped: Counter[str], num_rows: int, name: str) -> None:
    told = ", ".join(f"{count} {reason}" for reason, count in sorted((+dropped).items()))
    unusable = dropped.total() - dropped["duplicate"]
    if unusable > MAX_UNUSABLE_FRAC * num_rows:
        raise UserError(
            f"{name}: {unusable} of {num_rows} rows do not hold two different responses to one "
            f"prompt ({told}); check {SETTING}.chosen_column and .rejected_column"
        )
    if told:
        log.warning("%s: of %d comparisons are left out: %s", name, num_rows, told)
