"""The fast decode loop against transformers: same greedy tokens, same log-probabilities."""

from __future__ import annotations

import pytest
import torch

from cai import decoding
from cai.generation import Generator
from tests.tiny import tiny_model

UNUSED = 250
"""Hardly ever sampled: no response ends before its limit."""
PROMPTS = [[3 + (7 * row + k) % 200 for k in range(5 + 3 * row)] for row in range(8)]


def sampled(prompts: list[list[int]]) -> list[tuple[list[int], float]]:
    generator = Generator(tiny_model(), eos_id=UNUSED, max_context=400)
    seeds = [0] * len(prompts)
    found = generator.sample(prompts, seeds=seeds, max_new_tokens=10, temperature=0)
    return [(list(tokens.ids), tokens.logprob) for tokens in found]


def test_greedy_is_that_of_plain_generate_whatever_the_batch() -> None:
    model = tiny_model().eval()
    assert decoding.supported(model)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=10, min_new_tokens=10, eos_token_id=UNUSED, pad_token_id=0,
        )  # fmt: skip
        expected.append(out[0, len(prompt) :].tolist())
    together = sampled(PROMPTS)
    assert [ids for ids, _ in together] == expected
    for size in (1, 4):
        parts = [
            one for k in range(0, len(PROMPTS), size) for one in sampled(PROMPTS[k : k + size])
        ]
        assert [ids for ids, _ in parts] == expected
        assert [p for _, p in parts] == pytest.approx([p for _, p in together], abs=1e-4)


def test_models_that_are_not_supported_take_the_general_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = sampled(PROMPTS)
    monkeypatch.setattr(decoding, "supported", lambda _model: False)
    general = sampled(PROMPTS)
    assert [ids for ids, _ in general] == [ids for ids, _ in fast]
    assert [p for _, p in general] == pytest.approx([p for _, p in fast], abs=1e-4)


def test_a_model_with_hooks_is_not_supported() -> None:
    model = tiny_model()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert not decoding.supported(model)
