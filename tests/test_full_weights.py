"""Full fine-tuning: what is different from adapters. What is the same is in test_adapters.py."""

import dataclasses
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from cai import adapters, paths
from cai.adapters import forward_hidden, training
from cai.choices import Adapter
from cai.errors import ConfigError, UserError
from cai.full_weights import FullCopies, base_dtype
from cai.heads import token_logprobs
from cai.models import Models
from cai.overrides import check_overrides
from cai.schema import to_config
from cai.stages import training as stages
from tests.tiny import LORA, hardware, lora, scramble, tiny_model

IDS = torch.arange(3, 23).view(2, 10)
MASK = torch.ones_like(IDS, dtype=torch.bool)
DTYPES = [torch.float32, torch.bfloat16]


def copies(dtype=torch.float32, *, seed=0):
    model = adapters.attach(tiny_model(dtype=dtype), None, adapter="policy", seed=1)
    scramble(model, "policy", torch.Generator().manual_seed(seed))
    return model


def save(model, folder, adapter="policy"):
    adapters.save_adapter(
        model, adapter, folder, base_id="somebody/tiny", base_sha256="ab" * 32, probe_ids=[3, 4, 5]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_role_starts_as_the_base_in_float32_and_shares_nothing_with_it(dtype):
    base = tiny_model(dtype=dtype)
    model = adapters.attach(base, None, adapter="policy", seed=1)
    role = model.copies["policy"]
    theirs = dict(base.named_parameters())
    for name, weight in role.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.requires_grad
        assert torch.equal(weight, theirs[name].float())
        assert weight.data_ptr() != theirs[name].data_ptr()
    assert role.lm_head.weight is role.model.embed_tokens.weight  # tied as in the base
    assert base_dtype(model) == dtype


def test_every_weight_learns_the_tied_embeddings_from_both_of_their_uses():
    model = copies()
    with training(model, "policy"):
        hidden = forward_hidden(model, IDS, MASK, adapter="policy")
        said = token_logprobs(
            model, hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), adapter="policy",
            temperature=1.0,
        )  # fmt: skip
        (-said.logprob_N.mean()).backward()
    found = {name: weight.grad for name, weight in model.copies["policy"].named_parameters()}

    plain = copies().copies["policy"]
    plain.requires_grad_(True)
    plain(IDS, labels=IDS).loss.backward()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_a_small_update_is_not_lost():
    model = copies(torch.bfloat16)
    weight = model.copies["policy"].model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1 + 1e-5)
    assert not torch.equal(weight, before)
    assert torch.equal(before.bfloat16(), before.bfloat16() * (1 + 1e-5))  # there it would be


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_role_loads_with_plain_transformers(dtype, tmp_path):
    model = copies(dtype)
    save(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = dict(model.copies["policy"].named_parameters())
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.named_parameters())
    if dtype == torch.float32:  # else the tiny model's rotations were rounded too
        expected = model.copies["policy"](IDS).logits
        torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_how_the_base_was_packed_is_not_written(tmp_path):
    base = tiny_model()
    base.config.quantization_config = {"quant_method": "gguf"}
    save(adapters.attach(base, None, adapter="policy", seed=1), tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert base.config.quantization_config == {"quant_method": "gguf"}


def test_another_architecture_is_refused(tmp_path):
    save(copies(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match="its layers are not those of this model"):
        adapters.load(tiny_model(), tmp_path, adapter="mine", base_sha256="ab" * 32)


def test_a_folder_without_a_model_is_refused(tmp_path):
    save(copies(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        adapters.load(tiny_model(), tmp_path, adapter="mine", base_sha256="ab" * 32)


def test_the_two_kinds_do_not_mix_on_one_base(tmp_path):
    with pytest.raises(UserError, match="the same adapter=lora or adapter=none"):
        adapters.add(copies(), LORA, "other", 2)
    with_adapter = adapters.attach(tiny_model(), LORA, adapter="policy", seed=1)
    save(copies(), tmp_path)
    with pytest.raises(UserError, match="the same adapter=lora or adapter=none"):
        adapters.load_adapter(with_adapter, tmp_path, adapter="other", base_sha256="ab" * 32)


def test_unloading_gives_the_memory_back():
    model = copies()
    base = model.unload()
    assert not model.copies
    assert isinstance(model, FullCopies)
    assert base is model.get_base_model()


def composed(*overrides):
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return to_config(compose("config", overrides=list(overrides)))


def test_the_settings_say_what_is_trained():
    assert composed().model.trained == composed().model.lora
    assert composed("model.adapter=none").model.trained is None


def test_the_digest_knows_all_weights_and_forgets_the_settings_of_adapters(monkeypatch):
    monkeypatch.setattr(stages, "role_key", lambda model: {"sha256": "ab"})
    config = composed("model.adapter=none").model
    wider = dataclasses.replace(config, lora=lora(rank=64))
    assert stages.training_identity(config) == {"model": {"sha256": "ab"}, "adapter": "none"}
    assert stages.training_identity(config) == stages.training_identity(wider)
    low = dataclasses.replace(config, adapter=Adapter.lora)
    assert stages.training_identity(low) == {
        "model": {"sha256": "ab"},
        "lora": dataclasses.asdict(low.lora),
    }


def test_settings_of_adapters_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match=r"model.lora.rank has no effect"):
        check_overrides(["model.lora.rank=4", "model.adapter=none"])
    check_overrides(["model.lora.rank=4", "model.adapter=lora"])
    check_overrides(["model.adapter=lora,none", "model.lora.rank=4,8"])
    check_overrides(["model.adapter=none", "phase.preference_base.lora.rank=4"])


def test_what_cannot_be_sampled_from_or_shared_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"adapter=none cannot be sampled from by engine=vllm"):
        composed("model.adapter=none", "engine@model.engine=vllm")
    on_one_base = ["model@phase.preference_base=smollm2_135m"]
    composed(*on_one_base)
    with pytest.raises(ConfigError, match=r"preference_base.adapter=none"):
        composed("model.adapter=none", *on_one_base)


def test_a_finished_policy_is_sampled_from_and_the_base_is_not_changed(tiny_folder, tmp_path):
    config = dataclasses.replace(
        composed("model=local", f"model.path={tiny_folder}").model, adapter=Adapter.none
    )
    base = Models(hardware()).base(config)
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    tuned = adapters.attach(base.model, config.trained, adapter="policy", seed=0)
    scramble(tuned, "policy", torch.Generator().manual_seed(0), scale=0.5)
    expected = adapters.merged_copy(tuned, "policy")
    adapters.save_adapter(
        tuned, "policy", tmp_path, base_id="tiny", base_sha256=base.sha256, probe_ids=[70, 80]
    )
    prompts, settings = [[70, 80, 90]], {"max_new_tokens": 8, "temperature": 0.0}
    policy = base.with_adapter(tmp_path).sample(prompts, seeds=[0], **settings)
    assert policy == base.generator(expected).sample(prompts, seeds=[0], **settings)
    assert policy != base.generator().sample(prompts, seeds=[0], **settings)
    assert all(torch.equal(weight, before[n]) for n, weight in base.model.named_parameters())
