"""Truncated importance weights: by hand, in exact expectation, and inside PPO."""

# ruff: noqa: N806

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cai import losses
from cai.choices import KLEstimator, KLPlace, SamplerCorrection
from cai.rollout import Sampled
from cai.sampler_gap import gap_metrics, importance_weights, sampler_logprobs
from cai.training_config import PPOConfig
from tests.modules.test_ppo import train
from tests.tiny import Sampler, ppo_config, ppo_setup

OLD = torch.tensor([[0.5, 0.25, 0.1], [0.8, 0.3, 1.0]]).log()
SAID = torch.tensor([[0.25, 0.5, 0.1], [0.1, 0.3, 1.0]]).log()
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_weights_are_the_ratio_up_to_the_cap_and_1_where_the_laws_agree() -> None:
    found = importance_weights(ppo_config(sampler_ratio_cap=3.0), OLD, SAID, MASK)
    assert torch.allclose(found, torch.tensor([[2.0, 0.5, 1.0], [3.0, 1.0, 0.0]]))
    off = ppo_config(sampler_correction=SamplerCorrection.none)
    assert importance_weights(off, OLD, SAID, MASK).tolist() == MASK.float().tolist()
    unknown_BT = sampler_logprobs([None, (-1.0, -2.0)], MASK)
    assert unknown_BT.tolist()[1] == [-1.0, -2.0, 0.0]
    assert unknown_BT[0].isnan().all()
    found = importance_weights(ppo_config(), OLD, unknown_BT, MASK)
    assert found[0].tolist() == [1.0, 1.0, 1.0]
    assert found[1, 1] == pytest.approx(min(0.3 * math.exp(2.0), 2.0))


def test_a_weight_has_no_gradient_and_stays_finite() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = losses.sampler_weights(logprobs, torch.tensor([-9999.0, -math.inf]), cap=2.0)
    assert found.tolist() == [2.0, 2.0]
    assert not found.requires_grad


def test_the_gap_in_numbers() -> None:
    found = gap_metrics(OLD, SAID, MASK, cap=3.0)
    # Rows: |ln 2 - ln 2 + 0| / 3 = 0 and ln 8 / 2; ratios 2, 1/2, 1, 8 and 1, of which 8 is cut.
    assert found["val/sampler_gap"] == pytest.approx(math.log(8) / 4)
    assert found["val/sampler_ratio_max"] == pytest.approx(8.0)
    assert found["val/sampler_truncated"] == pytest.approx(1 / 5)
    weights = [2.0, 0.5, 1.0, 3.0, 1.0]
    share = sum(weights) ** 2 / (5 * sum(w * w for w in weights))
    assert found["val/sampler_ess"] == pytest.approx(share)
    kl = sum(r - 1 - math.log(r) for r in (2.0, 0.5, 1.0, 8.0, 1.0)) / 5
    assert found["val/sampler_kl"] == pytest.approx(kl)
    agree = gap_metrics(OLD, OLD, MASK, cap=2.0)
    assert agree["val/sampler_ess"] == agree["val/sampler_ratio_max"] == 1.0
    assert (
        agree["val/sampler_gap"] == agree["val/sampler_kl"] == agree["val/sampler_truncated"] == 0
    )
    nothing = torch.full(MASK.shape, math.nan)
    assert gap_metrics(OLD, nothing, MASK, cap=2.0) == {}


def test_the_kl_is_that_of_the_two_laws() -> None:
    """One token each, every one as often as the sampler draws it: the estimate is exact."""
    sampler = torch.tensor([0.5, 0.25, 0.25]).double()
    trainer = torch.tensor([0.25, 0.25, 0.5]).double()
    often = [0, 0, 1, 2]
    rows = torch.tensor(often)[:, None]
    found = gap_metrics(
        trainer.log()[rows], sampler.log()[rows], torch.ones(4, 1, dtype=torch.bool), cap=2.0
    )
    exact = float((sampler * (sampler / trainer).log()).sum())
    assert found["val/sampler_kl"] == pytest.approx(exact)


