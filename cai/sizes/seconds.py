"""How long a stage takes: as earlier ones of this store did, else by the stated speed of a device.

A stage's operations are divided by `hardware.teraflops`, and the weights that sampling reads token
by token by `hardware.gb_per_second`. How far that is off on this machine is measured on what the
store has: seconds that an artifact took over seconds that its own settings predict, for artifacts
of the same models in the same number format. A stage of a kind that ran here gets the median of its
kind; one that never ran here gets the median of all, and is marked as a prediction.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cai.artifacts import MANIFEST
from cai.context import StageResult
from cai.hardware_config import HardwareConfig
from cai.sizes.work import Scene, Work, work_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """A stage's time."""

    value: float
    measured: bool
    """Whether stages of its kind ran here; otherwise it is a prediction."""


def stated_seconds(work: Work, hardware: HardwareConfig) -> float:
    """By the stated speed; a CPU's is that of one thread."""
    units = hardware.devices * hardware.num_nodes
    if hardware.accelerator == "cpu":
        units *= hardware.num_threads or torch.get_num_threads()
    reading = work.weight_bytes / (hardware.gb_per_second * 1e9)
    return work.operations / (hardware.teraflops * 1e12 * units) + reading


def _hashes(value: object) -> frozenset[str]:
    """Every model's sha256 in a stage's identity."""
    if not isinstance(value, Mapping):
        return frozenset()
    own = {found for name, found in value.items() if name == "sha256" and isinstance(found, str)}
    return frozenset(own).union(*(_hashes(part) for part in value.values()))


@dataclass(slots=True, kw_only=True)
class Clock:
    """Times of stages by what a store has."""

    store: Path
    scene: Scene | None
    hardware: HardwareConfig
    precision: str
    """Number format of the run, as manifests name it."""
    _known: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def seconds(self, result: StageResult) -> Seconds | None:
        """A planned stage's time; None when nothing is known."""
        work = self.work(result.name, result.key, result.counts)
        if work is None:
            rates = list(self._rates(result))
            amount = next(iter(result.counts.values()), 0)
            if rates:
                return Seconds(value=statistics.median(rates) * amount, measured=True)
            return None
        stated = stated_seconds(work, self.hardware)
        if own := list(self._factors(result, result.name)):
            return Seconds(value=stated * statistics.median(own), measured=True)
        others = [
            statistics.median(factors)
            for folder in sorted(self.store.glob("*"))
            if (factors := list(self._factors(result, folder.name)))
        ]
        return Seconds(value=stated * (statistics.median(others) if others else 1), measured=False)

    def work(self, name: str, key: Mapping[str, Any], counts: Mapping[str, int]) -> Work | None:
        """What a stage takes; None: it asks no model."""
        if self.scene is None or not key:
            return None
        return work_of(name, key, counts, self.scene)

    def _manifests(self, stage: str) -> list[dict[str, Any]]:
        """Of artifacts that were made in one go."""
        if stage not in self._known:
            paths = (self.store / stage).glob(f"*/{MANIFEST}")
            found = [json.loads(path.read_bytes()) for path in paths]
            self._known[stage] = [one for one in found if not one["continued"]]
        return self._known[stage]

    def _rates(self, result: StageResult) -> Iterator[float]:
        """Seconds for one unit of the first count, of earlier stages of this kind."""
        for manifest in self._manifests(result.name):
            if amount := next(iter(manifest["expected"].values()), 0):
                yield manifest["seconds"] / amount

    def _factors(self, result: StageResult, stage: str) -> Iterator[float]:
        """Measured over stated seconds of a stage's artifacts, of the result's models."""
        wanted = _hashes(result.key["identity"])
        for manifest in self._manifests(stage):
            key = manifest["key"]
            same = _hashes(key["identity"]) == wanted and manifest["precision"] == self.precision
            if not same or (stage == result.name and key["version"] != result.key["version"]):
                continue
            try:
                work = self.work(stage, key, manifest["expected"])
            except KeyError:  # made by another version, whose settings had other names
                continue
            if work is not None and (stated := stated_seconds(work, self.hardware)):
                yield manifest["seconds"] / stated
