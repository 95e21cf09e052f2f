"""Trainings of all weights: the invariants that the tests of adapters prove, over copies."""

import pytest
import torch

from cai import adapters, faults
from cai.adapters import same_adapter
from cai.checkpoints import checkpoint_path
from cai.faults import InjectedFaultError
from cai.full_weights import FullCopies
from cai.heads import ScoreHead
from cai.training import train_ppo, train_preference_model, train_sft
from tests.test_training import NUM_STEPS, assert_same_bits, train
from tests.tiny import (
    EOS_ID,
    Sampler,
    hardware,
    pair_examples,
    pm_config,
    ppo_config,
    ppo_setup,
    sft_examples,
    sl_config,
    tiny_model,
    token_score,
)

STAGES = list(NUM_STEPS)
OTHER_STEP = {"sl_policy": 3, "preference_model": 4, "dpo_policy": 2, "policy": 7}
"""Where each is stopped: between checkpoints, PPO in the middle of a round."""


def attached(adapter="policy", dtype=torch.float32) -> FullCopies:
    return adapters.attach(tiny_model(dtype=dtype), None, adapter=adapter, seed=1)


def ppo(work_dir, config, *, dtype=torch.float32, micro_batch_size=4):
    model, value = ppo_setup(0, dtype, trained=None)
    steps = {}
    train_ppo(
        model,
        value=value,
        policy_adapter="policy",
        reference_adapter="reference",
        score=token_score(model),
        sample=Sampler(model, config),
        config=config,
        seed=0,
        hardware=hardware(micro_batch_size),
        work_dir=work_dir,
        on_step=steps.__setitem__,
        on_rollout=lambda iteration, batch: None,
        pad_id=EOS_ID,
        stage="policy",
    )
    return model, steps


def sft(work_dir, *, learning_rate=1e-3, micro_batch_size=4, dtype=torch.float32, **changes):
    model = attached(dtype=dtype)
    reported = {}
    train_sft(
        model,
        sft_examples(),
        adapter="policy",
        config=sl_config(learning_rate, **changes),
        seed=0,
        hardware=hardware(micro_batch_size),
        work_dir=work_dir,
        on_step=reported.__setitem__,
        stage="sl_policy",
    )
    return model, reported


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for stage in STAGES:
        reported, folder = {}, tmp_path_factory.mktemp(stage)
        weights = train(stage, folder, reported.__setitem__, trained=None)
        results[stage] = weights, reported, folder
    return results


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(uninterrupted, stage, tmp_path, monkeypatch):
    expected, metrics, _ = uninterrupted[stage]
    reported = {}
    monkeypatch.setenv("CAI_FAULT", f"{stage}:step={OTHER_STEP[stage]}:raise")
    faults._passed.clear()
    with pytest.raises(InjectedFaultError):
        train(stage, tmp_path, reported.__setitem__, trained=None)
    monkeypatch.delenv("CAI_FAULT")
    assert_same_bits(expected, train(stage, tmp_path, reported.__setitem__, trained=None))
    assert reported == metrics


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_one_role_and_neither_the_base_nor_frozen_roles(uninterrupted, stage):
    _, _, folder = uninterrupted[stage]
    state = torch.load(checkpoint_path(folder, NUM_STEPS[stage]), weights_only=True)["state_dict"]
    role = "preference" if stage == "preference_model" else "policy"
    theirs = {name for name in state if "head.linear" not in name}
    assert theirs == {f"model.copies.{role}.{n}" for n, _ in tiny_model().named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls_and_the_base_keeps_its_bits(tmp_path, dtype):
    model, reported = sft(
        tmp_path, learning_rate=5e-3, dtype=dtype, num_epochs=8, batch_size=10, checkpoint_every=100
    )
    assert reported[8]["train/loss"] < 0.8 * reported[1]["train/loss"]
    for name, weight in tiny_model(dtype=dtype).named_parameters():
        assert torch.equal(weight, model.get_base_model().get_parameter(name))
    moved = dict(model.copies["policy"].named_parameters())
    assert not any(torch.equal(w.float(), moved[n]) for n, w in model.base.named_parameters())


def test_a_learning_rate_of_zero_changes_nothing(tmp_path):
    model, _ = sft(tmp_path, learning_rate=0.0)
    untrained = weights(attached())
    assert all(torch.equal(weight, untrained[name]) for name, weight in weights(model).items())


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    one, *others = (sft(tmp_path / str(size), micro_batch_size=size) for size in (1, 3, 4))
    for other in others:
        for step, metrics in one[1].items():
            assert other[1][step] == pytest.approx(metrics, abs=1e-4)
        found = weights(other[0])
        for name, weight in weights(one[0]).items():
            torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-4)


def test_a_preference_model_learns_all_weights_of_its_trunk(tmp_path):
    model = attached("preference")
    head = ScoreHead(32, seed=2)
    before = weights(model)
    train_preference_model(
        model,
        head,
        pair_examples(),
        adapter="preference",
        config=pm_config(),
        seed=0,
        hardware=hardware(4),
        work_dir=tmp_path,
        on_step=lambda step, metrics: None,
        stage="preference_model",
    )
    moved = {n for n, weight in weights(model).items() if not torch.equal(weight, before[n])}
    assert moved == {n for n in before if n.startswith("copies.preference.")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ppo_starts_at_the_reference_with_ratio_one(tmp_path, dtype):
    config = ppo_config(num_iterations=1, ppo_epochs=1, num_minibatches=1, temperature=0.7)
    _, steps = ppo(tmp_path, config, dtype=dtype)
    assert steps[1]["objective/kl"] == 0.0
    assert steps[1]["val/ratio"] == 1.0
    assert steps[1]["val/ratio_var"] == 0.0
    # The sampler's copy is rounded to the base's format.
    assert steps[1]["val/sampler_gap"] < (1e-5 if dtype == torch.float32 else 0.2)


def test_ppo_changes_the_policy_and_nothing_else_and_samples_from_it(tmp_path):
    before = weights(ppo_setup(trained=None)[0])
    model, steps = ppo(tmp_path, ppo_config(num_iterations=3))
    moved = {n for n, weight in weights(model).items() if not torch.equal(weight, before[n])}
    assert moved == {n for n in before if n.startswith("copies.policy.")}
    assert steps[2]["objective/kl"] != 0.0
    # A sampler that was not refreshed would be far from the policy that learned.
    assert all(metrics["val/sampler_gap"] < 1e-5 for metrics in steps.values())


def test_ppo_with_a_learning_rate_of_zero_changes_nothing(tmp_path):
    model, steps = ppo(tmp_path, ppo_config(0.0, num_iterations=2))
    assert same_adapter(model, "policy", "reference")
    before = weights(ppo_setup(trained=None)[0])
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    assert all(metrics["objective/kl"] == 0.0 for metrics in steps.values())
