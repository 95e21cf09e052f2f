"""What a run would do, without doing it: stages, what is reused, how much there is, how long.

Times are those of the same kind of stage in earlier runs of this store, scaled by the amount of
work; of a stage that never ran here they are predictions (`cai.sizes.seconds`). In a multirun, a
stage that an earlier job would compute is shared and not counted again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cai.context import RunContext, StageResult, StageStatus
from cai.job import Job
from cai.sizes.device import place_of
from cai.sizes.memory import FLOAT
from cai.sizes.seconds import Clock
from cai.sizes.work import Scene
from cai.stage_names import stage_names
from cai.story import duration


def clock_of(context: RunContext, scene: Scene | None = None) -> Clock:
    """Times of this run's stages.

    Args:
        context: The run.
        scene: What its stages are sized with; None: their counts are all there is.
    """
    number_bytes = place_of(context.hardware).number_bytes
    return Clock(
        store=context.store.root,
        scene=scene,
        hardware=context.hardware,
        precision="float32" if number_bytes == FLOAT else "bfloat16",
    )


@dataclass(slots=True)
class SweepPlan:
    """Stages that jobs of a multirun would compute, in one process: each is computed once."""

    sweep: str | None = None
    """The multirun that is being planned."""
    jobs: dict[Path, int] = field(default_factory=dict)
    """Folder of an artifact to the first job that would make it."""

    def earlier(self, job: Job) -> dict[Path, int]:
        """What jobs before this one would make; nothing outside a multirun."""
        if job.sweep != self.sweep or job.sweep is None:
            self.sweep, self.jobs = job.sweep, {}
        return dict(self.jobs)

    def note(self, job: Job, results: Iterable[StageResult]) -> None:
        """Remember what this job would make."""
        for result in results:
            if job.job_num is not None and result.status is StageStatus.planned:
                self.jobs.setdefault(result.artifact.folder, job.job_num)


def plan_text(
    context: RunContext,
    earlier: Mapping[Path, int] | None = None,
    scene: Scene | None = None,
) -> str:
    """The plan as a table for people.

    Args:
        context: After its stages were planned.
        earlier: Artifacts that earlier jobs of the same multirun would make, and which job.
        scene: What its stages are sized with; None: only stages that ran here have a time.
    """
    rows = []
    total, unknown, predicted = 0.0, 0, False
    clock = clock_of(context, scene)
    for result, name in zip(context.results, stage_names(context.results), strict=True):
        counts = ", ".join(f"{num:,} {unit}" for unit, num in result.counts.items())
        short = result.artifact.digest[:16]
        if result.status is StageStatus.reused:
            rows.append((name, "reuse", counts, "", short))
            continue
        if (job := (earlier or {}).get(result.artifact.folder)) is not None:
            rows.append((name, "share", counts, f"job {job}", short))
            continue
        seconds = clock.seconds(result)
        shown = "?"
        if seconds is None:
            unknown += 1
        else:
            total += seconds.value
            predicted |= not seconds.measured
            shown = f"{'' if seconds.measured else '~ '}{duration(seconds.value)}"
        rows.append((name, "compute", counts, shown, short))
    header = ("stage", "", "how much", "about", "digest")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    actions = Counter(row[1] for row in rows)
    ending = f"Plan: {actions['compute']} of {len(rows)} stages would be computed"
    if actions["share"]:
        ending += f", {actions['share']} are shared with earlier jobs of this multirun"
    if total:
        ending += f", about {duration(total)}"
    if unknown:
        ending += f" plus {unknown} that never ran here"
    if predicted:
        ending += " (~: never ran here, predicted)"
    return "\n".join([*lines, "", f"{ending}. Nothing was run."])
