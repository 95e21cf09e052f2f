import contextlib

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cai import adapters, decoding
from cai.fused import fused
from tests.tiny import lora, scramble, tiny_model

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Number formats and how far a result may be off, as a share of the largest number."""


def near(found, wanted, share):
    assert found.dtype is wanted.dtype
    gap = (found.double() - wanted.double()).abs().max()
    assert float(gap) <= share * float(wanted.double().abs().max())


@pytest.mark.parametrize(("dtype", "share"), DTYPES.items())
def test_norms_and_gates_and_their_gradients_are_those_of_transformers(dtype, share):
    model = tiny_model().to(dtype).requires_grad_(False)
    layer = model.model.layers[0]
    generator = torch.Generator().manual_seed(0)
    layer.input_layernorm.weight.normal_(1.0, 0.3, generator=generator)
    x = torch.randn(2, 7, 32, generator=generator).to(dtype)
    grad = torch.randn(2, 7, 32, generator=generator).to(dtype)
    for module in (layer.input_layernorm, layer.mlp):
        results = []
        for ours in (False, True):
            leaf = x.clone().requires_grad_()
            if ours:
                with fused(model):
                    out = module(leaf)
            else:
                out = module(leaf)
            out.backward(grad)
            results.append((out.detach(), leaf.grad))
        for wanted, found in zip(*results, strict=True):
            near(found, wanted, share)


def test_a_norm_by_hand():
    norm = LlamaRMSNorm(2, eps=0.0).requires_grad_(False)
    norm.weight.copy_(torch.tensor([2.0, 1.0]))
    model = tiny_model()
    model.model.norm = norm
    with fused(model):
        out = norm(torch.tensor([[3.0, 4.0]]))
    # The root of the mean square is sqrt(12.5).
    torch.testing.assert_close(out, torch.tensor([[6.0, 4.0]]) / 12.5**0.5)


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    with fused(model):
        assert not decoding.supported(model)
    assert decoding.supported(model)
    with pytest.raises(RuntimeError), fused(model):
        raise RuntimeError
    assert decoding.supported(model)


@pytest.mark.parametrize(("dtype", "share"), DTYPES.items())
def test_an_adapters_product_and_gradients_are_those_of_peft(dtype, share):
    model = adapters.attach(tiny_model(dtype=dtype), lora(), adapter="policy", seed=1)
    scramble(model, "policy", torch.Generator().manual_seed(2), scale=0.3)
    layer = model.get_base_model().model.layers[0].mlp.gate_proj
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 32, generator=generator).to(dtype)
    grad = torch.randn(2, 7, 64, generator=generator).to(dtype)
    learned = [layer.lora_A["policy"].weight, layer.lora_B["policy"].weight]
    results = []
    for ours in (False, True):
        leaf = x.clone().requires_grad_()
        with fused(model.get_base_model()) if ours else contextlib.nullcontext():
            out = layer(leaf)
        results.append([out.detach(), *torch.autograd.grad(out, [leaf, *learned], grad)])
    for wanted, found in zip(*results, strict=True):
        near(found, wanted, share)
