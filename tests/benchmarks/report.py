"""A report of 2,000 held-out prompts, each answered by three policies: writing and opening.

`python -m tests.benchmarks.report` prints CPU and wall seconds of writing the page, its size, and
milliseconds until a headless Chromium has loaded it, the median of five (wanted: under 3 s and
under 1 s). Wall times hold whatever else the machine is doing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from cai.report import render_report
from tests import pages

NUM_PROMPTS = 2000


def main() -> None:
    """Print the numbers."""
    story = pages.many(NUM_PROMPTS)
    cpu, wall = time.process_time(), time.perf_counter()
    page = render_report(story)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        f"{NUM_PROMPTS:,} prompts, {len(page) / 1e6:.1f} MB: "
        f"written in {cpu:.2f} CPU s, {wall:.2f} s"
    )
    if pages.CHROMIUM is None:
        print("no Chromium on this machine: opening is not timed")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [pages.opening_milliseconds(page, folder=Path(folder)) for _ in range(5)]
    print(f"opened in {statistics.median(found):,.0f} ms (of {', '.join(map(str, found))})")


if __name__ == "__main__":
    main()
