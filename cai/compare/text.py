"""What the person reads in the terminal when runs were compared."""

from __future__ import annotations

from pathlib import Path

from cai.compare.record import FILE, correlation_line, verdict_line
from cai.compare.story import Cell, CompareStory, Difference, MetricRow, Spread
from cai.statistics import fixed, interval_digits
from cai.story import number
from cai.summary import Page, columns, fit

NAME_WIDTH = 44
GROUP_WIDTH = 24
MAX_GROUPS = 4
"""Columns that fit; further groups are in the report."""
MAX_DIFFERENCES = 16


def terminal_comparison(story: CompareStory, *, run_dir: Path, encoding: str) -> str:
    """The comparison as a text, without a final newline."""
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    page.text(f"Comparison of {len(story.runs)} runs in {_count(len(story.groups), 'group')}")
    for place, group in enumerate(story.groups, start=1):
        seeds = ", ".join(map(str, group.seeds))
        first = " (the others are compared with it)" if place == 1 and len(story.groups) > 1 else ""
        page.text(f"{group.name}, seed {seeds}{first}", first=f"  {place}  ", rest="     ")
    told = [*(f"Left out: {one.folder}: {one.why}" for one in story.left_out), *story.notes]
    if told:
        page.gap("Read this first")
    for text in told:
        page.text(text, first="  ! ", rest="    ")
    _metrics(page, story)
    _differences(page, story)
    if story.scatter is not None and not story.scatter.why:
        page.gap()
        page.text(correlation_line(story.scatter))
    page.gap()
    page.line(f"For machines: {run_dir / FILE}")
    page.line(f"Report: {run_dir / 'report.html'}")
    return "\n".join(page.lines)


def _count(num: int, name: str) -> str:
    return f"{num} {name}{'' if num == 1 else 's'}"


def _metrics(page: Page, story: CompareStory) -> None:
    tested = [row for row in story.metrics if row.tested]
    rows = [row for row in tested if len(story.groups) == 1 or not _same(row)]
    if not tested:
        return
    shown = min(MAX_GROUPS, len(story.groups), (100 - NAME_WIDTH) // GROUP_WIDTH)
    heads = "".join(f"{f'group {place + 1}':<{GROUP_WIDTH}}" for place in range(shown))
    page.gap(f"{'Metric, mean [95 % over seeds]':<{NAME_WIDTH}}{heads}".rstrip())
    for row in rows:
        name = fit(page.clean(row.name), NAME_WIDTH - 2)
        cells = "".join(f"{cell_text(cell):<{GROUP_WIDTH}}" for cell in row.cells[:shown])
        page.lines.append(f"{name}{' ' * (NAME_WIDTH - columns(name))}{cells}".rstrip())
    if len(rows) < len(tested):
        page.line(f"{len(tested) - len(rows)} more are the same in every group.")
    if len(story.groups) > shown:
        page.line(f"{_count(len(story.groups) - shown, 'more group')} in the report.")
    if any(cell and cell.spread is Spread.prompts for row in rows for cell in row.cells):
        page.line("* one seed: the interval is over prompts and says nothing of other seeds")


def _same(row: MetricRow) -> bool:
    first = row.cells[0]
    return first is not None and all(
        cell is not None and cell.by_seed == first.by_seed for cell in row.cells
    )


def cell_text(cell: Cell | None) -> str:
    """A mean with its interval and what the interval is over."""
    if cell is None:
        return "-"
    if cell.interval is None:
        return number(cell.value)
    low, high = cell.interval
    digits = interval_digits(high - low)
    star = "*" if cell.spread is Spread.prompts else ""
    return f"{fixed(cell.value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]{star}"


def _differences(page: Page, story: CompareStory) -> None:
    page.gap()
    page.text(verdict_line(story))
    told = [one for one in story.differences if one.seeds or one.prompts]
    if told:
        page.text(
            f"Holm's correction over {story.num_seed_tests} tests by seed and "
            f"{story.num_prompt_tests} by prompt."
        )
    if len(told) > MAX_DIFFERENCES:
        page.text(f"The {MAX_DIFFERENCES} clearest of {len(told)}; the others are in the report.")
    for one in sorted(told, key=_told_first)[:MAX_DIFFERENCES]:
        page.text(
            f"{one.metric}, {one.group}: {_test_text(one)}: {one.verdict.value}",
            first="  ",
            rest="    ",
        )


def _told_first(one: Difference) -> tuple[float, float]:
    seeds = one.seeds.p_adjusted if one.seeds else 2.0
    prompts = one.prompts.p_value if one.prompts and one.prompts.p_value is not None else 2.0
    return (seeds, prompts)


def _test_text(one: Difference) -> str:
    parts = [number(one.value)]
    if one.seeds:
        estimate = one.seeds.difference
        digits = interval_digits(estimate.high - estimate.low)
        parts.append(
            f"over {estimate.num} seeds [{fixed(estimate.low, digits)}, "
            f"{fixed(estimate.high, digits)}] p = {number(one.seeds.p_adjusted)}"
        )
    if one.prompts:
        estimate = one.prompts.difference
        digits = interval_digits(estimate.high - estimate.low)
        p = "" if one.prompts.p_adjusted is None else f" p = {number(one.prompts.p_adjusted)}"
        parts.append(
            f"over {estimate.num} prompts [{fixed(estimate.low, digits)}, "
            f"{fixed(estimate.high, digits)}]{p}"
        )
    return ", ".join(parts)
