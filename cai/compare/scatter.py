"""One metric against another over runs: does an outcome follow the feedback's accuracy?

Policies have different names by method (`rl_cai`, `dpo`, ...), so `final` in a metric's name stands
for the last policy of each run. A rank correlation (Spearman 1904) asks for order only; its
interval is Fisher's transformation with the variance of Bonett & Wright 2000 (Psychometrika 65,
p. 23), and takes runs as independent, which seeds and settings of one sweep are only in part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

from cai.compare.groups import RunGroup
from cai.compare.runs import Run
from cai.compare.story import Coordinate, Scatter, ScatterPoint
from cai.statistics import Estimate

FINAL = "final"
"""Stands for a run's last policy."""
MIN_RUNS = 5
"""Fewer say nothing about a correlation."""
_EVALUATED = "eval"


def final_policy(run: Run) -> str | None:
    """The most trained policy that a run evaluated: metrics name the least trained one first."""
    names = [name.split("/") for name in run.metrics]
    evaluated = [parts[1] for parts in names if parts[0] == _EVALUATED and len(parts) > 2]
    policies = [policy for policy in dict.fromkeys(evaluated) if policy != FINAL]
    return policies[-1] if policies else None


def _last_of(run: Run, name: str) -> str:
    """A metric's own name in a run."""
    policy = final_policy(run)
    parts = name.split("/")
    return "/".join(policy if part == FINAL and policy else part for part in parts)


def with_final(runs: Sequence[Run]) -> list[Run]:
    """The runs; where their last policies differ, with their metrics under `final` as well."""
    last = [final_policy(run) for run in runs]
    if len(set(last) - {None}) < 2:
        return list(runs)
    return [_named_final(run, policy) for run, policy in zip(runs, last, strict=True)]


def _named_final(run: Run, policy: str | None) -> Run:
    again = {
        "/".join(FINAL if part == policy else part for part in parts): value
        for name, value in run.metrics.items()
        if policy in (parts := name.split("/"))[1:]
    }
    return dataclasses.replace(run, metrics=run.metrics | again)


def scatter(groups: Sequence[RunGroup], names: Sequence[str] | None) -> Scatter | None:
    """Every run that has both metrics as a point; None when nothing is asked for.

    Args:
        groups: Configurations.
        names: Of the two metrics, the one along the page first.
    """
    if names is None:
        return None
    x_name, y_name = names
    points = tuple(
        ScatterPoint(folder=str(run.folder), group=group.name, seed=seed, x=x, y=y)
        for group in groups
        for seed, run in group.runs.items()
        if (x := _coordinate(run, x_name)) is not None
        and (y := _coordinate(run, y_name)) is not None
    )
    xs, ys = [p.x.value for p in points], [p.y.value for p in points]
    why = _why_not(points, x_name, y_name, groups)
    return Scatter(
        x_name=x_name,
        y_name=y_name,
        points=points,
        correlation=rank_correlation(xs, ys),
        why=why,
    )


def _coordinate(run: Run, name: str) -> Coordinate | None:
    own = _last_of(run, name)
    if own not in run.metrics:
        return None
    low, high = run.metrics.get(f"{own}_low"), run.metrics.get(f"{own}_high")
    interval = None if low is None or high is None else (low, high)
    return Coordinate(value=run.metrics[own], interval=interval)


def _why_not(
    points: Sequence[ScatterPoint], x_name: str, y_name: str, groups: Sequence[RunGroup]
) -> str:
    """Why nothing is drawn; empty when it is."""
    runs = [run for group in groups for run in group.runs.values()]
    for name in (x_name, y_name):
        if all(_coordinate(run, name) is None for run in runs):
            return f"no run has {name}"
    if len(points) < 2:
        return "fewer than two runs have both"
    if len({point.x.value for point in points}) == 1:
        return f"{x_name} is the same in every run"
    return ""


def ranks(values: Sequence[float]) -> list[float]:
    """From 1 for the smallest; equal values share the mean of their places."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in ordered}
    num = {value: ordered.count(value) for value in ordered}
    return [first[value] + (num[value] + 1) / 2 for value in values]


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Estimate | None:
    """Spearman's, with a 95 % interval; None for fewer than `MIN_RUNS` or where one never changes.

    Where the order is perfect the transformation has no value: the far end of the interval is then
    that of an order with one exchange of neighbours.
    """
    num = len(xs)
    if num < MIN_RUNS or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    a, b = ranks(xs), ranks(ys)
    mean = (num + 1) / 2
    covariance = sum((u - mean) * (v - mean) for u, v in zip(a, b, strict=True))
    spread = math.sqrt(sum((u - mean) ** 2 for u in a) * sum((v - mean) ** 2 for v in b))
    value = max(-1.0, min(1.0, covariance / spread))
    limit = 1 - 12 / (num * (num**2 - 1))
    inner = max(-limit, min(limit, value))
    reach = NormalDist().inv_cdf(0.975) * math.sqrt((1 + inner**2 / 2) / (num - 3))
    low, high = math.tanh(math.atanh(inner) - reach), math.tanh(math.atanh(inner) + reach)
    return Estimate(
        value=value,
        low=-1.0 if value <= -limit else low,
        high=1.0 if value >= limit else high,
        num=num,
    )
