"""The kinds of charts that reports are made of, with the values that their points stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai.compare.story import CurveGroup, OverlaidCurves
from cai.drawing import (
    HEIGHT,
    INK,
    PAPER,
    SERIES,
    Chart,
    ChartTable,
    Mark,
    legend_below,
    legend_height,
    svg_of,
)
from cai.statistics import CalibrationBin, Estimate, fixed
from cai.story import Curve, Series, number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MARKS = 200
"""Points of a line whose values can be asked for."""
NUMBERED = 14
"""Rows of a heat map up to which a number fits into a cell."""

_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCell:
    """One cell of a signed map."""

    value: float
    real: bool
    """Whether it differs from 0 by more than chance makes; nothing else is coloured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalRow:
    """One line of an interval chart."""

    name: str
    estimate: Estimate


def line_chart(curve: Curve, *, key: str) -> Chart | None:
    """Lines over steps; a single point is drawn as a marker. None when no point is finite.

    Args:
        curve: What to draw.
        key: Unique on the page.
    """
    series = [_finite(item) for item in curve.series]
    series = [item for item in series if item.points]
    if not series:
        return None

    def draw(axes: Axes) -> None:
        for item, colour, dash in zip(series, _cycle(SERIES), _cycle(_DASHES), strict=False):
            x, y = zip(*item.points, strict=True)
            marker = "o" if len(item.points) <= 12 else ""
            axes.plot(
                x, y, dash, color=colour, marker=marker, markersize=4, label=_shorten(item.name)
            )
            for place, (low, high) in zip(x, item.intervals, strict=False):
                axes.plot([place, place], [low, high], color=colour, linewidth=1)
        for place, what in curve.marks:
            axes.axvline(place, linestyle=":", color=INK, linewidth=1)
            axes.annotate(
                what,
                (place, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(4, -6),
                textcoords="offset points",
                fontsize=9,
            )
        if len(series) > 1:
            legend_below(axes, columns=2)
        _name(axes, curve.x_label, curve.y_label)
        axes.xaxis.get_major_locator().set_params(integer=curve.whole_steps, nbins=6)
        axes.margins(x=0.03, y=0.08)

    told = [_tell(item, curve.x_label) for item in series]
    alternative = f"Line chart of {curve.title} ({curve.y_label}). {' '.join(told)}"
    return Chart(
        svg=svg_of(
            draw,
            key=key,
            alternative=alternative,
            height=HEIGHT + legend_height(len(series), columns=2),
            marks=_line_marks(series, curve.x_label),
        ),
        alternative=alternative,
        table=_line_table(series, curve),
    )


def overlay_chart(curves: OverlaidCurves, *, key: str) -> Chart | None:
    """A thin line for each run in its group's colour, and the group's mean over it.

    None when nothing was logged. A mean is drawn where a group has several runs of equal length.
    """
    if not curves.groups:
        return None

    def draw(axes: Axes) -> None:
        looks = zip(curves.groups, _cycle(SERIES), _cycle(_DASHES), strict=False)
        for group, colour, dash in looks:
            mean = _mean_line(group)
            for line in group.lines:
                x, y = zip(*line, strict=True)
                if mean is None:
                    axes.plot(x, y, dash, color=colour, linewidth=1.5)
                else:
                    axes.plot(x, y, "-", color=colour, linewidth=0.8, alpha=0.45)
            if mean is not None:
                axes.plot(*zip(*mean, strict=True), dash, color=colour, linewidth=2.2)
            axes.plot([], [], dash, color=colour, label=_shorten(visible(group.name), 34))
        if len(curves.groups) > 1:
            legend_below(axes, columns=1)
        _name(axes, curves.x_label, curves.y_label)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        axes.margins(x=0.03, y=0.08)

    told = [
        _tell(Series(name=group.name, points=_mean_line(group) or group.lines[0]), curves.x_label)
        for group in curves.groups
    ]
    alternative = f"Lines of {curves.title} ({curves.y_label}), by group. {' '.join(told)}"
    means = [Series(name=group.name, points=_mean_line(group) or ()) for group in curves.groups]
    return Chart(
        svg=svg_of(
            draw,
            key=key,
            alternative=alternative,
            height=HEIGHT + legend_height(len(curves.groups), columns=1),
            marks=_line_marks(means, curves.x_label),
        ),
        alternative=alternative,
        table=None,
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_MARKS` of a line's points, evenly, the last among them."""
    every = -(-len(points) // MAX_MARKS)
    return [*points[::-1][:: max(every, 1)]][::-1]


def _line_marks(series: Sequence[Series], x_label: str) -> list[Mark]:
    return [
        Mark(x=x, y=y, told=f"{item.name}: {number(y)} at {x_label} {number(x)}")
        for item in series
        for x, y in _thinned(item.points)
    ]


def _line_table(series: Sequence[Series], curve: Curve) -> ChartTable:
    found = [dict(_thinned(item.points)) for item in series]
    steps = sorted({x for points in found for x in points})
    return ChartTable(
        columns=(curve.x_label, *(f"{item.name} ({curve.y_label})" for item in series)),
        rows=tuple(
            (number(x), *(number(points[x]) if x in points else "" for points in found))
            for x in steps
        ),
    )


def _mean_line(group: CurveGroup) -> tuple[tuple[float, float], ...] | None:
    steps = [[x for x, _ in line] for line in group.lines]
    if len(steps) < 2 or any(own != steps[0] for own in steps):
        return None
    return tuple(
        (points[0][0], sum(y for _, y in points) / len(points))
        for points in zip(*group.lines, strict=True)
    )


def calibration_chart(
    bins: Sequence[CalibrationBin], *, key: str, x_label: str, y_label: str
) -> Chart | None:
    """Reliability diagram with intervals and counts; None without bins."""
    if not bins:
        return None

    def draw(axes: Axes) -> None:
        low = min(item.low for item in bins)
        axes.plot([low, 1], [low, 1], ":", color=INK, linewidth=1)
        x = [item.mean_probability for item in bins]
        y = [item.outcome.value for item in bins]
        spread = [
            [item.outcome.value - item.outcome.low for item in bins],
            [item.outcome.high - item.outcome.value for item in bins],
        ]
        axes.errorbar(x, y, yerr=spread, fmt="o", color=SERIES[0], capsize=3)
        for item in bins:
            axes.annotate(
                str(item.outcome.num),
                (item.mean_probability, item.outcome.value),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xlim(low - 0.02, 1.02)
        axes.set_ylim(-0.03, 1.03)
        _name(axes, x_label, y_label)

    told = "; ".join(
        f"{item.low:.1f} to {item.high:.1f}: stated {item.mean_probability:.2f}, observed "
        f"{item.outcome.format()}"
        for item in bins
    )
    alternative = f"Reliability diagram, {x_label} against {y_label}. {told}."
    marks = [
        Mark(
            x=item.mean_probability,
            y=item.outcome.value,
            told=f"stated {item.mean_probability:.2f}, observed {item.outcome.format()}",
        )
        for item in bins
    ]
    table = ChartTable(
        columns=("from", "to", x_label, y_label),
        rows=tuple(
            (
                f"{item.low:.1f}",
                f"{item.high:.1f}",
                f"{item.mean_probability:.2f}",
                item.outcome.format(),
            )
            for item in bins
        ),
    )
    return Chart(
        svg=svg_of(draw, key=key, alternative=alternative, marks=marks),
        alternative=alternative,
        table=table,
    )


def histogram(values: Sequence[float], *, key: str, x_label: str, y_label: str) -> Chart | None:
    """Counts of values in [0, 1], in twenty bins; None without values."""
    if not values:
        return None
    counts = [0] * 20
    for value in values:
        counts[min(19, max(0, int(value * 20)))] += 1

    def draw(axes: Axes) -> None:
        edges = [i / 20 for i in range(20)]
        axes.bar(edges, counts, width=0.05, align="edge", color=SERIES[0], edgecolor=PAPER)
        axes.axvline(0.5, linestyle=":", color=INK, linewidth=1)
        axes.set_xlim(0, 1)
        _name(axes, x_label, y_label)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=False, axis="x")

    told = ", ".join(
        f"{i / 20:.2f} to {(i + 1) / 20:.2f}: {count}" for i, count in enumerate(counts) if count
    )
    alternative = f"Histogram of {len(values)} values, {x_label}. {told}."
    marks = [
        Mark(x=i / 20 + 0.025, y=count, told=f"{i / 20:.2f} to {(i + 1) / 20:.2f}: {count}")
        for i, count in enumerate(counts)
        if count
    ]
    table = ChartTable(
        columns=("from", "to", y_label),
        rows=tuple((f"{i / 20:.2f}", f"{(i + 1) / 20:.2f}", str(n)) for i, n in enumerate(counts)),
    )
    return Chart(
        svg=svg_of(draw, key=key, alternative=alternative, marks=marks),
        alternative=alternative,
        table=table,
    )


def interval_chart(
    rows: Sequence[IntervalRow],
    *,
    key: str,
    x_label: str,
    reference: float | None = None,
    limits: tuple[float, float] | None = (-0.02, 1.02),
) -> Chart | None:
    """Estimates as points with intervals, one line each, first on top.

    Args:
        rows: The lines.
        key: Unique on the page.
        x_label: What is estimated.
        reference: Where a dotted line is drawn.
        limits: Of the axis, by default those of a share; None: those of the data.
    """
    if not rows:
        return None
    names = [_shorten(visible(row.name)) for row in rows]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            estimate = row.estimate
            axes.plot([estimate.low, estimate.high], [place, place], color=SERIES[0])
            axes.plot([estimate.value], [place], "o", color=SERIES[0], markersize=5)
        if reference is not None:
            axes.axvline(reference, linestyle=":", color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), names, fontsize=10)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if limits is not None:
            axes.set_xlim(*limits)
        _name(axes, x_label, "")
        axes.grid(visible=False, axis="y")

    told = "; ".join(f"{row.name}: {row.estimate.format()}" for row in rows)
    alternative = f"{x_label}. {told}."
    marks = [
        Mark(x=row.estimate.value, y=place, told=f"{row.name}: {row.estimate.format()}")
        for place, row in enumerate(rows)
    ]
    height = 70 + 19 * len(rows)
    svg = svg_of(draw, key=key, alternative=alternative, height=height, marks=marks)
    table = ChartTable(
        columns=("", x_label), rows=tuple((row.name, row.estimate.format()) for row in rows)
    )
    return Chart(svg=svg, alternative=alternative, table=table)


def heat_map(
    names: Sequence[str], values: Sequence[Sequence[float]], *, key: str, told: str
) -> Chart | None:
    """A square table of shares as shades, rows named and numbered, columns numbered.

    The diagonal and what is not finite stay empty; the darkest cell is the largest value.

    Args:
        names: Of rows and columns.
        values: In [0, 1], one row per name.
        key: Unique on the page.
        told: What the values are, for who cannot see them.
    """
    cells = [
        (row, column, value)
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if row != column and math.isfinite(value)
    ]
    if not cells:
        return None
    top = max(max(value for _, _, value in cells), 1e-9)
    shown = [f"{_shorten(visible(name), 22)} {place}" for place, name in enumerate(names, start=1)]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for row, column, value in cells:
            corner = (column - 0.5, row - 0.5)
            shade = 0.65 * value / top
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=SERIES[1], alpha=shade, linewidth=0))
            if len(names) <= NUMBERED and value > 0:
                text = f"{value:.2f}".removeprefix("0")
                axes.text(column, row, text, ha="center", va="center", fontsize=7)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), shown, fontsize=8)
        axes.set_xticks(range(len(names)), [str(k + 1) for k in range(len(names))], fontsize=8)
        axes.tick_params(length=0)
        axes.grid(visible=False)

    largest = sorted((cell for cell in cells if cell[0] < cell[1]), key=lambda cell: -cell[2])[:5]
    pairs = "; ".join(
        f"{names[row]} and {names[column]}: {value:.2f}" for row, column, value in largest
    )
    alternative = f"{told}. The largest: {pairs}."
    svg = svg_of(draw, key=key, alternative=alternative, height=60 + 13.5 * len(names))
    return Chart(svg=svg, alternative=alternative)


def signed_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[SignedCell | None]],
    *,
    key: str,
    told: str,
) -> Chart | None:
    """A table of signed numbers; those beyond chance are coloured by sign and have a star.

    Columns are numbered as the rows of the same name are, and a cell of a row and a column of one
    name is framed. None where there is no number.

    Args:
        rows: Their names.
        columns: Names of rows.
        cells: One line for each row; None stays empty.
        key: Unique on the page.
        told: What the numbers are, for who cannot see them.
    """
    placed = [
        (row, column, cell)
        for row, line in enumerate(cells)
        for column, cell in enumerate(line)
        if cell is not None
    ]
    if not placed:
        return None
    top = max(max(abs(cell.value) for _, _, cell in placed), 1e-9)
    digits = 2 if top >= 0.095 else 3
    shown = [f"{_shorten(visible(name), 22)} {place}" for place, name in enumerate(rows, start=1)]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for row, column, cell in placed:
            corner = (column - 0.5, row - 0.5)
            if cell.real:
                colour = SERIES[0] if cell.value > 0 else SERIES[1]
                shade = 0.15 + 0.4 * abs(cell.value) / top
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=shade, linewidth=0))
            if rows[row] == columns[column]:
                inner = (column - 0.46, row - 0.46)
                frame = Rectangle(inner, 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.2)
                axes.add_patch(frame)
            text = _signed(cell.value, digits) + ("*" if cell.real else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=10)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), shown, fontsize=10)
        numbers = [str(list(rows).index(name) + 1) for name in columns]
        axes.set_xticks(range(len(columns)), numbers, fontsize=10)
        axes.tick_params(length=0)
        axes.grid(visible=False)

    lines = "; ".join(
        f"{rows[row]} before {columns[column]} {_signed(cell.value, digits)}"
        f"{'' if cell.real else ' (within the spread)'}"
        for row, column, cell in placed
    )
    alternative = f"{told}. {lines}."
    svg = svg_of(draw, key=key, alternative=alternative, height=60 + 34 * len(rows))
    return Chart(svg=svg, alternative=alternative)


def _signed(value: float, digits: int) -> str:
    """With its sign, and none before zero."""
    shown = fixed(value, digits)
    return f"+{shown}" if float(shown) > 0 else shown


def num_not_finite(curve: Curve) -> int:
    """Points that a chart leaves out."""
    return sum(not math.isfinite(y) for item in curve.series for _, y in item.points)


def _name(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(_shorten(visible(x_label), 48))
    axes.set_ylabel(_shorten(visible(y_label), 30))


def _finite(series: Series) -> Series:
    drawn = [place for place, point in enumerate(series.points) if all(map(math.isfinite, point))]
    return Series(
        name=visible(series.name),
        points=tuple(series.points[place] for place in drawn),
        intervals=tuple(series.intervals[place] for place in drawn) if series.intervals else (),
    )


def _cycle(items: Sequence[str]) -> list[str]:
    return [*items] * 16


def _shorten(text: str, length: int = 26) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "\u2026"


def _tell(series: Series, x_label: str) -> str:
    (x0, y0), (x1, y1) = series.points[0], series.points[-1]
    if len(series.points) == 1:
        return f"{series.name}: {number(y0)} at {x_label} {number(x0)}."
    low = min(series.points, key=lambda point: point[1])
    high = max(series.points, key=lambda point: point[1])
    return (
        f"{series.name}: {number(y0)} at {x_label} {number(x0)}, {number(y1)} at {number(x1)}; "
        f"lowest {number(low[1])} at {number(low[0])}, highest {number(high[1])} at "
        f"{number(high[0])}."
    )
