"""A model's shape, from its `config.json` alone.

The architecture is built by transformers on the `meta` device, which has sizes and no numbers, so
parameters are counted exactly for any architecture, and no weight is read or made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from cai import embedded
from cai.choices import ModelSource
from cai.errors import UserError
from cai.model_config import ModelConfig

PUBLISHED = Path(__file__).with_name("published.json")
"""Shapes of models as their makers published them in `config.json`."""
WRITTEN_OUT = ("llama", "qwen2", "qwen3")
"""Model types whose forward pass on a CPU is this project's (`decoding.py`, `fused.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Linear layers of one name and size, such as all `q_proj`."""

    name: str
    num_in: int
    num_out: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides how much memory and work a causal language model takes."""

    parameters: int
    """Tied ones counted once."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the gated layer."""
    vocabulary: int
    linears: tuple[Linear, ...]
    """Of the trunk, the output layer left out."""
    written_out: bool
    """Whether this project has its own forward pass for it on a CPU."""
    stored_bytes: int
    """Bytes per parameter in its files, as its config says."""
    names_layers: bool
    """Whether transformers says which of its modules are the layers that follow one another."""

    @property
    def per_layer(self) -> int:
        """Parameters of one layer's linear maps."""
        return sum(one.num_in * one.num_out * one.count for one in self.linears) // self.layers

    def matching(self, names: Sequence[str]) -> int:
        """Parameters of the linear layers of these names."""
        return sum(
            one.num_in * one.num_out * one.count for one in self.linears if one.name in names
        )

    def low_rank(self, rank: int, names: Sequence[str]) -> int:
        """Parameters of adapters of a rank: A (rank, in) and B (out, rank) (Hu et al. 2021)."""
        return sum(
            rank * (one.num_in + one.num_out) * one.count
            for one in self.linears
            if one.name in names
        )


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of the model that a config describes."""
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    found = Counter(
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    heads = text.num_attention_heads
    known = text.to_dict()
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=known.get("num_key_value_heads") or heads,
        head_dim=known.get("head_dim") or text.hidden_size // heads,
        intermediate=known.get("intermediate_size") or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        linears=tuple(
            Linear(name=name, num_in=num_in, num_out=num_out, count=count)
            for (name, num_in, num_out), count in found.items()
        ),
        written_out=text.model_type in WRITTEN_OUT,
        stored_bytes=stored.itemsize,
        names_layers=bool(model._no_split_modules),
    )


def _place(model: ModelConfig) -> tuple[str | Path, dict[str, str | bool | None]]:
    """What transformers reads a model's small files from; of a hub model it fetches those alone."""
    match model.source:
        case ModelSource.embedded:
            return embedded.made(embedded.named(model.path)), {"local_files_only": True}
        case ModelSource.path:
            return Path(model.path).expanduser(), {"local_files_only": True}
        case ModelSource.hub:
            return model.path, {"revision": model.revision}


def model_shape(model: ModelConfig) -> Shape:
    """The shape of a configured model; its weights are not read, and not downloaded.

    Raises:
        UserError: when it has no readable config.
    """
    folder, how = _place(model)
    try:
        return shape_of(AutoConfig.from_pretrained(folder, **how))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {model.name}: the config.json of {model.path} cannot be read, which says how "
            f"large it is ({type(error).__name__}: {error})"
        ) from error


def model_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """A configured model's tokenizer.

    Raises:
        UserError: when it cannot be read.
    """
    folder, how = _place(model)
    try:
        return AutoTokenizer.from_pretrained(folder, **how)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model.name}: its tokenizer cannot be read: {error}") from error


@cache
def published() -> dict[str, Shape]:
    """Published shapes by the name on the Hugging Face hub."""
    found: dict[str, Shape] = {}
    for name, fields in json.loads(PUBLISHED.read_text("ascii")).items():
        found[name] = shape_of(AutoConfig.for_model(**fields))
    return found
