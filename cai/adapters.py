"""Several low-rank adapters and small heads on one frozen base model.

Policy, SL-CAI reference and preference model are LoRA adapters (Hu et al. 2021) of one base in
memory; a value or preference head is one linear layer on the last hidden states. The reference is
the SL-CAI adapter, never "adapter off", which would be the base.

Adapters and heads are float32; the base is float32 or bfloat16. On a bfloat16 base the trunk runs
under autocast with PEFT's own casting of inputs off, which was measured to be 1.8 times as fast as
PEFT's default. Dropout is zero everywhere: a ratio of probabilities must not depend on noise.

What is not here: full fine-tuning, quantised bases, adapters on embeddings or on the head.

Shapes: B sequences, S prompt and response tokens, H hidden size.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers import PreTrainedModel

from cai.artifacts import write_atomically
from cai.errors import UserError
from cai.heads import ScoreHead, seeded_generator
from cai.model_config import LoRAConfig

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
IDENTITY_FILE = "cai.json"


def base_dtype(model: PeftModel) -> torch.dtype:
    """Number format of the frozen base."""
    return model.get_base_model().get_input_embeddings().weight.dtype


def _freeze(base: PreTrainedModel) -> None:
    if not any(isinstance(module, LoraLinear) for module in base.modules()):
        # `PeftModel.unload` leaves it behind, and PEFT would take it for other adapters.
        vars(base).pop("peft_config", None)
    base.requires_grad_(False)
    base.eval()
    for module in base.modules():
        # Attention keeps its rate as a number (`attention_dropout`), other layers in `p`.
        for name, value in list(vars(module).items()):
            rate = "dropout" in name or (name == "p" and isinstance(module, nn.Dropout))
            if rate and isinstance(value, float):
                setattr(module, name, 0.0)


def lora_layers(model: PeftModel, adapter: str) -> dict[str, LoraLinear]:
    """Layers that carry an adapter, by their name in the base model."""
    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLinear) and adapter in module.lora_A
    }


def _initialise(model: PeftModel, adapter: str, seed: int) -> None:
    """Kaiming-uniform A and zero B, as PEFT does, but from one random stream per layer."""
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


def _check_trunk(model: PeftModel) -> None:
    """Refuse an architecture whose logits are not simply head(trunk(ids))."""
    causal = model.get_base_model()
    ids = torch.arange(1, 9, device=causal.device)[None] % causal.config.vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        hidden = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        ours = causal.get_output_embeddings()(hidden.last_hidden_state)
        theirs = causal(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if not torch.allclose(ours.float(), theirs.float(), atol=1e-3, rtol=1e-3):
        raise UserError(
            f"model: {type(causal).__name__} changes its logits after the output layer (a cap or "
            "a scale), which training does not follow. Choose another model, for example of the "
            "Llama, Qwen or SmolLM families."
        )


def attach(base: PreTrainedModel, lora: LoRAConfig, *, adapter: str, seed: int) -> PeftModel:
    """Freeze a base model and give it its first adapter, which changes nothing yet.

    Args:
        base: Changed in place: frozen, dropout set to zero, layers wrapped.
        lora: Rank, scale and layers.
        adapter: The adapter's name; it becomes the active one.
        seed: The initial values are a pure function of it and of the layers' names.

    Raises:
        UserError: when a target module is not in the model, or the model's head is not plain.
    """
    _freeze(base)
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
    _check_trunk(model)
    return model


@contextlib.contextmanager
def keeping_grad_flags(model: PeftModel) -> Iterator[None]:
    """Put every parameter's `requires_grad` back; PEFT changes it whenever an adapter moves."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def add(model: PeftModel, lora: LoRAConfig, adapter: str, seed: int) -> None:
    """Add another adapter, which changes nothing yet and is not made the active one."""
    with keeping_grad_flags(model), torch.random.fork_rng(devices=[]):
        model.add_adapter(adapter, _peft_config(lora))
    _initialise(model, adapter, seed)
    # PEFT leaves what it adds trainable on layers that it wraps anew.
    model.set_requires_grad(adapter, False)


