"""Exact resume, signals, silence: what Lightning alone does not give."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cai import adapters, faults
from cai.checkpoints import checkpoint_path
from cai.choices import KLControl
from cai.errors import Interrupted, UserError
from cai.faults import InjectedFaultError
from cai.heads import ScoreHead
from cai.training import train_dpo, train_ppo, train_preference_model, train_sft
from tests.tiny import (
    EOS_ID,
    LORA,
    Sampler,
    dpo_config,
    dpo_setup,
    hardware,
    lora,
    pair_examples,
    pm_config,
    ppo_config,
    ppo_setup,
    sft_examples,
    sl_config,
    tiny_model,
    token_score,
)

CURVES = Path(__file__).with_name("curves.json")
"""Metrics of every step, by stage; recorded by `python -m tests.curves`."""
NUM_STEPS = {"sl_policy": 6, "preference_model": 6, "dpo_policy": 6, "policy": 4}


def train(stage: str, work_dir: Path, on_step, *, trained=LORA) -> list[torch.Tensor]:
    """Train one stage on its tiny data; return everything that could have changed."""
    common = {"hardware": hardware(2), "work_dir": work_dir, "on_step": on_step, "stage": stage}
    if stage == "sl_policy":
        model = adapters.attach(tiny_model(), trained, adapter="policy", seed=1)
        train_sft(model, sft_examples(), adapter="policy", config=sl_config(), seed=3, **common)
        return [p.detach() for p in model.parameters()]
    if stage == "preference_model":
        model = adapters.attach(tiny_model(), trained, adapter="preference", seed=1)
        head = ScoreHead(32, seed=2)
        train_preference_model(
            model, head, pair_examples(), adapter="preference", config=pm_config(), seed=3, **common
        )
        return [p.detach() for p in (*model.parameters(), *head.parameters())]
    if stage == "dpo_policy":
        model = dpo_setup(trained=trained)
        train_dpo(
            model,
            pair_examples(),
            policy_adapter="policy",
            reference_adapter="reference",
            config=dpo_config(),
            seed=3,
            **common,
        )
        return [p.detach() for p in model.parameters()]
    model, value = ppo_setup(trained=trained)
    config = ppo_config(kl_control=KLControl.adaptive, kl_target=0.5)
    train_ppo(
        model,
        value=value,
        policy_adapter="policy",
        reference_adapter="reference",
        score=token_score(model),
        sample=Sampler(model, config),
        config=config,
        seed=3,
        on_rollout=lambda iteration, batch: None,
        pad_id=EOS_ID,
        **common,
    )
    return [p.detach() for p in (*model.parameters(), *value.head.parameters())]


STAGES = list(NUM_STEPS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    results = {}
    for stage in STAGES:
        reported = {}
        folder = tmp_path_factory.mktemp(stage)
        results[stage] = train(stage, folder, reported.__setitem__), reported, folder
    return results


def assert_same_bits(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_is_reported_once_with_its_absolute_number(uninterrupted, stage):
    _, reported, _ = uninterrupted[stage]
    assert list(reported) == list(range(1, NUM_STEPS[stage] + 1))


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_seed_gives_the_same_bits(uninterrupted, stage, tmp_path):
    weights, reported, _ = uninterrupted[stage]
    again = {}
    assert_same_bits(weights, train(stage, tmp_path, again.__setitem__))
    assert again == reported


@pytest.mark.parametrize("stage", STAGES)
def test_curves_are_those_on_record(uninterrupted, stage):
    _, reported, _ = uninterrupted[stage]
    expected = json.loads(CURVES.read_text("ascii"))[stage]
    assert [str(step) for step in reported] == list(expected)
    for step, metrics in reported.items():
        assert metrics == pytest.approx(expected[str(step)], rel=2e-3, abs=1e-4), f"step {step}"


POINTS = [
    *[("sl_policy", f"step={n}") for n in (1, 2, 3, 6)],
    *[("sl_policy", f"checkpoint={n}") for n in (1, 3)],
    *[("preference_model", f"step={n}") for n in (1, 4)],
    *[("preference_model", f"checkpoint={n}") for n in (2,)],
    *[("dpo_policy", f"step={n}") for n in (1, 4)],
    *[("dpo_policy", f"checkpoint={n}") for n in (1, 2)],
    # Four optimizer steps a round: in the middle of the first, second and last round.
    *[("policy", f"step={n}") for n in (2, 7, 8, 16)],
    *[("policy", f"checkpoint={n}") for n in (1, 4)],
]


@pytest.mark.parametrize(("stage", "point"), POINTS)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    uninterrupted, stage, point, tmp_path, monkeypatch
):
    weights, expected, _ = uninterrupted[stage]
    reported = {}
    monkeypatch.setenv("CAI_FAULT", f"{stage}:{point}:raise")
    faults._passed.clear()
    with pytest.raises(InjectedFaultError):
        train(stage, tmp_path, reported.__setitem__)
    monkeypatch.delenv("CAI_FAULT")
    before = dict(reported)
    assert_same_bits(weights, train(stage, tmp_path, reported.__setitem__))
    assert reported == expected
    assert {step: expected[step] for step in before} == before


SCRIPT = """
import sys
from pathlib import Path
from tests.test_training import train
train(sys.argv[1], Path(sys.argv[2]), lambda step, metrics: None)
"""


def test_killed_hard_it_goes_on_to_the_same_bits(uninterrupted, tmp_path):
    environment = os.environ | {"CAI_FAULT": "policy:step=11:kill", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, "policy", str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parent.parent,
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert checkpoint_path(tmp_path, 2).exists()
    reported = {}
    weights, expected, _ = uninterrupted["policy"]
    assert_same_bits(weights, train("policy", tmp_path, reported.__setitem__))
    assert reported == {step: expected[step] for step in (3, 4)}


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_run(uninterrupted, tmp_path, caplog):
    weights, expected, folder = uninterrupted["sl_policy"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray(checkpoint_path(tmp_path, 6).read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint_path(tmp_path, 6).write_bytes(data)
    reported = {}
    assert_same_bits(weights, train("sl_policy", tmp_path, reported.__setitem__))
    assert reported == {step: expected[step] for step in (5, 6)}
    assert "going back to the checkpoint before it" in caplog.text


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_training_is_only_read_back(uninterrupted, stage):
    weights, _, folder = uninterrupted[stage]
    reported = {}
    assert_same_bits(weights, train(stage, folder, reported.__setitem__))
    assert reported == {}


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_hold_what_is_trained_and_nothing_of_the_base(uninterrupted, stage):
    _, _, folder = uninterrupted[stage]
    path = checkpoint_path(folder, NUM_STEPS[stage])
    state = torch.load(path, weights_only=True)
    assert state["state_dict"]
    assert all("lora_" in name or "head" in name for name in state["state_dict"])
    trained = sum(tensor.numel() for tensor in state["state_dict"].values())
    # Weights and Adam's two moments, float32, and some names.
    assert path.stat().st_size < 3 * 4 * trained + 100_000
    assert len(list(folder.iterdir())) == 4  # two checkpoints and their hashes


def test_a_checkpoint_of_another_training_is_refused(uninterrupted, tmp_path):
    _, _, folder = uninterrupted["preference_model"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="is of another training"):
        train("sl_policy", tmp_path, lambda step, metrics: None)


def raiser(error):
    def on_step(step, metrics):
        if step == 3:
            raise error

    return on_step


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Interrupted(15), UserError("no"), SystemExit(4)]
)
def test_what_is_raised_inside_comes_out_as_itself(error, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(type(error)) as caught:
        train("sl_policy", tmp_path, raiser(error))
    assert str(caught.value) == str(error)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_our_signal_handlers_stay_in_force(number, tmp_path, uninterrupted):
    def stop(signum, frame):
        raise Interrupted(signum)

    def on_step(step, metrics):
        if step == 3:
            os.kill(os.getpid(), number)
        assert step <= 3

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Interrupted, match=str(int(number))):
            train("sl_policy", tmp_path, on_step)
    finally:
        signal.signal(number, before)
    weights, _, _ = uninterrupted["sl_policy"]
    assert_same_bits(weights, train("sl_policy", tmp_path, lambda step, metrics: None))


def test_sigterm_keeps_its_default(tmp_path):
    seen = []
    train("sl_policy", tmp_path, lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    assert set(seen) == {signal.SIG_DFL}


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setenv("CAI_FAULT", "sl_policy:step=3:enospc")
    faults._passed.clear()
    with pytest.raises(OSError, match="No space left"):
        train("sl_policy", tmp_path, lambda step, metrics: None)
    monkeypatch.delenv("CAI_FAULT")
    weights, _, _ = uninterrupted["sl_policy"]
    assert_same_bits(weights, train("sl_policy", tmp_path, lambda step, metrics: None))


def test_lightning_writes_nothing_of_its_own(tmp_path, monkeypatch, capfd, recwarn, caplog):
    monkeypatch.chdir(tmp_path)
    train("policy", tmp_path / "work", lambda step, metrics: None)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert capfd.readouterr() == ("", "")
    assert not caplog.text
    assert not [w for w in recwarn if "lightning" in str(w.filename)]


def test_training_leaves_the_callers_random_stream_and_adapter_alone(tmp_path):
    model = adapters.attach(tiny_model(), lora(), adapter="other", seed=1)
    adapters.add(model, lora(), "policy", 2)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = torch.get_rng_state()
    train_sft(
        model,
        sft_examples(),
        adapter="policy",
        config=sl_config(),
        seed=3,
        hardware=hardware(2),
        work_dir=tmp_path,
        on_step=lambda step, metrics: None,
        stage="sl_policy",
    )
    assert torch.equal(before, torch.get_rng_state())
    assert model.active_adapter == "other"
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
