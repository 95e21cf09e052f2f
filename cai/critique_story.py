"""Whether the critiques did anything: the part of a run's story, its numbers and its findings.

The feedback compared critiqued revisions with three alternatives (`cai.stages.controls`). A verdict
takes both intervals, of the share of pairs won and of the mean probability, on one side of 0.5:
soft labels near 0.5 have a narrow mean, and a dozen prompts have a wide share. Two arms that end
with the same text are a tie, worth 0.5 in both; pairs without a label are counted and in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cai.acceptance import CommonTail, common_tail
from cai.compliance.classify import refuses
from cai.statistics import Estimate, bootstrap_mean, pair_accuracy, wilson_interval
from cai.types import (
    Comparison,
    ControlArm,
    ControlComparison,
    CritiqueControl,
    RevisionChain,
    RevisionOutcome,
    Unjudged,
)

COMMON_TAIL_LIMIT = 0.2
"""Share of the prompts whose revisions end alike; above it the fine-tune learns the ending."""
MIN_ROWS = 8
"""Fewer are too few to call an ending common."""

_NAMES = {
    ControlArm.draft: "the draft as it was",
    ControlArm.critiqued: "critique, then revision",
    ControlArm.uncritiqued: "revision without a critique",
    ControlArm.resampled: "sampling again",
}


class Verdict(StrEnum):
    """What a comparison with an alternative shows."""

    helps = "helps"
    does_not_help = "does not help"
    not_distinguishable = "not distinguishable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One alternative on all prompts."""

    name: str
    num_accepted: int | None
    """Revisions that were used; the other prompts keep their draft. None where nothing revises."""
    refusal_rate: Estimate | None
    mean_words: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Critiqued revisions against one alternative."""

    against: ControlArm
    name: str
    wins: Estimate | None
    """Share of pairs where the critiqued side's probability is above 0.5; ties count half."""
    probability: Estimate | None
    """Mean probability that the critiqued side is preferred, bootstrapped over prompts."""
    num_identical: int
    """Ties because both sides ended with one text."""
    unjudged: dict[str, int]
    """Pairs without a label, by reason."""

    @property
    def verdict(self) -> Verdict:
        """What it shows, by the rule in this module's text."""
        if self.wins and self.probability:
            if min(self.wins.low, self.probability.low) > 0.5:
                return Verdict.helps
            if max(self.wins.high, self.probability.high) < 0.5:
                return Verdict.does_not_help
        return Verdict.not_distinguishable


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueStory:
    """Do the critiques do anything?"""

    judge: str
    """Who compared, e.g. `multiple_choice on smollm2_135m`."""
    judge_accuracy: Estimate | None
    """Its accuracy on labelled pairs: what it cannot see, it cannot show."""
    num_prompts: int
    arms: tuple[Arm, ...]
    contests: tuple[Contest, ...]


def critique_story(
    controls: Sequence[CritiqueControl],
    compared: Sequence[ControlComparison],
    *,
    judge: str,
    judge_accuracy: Estimate | None,
    num_bootstrap: int,
    seed: int,
) -> CritiqueStory | None:
    """The comparison as a story; None when the run made none."""
    if not controls:
        return None
    groups = {
        arm: [c.comparison for c in compared if c.against is arm]
        for arm in dict.fromkeys(c.against for c in compared)
    }
    return CritiqueStory(
        judge=judge,
        judge_accuracy=judge_accuracy,
        num_prompts=len(controls),
        arms=tuple(_arm(arm, controls, num_bootstrap=num_bootstrap, seed=seed) for arm in _NAMES),
        contests=tuple(
            _contest(arm, own, num_bootstrap=num_bootstrap, seed=seed)
            for arm, own in groups.items()
        ),
    )


def _arm(
    arm: ControlArm, controls: Sequence[CritiqueControl], *, num_bootstrap: int, seed: int
) -> Arm:
    texts = [control.text(arm) for control in controls]
    outcomes = [text.outcome for text in texts if text.outcome is not None]
    responses = [text.response for text in texts]
    num_refused = sum(
        refuses(control.prompt, response)
        for control, response in zip(controls, responses, strict=True)
    )
    return Arm(
        name=_NAMES[arm],
        num_accepted=sum(outcome.accepted for outcome in outcomes) if outcomes else None,
        refusal_rate=wilson_interval(num_refused, len(responses)),
        mean_words=bootstrap_mean(
            [float(len(response.split())) for response in responses],
            num_resamples=num_bootstrap,
            seed=seed,
        ),
    )


