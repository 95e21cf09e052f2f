"""What the person reads in the terminal: the plan of a matrix, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai.context import RunContext, StageResult, StageStatus
from cai.matrix.record import FILE
from cai.matrix.seeded import Seeded
from cai.matrix.story import MatrixStory
from cai.plan import clock_of
from cai.sizes.work import Scene
from cai.statistics import fixed
from cai.story import duration, label
from cai.summary import Page

LEGEND = (
    "P(preferred to the base's response); 0.5 is no change. In brackets: less the column's mean, "
    "* where that is beyond what seeds and prompts make."
)


def distinct(results: Sequence[StageResult]) -> list[StageResult]:
    """Each artifact once, as it was met first."""
    return list({result.artifact.digest: result for result in reversed(results)}.values())[::-1]


def plan_text(context: RunContext, scene: Scene | None) -> str:
    """The plan by kind of stage, since a matrix has hundreds: what is shared, reused and left."""
    stages: dict[str, list[StageResult]] = {}
    for result in context.results:
        stages.setdefault(result.name, []).append(result)
    rows, total, unknown, left, num = [], 0.0, 0, 0, 0
    clock = clock_of(context, scene)
    for name, asked in stages.items():
        own = distinct(asked)
        open_ = [result for result in own if result.status is not StageStatus.reused]
        seconds = [clock.seconds(result) for result in open_]
        known = [found.value for found in seconds if found is not None]
        total += sum(known)
        unknown += len(seconds) - len(known)
        left += len(open_)
        num += len(own)
        shown = "" if not open_ else duration(sum(known)) if len(known) == len(open_) else "?"
        rows.append(
            (name, *map(str, (len(asked), len(own), len(own) - len(open_), len(open_))), shown)
        )
    header = ("stage", "asked for", "different", "reuse", "compute", "about")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    ending = f"Plan: {left} of {num} different stages would be computed"
    if total:
        ending += f", about {duration(total)}"
    if unknown:
        ending += f" plus {unknown} of a kind that never ran here"
    shared = (
        "A stage that is asked for more often than it is different is shared between "
        "constitutions, seeds or judges."
    )
    return "\n".join([*lines, "", shared, f"{ending}. Nothing was run."])


def terminal_matrix(
    story: MatrixStory,
    *,
    warnings: Sequence[str],
    results: Sequence[StageResult],
    seconds: float,
    run_dir: Path,
    notice: str | None,
    encoding: str,
) -> str:
    """The matrix as a text, without a final newline."""
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    seeds = ", ".join(map(str, story.seeds))
    page.text(
        f"Steering matrix: {label(story.policy)} under {', '.join(story.names)}; seeds {seeds}; "
        f"judged by {story.judge}; {duration(seconds)}"
    )
    own = distinct(results)
    reused = sum(result.status is StageStatus.reused for result in own)
    page.text(f"{len(own)} stages, {reused} of them from earlier runs. Prompts: {story.prompts}.")
    if warnings:
        page.gap("Read this first")
    for warning in warnings:
        page.text(warning, first="  ! ", rest="    ")
    _cells(page, story)
    _dominance(page, story)
    page.gap()
    for one in story.subjects:
        if one.adapter:
            page.line(f"Adapter {one.name}: {run_dir / one.adapter}")
    page.line(f"For machines: {run_dir / FILE}")
    page.line(f"Report: {run_dir / 'report.html'}")
    if notice is not None:
        page.line(notice)
    return "\n".join(page.lines)


def _cells(page: Page, story: MatrixStory) -> None:
    page.gap("Trained under (rows), judged under (columns)")
    names = story.names
    wide = max(map(len, names))
    page.lines.append("  " + " " * wide + "".join(f"  {name[:14]:>14}" for name in names))
    for train in names:
        shown = []
        for judge in names:
            cell = story.cell(train, judge)
            shown.append(_shown_cell(cell.win_rate, cell.effect))
        page.lines.append(f"  {train:<{wide}}" + "".join(f"  {text:>14}" for text in shown))
    page.text(LEGEND, first="  ", rest="  ")


def _shown_cell(rate: Seeded | None, effect: Seeded | None) -> str:
    if rate is None:
        return "not judged"
    if effect is None:
        return fixed(rate.estimate.value, 2)
    star = "*" if effect.real else " "
    return f"{fixed(rate.estimate.value, 2)} ({signed(effect.estimate.value)}){star}"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, and no sign before zero."""
    shown = fixed(value, digits)
    return f"+{shown}" if float(shown) > 0 else shown


def _dominance(page: Page, story: MatrixStory) -> None:
    page.gap("Own policy less all others, with 95 % intervals over seeds and prompts")
    for row in story.dominance:
        name = row.judge or "mean"
        if row.judged is not None:
            note = "  (circular)" if story.circular else ""
            page.text(f"{name}, judged: {_told(row.judged)}{note}", first="  ", rest="      ")
        if row.tests is not None:
            page.text(
                f"{name}, nats per token on its tests: {_told(row.tests)}",
                first="  ",
                rest="      ",
            )


def _told(found: Seeded) -> str:
    seeds = ", ".join(signed(value, 3) for value in found.by_seed)
    verdict = "" if found.real else "; within the spread"
    return f"{found.estimate.format()} (by seed {seeds}{verdict})"
