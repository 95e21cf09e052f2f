"""Our trainers beside TRL's: CPU seconds, peak memory and loss values on the same tokens.

Run: `make benchmark-trl`, which makes the peers' environments first, or one table with
`python -m tests.benchmarks.trainers --only sft`. TRL 1.16 has the SFT, reward and DPO trainers,
TRL 1.12 is the last release with PPO. Every training is a process of its own with one thread; the
clock goes around the training call, after a short training as warm-up. The adapter, the score
head, the tokens and the settings are the same on both sides. No test asserts any of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from cai import embedded, paths
from cai.choices import EmbeddedModel
from cai.models import BaseModel
from cai.types import Message
from tests.benchmarks import trained
from tests.benchmarks.job import Ids, Job, Outcome

OURS = (Path(sys.executable), "tests.benchmarks.trained")
PEERS = {
    "sft": (".venv-trl116", "tests.benchmarks.trl_peer"),
    "preference": (".venv-trl116", "tests.benchmarks.trl_peer"),
    "dpo": (".venv-trl116", "tests.benchmarks.trl_peer"),
    "ppo": (".venv-trl112", "tests.benchmarks.trl_ppo_peer"),
}
UNITS = {"sft": "tokens", "preference": "pairs", "dpo": "pairs", "ppo": "rounds"}
WORDS = (
    "the a my our this old new small good open kind river garden letter door phone bread window "
    "teacher doctor friend street paper water light question answer plan rule note list bring "
    "carry write read keep clean repair explain ask tell show find wait and but then because when "
    "while before after with without near under slowly often never today first next"
)


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS.split()) for _ in range(num_words)).capitalize() + "."


def _prompt(base: BaseModel, rng: random.Random, num_tokens: int) -> Ids:
    """A conversation of about so many tokens, closed by the turn that is to be answered."""
    frame = len(base.prompt_ids([Message(role="user", content="")]))
    return base.prompt_ids([Message(role="user", content=_text(rng, num_tokens - frame))])


def _response(base: BaseModel, rng: random.Random, num_tokens: int) -> Ids:
    return base.encoder.response_ids(_text(rng, num_tokens))


def _rows(base: BaseModel, kind: str, num: int, *, short: bool = False) -> list[dict[str, Ids]]:
    """Examples of a trainer: prompts of 100 to 250 tokens (PPO: 120), responses of 40 to 160."""
    rng = random.Random(f"{kind} {num} {short}")
    names = {"sft": ["response"], "ppo": []}.get(kind, ["chosen", "rejected"])
    rows = []
    for _ in range(num):
        width = 40 if short else 120 if kind == "ppo" else rng.randint(100, 250)
        row = {"prompt": _prompt(base, rng, width)}
        for name in names:
            row[name] = _response(base, rng, rng.randint(10, 20) if short else rng.randint(40, 160))
        rows.append(row)
    return rows


def _job(base: BaseModel, kind: str, start: Path) -> Job:
    """The training whose speed is measured."""
    num = 32 if kind == "ppo" else 16
    return Job(
        trainer=kind,
        model=str(base.weights.folder),
        start=str(start),
        targets=base.config.lora.target_modules,
        dtype="bfloat16",
        examples=_rows(base, kind, num),
        warm_up=_rows(base, kind, 4, short=True),
        batch_size=num,
        micro_batch_size=8 if kind == "ppo" else 4,
        new_tokens=48 if kind == "ppo" else 0,
    )


def _run(job: Job, python: Path, module: str) -> Outcome:
    """One side, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "job.json"), Path(folder, "outcome.json")
        asked.write_text(json.dumps(dataclasses.asdict(job)), "utf-8")
        done = subprocess.run(
            [str(python), "-m", module, str(asked), str(answered)],
            cwd=paths.ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{module} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return Outcome(**json.loads(answered.read_text("utf-8")))


def _peer(job: Job) -> Outcome:
    folder, module = PEERS[job.trainer]
    python = paths.ROOT / folder / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"{folder} is not there. Type: make benchmark-trl")
    return _run(job, python, module)


