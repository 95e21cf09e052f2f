"""The forward pass that is written out against the models' own: greedy tokens, probabilities."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cai import decoding
from cai.decoding import ATTENDED, GROUP_ROWS, GROWTH, KEPT_ONCE, Decoder, _Linear
from cai.generation import Generator, Tokens
from tests.tiny import tiny_model

EOS = 2
UNUSED = 299
"""Hardly ever sampled: few responses end before their limit."""
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama with biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
    ),
    "llama 3 rotations": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}


def family(name: str, **changes: object) -> PreTrainedModel:
    make, config, settings = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(config(**(SIZES | settings | changes))).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias") or "norm" in parameter_name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def as_it_is(model: PreTrainedModel) -> PreTrainedModel:
    """A model that goes through its own forward pass, because something looks into it."""
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not decoding.supported(model)
    return model


def ids(length: int, start: int = 0) -> list[int]:
    return [(7 * i + start) % 290 + 3 for i in range(length)]


def sampler(model: PreTrainedModel, eos_id: int = UNUSED) -> Generator:
    return Generator(model, eos_id=eos_id, max_context=1000)


def greedy(model: PreTrainedModel, prompts: list[list[int]], num: int) -> list[Tokens]:
    seeds = [0] * len(prompts)
    return sampler(model).sample(prompts, seeds=seeds, max_new_tokens=num, temperature=0)


def generate(model: PreTrainedModel, prompt: list[int], num: int) -> tuple[int, ...]:
    with torch.inference_mode():
        one = torch.tensor([prompt])
        out = model.generate(
            one, attention_mask=torch.ones_like(one), do_sample=False, max_new_tokens=num,
            eos_token_id=UNUSED, pad_token_id=EOS,
        )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_equals_generate_in_batches_of_1_4_and_32(name: str) -> None:
    model = family(name)
    assert decoding.supported(model)
    prompts = [ids(5 + 11 * i % 120, start=13 * i) for i in range(32)]
    expected = [generate(model, prompt, 8) for prompt in prompts]
    found = {}
    for size in (1, 4, 32):
        batches = [prompts[i : i + size] for i in range(0, 32, size)]
        found[size] = [row for batch in batches for row in greedy(model, batch, 8)]
        assert [row.ids for row in found[size]] == expected
        for row, alone in zip(found[size], found[1], strict=True):
            assert row.logprob == pytest.approx(alone.logprob, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shared", [0, 20, KEPT_ONCE - 1, KEPT_ONCE, KEPT_ONCE + 60])
def test_next_token_logprobs_equal_the_models_own(name: str, shared: int) -> None:
    model = family(name)
    prompts = [ids(shared) + ids(n, start=n) for n in (1, 2, ATTENDED - 1, ATTENDED + 40, 30)]
    found = sampler(model).next_token_logprobs(prompts)
    for row, prompt in enumerate(prompts):
        with torch.inference_mode():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert torch.allclose(found[row], expected, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 30, KEPT_ONCE + 10])
def test_sampling_past_a_full_block_with_rows_that_leave_equals_the_models_own(
    shared: int,
) -> None:
    prompts = [ids(shared) + ids(3 + 9 * i % 80, start=i) for i in range(GROUP_ROWS + 5)]
    num = 2 * GROWTH + 10
    arguments = {"seeds": list(range(len(prompts))), "max_new_tokens": num, "temperature": 2.0}
    ours = sampler(family("llama"), EOS).sample(prompts, **arguments)
    theirs = sampler(as_it_is(family("llama")), EOS).sample(prompts, **arguments)
    lengths = sorted(len(s.ids) for s in ours)
    assert lengths[0] < GROWTH < lengths[-1], "the case is not what it should be"
    assert [s.ids for s in ours] == [s.ids for s in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.finished == other.finished


def test_equal_prompts_are_rows_of_their_own() -> None:
    model = family("llama")
    several = [ids(40), ids(9, start=5), ids(40), ids(40), ids(9, start=5), ids(3)]
    seeds = [1, 2, 3, 4, 5, 6]
    together = sampler(model).sample(several, seeds=seeds, max_new_tokens=9, temperature=1.5)
    for prompt, seed, row in zip(several, seeds, together, strict=True):
        (alone,) = sampler(model).sample([prompt], seeds=[seed], max_new_tokens=9, temperature=1.5)
        assert row.ids == alone.ids
    same = sampler(model).sample([ids(40)] * 3, seeds=[7, 8, 7], max_new_tokens=9, temperature=1.5)
    assert same[0] == same[2] != same[1]


def test_a_prefix_is_read_once_and_used_again() -> None:
    generator = sampler(family("llama"))
    prompts = [ids(150) + ids(5, start=i) for i in range(4)]
    first = generator.next_token_logprobs(prompts)
    (prefix,) = generator._read.values()
    assert (len(prefix.lengths), prefix.used) == (1, 150)
    assert torch.equal(first, generator.next_token_logprobs(prompts))
    assert next(iter(generator._read.values())) is prefix


def test_weights_that_are_changed_in_place_are_seen_by_the_next_call() -> None:
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    prompts = [ids(12), ids(5, start=3)]
    before = greedy(model, prompts, 10)
    with torch.no_grad():
        for parameter, changed in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(changed)
    after = greedy(model, prompts, 10)
    assert after == greedy(tiny_model(seed=1), prompts, 10)
    assert after != before


def test_sampling_changes_no_weight() -> None:
    model = family("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampler(model).sample([ids(9)], seeds=[0], max_new_tokens=4, temperature=1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_as_they_are_give_the_same_as_packed_ones(dtype: torch.dtype) -> None:
    model = family("llama with biases").to(dtype)
    if not decoding.can_pack(model):
        pytest.skip("oneDNN does not multiply this number format here")
    prompts = [ids(30), ids(11, start=4)]
    with torch.inference_mode():
        states = [Decoder(model, packed=packed).prefill(prompts)[0] for packed in (True, False)]
    assert torch.allclose(states[0], states[1], atol=1e-4 if dtype is torch.float32 else 0.15)


@pytest.mark.parametrize("packed", [True, False])
def test_linear_maps_side_by_side_with_what_follows(packed: bool) -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(6, 3), nn.Linear(6, 2)
    x, other = torch.randn(4, 6), torch.randn(4, 5)
    with torch.inference_mode():
        plain = torch.cat([one(x), two(x)], -1)
        both = _Linear(one, two, packed=packed)
        assert torch.allclose(both(x), plain, atol=1e-6)
        assert torch.allclose(both(x, "swish"), plain * plain.sigmoid(), atol=1e-6)
        assert torch.allclose(both.combined(x, other, "add"), plain + other, atol=1e-6)
        assert torch.allclose(both.combined(x, other, "mul"), plain * other, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_the_models_own_pass() -> None:
    prompts = [ids(60 + i, start=i) for i in range(12)]
    expected = sampler(family("llama")).next_token_logprobs(prompts)
    rounded = family("llama").to(torch.bfloat16)
    ours = (sampler(rounded).next_token_logprobs(prompts) - expected).square().mean().sqrt()
    own = sampler(as_it_is(rounded)).next_token_logprobs(prompts)
    assert ours < 1.3 * (own - expected).square().mean().sqrt()


def test_other_models_go_through_their_own_forward_pass() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)).eval()
    assert not decoding.supported(mistral)
    prompts = [ids(20) + ids(4 + 5 * i, start=i) for i in range(4)]
    expected = [generate(mistral, prompt, 6) for prompt in prompts]
    assert [row.ids for row in greedy(mistral, prompts, 6)] == expected


def test_what_is_not_supported() -> None:
    assert decoding.supported(family("llama"))
    assert not decoding.supported(family("llama").to(torch.float16))
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert not decoding.supported(family("qwen2", **windows))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    assert not decoding.supported(family("llama", rope_parameters=dynamic))
    assert not decoding.supported(family("llama", hidden_act="gelu"))
    replaced = family("llama")
    replaced.lm_head.forward = lambda x: x
    assert not decoding.supported(replaced)
    adapted = get_peft_model(family("llama"), LoraConfig(target_modules=["q_proj"]))
    assert not decoding.supported(adapted.get_base_model())
