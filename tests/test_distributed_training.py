"""Training on several ranks is the training of one process: same curve, same weights.

Ranks are forked gloo processes; the measured differences are those of sums in another order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cai import adapters, optimisation, split_weights
from cai.checkpoints import checkpoint_path
from cai.choices import KLControl, KLEstimator, KLPlace, Strategy
from cai.model_config import LoRAConfig
from cai.split_weights import SplitWeights
from cai.training import train_dpo, train_ppo, train_preference_model, train_sft
from tests.ranks import on_ranks
from tests.runs import Finished, run, tiny_arguments
from tests.tiny import (
    EOS_ID,
    LORA,
    Sampler,
    dpo_config,
    dpo_setup,
    hardware,
    own_value,
    pair_examples,
    pm_config,
    ppo_config,
    ppo_setup,
    preference_head,
    sft_examples,
    sl_config,
    tiny_model,
    token_score,
)

TOLERANCE = 1e-5
_held: dict[str, Any] = {}
"""How weights and activations are held in the forks to come."""
Trained = tuple[dict[int, dict[str, float]], list[torch.Tensor]]
"""Metrics by step, and everything that could have changed."""


def common(work_dir: Path, stage: str, micro_batch_size: int) -> tuple[dict[str, Any], dict]:
    reported: dict[int, dict[str, float]] = {}
    arguments = {
        "hardware": dataclasses.replace(hardware(micro_batch_size), **_held),
        "work_dir": work_dir,
        "on_step": reported.__setitem__,
        "stage": stage,
        "seed": 3,
    }
    return arguments, reported


def sft(
    work_dir: Path,
    *,
    num: int = 10,
    micro: int = 2,
    learning_rate: float = 1e-3,
    trained: LoRAConfig | None = LORA,
) -> Trained:
    model = adapters.attach(tiny_model(), trained, adapter="policy", seed=1)
    arguments, reported = common(work_dir, "sl_policy", micro)
    config = sl_config(learning_rate)
    train_sft(model, sft_examples(num), adapter="policy", config=config, **arguments)
    return reported, [p.detach() for p in model.parameters()]


def preference(
    work_dir: Path, *, num: int = 10, micro: int = 4, trained: LoRAConfig | None = LORA
) -> Trained:
    model = adapters.attach(tiny_model(), trained, adapter="preference", seed=1)
    head = preference_head(2)
    arguments, reported = common(work_dir, "preference_model", micro)
    pairs = pair_examples(num)
    train_preference_model(
        model, head, pairs, adapter="preference", config=pm_config(), **arguments
    )
    return reported, [p.detach() for p in (*model.parameters(), *head.parameters())]


def dpo(
    work_dir: Path, *, num: int = 10, micro: int = 4, trained: LoRAConfig | None = LORA
) -> Trained:
    model = dpo_setup(trained=trained)
    arguments, reported = common(work_dir, "dpo_policy", micro)
    train_dpo(
        model,
        pair_examples(num),
        policy_adapter="policy",
        reference_adapter="reference",
        config=dpo_config(),
        **arguments,
    )
    return reported, [p.detach() for p in model.parameters()]


def ppo(
    work_dir: Path,
    *,
    own: bool = False,
    micro: int = 2,
    trained: LoRAConfig | None = LORA,
    **changes: object,
) -> Trained:
    model, value = ppo_setup(trained=trained)
    if own:
        value = own_value(model)
    arguments, reported = common(work_dir, "policy", micro)
    config = ppo_config(**changes)
    train_ppo(
        model,
        value=value,
        policy_adapter="policy",
        reference_adapter="reference",
        score=token_score(model),
        sample=Sampler(model, config),
        config=config,
        on_rollout=lambda iteration, batch: None,
        pad_id=EOS_ID,
        **arguments,
    )
    return reported, [p.detach() for p in (*model.parameters(), *value.head.parameters())]


CASES: dict[str, Callable[[Path], Trained]] = {
    "sft": sft,
    "sft, last batches uneven": lambda folder: sft(folder, num=7),
    "sft, fewer examples than ranks": lambda folder: sft(folder, num=1),
    "sft, micro-batches larger than a rank's part": lambda folder: sft(folder, micro=64),
    "preference model": preference,
    "preference model, uneven": lambda folder: preference(folder, num=5),
    "dpo": dpo,
    "dpo, uneven": lambda folder: dpo(folder, num=5),
    "ppo": ppo,
    "ppo, adaptive KL and whitened rewards": lambda folder: ppo(
        folder, kl_control=KLControl.adaptive, kl_target=0.5, whiten_rewards=True
    ),
    "ppo, own value adapter after a warm-up": lambda folder: ppo(
        folder, own=True, value_warmup_iterations=1
    ),
    "ppo, KL in the loss, one micro-batch": lambda folder: ppo(
        folder, kl_where=KLPlace.loss, kl_estimator=KLEstimator.k3, micro=64
    ),
    "ppo, five rollouts": lambda folder: ppo(folder, rollouts_per_iteration=5),
    "sft, all weights": lambda folder: sft(folder, trained=None),
    "preference model, all weights": lambda folder: preference(folder, trained=None),
    "dpo, all weights": lambda folder: dpo(folder, trained=None),
    "ppo, all weights": lambda folder: ppo(folder, trained=None),
    "ppo, all weights, own value after a warm-up": lambda folder: ppo(
        folder, trained=None, own=True, value_warmup_iterations=1
    ),
}


def furthest(one: Trained, other: Trained) -> float:
    """Largest difference of a metric or of a weight; metrics above 1 relative to their size."""
    assert list(one[0]) == list(other[0])
    gaps = [
        abs(value - other[0][step][name]) / max(1.0, abs(value))
        for step, metrics in one[0].items()
        for name, value in metrics.items()
    ]
    assert all(list(one[0][step]) == list(other[0][step]) for step in one[0])
    gaps += [float((a - b).abs().max()) for a, b in zip(one[1], other[1], strict=True)]
    return max(gaps)


HELD: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, layers computed again": {"activation_checkpointing": True},
    "in parts": {"strategy": Strategy.fsdp},
    "in parts, layers computed again": {
        "strategy": Strategy.fsdp,
        "activation_checkpointing": True,
    },
}


@contextlib.contextmanager
def held(way: str) -> Iterator[None]:
    """Have trainings hold weights and activations in another way."""
    _held.update(HELD[way])
    try:
        yield
    finally:
        _held.clear()


@pytest.mark.parametrize("way", HELD)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process(case: str, way: str, tmp_path: Path) -> None:
    train = CASES[case]
    (alone,) = on_ranks(1, lambda: train(tmp_path / "alone"))
    with held(way):
        both = on_ranks(2, lambda: train(tmp_path / "both"))
    assert furthest(alone, both[0]) < TOLERANCE
    assert both[0][0] == both[1][0]
    assert all(torch.equal(a, b) for a, b in zip(both[0][1], both[1][1], strict=True))


@pytest.mark.parametrize("trained", [LORA, None])
def test_weights_in_parts_give_their_memory_back(
    trained: LoRAConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step is reported a rank has its half, and all weights when training is over."""

    def sizes() -> tuple[int, int, int]:
        model = adapters.attach(tiny_model(), trained, adapter="policy", seed=1)
        split = [p for name, p in model.named_parameters() if ".lora_" not in name]
        halves: list[int] = []
        made = split_weights.SplitWeights.__init__

        def remember(self: SplitWeights, *given: Any) -> None:
            made(self, *given)
            found = self.twins["model"].named_parameters()
            halves.extend(
                p.to_local().numel() for name, p in found if isinstance(p, split_weights.DTensor)
            )

        monkeypatch.setattr(split_weights.SplitWeights, "__init__", remember)
        during: list[int] = []
        arguments, _ = common(tmp_path, "sl_policy", 2)
        arguments["on_step"] = lambda step, metrics: during.append(held_bytes(split))
        train_sft(model, sft_examples(4), adapter="policy", config=sl_config(), **arguments)
        assert len(during) == 2
        return max(during), sum(halves), held_bytes(split)

    def held_bytes(parameters: list[torch.Tensor]) -> int:
        return sum(parameter.untyped_storage().nbytes() for parameter in parameters)

    with held("in parts"):
        found = on_ranks(2, sizes)
    model = tiny_model()
    numbers = sum(p.numel() for p in model.parameters())
    copies = 1 if trained else 2  # the base, and the copy that learns
    for during, _, after in found:
        assert during == 0
        assert after == 4 * numbers * copies
    assert sum(halves for _, halves, _ in found) == numbers


