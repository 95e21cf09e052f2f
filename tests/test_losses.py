"""Hand-computed numbers for every formula, and slow loops that share no code with it."""

import math
import random

import pytest
import torch
from torch import Tensor, tensor

from cai import losses

NAN = float("nan")


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, tensor(expected, dtype=found.dtype), atol=1e-5, rtol=1e-5)


def test_masked_mean_ignores_what_is_masked():
    # (1 + 3) / 2
    close(losses.masked_mean(tensor([1.0, NAN, 3.0]), tensor([True, False, True])), 2.0)


def test_masked_mean_and_variance_of_nothing_are_zero():
    close(losses.masked_mean(tensor([NAN]), tensor([False])), 0.0)
    close(losses.masked_var(tensor([NAN]), tensor([False])), 0.0)


def test_masked_variance_is_the_population_variance():
    # mean 2, ((1 - 2)^2 + (3 - 2)^2) / 2 = 1
    close(losses.masked_var(tensor([1.0, 9.0, 3.0]), tensor([True, False, True])), 1.0)


def test_whiten_with_shift():
    # mean 2, deviation 2: (0 - 2) / 2 = -1, (4 - 2) / 2 = 1
    values, mask = tensor([[0.0, 4.0], [NAN, NAN]]), tensor([[True, True], [False, False]])
    close(losses.whiten(values, mask, shift=True), [[-1.0, 1.0], [0.0, 0.0]])


def test_whiten_without_shift_keeps_the_mean():
    # -1 + 2 = 1, 1 + 2 = 3
    values, mask = tensor([[0.0, 4.0, 7.0]]), tensor([[True, True, False]])
    close(losses.whiten(values, mask, shift=False), [[1.0, 3.0, 0.0]])


@pytest.mark.parametrize("shift", [True, False])
def test_whiten_of_a_constant_is_finite(shift):
    values = torch.full((2, 3), 0.1)
    expected = 0.0 if shift else 0.1
    whitened = losses.whiten(values, torch.ones(2, 3, dtype=torch.bool), shift=shift)
    close(whitened, [[expected] * 3] * 2)


def test_whiten_of_nothing_is_zero():
    close(losses.whiten(tensor([[NAN]]), tensor([[False]]), shift=True), [[0.0]])


def test_sft_loss_is_the_mean_over_the_tokens_of_the_whole_step():
    # (1 + 2 + 3) / 3 = 2, in one part or in two
    whole = losses.sft_loss(tensor([-1.0, -2.0, -3.0]), num_tokens=3)
    parts = [losses.sft_loss(tensor(p), num_tokens=3) for p in ([-1.0], [-2.0, -3.0])]
    close(whole, 2.0)
    close(sum(parts), 2.0)


def test_sft_loss_without_tokens_is_zero():
    close(losses.sft_loss(torch.zeros(0), num_tokens=0), 0.0)


def preference(scores_a, scores_b, prob_a, weight=None):
    weights = weight or [1.0] * len(prob_a)
    return losses.preference_loss(
        tensor(scores_a),
        tensor(scores_b),
        prob_a_P=tensor(prob_a),
        weight_P=tensor(weights),
        total_weight=sum(weights),
    )


def test_preference_loss_on_a_hard_label():
    # margin ln 3, s(ln 3) = 3/4, -ln 3/4 = 0.287682
    close(preference([math.log(3)], [0.0], [1.0]), 0.287682)


def test_preference_loss_on_a_soft_label():
    # -(1/2 ln 3/4 + 1/2 ln 1/4) = (0.287682 + 1.386294) / 2 = 0.836988
    close(preference([math.log(3)], [0.0], [0.5]), 0.836988)


def test_preference_loss_is_a_weighted_mean():
    # (1 * 0.836988 + 3 * 0.287682) / 4 = 0.425009
    close(preference([math.log(3)] * 2, [0.0] * 2, [0.5, 1.0], [1.0, 3.0]), 0.425009)


