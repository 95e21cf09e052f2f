"""Rewards and advantages by hand, for every setting that changes what a round learns from."""

import pytest
import torch
from torch import tensor

from cai import advantages
from cai.advantages import Values
from cai.choices import AtCut, KLEstimator, KLPlace
from cai.heads import ScoreHead
from tests.tiny import ppo_config

MASK = tensor([[True, True, True], [True, True, False], [False] * 3])
"""Row 0 ended, row 1 was cut, row 2 is empty."""
FINISHED = tensor([True, False, False])
SCORES = tensor([2.0, -3.0, 0.0])
POLICY = tensor([[-1.0, -2.0, -1.0], [-0.5, -1.5, 0.0], [0.0] * 3])
REFERENCE = tensor([[-1.5, -1.0, -1.0], [-0.5, -1.0, 0.0], [0.0] * 3])
# k1: 0.5, -1, 0 and 0, -0.5
VALUES = Values(
    values_BT=tensor([[0.5, 1.0, 1.5], [-1.0, -2.0, 9.0], [9.0] * 3]),
    final_values_B=tensor([4.0, -2.5, 9.0]),
)


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected), atol=1e-6, rtol=1e-6)


def rewards(**changes):
    return advantages.token_rewards(
        ppo_config(kl_coef=0.1, **changes),
        scores_B=SCORES,
        logprobs_BT=POLICY,
        reference_logprobs_BT=REFERENCE,
        finished_B=FINISHED,
        mask_BT=MASK,
        kl_coef=0.1,
    )


def test_kl_and_penalised_score_are_in_the_rewards():
    made = rewards(missing_eos_penalty=0.5)
    close(made.rewards_BT, [[-0.05, 0.1, 2.0], [0.0, 0.05 - 3.5, 0.0], [0.0] * 3])
    assert made.scored_B.tolist() == [True, True, False]
    assert made.reward_kl_coef == 0.1


def test_with_kl_in_the_loss_the_rewards_are_scores():
    made = rewards(kl_where=KLPlace.loss, kl_estimator=KLEstimator.k2, missing_eos_penalty=0.5)
    close(made.rewards_BT, [[0.0, 0.0, 2.0], [0.0, -3.5, 0.0], [0.0] * 3])
    assert made.reward_kl_coef == 0.0
    close(made.kl_BT, [[0.125, 0.5, 0.0], [0.0, 0.125, 0.0], [0.0] * 3])


def test_scores_are_clipped_before_the_penalty_and_kept_as_they_were():
    made = rewards(score_clip=1.5, missing_eos_penalty=0.5)
    close(made.rewards_BT, [[-0.05, 0.1, 1.5], [0.0, 0.05 - 2.0, 0.0], [0.0] * 3])
    assert torch.equal(made.scores_B, SCORES)


def test_a_bootstrapped_cut_has_no_score():
    made = rewards(at_cut=AtCut.bootstrap, missing_eos_penalty=0.0)
    close(made.rewards_BT, [[-0.05, 0.1, 2.0], [0.0, 0.05, 0.0], [0.0] * 3])
    assert made.scored_B.tolist() == [True, False, False]


def estimate(made, unfitted=None, **changes):
    config = ppo_config(discount=0.9, gae_lambda=0.5, **changes)
    return advantages.estimate(config, made, VALUES, MASK, unfitted=unfitted)


def white(rows):
    kept = tensor([x for row in rows for x in row])
    mean, std = kept.mean(), kept.std(correction=0)
    return [[float((x - mean) / std) for x in row] + [0.0] * (3 - len(row)) for row in rows]


