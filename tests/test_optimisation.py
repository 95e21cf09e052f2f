import pytest
import torch
from torch import nn

from cai.optimisation import NonFiniteError, adamw, apply_update, warmup_factor
from tests.tiny import optimizer


def test_warm_up_is_linear_then_constant():
    # 20 % of 10 steps: half the rate in the first, all of it from the second on
    factors = [warmup_factor(step, total_steps=10, warmup_frac=0.2) for step in range(1, 5)]
    assert factors == [0.5, 1.0, 1.0, 1.0]
    assert warmup_factor(1, total_steps=10, warmup_frac=0.0) == 1.0
    assert warmup_factor(-3, total_steps=10, warmup_frac=0.2) == 0.0


def update(parameter, config, loss=1.0, step=1):
    adam = adamw([parameter], config=config, eps=1e-8)
    norm = apply_update(
        adam, torch.tensor(loss), config=config, stage="sl_policy", step=step, total_steps=10
    )
    return adam, norm


def test_a_step_follows_the_gradient_and_clears_it():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -4.0])
    adam, norm = update(parameter, optimizer(0.1))
    assert norm == pytest.approx(5.0)  # sqrt(9 + 16)
    # Adam's first step is the learning rate times the sign.
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1]))
    assert parameter.grad is None
    assert adam.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_reaches_the_weights(bad):
    for loss, grad in ((bad, 1.0), (1.0, bad)):
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.tensor([grad, 1.0])
        with pytest.raises(NonFiniteError, match=r"sl_policy, step 7: .*not finite.*learning rate"):
            update(parameter, optimizer(), loss=loss, step=7)
        assert torch.equal(parameter.detach(), torch.ones(2))


def test_groups_have_their_own_learning_rates_and_frozen_parameters_are_left_out():
    policy, value = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    adam = adamw(
        [policy, frozen],
        config=optimizer(0.1),
        eps=1e-5,
        others=[value],
        others_learning_rate=0.2,
    )
    assert [(g["params"], g["lr"]) for g in adam.param_groups] == [([policy], 0.1), ([value], 0.2)]


def two_groups(grad=3.0):
    policy, value = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    policy.grad, value.grad = torch.tensor([grad]), torch.tensor([4.0])
    config = optimizer(0.1, max_grad_norm=1.0)
    adam = adamw([policy], config=config, eps=1e-8, others=[value], others_learning_rate=0.2)
    return policy, value, config, adam


@pytest.mark.parametrize(
    ("apart", "clipped"),
    # 3 and 4 have the norm 5 together; by themselves each is brought to 1.
    [(False, (0.6, 0.8)), (True, (1.0, 1.0))],
)
def test_networks_that_share_nothing_can_be_clipped_apart(apart, clipped, monkeypatch):
    policy, value, config, adam = two_groups()
    seen = []
    monkeypatch.setattr(adam, "step", lambda: seen.extend([float(policy.grad), float(value.grad)]))
    norm = apply_update(
        adam,
        torch.tensor(1.0),
        config=config,
        stage="policy",
        step=1,
        total_steps=10,
        clip_apart=apart,
    )
    assert norm == pytest.approx(5.0)
    assert seen == pytest.approx(clipped, abs=1e-5)


def test_a_group_that_waits_has_a_warm_up_of_its_own():
    _, _, config, adam = two_groups()
    config.warmup_frac = 0.5
    rates = []
    for step in range(1, 11):
        apply_update(
            adam,
            torch.tensor(1.0),
            config=config,
            stage="policy",
            step=step,
            total_steps=10,
            delay=6,
        )
        rates.append([group["lr"] for group in adam.param_groups])
    # Half of 4 steps after 6 that it waits; half of 10 steps.
    assert [policy for policy, _ in rates] == pytest.approx([0.0] * 6 + [0.05, 0.1, 0.1, 0.1])
    assert [value for _, value in rates] == pytest.approx([0.04, 0.08, 0.12, 0.16] + [0.2] * 6)
