import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cai import adapters, attention
from cai.adapters import forward_hidden
from tests.tiny import lora, tiny_model

LENGTHS = [1, 5, attention.QUERIES, attention.QUERIES + 1, 3 * attention.QUERIES - 7]


def heads(length, dtype=torch.float32, *, kv_heads=2, groups=3, rows=2, dim=8):
    """Queries, keys, values and a gradient as a model has them: (B, S, heads, D) transposed."""
    generator = torch.Generator().manual_seed(length)
    sizes = [groups * kv_heads, kv_heads, kv_heads, groups * kv_heads]
    return [
        torch.randn(rows, length, size, dim, generator=generator).to(dtype).transpose(1, 2)
        for size in sizes
    ]


def slowly(query, key, value, scaling):
    """One query after the other, in the number format of the inputs."""
    out = torch.empty_like(query)
    groups = query.shape[1] // key.shape[1]
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for place in range(query.shape[2]):
                seen = key[row, head // groups, : place + 1]
                shares = (scaling * seen @ query[row, head, place]).softmax(0)
                out[row, head, place] = shares @ value[row, head // groups, : place + 1]
    return out.transpose(1, 2)


def gradients(function, inputs, grad, scaling):
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    function(*leaves, scaling).backward(grad)
    return [leaf.grad for leaf in leaves]


def ours(query, key, value, scaling):
    return attention.causal(torch.nn.Identity(), query, key, value, None, scaling=scaling)[0]


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_attention_to_the_past_and_to_itself(length):
    inputs = heads(length, torch.float64)[:3]
    torch.testing.assert_close(ours(*inputs, 0.3), slowly(*inputs, 0.3), atol=1e-12, rtol=1e-12)


def test_gradients_are_those_of_the_slow_way():
    *inputs, grad = heads(attention.QUERIES + 5, torch.float64, rows=1)
    grad = grad.transpose(1, 2)
    # Its gradients of keys and values are sums in float32.
    torch.testing.assert_close(
        gradients(ours, inputs, grad, 0.3),
        gradients(_plain, inputs, grad, 0.3),
        atol=1e-5,
        rtol=1e-5,
    )


def _plain(query, key, value, scaling):
    """All at once, with a mask, as autograd likes it."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    size = query.shape[2]
    future = torch.full((size, size), -math.inf, dtype=query.dtype).triu(1)
    shares = (scaling * query @ key.transpose(2, 3) + future).softmax(-1)
    return (shares @ value).transpose(1, 2)


def test_bfloat16_is_near_float64():
    *inputs, grad = heads(100, torch.bfloat16)
    exact = [part.double() for part in inputs]
    gap = (ours(*inputs, 0.3).double() - _plain(*exact, 0.3)).abs().max()
    assert gap < 0.03
    found = gradients(ours, inputs, grad.transpose(1, 2), 0.3)
    wanted = gradients(_plain, exact, grad.transpose(1, 2).double(), 0.3)
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype is torch.bfloat16
        assert float((own.double() - other).abs().max() / other.abs().max()) < 0.02


def test_a_mask_is_refused():
    query, key, value, _ = heads(3)
    with pytest.raises(AssertionError, match="mask"):
        attention.causal(
            torch.nn.Identity(), query, key, value, torch.ones(2, 1, 3, 3), scaling=1.0
        )


def test_the_trunk_is_the_models_own_wherever_the_padding_is_read_by_nobody():
    model = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    ids = torch.arange(40).view(2, 20) + 3
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 12:] = False
    with torch.no_grad():
        found = forward_hidden(model, ids, mask, adapter="policy")
        base = model.get_base_model()
        assert base.config._attn_implementation == "sdpa"
        wanted = base.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(found[mask], wanted[mask], atol=1e-5, rtol=1e-5)


def test_models_with_another_attention_keep_their_mask():
    assert attention.needs_no_mask(tiny_model())
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    sliding = Qwen3Config(**sizes, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert "sliding_attention" in sliding.layer_types
    assert not attention.needs_no_mask(Qwen3ForCausalLM(sliding))
    plain = Qwen3ForCausalLM(Qwen3Config(**sizes))
    assert attention.needs_no_mask(plain)
    plain.config._attn_implementation = "eager"
    assert not attention.needs_no_mask(plain)
