"""One training of several, kept apart from the others in the metrics by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cai.tracking import Tracker
from cai.wandb_lineage import LineageNode


class Labelled:
    """A tracker that gives every group of metrics the name of one training.

    Args:
        tracker: Where everything goes.
        name: E.g. `medical-seed0`, which makes `sl_policy` the group `sl_policy-medical-seed0`.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker = tracker
        self._name = name

    def log(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Pass it on under the training's own step axis."""
        self._tracker.log(f"{group}-{self._name}", step, metrics)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Pass it on under the training's name."""
        self._tracker.table(f"{name}-{self._name}", columns, rows)

    def artifact(self, node: LineageNode) -> None:
        """Pass it on: artifacts have names of their own."""
        self._tracker.artifact(node)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Pass it on."""
        self._tracker.summary(metrics)

    def notice(self) -> str | None:
        """What the tracker has to say."""
        return self._tracker.notice()

    def close(self, exit_code: int) -> None:
        """Nothing: who opened the tracker closes it."""
