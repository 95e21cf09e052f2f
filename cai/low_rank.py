"""Low-rank adapters by PEFT (Hu et al. 2021): each role is a LoRA adapter of one frozen base.

Adapters are float32, whatever the base. Their initial values are Kaiming-uniform A and zero B, as
PEFT's, but from one random stream for each layer. Quantised bases, and adapters on embeddings or on
the output layer, are refused or not here.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cai.artifacts import write_atomically, write_json
from cai.errors import UserError
from cai.full_weights import copy_of
from cai.heads import seeded_generator
from cai.model_config import LoRAConfig

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@contextlib.contextmanager
def keeping_grad_flags(model: nn.Module) -> Iterator[None]:
    """Put every parameter's `requires_grad` back; PEFT changes it whenever an adapter moves."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def lora_layers(model: PeftModel, adapter: str) -> dict[str, LoraLinear]:
    """Layers that carry an adapter, by their name in the base model."""
    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLinear) and adapter in module.lora_A
    }


def _initialise(model: PeftModel, adapter: str, seed: int) -> None:
    for name, layer in lora_layers(model, adapter).items():
        weight = layer.lora_A[adapter].weight
        drawn = torch.empty(weight.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=seeded_generator(seed, name))
        with torch.no_grad():
            weight.copy_(drawn)
            layer.lora_B[adapter].weight.zero_()


def _peft_config(lora: LoRAConfig) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def attach(base: PreTrainedModel, lora: LoRAConfig, *, adapter: str, seed: int) -> PeftModel:
    """Give a frozen base its first adapter; the base's layers are wrapped in place.

    Raises:
        UserError: when a target module is not in the trunk.
    """
    if not any(isinstance(module, LoraLinear) for module in base.modules()):
        # `PeftModel.unload` leaves it behind, and PEFT would take it for other adapters.
        vars(base).pop("peft_config", None)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks transformers for a property by its old name.
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(base, _peft_config(lora), adapter_name=adapter)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
        raise UserError(
            f"model.lora.target_modules={lora.target_modules} does not fit "
            f"{type(base).__name__}: {error} Its linear layers are {', '.join(sorted(linear))}."
        ) from error
    if not lora_layers(model, adapter) or "lm_head" in lora.target_modules:
        raise UserError(
            f"model.lora.target_modules={lora.target_modules}: name linear layers of the trunk; "
            "the embeddings and lm_head stay frozen."
        )
    _initialise(model, adapter, seed)
    return model


def saved_lora(folder: Path) -> LoRAConfig | None:
    """Rank, scale and layers of the adapter in a folder; None: there are all weights of a model."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    config = json.loads(path.read_bytes())
    return LoRAConfig(
        rank=config["r"], alpha=config["lora_alpha"], target_modules=config["target_modules"]
    )


def write_empty(architecture: PreTrainedConfig, lora: LoRAConfig, folder: Path) -> None:
    """Write an adapter that changes nothing, for a model whose weights are not read.

    Args:
        architecture: Of the model.
        lora: Rank, scale and layers.
        folder: Made when it is not there.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    state = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in lora.target_modules:
            key = f"base_model.model.{name}"
            state[f"{key}.lora_A.weight"] = torch.zeros(lora.rank, layer.in_features)
            state[f"{key}.lora_B.weight"] = torch.zeros(layer.out_features, lora.rank)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ADAPTER_FILE, to_safetensors(state))
    config = _peft_config(lora).to_dict() | {"inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / CONFIG_FILE, config)


def _merged_weight(layer: LoraLinear, adapter: str) -> Tensor:
    weight = layer.get_base_layer().weight
    return (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)


class LowRank:
    """What `adapters.py` does with roles, for those that are adapters.

    Args:
        model: Base with adapters.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def names(self) -> list[str]:
        """The roles."""
        return list(self.model.peft_config)

    def lora_of(self, name: str) -> LoRAConfig:
        """Rank, scale and layers of an adapter."""
        config = self.model.peft_config[name]
        return LoRAConfig(
            rank=config.r, alpha=config.lora_alpha, target_modules=sorted(config.target_modules)
        )

    def add(self, name: str, lora: LoRAConfig | None, seed: int) -> None:
        """Add an adapter that changes nothing yet, frozen.

        Args:
            name: The role.
            lora: Rank, scale and layers.
            seed: The initial values are a pure function of it and of the layers' names.

        Raises:
            UserError: when all weights are to be trained.
        """
        if lora is None:
            raise UserError(
                f"{name} has all weights trained, and other roles on this base are low-rank "
                "adapters. Type the same adapter=lora or adapter=none for every trained model"
            )
        with keeping_grad_flags(self.model), torch.random.fork_rng(devices=[]):
            self.model.add_adapter(name, _peft_config(lora))
        _initialise(self.model, name, seed)
        # PEFT leaves what it adds trainable on layers that it wraps anew.
        self.model.set_requires_grad(name, False)

    def own(self, name: str) -> dict[str, Parameter]:
        """What belongs to a role, by the name that it has in PEFT's files."""
        return {
            f"base_model.model.{layer_name}.{part}.weight": module[name].weight
            for layer_name, layer in lora_layers(self.model, name).items()
            for part, module in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
        }

    @torch.no_grad()
    def fill(self, name: str, folder: Path) -> None:
        """Take an adapter's weights from a folder that `write` made.

        Raises:
            UserError: when they are of other layers or another rank.
        """
        path = folder / ADAPTER_FILE
        saved, own = load_safetensors(path), self.own(name)
        if {k: t.shape for k, t in saved.items()} != {k: p.shape for k, p in own.items()}:
            raise UserError(f"{path}: its layers are not those of this model")
        for key, parameter in own.items():
            parameter.copy_(saved[key])

    def write(self, name: str, folder: Path, base_id: str) -> None:
        """Write an adapter as plain `peft` does, under the base's public name."""
        state = {k: p.detach().cpu().contiguous() for k, p in sorted(self.own(name).items())}
        write_atomically(folder / ADAPTER_FILE, to_safetensors(state))
        config = self.model.peft_config[name].to_dict()
        config |= {"base_model_name_or_path": base_id, "inference_mode": True}
        config["target_modules"] = sorted(config["target_modules"])
        write_json(folder / CONFIG_FILE, config)

    def plain(self, name: str) -> PreTrainedModel:
        """The base with an adapter merged; only the merged layers take memory."""
        plain = copy_of(self.model.get_base_model(), lambda parameter: parameter)
        for key, layer in lora_layers(self.model, name).items():
            inner = layer.get_base_layer()
            linear = nn.Linear(inner.in_features, inner.out_features, bias=False, device="meta")
            linear.weight = Parameter(_merged_weight(layer, name), requires_grad=False)
            linear.bias = inner.bias
            parent, _, child = key.rpartition(".")
            plain.get_submodule(parent).add_module(child, linear)
        return plain.eval()

    def refresh(self, plain: PreTrainedModel, name: str) -> None:
        """Bring what `plain` gave up to date, from base and adapter, so that nothing drifts."""
        for key, layer in lora_layers(self.model, name).items():
            plain.get_submodule(key).weight.copy_(_merged_weight(layer, name))
