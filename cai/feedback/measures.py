"""How good a feedback is, computed from its answers to pairs whose better side is known.

Response a of a check is the better one, so the feedback is right where P(a) is above 0.5; a tie
counts half. Pairs that could not be judged are counted by reason and are in no other number.

* Same-position rate: of the questions asked in both orders (one per pair, principle and member),
  the share where both answers choose the response shown at the same place.
* Flip rate: of the pairs, the share whose label changes its side when only the order of
  presentation is swapped, everything else averaged. With one question per pair the two coincide.
  Where nothing is shown side by side, both are 0.
* Kappa: agreement of two members beyond what their accuracies alone imply (Cohen 1960; with right
  and wrong as categories it is the error consistency of Geirhos et al. 2020, arXiv:2006.16736);
  1: right and wrong on the same pairs, 0: independent. Over several members, the mean over pairs
  of members (Light 1971).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cai import statistics
from cai.agreement import cohen_kappa
from cai.feedback.base import same_position
from cai.statistics import CalibrationBin, Estimate, pair_accuracy, wilson_interval
from cai.types import Comparison, FeedbackCheck, Judgement

EQUAL_LENGTH_FRAC = 0.1
"""Lengths that differ by no more than this share of the longer one are about equal."""
BETTER_SHORTER = "better_shorter"
ABOUT_EQUAL = "about_equal"
BETTER_LONGER = "better_longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some of the pairs."""

    name: str
    accuracy: Estimate | None
    longer_wins: Estimate | None
    """What taking the longer response gets on the same pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an ensemble by itself."""

    name: str
    accuracy: Estimate | None
    same_position_rate: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two members of an ensemble."""

    first: str
    second: str
    share: Estimate | None
    """Pairs on which they decide alike."""
    kappa: float | None
    """None when both are always right, or both always wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """A feedback on labelled pairs."""

    num_pairs: int
    """Those that could not be judged included."""
    unjudged: dict[str, int]
    """By reason."""
    accuracy: Estimate | None
    longer_wins: Estimate | None
    same_position_rate: Estimate | None
    """None when only one order was asked."""
    flip_rate: Estimate | None
    side_by_side: bool | None
    """Whether the method shows both responses in one question; None when nothing was judged."""
    calibration_error: float | None
    brier: float | None
    bins: tuple[CalibrationBin, ...]
    by_principle: tuple[Group, ...]
    by_length: tuple[Group, ...]
    members: tuple[Member, ...]
    """Empty outside an ensemble."""
    agreements: tuple[Agreement, ...]
    kappa: float | None


def measure(checks: Sequence[FeedbackCheck]) -> Measures:
    """All measures of the feedback that made these checks."""
    comparisons = [check.comparison for check in checks]
    judged = [c for c in comparisons if c.prob_a is not None]
    probs = _probs(judged)
    sides = statistics.preferred_side(probs)
    bins = statistics.calibration_bins(sides.confidence, sides.correct)
    agreements = _agreements(judged)
    kappas = [agreement.kappa for agreement in agreements if agreement.kappa is not None]
    return Measures(
        num_pairs=len(checks),
        unjudged=count_unjudged(comparisons),
        accuracy=pair_accuracy(probs),
        longer_wins=longer_wins(a_is_longer(c.response_a, c.response_b) for c in judged),
        same_position_rate=same_position_rate(judged),
        flip_rate=flip_rate(judged),
        side_by_side=any(j.first is not None for c in judged for j in c.judgements)
        if judged
        else None,
        calibration_error=statistics.calibration_error(bins),
        brier=statistics.brier_score(probs, [1.0] * len(probs)),
        bins=bins,
        by_principle=_groups(judged, lambda c: c.principle_ids),
        by_length=_by_length(judged),
        members=tuple(_member(judged, name) for name in _member_names(judged)),
        agreements=agreements,
        kappa=sum(kappas) / len(kappas) if kappas else None,
    )


def a_is_longer(response_a: str, response_b: str) -> bool | None:
    """Which of two responses has more characters; None when neither."""
    if len(response_a) == len(response_b):
        return None
    return len(response_a) > len(response_b)


def longer_wins(longer: Iterable[bool | None]) -> Estimate | None:
    """What taking the longer response gets; equal lengths count half."""
    wins = [0.5 if flag is None else float(flag) for flag in longer]
    return wilson_interval(sum(wins), len(wins))


def same_position_rate(comparisons: Iterable[Comparison]) -> Estimate | None:
    """Share of two-order questions whose answers choose the same place."""
    same = [flag for comparison in comparisons for flag in same_position(comparison)]
    return wilson_interval(sum(same), len(same))


