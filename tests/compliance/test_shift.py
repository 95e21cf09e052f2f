from __future__ import annotations

import dataclasses
import math

import pytest

from cai import paths
from cai.choices import LabelMode
from cai.compliance.classes import ComplianceTag
from cai.compliance.declared import DeclaredCompliance
from cai.compliance.shift import ComplianceReward, num_turned
from cai.constitution import load
from cai.feedback.base import shifted
from cai.feedback.random import Random
from cai.feedback_config import RandomConfig
from cai.types import Comparison, PromptKind, Unjudged
from tests.compliance.pairs import ALTERNATIVE, ANSWER, REFUSAL, comparison
from tests.feedback.cases import BASE

VALUES = {
    PromptKind.red_team: {ComplianceTag.refusal: 0.5, ComplianceTag.compliance: -1.0},
    PromptKind.benign: {ComplianceTag.refusal: -1.0, ComplianceTag.compliance: 1.0},
}


def reward(coef: float = 1.0) -> ComplianceReward:
    return ComplianceReward(declared=DeclaredCompliance(values=VALUES), coef=coef)


def method(label: LabelMode = LabelMode.soft) -> Random:
    """Any method: labels are made of judgements alike."""
    return Random(RandomConfig(method="random", **BASE | {"label": label}))


def relabelled(one: Comparison, *, coef: float = 1.0, label: LabelMode = LabelMode.soft) -> float:
    prob = reward(coef).relabelled(one, method(label)).prob_a
    assert prob is not None
    return prob


def test_log_odds_move_by_the_difference_of_values_by_hand() -> None:
    """log(.3/.7) = -.8473; refusal .5 less compliance -1 is 1.5; s(-.8473 + 1.5) = .6576."""
    assert relabelled(comparison(REFUSAL, ANSWER, 0.3)) == pytest.approx(0.6576, abs=1e-4)
    assert relabelled(comparison(REFUSAL, ANSWER, 0.3), coef=0.5) == pytest.approx(
        1 / (1 + math.exp(0.8473 - 0.75)), abs=1e-4
    )
    assert relabelled(comparison(REFUSAL, ANSWER, 0.3), coef=0.0) == 0.3
    assert relabelled(comparison(ALTERNATIVE, ALTERNATIVE + " ", 0.3)) == 0.3


def test_a_swap_turns_the_shift_round() -> None:
    one = relabelled(comparison(REFUSAL, ANSWER, 0.3))
    assert 1 - relabelled(comparison(ANSWER, REFUSAL, 0.7)) == pytest.approx(one, abs=1e-12)


def test_the_kind_of_prompt_decides_the_values() -> None:
    harmful = relabelled(comparison(REFUSAL, ANSWER, 0.5))
    benign = relabelled(comparison(REFUSAL, ANSWER, 0.5, kind=PromptKind.benign))
    ordinary = relabelled(comparison(REFUSAL, ANSWER, 0.5, kind=PromptKind.helpfulness))
    assert benign < ordinary == 0.5 < harmful


def test_labels_are_moved_before_they_are_hardened_or_clamped() -> None:
    assert relabelled(comparison(REFUSAL, ANSWER, 0.3), label=LabelMode.hard) == 1.0
    assert relabelled(comparison(REFUSAL, ANSWER, 0.1), label=LabelMode.hard) == 0.0
    assert relabelled(comparison(REFUSAL, ANSWER, 0.3), label=LabelMode.clamp) == 0.6


def test_labels_by_principle_move_with_the_pair() -> None:
    moved = reward().relabelled(comparison(REFUSAL, ANSWER, 0.3), method())
    assert [label.prob_a for label in moved.labels] == [moved.prob_a]
    assert moved.judgements == comparison(REFUSAL, ANSWER, 0.3).judgements


def test_certain_labels_and_pairs_without_one_stay() -> None:
    assert shifted(0.0, 3.0) == 0.0
    assert shifted(1.0, -3.0) == 1.0
    assert shifted(0.25, math.log(3)) == pytest.approx(0.5)
    assert shifted(1e-300, 0.5) > 0
    without = dataclasses.replace(
        comparison(REFUSAL, ANSWER, 0.5), prob_a=None, unjudged=Unjudged.identical
    )
    assert reward().relabelled(without, method()) is without


def test_what_was_done_is_recorded() -> None:
    ones = [comparison(REFUSAL, ANSWER, 0.3), comparison(ANSWER, REFUSAL, 0.05)]
    shifts = [reward(2.0).shift(one) for one in ones]
    assert (shifts[0].class_a, shifts[0].class_b) == ("refusal", "compliance")
    assert (shifts[0].value_a, shifts[0].value_b) == (0.5, -1.0)
    assert (shifts[0].shift, shifts[0].prob_before) == (3.0, 0.3)
    after = [reward(2.0).relabelled(one, method()) for one in ones]
    assert num_turned(shifts, after) == 1


def test_the_two_priorities_label_the_same_pairs_differently() -> None:
    """28 pairs of a refusal and an answer that a judge labels from .3 to .7, by hand.

    The refusing side is preferred in half of them without values, in all with 1.8 nats for it.
    """
    pairs = [
        comparison(*((REFUSAL, ANSWER) if n % 2 else (ANSWER, REFUSAL)), 0.3 + 0.4 * n / 27)
        for n in range(28)
    ]

    def refusing(name: str, coef: float) -> float:
        declared = load(name, folder=paths.CONSTITUTIONS).compliance
        assert declared is not None
        tilt = ComplianceReward(declared=declared, coef=coef)
        labels = [tilt.relabelled(one, method()).prob_a or 0.0 for one in pairs]
        wins = [p > 0.5 if n % 2 else p < 0.5 for n, p in enumerate(labels)]
        return sum(wins) / 28

    assert refusing("harmlessness_first", 0.0) == refusing("helpfulness_first", 0.0) == 0.5
    assert refusing("harmlessness_first", 1.0) == 1.0
    assert refusing("helpfulness_first", 1.0) == 0.5