def test_a_cut_ends_or_goes_on_from_its_value():
    # Row 0: 2 - 1.5 = 0.5; 0.1 + 1.35 - 1 = 0.45, + 0.225 = 0.675; -0.05 + 0.9 - 0.5 = 0.35,
    # + 0.30375 = 0.65375. Row 1 ended: -2.95 + 2 = -0.95; -1.8 + 1 = -0.8, - 0.4275 = -1.2275.
    ended = [[0.65375, 0.675, 0.5], [-1.2275, -0.95]]
    found = estimate(rewards(missing_eos_penalty=0.0))
    close(found.advantages_BT, [*white(ended), [0.0] * 3])
    close(found.returns_BT, [[1.15375, 1.675, 2.0], [-2.2275, -2.95, 0.0], [0.0] * 3])
    close(found.values_BT, [[0.5, 1.0, 1.5], [-1.0, -2.0, 0.0], [0.0] * 3])
    # Row 1 cut: 0.05 + 0.9 * -2.5 + 2 = -0.2; -0.8 - 0.09 = -0.89. Row 0 stays as it is.
    goes_on = [[0.65375, 0.675, 0.5], [-0.89, -0.2]]
    settings = {"at_cut": AtCut.bootstrap, "missing_eos_penalty": 0.0}
    found = estimate(rewards(**settings), **settings)
    close(found.advantages_BT, [*white(goes_on), [0.0] * 3])
    close(found.returns_BT, [[1.15375, 1.675, 2.0], [-1.89, -2.2, 0.0], [0.0] * 3])
    assert not found.values_fitted


def test_the_value_head_is_fitted_to_what_ended():
    settings = {"at_cut": AtCut.bootstrap, "missing_eos_penalty": 0.0}
    head = ScoreHead(2, seed=0)
    before = head(torch.eye(2))
    found = estimate(rewards(**settings), head, **settings)
    assert found.values_fitted
    # Whole returns of row 0, discounted: 2, 0.1 + 1.8 = 1.9, -0.05 + 1.71 = 1.66, over 1.5, 1, 0.5:
    # slope 0.34, and 1.8533 - 0.34.
    slope, shift = 0.34, 5.56 / 3 - 0.34
    close(found.values_BT[0], [slope * x + shift for x in (0.5, 1.0, 1.5)])
    close(found.values_BT[1, :2], [slope * x + shift for x in (-1.0, -2.0)])
    close(found.final_values_B, [slope * 4.0 + shift, slope * -2.5 + shift, 0.0])
    torch.testing.assert_close(head(torch.eye(2)), slope * before + shift)


def test_a_round_in_which_everything_was_cut_has_advantages_and_fits_nothing():
    settings = {"at_cut": AtCut.bootstrap, "missing_eos_penalty": 0.0}
    made = advantages.token_rewards(
        ppo_config(**settings),
        scores_B=SCORES,
        logprobs_BT=POLICY,
        reference_logprobs_BT=POLICY,
        finished_B=torch.zeros(3, dtype=torch.bool),
        mask_BT=MASK,
        kl_coef=0.1,
    )
    assert not made.scored_B.any()
    assert not made.rewards_BT.any()
    head = ScoreHead(2, seed=0)
    before = head.linear.weight.clone()
    found = estimate(made, head, **settings)
    assert not found.values_fitted
    assert torch.equal(head.linear.weight, before)
    # Values alone. Row 0: 0.9 * 4 - 1.5 = 2.1; 0.35 + 0.45 * 2.1 = 1.295; 0.4 + 0.58275 = 0.98275.
    # Row 1: 0.9 * -2.5 + 2 = -0.25; -0.8 - 0.1125 = -0.9125.
    close(found.advantages_BT, [*white([[0.98275, 1.295, 2.1], [-0.9125, -0.25]]), [0.0] * 3])


@pytest.mark.parametrize("at_cut", AtCut)
def test_nothing_at_all_is_defined(at_cut):
    config = ppo_config(at_cut=at_cut, missing_eos_penalty=0.0)
    nothing = torch.zeros(2, 0)
    made = advantages.token_rewards(
        config,
        scores_B=torch.zeros(2),
        logprobs_BT=nothing,
        reference_logprobs_BT=nothing,
        finished_B=torch.zeros(2, dtype=torch.bool),
        mask_BT=nothing.bool(),
        kl_coef=0.1,
    )
    values = Values(values_BT=nothing, final_values_B=torch.ones(2))
    found = advantages.estimate(config, made, values, nothing.bool(), unfitted=ScoreHead(2, seed=0))
    assert found.advantages_BT.shape == (2, 0)
    assert found.final_values_B.tolist() == [0.0, 0.0]
    assert not found.values_fitted