def lora_of(model: PeftModel, adapter: str) -> LoRAConfig:
    """Rank, scale and layers of an adapter."""
    config = model.peft_config[adapter]
    return LoRAConfig(
        rank=config.r, alpha=config.lora_alpha, target_modules=sorted(config.target_modules)
    )


@torch.no_grad()
def copy_adapter(model: PeftModel, source: str, target: str) -> None:
    """Make `target` equal to `source`; it is added when it does not exist."""
    if target not in model.peft_config:
        add(model, lora_of(model, source), target, seed=0)
    for layer in lora_layers(model, source).values():
        layer.lora_A[target].weight.copy_(layer.lora_A[source].weight)
        layer.lora_B[target].weight.copy_(layer.lora_B[source].weight)


@torch.no_grad()
def same_adapter(model: PeftModel, one: str, other: str) -> bool:
    """Whether two adapters compute the same, bit for bit."""
    return all(
        torch.equal(layer.lora_A[one].weight, layer.lora_A[other].weight)
        and torch.equal(layer.lora_B[one].weight, layer.lora_B[other].weight)
        for layer in lora_layers(model, one).values()
    )


@contextlib.contextmanager
def active(model: PeftModel, name: str) -> Iterator[None]:
    """Switch to an adapter, and back to the one before with every `requires_grad` as it was."""
    before = model.active_adapter
    with keeping_grad_flags(model):
        if name != before:
            model.set_adapter(name)
        try:
            yield
        finally:
            if name != before:
                model.set_adapter(before)


@contextlib.contextmanager
def training(model: PeftModel, adapter: str) -> Iterator[None]:
    """Switch to an adapter and make it the only trainable one, then restore everything."""
    with active(model, adapter):
        model.requires_grad_(False)
        model.set_requires_grad(adapter, True)
        yield


def forward_hidden(model: PeftModel, ids_BS: Tensor, mask_BS: Tensor, *, adapter: str) -> Tensor:
    """Last hidden states (B, S, H) of the trunk, without the language-model head.

    Args:
        model: Base with adapters. For a pass with gradient, `adapter` must be active already.
        ids_BS: Padded on the right.
        mask_BS: True on tokens, bool. States at padded places mean nothing.
        adapter: The adapter that computes.
    """
    position_ids_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)
    dtype = base_dtype(model)
    reduced = dtype != torch.float32
    with contextlib.ExitStack() as stack:
        if adapter != model.active_adapter:
            if torch.is_grad_enabled():
                raise AssertionError(f"adapter {adapter} is not active in a pass with gradient")
            stack.enter_context(active(model, adapter))
        stack.enter_context(disable_input_dtype_casting(model, active=reduced))
        stack.enter_context(torch.autocast(ids_BS.device.type, dtype=dtype, enabled=reduced))
        trunk = model.get_base_model().base_model
        return trunk(
            input_ids=ids_BS,
            attention_mask=mask_BS.long(),
            position_ids=position_ids_BS,
            use_cache=False,
        ).last_hidden_state


def _merged_weight(layer: LoraLinear, adapter: str) -> Tensor:
    weight = layer.get_base_layer().weight
    return (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)


