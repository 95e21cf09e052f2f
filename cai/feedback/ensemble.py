"""Ensemble: several methods or models judge, their disagreement lowers the label's weight.

A member judges by itself, with its own model and random stream; its own label mode applies to its
mean before it has its say. What the members say about a case becomes one probability by `vote`:

* mean: their mean;
* vote: the share of them that prefer response a, where one at exactly 0.5 counts half;
* reliability: their mean weighted by how often each was right on the labelled comparisons of
  `feedback_check`: max(0, log((c + 1) / (n - c + 1))) for c right of n, the log-odds of the rule
  of succession, which is what independent members' votes deserve (Nitzan & Paroush 1982, "Optimal
  decision rules in uncertain dichotomous choice situations", Int. Econ. Rev. 23, p. 289). A member
  at or below chance has no say; where nobody has any, the plain mean is taken and counted. In
  `feedback_check` itself a pair is weighted by what was measured on the other pairs, so that the
  accuracy it reports is held out.

The weight of a label is 1 minus the mean of |p_i - p_j| over all pairs of members: 1 when they
agree, or when only one of them judged, and 0 when two are certain of opposite answers. Three
members cannot go below 1/3, as two of them always agree at least so far.

A member that cannot judge a case leaves it to the others and is counted (`without_<member>`); a
case that none of them can judge has no label, for the reason that the first one gave.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.choices import Vote
from cai.feedback.base import Case, HeldOut, Judged, Method, cases_of
from cai.feedback_config import EnsembleConfig
from cai.seeds import derive_seed
from cai.statistics import preferred_side
from cai.types import Comparison, FeedbackCheck, Judgement, Unjudged

PLAIN_MEAN = "plain_mean"
"""Count of labels that no reliable member had a say in."""
WITHOUT = "without_"
"""Begins the count of labels that a member had no part in."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How a member did on labelled comparisons."""

    num: int
    """Comparisons that it judged."""
    correct: float
    """Of which it preferred the better response; one at exactly 0.5 counts half."""

    @property
    def reliability(self) -> float:
        """What its probability weighs."""
        return max(0.0, math.log((self.correct + 1) / (self.num - self.correct + 1)))


def disagreement(probs: Sequence[float]) -> float:
    """Mean of |p_i - p_j| over all pairs; 0 for a single one."""
    gaps = [abs(one - other) for one, other in itertools.combinations(probs, 2)]
    return sum(gaps) / len(gaps) if gaps else 0.0


