"""Predicted sizes as people read them."""

from __future__ import annotations

from collections.abc import Sequence

GB = 1e9
NAMES = {
    "process": "process",
    "base": "base",
    "roles": "adapters",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "kv_cache": "KV cache",
    "logits": "logits",
    "copies": "copies",
    "heap": "heap",
}
"""Components of memory as columns."""


def gigabytes(num_bytes: float) -> str:
    """E.g. `2.79 GB`; of 10^9 bytes."""
    return f"{cell(num_bytes)} GB"


def cell(num_bytes: float) -> str:
    """GB in a table: two decimals, none above 100; nothing for nothing."""
    value = num_bytes / GB
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is text and the others are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            value.rjust(width) if column else value.ljust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
