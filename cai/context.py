"""The only door to the world: store, tracker, progress, models, constitution and seed of a run.

`RunContext.run` is where a stage becomes an artifact: it computes the stage's digest, reuses what
is there, or holds the lock, fills the folder and commits it; in a plan it only looks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cai import ranks
from cai.artifacts import Artifact, Store, Work, write_atomically
from cai.constitution import Constitution
from cai.endpoint import metered
from cai.faults import fault
from cai.hardware_config import HardwareConfig
from cai.models import Models, dtype_of
from cai.sizes.device import release_memory
from cai.tracking import Tracker

log = logging.getLogger(__name__)

CURVE = "curve.json"
LIBRARIES = ("cai", "torch", "transformers", "peft", "lightning", "hydra-core", "omegaconf")


class StageStatus(StrEnum):
    """What happened to a stage in this run."""

    computed = "computed"
    continued = "continued"
    """Computed, from rows or steps that an interrupted run had left."""
    reused = "reused"
    planned = "planned"
    """A plan: it would be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One resumable, content-addressed step."""

    name: str
    version: int
    """Raised when the stage's code changes what it makes."""
    config: Any
    """Its own config section, a dataclass or a JSON value."""
    inputs: dict[str, Artifact]
    identity: dict[str, Any]
    """What else decides the result: models' and documents' hashes."""
    expect: dict[str, int]
    """How much there is to do, for a plan, e.g. {"prompts": 48}."""
    run: Callable[[Work], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One line of the run's table."""

    name: str
    artifact: Artifact
    status: StageStatus
    seconds: float
    counts: dict[str, int]
    key: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the digest is of; a plan reads the stage's size off it."""

    def record(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {
            "stage": self.name,
            "digest": self.artifact.digest,
            "status": str(self.status),
            "seconds": round(self.seconds, 3),
            "counts": self.counts,
        }


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {name: version(name) for name in LIBRARIES}


def artifact_note(work: Work) -> Path:
    """File that says in which precision unfinished work was done."""
    return work.scratch / "precision"


@dataclass(slots=True, kw_only=True)
class RunContext:
    """What stages and phases may touch."""

    run_dir: Path
    store: Store
    tracker: Tracker
    constitution: Constitution
    models: Models
    hardware: HardwareConfig
    seed: int
    plan: bool
    results: list[StageResult] = field(default_factory=list)

    def run(self, stage: Stage) -> Artifact:
        """The stage's artifact: found, computed, or in a plan only named.

        Every rank runs the same stages; rank 0 looks what there is and holds the lock.
        """
        config = stage.config
        section = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
        key = {
            "version": stage.version,
            "config": section,
            "inputs": {name: artifact.digest for name, artifact in stage.inputs.items()},
            "identity": stage.identity,
            "seed": self.seed,
        }
        artifact = self.store.artifact(stage.name, key)
        if ranks.broadcast(ranks.is_first() and artifact.complete):
            counts = artifact.manifest()["counts"]
            self._note(stage, artifact, key, StageStatus.reused, 0.0, counts)
            self._replay(artifact)
        elif self.plan:
            self._note(stage, artifact, key, StageStatus.planned, 0.0, stage.expect)
        else:
            self._fill(stage, artifact, key)
        return artifact

    def _fill(self, stage: Stage, artifact: Artifact, key: dict[str, Any]) -> None:
        with self.store.filling(artifact) as work:
            if ranks.broadcast(ranks.is_first() and artifact.complete):
                counts = artifact.manifest()["counts"]
                self._note(stage, artifact, key, StageStatus.reused, 0.0, counts)
                self._replay(artifact)
                return
            continued = ranks.broadcast(ranks.is_first() and self._same_precision(work))
            fault(f"{stage.name}:start")
            started = time.monotonic()
            with metered(work.scratch / "usage.jsonl") as meter:
                stage.run(work)
            release_memory()
            ranks.barrier()
            seconds = time.monotonic() - started
            spent = meter.total()
            if spent.counts():
                log.info("%s: %s", stage.name, spent.told())
            manifest = {
                "key": key,
                "expected": stage.expect,
                "counts": (work.counts or stage.expect) | spent.counts(),
                "seconds": round(seconds, 3),
                "continued": continued,
                "precision": self._precision(),
                "threads": torch.get_num_threads(),
                "processes": ranks.num_processes(),
                "versions": versions(),
            }
            self.store.commit(work, manifest)
        status = StageStatus.continued if continued else StageStatus.computed
        self._note(stage, artifact, key, status, seconds, manifest["counts"])

    def _precision(self) -> str:
        return str(dtype_of(self.hardware)).removeprefix("torch.")

    def _same_precision(self, work: Work) -> bool:
        """Whether an interrupted run left work to go on with; that of another precision is dropped.

        Rows and steps of two precisions in one artifact would be those of neither.
        """
        note = artifact_note(work)
        found = note.read_text("ascii") if note.is_file() else None
        if found is not None and found != self._precision():
            log.warning(
                "%s: what an interrupted run in %s had done is dropped; this run is in %s",
                work.artifact.short, found, self._precision(),
            )  # fmt: skip
            shutil.rmtree(work.folder / "work")
        write_atomically(artifact_note(work), self._precision().encode("ascii"))
        return found == self._precision()

    def _replay(self, artifact: Artifact) -> None:
        if CURVE in artifact.manifest()["files"]:
            rows = {row.pop("step"): row for row in artifact.json(CURVE)}
            replay(self.tracker, artifact.stage, rows)

    def _note(
        self,
        stage: Stage,
        artifact: Artifact,
        key: dict[str, Any],
        status: StageStatus,
        seconds: float,
        counts: dict[str, int],
    ) -> None:
        self.results.append(
            StageResult(
                name=stage.name,
                artifact=artifact,
                status=status,
                seconds=seconds,
                counts=counts,
                key=key,
            )
        )


@dataclass(slots=True, kw_only=True)
class Curve:
    """A training stage's metrics by step: tracked, kept over a kill, stored with the artifact.

    Only on rank 0; the others have the same metrics.
    """

    work: Work
    tracker: Tracker
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    tracked: bool = False
    """Whether the rows that an interrupted run had left were given to the tracker."""

    def __post_init__(self) -> None:
        path = self._path()
        if ranks.is_first() and path.is_file():
            self.rows = dict(_whole_lines(path))
            lines = (json.dumps([step, metrics]) + "\n" for step, metrics in self.rows.items())
            write_atomically(path, "".join(lines).encode("ascii"))

    def _path(self) -> Path:
        return self.work.scratch / "curve.jsonl"

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Take one step's metrics; steps after it, from before a kill, are dropped."""
        if not ranks.is_first():
            return
        self.rows = {k: v for k, v in self.rows.items() if k < step} | {step: metrics}
        with self._path().open("a", encoding="ascii") as stream:
            stream.write(json.dumps([step, metrics]) + "\n")
        if self.tracked:
            self.tracker.log(self.work.artifact.stage, step, metrics)
        else:
            replay(self.tracker, self.work.artifact.stage, self.rows)
            self.tracked = True

    def save(self) -> None:
        """Write the curve into the artifact; track it if the training was over before this run."""
        if not ranks.is_first():
            return
        if not self.tracked:
            replay(self.tracker, self.work.artifact.stage, self.rows)
        self.work.write_json(CURVE, [{"step": s, **m} for s, m in sorted(self.rows.items())])


def replay(tracker: Tracker, group: str, rows: Mapping[int, dict[str, float]]) -> None:
    """Give a tracker the metrics of steps that an earlier run made."""
    for step, metrics in sorted(rows.items()):
        tracker.log(group, step, metrics)


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Rows of a file whose last line may have been cut by a kill."""
    *lines, _cut = path.read_text("ascii").split("\n")
    for line in lines:
        step, metrics = json.loads(line)
        yield step, metrics
