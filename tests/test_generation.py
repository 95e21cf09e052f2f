from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from cai.errors import UserError
from cai.generation import BLOCK, Generator, _draw, _invert, _largest
from tests.tiny import tiny_model

EOS = 2


def generator(max_context: int = 400) -> Generator:
    return Generator(tiny_model(seed=0), eos_id=EOS, max_context=max_context)


def naive_greedy(prompt: list[int], num: int) -> list[int]:
    """Slow reference: the whole sequence again for every token, no cache, no padding."""
    model = tiny_model(seed=0).eval()
    ids = list(prompt)
    for _ in range(num):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == EOS:
            break
    return ids[len(prompt) :]


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [20], [30, 31, 32, 33]]


def test_greedy_equals_a_slow_reference_whatever_the_padding() -> None:
    sampled = generator().sample(PROMPTS, seeds=[0] * 4, max_new_tokens=12, temperature=0)
    assert [list(s.ids) for s in sampled] == [naive_greedy(p, 12) for p in PROMPTS]


def test_a_shared_prefix_changes_nothing() -> None:
    shared = [(7 * i) % 290 + 3 for i in range(50)]
    prompts = [shared + p for p in PROMPTS]
    one_batch = generator().sample(prompts, seeds=[1, 2, 3, 4], max_new_tokens=10, temperature=1)
    alone = [
        generator().sample([p], seeds=[s], max_new_tokens=10, temperature=1)[0]
        for p, s in zip(prompts, [1, 2, 3, 4], strict=True)
    ]
    assert [s.ids for s in one_batch] == [s.ids for s in alone]
    for together, single in zip(one_batch, alone, strict=True):
        assert together.logprob == pytest.approx(single.logprob, abs=1e-3)


def test_a_row_depends_on_its_own_seed_only() -> None:
    first = generator().sample(PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=8, temperature=1)
    second = generator().sample(PROMPTS, seeds=[1, 9, 3, 9], max_new_tokens=8, temperature=1)
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert first[1].ids != second[1].ids


def test_logprob_is_the_sum_over_sampled_tokens_at_the_temperature() -> None:
    prompt = [5, 6, 7]
    (sampled,) = generator().sample([prompt], seeds=[3], max_new_tokens=6, temperature=0.7)
    with torch.inference_mode():
        ids = torch.tensor([prompt + list(sampled.ids)])
        logits = tiny_model(seed=0).eval()(ids).logits[0].double() / 0.7
    expected = sum(
        float(logits[len(prompt) - 1 + i].log_softmax(-1)[token])
        for i, token in enumerate(sampled.ids)
    )
    assert sampled.logprob == pytest.approx(expected, abs=1e-4)


def test_rows_that_end_leave_and_the_others_go_on() -> None:
    model = tiny_model(seed=0)
    sampled = Generator(model, eos_id=EOS, max_context=400).sample(
        PROMPTS * 8, seeds=list(range(32)), max_new_tokens=40, temperature=3.0
    )
    lengths = [len(s.ids) for s in sampled]
    assert min(lengths) < 40
    for s in sampled:
        assert s.finished == (s.ids[-1] == EOS)
        assert EOS not in s.ids[:-1]
        assert s.finished or len(s.ids) == 40


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, logprobs = _draw(probabilities.log().expand(20_000, 4), uniforms, 1.0)
    counts = Counter(chosen.tolist())
    for token, p in enumerate(probabilities.tolist()):
        # Five standard errors of a binomial share.
        assert abs(counts[token] / 20_000 - p) < 5 * math.sqrt(p * (1 - p) / 20_000)
    assert torch.allclose(logprobs, probabilities.log()[chosen], atol=1e-6)


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 1000])
def test_sums_of_blocks_draw_what_one_long_sum_draws(size: int) -> None:
    torch.manual_seed(0)
    shares = (3 * torch.randn(2000, size)).softmax(-1)
    shares[:, ::3] = 0
    uniforms = torch.rand(2000, dtype=torch.float64)
    uniforms[0] = 0.0
    cumulative = shares.double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    expected = torch.searchsorted(cumulative, target, right=True)[:, 0]
    assert torch.equal(_invert(shares, uniforms), expected)


@pytest.mark.parametrize("size", [5, BLOCK, BLOCK + 1, 1000])
def test_the_largest_is_the_first_of_the_largest(size: int) -> None:
    torch.manual_seed(0)
    values = torch.randint(-9, 0, (500, size)).float()
    values[0] = -torch.inf
    expected = torch.tensor([row.index(max(row)) for row in values.tolist()])
    assert torch.equal(_largest(values), expected)


def test_probabilities_that_are_not_finite_stop_the_run() -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for bad in (torch.full((4,), float("nan")), torch.full((4,), -torch.inf)):
        logits = torch.stack([torch.zeros(4), bad])
        for temperature in (0.0, 0.7, 1.0):
            with pytest.raises(UserError, match="not finite"):
                _draw(logits, half, temperature)


def test_next_token_logprobs_are_normalised_and_padding_invariant() -> None:
    together = generator().next_token_logprobs(PROMPTS)
    assert torch.allclose(together.exp().sum(-1), torch.ones(4), atol=1e-5)
    for row, prompt in enumerate(PROMPTS):
        assert torch.allclose(
            together[row], generator().next_token_logprobs([prompt])[0], atol=1e-4
        )


def test_a_prompt_that_leaves_no_room_does_not_fit() -> None:
    assert generator(max_context=10).fits([1] * 6, 4)
    assert not generator(max_context=10).fits([1] * 7, 4)


def test_bfloat16_options_are_told_apart_in_float32() -> None:
    model = tiny_model(seed=0, dtype=torch.bfloat16)
    found = Generator(model, eos_id=EOS, max_context=400).next_token_logprobs(PROMPTS)
    with torch.inference_mode():
        for row, prompt in enumerate(PROMPTS):
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0, -1].float()
            expected = (model.lm_head.weight.float() @ hidden).log_softmax(-1)
            # The trunk is in bfloat16 with other padding, so its last bits differ.
            assert torch.allclose(found[row], expected, atol=0.15)
    rough = found.bfloat16().float()
    assert len(found.unique()) > 2 * len(rough.unique())


def test_a_model_that_transforms_its_logits_keeps_them() -> None:
    model = tiny_model(seed=0)
    plain = Generator(model, eos_id=EOS, max_context=400).next_token_logprobs([[5, 6]])
    hook = model.lm_head.register_forward_hook(lambda _module, _args, out: 0.5 * out)
    halved = Generator(model, eos_id=EOS, max_context=400).next_token_logprobs([[5, 6]])
    hook.remove()
    assert torch.allclose(halved, (0.5 * plain).log_softmax(-1), atol=1e-5)
