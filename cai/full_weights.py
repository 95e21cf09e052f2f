"""Full fine-tuning: every role is a float32 copy of the base's weights, beside the base.

`FullCopies` stands where a `PeftModel` stands when all weights are trained (`model.adapter=none`).
It answers to the names of PEFT's interface that this project uses (`active_adapter`, `set_adapter`,
`set_requires_grad`, `get_base_model`, `unload`), and has the methods of `low_rank.LowRank`, which
are what the two kinds do differently. So `adapters.py` has one function for both, and a caller
never asks which it has.

Numbers. Trained weights are float32 (an update of 1e-5 of a weight is lost in bfloat16's 8 bits)
and compute under autocast in the base's number format. Frozen roles are float32 under autocast
too, although they could be kept in half the memory: the reference must compute exactly like the
policy that starts as its copy, or PPO would see a divergence before anything was learned. The base
is only read, so other roles of a run (feedback, critiques) that share it see nothing of this.

Memory, bytes per parameter: the base's own 2 or 4, 4 for each role, and 12 for gradient and Adam's
moments of the one that is trained; PPO has three roles.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, PreTrainedModel

from cai.errors import UserError
from cai.model_config import LoRAConfig


def freeze(model: PreTrainedModel) -> None:
    """Let nothing of a model learn and nothing in it be random: dropout becomes zero."""
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        # Attention keeps its rate as a number (`attention_dropout`), other layers in `p`.
        for name, value in list(vars(module).items()):
            rate = "dropout" in name or (name == "p" and isinstance(module, nn.Dropout))
            if rate and isinstance(value, float):
                setattr(module, name, 0.0)


def copy_of(
    model: PreTrainedModel, parameter_of: Callable[[Parameter], Parameter]
) -> PreTrainedModel:
    """A model of the same build with other parameters; tied ones stay tied.

    How the weights were packed in the file they came from (`quantization_config`) is left out: it
    is not true of the copy.
    """
    memo = {id(parameter): parameter_of(parameter) for parameter in model.parameters()}
    copied = copy.deepcopy(model, memo)
    for owner, name in (
        (copied, "peft_config"),
        (copied, "hf_quantizer"),
        (copied.config, "quantization_config"),
    ):
        vars(owner).pop(name, None)
    return copied


def read_plain(folder: Path) -> PreTrainedModel:
    """Read a model in float32 from a folder as `transformers` writes it.

    Raises:
        UserError: when it is not such a folder.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded as a model: {error}") from error


def write_plain(model: PreTrainedModel, folder: Path) -> None:
    """Write a model as a folder that plain `transformers` loads: safetensors and JSON.

    Raises:
        UserError: when the files cannot be written.
    """
    try:
        model.save_pretrained(folder)
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors makes them readable by their owner only
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Cannot write the model to {folder}: {error}. Free some space or choose another "
            "folder, then run the same command again."
        ) from error


class FullCopies(nn.Module):
    """A frozen base and its copies, one for each role.

    Args:
        base: Frozen, without adapters; never changed.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base
        self.copies = nn.ModuleDict()
        self.active_adapter = ""
        """The role that a pass with gradient is for; its name is PEFT's."""

    @property
    def device(self) -> torch.device:
        """Where the base and the copies are."""
        return self.base.device

    def get_base_model(self) -> PreTrainedModel:
        """The base."""
        return self.base

    def set_adapter(self, name: str) -> None:
        """Make a role the active one."""
        self.active_adapter = name

    def set_requires_grad(self, name: str, requires_grad: bool) -> None:
        """Say whether a role's weights learn."""
        self.copies[name].requires_grad_(requires_grad)

    def delete_adapter(self, name: str) -> None:
        """Forget a role."""
        del self.copies[name]

    def unload(self) -> PreTrainedModel:
        """Forget all roles; the base is as it was."""
        self.copies.clear()
        return self.base

    def names(self) -> list[str]:
        """The roles."""
        return list(self.copies)

    def lora_of(self, name: str) -> None:
        """None: a role is not an adapter."""

    def add(self, name: str, lora: LoRAConfig | None, seed: int) -> None:
        """Add a role that is equal to the base, frozen.

        Args:
            name: The role.
            lora: None.
            seed: Not used: nothing is random here.

        Raises:
            UserError: when it is to be an adapter.
        """
        if lora is not None:
            raise UserError(
                f"{name} is a low-rank adapter, and other roles on this base have all weights "
                "trained. Type the same adapter=lora or adapter=none for every trained model"
            )
        self.copies[name] = copy_of(
            self.base,
            lambda p: Parameter(p.detach().to(torch.float32, copy=True), requires_grad=False),
        )

    def own(self, name: str) -> dict[str, Parameter]:
        """What belongs to a role, by the name that it has in files."""
        return dict(self.copies[name].named_parameters())

    @torch.no_grad()
    def fill(self, name: str, folder: Path) -> None:
        """Take a role's weights from a folder that `write` made.

        They are copied: those that are read lie in memory as they lie in the file, and at another
        alignment a product's last bits differ.

        Raises:
            UserError: when they are of another architecture.
        """
        saved, own = dict(read_plain(folder).named_parameters()), self.own(name)
        if {k: p.shape for k, p in saved.items()} != {k: p.shape for k, p in own.items()}:
            raise UserError(f"{folder}: its layers are not those of this model")
        for key, parameter in own.items():
            parameter.copy_(saved[key])

    def write(self, name: str, folder: Path, base_id: str) -> None:
        """Write a role as a plain model; `base_id` is not in these files."""
        write_plain(self.copies[name], folder)

    def plain(self, name: str) -> PreTrainedModel:
        """A frozen model in the base's number format; in float32 it shares the role's memory."""
        dtype = base_dtype(self)
        return copy_of(
            self.copies[name], lambda p: Parameter(p.detach().to(dtype), requires_grad=False)
        ).eval()

    def refresh(self, plain: PreTrainedModel, name: str) -> None:
        """Bring what `plain` gave up to date."""
        own = self.own(name)
        for key, parameter in plain.named_parameters():
            if parameter.data_ptr() != own[key].data_ptr():
                parameter.copy_(own[key])


Tuned = PeftModel | FullCopies
"""A frozen base with the roles that are trained on it: adapters, or copies of all weights."""


def causal_of(model: Tuned, adapter: str) -> PreTrainedModel:
    """The language model that computes as a role; of adapters, the base while one is active."""
    if isinstance(model, FullCopies):
        return model.copies[adapter]
    return model.get_base_model()


def base_dtype(model: Tuned) -> torch.dtype:
    """Number format of the frozen base, in which all roles compute."""
    return model.get_base_model().get_input_embeddings().weight.dtype
