"""A file of prompts and responses: reading it, classifying every row, people's labels beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cai.compliance.classes import Compliance, ComplianceClass
from cai.compliance.classify import classify
from cai.data_formats import (
    Row,
    conversation,
    file_bytes,
    locate_file,
    looks_like_transcript,
    messages,
    quote_name,
    rows,
    text_cell,
)
from cai.errors import UserError
from cai.evaluation_config import EvaluationConfig
from cai.progress import bar
from cai.types import Message
from cai.yaml_nodes import quote

SETTING = "evaluation.responses"
RESPONSE_COLUMNS = ("response", "completion")
GROUP_COLUMNS = ("kind", "type", "category", "policy", "model")
MAX_GROUPS = 50
"""Values of a column beyond which it says nothing to tell rates by them."""
_TICK = 1000

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedResponse:
    """A row of the file with its class."""

    id: str
    """The row's own, or `row-<line>`."""
    prompt: str
    """The last thing that the user says."""
    response: str
    found: Compliance
    label: ComplianceClass | None
    """By a person; None where the column is not asked for, or empty."""
    columns: dict[str, Cell]
    """The row's other columns that hold one value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTable:
    """A whole file."""

    path: str
    sha256: str
    """Of the file as stored."""
    rows: tuple[ClassifiedResponse, ...]
    """In the order of the file."""
    groups: dict[str, tuple[str, ...]]
    """Column to its values, in the order in which they appear."""
    ungrouped: dict[str, int]
    """Columns that were to be told apart and have more than `MAX_GROUPS` values, with how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    prompt: str
    response: str
    label: str | None
    as_transcript: bool


def read_responses(config: EvaluationConfig) -> ResponseTable:
    """Read and classify every row.

    Raises:
        UserError: when the file is not there or empty, a column is missing, or a row is not valid.
    """
    assert config.responses is not None
    location = locate_file(config.responses, setting=SETTING)
    sha256 = hashlib.sha256(file_bytes(location)).hexdigest()
    kept = list(rows(location, hub_split=""))
    columns = _columns(kept[0], config)
    by = _grouping(kept[0], config.responses_by)
    found = tuple(_classified(kept, columns))
    values = {
        column: tuple(dict.fromkeys(_shown(row.columns.get(column)) for row in found))
        for column in by
    }
    return ResponseTable(
        path=config.responses,
        sha256=sha256,
        rows=found,
        groups={column: names for column, names in values.items() if len(names) <= MAX_GROUPS},
        ungrouped={
            column: len(names) for column, names in values.items() if len(names) > MAX_GROUPS
        },
    )


def _classified(kept: list[Row], columns: _Columns) -> Iterator[ClassifiedResponse]:
    with bar(len(kept), name="compliance", unit="responses") as progress:
        for number, row in enumerate(kept, start=1):
            yield _read(row, columns)
            if number % _TICK == 0:
                progress.update(_TICK)
        progress.update(len(kept) % _TICK)


def _columns(first: Row, config: EvaluationConfig) -> _Columns:
    """Where the file has what, by its first row."""
    named = config.responses_response
    response = named or next((name for name in RESPONSE_COLUMNS if name in first.fields), None)
    asked = {
        config.responses_prompt: f"{SETTING}_prompt",
        response or " or ".join(RESPONSE_COLUMNS): f"{SETTING}_response",
    }
    if config.responses_label is not None:
        asked[config.responses_label] = f"{SETTING}_label"
    for column in config.responses_by or ():
        asked[column] = f"{SETTING}_by"
    for column, setting in asked.items():
        if column not in first.fields:
            raise _missing(first, column, setting)
    assert response is not None
    return _Columns(
        prompt=config.responses_prompt,
        response=response,
        label=config.responses_label,
        as_transcript=looks_like_transcript(first.fields[config.responses_prompt]),
    )


def _missing(first: Row, column: str, setting: str) -> UserError:
    there = ", ".join(quote(name)[1:-1] for name in [*first.fields][:30]) or "none"
    return UserError(
        f"{first.where}: there is no column {quote(column)[1:-1]}; there are {there}. Type "
        f"{setting}= and the one that is meant"
    )


def _grouping(first: Row, asked: list[str] | None) -> list[str]:
    if asked is not None:
        return list(dict.fromkeys(asked))
    return [column for column in GROUP_COLUMNS if column in first.fields]


def _read(row: Row, columns: _Columns) -> ClassifiedResponse:
    prompt = _prompt(row, columns)
    response = _response(row, columns.response)
    own = {
        name: value
        for name, value in row.fields.items()
        if name not in (columns.prompt, columns.response)
        and (value is None or isinstance(value, str | int | float | bool))
    }
    name = own.get("id")
    return ClassifiedResponse(
        id=str(name) if isinstance(name, str | int) and name != "" else _numbered(row),
        prompt=prompt,
        response=response,
        found=classify(prompt, response),
        label=None if columns.label is None else _label(row, columns.label),
        columns={key: value for key, value in own.items() if key != "id"},
    )


def _numbered(row: Row) -> str:
    return f"row-{row.where.rpartition(':')[2]}"


def _prompt(row: Row, columns: _Columns) -> str:
    value = row.value(columns.prompt)
    turns = conversation(row, columns.prompt, value, as_transcript=columns.as_transcript)
    return _last_of_user(turns)


def _last_of_user(turns: tuple[Message, ...]) -> str:
    return next(turn.content for turn in reversed(turns) if turn.role == "user")


def _response(row: Row, column: str) -> str:
    """Text, or a list with one message of the assistant; may be empty."""
    value = row.value(column)
    if not isinstance(value, list):
        return text_cell(row, column, value)
    turns = messages(row, column, value)
    if [turn.role for turn in turns] != ["assistant"]:
        raise row.fail(column, "must be text, or a list with one message of the assistant")
    return turns[0].content


def _label(row: Row, column: str) -> ComplianceClass | None:
    """A person's label: `refusal`, `2_full_refusal`, `partial`, `3_partial_refusal`, `comply`...

    Words decide, whatever stands around them, and "partial" before the others; an empty cell is a
    row that nobody labelled.
    """
    value = row.value(column)
    text = "" if value is None else str(value)
    if not text.strip():
        return None
    words = re.sub(r"[^a-z]+", " ", text.lower())
    if "partial" in words:
        return ComplianceClass.partial
    if re.search(r"refus|reject|declin|\bnon ?compl|\bnot compl", words):
        return ComplianceClass.refusal
    if re.search(r"compl|\banswer", words):
        return ComplianceClass.compliance
    raise row.fail(
        column,
        f"is no label: expected a word such as refusal, partial or compliance, found {quote(text)}",
    )


def _shown(value: Cell) -> str:
    return "" if value is None else str(value)


def in_group(row: ClassifiedResponse, column: str, value: str) -> bool:
    """Whether a row has this value."""
    return _shown(row.columns.get(column)) == value


def name_of(table: ResponseTable) -> str:
    """The file's name for people."""
    return quote_name(table.path.replace("\\", "/").rpartition("/")[2])
