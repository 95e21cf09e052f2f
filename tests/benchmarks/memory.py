"""Predicted against measured peak memory: `python -m tests.benchmarks.memory`.

Of the embedded model. Each setting is planned and then run in a process of its own, with the
default batches and few prompts (memory depends on the batches). A store with features of tuned
feedback, `--store`, spares phase=rlaif some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FEW = [
    "logger=none",
    "hardware.num_threads=1",
    "phase.prompts.num_red_team=14",
    "phase.prompts.num_helpfulness=10",
    "phase.prompts.num_eval_red_team=8",
    "phase.prompts.num_eval_helpfulness=2",
    "phase.prompts.num_eval_benign=4",
    "evaluation.num_feedback_tests=8",
    "evaluation.num_tests=4",
    "evaluation.num_critique_controls=0",
    "evaluation.num_principle_prompts=0",
    "evaluation.num_contrast_pairs=0",
    "evaluation.num_capability_questions=0",
    "evaluation.num_capability_texts=0",
    "evaluation.elo.num_prompts=0",
]
SETTINGS = {
    "sl_cai fp32": ["phase=sl_cai", "hardware.precision=fp32"],
    "sl_cai bf16": ["phase=sl_cai", "hardware.precision=bf16"],
    "rlaif bf16": ["phase=rlaif", "hardware.precision=bf16", "phase.ppo.num_iterations=2"],
}


def cai(arguments: list[str], folder: Path) -> str:
    """What `python -m cai.run` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cai.run", *arguments, *FEW, f"output_dir={folder}"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.stdout


def compare(arguments: list[str], store: Path | None) -> tuple[str, float, float]:
    """The stage of the predicted peak, predicted and measured GB."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if store is not None:
            shutil.copytree(store, folder / "store")
        plan = cai([*arguments, "plan=true"], folder)
        found = re.search(r"Peak: (.+), ([\d.]+) GB;", plan)
        assert found is not None, plan
        cai(arguments, folder)
        (manifest,) = (
            one for one in folder.glob("*/*/*/manifest.json") if "store" not in one.parts
        )
        measured = json.loads(manifest.read_bytes())["peak_memory_bytes"] / 1e9
    return found[1], float(found[2]), measured


def main() -> None:
    """Compare the settings that are asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("settings", nargs="*", choices=[*SETTINGS, []], default=[])
    parser.add_argument("--store", type=Path, help="a folder outputs/store with warm features")
    asked = parser.parse_args()
    print(f"{'setting':12}  {'predicted':>9}  {'measured':>8}  {'ratio':>5}  peak predicted in")
    for name in asked.settings or SETTINGS:
        stage, predicted, measured = compare(SETTINGS[name], asked.store)
        ratio = predicted / measured
        print(f"{name:12}  {predicted:9.2f}  {measured:8.2f}  {ratio:5.2f}  {stage}", flush=True)


if __name__ == "__main__":
    main()
