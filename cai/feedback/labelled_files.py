r"""Labelled comparisons from a file, in one of three forms that its first row's fields tell apart.

* hh-rlhf: `chosen` and `rejected` are transcripts (`\n\nHuman: ... \n\nAssistant: ...`);
* TRL preferences: `prompt`, `chosen`, `rejected` as texts or lists of messages, or `chosen` and
  `rejected` as whole conversations, whose shared turns are then the prompt, whatever else is there;
* multiple choice, as the HHH evaluations: `corrects` and `incorrects` name one option each, e.g.
  " (A)". Whole transcripts in `text_correct` and `text_incorrect` are taken where a row has them;
  otherwise what stands before the options in `prompt` is what the user says, and the options' texts
  are the two responses.

Files are JSONL or CSV with a header, each also as `.gz`. Every row becomes a pair, also one with an
empty response or two identical ones: the feedback counts it as not judged. Only two conversations
that do not even share their first turn are left out, and counted here. Anything else is an error
with file and line.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from cai.data_formats import (
    Row,
    content_hash,
    file_bytes,
    locate_file,
    looks_like_transcript,
    normalised,
    quote_name,
    rows,
    text_cell,
    transcript,
)
from cai.errors import UserError
from cai.human_comparisons import Columns, HumanPair, common_prompt, read_pair
from cai.types import Message
from cai.yaml_nodes import quote

MAX_WITHOUT_PROMPT_FRAC = 0.1
"""More rows than this share whose conversations share no turn are a mistake."""
EXPECTED = (
    "expected chosen and rejected (hh-rlhf transcripts, or TRL preferences with a prompt or as "
    "lists of messages), or prompt, corrects and incorrects (multiple choice with two options)"
)

_LABEL = re.compile(r"\([A-Z]\)")
_ASKS = re.compile(r"\n[^\n]*\banswer\b[^\n]*[:(]\s*\Z", re.IGNORECASE)
"""A last line such as `The answer is:`."""

log = logging.getLogger(__name__)


class Form(StrEnum):
    """What a row holds; the value is its name for people."""

    hh_rlhf = "hh-rlhf transcripts"
    preference = "TRL preferences"
    multiple_choice = "multiple choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRow:
    """A pair as its file has it."""

    line: int
    """Where it stands, from 1."""
    messages: tuple[Message, ...]
    better: str
    """Stripped; may be empty, and the same as `worse`."""
    worse: str

    def key(self) -> str:
        """Hash of the content: an order that does not depend on the file's."""
        return content_hash("labelled", normalised(self.messages), self.better, self.worse)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFile:
    """A file of labelled comparisons."""

    form: Form
    rows: tuple[LabelledRow, ...]
    """In hash order."""
    num_without_prompt: int
    """Rows left out because their two conversations share no turn."""
    sha256: str
    """Of the file as stored."""


def read_labelled(path: str, *, setting: str) -> LabelledFile:
    """Every labelled comparison of a file.

    Args:
        path: As in the config.
        setting: What names it, for messages, e.g. `evaluation.feedback_data`.

    Raises:
        UserError: when it is not there or empty, is of another form, or has a row that is not
            valid.
    """
    location = locate_file(path, setting=setting)
    sha256 = hashlib.sha256(file_bytes(location)).hexdigest()
    found: list[LabelledRow] = []
    form, read = None, None
    num_without_prompt = 0
    for row in rows(location, hub_split=""):
        if form is None or read is None:
            form = _form(row)
            read = _reader(form, row)
        pair = read(row)
        if not pair.messages:
            num_without_prompt += 1
            continue
        found.append(
            LabelledRow(
                line=int(row.where.rpartition(":")[2]),
                messages=pair.messages,
                better=pair.chosen,
                worse=pair.rejected,
            )
        )
    assert form is not None
    _check_left_out(num_without_prompt, len(found), quote_name(path))
    return LabelledFile(
        form=form,
        rows=tuple(sorted(found, key=lambda row: (row.key(), row.line))),
        num_without_prompt=num_without_prompt,
        sha256=sha256,
    )


