"""Custom charts of wandb: which tables of a run are drawn there, and over which columns.

A chart is drawn by wandb from a table of the run, so its rows are also in the run folder, in
`tables/<name>.json`. It is logged in online and offline mode alike, under a key of its own: a
table and a chart of one key would overwrite each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.plot.custom_chart import CustomChart


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbChart:
    """How one table is drawn."""

    title: str
    spec: str
    """One of the chart definitions that every wandb server has."""
    fields: dict[str, str]
    """The definition's axes and the table's columns."""


CHARTS = {
    "reliability": WandbChart(
        title="Feedback: share right by stated confidence",
        spec="wandb/line/v0",
        fields={"x": "confidence", "y": "accuracy"},
    ),
    "kl_reward": WandbChart(
        title="PPO: reward against KL to SL-CAI, by round",
        spec="wandb/scatter/v0",
        fields={"x": "kl", "y": "reward"},
    ),
}
"""By the name of the table."""


def chart_key(name: str) -> str:
    """Where a table's chart is logged; wandb keeps its rows at `<key>_table`."""
    return f"{name}_chart"


def charts_of(
    name: str, columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> dict[str, CustomChart]:
    """The chart of a table under its key; none for a table that is only to be read.

    Args:
        name: Of the table.
        columns: Its columns.
        cells: Its rows, numbers as text.
    """
    if name not in CHARTS:
        return {}
    import wandb

    chart = CHARTS[name]
    table = wandb.Table(
        columns=list(columns), data=[[float(cell) for cell in row] for row in cells]
    )
    drawn = wandb.plot_table(
        vega_spec_name=chart.spec,
        data_table=table,
        fields=chart.fields,
        string_fields={"title": chart.title},
    )
    return {chart_key(name): drawn}