def test_layers_are_computed_again_on_the_way_back(tmp_path: Path) -> None:
    model = adapters.attach(tiny_model(), LORA, adapter="policy", seed=1)
    calls: list[bool] = []
    layer = model.get_base_model().model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(True))

    def passes(way: str) -> int:
        calls.clear()
        arguments, _ = common(tmp_path / way, "sl_policy", 2)
        arguments["hardware"] = dataclasses.replace(arguments["hardware"], **HELD[way])
        train_sft(model, sft_examples(4), adapter="policy", config=sl_config(), **arguments)
        return len(calls)

    once = passes("whole")
    assert once > 0
    assert passes("whole, layers computed again") == 2 * once


def test_three_ranks_train_as_one_process(tmp_path: Path) -> None:
    (alone,) = on_ranks(1, lambda: ppo(tmp_path / "alone"))
    assert furthest(alone, on_ranks(3, lambda: ppo(tmp_path / "all"))[2]) < TOLERANCE
    with held("in parts"):
        assert furthest(alone, on_ranks(3, lambda: ppo(tmp_path / "split"))[2]) < TOLERANCE


@pytest.mark.parametrize("case", ["sft", "preference model", "dpo"])
def test_without_the_sum_of_gradients_ranks_part(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone,) = on_ranks(1, lambda: CASES[case](tmp_path / "alone"))
    monkeypatch.setattr(optimisation, "sum_gradients", lambda parameters: None)
    both = on_ranks(2, lambda: CASES[case](tmp_path / "both"))
    assert furthest(alone, both[0]) > 10 * TOLERANCE