def _contest(
    arm: ControlArm, comparisons: Sequence[Comparison], *, num_bootstrap: int, seed: int
) -> Contest:
    probs = [prob for c in comparisons if (prob := _probability(c)) is not None]
    identical = sum(c.unjudged is Unjudged.identical for c in comparisons)
    unjudged = Counter(
        str(c.unjudged) for c in comparisons if c.unjudged not in (None, Unjudged.identical)
    )
    return Contest(
        against=arm,
        name=_NAMES[arm],
        wins=pair_accuracy(probs),
        probability=bootstrap_mean(probs, num_resamples=num_bootstrap, seed=seed),
        num_identical=identical,
        unjudged=dict(sorted(unjudged.items())),
    )


def _probability(comparison: Comparison) -> float | None:
    return 0.5 if comparison.unjudged is Unjudged.identical else comparison.prob_a


def revisions_tail(chains: Sequence[RevisionChain]) -> CommonTail | None:
    """The commonest ending of accepted revisions over prompts."""
    return common_tail([[s.response for s in c.steps if s.outcome.accepted] for c in chains])


def critique_metrics(critique: CritiqueStory | None) -> Iterator[tuple[str, Estimate | float]]:
    """Flat names and numbers of the comparison."""
    if critique is None:
        return
    yield "critique/num_prompts", float(critique.num_prompts)
    for contest in critique.contests:
        if contest.wins and contest.probability:
            yield f"critique/vs_{contest.against}", contest.probability
            yield f"critique/vs_{contest.against}_wins", contest.wins
        yield f"critique/vs_{contest.against}_ties", float(contest.num_identical)
        yield f"critique/vs_{contest.against}_unjudged", float(sum(contest.unjudged.values()))


def revisions_metrics(
    outcomes: Sequence[dict[str, int]], tail: CommonTail | None
) -> Iterator[tuple[str, float]]:
    """Flat names and numbers of the revisions: every outcome's share of all steps."""
    total = sum(sum(step.values()) for step in outcomes)
    for outcome in RevisionOutcome if total else ():
        share = sum(step.get(outcome, 0) for step in outcomes) / total
        yield f"revisions/{outcome}_share", share
    if tail is not None:
        yield "revisions/common_tail_share", tail.num_rows / tail.num


def critique_findings(critique: CritiqueStory | None) -> list[str]:
    """What the comparison shows, whatever it is, and who says so."""
    if critique is None:
        return []
    told = [text for contest in critique.contests if (text := _told(contest))]
    accuracy = critique.judge_accuracy
    who = f"The judge is {critique.judge}"
    if accuracy is None:
        who += "; its accuracy was not measured, so nobody knows what it can see."
    else:
        who += f", right on {_shown(accuracy)} of labelled pairs: it can show no more than it sees."
    return [" ".join([*told, who])] if told else []


def _told(contest: Contest) -> str | None:
    """One sentence; None for the draft, which the table has, and without any label."""
    if contest.wins is None or contest.probability is None:
        return None
    numbers = (
        f"it wins {_shown(contest.wins)}, at a mean probability of {_shown(contest.probability)}"
    )
    uncertain = "(an interval covers 0.5)"
    match contest.against, contest.verdict:
        case ControlArm.uncritiqued, Verdict.helps:
            return f"The critique helps: against a revision without one {numbers}."
        case ControlArm.uncritiqued, Verdict.does_not_help:
            return f"The critique does not help: against a revision without one {numbers}."
        case ControlArm.uncritiqued, _:
            return (
                f"The critique is not distinguishable from none {uncertain}: against a revision "
                f"without one {numbers}."
            )
        case ControlArm.resampled, Verdict.helps:
            return f"A critiqued revision helps more than sampling again: {numbers}."
        case ControlArm.resampled, Verdict.does_not_help:
            return f"A critiqued revision does not help; sampling again is better: {numbers}."
        case ControlArm.resampled, _:
            return (
                f"A critiqued revision is not distinguishable from sampling again {uncertain}: "
                f"{numbers}."
            )
    return None


def tail_findings(tail: CommonTail | None) -> list[str]:
    """An ending that many prompts' revisions share."""
    if tail is None or tail.num < MIN_ROWS or tail.num_rows <= COMMON_TAIL_LIMIT * tail.num:
        return []
    return [
        f"Revisions of {tail.num_rows} of {tail.num} prompts end alike: \u201c{tail.text}\u201d. "
        "The fine-tune learns such an ending before anything else."
    ]


def _shown(estimate: Estimate) -> str:
    """As in a table, without a place to break the line."""
    return estimate.format().replace(" ", "\u00a0")
