"""What a device has, and how long a stage takes on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cai.artifacts import MANIFEST, Artifact
from cai.choices import Precision, Strategy
from cai.context import StageResult, StageStatus
from cai.errors import ConfigError
from cai.model_config import LoRAConfig
from cai.sizes import device, memory, scene
from cai.sizes.scaling import scaling_text
from cai.sizes.scene import check_layers
from cai.sizes.seconds import Clock, stated_seconds
from cai.sizes.texts import Texts
from cai.sizes.work import (
    Scene,
    Trained,
    Work,
    forward_operations,
    learning_operations,
    work_of,
)
from tests.benchmarks.scaled import settings
from tests.sizes.test_memory import CPU, LORA, SMOLLM2
from tests.tiny import hardware

TEXTS = Texts(
    prompt_mean=40.0, prompt_longest=60, context=2048, response=48, people=0, critique_request=100,
    revision_request=20,
)  # fmt: skip
SCENE = Scene(
    place=CPU,
    policy=Trained(shape=SMOLLM2, lora=LORA),
    preference=Trained(shape=SMOLLM2, lora=LORA),
    critique=SMOLLM2,
    judges=(),
    extra=memory.process_memory(CPU) + memory.base_memory([SMOLLM2], CPU),
    loading=memory.loading_memory(SMOLLM2, CPU),
    texts=TEXTS,
    micro_batch_size=4,
    spare=LORA,
)
IDENTITY = {"model": {"sha256": "a"}, "policy": "base"}


def sampling_key(new: int = 48, identity: dict[str, object] = IDENTITY) -> dict[str, object]:
    config = {"sampling": {"max_new_tokens": new, "shard_size": 14}, "per_prompt": 1}
    return {"version": 1, "config": config, "identity": identity}


def planned(new: int, num: int, name: str = "drafts") -> StageResult:
    return StageResult(
        name=name,
        artifact=Artifact(stage=name, digest="0" * 64, folder=Path("nowhere")),
        status=StageStatus.planned,
        seconds=0.0,
        counts={"responses": num},
        key=sampling_key(new),
    )


def test_the_memory_of_a_container_counts(tmp_path):
    root, group = tmp_path / "cgroup", tmp_path / "self"
    (root / "job" / "step").mkdir(parents=True)
    group.write_text("0::/job/step\n")
    (root / "job" / "memory.max").write_text("5000\n")
    (root / "job" / "step" / "memory.max").write_text("max\n")
    assert list(device._limits(group, root)) == [5000]
    assert list(device._limits(tmp_path / "none", tmp_path / "nothing")) == []


def test_stated_memory_stands_for_that_of_the_machine():
    assert device.device_memory(dataclasses.replace(hardware(), memory_gb=2.5)) == 2_500_000_000
    assert device.device_memory(hardware()) > 500_000_000
    assert device.place_of(hardware()).number_bytes == 4
    narrow = dataclasses.replace(hardware(), precision=Precision.bf16)
    assert device.place_of(narrow).number_bytes == 2


def test_sampling_takes_its_tokens_and_its_passes():
    work = work_of("drafts", sampling_key(), {"responses": 28}, SCENE)
    assert (work.read, work.written) == (28 * 40, 28 * 48)
    # two batches of 14, 48 passes each, over 134,515,008 weights of two bytes
    assert work.weight_bytes == 2 * 48 * 134_515_008 * 2
    # 2 per weight of the linear maps and the output layer, 4 A D L for half of 88 tokens
    per_token = 2 * 30 * 3_538_944 + 2 * 576 * 49_152 + 4 * 30 * 576 * 44
    assert work.operations == 28 * 88 * per_token


def test_another_policy_than_the_base_has_a_merged_copy():
    base = work_of("responses", sampling_key(), {"responses": 14}, SCENE)
    tuned = sampling_key(identity=IDENTITY | {"policy": "sl_cai"})
    policy = work_of("responses", tuned, {"responses": 14}, SCENE)
    merged = memory.merged_memory(SMOLLM2, LORA, CPU).copies
    assert policy.memory.copies - base.memory.copies == merged


def test_a_stage_without_a_model_has_no_size():
    key = {"version": 1, "config": {"counts": {}}, "identity": {}}
    assert work_of("prompts", key, {"prompts": 3}, SCENE) is None


def test_stated_seconds_are_operations_and_bytes_over_speeds():
    stated = dataclasses.replace(hardware(), teraflops=0.5, gb_per_second=2.0)
    work = Work(memory=memory.Memory(), operations=1e12, weight_bytes=4e9)
    assert stated_seconds(work, stated) == pytest.approx(2.0 + 2.0)


def clock(store: Path) -> Clock:
    return Clock(store=store, scene=SCENE, hardware=hardware(), precision="bfloat16")


def ran(store: Path, name: str, key: dict[str, object], *, num: int, seconds: float) -> None:
    folder = store / name / f"{num}-{seconds}"
    folder.mkdir(parents=True)
    manifest = {
        "key": key,
        "expected": {"responses": num},
        "seconds": seconds,
        "continued": False,
        "precision": "bfloat16",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_stage_that_ran_here_is_scaled_by_its_tokens(tmp_path):
    fresh = clock(tmp_path).seconds(planned(48, 28))
    assert not fresh.measured
    ran(tmp_path, "drafts", sampling_key(48), num=28, seconds=10.0)
    again = clock(tmp_path).seconds(planned(48, 28))
    assert (again.value, again.measured) == (pytest.approx(10.0), True)
    assert clock(tmp_path).seconds(planned(96, 28)).value > 15
    assert clock(tmp_path).seconds(planned(48, 56)).value == pytest.approx(20.0)


def test_a_stage_that_never_ran_has_the_speed_of_others_and_says_so(tmp_path):
    ran(tmp_path, "drafts", sampling_key(48), num=28, seconds=10.0)
    other = clock(tmp_path).seconds(planned(48, 28, "pairs"))
    assert (other.value, other.measured) == (pytest.approx(10.0), False)


def test_another_model_tells_nothing_about_this_one(tmp_path):
    elsewhere = sampling_key(48, IDENTITY | {"model": {"sha256": "b"}})
    before = clock(tmp_path).seconds(planned(48, 28))
    ran(tmp_path, "drafts", elsewhere, num=28, seconds=1000.0)
    assert clock(tmp_path).seconds(planned(48, 28)) == before


@pytest.mark.parametrize(
    "typed", ["hardware.strategy=fsdp", "hardware.activation_checkpointing=true"]
)
def test_a_model_whose_layers_nobody_knows_is_refused(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["phase=rlaif", "constitution=medical", "hardware=cpu_ddp"]
    check_layers(settings([*arguments, typed]))
    monkeypatch.setattr(
        scene, "shape_of_model", lambda model: dataclasses.replace(SMOLLM2, names_layers=False)
    )
    check_layers(settings(arguments))
    with pytest.raises(ConfigError, match=r"Type: hardware.strategy=ddp hardware.activation_c"):
        check_layers(settings([*arguments, typed]))


@pytest.mark.parametrize(("trained", "passes"), [(LORA, 2), (None, 3)])
def test_layers_that_are_computed_again_take_one_more_forward_pass(
    trained: LoRAConfig | None, passes: int
) -> None:
    again = dataclasses.replace(CPU, checkpointing=True)
    forward = forward_operations(SMOLLM2, 1000.0, 100.0)
    one = Trained(shape=SMOLLM2, lora=trained)
    assert learning_operations(one, CPU, 1000.0, 100.0) == passes * forward
    assert learning_operations(one, again, 1000.0, 100.0) == (passes + 1) * forward


def test_a_place_knows_how_weights_and_activations_are_held():
    alone = device.place_of(hardware())
    assert (alone.shares, alone.checkpointing) == (1, False)
    split = dataclasses.replace(
        hardware(), strategy=Strategy.fsdp, devices=4, num_nodes=2, activation_checkpointing=True
    )
    assert (device.place_of(split).shares, device.place_of(split).checkpointing) == (8, True)


def test_the_table_of_published_models_marks_what_does_not_fit():
    text = scaling_text(devices=(1, 8), memory_gb=80.0, micro_batch_size=1, length=1024, rank=16)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:-2]]
    assert len(rows) == 3 * 2 * 2
    seen = {tuple(row[:3]): row[3:] for row in rows}
    assert seen["Llama-3.1-70B-Instruct", "all weights", "SFT"][0].startswith("(")
    one, eight = seen["Llama-3.1-8B-Instruct", "LoRA 16", "SFT"]
    assert float(eight) < float(one) < 80
    assert "predicted, never run" in text