def test_a_learning_rate_of_0_changes_nothing(tmp_path: Path) -> None:
    fresh = adapters.attach(tiny_model(), LORA, adapter="policy", seed=1)
    _, weights = on_ranks(2, lambda: sft(tmp_path, learning_rate=0.0))[1]
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), weights, strict=True))


def stopped(folder: Path, num_steps: int) -> None:
    """Make a finished training one that was stopped after some of its steps."""
    for path in folder.glob("step-*"):
        if int(path.name[5:13]) > num_steps:
            path.unlink()
    assert checkpoint_path(folder, num_steps).is_file()


PARTS = "in parts"
GOES_ON = [
    ((1, "whole"), (2, "whole")),
    ((2, "whole"), (1, "whole")),
    ((2, "whole"), (3, "whole")),
    ((2, PARTS), (1, "whole")),
    ((1, "whole"), (2, PARTS)),
    ((2, PARTS), (3, PARTS)),
]


@pytest.mark.parametrize(("before", "after"), GOES_ON)
@pytest.mark.parametrize(
    ("case", "num_steps"),
    [("sft", 4), ("dpo", 4), ("ppo", 3), ("sft, all weights", 4), ("ppo, all weights", 3)],
)
def test_another_number_of_ranks_goes_on(
    case: str, num_steps: int, before: tuple[int, str], after: tuple[int, str], tmp_path: Path
) -> None:
    train = CASES[case]
    (alone,) = on_ranks(1, lambda: train(tmp_path / "alone"))
    folder = tmp_path / "both"
    with held(before[1]):
        on_ranks(before[0], lambda: train(folder))
    stopped(folder, num_steps)
    with held(after[1]):
        reported, weights = on_ranks(after[0], lambda: train(folder))[-1]
    assert min(reported) == num_steps + 1
    rest = {step: metrics for step, metrics in alone[0].items() if step > num_steps}
    assert furthest((rest, alone[1]), (reported, weights)) < TOLERANCE


def test_what_is_not_finite_is_the_same_error_everywhere(tmp_path: Path) -> None:
    def body() -> str:
        try:
            sft(tmp_path, learning_rate=math.nan)
        except Exception as error:
            return str(error)
        return "no error"

    assert len(set(on_ranks(2, body))) == 1


