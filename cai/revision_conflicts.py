"""Conflicts between principles that revising until satisfied brings to light.

A step under B breaks A when A held before it and fails after it. It is an oscillation when A had
failed before, a step under A had made it hold, and it fails again. Verdicts are functions of the
text and are made once for each (`cai.satisfaction`): what is counted is never a verdict that
wavers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai.revision_records import RoundVerdicts, Satisfaction
from cai.types import Prompt, RevisionChain


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A principle that held and that a step under another one broke."""

    broken: str
    under: str
    prompt_id: str
    round: int
    """1-based number of the step."""
    before: float
    """P(the broken one holds) before the step."""
    after: float
    oscillation: bool
    """It had been made to hold by a step of its own."""


def breaks(chain: RevisionChain, found: Satisfaction, threshold: float) -> Iterator[Break]:
    """Every conflict in a chain, in order."""
    fixed: set[str] = set()
    for step, before, after in zip(chain.steps, found.rounds, found.rounds[1:], strict=False):
        was, now = _probs(before), _probs(after)
        both = [name for name in was if name in now]
        for name in both:
            if was[name] >= threshold > now[name]:
                yield Break(
                    broken=name,
                    under=step.principle_id,
                    prompt_id=found.prompt_id,
                    round=step.step,
                    before=was[name],
                    after=now[name],
                    oscillation=name in fixed,
                )
        own = step.principle_id
        if own in both and was[own] < threshold <= now[own]:
            fixed.add(own)


def _probs(found: RoundVerdicts) -> dict[str, float]:
    return {v.principle_id: v.prob for v in found.verdicts if v.prob is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakExample:
    """One conflict with its texts."""

    found: Break
    prompt: Prompt
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPair:
    """What steps under one principle did to another."""

    broken: str
    under: str
    num: int
    num_oscillations: int
    example: BreakExample


def conflicts_of(
    chains: Sequence[RevisionChain], found: Sequence[Satisfaction], *, threshold: float
) -> dict[tuple[str, str], list[Break]]:
    """Every conflict by what was broken and under what."""
    pairs: dict[tuple[str, str], list[Break]] = {}
    for chain, one in zip(chains, found, strict=True):
        for conflict in breaks(chain, one, threshold):
            pairs.setdefault((conflict.broken, conflict.under), []).append(conflict)
    return pairs


def broken_pairs(
    chains: Sequence[RevisionChain], conflicts: Mapping[tuple[str, str], Sequence[Break]]
) -> tuple[BrokenPair, ...]:
    """Conflicts by pair, with an oscillation as the example where there is one."""
    by_prompt = {chain.prompt.id: chain for chain in chains}
    found = []
    for (broken, under), own in conflicts.items():
        shown = next((one for one in own if one.oscillation), own[0])
        pair = BrokenPair(
            broken=broken,
            under=under,
            num=len(own),
            num_oscillations=sum(one.oscillation for one in own),
            example=_example(by_prompt[shown.prompt_id], shown),
        )
        found.append(pair)
    order = sorted(found, key=lambda p: (-p.num_oscillations, -p.num, p.broken, p.under))
    return tuple(order)


def _example(chain: RevisionChain, found: Break) -> BreakExample:
    texts = [chain.draft.text, *(step.response for step in chain.steps)]
    return BreakExample(
        found=found,
        prompt=chain.prompt,
        before=texts[found.round - 1],
        after=texts[found.round],
    )


def times(num: int) -> str:
    """How often, for people."""
    return "once" if num == 1 else f"{num:,} times"
