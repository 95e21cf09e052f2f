"""What is computed from checks, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cai.agreement import cohen_kappa
from cai.feedback.measures import (
    flip_rate,
    flips_with_order,
    measure,
    same_position_rate,
)
from cai.statistics import Estimate, wilson_interval
from cai.types import (
    Comparison,
    FeedbackCheck,
    Judgement,
    Message,
    Prompt,
    PromptKind,
    Split,
    Unjudged,
)

PROMPT = Prompt(
    id="p",
    kind=PromptKind.red_team,
    category="c",
    source="s",
    split=Split.evaluation,
    messages=(Message(role="user", content="Q?"),),
)


def judgement(prob_a: float, first: str | None, *, member=None, principle="one") -> Judgement:
    return Judgement(
        principle_id=principle,
        member=member,
        first=first,
        letter_a=None,
        letter_b=None,
        value_a=0.0,
        value_b=0.0,
        prob_a=prob_a,
        text=None,
    )


def check(
    prob_a: float | None,
    *judgements: Judgement,
    principle: str = "one",
    lengths: tuple[int, int] = (5, 5),
    unjudged: Unjudged | None = None,
) -> FeedbackCheck:
    """Lengths are those of the better and of the worse response."""
    comparison = Comparison(
        prompt=PROMPT,
        response_a="b" * lengths[0],
        response_b="w" * lengths[1],
        principle_ids=(principle,),
        judgements=judgements,
        labels=(),
        prob_a=prob_a,
        weight=1.0,
        unjudged=unjudged,
        seed=0,
    )
    return FeedbackCheck(name="n", comparison=comparison)


def orders(a_first: float, b_first: float, **about) -> tuple[Judgement, Judgement]:
    return judgement(a_first, "a", **about), judgement(b_first, "b", **about)


def share(estimate: Estimate | None) -> tuple[float, int]:
    assert estimate is not None
    return estimate.value, estimate.num


def test_accuracy_counts_ties_half_and_leaves_out_what_was_not_judged():
    measured = measure(
        [
            check(0.9),
            check(0.2),
            check(0.5),
            check(0.7),
            check(None, unjudged=Unjudged.too_long),
            check(None, unjudged=Unjudged.identical),
            check(None, unjudged=Unjudged.identical),
        ]
    )
    # (1 + 0 + 0.5 + 1) / 4
    assert measured.accuracy == wilson_interval(2.5, 4)
    assert measured.num_pairs == 7
    assert measured.unjudged == {"identical": 2, "too_long": 1}


def test_brier_and_calibration_error_by_hand():
    measured = measure([check(0.9), check(0.85), check(0.2), check(0.65)])
    # Brier, outcome always 1: (0.1^2 + 0.15^2 + 0.8^2 + 0.35^2) / 4 = 0.795 / 4
    assert measured.brier == pytest.approx(0.19875)
    # Confidences .9 right | .85 right and .8 wrong | .65 right, by tenths:
    # (1 * |1 - .9| + 2 * |.5 - .825| + 1 * |1 - .65|) / 4 = (.1 + .65 + .35) / 4
    assert measured.calibration_error == pytest.approx(0.275)
    assert [item.outcome.num for item in measured.bins] == [1, 2, 1]


def test_same_position_and_flips_of_four_judges():
    right = check(0.8, *orders(0.9, 0.7))
    wrong = check(0.2, *orders(0.1, 0.3))
    first = check(0.5, *orders(0.9, 0.1))
    second = check(0.5, *orders(0.2, 0.8))
    measured = measure([right, wrong, first, second, first])
    assert share(measured.same_position_rate) == (0.6, 5)
    assert share(measured.flip_rate) == (0.6, 5)
    assert measured.side_by_side is True


def test_a_pair_flips_by_the_mean_of_all_that_was_asked_about_it():
    """Two principles: one answer follows the position, the other holds the label."""
    pair = check(
        0.75,
        *orders(0.9, 0.4, principle="one"),
        *orders(0.8, 0.9, principle="two"),
    ).comparison
    # The first question chooses the first place twice, the second does not: 1 of 2.
    assert share(same_position_rate([pair])) == (0.5, 2)
    # a first: (.9 + .8) / 2 = .85; b first: (.4 + .9) / 2 = .65: the same side.
    assert flips_with_order(pair) is False
    lower = dataclasses.replace(pair, judgements=(*pair.judgements[:3], judgement(0.5, "b")))
    # b first: (.4 + .5) / 2 = .45: the other side.
    assert flips_with_order(lower) is True


def test_without_positions_nothing_can_flip_and_with_one_order_nothing_is_known():
    alone = [check(0.9, judgement(0.9, None)).comparison]
    assert share(same_position_rate(alone)) == (0.0, 1)
    assert share(flip_rate(alone)) == (0.0, 1)
    assert measure([check(0.9, judgement(0.9, None))]).side_by_side is False
    once = [check(0.9, judgement(0.9, "b")).comparison]
    assert same_position_rate(once) is None
    assert flip_rate(once) is None
    assert measure([check(0.9, judgement(0.9, "b"))]).side_by_side is True


def test_a_member_without_positions_counts_in_both_orders():
    mixed = check(
        0.5,
        *orders(0.9, 0.2, member="asked"),
        judgement(0.9, None, member="probed"),
    ).comparison
    # a first: (.9 + .9) / 2 = .9; b first: (.2 + .9) / 2 = .55.
    assert flips_with_order(mixed) is False


def test_length_groups_and_the_longer_wins_baseline():
    measured = measure(
        [
            check(0.9, lengths=(100, 90)),  # equal: the difference is 10 % of the longer one
            check(0.9, lengths=(100, 89)),
            check(0.1, lengths=(50, 100)),
            check(0.9, lengths=(50, 100)),
            check(0.8, lengths=(7, 7)),
        ]
    )
    groups = {g.name: (share(g.accuracy), share(g.longer_wins)) for g in measured.by_length}
    assert groups == {
        "better_shorter": ((0.5, 2), (0.0, 2)),
        "about_equal": ((1.0, 2), (0.75, 2)),
        "better_longer": ((1.0, 1), (1.0, 1)),
    }
    assert list(groups) == ["better_shorter", "about_equal", "better_longer"]
    # Longer, longer, shorter, shorter, equal: (1 + 1 + 0 + 0 + .5) / 5
    assert share(measured.longer_wins) == (0.5, 5)


def test_accuracy_by_principle_in_order_of_appearance():
    measured = measure(
        [
            check(0.9, principle="two"),
            check(0.1, principle="one"),
            check(0.8, principle="two"),
            check(None, principle="three", unjudged=Unjudged.empty),
        ]
    )
    found = [(group.name, share(group.accuracy)) for group in measured.by_principle]
    assert found == [("two", (1.0, 2)), ("one", (0.0, 1))]


def test_kappa_of_a_two_by_two_table():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 35/50 = .7;
    # expected .5 * .6 + .5 * .4 = .5; (.7 - .5) / (1 - .5) = .4
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa(["a", "a"], ["a", "b"]) == 0
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None


def members(**probs: float) -> FeedbackCheck:
    judgements = [j for name, prob in probs.items() for j in orders(prob, prob, member=name)]
    return check(sum(probs.values()) / len(probs), *judgements)


def test_members_by_themselves_and_with_each_other():
    measured = measure(
        [
            members(one=0.9, two=0.9),
            members(one=0.9, two=0.8),
            members(one=0.9, two=0.1),
            members(one=0.1, two=0.2),
            members(one=0.9),
        ]
    )
    assert [(m.name, share(m.accuracy)) for m in measured.members] == [
        ("one", (0.8, 5)),
        ("two", (0.5, 4)),
    ]
    (agreement,) = measured.agreements
    assert (agreement.first, agreement.second, share(agreement.share)) == ("one", "two", (0.75, 4))
    # Over the four common pairs: expected .75 * .5 + .25 * .5 = .5; (.75 - .5) / .5 = .5
    assert agreement.kappa == pytest.approx(0.5)
    assert measured.kappa == pytest.approx(0.5)


def test_kappa_of_three_members_is_the_mean_over_their_pairs():
    measured = measure([members(one=0.9, two=0.9, three=0.1), members(one=0.1, two=0.1, three=0.9)])
    kappas = [agreement.kappa for agreement in measured.agreements]
    assert kappas == [1.0, -1.0, -1.0]
    assert measured.kappa == pytest.approx(-1 / 3)


def test_members_that_are_always_right_have_no_kappa():
    measured = measure([members(one=0.9, two=0.8)] * 3)
    assert measured.agreements[0].kappa is None
    assert measured.kappa is None


def test_nothing_judged_is_nothing_measured():
    for checks in ([], [check(None, unjudged=Unjudged.empty)]):
        measured = measure(checks)
        for name in ("accuracy", "longer_wins", "same_position_rate", "flip_rate", "side_by_side",
                     "calibration_error", "brier", "kappa"):  # fmt: skip
            assert getattr(measured, name) is None, name
        assert measured.bins == measured.by_principle == measured.members == ()


def test_batches_and_order_of_the_checks_change_nothing():
    checks = [check(prob, *orders(prob, prob)) for prob in (0.9, 0.2, 0.6, 0.5)]
    forwards, backwards = measure(checks), measure(checks[::-1])
    assert forwards.accuracy == backwards.accuracy
    assert forwards.calibration_error is not None
    assert backwards.calibration_error is not None
    assert math.isclose(forwards.calibration_error, backwards.calibration_error)