def test_preference_loss_is_least_where_the_scores_say_the_label():
    # s(margin) = p at margin = ln(p / (1 - p)) = ln 3 for p = 3/4: the gradient is 0 there
    scores = tensor([math.log(3)], requires_grad=True)
    losses.preference_loss(
        scores, tensor([0.0]), prob_a_P=tensor([0.75]), weight_P=tensor([1.0]), total_weight=1.0
    ).backward()
    close(scores.grad, [0.0])


def test_swapping_both_sides_and_the_label_changes_nothing():
    torch.testing.assert_close(preference([0.3], [1.1], [0.2]), preference([1.1], [0.3], [0.8]))


def test_a_pair_twice_with_half_the_weight_is_the_same():
    once = preference([0.3, 0.9], [1.1, 0.2], [0.2, 0.6])
    twice = preference([0.3, 0.3, 0.9], [1.1, 1.1, 0.2], [0.2, 0.2, 0.6], [0.5, 0.5, 1.0])
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", 0.5),  # -1 - (-1.5)
        ("k2", 0.125),  # 0.5^2 / 2
        ("k3", 0.106531),  # exp(-0.5) - 1 + 0.5
    ],
)
def test_kl_estimates(estimator, expected):
    close(losses.kl_estimate(tensor(-1.0), tensor(-1.5), estimator=estimator), expected)


def test_k3_stays_finite_where_the_ratio_explodes():
    assert losses.kl_estimate(tensor(-900.0), tensor(-1.0), estimator="k3").isfinite()


def test_an_unknown_kl_estimator_is_named():
    with pytest.raises(ValueError, match="'k4': one of k1, k2, k3"):
        losses.kl_estimate(tensor(0.0), tensor(0.0), estimator="k4")


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased(estimator):
    # Two categorical distributions: the expectation under the first is the sum itself.
    policy = tensor([0.5, 0.3, 0.2]).log()
    reference = tensor([0.2, 0.2, 0.6]).log()
    exact = (policy.exp() * (policy - reference)).sum()
    estimate = (policy.exp() * losses.kl_estimate(policy, reference, estimator=estimator)).sum()
    torch.testing.assert_close(estimate, exact)


def test_kl_loss():
    # k2: (0.5^2 + 1^2) / 2 = 0.625, over 5 tokens of the whole step
    # k3: exp(-0.5) - 1 + 0.5 = 0.106531 and exp(1) - 1 - 1 = 0.718282, over 5
    now, reference = tensor([-1.0, -3.0]), tensor([-1.5, -2.0])
    close(losses.kl_loss(now, reference, estimator="k2", num_tokens=5), 0.125)
    close(losses.kl_loss(now, reference, estimator="k3", num_tokens=5), 0.1649624)


def slow_kl(logits, other):
    """KL of one softmax to another, and that one's to it."""
    p, q = ([math.exp(x) / sum(map(math.exp, each)) for x in each] for each in (logits, other))
    return [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in ((p, q), (q, p))
    ]


def test_in_the_loss_k2_follows_the_kl_k3_its_reverse_and_k1_nothing():
    # The expectation over sampled tokens is a sum over the vocabulary with constant weights;
    # central differences of the exact KL are what it is compared with.
    start, other = [0.4, -0.3, 1.1, 0.0], [-0.5, 0.2, 0.3, 0.7]
    reference = tensor(other).log_softmax(0)

    def gradient(estimator):
        logits = tensor(start, requires_grad=True)
        logp = logits.log_softmax(0)
        kl = losses.kl_estimate(logp, reference, estimator=estimator)
        return torch.autograd.grad((logp.detach().exp() * kl).sum(), logits)[0]

    def differences(which):
        step = 1e-5
        moved = [
            [[x + sign * step * (i == k) for i, x in enumerate(start)] for sign in (1, -1)]
            for k in range(len(start))
        ]
        return [
            (slow_kl(up, other)[which] - slow_kl(down, other)[which]) / (2 * step)
            for up, down in moved
        ]

    close(gradient("k1"), [0.0] * 4)
    close(gradient("k2"), differences(0))
    close(gradient("k3"), differences(1))
    assert max(abs(a - b) for a, b in zip(differences(0), differences(1), strict=True)) > 0.01


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (12.0, 0.102),  # error 1 is held at 0.2: 0.1 * (1 + 0.2 * 32 / 320)
        (5.4, 0.099),  # error -0.1: 0.1 * (1 - 0.1 * 32 / 320)
        (-3.0, 0.098),  # error -1.5 is held at -0.2: 0.1 * (1 - 0.2 * 32 / 320)
        (6.0, 0.1),
    ],
)
def test_adaptive_kl_coefficient(kl, expected):
    found = losses.adaptive_kl_coef(0.1, kl=kl, target=6.0, num_responses=32, horizon=320)
    assert found == pytest.approx(expected, abs=1e-12)


