import json

import pytest
import torch
from peft import PeftModel

from cai import adapters, attention
from cai.adapters import active, forward_hidden, forward_pairs, training
from cai.batches import collate
from cai.errors import UserError
from cai.full_weights import causal_of
from cai.fused import fused
from cai.heads import ScoreHead, token_logprobs
from cai.low_rank import lora_layers
from cai.model_config import LoRAConfig
from tests.tiny import KINDS, LORA, lora, scramble, tiny_model

IDS = torch.arange(3, 23).view(2, 10)
FULL = torch.ones_like(IDS, dtype=torch.bool)
DTYPES = [torch.float32, torch.bfloat16]


both_kinds = pytest.mark.parametrize("trained", KINDS.values(), ids=KINDS)


def move(model, adapter, seed=0, scale=0.1):
    scramble(model, adapter, torch.Generator().manual_seed(seed), scale=scale)


def two_adapters(dtype=torch.float32, trained=LORA):
    model = adapters.attach(tiny_model(dtype=dtype), trained, adapter="policy", seed=1)
    adapters.add(model, trained, "other", 2)
    move(model, "policy", 3)
    move(model, "other", 4)
    return model


def logits(model, adapter, ids=IDS, mask=FULL):
    with torch.no_grad():
        hidden = forward_hidden(model, ids, mask, adapter=adapter)
        return causal_of(model, adapter).get_output_embeddings()(hidden)


def own_names(model, adapter):
    """Parameters of a role, by their names in the model."""
    place = (f".{adapter}.", f"copies.{adapter}.")
    return {n for n, _ in model.named_parameters() if place[0] in n or n.startswith(place[1])}


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_new_adapter_changes_nothing_and_is_float32(dtype):
    base = tiny_model(dtype=dtype)
    with attention.written_out(base), fused(base):
        before = base(IDS).logits
    model = adapters.attach(base, lora(), adapter="policy", seed=1)
    assert torch.equal(logits(model, "policy"), before)
    kinds = {p.dtype for name, p in model.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert {n for n, flag in flags(model).items() if flag} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


def test_initial_values_are_a_function_of_the_seed_and_the_layer():
    def first(seed, drawn_before):
        torch.rand(drawn_before)
        model = adapters.attach(tiny_model(), lora(), adapter="policy", seed=seed)
        layers = lora_layers(model, "policy").values()
        return [layer.lora_A["policy"].weight for layer in layers]

    one, same, other = first(1, 0), first(1, 5), first(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1][:4, :32])


def test_attaching_and_adding_leave_the_global_stream_alone():
    base = tiny_model()
    before = torch.get_rng_state()
    adapters.add(adapters.attach(base, lora(), adapter="policy", seed=1), lora(), "other", 2)
    assert torch.equal(before, torch.get_rng_state())


def test_all_dropout_is_zero():
    base = tiny_model()
    base.config.attention_dropout = 0.1
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model = adapters.attach(base, lora(), adapter="policy", seed=1)
    model.train()
    hidden = [forward_hidden(model, IDS, FULL, adapter="policy") for _ in range(2)]
    assert torch.equal(*hidden)


def test_unknown_layers_are_refused_with_the_layers_there_are():
    with pytest.raises(UserError, match=r"query.*Its linear layers are .*q_proj"):
        adapters.attach(
            tiny_model(),
            LoRAConfig(rank=2, alpha=2, target_modules=["query"]),
            adapter="policy",
            seed=1,
        )