def _check_left_out(num: int, num_kept: int, name: str) -> None:
    if num > MAX_WITHOUT_PROMPT_FRAC * (num + num_kept):
        raise UserError(
            f"{name}: in {num} of {num + num_kept} rows, chosen and rejected share no turn of the "
            "user's, so they are not two responses to one prompt"
        )
    if num:
        log.warning("%s: %d rows whose two conversations share no turn are left out", name, num)


def _form(row: Row) -> Form:
    """What the rows of a file are, by the fields of the first."""
    if "corrects" in row.fields or "incorrects" in row.fields:
        return Form.multiple_choice
    if not {"chosen", "rejected"} <= row.fields.keys():
        names = ", ".join(quote(name)[1:-1] for name in [*row.fields][:20]) or "none"
        raise UserError(
            f"{row.where}: is no labelled comparison: {EXPECTED}; its fields are {names}"
        )
    if "prompt" in row.fields or isinstance(row.fields["chosen"], list):
        return Form.preference
    return Form.hh_rlhf


def _reader(form: Form, first: Row) -> Callable[[Row], HumanPair]:
    if form is Form.multiple_choice:
        return _multiple_choice
    has_prompt = "prompt" in first.fields and not _begins_with_user(first.fields["chosen"])
    columns = Columns(
        prompt="prompt" if has_prompt else None,
        chosen="chosen",
        rejected="rejected",
        if_no_prompt="expected a transcript that begins with 'Human:', a list of messages, or a "
        "field prompt",
        if_whole="whole conversations must stand in chosen and rejected of every row",
    )
    begins = str(first.fields["chosen"]).lstrip()
    as_transcript = (
        looks_like_transcript(first.fields["prompt"]) if has_prompt else begins.startswith("Human:")
    )
    return lambda row: read_pair(row, columns, as_transcript=as_transcript)


def _begins_with_user(value: object) -> bool:
    """Whether a cell is a list of messages that holds the prompt, too."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role") == "user"


def _multiple_choice(row: Row) -> HumanPair:
    right, wrong = _label(row, "corrects"), _label(row, "incorrects")
    if right == wrong:
        raise row.fail("incorrects", f"names {right} too, which is the correct option")
    if "text_correct" in row.fields or "text_incorrect" in row.fields:
        columns = ("text_correct", "text_incorrect")
        return common_prompt(*(transcript(row, column, row.value(column)) for column in columns))
    prompt = text_cell(row, "prompt", row.value("prompt"))
    before, first, second = _options(row, prompt, sorted((right, wrong)))
    said, other = (first, second) if right < wrong else (second, first)
    if not before:
        raise row.fail("prompt", "has nothing before its options")
    return HumanPair(messages=(Message(role="user", content=before),), chosen=said, rejected=other)


def _label(row: Row, field: str) -> str:
    """The one option that a field names, e.g. `(A)`."""
    value = row.value(field)
    label = value[0].strip() if isinstance(value, list) and len(value) == 1 and isinstance(
        value[0], str) else ""  # fmt: skip
    if not _LABEL.fullmatch(label):
        raise row.fail(
            field, f'must be a list of one option such as [" (A)"], found {quote(str(value))}'
        )
    return label


def _options(row: Row, prompt: str, labels: list[str]) -> tuple[str, str, str]:
    """What stands before the last two options, and their texts, in alphabetical order.

    An option begins on a line of its own; in triple square brackets it may hold anything.
    """
    first, second = (re.escape(label) for label in labels)
    brackets = (
        rf"(.*)^[ \t]*{first}\s*\[\[\[(.*?)\]\]\]\s*^[ \t]*{second}\s*\[\[\[(.*?)\]\]\][^\n]*"
        r"(?:\s*[^\n]*[:(])?\s*\Z"
    )
    bare = rf"(.*)^[ \t]*{first}[ \t]+(.*?)^[ \t]*{second}[ \t]+(.*)\Z"
    for pattern in (brackets, bare):
        if match := re.match(pattern, prompt, re.DOTALL | re.MULTILINE):
            before, *texts = match.groups()
            texts[-1] = _ASKS.sub("", texts[-1])
            return before.strip(), texts[0].strip(), texts[1].strip()
    raise row.fail(
        "prompt",
        f"must end with the options {labels[0]} and {labels[1]}, each on a line of its own, in "
        "this order",
    )
