"""The probe's maths: kernel, optimum, folds, the choice of weights, calibration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cai.choices import Gate, LabelMode
from cai.feedback.fit import FAINT, Examples, calibrate, fit
from cai.feedback.probe import Kernel, folds_of, solve
from cai.feedback.tuned import FOLDS, PROBE, Probe
from cai.feedback_config import TunedConfig


def config(**changes: object) -> TunedConfig:
    values = {
        "method": "tuned",
        "model": None,
        "label": LabelMode.soft,
        "clamp": 0.4,
        "gate": Gate.off,
        "comparisons": None,
        "max_comparisons": None,
        "comparison_weights": [1.0],
        "num_folds": 4,
        "max_length": 64,
        "depths": [1.0],
        "penalty": 0.1,
        "by_principle": 1.0,
    }
    return TunedConfig(**(values | changes))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def examples(num: int, *, sign: torch.Tensor | None = None, seed: int = 0) -> Examples:
    """Pairs whose better response is further along a direction; `sign` turns some around."""
    direction = random(6, seed=99)
    step = torch.ones(num, 1, dtype=torch.float64) if sign is None else sign[:, None]
    return Examples(
        differences=step * direction + 0.3 * random(num, 6, seed=seed + 1),
        principles=random(num, 5, seed=seed + 3),
        is_test=torch.ones(num, dtype=torch.bool),
        is_general=torch.zeros(num, dtype=torch.bool),
        keys=[f"k{seed}-{i}" for i in range(num)],
        groups=[f"g{seed}-{i}" for i in range(num)],
    )


def test_one_pair_by_hand() -> None:
    # The optimum of log(1 + exp(-k a)) + p/2 k a^2 solves a = sigmoid(-k a) / p; for k = 2 and
    # p = 0.5 that is a = 2 / (1 + exp(2 a)), and by bisection 0.521298.
    kernel = torch.tensor([[2.0]], dtype=torch.float64)
    (alpha,) = solve(kernel, torch.ones(1, dtype=torch.float64), penalty=0.5)
    assert float(alpha) == pytest.approx(0.521298, abs=1e-6)


def test_the_optimum_is_that_of_an_independent_slow_solver() -> None:
    features = random(12, 4)
    weights = torch.tensor([1.0, 0.5, 2.0] * 4, dtype=torch.float64)
    alpha = solve(features @ features.T / 4, weights, penalty=0.3)
    direction = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([direction], max_iter=500, line_search_fn="strong_wolfe",
                                tolerance_grad=1e-12, tolerance_change=1e-14)  # fmt: skip

    def loss() -> torch.Tensor:
        descent.zero_grad()
        # alpha' K alpha is |w|^2 for w = features' alpha / sqrt(4).
        margins = features @ direction / 2
        value = (weights * functional.softplus(-margins)).sum() + 0.15 * direction.square().sum()
        value.backward()
        return value

    descent.step(loss)
    assert torch.allclose(features.T @ alpha / 2, direction.detach(), atol=1e-6)


def test_rows_of_weight_zero_are_not_trained_on() -> None:
    features = random(8, 3)
    kernel = features @ features.T
    weights = torch.tensor([1.0] * 6 + [0.0] * 2, dtype=torch.float64)
    alpha = solve(kernel, weights, penalty=1.0)
    assert alpha[6:].tolist() == [0.0, 0.0]
    alone = solve(kernel[:6, :6], weights[:6], penalty=1.0)
    assert torch.allclose(alpha[:6], alone)


def test_nothing_to_train_on_is_a_probe_without_an_opinion() -> None:
    kernel = torch.eye(3, dtype=torch.float64)
    assert solve(kernel, torch.zeros(3, dtype=torch.float64), penalty=1.0).tolist() == [0.0] * 3


def test_the_direction_may_turn_around_with_the_principle() -> None:
    sign = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)
    made = examples(40, sign=sign)
    principles = torch.where(sign[:, None] > 0, 1.0, -1.0).double() * random(1, 5, seed=7)
    made = dataclasses.replace(made, principles=principles)
    plain = fit(made, config(by_principle=0.0)).margins
    gated = fit(made, config()).margins
    assert float((gated > 0).double().mean()) > 0.95
    assert float((plain > 0).double().mean()) < 0.8


def test_a_held_out_margin_does_not_know_its_own_label() -> None:
    made = examples(20)
    before = fit(made, config()).probe
    turned = dataclasses.replace(
        made, differences=torch.cat([-made.differences[:1], made.differences[1:]])
    )
    after = fit(turned, config()).probe
    assert before.folds["k0-0"] == 0
    ratio = after.alphas[0] @ _row(after, made) / (before.alphas[0] @ _row(before, made))
    assert float(ratio) == pytest.approx(1.0)
    assert not torch.allclose(after.alphas[-1], before.alphas[-1])


def _row(probe: Probe, made: Examples) -> torch.Tensor:
    """Kernel between the training pairs and the first pair as `made` has it."""
    kernel = Kernel.of(probe.differences, probe.principles, by_principle=probe.by_principle)
    return kernel(made.differences[:1], made.principles[:1])[0]


def test_comparisons_that_contradict_the_tests_are_left_out() -> None:
    tests = examples(24, seed=0)
    others = examples(60, sign=-torch.ones(60, dtype=torch.float64), seed=50)
    friends = examples(60, seed=50)

    def mixed(extra: Examples) -> Examples:
        joined = {
            name: torch.cat([getattr(tests, name), getattr(extra, name)])
            for name in ("differences", "principles")
        }
        return Examples(
            **joined,
            is_test=torch.arange(84) < 24,
            is_general=torch.arange(84) >= 24,
            keys=[*tests.keys, *extra.keys],
            groups=[*tests.groups, *extra.groups],
        )

    settings = config(comparison_weights=[1.0, 0.0], by_principle=0.0)
    against = fit(mixed(others), settings)
    assert set(against.comparison_weights) == {0.0}
    assert float((against.margins[:24] > 0).double().mean()) > 0.9
    assert set(fit(mixed(friends), settings).comparison_weights) == {1.0}


def test_groups_share_a_fold() -> None:
    assert folds_of(["a", "b", "a", "c", "d"], num_folds=2) == [0, 1, 0, 0, 1]


def test_calibration_by_hand() -> None:
    # Three pairs right and one wrong, all with margin 1: sigmoid(c) = 3/4, so c = log 3.
    margins = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    assert calibrate(margins) == pytest.approx(math.log(3), abs=1e-9)
    assert calibrate(-margins) == pytest.approx(FAINT, abs=1e-9)


def test_saved_probe_gives_the_same_values(tmp_path: Path) -> None:
    made = examples(16)
    halved = {
        name: getattr(made, name).half().double() for name in ("differences", "principles")
    }  # as the stage stores what was read
    probe = fit(dataclasses.replace(made, **halved), config()).probe
    probe.save(tmp_path)
    loaded = Probe.load(tmp_path / PROBE, tmp_path / FOLDS)
    arguments = (made.differences, made.principles, [-1] * 16)
    assert torch.equal(loaded.values(*arguments), probe.values(*arguments))
    assert loaded.folds == probe.folds


def test_a_search_that_begins_near_the_optimum_ends_at_it() -> None:
    features = random(12, 4)
    kernel, weights = features @ features.T / 4, torch.ones(12, dtype=torch.float64)
    cold = solve(kernel, weights, penalty=0.3)
    warm = solve(kernel, weights, penalty=0.3, start=cold + 0.05 * random(12, seed=3))
    assert torch.allclose(warm, cold, atol=1e-6)


def test_the_kernel_by_hand() -> None:
    # Columns 3, sqrt(41) and 1, 1 have mean squares 25 and 1: features are divided by 5 and 1.
    differences = torch.tensor([[3.0, 1.0], [41**0.5, 1.0]], dtype=torch.float64)
    principles = torch.tensor([[1.0], [3.0]], dtype=torch.float64)  # centred unit: -1 and 1
    kernel = Kernel.of(differences, principles, by_principle=0.5)
    asked = torch.tensor([[10.0, 2.0]], dtype=torch.float64)
    same = (10 / 5 * 3 / 5 + 2) / 2
    other = (10 / 5 * 41**0.5 / 5 + 2) / 2
    found = kernel(asked, torch.tensor([[1.5]], dtype=torch.float64))[0]
    assert found.tolist() == pytest.approx([same * 1.5, other * 0.5], abs=1e-5)
