"""Four rounds are two, a stop and two more, bit for bit, under every setting with a state."""

import pytest
import torch

from cai import faults
from cai.choices import AtCut, KLControl, KLEstimator, KLPlace
from cai.faults import InjectedFaultError
from tests.modules.test_ppo import train
from tests.tiny import own_value, ppo_config, ppo_setup

SETTINGS = {
    "own": {
        "kl_where": KLPlace.loss,
        "kl_estimator": KLEstimator.k2,
        "kl_control": KLControl.adaptive,
        "kl_target": 0.5,
        "value_warmup_iterations": 1,
    },
    "shared": {
        "kl_control": KLControl.adaptive,
        "kl_target": 0.5,
        "at_cut": AtCut.bootstrap,
        "missing_eos_penalty": 0.0,
        "score_clip": 1.0,
        "value_warmup_iterations": 2,
    },
}


def trained(setting, work_dir, reported, rollouts):
    """Train; return everything that could have changed."""
    model, value = ppo_setup()
    if setting == "own":
        value = own_value(model)
    train(
        work_dir,
        config=ppo_config(**SETTINGS[setting]),
        micro_batch_size=3,
        setup=(model, value),
        reported=reported,
        rollouts=rollouts,
    )
    return [p.detach() for p in (*model.parameters(), *value.head.parameters())]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for setting in SETTINGS:
        reported, rollouts = {}, {}
        weights = trained(setting, tmp_path_factory.mktemp(setting), reported, rollouts)
        results[setting] = weights, reported, rollouts
    return results


@pytest.mark.parametrize("setting", SETTINGS)
# Four optimizer steps a round.
@pytest.mark.parametrize("point", ["checkpoint=2", "step=3", "step=10"])
def test_two_rounds_and_two_are_four(uninterrupted, setting, point, tmp_path, monkeypatch):
    weights, expected, expected_rollouts = uninterrupted[setting]
    reported, rollouts = {}, {}
    monkeypatch.setenv("CAI_FAULT", f"policy:{point}:raise")
    faults._passed.clear()
    with pytest.raises(InjectedFaultError):
        trained(setting, tmp_path, reported, rollouts)
    monkeypatch.delenv("CAI_FAULT")
    assert len(reported) == {"checkpoint=2": 2, "step=3": 0, "step=10": 2}[point]
    again = trained(setting, tmp_path, reported, rollouts)
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert reported == expected
    for iteration, batch in expected_rollouts.items():
        for name, found in vars_of(batch).items():
            other = vars_of(rollouts[iteration])[name]
            assert torch.equal(found, other) if isinstance(found, torch.Tensor) else found == other


def vars_of(batch):
    return {name: getattr(batch, name) for name in batch.__slots__}


def test_what_is_resumed_moves(uninterrupted):
    """Otherwise the tests above could not fail."""
    for setting, (_, reported, rollouts) in uninterrupted.items():
        coefs = [reported[step]["objective/kl_coef"] for step in (1, 2, 3, 4)]
        assert len(set(coefs)) > 1, setting
        assert [rollouts[n].values_fitted for n in range(4)] == [True, False, False, False]
        assert reported[3]["policy/learning_rate"] > reported[1]["policy/learning_rate"] == 0.0
