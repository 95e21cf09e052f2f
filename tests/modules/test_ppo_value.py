"""The value function: an adapter of its own, and rounds in which only it learns."""

import itertools

import pytest
import torch

from cai.adapters import parameters_of, same_adapter
from cai.checkpoints import checkpoint_path
from cai.choices import KLControl
from tests.modules.test_ppo import train
from tests.tiny import KINDS, Sampler, own_value, ppo_config, ppo_setup

PLACES = ["shared", "own"]


def made(place, trained=KINDS["lora"]):
    model, value = ppo_setup(trained=trained)
    return model, value if place == "shared" else own_value(model)


def copies(model, value):
    """Policy, value adapter and value head."""
    groups = (
        parameters_of(model, "policy"),
        parameters_of(model, value.adapter) if value.adapter != "policy" else [],
        value.head.parameters(),
    )
    return [[p.detach().clone() for p in group] for group in groups]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def after_one_round(tmp_path, place, **changes):
    """What one round of two passes made of policy, value adapter and value head."""
    model, value = made(place)
    train(tmp_path, config=ppo_config(num_iterations=1, **changes), setup=(model, value))
    return copies(model, value)


def test_the_value_loss_moves_the_policy_only_through_a_shared_adapter(tmp_path):
    # A gradient norm of 1e-3 is always clipped, so a norm in common would show too.
    settings = {"optimizer": ppo_config().optimizer}
    settings["optimizer"].max_grad_norm = 1e-3
    for place in PLACES:
        policy, _, head = after_one_round(tmp_path / place, place, **settings)
        other_policy, _, other_head = after_one_round(
            tmp_path / f"{place}_other", place, value_coef=5.0, value_clip=5.0, **settings
        )
        assert same(policy, other_policy) == (place == "own")
        assert not same(head, other_head)


def test_the_policy_loss_never_moves_an_own_value_adapter(tmp_path):
    settings = {"optimizer": ppo_config().optimizer}
    settings["optimizer"].max_grad_norm = 1e-3
    policy, *values = after_one_round(tmp_path / "one", "own", **settings)
    other_policy, *other_values = after_one_round(
        tmp_path / "other", "own", clip_ratio=1e-4, **settings
    )
    assert not same(policy, other_policy)
    for one, other in zip(values, other_values, strict=True):
        assert same(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_own_value_function_learn_and_nothing_else_does(tmp_path, kind):
    model, value = made("own", KINDS[kind])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    _, _, steps, _ = train(tmp_path, config=ppo_config(num_iterations=2), setup=(model, value))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    learns = {id(p) for role in ("policy", "value") for p in parameters_of(model, role)}
    assert moved == {n for n, p in model.named_parameters() if id(p) in learns}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(metrics["policy/grad_norm"] > 0 for metrics in steps.values())


def test_a_learning_rate_of_zero_leaves_both(tmp_path):
    model, value = made("own")
    train(tmp_path, config=ppo_config(0.0, num_iterations=2), setup=(model, value))
    assert same_adapter(model, "policy", "reference")
    assert same_adapter(model, "value", "preference")


def test_an_own_value_adapter_takes_the_memory_of_one_adapter():
    model, _ = ppo_setup()
    places = {n: p.data_ptr() for n, p in model.named_parameters()}
    own_value(model)
    added = {n: p for n, p in model.named_parameters() if n not in places}
    assert all(p.data_ptr() == places[n] for n, p in model.named_parameters() if n in places)
    size = sum(p.numel() for p in parameters_of(model, "preference"))
    assert sum(p.numel() for p in added.values()) == size


def test_checkpoints_hold_policy_value_adapter_and_head(tmp_path):
    train(tmp_path, config=ppo_config(num_iterations=1), setup=made("own"))
    state = torch.load(checkpoint_path(tmp_path, 1), weights_only=True)["state_dict"]
    kinds = {
        next(part for part in ("policy", "value_head", "value") if f".{part}." in f".{name}")
        for name in state
    }
    assert kinds == {"policy", "value", "value_head"}


def test_micro_batches_change_nothing_with_an_own_value_adapter(tmp_path):
    one, other = (
        train(
            tmp_path / str(size),
            config=ppo_config(num_iterations=2),
            micro_batch_size=size,
            setup=made("own"),
        )
        for size in (1, 8)
    )
    for step, metrics in one[2].items():
        assert other[2][step] == pytest.approx(metrics, abs=1e-3, rel=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_in_warm_up_rounds_only_the_value_function_learns(tmp_path, place):
    model, value = made(place)
    config = ppo_config(
        num_iterations=4,
        ppo_epochs=1,
        value_warmup_iterations=2,
        kl_control=KLControl.adaptive,
        kl_target=0.01,
        kl_horizon=8,
    )
    config.optimizer.warmup_frac = 0.5
    plain, seen = Sampler(model, config), []

    def sample(iteration):
        seen.append((same_adapter(model, "policy", "reference"), copies(model, value)))
        return plain(iteration)

    _, _, steps, _ = train(tmp_path, config=config, setup=(model, value), sample=sample)
    assert [untouched for untouched, _ in seen] == [True, True, True, False]
    for (_, one), (_, other) in itertools.pairwise(seen):
        assert not same(one[2], other[2])  # the head
        assert not one[1] or not same(one[1], other[1])  # its adapter
    for step in (1, 2):
        assert steps[step]["val/ratio"] == 1.0
        assert steps[step]["val/ratio_var"] == 0.0
        assert steps[step]["loss/policy_avg"] == 0.0
        assert steps[step]["loss/value_avg"] > 0
        assert steps[step]["policy/learning_rate"] == 0.0
    for step in (1, 2, 3):
        assert steps[step]["objective/kl"] == 0.0
    assert steps[3]["val/ratio_var"] > 0
    assert steps[4]["objective/kl"] != 0.0
    # Four steps are left to the policy, two a round, and half of them are its own warm-up.
    assert steps[3]["policy/learning_rate"] == pytest.approx(1e-3)
    # The warm-up left nothing in the policy's moments either.
    (adam,) = torch.load(checkpoint_path(tmp_path, 4), weights_only=True)["optimizer_states"]
    counts = [
        {int(adam["state"][index]["step"]) for index in group["params"]}
        for group in adam["param_groups"]
    ]
    assert counts == [{4}, {8}]
    # A KL that cannot but be 0 says nothing to the controller: 0.05 * (1 - 0.2) after round 3.
    coefs = [steps[step]["objective/kl_coef"] for step in (1, 2, 3, 4)]
    assert coefs == pytest.approx([0.05, 0.05, 0.05, 0.04])


@pytest.mark.parametrize("place", PLACES)
def test_in_warm_up_the_value_function_comes_to_explain_the_returns(tmp_path, place):
    model, value = made(place)
    config = ppo_config(num_iterations=9, value_warmup_iterations=8, value_learning_rate=1e-2)
    plain = Sampler(model, config)
    # The policy stands still, so the same prompts and streams give the same responses.
    _, _, steps, rollouts = train(
        tmp_path, config=config, setup=(model, value), sample=lambda iteration: plain(0)
    )
    assert torch.equal(rollouts[0].ids_BS, rollouts[8].ids_BS)
    gained = steps[9]["val/explained_variance"] - steps[1]["val/explained_variance"]
    assert gained > (0.8 if place == "own" else 0.4)
