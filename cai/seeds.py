"""Every random stream is a pure function of the run's seed and of what it is for."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *names: str | int) -> int:
    """Seed in [0, 2^31) of the stream that `names` describe, e.g. a stage, a prompt and a step."""
    text = "\x1f".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def python_rng(seed: int, *names: str | int) -> random.Random:
    """The stream itself, for draws outside torch."""
    return random.Random(derive_seed(seed, *names))
