"""The metrics of every trainer on its tiny data, step by step, on record in `curves.json`.

A change that is meant to leave training alone must leave them alone; one that is meant to change it
records them anew (`python -m tests.curves`) and shows by how much in its diff.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests.test_training import CURVES, STAGES, train


def main() -> None:
    """Record the curves anew."""
    torch.set_num_threads(1)
    curves = {}
    for stage in STAGES:
        reported: dict[int, dict[str, float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            train(stage, Path(folder), reported.__setitem__)
        curves[stage] = {
            str(step): {name: float(f"{value:.6g}") for name, value in sorted(metrics.items())}
            for step, metrics in sorted(reported.items())
        }
    CURVES.write_text(json.dumps(curves, indent=1) + "\n", "ascii")


if __name__ == "__main__":
    main()
