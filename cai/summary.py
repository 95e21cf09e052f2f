"""What the person reads in the terminal when a run ends.

Warnings come before the numbers they are about. Lines fit 100 columns (wide characters count two);
only a path may be longer, since a broken path cannot be copied. Texts are made legible by
`visible`, so no escape character reaches the terminal, and where standard output cannot show more
than ASCII, everything else is written as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from cai.findings import findings, key_metrics
from cai.people_story import next_steps
from cai.story import Example, RunStory, duration, label, visible

WIDTH = 100
NUM_EXAMPLES = 2
PROMPT_LINES = 2
ANSWER_LINES = 3
MAX_CHARACTERS = 4000
"""Of one text: combining marks take no column, so columns alone do not bound a line."""

_HARD_SPACE = "\x00"
"""Stands for a no-break space while lines are broken; `visible` leaves no other in a text."""
_ASCII = str.maketrans({"\u27e8": "<", "\u27e9": ">", "\u201c": '"', "\u201d": '"', "\u2019": "'"})


def terminal_summary(
    story: RunStory, *, report_path: Path, notice: str | None, encoding: str
) -> str:
    """The closing text, without a final newline.

    Args:
        story: The run.
        report_path: Where the page is.
        notice: The tracker's line about wandb.
        encoding: Of standard output; anything but UTF-8 gets plain ASCII.
    """
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    head = story.headline
    memory = (
        ""
        if head.peak_memory_bytes is None
        else f", peak memory {head.peak_memory_bytes / 1e9:.2f} GB"
    )
    models = ", ".join(dict.fromkeys(head.models.values()))
    page.text(
        f"{label(head.phase)} under the constitution {head.constitution}: {models}, "
        f"seed {head.seed}, {duration(head.seconds)}{memory}"
    )
    _stages(page, story)
    _warnings(page, findings(story))
    _metrics(page, story)
    _examples(page, story.examples)
    for number, step in enumerate(next_steps(story.edge)):
        if number == 0:
            page.gap()
        page.line(step)
    page.gap()
    page.line(f"Report: {report_path}")
    if notice is not None:
        page.line(notice)
    return "\n".join(page.lines)


class Page:
    """Lines of a closing text, legible and at most `WIDTH` columns wide."""

    def __init__(self, *, ascii_only: bool) -> None:
        self.lines: list[str] = []
        self._ascii_only = ascii_only

    def clean(self, text: str) -> str:
        """One line of characters that the terminal shows and does not obey."""
        return self._legible(text).replace(_HARD_SPACE, " ")

    def _legible(self, text: str) -> str:
        text = " ".join(visible(text[:MAX_CHARACTERS]).replace("\u00a0", _HARD_SPACE).split())
        if self._ascii_only:
            text = text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")
        return text

    def gap(self, title: str = "") -> None:
        """An empty line, and a heading below it if there is one."""
        self.lines.append("")
        if title:
            self.lines.append(title)

    def line(self, text: str) -> None:
        """One line, however long."""
        self.lines.append(self.clean(text))

    def text(
        self, text: str, *, first: str = "", rest: str = "", max_lines: int | None = None
    ) -> None:
        """Wrapped text, `first` before the first line and `rest` before the others."""
        lines = wrap(self._legible(text), WIDTH - max(columns(first), columns(rest)))
        if max_lines is not None and len(lines) > max_lines:
            last = wrap(lines[max_lines - 1], WIDTH - columns(rest) - 4)[0]
            lines = [*lines[: max_lines - 1], f"{last} ..."]
        starts = [first, *[rest] * (len(lines) - 1)]
        lines = [line.replace(_HARD_SPACE, " ") for line in lines]
        self.lines += [start + line for start, line in zip(starts, lines, strict=True)]


def _stages(page: Page, story: RunStory) -> None:
    if not story.stages:
        return
    names = [fit(page.clean(stage.full_name), 36) for stage in story.stages]
    wide = max(columns(name) for name in [*names, "Stage"])
    page.gap(f"{'Stage':<{wide}}  {'Status':<10} {'Seconds':>9} {'Records':>9}")
    for name, stage in zip(names, story.stages, strict=True):
        records = "" if stage.num_records is None else f"{stage.num_records:,}"
        status = fit(page.clean(stage.status), 10)
        row = f"{_pad(name, wide)}  {_pad(status, 10)} {stage.seconds:>9,.1f} {records:>9}"
        page.lines.append(row.rstrip())
    if all(stage.status == "reused" for stage in story.stages):
        page.gap("Every stage was reused from an earlier run; nothing was computed.")


def _warnings(page: Page, warnings: Sequence[str]) -> None:
    if warnings:
        page.gap("Read this first")
    for warning in warnings:
        page.text(warning, first="  ! ", rest="    ")


def _metrics(page: Page, story: RunStory) -> None:
    metrics = key_metrics(story)
    if not metrics:
        return
    page.gap("What matters, with 95 % intervals")
    names = [fit(page.clean(metric.label), 52) for metric in metrics]
    wide = max(map(columns, names))
    for name, metric in zip(names, metrics, strict=True):
        row = f"  {_pad(name, wide)}  {metric.estimate.format()}"
        comment = f"  ({metric.comment})" if metric.comment else ""
        if columns(row + comment) <= WIDTH:
            page.lines.append(row + comment)
        else:
            page.lines += [row, f"  {'':<{wide}}{comment}"]


def _examples(page: Page, examples: Sequence[Example]) -> None:
    chosen = sorted(examples, key=_telling)[:NUM_EXAMPLES]
    if not chosen:
        return
    page.gap("Before and after, on held-out prompts")
    for example in chosen:
        shown = example.answers[:1] + example.answers[1:][-1:]
        names = [fit(page.clean(label(answer.policy)), 12) for answer in shown]
        wide = max([6, *map(columns, names)])
        page.text(
            example.prompt.messages[-1].content,
            first=f"  {_pad('prompt', wide)}  ",
            rest=" " * (wide + 4),
            max_lines=PROMPT_LINES,
        )
        for name, answer in zip(names, shown, strict=True):
            page.text(
                answer.text or "(empty)",
                first=f"  {_pad(name, wide)}  ",
                rest=" " * (wide + 4),
                max_lines=ANSWER_LINES,
            )
        if example is not chosen[-1]:
            page.gap()


def _telling(example: Example) -> tuple[bool, bool]:
    """Red-team prompts whose response changed come first; the sort keeps the order otherwise."""
    texts = {answer.text for answer in example.answers}
    return (example.prompt.kind != "red_team", len(texts) < 2)


def columns(text: str) -> int:
    """Cells that a terminal takes for a text: two for wide characters, none for combining ones."""
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int) -> str:
    """The longest beginning that fits, without white space at its end."""
    used = 0
    for place, character in enumerate(text):
        used += _cells(character)
        if used > width:
            return text[:place].rstrip()
    return text


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces, inside a word only when it is longer."""
    lines, line = [], ""
    for word in text.split(" "):
        candidate = f"{line} {word}" if line else word
        if columns(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while columns(word) > width:
            head = fit(word, width) or word[0]
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line] if line or not lines else lines


def _pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
