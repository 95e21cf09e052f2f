import math

import pytest

from cai.choices import Combine
from cai.preference_measures import measure, preference_metrics
from cai.types import PreferencePrediction


def pair(prob_a, predicted=0.5, *, a=(0.0,), b=(0.0,), longer=None):
    return PreferencePrediction(
        name="p",
        principle_ids=("one",),
        prob_a=prob_a,
        scores_a=a,
        scores_b=b,
        predicted=predicted,
        a_is_longer=longer,
    )


def measured(held_out, tests=(), combine=Combine.mean):
    return measure(held_out, tests, combine=combine, num_bootstrap=50, seed=0)


def test_probabilities_are_the_models_own_and_labels_are_soft():
    found = measured(
        [
            pair(0.8, 0.9, a=(1.0,), b=(0.0,)),
            pair(0.3, 0.4, a=(-0.2,), b=(0.0,)),
            pair(0.5, 0.7, a=(0.3,), b=(0.0,)),
        ]
    )
    assert found.num_pairs == 3
    # Two pairs have a preferred side, and both are right.
    assert (found.accuracy.value, found.accuracy.num) == (1.0, 2)
    # .8: -(.8 ln .9 + .2 ln .1) = .544806; .3: -(.3 ln .4 + .7 ln .6) = .632465;
    # .5: -(.5 ln .7 + .5 ln .3) = .780324; mean .652532.
    assert found.cross_entropy.value == pytest.approx(0.652532, abs=1e-6)
    # H(.8) = .500402, H(.3) = .610864, H(.5) = .693147; mean .601471.
    assert found.label_entropy == pytest.approx(0.601471, abs=1e-6)
    # (.01 + .01 + .04) / 3
    assert found.brier == pytest.approx(0.02)
    # Confidences .9, .6, .7 against the labels of those sides .8, .7, .5, one bin each.
    assert [item.mean_probability for item in found.bins] == pytest.approx([0.6, 0.7, 0.9])
    assert [item.outcome.value for item in found.bins] == pytest.approx([0.7, 0.5, 0.8])
    assert found.calibration_error == pytest.approx((0.1 + 0.2 + 0.1) / 3)


def test_swapping_the_responses_changes_nothing():
    pairs = [
        pair(0.8, 0.9, a=(1.0, 0.2), b=(0.0, 0.3), longer=True),
        pair(0.3, 0.55, a=(0.1, 0.2), b=(0.0, 0.1), longer=False),
        pair(0.4, 0.2, a=(-1.0, 0.2), b=(0.0, 0.4)),
    ]
    swapped = [
        pair(
            1 - p.prob_a,
            1 - p.predicted,
            a=p.scores_b,
            b=p.scores_a,
            longer=None if p.a_is_longer is None else not p.a_is_longer,
        )
        for p in pairs
    ]
    one, other = (
        dict(preference_metrics(measured(pairs), group="g")),
        dict(preference_metrics(measured(swapped), group="g")),
    )
    for name, value in one.items():
        assert getattr(other[name], "value", other[name]) == pytest.approx(
            getattr(value, "value", value)
        ), name


def test_a_perfect_model_reaches_the_entropy_of_the_labels():
    found = measured([pair(prob, prob) for prob in (0.1, 0.35, 0.5, 0.77, 1.0)])
    assert found.cross_entropy.value == pytest.approx(found.label_entropy)
    assert found.brier == 0.0
    assert found.calibration_error == pytest.approx(0.0, abs=1e-9)


def test_accuracy_follows_the_score_that_ppo_maximises():
    disagree = pair(0.9, a=(3.0, 0.0), b=(1.0, 1.0))  # means 1.5 and 1, minima 0 and 1
    assert measured([disagree]).accuracy.value == 1.0
    assert measured([disagree], combine=Combine.min).accuracy.value == 0.0
    # 1.5 - 1.5 = 0 against 1 - 0 = 1
    assert measured([disagree], combine=Combine.mean_minus_std).accuracy.value == 0.0
    assert measured([pair(0.9, a=(1.0,), b=(1.0,))]).accuracy.value == 0.5


def test_members_disagree_by_hand():
    found = measured(
        [
            pair(0.9, a=(1.0, 3.0), b=(0.0, 0.0)),  # deviations 1 and 0, both prefer a
            pair(0.1, a=(1.0, -1.0), b=(0.0, 0.0)),  # deviations 1 and 0, one prefers b
        ]
    )
    assert (found.member_std.value, found.member_std.num) == (0.5, 4)
    assert (found.member_conflicts.value, found.member_conflicts.num) == (0.5, 2)
    alone = measured([pair(0.9)])
    assert alone.member_std is None
    assert alone.member_conflicts is None


def test_tests_are_measured_by_themselves_and_nothing_is_none_of_it():
    found = measured([], [pair(1.0, a=(1.0,), b=(0.0,)), pair(1.0, a=(0.0,), b=(1.0,))])
    assert (found.principle_tests.value, found.principle_tests.num) == (0.5, 2)
    assert found.accuracy is None
    assert found.cross_entropy is None
    assert found.label_entropy is None
    assert found.brier is None
    assert found.calibration_error is None
    assert found.bins == ()


def test_metrics_are_named_after_what_they_are():
    names = dict(preference_metrics(measured([pair(0.9, 0.8)]), group="preference_model"))
    assert names["preference_model/cross_entropy"].value == pytest.approx(
        -(0.9 * math.log(0.8) + 0.1 * math.log(0.2))
    )
    assert names["preference_model/ece"] == pytest.approx(0.1)
    assert names["preference_model/brier"] == pytest.approx(0.01)
    assert names["preference_model/member_disagreement"] is None
