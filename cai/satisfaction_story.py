"""What revising until satisfied did: the part of a run's story, its numbers and its findings.

How much "satisfied" says is how good the verdict on one response is: on the constitution's tests
its better responses should hold and its worse ones should not, so a verdict without knowledge is
right on half of them. A tuned verdict is measured on tests that its probe and its calibration have
not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai.revision_conflicts import Break, BrokenPair, broken_pairs, conflicts_of, times
from cai.revision_records import ChainEnd, RoundVerdicts, Satisfaction, VerdictCheck
from cai.revisions_config import RevisionsConfig
from cai.statistics import (
    Estimate,
    at_chance,
    bootstrap_mean,
    brier_score,
    calibration_bins,
    calibration_error,
    wilson_interval,
)
from cai.types import RevisionChain

EASY_LIMIT = 0.5
"""Share of drafts that satisfy everything as they are, from which on there is little to revise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictMeasures:
    """The verdict on responses of the constitution's tests."""

    accuracy: Estimate | None
    """Share of responses on the right side of the threshold; 0.5 without knowledge."""
    better_hold: Estimate | None
    worse_fail: Estimate | None
    calibration_error: float | None
    brier: float | None
    num_unjudged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleRounds:
    """One principle over all chains."""

    id: str
    num_checked: int
    """Chains that it was checked in."""
    num_failed: int
    """Drafts that it failed on."""
    num_steps: int
    """Steps under it."""
    num_fixed: int
    """Of those, after which it held."""
    num_broken: int
    """Steps under another principle that broke it."""
    num_left: int
    """Chains at whose end it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SatisfactionStory:
    """Revision until satisfied."""

    threshold: float
    max_rounds: int
    num_chains: int
    ends: dict[str, int]
    """By `ChainEnd`."""
    rounds: tuple[int, ...]
    """Chains that were satisfied after 0, 1, ... steps."""
    num_checked: float
    """Principles per chain, mean."""
    satisfied: Estimate | None
    mean_rounds: Estimate | None
    """Steps per chain; those that were not satisfied count with what they had, so it is a lower
    bound."""
    break_rate: Estimate | None
    """Share of steps with a used revision that broke another principle."""
    oscillation_rate: Estimate | None
    """Share of chains with an oscillation."""
    principles: tuple[PrincipleRounds, ...]
    conflicts: tuple[BrokenPair, ...]
    """The commonest first."""
    verdicts: VerdictMeasures


def satisfaction_story(
    chains: Sequence[RevisionChain],
    found: Sequence[Satisfaction],
    checks: Sequence[VerdictCheck],
    *,
    config: RevisionsConfig,
    num_bootstrap: int,
    seed: int,
) -> SatisfactionStory:
    """The chains, their checks, and the verdict itself, as a story."""
    conflicts = conflicts_of(chains, found, threshold=config.threshold)
    used = sum(step.outcome.accepted for chain in chains for step in chain.steps)
    breaking = {(b.prompt_id, b.round) for pair in conflicts.values() for b in pair}
    swinging = {b.prompt_id for pair in conflicts.values() for b in pair if b.oscillation}
    done = [len(c.steps) for c, one in zip(chains, found, strict=True) if _satisfied(one)]
    return SatisfactionStory(
        threshold=config.threshold,
        max_rounds=config.max_rounds,
        num_chains=len(chains),
        ends={end.value: sum(one.end is end for one in found) for end in ChainEnd},
        rounds=tuple(done.count(num) for num in range(config.max_rounds + 1)),
        num_checked=sum(len(one.rounds[0].verdicts) for one in found) / max(1, len(found)),
        satisfied=wilson_interval(len(done), len(found)),
        mean_rounds=bootstrap_mean(
            [float(len(chain.steps)) for chain in chains], num_resamples=num_bootstrap, seed=seed
        ),
        break_rate=wilson_interval(len(breaking), used),
        oscillation_rate=wilson_interval(len(swinging), len(chains)),
        principles=_principles(chains, found, conflicts, threshold=config.threshold),
        conflicts=broken_pairs(chains, conflicts),
        verdicts=measure_verdicts(checks, threshold=config.threshold),
    )


def _satisfied(found: Satisfaction) -> bool:
    return found.end is ChainEnd.satisfied


def _principles(
    chains: Sequence[RevisionChain],
    found: Sequence[Satisfaction],
    conflicts: Mapping[tuple[str, str], Sequence[Break]],
    *,
    threshold: float,
) -> tuple[PrincipleRounds, ...]:
    checked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    left: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    fixed: Counter[str] = Counter()
    for chain, one in zip(chains, found, strict=True):
        checked.update(verdict.principle_id for verdict in one.rounds[0].verdicts)
        failed.update(_failed(one.rounds[0], threshold))
        left.update(_failed(one.rounds[-1], threshold))
        for step, after in zip(chain.steps, one.rounds[1:], strict=True):
            steps[step.principle_id] += 1
            fixed[step.principle_id] += step.principle_id not in _failed(after, threshold)
    broken: Counter[str] = Counter()
    for (name, _), own in conflicts.items():
        broken[name] += len(own)
    return tuple(
        PrincipleRounds(
            id=name,
            num_checked=checked[name],
            num_failed=failed[name],
            num_steps=steps[name],
            num_fixed=fixed[name],
            num_broken=broken[name],
            num_left=left[name],
        )
        for name in sorted(checked, key=lambda name: (-failed[name], name))
    )


def _failed(found: RoundVerdicts, threshold: float) -> set[str]:
    return {v.principle_id for v in found.verdicts if v.prob is not None and v.prob < threshold}


def measure_verdicts(checks: Sequence[VerdictCheck], *, threshold: float) -> VerdictMeasures:
    """The verdict on labelled responses."""
    judged = [(check.prob, check.holds) for check in checks if check.prob is not None]
    right = {
        side: [(prob >= threshold) is holds for prob, holds in judged if holds is side]
        for side in (True, False)
    }
    both = [*right[True], *right[False]]
    probs, holds = [prob for prob, _ in judged], [float(one) for _, one in judged]
    return VerdictMeasures(
        accuracy=wilson_interval(sum(both), len(both)),
        better_hold=wilson_interval(sum(right[True]), len(right[True])),
        worse_fail=wilson_interval(sum(right[False]), len(right[False])),
        calibration_error=calibration_error(calibration_bins(probs, holds)),
        brier=brier_score(probs, holds),
        num_unjudged=len(checks) - len(judged),
    )


def satisfaction_metrics(
    story: SatisfactionStory | None,
) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat names and numbers."""
    if story is None:
        return
    yield "revisions/satisfied_rate", story.satisfied
    yield "revisions/rounds_mean", story.mean_rounds
    yield "revisions/rounds_censored", float(story.ends[ChainEnd.max_rounds.value])
    yield "revisions/unjudged_ends", float(story.ends[ChainEnd.unjudged.value])
    yield "revisions/principles_checked_mean", story.num_checked
    yield "revisions/break_rate", story.break_rate
    yield "revisions/oscillation_rate", story.oscillation_rate
    yield "revisions/verdict_accuracy", story.verdicts.accuracy
    yield "revisions/verdict_better_hold", story.verdicts.better_hold
    yield "revisions/verdict_worse_fail", story.verdicts.worse_fail
    yield "revisions/verdict_ece", story.verdicts.calibration_error
    yield "revisions/verdict_brier", story.verdicts.brier