@torch.no_grad()
def merged_copy(model: PeftModel, adapter: str) -> PreTrainedModel:
    """A plain model with an adapter merged into its weights, for fast sampling.

    Only the merged layers take memory; everything else is shared with the base, whose weights
    keep every bit. In bfloat16 the sum is rounded, so its log-probabilities differ a little from
    those of training, which computes its own.
    """
    causal = model.get_base_model()
    shared = {id(parameter): parameter for parameter in causal.parameters()}
    plain = copy.deepcopy(causal, shared)
    vars(plain).pop("peft_config", None)
    for name, layer in lora_layers(model, adapter).items():
        inner = layer.get_base_layer()
        linear = nn.Linear(inner.in_features, inner.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(_merged_weight(layer, adapter), requires_grad=False)
        linear.bias = inner.bias
        parent, _, child = name.rpartition(".")
        plain.get_submodule(parent).add_module(child, linear)
    return plain.eval()


@torch.no_grad()
def refresh_merged(plain: PreTrainedModel, model: PeftModel, adapter: str) -> None:
    """Bring a merged copy up to date, from the base and the adapter, so that nothing drifts."""
    for name, layer in lora_layers(model, adapter).items():
        plain.get_submodule(name).weight.copy_(_merged_weight(layer, adapter))


def _adapter_state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """What a model says after a short sequence of tokens."""

    logits: Tensor
    """(V,), float32, on the CPU."""
    score: float | None
    """None without a head."""


@torch.no_grad()
def _probe(
    model: PeftModel, adapter: str, head: ScoreHead | None, probe_ids: Sequence[int]
) -> _Probe:
    ids = torch.tensor([list(probe_ids)], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden = forward_hidden(model, ids, mask, adapter=adapter)[:, -1]
    output = model.get_base_model().get_output_embeddings()
    return _Probe(
        logits=output(hidden.to(output.weight.dtype))[0].float().cpu(),
        score=None if head is None else float(head(hidden)[0]),
    )


def _fill_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    path = folder / ADAPTER_FILE
    state = load_safetensors(path)
    ours = {name: tensor.shape for name, tensor in _adapter_state(model, adapter).items()}
    if ours != {name: tensor.shape for name, tensor in state.items()}:
        raise UserError(f"{path}: its layers are not those of this model")
    with keeping_grad_flags(model):
        set_peft_model_state_dict(model, state, adapter_name=adapter)


def _check_round_trip(
    model: PeftModel, adapter: str, folder: Path, head: ScoreHead | None, probe_ids: Sequence[int]
) -> None:
    """Read the files back and compare logits and score with what is in memory, bit for bit."""
    name = "round_trip"
    add(model, lora_of(model, adapter), name, seed=0)
    try:
        _fill_adapter(model, name, folder)
        saved_head = load_head(folder).to(model.device) if head is not None else None
        memory = _probe(model, adapter, head, probe_ids)
        disk = _probe(model, name, saved_head, probe_ids)
    finally:
        with keeping_grad_flags(model):
            model.delete_adapter(name)
    if not torch.equal(memory.logits, disk.logits) or memory.score != disk.score:
        raise UserError(
            f"{folder}: adapter {adapter} does not give the same logits when it is read back. The "
            "files cannot be trusted; the disk may be faulty. Choose another output_dir."
        )


def save_adapter(
    model: PeftModel,
    adapter: str,
    folder: Path,
    *,
    head: ScoreHead | None = None,
    base_id: str,
    base_sha256: str,
    probe_ids: Sequence[int],
) -> None:
    """Write an adapter, and a head, as a folder that plain `peft` loads; then read it back.

    Files: `adapter_model.safetensors` and `adapter_config.json` for peft, `head.safetensors`, and
    `cai.json` with the base's identity and what the probe sequence gave. No path of this machine
    is in them, and the same weights give the same bytes.

    Args:
        model: Base with adapters.
        adapter: The one to save.
        folder: Made when it is not there.
        head: Saved along with it, its calibration included.
        base_id: How the base model is called for others, e.g. its hub id.
        base_sha256: Hash of the base's weights.
        probe_ids: A short token sequence, at least one id.

    Raises:
        UserError: when the files cannot be written, or do not give the same logits and score.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ADAPTER_FILE, to_safetensors(_adapter_state(model, adapter)))
    config = model.peft_config[adapter].to_dict()
    config |= {"base_model_name_or_path": base_id, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    _write_json(folder / CONFIG_FILE, config)
    if head is not None:
        state = {name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
        write_atomically(folder / HEAD_FILE, to_safetensors(state))
    seen = _probe(model, adapter, head, probe_ids)
    top = seen.logits.topk(min(16, len(seen.logits))).indices.sort().values
    probe = {
        "ids": list(probe_ids),
        "token_ids": top.tolist(),
        "logits": seen.logits[top].tolist(),
        "score": seen.score,
    }
    identity = {"base_id": base_id, "base_sha256": base_sha256, "dtype": str(base_dtype(model))}
    _write_json(folder / IDENTITY_FILE, identity | {"probe": probe})
    _check_round_trip(model, adapter, folder, head, probe_ids)


def _write_json(path: Path, value: dict[str, object]) -> None:
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=1, sort_keys=True)
    write_atomically(path, (text + "\n").encode("ascii"))


def _check_probe(model: PeftModel, adapter: str, folder: Path, identity: dict[str, Any]) -> None:
    """The adapter must still say of the probe sequence what it said when it was saved."""
    probe = identity["probe"]
    same_dtype = identity["dtype"] == str(base_dtype(model)) == "torch.float32"
    now = _probe(model, adapter, None, probe["ids"]).logits[torch.tensor(probe["token_ids"])]
    gap = float((now - torch.tensor(probe["logits"])).abs().max())
    # bfloat16 keeps 8 bits, and its sums differ from one machine and thread count to another.
    if not gap <= (1e-3 if same_dtype else 1.0):
        raise UserError(
            f"{folder}: the adapter's logits are off by {gap:.3g} from those at the time it was "
            "saved. Use the base model and the versions it was made with (see cai.json)."
        )


def identity_of(folder: Path, base_sha256: str) -> dict[str, Any]:
    """What a saved adapter says of itself.

    Raises:
        UserError: when it belongs to another base.
    """
    identity = json.loads((folder / IDENTITY_FILE).read_bytes())
    if identity["base_sha256"] != base_sha256:
        raise UserError(
            f"{folder}: the adapter was trained on {identity['base_id']} (weights "
            f"{identity['base_sha256'][:12]}), not on this base (weights {base_sha256[:12]})."
        )
    return identity


def _saved_lora(folder: Path) -> LoRAConfig:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    return LoRAConfig(
        rank=config["r"], alpha=config["lora_alpha"], target_modules=config["target_modules"]
    )


def load(base: PreTrainedModel, folder: Path, *, adapter: str, base_sha256: str) -> PeftModel:
    """Attach an adapter that `save_adapter` wrote; it becomes the active one and is frozen.

    Only safetensors and JSON are read.

    Args:
        base: Without adapters; changed in place as by `attach`.
        folder: As given to `save_adapter`.
        adapter: The adapter's name here.
        base_sha256: Hash of this base's weights.

    Raises:
        UserError: when it belongs to another base, or its logits are not what they were.
    """
    identity = identity_of(folder, base_sha256)
    model = attach(base, _saved_lora(folder), adapter=adapter, seed=0)
    model.set_requires_grad(adapter, False)
    _fill_adapter(model, adapter, folder)
    _check_probe(model, adapter, folder, identity)
    return model


def load_adapter(model: PeftModel, folder: Path, *, adapter: str, base_sha256: str) -> None:
    """Like `load`, as a further adapter of a model that has some; it is not made active."""
    identity = identity_of(folder, base_sha256)
    add(model, _saved_lora(folder), adapter, seed=0)
    _fill_adapter(model, adapter, folder)
    _check_probe(model, adapter, folder, identity)


def load_head(folder: Path) -> ScoreHead:
    """The head that was saved with an adapter, on the CPU."""
    state = load_safetensors(folder / HEAD_FILE)
    head = ScoreHead(state["linear.weight"].shape[1], seed=0)
    head.load_state_dict(state)
    return head
