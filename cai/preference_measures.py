"""How good a preference model is, on labelled pairs that it did not learn from.

A policy that learned by DPO is measured in the same way, by its implicit rewards.

* Accuracy: how often the combined score agrees with the label's preferred side; that score is what
  PPO maximises. Pairs whose label is exactly 0.5 have no such side and are left out.
* Everything below asks the model for a probability instead (`PreferencePrediction.predicted`): the
  logistic of the difference of its scores before calibration, which its loss was computed from;
  after calibration the same difference is another number of nats. Of an ensemble it is the mean.
* Cross-entropy against the soft label, nats per pair, beside the label's own entropy: no model
  gets below the latter, and one that always says 0.5 gets ln 2 = 0.693.
* Expected calibration error and Brier score against the label. Which response is a is arbitrary,
  so pairs are turned to the side that the model prefers: confidence max(q, 1 - q) against the
  label's probability of that side, in equal bins of width 0.1 (as for the feedback, `ece` there).
* Disagreement of an ensemble: mean over responses of the members' population standard deviation, in
  SL-CAI standard deviations, and the share of pairs on which they differ about the better response.
"""

from __future__ import annotations

import statistics as numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cai import statistics
from cai.choices import Combine
from cai.feedback.measures import longer_wins
from cai.statistics import CalibrationBin, Estimate, bootstrap_mean, pair_accuracy, wilson_interval
from cai.types import PreferencePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceMeasures:
    """A preference model on held-out pairs and on principle tests."""

    num_pairs: int
    """Held-out pairs with a label."""
    accuracy: Estimate | None
    """On held-out pairs."""
    longer_wins: Estimate | None
    """The longer response taken as preferred, on the same pairs."""
    principle_tests: Estimate | None
    """Principle tests where it scores the better response higher."""
    cross_entropy: Estimate | None
    """Nats per held-out pair."""
    label_entropy: float | None
    calibration_error: float | None
    brier: float | None
    bins: tuple[CalibrationBin, ...]
    member_std: Estimate | None
    """None for a single member."""
    member_conflicts: Estimate | None
    """Held-out pairs on which members prefer different responses."""


def measure(
    held_out: Sequence[PreferencePrediction],
    tests: Sequence[PreferencePrediction],
    *,
    combine: Combine,
    num_bootstrap: int,
    seed: int,
) -> PreferenceMeasures:
    """All measures of a preference model.

    Args:
        held_out: Labelled by the feedback.
        tests: Labelled by the constitution's authors; a is the better response.
        combine: What makes one score of the members'.
        num_bootstrap: Resamples for intervals of means.
        seed: Of the resamples.
    """
    sided = [pair for pair in held_out if pair.prob_a != 0.5]
    predicted, labels = [p.predicted for p in held_out], [p.prob_a for p in held_out]
    sides = statistics.confidences(predicted, labels)
    bins = statistics.calibration_bins(sides.confidence, sides.correct)

    def mean(values: Sequence[float]) -> Estimate | None:
        return bootstrap_mean(values, num_resamples=num_bootstrap, seed=seed)

    several = [pair for pair in held_out if len(pair.scores_a) > 1]
    return PreferenceMeasures(
        num_pairs=len(held_out),
        accuracy=pair_accuracy([_agrees(pair, combine) for pair in sided]),
        longer_wins=longer_wins(
            None if pair.a_is_longer is None else pair.a_is_longer == (pair.prob_a > 0.5)
            for pair in sided
        ),
        principle_tests=pair_accuracy([_agrees(pair, combine) for pair in tests]),
        cross_entropy=mean(statistics.cross_entropies(predicted, labels)),
        label_entropy=numbers.fmean(statistics.cross_entropies(labels, labels)) if labels else None,
        calibration_error=statistics.calibration_error(bins),
        brier=statistics.brier_score(predicted, labels),
        bins=bins,
        member_std=mean(
            [numbers.pstdev(own) for pair in several for own in (pair.scores_a, pair.scores_b)]
        ),
        member_conflicts=wilson_interval(sum(map(_conflict, several)), len(several)),
    )


def combined(scores: Sequence[float], combine: Combine) -> float:
    """One score from those of an ensemble's members."""
    match combine:
        case Combine.mean:
            return numbers.fmean(scores)
        case Combine.min:
            return min(scores)
        case Combine.mean_minus_std:
            return numbers.fmean(scores) - numbers.pstdev(scores)


def _agrees(pair: PreferencePrediction, combine: Combine) -> float:
    """1 where the labelled side has the higher score, 0.5 where both have the same, else 0."""
    difference = combined(pair.scores_a, combine) - combined(pair.scores_b, combine)
    ahead = difference if pair.prob_a > 0.5 else -difference
    return 0.5 if ahead == 0 else float(ahead > 0)


def _conflict(pair: PreferencePrediction) -> bool:
    """Whether some members prefer response a and others b."""
    differences = [a - b for a, b in zip(pair.scores_a, pair.scores_b, strict=True)]
    return min(differences) < 0 < max(differences)


def preference_metrics(
    measured: PreferenceMeasures, *, group: str
) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat numbers, named `<group>/<measure>`."""
    for name, value in (
        ("num_pairs", float(measured.num_pairs)),
        ("accuracy", measured.accuracy),
        ("longer_wins", measured.longer_wins),
        ("principle_test_accuracy", measured.principle_tests),
        ("cross_entropy", measured.cross_entropy),
        ("label_entropy", measured.label_entropy),
        ("ece", measured.calibration_error),
        ("brier", measured.brier),
        ("member_disagreement", measured.member_std),
        ("member_conflicts", measured.member_conflicts),
    ):
        yield f"{group}/{name}", value
