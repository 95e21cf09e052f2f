"""One metric against another, a point for each run with both intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cai.compare.story import Coordinate, Scatter
from cai.drawing import Chart, ChartTable, Mark, drawn
from cai.statistics import fixed, interval_digits
from cai.story import number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL = 42
_MARKERS = "osD^vP"


def scatter_chart(scatter: Scatter, *, key: str) -> Chart | None:
    """A colour and a mark for each configuration; None where there is nothing to see."""
    if scatter.why:
        return None
    groups = list(dict.fromkeys(point.group for point in scatter.points))

    def draw(axes: Axes, colours: Sequence[str]) -> None:
        for place, group in enumerate(groups):
            own = [point for point in scatter.points if point.group == group]
            axes.errorbar(
                [point.x.value for point in own],
                [point.y.value for point in own],
                xerr=_reaches([point.x for point in own]),
                yerr=_reaches([point.y for point in own]),
                fmt=_MARKERS[place % len(_MARKERS)],
                color=colours[place % len(colours)],
                markersize=7,
                elinewidth=1.0,
                capsize=2,
                label=_short(group),
            )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1, fontsize=10)
        axes.set_xlabel(_short(scatter.x_name))
        axes.set_ylabel(_short(scatter.y_name))
        axes.margins(0.08)

    told = "; ".join(
        f"{point.group}, seed {point.seed}: {_told(point.x)} and {_told(point.y)}"
        for point in scatter.points
    )
    alternative = f"Scatter of {scatter.y_name} against {scatter.x_name}, by run. {told}."
    table = ChartTable(
        columns=("configuration", "seed", scatter.x_name, scatter.y_name),
        rows=tuple((p.group, str(p.seed), _told(p.x), _told(p.y)) for p in scatter.points),
    )
    marks = [
        Mark(x=p.x.value, y=p.y.value, told=f"{p.group}, seed {p.seed}: {_told(p.x)}, {_told(p.y)}")
        for p in scatter.points
    ]
    return drawn(
        draw,
        key=key,
        alternative=alternative,
        height=250 + 15 * len(groups),
        marks=marks,
        table=table,
    )


def _reaches(values: Sequence[Coordinate]) -> list[list[float]]:
    """How far each interval goes down and up; 0 without one."""
    ends = [one.interval or (one.value, one.value) for one in values]
    return [
        [max(0.0, one.value - low) for one, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - one.value) for one, (_, high) in zip(values, ends, strict=True)],
    ]


def _told(one: Coordinate) -> str:
    if one.interval is None:
        return number(one.value)
    low, high = one.interval
    digits = interval_digits(high - low)
    return f"{fixed(one.value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]"


def _short(text: str) -> str:
    text = " ".join(visible(text).split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\u2026"
