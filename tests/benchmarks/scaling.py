"""Strong scaling of every stage from one process to two: `python -m tests.benchmarks.scaling`.

The stages of `phase=rlaif` on the embedded model, each on enough made-up rows that its shards or
micro-batches share out evenly. Each measurement forks its processes anew: they load the model and
sample a little, which is not counted, then do the stage together. Three ways take turns in every
round, and their medians are compared:

* one process;
* two ranks of one run;
* two processes that know nothing of each other, each doing all of it. Twice the first time over
  theirs is what this machine allows: two cores share its memory and its cache.

On a CPU every process has one thread. On a machine with two GPUs or more the same command with
`--hardware ddp`, on one GPU with `--hardware gpu --processes 1`, prints tokens per second of each
stage too; that was never tried. No test asserts any of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from cai.artifacts import Store
from cai.config import Config
from cai.context import RunContext
from cai.hardware_config import HardwareConfig
from cai.models import Models
from cai.principle_subset import chosen_document
from cai.session import set_up
from cai.tracking import MemoryTracker
from tests.benchmarks.scaled import (
    PROBE,
    SECONDS,
    STAGES,
    Given,
    Measured,
    Scene,
    asked_of,
    give,
    settings,
)
from tests.ranks import on_ranks

GOAL = 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one process took."""

    load_seconds: float
    seconds: float
    tokens: int


def measure(
    stage: Measured, config: Config, given: Given, num: int, folder: Path, start: Barrier
) -> Taken:
    """Load the model, warm up, wait for the others, then do the stage with the clock running."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    context = RunContext(
        run_dir=folder / f"run-{os.getpid()}",
        store=Store(root=folder / "store"),
        tracker=MemoryTracker(),
        constitution=chosen_document(config.constitution),
        models=Models(config.hardware),
        hardware=config.hardware,
        seed=config.seed,
        plan=False,
    )
    base = context.models.base(config.model)
    loaded = time.perf_counter() - began
    base.generator(base.model).sample([PROBE], seeds=[0], max_new_tokens=4, temperature=1.0)
    scene = Scene(config=config, context=context, given=given, num=num)
    start.wait()
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        tokens = stage.run(scene)
    return Taken(load_seconds=loaded, seconds=time.perf_counter() - began, tokens=tokens)


def take(
    stage: Measured, config: Config, given: Given, num: int, *, size: int, together: bool
) -> list[Taken]:
    """One measurement: `size` processes, of one run or each by itself."""
    start = multiprocessing.get_context("fork").Barrier(size)
    config = dataclasses.replace(
        config, hardware=dataclasses.replace(config.hardware, devices=size if together else 1)
    )
    with tempfile.TemporaryDirectory() as scratch:

        def body() -> Taken:
            folder = Path(scratch, "run" if together else str(os.getpid()))
            return measure(stage, config, given, num, folder, start)

        return on_ranks(
            size,
            body,
            seconds=SECONDS,
            together=together,
            accelerator=config.hardware.accelerator,
        )


def ways(size: int) -> dict[str, tuple[int, bool]]:
    """Processes and whether they are of one run, by name; on one device there is one way."""
    alone = {"one": (1, False)}
    return alone if size == 1 else alone | {"ranks": (size, True), "apart": (size, False)}


def compare(name: str, typed: argparse.Namespace) -> None:
    """Measure a stage in every way, round by round, and print its line."""
    stage = STAGES[name]
    num = max(8, round(typed.rows * stage.share))
    config = settings([*asked_of(typed.hardware, num), *typed.overrides])
    config = dataclasses.replace(config, hardware=one_thread(config.hardware))
    size = typed.processes
    found: dict[str, list[list[Taken]]] = {way: [] for way in ways(size)}
    with tempfile.TemporaryDirectory() as folder:
        given = give(Store(root=Path(folder)), config, num)
        for _ in range(typed.rounds):
            for way, (processes, together) in ways(size).items():
                taken = take(stage, config, given, num, size=processes, together=together)
                found[way].append(taken)
    print(line(name, num, size, found), flush=True)


def one_thread(hardware: HardwareConfig) -> HardwareConfig:
    """A process has one thread on a CPU, whatever it shares the machine with."""
    if hardware.accelerator != "cpu":
        return hardware
    return dataclasses.replace(hardware, num_threads=1)


def line(name: str, num: int, size: int, found: dict[str, list[list[Taken]]]) -> str:
    """Median seconds of the slowest process in each way, ratios, tokens per second."""
    seconds = {
        way: statistics.median(max(one.seconds for one in taken) for taken in rounds)
        for way, rounds in found.items()
    }
    loads = [one.load_seconds for rounds in found.values() for taken in rounds for one in taken]
    tokens = found["one"][0][0].tokens
    told = f"{name:<18} {num:5}  {statistics.median(loads):5.1f}  {seconds['one']:7.1f}"
    if size == 1:
        return f"{told}  {tokens / seconds['one']:9.0f}"
    ratio = seconds["one"] / seconds["ranks"]
    ceiling = size * seconds["one"] / seconds["apart"]
    pace = f"{tokens / seconds['one']:9.0f}  {tokens / seconds['ranks']:9.0f}"
    mark = "" if ratio >= GOAL else f"  below {GOAL}"
    return (
        f"{told}  {seconds['ranks']:7.1f}  {seconds['apart']:7.1f}  {ratio:5.2f}  "
        f"{ceiling:7.2f}  {pace}{mark}"
    )


def header(size: int) -> str:
    """The table's."""
    first = f"{'stage':<18} {'rows':>5}  {'load':>5}  {'one':>7}"
    if size == 1:
        return f"{first}  {'tokens/s':>9}"
    return (
        f"{first}  {f'{size} ranks':>7}  {f'{size} apart':>7}  {'ratio':>5}  {'ceiling':>7}  "
        f"{'tok/s one':>9}  {f'{size} ranks':>9}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="settings, as python -m cai.run takes them")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2, help="1: no ratios, tokens per second")
    parser.add_argument("--hardware", default="cpu", help="an option of conf/hardware")
    typed = parser.parse_args()
    import lightning.pytorch  # noqa: F401 - once, before forking: it takes ten seconds

    set_up(settings(asked_of(typed.hardware, 8)))
    print(
        f"{typed.hardware}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, median of "
        f"{typed.rounds} rounds. Seconds are after start-up ({time.process_time():.0f} CPU s) and "
        "after each process has loaded the model (load).\n"
        f"ratio: one over ranks, wanted {GOAL}; ceiling: the machine's (apart).\n"
        f"{header(typed.processes)}",
        flush=True,
    )
    for name in typed.only:
        compare(name, typed)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
