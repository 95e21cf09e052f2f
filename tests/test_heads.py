import pytest
import torch
from torch.nn import functional as F

from cai import adapters, heads
from cai.full_weights import causal_of
from cai.heads import ScoreHead, token_logprobs
from tests.tiny import VOCAB_SIZE, lora, tiny_model


@pytest.fixture
def model():
    return adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)


def states(num=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num, 32, generator=generator).to(dtype)
    target = torch.randint(VOCAB_SIZE, (num,), generator=generator)
    return hidden.requires_grad_(True), target


def plain(model, hidden, target, temperature):
    weight = model.get_base_model().get_output_embeddings().weight
    logp = (F.linear(hidden, weight).float() / temperature).log_softmax(-1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_chunks_give_the_value_and_gradient_of_the_plain_formula(
    model, temperature, rows, monkeypatch
):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", rows * VOCAB_SIZE)
    hidden, target = states()
    upstream = torch.arange(1.0, 8.0)
    said = token_logprobs(model, hidden, target, adapter="policy", temperature=temperature)
    (said.logprob_N * upstream).sum().backward()
    found, hidden.grad = hidden.grad, None
    logprob, entropy = plain(model, hidden, target, temperature)
    (logprob * upstream).sum().backward()
    torch.testing.assert_close(said.logprob_N, logprob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said.entropy_N, entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, hidden.grad, atol=1e-5, rtol=1e-5)


def test_no_tokens_give_no_logprobs_and_a_zero_gradient(model):
    hidden, target = states(0)
    said = token_logprobs(model, hidden, target, adapter="policy", temperature=1.0)
    said.logprob_N.sum().backward()
    assert said.logprob_N.shape == (0,)
    assert hidden.grad.shape == (0, 32)


def test_logits_are_not_kept_for_the_backward_pass(model):
    hidden, target = states()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        token_logprobs(model, hidden, target, adapter="policy", temperature=1.0)
    assert kept == [torch.Size([7, 32])]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_that_learns_gets_the_gradient_of_plain_autograd(
    bias, rows, temperature, monkeypatch
):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", rows * VOCAB_SIZE)
    base = tiny_model()
    base.lm_head = torch.nn.Linear(32, VOCAB_SIZE, bias=bias)
    model = adapters.attach(base, None, adapter="policy", seed=1)
    head = causal_of(model, "policy").lm_head
    hidden, target = states()
    upstream = torch.linspace(-1.0, 1.0, 7)
    leaves = [hidden, *head.parameters()]
    said = token_logprobs(model, hidden, target, adapter="policy", temperature=temperature)
    found = torch.autograd.grad((said.logprob_N * upstream).sum(), leaves)
    logp = (head(hidden) / temperature).log_softmax(-1)
    logprob = logp.gather(1, target[:, None])[:, 0]
    expected = torch.autograd.grad((logprob * upstream).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_tied_to_the_embeddings_gets_the_gradient_of_both(tied):
    base = tiny_model()
    if not tied:
        base.lm_head = torch.nn.Linear(32, VOCAB_SIZE, bias=False)
    model = adapters.attach(base, None, adapter="policy", seed=1)
    causal = causal_of(model, "policy")
    ids = torch.arange(20, 32).view(2, 6)
    target = ids[:, 1:].flatten()

    def gradients(logprobs):
        model.zero_grad()
        hidden = causal.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
        (-logprobs(hidden).mean()).backward()
        return {name: weight.grad.clone() for name, weight in causal.named_parameters()}

    found = gradients(
        lambda hidden: (
            token_logprobs(model, hidden, target, adapter="policy", temperature=1.0).logprob_N
        )
    )
    expected = gradients(
        lambda hidden: causal.lm_head(hidden).log_softmax(-1).gather(1, target[:, None])[:, 0]
    )
    assert ("lm_head.weight" in found) is not tied
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_a_head_that_learns_keeps_a_float32_gradient():
    model = adapters.attach(tiny_model(dtype=torch.bfloat16), None, adapter="policy", seed=1)
    hidden, target = states()
    said = token_logprobs(model, hidden, target, adapter="policy", temperature=1.0)
    said.logprob_N.sum().backward()
    weight = causal_of(model, "policy").lm_head.weight
    assert weight.grad.dtype == torch.float32
    exact = torch.zeros_like(weight).index_add_(0, target, hidden.detach())
    logits = F.linear(hidden.detach(), weight.detach())
    exact -= logits.softmax(-1).T @ hidden.detach()
    assert float((weight.grad - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_bfloat16_log_softmax_is_float32():
    model = adapters.attach(tiny_model(dtype=torch.bfloat16), lora(), adapter="policy", seed=1)
    hidden, target = states(dtype=torch.bfloat16)
    said = token_logprobs(model, hidden, target, adapter="policy", temperature=1.0)
    assert said.logprob_N.dtype == torch.float32
    torch.testing.assert_close(said.logprob_N, plain(model, hidden, target, 1.0)[0])


def test_a_score_head_is_a_function_of_its_seed():
    one, same, other = (ScoreHead(32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.linear.weight, same.linear.weight)
    assert not torch.equal(one.linear.weight, other.linear.weight)
    assert one.linear.bias.item() == 0.0


def test_a_score_head_starts_small():
    # normal(0, 1 / sqrt(H + 1)); the deviation of 4,096 draws is within 5 % of it
    weight = ScoreHead(4096, seed=0).linear.weight
    assert float(weight.detach().std()) == pytest.approx(4097**-0.5, rel=0.05)


def test_making_a_head_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    ScoreHead(32, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_calibration_gives_mean_zero_and_deviation_one():
    head = ScoreHead(32, seed=0)
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)) * 3 + 1
    head.calibrate(head(hidden).tolist())
    once = head(hidden)
    assert float(once.mean().detach()) == pytest.approx(0.0, abs=1e-5)
    assert float(once.std(correction=0).detach()) == pytest.approx(1.0, abs=1e-5)
    head.calibrate(once.tolist())  # a second time changes nothing
    torch.testing.assert_close(head(hidden), once, atol=1e-5, rtol=1e-5)


def test_calibration_on_equal_scores_only_moves_the_mean():
    head = ScoreHead(32, seed=0)
    head.calibrate([2.0, 2.0])
    assert (head.mean.item(), head.std.item()) == (2.0, 1.0)


def test_a_value_head_starts_as_the_calibrated_preference_head():
    head = ScoreHead(32, seed=0)
    head.calibrate([1.0, 3.0, 8.0])
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    value_head = head.requires_grad_(False).as_value_head()
    torch.testing.assert_close(value_head(hidden), head(hidden), atol=1e-5, rtol=1e-5)
    assert value_head.linear.weight.requires_grad
    assert value_head.linear.weight is not head.linear.weight
    assert (value_head.mean.item(), value_head.std.item()) == (0.0, 1.0)


def test_rescale_is_an_affine_map_of_the_output() -> None:
    head = ScoreHead(8, seed=0)
    head.calibrate([1.0, 2.0, 6.0])
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = head(hidden)
        head.rescale(scale=0.5, shift=3.0)
        assert torch.allclose(head(hidden), 0.5 * before + 3.0, atol=1e-5)


def test_a_zeroed_head_says_nothing_until_it_is_put_on_a_scale() -> None:
    head = ScoreHead(8, seed=0).zeroed()
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(head(hidden), torch.zeros(5))
        head.rescale(scale=0.0, shift=1.5)
        assert torch.equal(head(hidden), torch.full((5,), 1.5))
    head(hidden).sum().backward()
    assert head.linear.weight.grad.abs().max() > 0
