"""Helpfulness against harmlessness (Bai et al. 2022, fig. 2): up and to the right is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cai.drawing import Chart, drawn
from cai.elo.story import HARMLESSNESS, HELPFULNESS, EloStory, Player
from cai.elo.text import title
from cai.statistics import Estimate
from cai.story import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL = 28
_MARKERS = "osD^vP"


def pareto_chart(story: EloStory, *, key: str) -> Chart | None:
    """Every policy at its two ratings with both intervals; None unless both are there.

    A hollow mark stands for a policy that another one equals or beats in both ratings.
    """
    by_name = {one.criterion: one for one in story.rated}
    if HELPFULNESS not in by_name or HARMLESSNESS not in by_name:
        return None
    helpful, harmless = by_name[HELPFULNESS].players, by_name[HARMLESSNESS].players
    behind = dominated(helpful, harmless)
    points = list(zip(helpful, harmless, strict=True))

    def draw(axes: Axes, colours: Sequence[str]) -> None:
        for place, (x, y) in enumerate(points):
            colour = colours[place % len(colours)]
            axes.errorbar(
                [x.elo.value],
                [y.elo.value],
                xerr=_reach(x.elo),
                yerr=_reach(y.elo),
                fmt=_MARKERS[place % len(_MARKERS)],
                color=colour,
                markerfacecolor="none" if x.name in behind else colour,
                markersize=7,
                elinewidth=1.0,
                capsize=2,
                label=_short(title(x.name)),
            )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=10)
        axes.set_xlabel("helpfulness, Elo")
        axes.set_ylabel("harmlessness, Elo")
        axes.margins(0.08)

    told = "; ".join(
        f"{title(x.name)}: helpfulness {x.elo.format()}, harmlessness {y.elo.format()}"
        f"{', behind another policy in both' if x.name in behind else ''}"
        for x, y in points
    )
    alternative = f"Scatter of helpfulness Elo against harmlessness Elo, by policy. {told}."
    rows = (len(points) + 1) // 2
    return drawn(draw, key=key, alternative=alternative, height=250 + 16 * rows)


def dominated(players: Sequence[Player], others: Sequence[Player]) -> list[str]:
    """Policies that another one equals or beats in both ratings and beats in one.

    Args:
        players: Under one criterion.
        others: The same policies under another.
    """
    points = [(x.name, x.elo.value, y.elo.value) for x, y in zip(players, others, strict=True)]
    return [
        name
        for name, x, y in points
        if any(u >= x and v >= y and (u > x or v > y) for _, u, v in points)
    ]


def _reach(estimate: Estimate) -> list[list[float]]:
    """How far the interval goes down and up; the value may lie outside a bootstrap interval."""
    low, high = estimate.value - estimate.low, estimate.high - estimate.value
    return [[max(0.0, low)], [max(0.0, high)]]


def _short(text: str) -> str:
    text = " ".join(visible(text).split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\u2026"