def satisfaction_lines(
    story: SatisfactionStory | None,
) -> Iterator[tuple[str, Estimate | None, str]]:
    """The numbers that matter: name, value, what to compare it with."""
    if story is None:
        return
    yield "Chains that satisfy every applicable principle", story.satisfied, ""
    censored = story.ends[ChainEnd.max_rounds.value]
    note = f"{censored:,} not satisfied after {story.max_rounds}" if censored else ""
    yield "Rounds of revision per chain", story.mean_rounds, note
    yield "Steps that broke another principle", story.break_rate, "best is 0"
    yield "Chains where a principle was fixed and broken again", story.oscillation_rate, "best is 0"
    yield "Verdict on one response, principle tests", story.verdicts.accuracy, "chance 0.5"


def satisfaction_findings(story: SatisfactionStory | None) -> list[str]:
    """What "satisfied" is worth, and what went round in circles."""
    if story is None:
        return []
    return [*_verdict_findings(story), *_round_findings(story), *_conflict_findings(story)]


def _verdict_findings(story: SatisfactionStory) -> list[str]:
    accuracy = story.verdicts.accuracy
    if accuracy is None:
        return [
            "\u201cSatisfied\u201d was not measured: no principle test was put to the verdict on "
            "one response, so nobody knows what it means (evaluation.num_feedback_tests)."
        ]
    if at_chance(accuracy):
        return [
            "\u201cSatisfied\u201d says little: the verdict on one response is at chance on "
            f"principle tests, right on {_shown(accuracy)} of their responses."
        ]
    if accuracy.high < 0.5:
        return [
            "\u201cSatisfied\u201d means the opposite: the verdict on one response is right on "
            f"{_shown(accuracy)} of the responses of principle tests."
        ]
    return []


def _round_findings(story: SatisfactionStory) -> list[str]:
    found = []
    easy = story.rounds[0]
    if story.num_chains and easy >= EASY_LIMIT * story.num_chains:
        found.append(
            f"{easy:,} of {story.num_chains:,} drafts satisfy every principle as they are, and "
            "were not revised: the SL-CAI policy learns from few revisions. A higher "
            "phase.revisions.threshold asks for more."
        )
    censored = story.ends[ChainEnd.max_rounds.value]
    if 2 * censored > story.num_chains:
        found.append(
            f"{censored:,} of {story.num_chains:,} chains were not satisfied after "
            f"{story.max_rounds} rounds: the rounds they need are unknown."
        )
    if num := story.ends[ChainEnd.unjudged.value]:
        found.append(
            f"{num:,} of {story.num_chains:,} chains ended because a principle could not be judged "
            "and no other failed; they count as not satisfied."
        )
    return found


def _conflict_findings(story: SatisfactionStory) -> list[str]:
    if not story.conflicts:
        return []
    first = story.conflicts[0]
    if first.num_oscillations:
        return [
            f"Principles pull in different directions: {first.broken} was fixed and then broken "
            f"again by a step under {first.under} ({times(first.num_oscillations)}). An audit "
            "lists all such conflicts: phase=audit run=<this run's folder>."
        ]
    return []


def _shown(estimate: Estimate) -> str:
    return estimate.format().replace(" ", "\u00a0")
