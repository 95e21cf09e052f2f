from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cai import adapters
from cai.choices import EngineName
from cai.errors import UserError
from cai.model_config import EngineConfig, VLLMConfig
from cai.models import Models, base_identity, identity, role_key
from tests.tiny import LORA, hardware, local, scramble


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model, as a training stage saves it."""
    base = Models(hardware()).base(local(tiny_folder))
    tuned = adapters.attach(base.model, LORA, adapter="policy", seed=3)
    scramble(tuned, "policy", torch.Generator().manual_seed(3), scale=0.3)
    folder = tmp_path / "critic"
    adapters.save_adapter(
        tuned,
        "policy",
        folder,
        base_id=base.base_id,
        base_sha256=base.sha256,
        probe_ids=[5, 6, 7],
    )
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.tensor([[11, 12, 13, 14]])).logits[0, -1]


@pytest.mark.parametrize("probed", [True, False])
def test_the_adapter_is_merged_as_plain_peft_does(
    tiny_folder: Path, adapter: Path, probed: bool
) -> None:
    if not probed:
        (adapter / "cai.json").unlink()
    started = Models(hardware()).base(local(tiny_folder, start=str(adapter)))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), str(adapter)
    )
    assert torch.allclose(logits(started.model), logits(theirs), atol=1e-5)


def test_the_base_that_others_use_is_left_alone(tiny_folder: Path, adapter: Path) -> None:
    models = Models(hardware())
    base = models.base(local(tiny_folder))
    before = logits(base.model)
    started = models.base(local(tiny_folder, start=str(adapter)))
    assert torch.equal(logits(base.model), before)
    assert not torch.allclose(logits(started.model), before, atol=1e-3)
    assert models.base(local(tiny_folder)).model is base.model


def test_a_start_can_be_loaded_while_adapters_are_trained_on_the_base(
    tiny_folder: Path, adapter: Path
) -> None:
    alone = logits(Models(hardware()).base(local(tiny_folder, start=str(adapter))).model)
    models = Models(hardware())
    base = models.base(local(tiny_folder))
    plain = logits(base.model)
    tuned = adapters.attach(base.model, LORA, adapter="reference", seed=1)
    scramble(tuned, "reference", torch.Generator().manual_seed(1), scale=0.3)
    started = models.apart().base(local(tiny_folder, start=str(adapter)))
    apart = models.apart().base(local(tiny_folder))
    assert torch.equal(logits(started.model), alone)
    assert torch.equal(logits(apart.model), plain)
    assert not torch.allclose(logits(tuned), plain, atol=1e-3)
    own, others = apart.model.parameters(), base.model.state_dict().values()
    assert {p.data_ptr() for p in own} <= {tensor.data_ptr() for tensor in others}


def test_identity_follows_the_adapters_weights_and_needs_no_model(
    tiny_folder: Path, adapter: Path
) -> None:
    config = local(tiny_folder, start=str(adapter))
    before = identity(config)
    assert before != identity(local(tiny_folder)) == base_identity(config)
    assert role_key(config)["sha256"] == before
    moved = adapter.rename(adapter.with_name("elsewhere"))
    assert identity(local(tiny_folder, start=str(moved))) == before
    weights = moved / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert identity(local(tiny_folder, start=str(moved))) != before


def test_an_artifact_or_a_finished_run_stands_for_its_adapter(
    tiny_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    expected = identity(local(tiny_folder, start=str(adapter)))
    artifact = tmp_path / "store" / "critic" / "abc"
    artifact.mkdir(parents=True)
    adapter.rename(artifact / "adapter")
    assert identity(local(tiny_folder, start=str(artifact))) == expected
    (artifact / "manifest.json").write_text(json.dumps({"files": {}}))
    run = tmp_path / "critique_model" / "medical" / "now"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"start=.*the run was not finished: it has no manifest"):
        identity(local(tiny_folder, start=str(run)))
    manifest = {"status": "failed", "stages": [{"stage": "critic", "digest": "abc"}]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"not finished \(failed\)"):
        identity(local(tiny_folder, start=str(run)))
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "done"}))
    assert identity(local(tiny_folder, start=str(run))) == expected
    nothing = manifest | {"status": "done", "stages": [{"stage": "prompts", "digest": "1"}]}
    (run / "manifest.json").write_text(json.dumps(nothing))
    with pytest.raises(UserError, match="no trained policy"):
        identity(local(tiny_folder, start=str(run)))


def test_what_cannot_be_merged_is_refused_from_the_files(
    tiny_folder: Path, other_folder: Path, adapter: Path, tmp_path: Path
) -> None:
    def refused(message: str, base: Path = tiny_folder, start: Path = adapter) -> None:
        with pytest.raises(UserError, match=f"^model tiny: start={start}: .*{message}"):
            identity(local(base, start=str(start)))

    refused("there is no such folder", start=tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("there is no adapter in it", start=empty)
    refused("it was trained on .* and this base has other weights", base=other_folder)
    (adapter / "cai.json").rename(tmp_path / "kept.json")
    refused("it was made for the base .* Choose the model", base=other_folder)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for key, value in {
        "use_dora": True,
        "peft_type": "IA3",
        "target_modules": "all-linear",
    }.items():
        path.write_text(json.dumps(config | {key: value}))
        refused(f"only plain LoRA can be merged, and its {key}")
    path.write_text("not JSON")
    refused("adapter_config.json cannot be read")
    path.write_text(json.dumps(config))
    (adapter / "head.safetensors").write_bytes(b"")
    refused("it is a preference model")


def test_another_engine_has_weights_of_its_own(tiny_folder: Path, adapter: Path) -> None:
    settings = VLLMConfig(kv_cache_gib=1.0, num_devices=1, eager=True)
    vllm = EngineConfig(name=EngineName.vllm, vllm=settings, server=None)
    with pytest.raises(ValueError, match="engine=vllm has its own"):
        local(tiny_folder, start=str(adapter), engine=vllm)
