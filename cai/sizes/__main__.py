"""Predicted memory of published models on one to 64 devices: `python -m cai.sizes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cai.sizes.scaling import DEVICES, scaling_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m cai.sizes", description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, help="numbers of GPUs")
    parser.add_argument("--memory-gb", type=float, default=80.0, help="of one GPU; 10^9 bytes")
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048, help="prompt and response, tokens")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    asked = parser.parse_args(arguments)
    print(
        scaling_text(
            devices=asked.devices,
            memory_gb=asked.memory_gb,
            micro_batch_size=asked.micro_batch_size,
            length=asked.length,
            rank=asked.rank,
        )
    )


if __name__ == "__main__":
    main()
