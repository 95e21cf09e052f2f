"""Fixtures: a tiny random model with a byte tokenizer as a folder, and the shipped documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cai import constitution, paths
from cai.constitution import Constitution
from tests.tiny import tiny_model

torch.set_num_threads(1)

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and four control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|end|>",
        extra_special_tokens=specials[1:],
        chat_template=TEMPLATE,
    )


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Another vocabulary: bytes in another order, some merges, other control tokens and turns."""
    merges = [("t", "h"), ("th", "e"), ("i", "n")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), "th", "the", "in"]
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["[start]", "[stop]"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="[stop]",
        pad_token="[stop]",
        extra_special_tokens=specials[:1],
        chat_template="{% for m in messages %}[start]{{ m['role'] }}: {{ m['content'] }}[stop]"
        "{% endfor %}{% if add_generation_prompt %}[start]assistant: {% endif %}",
    )


def save_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model folder as `model=local model.path=...` takes it."""
    model.config.max_position_embeddings = 8192
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a byte tokenizer."""
    return save_model(tmp_path_factory.mktemp("tiny-model"), tiny_model(seed=0), byte_tokenizer())


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of another size with another tokenizer."""
    model = tiny_model(seed=1, hidden_size=48, vocab_size=272)
    return save_model(tmp_path_factory.mktemp("other-model"), model, merging_tokenizer())


@pytest.fixture(scope="session")
def medical() -> Constitution:
    return constitution.load("medical", folder=paths.CONSTITUTIONS)