def test_a_model_that_changes_its_logits_afterwards_is_refused():
    base = tiny_model()
    base.lm_head.register_forward_hook(lambda _, __, out: out)  # harmless
    adapters.attach(base, lora(), adapter="policy", seed=1)

    class Capped(type(base)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = torch.tanh(out.logits)
            return out

    capped = tiny_model()
    capped.__class__ = Capped
    with pytest.raises(UserError, match="changes its logits"):
        adapters.attach(capped, lora(), adapter="policy", seed=1)


@both_kinds
def test_active_restores_the_adapter_and_every_flag(trained):
    model = two_adapters(trained=trained)
    before = flags(model)
    with active(model, "other"):
        assert model.active_adapter == "other"
    assert model.active_adapter == "policy"
    assert flags(model) == before
    with pytest.raises(RuntimeError), active(model, "other"):
        raise RuntimeError
    assert model.active_adapter == "policy"
    assert flags(model) == before


@both_kinds
def test_training_trains_one_adapter_only_and_restores(trained):
    model = two_adapters(trained=trained)
    before = flags(model)
    with training(model, "other"):
        learning = {n for n, flag in flags(model).items() if flag}
        assert learning == own_names(model, "other") != set()
    assert flags(model) == before


@both_kinds
def test_a_pass_with_gradient_needs_its_adapter_active(trained):
    with pytest.raises(AssertionError, match="other is not active"):
        forward_hidden(two_adapters(trained=trained), IDS, FULL, adapter="other")


@both_kinds
def test_adapters_differ_and_a_copy_is_the_same_bit_for_bit(trained):
    model = two_adapters(trained=trained)
    assert not torch.equal(logits(model, "policy"), logits(model, "other"))
    adapters.copy_adapter(model, "policy", "reference")
    assert adapters.same_adapter(model, "policy", "reference")
    assert not adapters.same_adapter(model, "policy", "other")
    assert torch.equal(logits(model, "policy"), logits(model, "reference"))
    assert model.active_adapter == "policy"
    move(model, "policy", 9)  # they share nothing
    assert not adapters.same_adapter(model, "policy", "reference")
    assert not torch.equal(logits(model, "policy"), logits(model, "reference"))


@both_kinds
def test_what_is_padded_changes_nothing(trained):
    model = two_adapters(trained=trained)
    sequences = [([5, 6, 7], [8, 2]), ([9, 10], [11, 12, 13, 2])]
    zero, junk = (collate(sequences, pad_id=pad_id) for pad_id in (0, 299))
    alone = [collate([sequence], pad_id=0) for sequence in sequences]

    def said(batch):
        with torch.no_grad():
            hidden = forward_hidden(model, batch.ids_BS, batch.mask_BS, adapter="policy")
            states = batch.states(hidden)
            said = token_logprobs(model, states, batch.targets_N, adapter="policy", temperature=1.0)
            return said.logprob_N

    assert torch.equal(said(zero), said(junk))
    torch.testing.assert_close(
        said(zero), torch.cat([said(batch) for batch in alone]), atol=1e-5, rtol=1e-5
    )


@both_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trunk_agrees_with_the_whole_model(dtype, trained):
    model = two_adapters(dtype, trained)
    whole = causal_of(model, "policy")(input_ids=IDS, attention_mask=FULL.long()).logits
    tolerance = 1e-5 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(logits(model, "policy"), whole, atol=tolerance, rtol=1e-2)


@both_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_reach_float32_adapters(dtype, trained):
    model = two_adapters(dtype, trained)
    with training(model, "policy"):
        forward_hidden(model, IDS, FULL, adapter="policy").float().sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert {g.dtype for g in grads.values()} == {torch.float32}
    assert set(grads) == own_names(model, "policy")


@both_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_copy_computes_the_same_and_the_base_keeps_its_bits(dtype, trained):
    base = tiny_model(dtype=dtype)
    bits = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = adapters.attach(base, trained, adapter="policy", seed=1)
    move(model, "policy")
    merged = adapters.merged_copy(model, "policy")
    tolerance = 1e-5 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(
        merged(IDS).logits.float(), logits(model, "policy").float(), atol=tolerance, rtol=1e-2
    )
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert {p.dtype for p in merged.parameters()} == {dtype}
    assert not any(p.requires_grad for p in merged.parameters())
    now = base.state_dict()
    for name, tensor in bits.items():
        wrapped = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(tensor, now[name] if name in now else now[wrapped])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_copy_of_all_weights_is_refreshed(dtype):
    model = two_adapters(dtype, trained=None)
    merged = adapters.merged_copy(model, "policy")
    move(model, "policy", 7)
    adapters.refresh_merged(merged, model, "policy")
    fresh = adapters.merged_copy(model, "policy")
    assert torch.equal(merged(IDS).logits, fresh(IDS).logits)
    assert not torch.equal(merged(IDS).logits, adapters.merged_copy(model, "other")(IDS).logits)


def test_a_merged_copy_is_refreshed_without_drift():
    model = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    merged = adapters.merged_copy(model, "policy")
    plain = tiny_model()(IDS).logits
    assert torch.equal(merged(IDS).logits, plain)
    for seed in range(3):
        move(model, "policy", seed)
        adapters.refresh_merged(merged, model, "policy")
        torch.testing.assert_close(
            merged(IDS).logits, logits(model, "policy"), atol=1e-5, rtol=1e-5
        )
    move(model, "policy", scale=0.0)
    adapters.refresh_merged(merged, model, "policy")
    assert torch.equal(merged(IDS).logits, plain)


def test_a_merged_copy_shares_what_is_not_merged():
    model = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    merged = adapters.merged_copy(model, "policy")
    base = model.get_base_model()
    assert merged.model.embed_tokens.weight is base.model.embed_tokens.weight


@both_kinds
def test_a_base_can_be_used_again_after_unloading(trained):
    base = tiny_model()
    before = base(IDS).logits
    model = adapters.attach(base, trained, adapter="policy", seed=1)
    move(model, "policy")
    model.unload()
    assert torch.equal(base(IDS).logits, before)
    again = adapters.attach(base, lora(), adapter="policy", seed=1)
    assert list(again.peft_config) == ["policy"]


def save(model, folder, adapter="policy", head=None):
    adapters.save_adapter(
        model,
        adapter,
        folder,
        head=head,
        base_id="somebody/tiny",
        base_sha256="ab" * 32,
        probe_ids=[3, 4, 5],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_adapter_loads_with_plain_peft(dtype, tmp_path):
    model = two_adapters(dtype)
    save(model, tmp_path / "policy")
    theirs = PeftModel.from_pretrained(tiny_model(dtype=dtype), str(tmp_path / "policy"))
    assert torch.equal(theirs(IDS).logits, model(IDS).logits)


@both_kinds
def test_a_saved_adapter_loads_bit_for_bit(tmp_path, trained):
    model = two_adapters(trained=trained)
    head = ScoreHead(32, seed=5)
    head.calibrate([1.0, 4.0])
    save(model, tmp_path, "other", head)
    loaded = adapters.load(tiny_model(), tmp_path, adapter="mine", base_sha256="ab" * 32)
    assert torch.equal(logits(loaded, "mine"), logits(model, "other"))
    assert not any(flags(loaded).values())
    adapters.load_adapter(model, tmp_path, adapter="again", base_sha256="ab" * 32)
    assert adapters.same_adapter(model, "other", "again")
    assert model.active_adapter == "policy"
    states = torch.randn(4, 32)
    assert torch.equal(adapters.load_head(tmp_path)(states), head(states))


@both_kinds
def test_saving_leaves_the_model_as_it_was(tmp_path, trained):
    model = two_adapters(trained=trained)
    before = flags(model)
    save(model, tmp_path, "other")
    assert flags(model) == before
    assert model.active_adapter == "policy"


FILES = {
    "lora": {"adapter_config.json", "adapter_model.safetensors"},
    "none": {"config.json", "generation_config.json", "model.safetensors"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_give_the_same_bytes_without_machine_paths(tmp_path, kind):
    for name in ("one", "two"):
        base = tiny_model()
        base.config.name_or_path = base.name_or_path = str(tmp_path)
        model = adapters.attach(base, KINDS[kind], adapter="policy", seed=1)
        move(model, "policy")
        save(model, tmp_path / name, head=ScoreHead(32, seed=5))
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == FILES[kind] | {"cai.json", "head.safetensors"}
    for name in files:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        assert str(tmp_path).encode() not in data
    if kind == "lora":
        config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "somebody/tiny"


def test_another_base_is_refused(tmp_path):
    save(two_adapters(), tmp_path)
    with pytest.raises(UserError, match="trained on somebody/tiny"):
        adapters.load(tiny_model(), tmp_path, adapter="mine", base_sha256="cd" * 32)
    # The right hash with other weights is noticed by the probe.
    with pytest.raises(UserError, match="logits are off by"):
        adapters.load(tiny_model(seed=9), tmp_path, adapter="mine", base_sha256="ab" * 32)


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    save(two_adapters(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(UserError, match="its layers are not those of this model"):
        adapters.load(tiny_model(), tmp_path, adapter="mine", base_sha256="ab" * 32)


@both_kinds
def test_files_that_do_not_read_back_the_same_are_refused(tmp_path, monkeypatch, trained):
    model = two_adapters(trained=trained)
    kind = type(adapters._roles(model))
    write = kind.write

    def torn(self, name, folder, base_id):
        write(self, name, folder, base_id)
        (path,) = folder.glob("*.safetensors")
        damaged = bytearray(path.read_bytes())
        damaged[-2] ^= 64
        path.write_bytes(damaged)

    monkeypatch.setattr(kind, "write", torn)
    before = set(flags(model))
    with pytest.raises(UserError, match="does not give the same logits"):
        save(model, tmp_path)
    assert set(flags(model)) == before


@both_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_whose_prompt_is_computed_once_is_the_pair(trained, dtype):
    """States and gradients of pairs joined in rows are those of their sequences apart."""
    prompts, firsts, seconds = [range(9, 12), range(30, 110)], [5, 60], [40, 7]
    sides = [
        (list(prompt), [(7 * k + length) % 250 + 10 for k in range(length)])
        for lengths in (firsts, seconds)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    tokens = collate(sides, pad_id=0)
    model = two_adapters(dtype=dtype, trained=trained)
    found = {}
    with training(model, "policy"):
        parameters = [p for p in model.parameters() if p.requires_grad]
        for way in ("joined", "apart"):
            if way == "joined":
                hidden = forward_pairs(model, tokens, adapter="policy")
            else:
                hidden = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter="policy")
            assert hidden.shape[:2] == tokens.ids_BS.shape
            read = hidden[tokens.mask_BS].float()
            gradients = torch.autograd.grad(read.pow(3).mean(), parameters, allow_unused=True)
            found[way] = [read.detach(), *(g for g in gradients if g is not None)]
    exact = dtype is torch.float32
    for one, other in zip(found["joined"], found["apart"], strict=True):
        gap = float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))
        assert gap < (1e-5 if exact else 0.1)
