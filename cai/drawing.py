"""Charts as inline SVG: no script, no outside reference, the same bytes for the same numbers.

matplotlib draws them; `_inline` then makes the SVG fit a page: namespaces, metadata and style sheet
go, every id gets the chart's own prefix, and the four stand-in colours become CSS variables, so
that one drawing serves light and dark pages. Text stays text (`svg.fonttype: none`): it scales,
can be searched, and is 10 kB a chart smaller than outlines. It is never parsed as mathematics:
labels may come from anywhere.

Points whose values a reader may ask for get a mark: an invisible circle with a title, which a
browser shows under the pointer by itself, and the page's script by arrow keys too.

Drawn 330 units wide with text of 11.5, which a phone shows at 10 pixels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from cai.story import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 330
"""Points; the viewBox of every chart."""
HEIGHT = 215
"""Of a chart without a legend."""

# Stand-ins that matplotlib draws with, and the CSS variables they become.
INK, GRID, PAPER = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
} | {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, start=1)}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cai",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartTable:
    """A chart's values as text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a chart, in its units, and what it says."""

    x: float
    y: float
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing and the words that stand for it."""

    svg: str
    """Safe to put into a page as it is."""
    alternative: str
    """What a reader who cannot see it is told; plain text."""
    table: ChartTable | None = None
    """Its values; None where the alternative has them all."""


def svg_of(
    draw: Callable[[Axes], None],
    *,
    key: str,
    alternative: str,
    height: float = HEIGHT,
    marks: Sequence[Mark] = (),
) -> str:
    """The drawing as SVG for a page.

    Args:
        draw: Draws on the axes that it is given.
        key: Unique on the page.
        alternative: What a reader who cannot see it is told.
        height: Units of the viewBox.
        marks: Points whose values can be asked for, in the order of the arrow keys.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A glyph that DejaVu lacks is only measured wrongly; the browser has the font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        out = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    drawn = _inline(out.getvalue(), key=key, alternative=alternative)
    if not marks:
        return drawn
    return drawn.replace("</svg>", f"{_circles(axes, marks, height=height)}</svg>")


def legend_height(num: int, *, columns: int) -> float:
    """What `legend_below` takes for so many series, units of the viewBox; one has no legend."""
    return 17 * -(-num // columns) if num > 1 else 0


def legend_below(axes: Axes, *, columns: int) -> None:
    """Name the series under the axes, where no line and no mark can be hidden by it."""
    axes.figure.legend(loc="outside lower center", ncols=columns, fontsize=10)


def drawn(
    draw: Callable[[Axes, Sequence[str]], None],
    *,
    key: str,
    alternative: str,
    height: float,
    marks: Sequence[Mark] = (),
    table: ChartTable | None = None,
) -> Chart:
    """A chart that is drawn elsewhere, on the axes and with the colours that it is given."""
    svg = svg_of(
        lambda axes: draw(axes, SERIES),
        key=key,
        alternative=alternative,
        height=height,
        marks=marks,
    )
    return Chart(svg=svg, alternative=alternative, table=table)


def _circles(axes: Axes, marks: Sequence[Mark], *, height: float) -> str:
    """Marks where matplotlib has put their points (its y axis goes up, SVG's down)."""
    scale = 72 / axes.figure.dpi
    places = axes.transData.transform([(mark.x, mark.y) for mark in marks]) * scale
    circles = (
        f'<circle class="mark" cx="{x:.1f}" cy="{height - y:.1f}" r="5">'
        f"<title>{_escape(visible(mark.told))}</title></circle>"
        for (x, y), mark in zip(places.tolist(), marks, strict=True)
    )
    return f"<g>{''.join(circles)}</g>\n"


def _inline(svg: str, *, key: str, alternative: str) -> str:
    assert re.fullmatch(r"[a-z0-9-]+", key)
    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 :]
    box = re.search(r'viewBox="([\d. ]+)"', svg)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="', f' id="{key}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body)
    body = body.replace("url(#", f"url(#{key}-").replace("'DejaVu Sans'", "inherit")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"\n\s*", "\n", body)
    name = _escape(visible(alternative))
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{name}">{body}'


def _escape(text: str) -> str:
    quoted = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return quoted.replace('"', "&quot;").replace("'", "&#x27;")
