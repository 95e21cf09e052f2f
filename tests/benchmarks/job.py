"""What both sides of the comparison with TRL are given and give back; standard library only.

The peer's Python imports this file too, from an environment without this project.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Ids = list[int]
RANK = 16
ALPHA = 32
TEMPERATURE = 0.7
BETA = 0.1
PAD_ID = 0
"""Not the end-of-sequence token: TRL's reward model looks for the last token that is not this."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, the same for both sides."""

    trainer: str
    """`sft`, `preference`, `dpo` or `ppo`."""
    model: str
    """Folder of the base."""
    start: str
    """Folder with the adapter, and the score head, that training starts from."""
    targets: list[str]
    """Layers with an adapter."""
    dtype: str
    """Of the base, `float32` or `bfloat16`; adapters are float32."""
    examples: list[dict[str, Ids]]
    """`prompt` with `response`, with `chosen` and `rejected`, or alone."""
    warm_up: list[dict[str, Ids]]
    """Trained on before the clock starts."""
    batch_size: int
    """Examples per optimizer step."""
    micro_batch_size: int
    """Examples per forward and backward pass."""
    num_epochs: int = 1
    learning_rate: float = 2e-4
    new_tokens: int = 0
    """Sampled for each prompt of `ppo`."""
    checkpointing: bool = False
    """TRL's gradient checkpointing, on by default there."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a side says."""

    cpu_seconds: float
    """Of the training call."""
    peak_mib: float
    """Resident memory of the whole process at its most."""
    losses: list[float]
    """One per optimizer step."""


def peak_mib() -> float:
    """This process's peak memory; what `getrusage` says includes the parent's before exec."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) / 1024


def timed(work: Callable[[], list[float]]) -> Outcome:
    """Do the work that gives the losses."""
    started = time.process_time()
    losses = work()
    seconds = time.process_time() - started
    return Outcome(cpu_seconds=seconds, peak_mib=peak_mib(), losses=losses)


def serve(run: Callable[[Job], Outcome]) -> None:
    """Take a job from the file named first, write the outcome to the one named second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("outcome", type=Path)
    typed = parser.parse_args()
    outcome = run(Job(**json.loads(typed.job.read_text("utf-8"))))
    typed.outcome.write_text(json.dumps(dataclasses.asdict(outcome)), "utf-8")
