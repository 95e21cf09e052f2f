"""DPO's losses by hand, and a slow reference in plain floats that shares no code with them."""

import math
import random

import pytest
import torch
from torch import tensor

from cai.choices import DPOLoss
from cai.losses import dpo_loss

LN3 = math.log(3)


def loss(kind, log_ratio, prob_a, *, beta=1.0, label_smoothing=0.0, weight=None):
    """Of pairs with given log-ratios, all of it on side a."""
    weights = weight or [1.0] * len(prob_a)
    zeros = torch.zeros(len(prob_a))
    return dpo_loss(
        tensor(log_ratio),
        zeros,
        zeros,
        zeros,
        prob_a_P=tensor(prob_a),
        weight_P=tensor(weights),
        total_weight=sum(weights),
        loss=DPOLoss(kind),
        beta=beta,
        label_smoothing=label_smoothing,
    )


@pytest.mark.parametrize(
    ("kind", "log_ratio", "prob_a", "beta", "expected"),
    [
        # beta h = ln 3, s = 3/4: -ln 3/4, -ln 1/4, and a quarter of one to three of the other
        ("sigmoid", 2 * LN3, 1.0, 0.5, 0.287682),
        ("sigmoid", 2 * LN3, 0.0, 0.5, 1.386294),
        ("sigmoid", 2 * LN3, 0.25, 0.5, 0.25 * 0.287682 + 0.75 * 1.386294),
        # (3 - 1 / (2 * 0.25))^2 = 1, (-3 - 2)^2 = 25
        ("ipo", 3.0, 1.0, 0.25, 1.0),
        ("ipo", 3.0, 0.0, 0.25, 25.0),
        ("ipo", 3.0, 0.75, 0.25, 7.0),
        # 1 - 0.5 * 0.4 = 0.8, 1 + 0.2 = 1.2; past the margin it is 0
        ("hinge", 0.4, 1.0, 0.5, 0.8),
        ("hinge", 0.4, 0.0, 0.5, 1.2),
        ("hinge", 0.4, 0.5, 0.5, 1.0),
        ("hinge", 3.0, 1.0, 0.5, 0.0),
    ],
)
def test_a_loss_by_hand(kind, log_ratio, prob_a, beta, expected):
    found = loss(kind, [log_ratio], [prob_a], beta=beta)
    torch.testing.assert_close(found, tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_log_ratio_is_of_both_sides_and_to_the_reference():
    # h = (-3 - -4) - (-5 - -2) = 1 + 3 = 4, beta h = 2: -ln s(2) = ln(1 + e^-2) = 0.126928
    found = dpo_loss(
        tensor([-3.0]),
        tensor([-5.0]),
        tensor([-4.0]),
        tensor([-2.0]),
        prob_a_P=tensor([1.0]),
        weight_P=tensor([1.0]),
        total_weight=1.0,
        loss=DPOLoss.sigmoid,
        beta=0.5,
        label_smoothing=0.0,
    )
    torch.testing.assert_close(found, tensor(0.126928), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(DPOLoss))
def test_smoothing_takes_a_label_for_wrong_now_and_then(kind):
    # 0.9 * (1 - 0.2) + 0.1 * 0.2 = 0.74
    smoothed = loss(kind, [0.7], [0.9], beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, loss(kind, [0.7], [0.74], beta=0.3))


@pytest.mark.parametrize(
    ("kind", "best"),
    [
        ("sigmoid", LN3 / 0.5),  # beta h = ln(0.75 / 0.25)
        ("ipo", 0.5 / (2 * 0.5)),  # (2 * 0.75 - 1) / (2 beta)
    ],
)
def test_a_soft_label_has_a_goal_where_the_gradient_is_zero(kind, best):
    log_ratio = tensor([best], requires_grad=True)
    zero = torch.zeros(1)
    dpo_loss(
        log_ratio,
        zero,
        zero,
        zero,
        prob_a_P=tensor([0.75]),
        weight_P=tensor([1.0]),
        total_weight=1.0,
        loss=DPOLoss(kind),
        beta=0.5,
        label_smoothing=0.0,
    ).backward()
    torch.testing.assert_close(log_ratio.grad, torch.zeros(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", list(DPOLoss))
def test_weights_make_a_mean_and_half_a_weight_twice_is_the_same(kind):
    first, second = (loss(kind, [ratio], [prob]) for ratio, prob in ((0.3, 0.9), (-1.2, 0.4)))
    mixed = loss(kind, [0.3, -1.2], [0.9, 0.4], weight=[1.0, 3.0])
    torch.testing.assert_close(mixed, (first + 3 * second) / 4)
    twice = loss(kind, [0.3, 0.3, -1.2], [0.9, 0.9, 0.4], weight=[0.5, 0.5, 3.0])
    torch.testing.assert_close(twice, mixed)


def slow_loss(row, *, kind, beta, smoothing):
    """One pair's loss in plain floats, written from the papers and not from `cai.losses`."""
    policy_a, policy_b, reference_a, reference_b, prob = row
    reward_a = beta * (policy_a - reference_a)
    reward_b = beta * (policy_b - reference_b)
    total = 0.0
    for wins, loses, share in ((reward_a, reward_b, prob), (reward_b, reward_a, 1 - prob)):
        if kind == "sigmoid":
            # Bradley-Terry: exp(r_w) / (exp(r_w) + exp(r_l)).
            right = -math.log(math.exp(wins) / (math.exp(wins) + math.exp(loses)))
            wrong = -math.log(math.exp(loses) / (math.exp(wins) + math.exp(loses)))
        elif kind == "ipo":
            goal = 1 / (2 * beta)
            right = ((wins - loses) / beta - goal) ** 2
            wrong = ((loses - wins) / beta - goal) ** 2
        else:
            right = max(0.0, 1 - wins + loses)
            wrong = max(0.0, 1 - loses + wins)
        total += share * ((1 - smoothing) * right + smoothing * wrong)
    return total


@pytest.mark.parametrize("kind", list(DPOLoss))
@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_slow_reference_in_value_and_gradient(kind, seed):
    rng = random.Random(seed)
    num, beta = rng.randrange(1, 9), rng.uniform(0.05, 1.0)
    smoothing = rng.choice([0.0, rng.uniform(0.0, 0.49)])
    rows = [
        [*(rng.uniform(-6, 0) for _ in range(4)), rng.choice([0.0, 0.5, 1.0, rng.random()])]
        for _ in range(num)
    ]
    weights = [rng.uniform(0.1, 2.0) for _ in range(num)]
    policy_a, policy_b, reference_a, reference_b, labels = (
        tensor([row[column] for row in rows]) for column in range(5)
    )
    policy_a.requires_grad_()
    policy_b.requires_grad_()
    found = dpo_loss(
        policy_a,
        policy_b,
        reference_a,
        reference_b,
        prob_a_P=labels,
        weight_P=tensor(weights),
        total_weight=sum(weights),
        loss=kind,
        beta=beta,
        label_smoothing=smoothing,
    )
    found.backward()
    settings = {"kind": kind.value, "beta": beta, "smoothing": smoothing}

    def mean(rows):
        total = sum(w * slow_loss(r, **settings) for w, r in zip(weights, rows, strict=True))
        return total / sum(weights)

    assert float(found.detach()) == pytest.approx(mean(rows), rel=1e-5, abs=1e-5)
    step = 1e-6
    for side, gradient in enumerate((policy_a.grad, policy_b.grad)):
        for number in range(num):
            ends = []
            for sign in (1, -1):
                moved = [list(row) for row in rows]
                moved[number][side] += sign * step
                ends.append(mean(moved))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient[number]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_far_from_the_reference_it_stays_finite():
    assert loss("sigmoid", [-900.0, 900.0], [1.0, 0.0]).isfinite()
