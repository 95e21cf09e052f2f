"""Training curves of every run, quantity by quantity.

They are read from the artifacts, which have them whole even where a run resumed or reused another's
training; a run folder without its store still has what that run itself logged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.compare.groups import RunGroup
from cai.compare.runs import Run
from cai.compare.story import CurveGroup, OverlaidCurves
from cai.errors import UserError

CURVE = "curve.json"
LOGGED = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    stage: str
    metric: str
    title: str
    y_label: str
    x_label: str = "optimizer step"


_QUANTITIES = (
    _Quantity(
        stage="sl_policy", metric="train/loss", title="SL-CAI loss", y_label="nats per token"
    ),
    _Quantity(
        stage="preference_model",
        metric="train/loss",
        title="Preference model loss",
        y_label="nats per pair",
    ),
    _Quantity(
        stage="preference_model",
        metric="train/accuracy",
        title="Preference model, training pairs ranked as labelled",
        y_label="share",
    ),
    _Quantity(
        stage="policy",
        metric="objective/scores",
        title="PPO reward",
        y_label="SL-CAI std. dev.",
        x_label="round",
    ),
    _Quantity(
        stage="policy",
        metric="objective/kl",
        title="PPO, KL to SL-CAI",
        y_label="nats per response",
        x_label="round",
    ),
    _Quantity(
        stage="policy",
        metric="val/response_length",
        title="PPO, response length",
        y_label="tokens",
        x_label="round",
    ),
    _Quantity(
        stage="policy",
        metric="objective/entropy",
        title="PPO, entropy",
        y_label="nats per token",
        x_label="round",
    ),
    _Quantity(stage="dpo_policy", metric="train/loss", title="DPO loss", y_label="nats per pair"),
    _Quantity(
        stage="dpo_policy",
        metric="rewards/accuracies",
        title="DPO, training pairs ranked as labelled",
        y_label="share",
    ),
)


def overlaid(groups: Sequence[RunGroup]) -> tuple[OverlaidCurves, ...]:
    """Every quantity that any run logged."""
    logged = {
        (id(run), stage): _rows(run, stage)
        for group in groups
        for run in group.runs.values()
        for stage in dict.fromkeys(one.stage for one in _QUANTITIES)
    }
    found = (_overlaid(one, groups, logged) for one in _QUANTITIES)
    return tuple(one for one in found if one.groups)


def _overlaid(
    quantity: _Quantity,
    groups: Sequence[RunGroup],
    logged: dict[tuple[int, str], list[dict[str, Any]]],
) -> OverlaidCurves:
    drawn = []
    for group in groups:
        lines = [
            _points(logged[id(run), quantity.stage], quantity.metric) for run in group.runs.values()
        ]
        if any(lines):
            drawn.append(CurveGroup(name=group.name, lines=tuple(line for line in lines if line)))
    return OverlaidCurves(
        title=quantity.title,
        x_label=quantity.x_label,
        y_label=quantity.y_label,
        groups=tuple(drawn),
    )


def _points(rows: list[dict[str, Any]], metric: str) -> tuple[tuple[float, float], ...]:
    found = ((row["step"], row[metric]) for row in rows if metric in row)
    return tuple(
        (float(x), float(y)) for x, y in found if isinstance(y, int | float) and math.isfinite(y)
    )


def _rows(run: Run, stage: str) -> list[dict[str, Any]]:
    artifact = run.artifact(stage)
    if artifact is not None:
        return artifact.json(CURVE)
    path = run.folder / LOGGED
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return [
        {"step": line["step"], **line["metrics"]}
        for line in lines
        if line["kind"] == "metrics" and line["group"] == stage
    ]