def expected_gradient(law: torch.Tensor, weights: torch.Tensor, kl: bool) -> torch.Tensor:
    """Of the loss over all tokens of a vocabulary of 5, as often as `law` draws them."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0, -1.1]).double().requires_grad_()
    logprobs = logits.log_softmax(-1)
    reference = torch.tensor([0.1, 0.3, 0.2, 0.3, 0.1]).double().log()
    advantages = torch.tensor([1.0, -0.5, 2.0, 0.25, -1.5]).double()
    total = torch.zeros(()).double()
    for token in range(5):
        one = slice(token, token + 1)
        if kl:
            loss = losses.kl_loss(
                logprobs[one], reference[one], estimator="k2", num_tokens=1, weights_N=weights[one]
            )
        else:
            loss = losses.policy_loss(
                logprobs[one],
                logprobs[one].detach(),
                advantages[one],
                clip_ratio=0.2,
                num_tokens=1,
                weights_N=weights[one],
            ).loss
        total = total + law[token] * loss
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


@pytest.mark.parametrize("kl", [False, True])
def test_the_expected_gradient_of_a_biased_sampler_is_corrected(kl: bool) -> None:
    logits = torch.tensor([0.3, -0.2, 0.9, 0.0, -1.1]).double()
    bias = torch.tensor([0.8, -0.6, 0.0, -0.4, 0.5]).double()
    trained, sampler = logits.softmax(-1), (logits + bias).softmax(-1)
    ones = torch.ones(5).double()
    wanted = expected_gradient(trained, ones, kl)
    weights = losses.sampler_weights(trained.log(), sampler.log(), cap=100.0)
    assert torch.allclose(expected_gradient(sampler, weights, kl), wanted, atol=1e-12)
    plain_error = float((expected_gradient(sampler, ones, kl) - wanted).norm())
    assert plain_error > 0.05
    cut = losses.sampler_weights(trained.log(), sampler.log(), cap=1.5)
    assert 0 < float((expected_gradient(sampler, cut, kl) - wanted).norm()) < plain_error


class Shifted(Sampler):
    """Says of every token that it was less likely than it is, by the same factor."""

    factor = 1.5

    def __call__(self, iteration: int) -> list[Sampled]:
        less = math.log(self.factor)
        return [
            replace(one, logprobs=tuple(value - less for value in one.logprobs or ()))
            for one in super().__call__(iteration)
        ]


@pytest.mark.parametrize("where", [KLPlace.reward, KLPlace.loss])
@pytest.mark.parametrize(
    ("correction", "cap", "scale"),
    [
        (SamplerCorrection.truncated, 2.0, 1.5),
        (SamplerCorrection.truncated, 1.2, 1.2),
        (SamplerCorrection.none, 2.0, 1.0),
    ],
)
def test_ppo_weighs_what_the_policy_learns_from(
    tmp_path: Path, where: KLPlace, correction: SamplerCorrection, cap: float, scale: float
) -> None:
    def norm(config: PPOConfig, kind: type[Sampler], folder: str) -> dict[str, float]:
        setup = ppo_setup()
        sample = kind(setup[0], config)
        _, _, steps, _ = train(tmp_path / folder, config=config, setup=setup, sample=sample)
        return steps[1]

    config = ppo_config(
        0.0,
        num_iterations=1,
        value_coef=0.0,
        kl_where=where,
        kl_estimator=KLEstimator.k1 if where is KLPlace.reward else KLEstimator.k2,
        sampler_correction=correction,
        sampler_ratio_cap=cap,
    )
    plain, shifted = norm(config, Sampler, "plain"), norm(config, Shifted, "shifted")
    assert plain["policy/grad_norm"] > 0.01
    assert shifted["policy/grad_norm"] == pytest.approx(scale * plain["policy/grad_norm"], rel=1e-4)
    assert shifted["val/sampler_gap"] == pytest.approx(math.log(1.5), abs=1e-4)
    assert shifted["val/sampler_truncated"] == (1.0 if cap == 1.2 else 0.0)
    assert shifted["objective/scores"] == plain["objective/scores"]
