"""What a critic is worth, and what the feedback paid: part of a run's story, numbers and findings.

A critic is measured on trusted items that it did not learn from (validity, verdict, likelihood of
the trusted critique) and by what the base's revision after its critique is worth to a judge. A
verdict that is `unclear` is wrong about every item. A contest shows something when both intervals,
of the share of pairs won and of the mean probability, lie on one side of 0.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai.agreement import kappa_estimate
from cai.critic_record import CriticComparison, RolloutJudgement, TrustedCheck
from cai.critique_rules import Verdict
from cai.statistics import (
    Estimate,
    bootstrap_mean,
    pair_accuracy,
    paired_bootstrap_difference,
    wilson_interval,
)
from cai.types import Unjudged

UNPAID_LIMIT = 0.2
"""Share of the rollouts without a judgement; above it the score is mostly the configured one."""
NAMES = {
    "base": "the base's critique",
    "start": "the critique of the critic that it began as",
    "uncritiqued": "no critique",
    "resampled": "sampling again",
    "draft": "the draft as it was",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticRow:
    """A critic on the held-out trusted items."""

    name: str
    valid: Estimate | None
    reasons: dict[str, int]
    """Why critiques are not valid; one may have several reasons."""
    right: Estimate | None
    """Share of the items whose verdict is right."""
    kappa: Estimate | None
    """Agreement of the verdicts with the labels; 0 is chance."""
    num_unclear: int
    says_fault: Estimate | None
    """Share of the items that it finds fault with."""
    loss: Estimate | None
    """Mean negative log-probability per token of the trusted critiques, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticContest:
    """The trained critic's revisions against another text."""

    against: str
    wins: Estimate | None
    probability: Estimate | None
    num_identical: int
    num_unjudged: int

    @property
    def told(self) -> str:
        """What it shows."""
        if self.wins and self.probability:
            if min(self.wins.low, self.probability.low) > 0.5:
                return "better"
            if max(self.wins.high, self.probability.high) < 0.5:
                return "worse"
        return "not distinguishable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticJudged:
    """One judge's contests."""

    judge: str
    circular: bool
    """Whether the critic was trained on this judge's labels."""
    num_prompts: int
    contests: tuple[CriticContest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticStory:
    """A critic: what it learned from and what it is worth."""

    learned: str
    num_items: int
    majority: float
    """Share of the items that saying the commoner verdict to all of them is right about."""
    rows: tuple[CriticRow, ...]
    """The least trained first."""
    valid_change: Estimate | None
    """Of the last critic less the first, paired by item, like what follows."""
    right_change: Estimate | None
    loss_change: Estimate | None
    judged: tuple[CriticJudged, ...]
    """The run's feedback first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardStory:
    """What the feedback said of rollouts while something learned from it."""

    asked: str
    num: int
    unjudged: dict[str, int]
    num_unaccepted: int
    """Critiques whose revision was not accepted."""
    num_bounded: int
    """Log-odds that were held within the bound."""
    first: Estimate | None
    """Mean score in the first round."""
    last: Estimate | None


def _correct(check: TrustedCheck) -> bool:
    return check.verdict is (Verdict.fault if check.flawed else Verdict.none)


def _row(name: str, checks: Sequence[TrustedCheck], *, num_bootstrap: int, seed: int) -> CriticRow:
    labels = [str(Verdict.fault if check.flawed else Verdict.none) for check in checks]
    verdicts = [str(check.verdict) for check in checks]
    reasons = Counter(str(reason) for check in checks for reason in check.invalid)
    return CriticRow(
        name=name,
        valid=wilson_interval(sum(not check.invalid for check in checks), len(checks)),
        reasons=dict(sorted(reasons.items())),
        right=wilson_interval(sum(map(_correct, checks)), len(checks)),
        kappa=kappa_estimate(
            labels,
            verdicts,
            categories=[str(verdict) for verdict in Verdict],
            num_resamples=num_bootstrap,
            seed=seed,
        ),
        num_unclear=sum(check.verdict is Verdict.unclear for check in checks),
        says_fault=wilson_interval(
            sum(check.verdict is Verdict.fault for check in checks), len(checks)
        ),
        loss=bootstrap_mean(
            [-check.trusted_logprob for check in checks], num_resamples=num_bootstrap, seed=seed
        ),
    )


def _contest(
    against: str, found: Sequence[CriticComparison], *, num_bootstrap: int, seed: int
) -> CriticContest:
    compared = [one.comparison for one in found]
    identical = sum(one.unjudged is Unjudged.identical for one in compared)
    probs = [0.5 if one.unjudged is Unjudged.identical else one.prob_a for one in compared]
    kept = [prob for prob in probs if prob is not None]
    return CriticContest(
        against=against,
        wins=pair_accuracy(kept),
        probability=bootstrap_mean(kept, num_resamples=num_bootstrap, seed=seed),
        num_identical=identical,
        num_unjudged=len(probs) - len(kept),
    )


def judged_story(
    judge: str,
    found: Sequence[CriticComparison],
    *,
    circular: bool,
    num_bootstrap: int,
    seed: int,
) -> CriticJudged:
    """One judge's contests, by what the critic stands against."""
    groups = {
        name: [one for one in found if one.against == name]
        for name in dict.fromkeys(one.against for one in found)
    }
    return CriticJudged(
        judge=judge,
        circular=circular,
        num_prompts=max(map(len, groups.values()), default=0),
        contests=tuple(
            _contest(name, own, num_bootstrap=num_bootstrap, seed=seed)
            for name, own in groups.items()
        ),
    )


def critic_story(
    checks: dict[str, list[TrustedCheck]],
    judged: Sequence[CriticJudged],
    *,
    learned: str,
    num_bootstrap: int,
    seed: int,
) -> CriticStory:
    """The story of a critic.

    Args:
        checks: By critic, the least trained first, each of the same items in the same order.
        judged: By judge.
        learned: What it was trained on, in a sentence.
        num_bootstrap: Resamples.
        seed: Of the resampling.
    """
    rows = list(checks.values())
    first, last = rows[0], rows[-1]
    num_flawed = sum(check.flawed for check in first)

    def change(after: Sequence[float], before: Sequence[float]) -> Estimate | None:
        return paired_bootstrap_difference(after, before, num_resamples=num_bootstrap, seed=seed)

    return CriticStory(
        learned=learned,
        num_items=len(first),
        majority=max(num_flawed, len(first) - num_flawed) / len(first) if first else math.nan,
        rows=tuple(
            _row(name, own, num_bootstrap=num_bootstrap, seed=seed) for name, own in checks.items()
        ),
        valid_change=change(*([float(not c.invalid) for c in own] for own in (last, first))),
        right_change=change(*([float(_correct(c)) for c in own] for own in (last, first))),
        loss_change=change(*([-c.trusted_logprob for c in own] for own in (last, first))),
        judged=tuple(judged),
    )


def reward_story(
    judgements: Sequence[RolloutJudgement],
    *,
    asked: str,
    bound: float | None,
    num_bootstrap: int,
    seed: int,
) -> RewardStory:
    """What was paid for.

    Args:
        judgements: Of all rounds.
        asked: What the feedback was asked.
        bound: Of the log-odds; None where values are not bounded.
        num_bootstrap: Resamples.
        seed: Of the resampling.
    """
    rounds = sorted({one.iteration for one in judgements})

    def mean(iteration: int) -> Estimate | None:
        own = [one.score for one in judgements if one.iteration == iteration]
        return bootstrap_mean(own, num_resamples=num_bootstrap, seed=seed)

    unjudged = Counter(str(one.unjudged) for one in judgements if one.unjudged is not None)
    values = [one.value for one in judgements if one.value is not None]
    return RewardStory(
        asked=asked,
        num=len(judgements),
        unjudged=dict(sorted(unjudged.items())),
        num_unaccepted=sum(one.value is None and one.unjudged is None for one in judgements),
        num_bounded=sum(bound is not None and abs(value) > bound for value in values),
        first=mean(rounds[0]) if rounds else None,
        last=mean(rounds[-1]) if rounds else None,
    )


def critic_metrics(story: CriticStory | None) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat names and numbers."""
    if story is None:
        return
    yield "critic/num_items", float(story.num_items)
    yield "critic/majority_accuracy", None if math.isnan(story.majority) else story.majority
    for row in story.rows:
        group = f"critic/{row.name}"
        yield f"{group}/valid", row.valid
        yield f"{group}/verdict_accuracy", row.right
        yield f"{group}/verdict_kappa", row.kappa
        yield f"{group}/finds_fault", row.says_fault
        yield f"{group}/unclear", float(row.num_unclear)
        yield f"{group}/loss", row.loss
    yield "critic/valid_change", story.valid_change
    yield "critic/verdict_accuracy_change", story.right_change
    yield "critic/loss_change", story.loss_change
    for place, judged in enumerate(story.judged):
        group = "critic" if place == 0 else "critic/judge"
        for contest in judged.contests:
            yield f"{group}/vs_{contest.against}", contest.probability
            yield f"{group}/vs_{contest.against}_wins", contest.wins
            yield f"{group}/vs_{contest.against}_ties", float(contest.num_identical)


def reward_metrics(story: RewardStory | None) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat names and numbers."""
    if story is None:
        return
    yield "reward/num_rollouts", float(story.num)
    for reason, num in story.unjudged.items():
        yield f"reward/unjudged/{reason}", float(num)
    yield "reward/unaccepted", float(story.num_unaccepted)
    yield "reward/bounded", float(story.num_bounded)
    yield "reward/first_round", story.first
    yield "reward/last_round", story.last


def critic_lines(story: CriticStory | None) -> Iterator[tuple[str, Estimate | None, str]]:
    """The numbers that matter: name, estimate, comment."""
    if story is None:
        return
    for row in (story.rows[0], story.rows[-1]):
        who = "the base" if row.name == "base" else f"the {row.name}"
        yield f"Valid critiques, {who}", row.valid, ""
        told = "" if math.isnan(story.majority) else f"commoner verdict {story.majority:.2f}"
        yield f"Right verdicts, {who}", row.right, told
    yield "Trusted critiques, nats per token: critic - base", story.loss_change, "lower is better"
    for judged in story.judged:
        who = f"judge: {judged.judge}" + ("; circular" if judged.circular else "")
        for contest in judged.contests:
            name = f"Revision after its critique over {NAMES.get(contest.against, contest.against)}"
            yield name, contest.probability, f"no effect 0.5; {who}"


def critic_findings(story: CriticStory | None) -> list[str]:
    """What is at chance, or circular, or one-sided."""
    if story is None:
        return []
    found = []
    last = story.rows[-1]
    if last.right is not None and last.right.low <= story.majority:
        found.append(
            f"The critic's verdicts are not shown to be better than always saying the commoner one "
            f"({story.majority:.2f}): right on {_shown(last.right)} of held-out trusted items."
        )
    if last.kappa is not None and last.kappa.low <= 0:
        found.append(
            f"The critic's verdicts agree with trusted labels no better than chance: kappa "
            f"{_shown(last.kappa)}."
        )
    if last.says_fault is not None and last.says_fault.num > 0 and last.says_fault.value in (0, 1):
        finds = "fault with every" if last.says_fault.value == 1 else "no fault with any"
        found.append(f"The critic finds {finds} held-out response, sound or flawed.")
    for judged in story.judged:
        found += _contest_findings(judged)
    if story.judged and all(judged.circular for judged in story.judged):
        found.append(
            f"What the critic improves is told by {story.judged[0].judge}, which it was trained "
            "on: circular. Another judge: feedback@evaluation.judge=<option>, e.g. likelihood."
        )
    return found


def _contest_findings(judged: CriticJudged) -> list[str]:
    found = []
    for contest in judged.contests:
        if contest.wins is None or contest.probability is None:
            continue
        numbers = (
            f"it wins {_shown(contest.wins)}, at a mean probability of "
            f"{_shown(contest.probability)}; judge: {judged.judge}"
        )
        against = NAMES.get(contest.against, contest.against)
        if contest.against in ("base", "uncritiqued", "start"):
            told = {
                "better": f"A revision after the critic's critique beats {against}",
                "worse": f"A revision after the critic's critique loses to {against}",
                "not distinguishable": "A revision after the critic's critique is not "
                f"distinguishable from {against} (an interval covers 0.5)",
            }[contest.told]
            found.append(f"{told}: {numbers}.")
    return found


def reward_findings(story: RewardStory | None) -> list[str]:
    """Scores that are mostly not the feedback's."""
    if story is None or story.num == 0:
        return []
    reasons = dict(story.unjudged)
    if story.num_unaccepted:
        reasons["revision not accepted"] = story.num_unaccepted
    unpaid = sum(reasons.values())
    found = []
    if unpaid > UNPAID_LIMIT * story.num:
        told = ", ".join(f"{name.replace('_', ' ')}: {num}" for name, num in reasons.items())
        found.append(
            f"{unpaid} of {story.num} rollouts have a configured score and no judgement ({told}): "
            "what was learned may be to avoid or to seek that."
        )
    first, last = story.first, story.last
    if first and last and first.low <= last.high and last.low <= first.high:
        found.append(
            "The score by the feedback is not shown to have risen: "
            f"{_shown(first)} in the first round, {_shown(last)} in the last."
        )
    return found


def _shown(estimate: Estimate) -> str:
    """As in a table, without a place to break the line."""
    return estimate.format().replace(" ", "\u00a0")