def test_only_unfinished_responses_pay_the_penalty():
    scores = losses.penalised_scores(tensor([1.0, 2.0]), tensor([True, False]), penalty=0.5)
    close(scores, [1.0, 1.5])


def test_token_rewards():
    # row 0: -0.1 * 1, -0.1 * 2, -0.1 * -1 + 2; row 1: -0.1 * 0.5 - 1 at its only token
    kl = tensor([[1.0, 2.0, -1.0], [0.5, NAN, NAN]])
    mask = tensor([[True, True, True], [True, False, False]])
    rewards = losses.token_rewards(tensor([2.0, -1.0]), kl, mask, kl_coef=0.1)
    close(rewards, [[-0.1, -0.2, 2.1], [-1.05, 0.0, 0.0]])


def test_an_empty_response_has_no_reward():
    mask = tensor([[False, False], [True, False]])
    rewards = losses.token_rewards(tensor([9.0, 1.0]), torch.zeros(2, 2), mask, kl_coef=0.1)
    close(rewards, [[0.0, 0.0], [1.0, 0.0]])


def test_gae():
    # t=2: 1 - 0.1 = 0.9
    # t=1: 0 + 0.9 * 0.1 - 0.2 = -0.11, -0.11 + 0.45 * 0.9 = 0.295
    # t=0: 0 + 0.9 * 0.2 - 0.5 = -0.32, -0.32 + 0.45 * 0.295 = -0.18725
    found = losses.gae(
        tensor([[0.0, 0.0, 1.0, 7.0]]),
        tensor([[0.5, 0.2, 0.1, NAN]]),
        tensor([[True, True, True, False]]),
        final_values_B=tensor([0.0]),
        discount=0.9,
        gae_lambda=0.5,
    )
    close(found.advantages_BT, [[-0.18725, 0.295, 0.9, 0.0]])
    close(found.returns_BT, [[0.31275, 0.495, 1.0, 0.0]])


def test_gae_goes_on_from_a_value_where_a_response_was_cut():
    # Row 0 as above, but nothing is paid at the end and the state after it is worth 0.6:
    # t=2: 0 + 0.9 * 0.6 - 0.1 = 0.44
    # t=1: -0.11 + 0.45 * 0.44 = 0.088
    # t=0: -0.32 + 0.45 * 0.088 = -0.2804
    # Row 1 has one token: 0.9 * -1 - 0.3 = -1.2; row 2 has none.
    found = losses.gae(
        tensor([[0.0, 0.0, 0.0, NAN], [0.0, NAN, NAN, NAN], [NAN] * 4]),
        tensor([[0.5, 0.2, 0.1, NAN], [0.3, NAN, NAN, NAN], [NAN] * 4]),
        tensor([[True, True, True, False], [True, False, False, False], [False] * 4]),
        final_values_B=tensor([0.6, -1.0, 5.0]),
        discount=0.9,
        gae_lambda=0.5,
    )
    close(found.advantages_BT, [[-0.2804, 0.088, 0.44, 0], [-1.2, 0, 0, 0], [0, 0, 0, 0]])
    close(found.returns_BT, [[0.2196, 0.288, 0.54, 0], [-0.9, 0, 0, 0], [0, 0, 0, 0]])


