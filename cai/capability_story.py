"""What alignment cost, told: warnings and metrics of collapse and of capability."""

from __future__ import annotations

from collections.abc import Sequence

from cai.capability import CapabilityRow
from cai.collapse import CollapseRow
from cai.statistics import Estimate
from cai.story import EvaluationStory, label

MIN_PROMPTS = 8
"""Fewer are too few to call anything a collapse."""
PHRASE_RISE = 0.25
"""Share of prompts by which the shared phrase must have spread."""
DISTINCT_FALL = 0.2
"""Share of its distinct 4-grams that a policy must have lost."""
PERPLEXITY_FACTOR = 2.0
"""Times or parts of the base's perplexity from which text is called foreign, or formulaic."""
LOST_FACTOR = 1.1
"""Times the base's perplexity of held-out text from which it is a warning."""


def cost_metrics(evaluation: EvaluationStory) -> dict[str, Estimate | float | None]:
    """Flat numbers of both, by policy."""
    return _collapse_metrics(evaluation.collapse) | _capability_metrics(evaluation.capability)


def _collapse_metrics(rows: Sequence[CollapseRow]) -> dict[str, Estimate | float | None]:
    """Flat numbers, `eval/<policy>/<name>`."""
    found: dict[str, Estimate | float | None] = {}
    for row in rows:
        group = f"eval/{row.policy}"
        found |= {
            f"{group}/phrase_share": row.phrase_share,
            f"{group}/distinct_2": row.distinct_2,
            f"{group}/distinct_4": row.distinct_4,
            f"{group}/repeated_tails": row.repeated_tails,
            f"{group}/shared_tail_share": row.shared_tail_share,
            f"{group}/words_change": row.words_change,
            f"{group}/base_perplexity": row.perplexity,
        }
    return found


def cost_findings(evaluation: EvaluationStory) -> list[str]:
    """Warnings of collapse, and of capability that was lost."""
    return [
        *collapse_findings(evaluation.collapse),
        *capability_findings(evaluation.capability),
    ]


def collapse_findings(rows: Sequence[CollapseRow]) -> list[str]:
    """A warning for every policy that collapsed against the first one."""
    found = []
    for row in rows[1:]:
        signs = _signs(row, rows[0]) if min(row.num, rows[0].num) >= MIN_PROMPTS else []
        if signs:
            found.append(
                f"{label(row.policy)} shows signs of collapse against {label(rows[0].policy)}: "
                f"{'; '.join(signs)}. Look at its responses before any score."
            )
    return found


def _signs(row: CollapseRow, first: CollapseRow) -> list[str]:
    found = [
        _risen(
            row.phrase_share,
            first.phrase_share,
            by=PHRASE_RISE,
            told=f"of its responses hold \u201c{row.phrase}\u201d",
        ),
        _risen(
            row.repeated_tails, first.repeated_tails, by=0, told="of its responses end in a loop"
        ),
        _risen(
            row.shared_tail_share,
            first.shared_tail_share,
            by=PHRASE_RISE,
            told=f"of its responses end in \u201c{row.shared_tail}\u201d",
        ),
        _narrowed(row.distinct_4, first.distinct_4),
        _far(row.perplexity, first.perplexity),
    ]
    return [sign for sign in found if sign]


def _narrowed(after: float | None, before: float | None) -> str:
    if after is None or before is None or after >= (1 - DISTINCT_FALL) * before:
        return ""
    return f"{after:.2f} of its 4-grams are distinct where {before:.2f} were"


def _far(after: Estimate | None, before: Estimate | None) -> str:
    if after is None or before is None:
        return ""
    overlap = after.low <= before.high and before.low <= after.high
    if overlap or 1 / PERPLEXITY_FACTOR < after.value / before.value < PERPLEXITY_FACTOR:
        return ""
    return f"perplexity under the base {after.value:.1f}, of its own responses {before.value:.1f}"


def _risen(after: Estimate | None, before: Estimate | None, *, by: float, told: str) -> str:
    """A share that rose by more than `by`, with intervals that do not overlap."""
    if after is None or before is None:
        return ""
    risen = after.value > before.value + by and after.low > before.high
    return f"{after.value:.2f} {told}" if risen else ""


def _capability_metrics(rows: Sequence[CapabilityRow]) -> dict[str, Estimate | float | None]:
    """Flat numbers, `capability/<policy>/<name>`."""
    found: dict[str, Estimate | float | None] = {}
    for row in rows:
        group = f"capability/{row.policy}"
        found |= {
            f"{group}/accuracy": row.accuracy,
            f"{group}/accuracy_change": row.accuracy_change,
            f"{group}/perplexity": row.perplexity,
            f"{group}/perplexity_factor": row.perplexity_factor,
        }
    return found


def alignment_tax(rows: Sequence[CapabilityRow]) -> str:
    """What the most trained policy lost, in a sentence; empty with fewer than two policies."""
    if len(rows) < 2:
        return ""
    last, first = rows[-1], rows[0]
    parts = []
    if (change := last.accuracy_change) is not None:
        parts.append(f"{_answers(change)} of easy questions: {change.format()}")
    if (factor := last.perplexity_factor) is not None:
        told = "finds unseen helpful text"
        odd = "odder" if factor.low > 1 else "likelier" if factor.high < 1 else "as likely"
        parts.append(f"{told} {odd}: perplexity times {factor.format()}")
    return (
        f"What alignment cost, {label(last.policy)} against {label(first.policy)}: it "
        f"{'; it '.join(parts)}."
    )


def _answers(change: Estimate) -> str:
    if change.low > 0:
        return "answers more"
    if change.high < 0:
        return "answers fewer"
    return "does not measurably answer fewer or more"


def capability_findings(rows: Sequence[CapabilityRow]) -> list[str]:
    """A warning where the last policy measurably lost capability."""
    if len(rows) < 2:
        return []
    last = rows[-1]
    lost = (last.accuracy_change is not None and last.accuracy_change.high < 0) or (
        last.perplexity_factor is not None and last.perplexity_factor.low > LOST_FACTOR
    )
    return [alignment_tax(rows)] if lost else []
