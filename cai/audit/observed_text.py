"""What the person reads in the terminal of conflicts that a run saw."""

from __future__ import annotations

from cai.audit.observed import Observed
from cai.revision_conflicts import times
from cai.summary import Page

NUM_SHOWN = 5


def terminal_observed(found: Observed, *, encoding: str) -> str:
    """For the terminal, without a final newline."""
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    page.gap(f"Conflicts seen in the revisions of {page.clean(found.run)}")
    page.text(
        f"{found.num_chains:,} chains, {found.num_steps:,} steps. A principle is broken when it "
        "held before a step under another one and fails after it.",
        first="  ",
        rest="  ",
    )
    for pair in found.pairs[:NUM_SHOWN]:
        swings = f", {times(pair.num_oscillations)} after a fix of its own"
        page.text(
            f"{pair.broken} broken by a step under {pair.under}: {times(pair.num)}"
            f"{swings if pair.num_oscillations else ''}",
            first="  ",
            rest="    ",
        )
    if len(found.pairs) > NUM_SHOWN:
        page.text(f"and {len(found.pairs) - NUM_SHOWN:,} more in audit.json", first="  ")
    if not found.pairs:
        page.text("None was broken.", first="  ")
    return "\n".join(page.lines)
