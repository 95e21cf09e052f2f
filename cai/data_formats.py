r"""Files of prompts and comparisons: where they are, their rows, and the conversations in a cell.

Formats, and how `auto` tells them apart:

* built-in: a bare name such as `red_team`; the JSONL sets inside the package;
* JSONL (`.jsonl`) and CSV with a header (`.csv`), each also compressed (`.gz`), in UTF-8;
* hub: `owner/name` or `owner/name@revision`, when no such path exists; needs the extra `hub`, and
  code that comes with a dataset is never run.

A cell is text (one user turn), a list of `{role, content}` messages, or a transcript as in hh-rlhf
(`\n\nHuman: ... \n\nAssistant: ...`). `format: transcript` asks for transcripts; `auto` and `hub`
take a column for transcripts when its first row begins like one; `jsonl` and `csv` never do.

Nothing is guessed or mended: a row that is not valid is an error `file:line: field: what is wrong`.
Lines end at `\n` only, so U+2028 and the like may stand in text. Two liberties are taken with
transcripts, because hh-rlhf itself needs them: turns of one role in a row are joined by a blank
line, and turns without text are left out.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path

from cai.choices import DataFormat
from cai.errors import UserError
from cai.types import Message
from cai.yaml_nodes import did_you_mean, quote

MAX_BYTES = 4 * 2**30
MAX_CELL = 16 * 2**20

_ENDINGS = {".jsonl": DataFormat.jsonl, ".csv": DataFormat.csv}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_BEGINS_TRANSCRIPT = re.compile(r"\s*Human:")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MAGIC = b"\x1f\x8b"


class Layout(StrEnum):
    """How text in a cell is read."""

    text = "text"
    """Literally."""
    transcript = "transcript"
    detect = "detect"
    """As a transcript when the first row begins with a blank line and `Human:`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where rows come from."""

    format: DataFormat
    """`builtin`, `jsonl`, `csv` or `hub`."""
    path: str
    """Name, path, or hub id without revision."""
    revision: str | None
    """Of a hub dataset."""
    layout: Layout
    setting: str
    """What names the path, for messages, e.g. `data.red_team.path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record."""

    fields: dict[str, object]
    where: str
    """`file:line`, for messages."""

    def fail(self, field: str, problem: str) -> UserError:
        """An error about one field; for the caller to raise."""
        return UserError(f"{self.where}: {field}: {problem}")

    def value(self, column: str) -> object:
        """What stands in a column.

        Raises:
            UserError: naming the columns there are, when it is not one of them.
        """
        if column in self.fields:
            return self.fields[column]
        names = [quote(name)[1:-1] for name in self.fields]
        raise self.fail(
            quote(column)[1:-1],
            f"there is no such column; there are {', '.join(names[:20]) or 'none'}."
            f"{did_you_mean(column, names[:100])}",
        )


def builtin_names() -> list[str]:
    """Names of the sets inside the package."""
    folder = resources.files("cai") / "datasets"
    names = [entry.name for entry in folder.iterdir() if entry.name.endswith(".jsonl")]
    return sorted(name.removesuffix(".jsonl") for name in names)


def _ending(path: str) -> DataFormat | None:
    return _ENDINGS.get(Path(path.lower().removesuffix(".gz")).suffix)


def locate(path: str, form: DataFormat, *, setting: str) -> Location:
    """What `path` and `format` stand for.

    Args:
        path: As in the config.
        form: As in the config.
        setting: Config section that holds them, for messages.

    Raises:
        UserError: when there is nothing there, saying what to type.
    """
    name = quote(path)[1:-1]
    layout = {DataFormat.transcript: Layout.transcript, DataFormat.auto: Layout.detect,
              DataFormat.hub: Layout.detect}.get(form, Layout.text)  # fmt: skip
    bare = not re.search(r"[./\\]", path)
    if form in (DataFormat.auto, DataFormat.transcript):
        ending = _ending(path)
        if ending is None and bare and form is DataFormat.auto and not Path(path).is_file():
            ending = DataFormat.builtin
        if ending is None and _HUB_ID.fullmatch(path) and not Path(path).exists():
            ending = DataFormat.hub
        if ending is None and form is DataFormat.transcript:
            ending = DataFormat.jsonl
        if ending is None:
            raise UserError(f"{setting}.path={name}: the ending is not .jsonl, .csv, .jsonl.gz or "
                            f".csv.gz; say what it is, e.g. {setting}.format=jsonl")  # fmt: skip
        form = ending
    revision = None
    if form is DataFormat.hub:
        if not _HUB_ID.fullmatch(path):
            raise UserError(f"{setting}.path={name}: a hub id is written owner/name or "
                            "owner/name@revision")  # fmt: skip
        path, _, revision = path.partition("@")
    elif form is DataFormat.builtin:
        known = builtin_names()
        if path not in known:
            raise UserError(f"{setting}.path={name}: there is no such built-in set."
                            f"{did_you_mean(path, known)} There are {', '.join(known)}; for a "
                            f"file type {setting}.path=your.jsonl")  # fmt: skip
    return Location(
        format=form, path=path, revision=revision or None, layout=layout, setting=f"{setting}.path"
    )


def locate_file(path: str, *, setting: str) -> Location:
    """A file whose ending says how its rows are written.

    Args:
        path: As in the config.
        setting: What names it, for messages, e.g. `evaluation.feedback_data`.

    Raises:
        UserError: when the ending is of no format.
    """
    ending = _ending(path)
    if ending is None:
        raise UserError(
            f"{setting}={quote(path)[1:-1]}: the ending is not .jsonl, .csv, .jsonl.gz or .csv.gz"
        )
    return Location(format=ending, path=path, revision=None, layout=Layout.detect, setting=setting)


def file_bytes(location: Location) -> bytes:
    """The bytes of a file or built-in set, as stored.

    Raises:
        UserError: when it cannot be read.
    """
    if location.format is DataFormat.builtin:
        return (resources.files("cai") / "datasets" / f"{location.path}.jsonl").read_bytes()
    path, where = Path(location.path), f"{location.setting}={quote_name(location.path)}"
    if not os.path.isfile(path):  # False for names the system refuses, too
        near = did_you_mean(path.name, _siblings(path))
        raise UserError(
            f"{where}: there is no such file, seen from {Path.cwd()}.{near} Type "
            f"{location.setting}= and the file"
        )
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{quote_name(location.path)}: is larger than {MAX_BYTES:,} bytes")
    return data


def _siblings(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path.parent))[:1000]
    except (OSError, ValueError):
        return []


def rows(location: Location, *, hub_split: str) -> Iterator[Row]:
    """All rows, in order.

    Raises:
        UserError: at the first row that is not valid, or when there is none.
    """
    name = quote_name(location.path)
    if location.format is DataFormat.hub:
        found = _hub_rows(location, hub_split)
    else:
        text = _decode(_decompress(file_bytes(location), name), name)
        found = _csv_rows(text, name) if location.format is DataFormat.csv else _json_rows(
            text, name)  # fmt: skip
    empty = True
    for row in found:
        empty = False
        yield row
    if empty:
        raise UserError(f"{name}: is empty: there is not one row in it")


def quote_name(path: str) -> str:
    """A path for a message: as it is unless it holds characters that do not print."""
    return path if path.isprintable() else repr(path)[1:-1]


def _decompress(data: bytes, name: str) -> bytes:
    packed = data.startswith(_MAGIC)
    if name.lower().endswith(".gz") and not packed and data:
        raise UserError(f"{name}: is not a gzip file, though its name ends in .gz")
    if not packed:
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: is not a whole gzip file: {error}") from error
    if len(unpacked) > MAX_BYTES:
        raise UserError(f"{name}: unpacks to more than {MAX_BYTES:,} bytes")
    return unpacked


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{line}: is not UTF-8 text: byte {error.start} of the file is "
            f"0x{data[error.start]:02x}"
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quote(key)} stands there twice")
            seen.add(key)
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _json_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip(" \t\r"):
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}:{error.colno}: is not JSON: {error.msg}") from error
        except RecursionError as error:
            raise UserError(f"{where}: is nested too deeply") from error
        except ValueError as error:  # our hooks, and integers of thousands of digits
            raise UserError(f"{where}: {str(error).split(';')[0]}") from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: must be one JSON object a line, found {_kind(value)}")
        yield Row(fields=value, where=where)


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        repeated = sorted({column for column in header if header.count(column) > 1})
        if repeated:
            raise UserError(f"{name}:1: the header names {quote(repeated[0])} twice")
        end = reader.line_num
        for cells in reader:
            where, end = f"{name}:{end + 1}", reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: has {len(cells)} cells, the header {len(header)}")
            yield Row(fields=dict(zip(header, cells, strict=True)), where=where)
    except csv.Error as error:
        raise UserError(f"{name}:{reader.line_num}: is not CSV: {error}") from error


def _hub_rows(location: Location, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{location.setting}={location.path}: there is no such file, and a dataset of the "
            "hub needs the package `datasets`; type: pip install -e '.[hub]'"
        ) from error
    name = f"{location.path}[{split}]"
    try:
        table = datasets.load_dataset(location.path, split=split, revision=location.revision)
    except (OSError, ValueError, RuntimeError) as error:  # its own errors derive from these
        reason = " ".join(str(error).split())
        raise UserError(f"{location.setting}: {name} cannot be loaded: {reason[:300]}") from error
    for number, fields in enumerate(table, start=1):
        yield Row(fields=dict(fields), where=f"{name}:{number}")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def text_cell(row: Row, field: str, value: object) -> str:
    """Literal text without the white space around it; may be empty.

    Raises:
        UserError: when it is not text, or holds what no tokenizer or file can.
    """
    if not isinstance(value, str):
        raise row.fail(field, f"must be text, found {_kind(value)}")
    if "\0" in value:
        raise row.fail(field, "contains the character NUL")
    if not value.isascii() and (lone := re.search("[\ud800-\udfff]", value)):
        raise row.fail(field, f"contains half a character (lone surrogate U+{ord(lone[0]):04X})")
    return value.strip()


def looks_like_transcript(value: object) -> bool:
    r"""Whether a cell begins as hh-rlhf's do (`\n\nHuman:`)."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def transcript(row: Row, field: str, value: object) -> tuple[Message, ...]:
    """Turns of a transcript; the first is the user's, and roles alternate.

    Raises:
        UserError: when it does not begin with `Human:`, or the user says nothing.
    """
    text = text_cell(row, field, value)
    if not _BEGINS_TRANSCRIPT.match(text):
        raise row.fail(
            field, f"must be a transcript that begins with 'Human:', found {quote(text)}"
        )
    parts = _TURN.split(text)
    turns: list[Message] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role, content = _ROLES[speaker], said.strip()
        if not content:
            continue
        if turns and turns[-1].role == role:
            content = f"{turns.pop().content}\n\n{content}"
        turns.append(Message(role=role, content=content))
    if not turns or turns[0].role != "user":
        raise row.fail(field, "is empty: the first 'Human:' turn has no text")
    return tuple(turns)


def messages(row: Row, field: str, value: object) -> tuple[Message, ...]:
    """Messages of a list; roles alternate, whoever begins; a last response may be empty.

    Raises:
        UserError: when one is not a message, is empty, or is out of turn.
    """
    if not isinstance(value, list):
        raise row.fail(field, f"must be a list of messages, found {_kind(value)}")
    if not value:
        raise row.fail(field, "is empty")
    turns: list[Message] = []
    for index, item in enumerate(value):
        inner = f"{field}[{index}]"
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise row.fail(inner, "must be a message with role and content")
        role = item["role"]
        if role not in ("user", "assistant"):
            raise row.fail(f"{inner}.role", f"must be user or assistant, found {quote(str(role))}")
        if turns and turns[-1].role == role:
            raise row.fail(f"{inner}.role", f"{role} speaks twice in a row; roles must alternate")
        content = text_cell(row, f"{inner}.content", item["content"])
        if not content and (role == "user" or index < len(value) - 1):
            raise row.fail(f"{inner}.content", "is empty")
        turns.append(Message(role=role, content=content))
    return tuple(turns)


def conversation(
    row: Row, field: str, value: object, *, as_transcript: bool
) -> tuple[Message, ...]:
    """A whole conversation that the user begins, from any kind of cell.

    Raises:
        UserError: when it is none.
    """
    if isinstance(value, list):
        turns = messages(row, field, value)
    elif as_transcript:
        turns = transcript(row, field, value)
    else:
        content = text_cell(row, field, value)
        if not content:
            raise row.fail(field, "is empty")
        turns = (Message(role="user", content=content),)
    if turns[0].role != "user":
        raise row.fail(f"{field}[0].role", "must be user: the user begins")
    return turns


def normalised(turns: Sequence[Message]) -> str:
    """A conversation without what does not make it another one: case and white space."""
    return "\0".join(" ".join(turn.content.split()).casefold() for turn in turns)


def content_hash(*parts: str) -> str:
    """sha256 of texts that hold no NUL."""
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()
