"""What a run would do, without doing it: stages, what is reused, how much there is, how long.

Times are those of the same stage in earlier runs of this store, scaled by the amount of work; a
stage that never ran here has none.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from cai.artifacts import MANIFEST
from cai.context import RunContext, StageResult, StageStatus
from cai.story import duration


def _seconds_per_unit(store: Path, stage: str) -> float | None:
    """Median over earlier artifacts of seconds for one unit of the stage's first count."""
    rates = []
    for path in (store / stage).glob(f"*/{MANIFEST}"):
        manifest = json.loads(path.read_bytes())
        amount = next(iter(manifest["expected"].values()), 0)
        if amount and not manifest["continued"]:
            rates.append(manifest["seconds"] / amount)
    return statistics.median(rates) if rates else None


def estimate(context: RunContext, result: StageResult) -> float | None:
    """Seconds that a stage would take, by earlier ones of its kind; None where none ran."""
    rate = _seconds_per_unit(context.store.root, result.name)
    amount = next(iter(result.counts.values()), 0)
    return None if rate is None else rate * amount


def plan_text(context: RunContext) -> str:
    """The plan as a table for people."""
    rows = []
    total, unknown = 0.0, 0
    for result in context.results:
        counts = ", ".join(f"{num:,} {name}" for name, num in result.counts.items())
        if result.status is StageStatus.reused:
            rows.append((result.name, "reuse", counts, "", result.artifact.digest[:16]))
            continue
        seconds = estimate(context, result)
        total += seconds or 0.0
        unknown += seconds is None
        shown = "?" if seconds is None else duration(seconds)
        rows.append((result.name, "compute", counts, shown, result.artifact.digest[:16]))
    header = ("stage", "", "how much", "about", "digest")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    reused = sum(row[1] == "reuse" for row in rows)
    ending = f"Plan: {len(rows) - reused} of {len(rows)} stages would be computed"
    if total:
        ending += f", about {duration(total)}"
    if unknown:
        ending += f" plus {unknown} that never ran here"
    return "\n".join([*lines, "", f"{ending}. Nothing was run."])