def flip_rate(comparisons: Iterable[Comparison]) -> Estimate | None:
    """Share of pairs whose label changes its side with the order of presentation."""
    flips = [
        flag for comparison in comparisons if (flag := flips_with_order(comparison)) is not None
    ]
    return wilson_interval(sum(flips), len(flips))


def flips_with_order(comparison: Comparison) -> bool | None:
    """Whether the two orders prefer different responses; None when only one was asked.

    Judgements without positions, of some members of an ensemble, count in both orders.
    """
    shown = {judgement.first for judgement in comparison.judgements}
    if shown == {None}:
        return False
    if not {"a", "b"} <= shown:
        return None
    a_first = _mean_prob(j for j in comparison.judgements if j.first != "b")
    b_first = _mean_prob(j for j in comparison.judgements if j.first != "a")
    return (a_first - 0.5) * (b_first - 0.5) < 0


def count_unjudged(comparisons: Iterable[Comparison]) -> dict[str, int]:
    """Pairs without a label, by reason."""
    found = Counter(str(c.unjudged) for c in comparisons if c.unjudged)
    return dict(sorted(found.items()))


def _probs(judged: Iterable[Comparison]) -> list[float]:
    return [c.prob_a for c in judged if c.prob_a is not None]


def _mean_prob(judgements: Iterable[Judgement]) -> float:
    probs = [judgement.prob_a for judgement in judgements]
    return sum(probs) / len(probs)


def _group(name: str, judged: Sequence[Comparison]) -> Group:
    return Group(
        name=name,
        accuracy=pair_accuracy(_probs(judged)),
        longer_wins=longer_wins(a_is_longer(c.response_a, c.response_b) for c in judged),
    )


def _groups(
    judged: Sequence[Comparison], names: Callable[[Comparison], Sequence[str]]
) -> tuple[Group, ...]:
    """One group for each name, in the order of their first pairs."""
    found: dict[str, list[Comparison]] = {}
    for comparison in judged:
        for name in names(comparison):
            found.setdefault(name, []).append(comparison)
    return tuple(_group(name, own) for name, own in found.items())


def _length_group(comparison: Comparison) -> str:
    better, worse = len(comparison.response_a.strip()), len(comparison.response_b.strip())
    if abs(better - worse) <= EQUAL_LENGTH_FRAC * max(better, worse):
        return ABOUT_EQUAL
    return BETTER_LONGER if better > worse else BETTER_SHORTER


def _by_length(judged: Sequence[Comparison]) -> tuple[Group, ...]:
    order = (BETTER_SHORTER, ABOUT_EQUAL, BETTER_LONGER)
    found = {group.name: group for group in _groups(judged, lambda c: [_length_group(c)])}
    return tuple(found[name] for name in order if name in found)


def _member_names(judged: Iterable[Comparison]) -> list[str]:
    names = (j.member for c in judged for j in c.judgements)
    return list(dict.fromkeys(name for name in names if name is not None))


def _alone(comparison: Comparison, member: str) -> Comparison:
    own = tuple(j for j in comparison.judgements if j.member == member)
    return dataclasses.replace(comparison, judgements=own)


def _member(judged: Sequence[Comparison], name: str) -> Member:
    alone = [own for c in judged if (own := _alone(c, name)).judgements]
    return Member(
        name=name,
        accuracy=pair_accuracy([_mean_prob(c.judgements) for c in alone]),
        same_position_rate=same_position_rate(alone),
    )


def _verdict(judgements: Iterable[Judgement]) -> str:
    prob = _mean_prob(judgements)
    return "tie" if prob == 0.5 else "right" if prob > 0.5 else "wrong"


def _agreements(judged: Sequence[Comparison]) -> tuple[Agreement, ...]:
    return tuple(
        _agreement(judged, first, second)
        for first, second in itertools.combinations(_member_names(judged), 2)
    )


def _agreement(judged: Sequence[Comparison], first: str, second: str) -> Agreement:
    """Over the pairs that both of them judged."""
    sides = [
        (_verdict(one.judgements), _verdict(other.judgements))
        for c in judged
        if (one := _alone(c, first)).judgements and (other := _alone(c, second)).judgements
    ]
    return Agreement(
        first=first,
        second=second,
        share=wilson_interval(sum(a == b for a, b in sides), len(sides)),
        kappa=cohen_kappa([a for a, _ in sides], [b for _, b in sides]),
    )