class Ensemble(Method):
    """Asks every member, and combines what they say.

    Args:
        config: Its settings.
        members: By name, in the order in which their judgements are kept.
        accuracies: By member, for `vote: reliability`; None while they are being measured.
    """

    config: EnsembleConfig

    def __init__(
        self,
        config: EnsembleConfig,
        *,
        members: Mapping[str, Method],
        accuracies: Mapping[str, Accuracy] | None = None,
    ) -> None:
        super().__init__(config)
        self.members = members
        self.accuracies = accuracies

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """All judgements of those members that could judge a case."""
        asked = {
            name: method.judge([_own_stream(case, name) for case in cases])
            for name, method in self.members.items()
        }
        return [
            _gathered({name: judged[row] for name, judged in asked.items()})
            for row in range(len(cases))
        ]

    def opinions(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """P(a preferred) of each member that judged a case, its own label mode applied."""
        return {name: prob for name, (prob, _) in self._labels(judgements).items()}

    def combine(self, judgements: Sequence[Judgement]) -> tuple[float, float]:
        """The members' vote on one case, and how far they agree."""
        labels = self._labels(judgements)
        probs = {name: prob for name, (prob, _) in labels.items()}
        weights = [weight for _, weight in labels.values()]
        agreement = 1 - disagreement(list(probs.values()))
        return self._vote(probs), agreement * sum(weights) / len(weights)

    def _labels(self, judgements: Sequence[Judgement]) -> dict[str, tuple[float, float]]:
        """Each member's own label and weight."""
        by_member: dict[str, list[Judgement]] = {}
        for judgement in judgements:
            by_member.setdefault(str(judgement.member), []).append(judgement)
        return {name: self.members[name].label([own]) for name, own in by_member.items()}

    def _vote(self, probs: Mapping[str, float]) -> float:
        match self.config.vote:
            case Vote.mean:
                return sum(probs.values()) / len(probs)
            case Vote.vote:
                return sum(map(_side, probs.values())) / len(probs)
            case Vote.reliability:
                shares = self._reliabilities(probs) or dict.fromkeys(probs, 1.0)
                return sum(shares[name] * probs[name] for name in probs) / sum(shares.values())

    def _reliabilities(self, names: Mapping[str, float]) -> dict[str, float] | None:
        """What each of these members weighs; None when none weighs anything, or none is known."""
        if self.accuracies is None:
            return None
        found = {name: self.accuracies[name].reliability for name in names}
        return found if any(found.values()) else None

    def counts(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """How many labels lack a member, and how many are a plain mean for want of reliability."""
        found: Counter[str] = Counter()
        for comparison in comparisons:
            for name in self.members if comparison.judgements else ():
                present = {j.principle_id for j in comparison.judgements if j.member == name}
                found[WITHOUT + name] += len(present) < len(comparison.principle_ids)
            found[PLAIN_MEAN] += self._is_plain(comparison)
        return {name: num for name, num in found.items() if num}

    def _is_plain(self, comparison: Comparison) -> bool:
        return (
            self.config.vote is Vote.reliability
            and self.accuracies is not None
            and any(
                self._reliabilities(self.opinions(case)) is None for case in cases_of(comparison)
            )
        )

    def measured_on(self, checks: Sequence[FeedbackCheck]) -> Ensemble:
        """The same ensemble, its members weighted by how they did on labelled comparisons."""
        accuracies = self._tally(checks)
        if not any(accuracy.reliability for accuracy in accuracies.values()):
            log.warning(
                "feedback: on %d labelled comparisons no member of the ensemble is right more "
                "often than wrong; the plain mean of their probabilities is used",
                len(checks),
            )
        return self._with(accuracies)

    def held_out(self, checks: Sequence[FeedbackCheck]) -> HeldOut:
        """With `vote: reliability`, each pair is combined by what was measured on the others."""
        if self.config.vote is not Vote.reliability:
            return HeldOut(checks=list(checks), counts=self.counts([c.comparison for c in checks]))
        tallies = [self._tally([check]) for check in checks]
        whole = _sum(self.members, tallies)
        found: list[FeedbackCheck] = []
        counts: Counter[str] = Counter()
        for check, own in zip(checks, tallies, strict=True):
            others = self._with(_less(whole, own))
            comparison = check.comparison
            if comparison.judgements:
                cases = cases_of(comparison)
                prob_a, weight = others.label(cases)
                comparison = dataclasses.replace(
                    comparison, labels=others.labels(cases), prob_a=prob_a, weight=weight
                )
            found.append(dataclasses.replace(check, comparison=comparison))
            counts.update(others.counts([comparison]))
        return HeldOut(checks=found, counts=dict(counts))

    def _with(self, accuracies: Mapping[str, Accuracy]) -> Ensemble:
        return Ensemble(self.config, members=self.members, accuracies=accuracies)

    def _tally(self, checks: Sequence[FeedbackCheck]) -> dict[str, Accuracy]:
        """Each member by itself on labelled comparisons, whose response a is the better one."""
        probs: dict[str, list[float]] = {name: [] for name in self.members}
        for check in checks:
            said: dict[str, list[float]] = {}
            for case in cases_of(check.comparison):
                for name, prob in self.opinions(case).items():
                    said.setdefault(name, []).append(prob)
            for name, own in said.items():
                probs[name].append(sum(own) / len(own))
        return {
            name: Accuracy(num=len(own), correct=sum(preferred_side(own).correct))
            for name, own in probs.items()
        }


def label_notes(stage: str, counts: Mapping[str, int]) -> list[str]:
    """What a stage's counts say about its labels, for people."""
    of = f"of {counts.get('pairs', 0):,} pairs of {stage}"
    found = [
        f"The ensemble's member {name.removeprefix(WITHOUT)} could not judge {num:,} {of}: the "
        "others did."
        for name, num in counts.items()
        if name.startswith(WITHOUT)
    ]
    if num := counts.get(PLAIN_MEAN, 0):
        found.append(
            f"For {num:,} {of} no member of the ensemble was right more often than wrong on the "
            "labelled pairs: their labels are the plain mean of the members."
        )
    return found


def _own_stream(case: Case, member: str) -> Case:
    return dataclasses.replace(case, seed=derive_seed(case.seed, "member", member))


def _gathered(judged: Mapping[str, Judged]) -> Judged:
    reasons = [one for one in judged.values() if isinstance(one, Unjudged)]
    if len(reasons) == len(judged):
        return reasons[0]
    return tuple(
        dataclasses.replace(judgement, member=name)
        for name, one in judged.items()
        if not isinstance(one, Unjudged)
        for judgement in one
    )


def _side(prob: float) -> float:
    return 0.5 if prob == 0.5 else float(prob > 0.5)


def _sum(
    names: Mapping[str, Method], tallies: Sequence[Mapping[str, Accuracy]]
) -> dict[str, Accuracy]:
    return {
        name: Accuracy(
            num=sum(tally[name].num for tally in tallies),
            correct=sum(tally[name].correct for tally in tallies),
        )
        for name in names
    }


def _less(whole: Mapping[str, Accuracy], own: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
    return {
        name: Accuracy(num=one.num - own[name].num, correct=one.correct - own[name].correct)
        for name, one in whole.items()
    }