def _ours(job: Job) -> Outcome:
    if job.trainer in ("preference", "dpo"):
        # Here a micro-batch is counted in sequences, of which a pair has two.
        job = dataclasses.replace(job, micro_batch_size=2 * job.micro_batch_size)
    return _run(job, *OURS)


def _amount(job: Job) -> int:
    """Tokens, pairs or rounds that are trained on."""
    if job.trainer == "sft":
        return sum(len(ids) for row in job.examples for ids in row.values())
    return 1 if job.trainer == "ppo" else len(job.examples)


def speed(base: BaseModel, start: Path, kind: str, rounds: int, *, checkpointing: bool) -> None:
    """One trainer's table: medians of rounds in which the sides take turns."""
    job = _job(base, kind, start)
    slower = dataclasses.replace(job, checkpointing=True)
    release = "TRL 1.12" if kind == "ppo" else "TRL 1.16"
    sides: dict[str, Callable[[], Outcome]] = {release: lambda: _peer(job)}
    if checkpointing:
        sides[f"{release}, gradient checkpointing"] = lambda: _peer(slower)
    sides["cai"] = lambda: _ours(job)
    found: dict[str, list[Outcome]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    amount, first = _amount(job), None
    print(f"\n{kind}: {amount} {UNITS[kind]} of {len(job.examples)} examples", flush=True)
    for name, outcomes in found.items():
        seconds = statistics.median(outcome.cpu_seconds for outcome in outcomes)
        peak = statistics.median(outcome.peak_mib for outcome in outcomes)
        first = first or (seconds, peak)
        print(
            f"  {name:<34} {seconds:7.2f} CPU s {amount / seconds:8.2f} {UNITS[kind]}/s "
            f"{first[0] / seconds:5.2f}x   {peak:6.0f} MiB {peak / first[1]:5.2f}",
            flush=True,
        )


def values(base: BaseModel, start: Path) -> None:
    """Losses of three optimizer steps on one small batch in float32, adapter and data the same.

    The first is the loss as it is defined, the others are after updates by the gradient.
    """
    print("\nLoss in float32 at optimizer steps 1, 2 and 3")
    for kind in ("sft", "preference", "dpo"):
        rows = _rows(base, kind, 4, short=True)
        job = dataclasses.replace(
            _job(base, kind, start),
            dtype="float32",
            examples=rows,
            warm_up=[],
            batch_size=len(rows),
            micro_batch_size=len(rows),
            num_epochs=3,
        )
        theirs, ours = _peer(job).losses, _ours(job).losses
        gap = max(abs(one - other) for one, other in zip(theirs, ours, strict=True))
        for name, losses in (("TRL 1.16", theirs), ("cai", ours)):
            print(f"  {kind:<11} {name:<9} " + "  ".join(f"{loss:.6f}" for loss in losses))
        print(f"  {kind:<11} largest difference {gap:.1e}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    tables = [*PEERS, "values"]
    parser.add_argument("--only", choices=tables, nargs="+", default=tables)
    parser.add_argument("--rounds", type=int, default=1, help="the median is printed (default: 1)")
    parser.add_argument(
        "--checkpointing", action="store_true", help="TRL with its default too, which saves memory"
    )
    typed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    embedded.verify(embedded.named(EmbeddedModel.smollm2_135m))
    base = trained.base_of(trained.settings(None))
    print(f"{base.base_id}, LoRA, bfloat16, one thread")
    with tempfile.TemporaryDirectory() as folder:
        starts = {dtype: Path(folder, dtype) for dtype in trained.PRECISION}
        for dtype, start in starts.items():
            trained.make_start(start, dtype)
        for name in typed.only:
            if name == "values":
                values(base, starts["float32"])
            else:
                speed(
                    base, starts["bfloat16"], name, typed.rounds, checkpointing=typed.checkpointing
                )


if __name__ == "__main__":
    main()