DOWNSTREAM = (
    "policy",
    "responses",
    "likelihoods",
    "base_likelihoods",
    "capability",
    "evaluation",
    "contrast_responses",
    "over_refusal",
    "principle_scores",
    "matches",
)
"""Stages that read weights of PPO, whose last bits depend on the order of sums."""
BOTH = ("hardware=cpu_ddp", "hardware.precision=fp32")
SPLIT = ("hardware.strategy=fsdp", "hardware.activation_checkpointing=true")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tmp_path_factory.mktemp("alone"), *tiny_arguments(tiny_folder))


@pytest.fixture(scope="module", params=[(), SPLIT], ids=["whole", "in parts"])
def together(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    folder = tmp_path_factory.mktemp("together")
    arguments = [a for a in tiny_arguments(tiny_folder) if not a.startswith("hardware.")]
    return run(folder, *arguments, *BOTH, *request.param, OMP_NUM_THREADS="1")


def stage_folders(finished: Finished) -> dict[str, Path]:
    root = finished.folder / "outputs" / "store"
    return {
        str(path.parent.relative_to(root)): path.parent for path in root.glob("*/*/manifest.json")
    }


def test_a_whole_run_of_two_processes_is_that_of_one(alone: Finished, together: Finished) -> None:
    assert (alone.code, together.code) == (0, 0), together.output
    one, other = stage_folders(alone), stage_folders(together)
    assert sorted(one) == sorted(other)  # digests do not know how many there were
    for name, folder in one.items():
        for path in folder.rglob("*"):
            same = other[name] / path.relative_to(folder)
            assert same.is_file() == path.is_file(), path
            if path.suffix == ".jsonl" and not name.startswith(DOWNSTREAM):
                assert path.read_bytes() == same.read_bytes(), path
            if path.name == "adapter_model.safetensors":
                weights, others = load_file(path), load_file(same)
                gap = max(float((weights[key] - others[key]).abs().max()) for key in weights)
                assert gap < TOLERANCE, (path, gap)
    manifests = [json.loads((path / "manifest.json").read_text()) for path in other.values()]
    assert {manifest["processes"] for manifest in manifests} == {2}


def test_a_run_of_two_processes_tells_its_story_once(together: Finished) -> None:
    assert together.output.count("RLAIF under the constitution medical") == 1
    assert len(together.run_dirs()) == 1
    lines = (together.run_dirs()[0] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [(row["group"], row["step"]) for row in rows if row["kind"] == "metrics"]
    assert len(steps) == len(set(steps)) > 0
    assert [row["kind"] for row in rows].count("exit") == 1
    assert together.output.count("policy: 2/2 rounds") == 1


def test_the_bar_of_what_the_reference_says_counts_all_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    on_ranks(2, lambda: CASES["dpo, uneven"](tmp_path))
    assert capfd.readouterr().err.count("reference log-probabilities: 5/5 pairs") == 1


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_run_goes_on_with_another_number_of_processes(
    first: str, alone: Finished, tiny_folder: Path, tmp_path: Path
) -> None:
    one = tiny_arguments(tiny_folder)
    two = [a for a in one if not a.startswith("hardware.")] + list(BOTH)
    before, after = (one, two) if first == "one" else (two, one)
    cut = run(tmp_path, *before, fault="policy:checkpoint=1:kill", OMP_NUM_THREADS="1")
    assert cut.code != 0
    gone_on = run(tmp_path, *after, OMP_NUM_THREADS="1")
    assert gone_on.code == 0, gone_on.output
    assert gone_on.statuses()["policy"] == ["continued"]
    assert gone_on.statuses()["preference_model"] == ["reused"]
    (folder,) = (tmp_path / "outputs" / "store" / "policy").glob("*/adapter")
    (expected,) = (alone.folder / "outputs" / "store" / "policy").glob("*/adapter")
    found = load_file(folder / "adapter_model.safetensors")
    weights = load_file(expected / "adapter_model.safetensors")
    assert max(float((weights[key] - found[key]).abs().max()) for key in weights) < TOLERANCE