def test_gae_with_lambda_one_gives_whole_returns():
    found = losses.gae(
        tensor([[0.5, -0.25, 1.0]]),
        torch.rand(1, 3, generator=torch.Generator().manual_seed(0)),
        torch.ones(1, 3, dtype=torch.bool),
        final_values_B=tensor([0.0]),
        discount=1.0,
        gae_lambda=1.0,
    )
    # 0.5 - 0.25 + 1, -0.25 + 1, 1
    close(found.returns_BT, [[1.25, 0.75, 1.0]])


def test_policy_loss():
    # A=1, r=1.5: max(-1.5, -1.2) = -1.2 (clipped); A=-1, r=1.5: max(1.5, 1.2) = 1.5
    # A=1, r=0.5: max(-0.5, -0.8) = -0.5; A=-1, r=0.5: max(0.5, 0.8) = 0.8 (clipped)
    # (-1.2 + 1.5 - 0.5 + 0.8) / 4 = 0.15
    ratio = tensor([1.5, 1.5, 0.5, 0.5])
    found = losses.policy_loss(
        ratio.log(),
        torch.zeros(4),
        tensor([1.0, -1.0, 1.0, -1.0]),
        clip_ratio=0.2,
        num_tokens=4,
    )
    close(found.loss, 0.15)
    assert found.clipped_N.tolist() == [True, False, False, True]
    close(found.ratio_N, ratio.tolist())
    # ln(1.5)^2 / 2 = 0.082202, ln(0.5)^2 / 2 = 0.240227
    close(found.approx_kl_N, [0.082202, 0.082202, 0.240227, 0.240227])


def test_policy_loss_on_the_old_policy_is_minus_the_mean_advantage():
    logprobs, advantages = tensor([-1.0, -2.0]), tensor([0.5, 1.5])
    found = losses.policy_loss(logprobs, logprobs, advantages, clip_ratio=0.2, num_tokens=2)
    close(found.loss, -1.0)
    assert not found.clipped_N.any()


def test_value_loss():
    # V=1, old 0.5, R=0: held at 0.7, max(1, 0.49) = 1
    # V=0.6, old 0.5, R=1: not held, 0.16; V=1, old 0.5, R=1: held at 0.7, max(0, 0.09) = 0.09
    # (1 + 0.16 + 0.09) / 2 / 3 = 0.208333
    found = losses.value_loss(
        tensor([1.0, 0.6, 1.0]),
        tensor([0.5, 0.5, 0.5]),
        tensor([0.0, 1.0, 1.0]),
        value_clip=0.2,
        num_tokens=3,
    )
    close(found.loss, 0.2083333)
    # The held value counts where it is further off: in the last one only.
    assert found.clipped_N.tolist() == [False, False, True]


def test_explained_variance():
    # returns 1 and 3 have variance 1; what is left, 0 and 1, has 0.25
    mask = tensor([True, True, False])
    found = losses.explained_variance(tensor([1.0, 2.0, NAN]), tensor([1.0, 3.0, NAN]), mask)
    close(found, 0.75)


def test_explained_variance_of_constant_returns_is_zero():
    mask = torch.ones(2, dtype=torch.bool)
    close(losses.explained_variance(tensor([0.0, 1.0]), tensor([2.0, 2.0]), mask), 0.0)


# The rest of the file checks against plain Python loops, written from the papers.


def slow_rewards(score, kl, length, kl_coef):
    rewards = [-kl_coef * kl[t] for t in range(length)]
    if length:
        rewards[-1] += score
    return rewards


def slow_gae(rewards, values, final_value, discount, gae_lambda):
    """A_t as the explicit sum over delta (Schulman et al. 2016, eq. 16)."""
    length = len(rewards)
    states = [*values, final_value]
    deltas = [rewards[t] + discount * states[t + 1] - states[t] for t in range(length)]
    return [
        sum((discount * gae_lambda) ** (k - t) * deltas[k] for k in range(t, length))
        for t in range(length)
    ]


def slow_ppo(new, old, advantages, values, old_values, returns, clip):
    policy = value = 0.0
    for n, o, a, v, ov, r in zip(new, old, advantages, values, old_values, returns, strict=True):
        ratio = math.exp(n - o)
        policy -= min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        held = min(max(v, ov - clip), ov + clip)
        value += 0.5 * max((v - r) ** 2, (held - r) ** 2)
    return policy / len(new), value / len(new)


@pytest.mark.parametrize("seed", range(20))
def test_a_whole_round_agrees_with_plain_loops(seed):
    rng = random.Random(seed)
    lengths = [rng.randrange(0, 7) for _ in range(5)] + [6]
    mask = torch.arange(6)[None] < tensor(lengths)[:, None]

    def grid(scale):
        rows = [[rng.gauss(0, scale) for _ in range(6)] for _ in lengths]
        return tensor(rows).masked_fill(~mask, NAN)

    kl, values = grid(0.5), grid(1.0)
    scores = tensor([rng.gauss(0, 1) for _ in lengths])
    rewards = losses.token_rewards(scores, kl, mask, kl_coef=0.3)
    final = [rng.choice([0.0, rng.gauss(0, 1)]) for _ in lengths]
    found = losses.gae(
        rewards, values, mask, final_values_B=tensor(final), discount=0.97, gae_lambda=0.9
    )
    for row, length in enumerate(lengths):
        slow = slow_rewards(float(scores[row]), kl[row].tolist(), length, 0.3)
        close(rewards[row, :length], slow)
        close(
            found.advantages_BT[row, :length],
            slow_gae(slow, values[row, :length].tolist(), final[row], 0.97, 0.9),
        )
        assert not found.advantages_BT[row, length:].any()
    old, new, new_values = grid(0.5)[mask], grid(0.5)[mask], grid(1.0)[mask]
    advantages = found.advantages_BT[mask]
    returns = found.returns_BT[mask]
    policy = losses.policy_loss(new, old, advantages, clip_ratio=0.2, num_tokens=sum(lengths)).loss
    value = losses.value_loss(
        new_values, values[mask], returns, value_clip=0.2, num_tokens=sum(lengths)
    ).loss
    columns = (new, old, advantages, new_values, values[mask], returns)
    slow_policy, slow_value = slow_ppo(*(c.tolist() for c in columns), 0.2)
    close(policy, slow_policy)
    close(value, slow_value)


@pytest.mark.parametrize("seed", range(5))
def test_whitening_agrees_with_plain_loops(seed):
    rng = random.Random(seed)
    values = [[rng.gauss(1, 2) for _ in range(4)] for _ in range(3)]
    mask = [[rng.random() < 0.7 for _ in range(4)] for _ in range(2)] + [[True] * 4]
    kept = [
        v
        for row, keep in zip(values, mask, strict=True)
        for v, k in zip(row, keep, strict=True)
        if k
    ]
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept))
    expected = [
        [(v - mean) / std if k else 0.0 for v, k in zip(row, keep, strict=True)]
        for row, keep in zip(values, mask, strict=True)
    ]
    close(losses.whiten(tensor(values), tensor(mask), shift=True), expected)


def test_affine_fit_by_hand() -> None:
    # Points (0, 1), (1, 3), (2, 5): slope 2, intercept 1; the masked point is far off.
    values = torch.tensor([0.0, 1.0, 2.0, 9.0])
    targets = torch.tensor([1.0, 3.0, 5.0, -50.0])
    mask = torch.tensor([True, True, True, False])
    line = losses.affine_fit(values, targets, mask)
    assert line.scale == pytest.approx(2.0)
    assert line.shift == pytest.approx(1.0)
    # A falling line keeps only the mean: (1 + 3 + 5) / 3.
    falling = losses.affine_fit(-values, targets, mask)
    assert falling.scale == 0.0
    assert falling.shift == pytest.approx(3.0)
    constant = losses.affine_fit(torch.ones(4), targets, mask)
    assert (constant.scale, constant.shift) == (0.0, pytest.approx(3.0))
