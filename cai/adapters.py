"""Several trained roles and small heads on one frozen base model.

Policy, SL-CAI reference and preference model are roles of one base in memory: LoRA adapters
(`low_rank.py`), or float32 copies of all weights (`full_weights.py`, `model.adapter=none`). A value
or preference head is one linear layer on the last hidden states. The reference is the SL-CAI role,
never "adapter off", which would be the base. `adapter` names a role of either kind.

What is trained is float32; the base is float32 or bfloat16. With a bfloat16 base the trunk runs
under autocast, for adapters with PEFT's own casting of inputs off, which was measured to be 1.8
times as fast as PEFT's default. Dropout is zero everywhere: a ratio of probabilities must not
depend on noise.

What is not here: quantised bases, adapters on embeddings or on the head.

Shapes: B sequences, S prompt and response tokens, H hidden size.
"""

# ruff: noqa: N803, N806 -- names end in their shape

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from cai import attention, low_rank
from cai.artifacts import write_atomically, write_json
from cai.batches import TokenBatch, joined_pairs
from cai.errors import UserError
from cai.full_weights import FullCopies, Tuned, base_dtype, causal_of, freeze
from cai.fused import fused
from cai.heads import ScoreHead
from cai.low_rank import LowRank, keeping_grad_flags, saved_lora
from cai.model_config import LoRAConfig
from cai.recomputing import checkpointed
from cai.split_weights import TRUNK_PASS

HEAD_FILE = "head.safetensors"
IDENTITY_FILE = "cai.json"


def _roles(model: Tuned) -> LowRank | FullCopies:
    return model if isinstance(model, FullCopies) else LowRank(model)


def _check_trunk(causal: PreTrainedModel) -> None:
    """Refuse an architecture whose logits are not simply head(trunk(ids))."""
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


def attach(base: PreTrainedModel, lora: LoRAConfig | None, *, adapter: str, seed: int) -> Tuned:
    """Freeze a base model and give it its first role, which changes nothing yet.

    Args:
        base: Frozen and its dropout set to zero in place; for an adapter, its layers are wrapped.
        lora: Rank, scale and layers of adapters; None: all weights are trained, in copies.
        adapter: The role's name; it becomes the active one.
        seed: An adapter's initial values are a pure function of it and of the layers' names.

    Raises:
        UserError: when a target module is not in the model, or the model's head is not plain.
    """
    freeze(base)
    if lora is None:
        model = FullCopies(base)
        model.add(adapter, lora, seed)
        model.set_adapter(adapter)
        model.set_requires_grad(adapter, True)
    else:
        model = low_rank.attach(base, lora, adapter=adapter, seed=seed)
    _check_trunk(base)
    return model


def add(model: Tuned, lora: LoRAConfig | None, adapter: str, seed: int) -> None:
    """Add another role, which changes nothing yet and is not made the active one.

    Raises:
        UserError: when it is not of the kind of those that are there.
    """
    _roles(model).add(adapter, lora, seed)


@torch.no_grad()
def copy_adapter(model: Tuned, source: str, target: str) -> None:
    """Make `target` equal to `source`; it is added when it does not exist."""
    roles = _roles(model)
    if target not in roles.names():
        roles.add(target, roles.lora_of(source), seed=0)
    learned = roles.own(source)
    for name, parameter in roles.own(target).items():
        parameter.copy_(learned[name])


@torch.no_grad()
def same_adapter(model: Tuned, one: str, other: str) -> bool:
    """Whether two roles compute the same, bit for bit."""
    others = _roles(model).own(other)
    return all(torch.equal(p, others[name]) for name, p in _roles(model).own(one).items())


def parameters_of(model: Tuned, adapter: str) -> list[Parameter]:
    """What belongs to a role."""
    return list(_roles(model).own(adapter).values())


@contextlib.contextmanager
def active(model: Tuned, name: str) -> Iterator[None]:
    """Switch to a role, and back to the one before with every `requires_grad` as it was."""
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
def training(model: Tuned, adapter: str) -> Iterator[None]:
    """Switch to a role and make it the only trainable one, then restore everything."""
    with active(model, adapter):
        model.requires_grad_(False)
        model.set_requires_grad(adapter, True)
        yield


@contextlib.contextmanager
def _computing(model: Tuned, adapter: str) -> Iterator[PreTrainedModel]:
    """The language model that computes as a role, in the number format of training."""
    dtype = base_dtype(model)
    reduced = dtype != torch.float32
    with contextlib.ExitStack() as stack:
        if adapter != model.active_adapter:
            if torch.is_grad_enabled():
                raise AssertionError(f"adapter {adapter} is not active in a pass with gradient")
            stack.enter_context(active(model, adapter))
        causal = causal_of(model, adapter)
        way = partial(_in_our_way, model, causal, reduced)
        stack.enter_context(torch.autocast(model.device.type, dtype=dtype, enabled=reduced))
        stack.enter_context(way(causal))
        stack.enter_context(checkpointed(causal, way))
        yield causal


@contextlib.contextmanager
def _in_our_way(
    model: Tuned, causal: PreTrainedModel, reduced: bool, part: nn.Module
) -> Iterator[None]:
    """Have a part of a language model, or all of it, compute as in training.

    Args:
        model: Base with roles.
        causal: The language model that computes.
        reduced: Whether the base is not in float32.
        part: Of the language model.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(disable_input_dtype_casting(part, active=reduced))
        if attention.needs_no_mask(causal):
            stack.enter_context(attention.written_out(causal))
        if isinstance(model, PeftModel) and causal.device.type == "cpu":
            stack.enter_context(fused(causal, part))
        yield


def _trunk(causal: PreTrainedModel) -> Callable[..., Any]:
    """The trunk; of split weights (`split_weights.py`) with what gathers them."""
    return getattr(causal, TRUNK_PASS, causal.base_model)


def forward_hidden(model: Tuned, ids_BS: Tensor, mask_BS: Tensor, *, adapter: str) -> Tensor:
    """Last hidden states (B, S, H) of the trunk, without the language-model head.

    Args:
        model: Base with roles. For a pass with gradient, `adapter` must be active already.
        ids_BS: Padded on the right.
        mask_BS: True on tokens, bool. States at padded places mean nothing.
        adapter: The role that computes.
    """
    with _computing(model, adapter) as causal:
        places = {}
        if not attention.needs_no_mask(causal):
            positions_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)
            places = {"attention_mask": mask_BS.long(), "position_ids": positions_BS}
        return _trunk(causal)(input_ids=ids_BS, use_cache=False, **places).last_hidden_state


def forward_pairs(model: Tuned, tokens: TokenBatch, *, adapter: str) -> Tensor:
    """Like `forward_hidden`, of sequences whose second half has the prompts of the first.

    On a CPU each prompt is computed once, with both responses behind it in one row.

    Args:
        model: As in `forward_hidden`.
        tokens: 2P sequences (`PairBatch`).
        adapter: The role that computes.
    """
    causal = causal_of(model, adapter)
    if tokens.ids_BS.device.type != "cpu" or not attention.needs_no_mask(causal):
        return forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
    joined = joined_pairs(tokens)
    branches = attention.Branches(
        joined.first_P, joined.second_P, joined.ids_PW.shape[1], base_dtype(model)
    )
    with _computing(model, adapter) as causal:
        hidden_PWH = _trunk(causal)(
            input_ids=joined.ids_PW,
            position_ids=joined.positions_PW,
            use_cache=False,
            branches=branches,
        ).last_hidden_state
    return hidden_PWH.flatten(0, 1).index_select(0, joined.places).unflatten(0, tokens.ids_BS.shape)


@torch.no_grad()
def merged_copy(model: Tuned, adapter: str) -> PreTrainedModel:
    """A plain model that computes as a role, in the base's number format, for fast sampling.

    Only what differs from the base (with adapters) or from the role (with copies) takes memory; the
    base's weights keep every bit. In bfloat16 the weights are rounded, so its log-probabilities
    differ a little from those of training, which computes its own.
    """
    return _roles(model).plain(adapter)


@torch.no_grad()
def refresh_merged(plain: PreTrainedModel, model: Tuned, adapter: str) -> None:
    """Bring a merged copy up to date with its role."""
    _roles(model).refresh(plain, adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """What a model says after a short sequence of tokens."""

    logits: Tensor
    """(V,), float32, on the CPU."""
    score: float | None
    """None without a head."""


@torch.no_grad()
def _probe(model: Tuned, adapter: str, head: ScoreHead | None, probe_ids: Sequence[int]) -> _Probe:
    ids = torch.tensor([list(probe_ids)], device=model.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden = forward_hidden(model, ids, mask, adapter=adapter)[:, -1]
    output = causal_of(model, adapter).get_output_embeddings()
    return _Probe(
        logits=output(hidden.to(output.weight.dtype))[0].float().cpu(),
        score=None if head is None else float(head(hidden)[0]),
    )


def _check_round_trip(
    model: Tuned, adapter: str, folder: Path, head: ScoreHead | None, probe_ids: Sequence[int]
) -> None:
    """Read the files back and compare logits and score with what is in memory, bit for bit."""
    name = "round_trip"
    roles = _roles(model)
    roles.add(name, roles.lora_of(adapter), seed=0)
    try:
        roles.fill(name, folder)
        saved_head = load_head(folder).to(model.device) if head is not None else None
        memory = _probe(model, adapter, head, probe_ids)
        disk = _probe(model, name, saved_head, probe_ids)
    finally:
        with keeping_grad_flags(model):
            model.delete_adapter(name)
    if not torch.equal(memory.logits, disk.logits) or memory.score != disk.score:
        raise UserError(
            f"{folder}: {adapter} does not give the same logits when it is read back. The "
            "files cannot be trusted; the disk may be faulty. Choose another output_dir."
        )


def save_adapter(
    model: Tuned,
    adapter: str,
    folder: Path,
    *,
    head: ScoreHead | None = None,
    base_id: str,
    base_sha256: str,
    probe_ids: Sequence[int],
) -> None:
    """Write a role, and a head, as a folder that plain libraries load; then read it back.

    Files: `adapter_model.safetensors` and `adapter_config.json` for `peft`, or with all weights
    `model.safetensors` (float32) and `config.json` for `transformers`; `head.safetensors`; and
    `cai.json` with the base's identity and what the probe sequence gave. No path of this machine
    is in them, and the same weights give the same bytes.

    Args:
        model: Base with roles.
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
    _roles(model).write(adapter, folder, base_id)
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
    write_json(folder / IDENTITY_FILE, identity | {"probe": probe})
    _check_round_trip(model, adapter, folder, head, probe_ids)


def _check_probe(model: Tuned, adapter: str, folder: Path, identity: dict[str, Any]) -> None:
    """A role must still say of the probe sequence what it said when it was saved."""
    probe = identity["probe"]
    same_dtype = identity["dtype"] == str(base_dtype(model)) == "torch.float32"
    now = _probe(model, adapter, None, probe["ids"]).logits[torch.tensor(probe["token_ids"])]
    gap = float((now - torch.tensor(probe["logits"])).abs().max())
    # bfloat16 keeps 8 bits, and its sums differ from one machine and thread count to another.
    if not gap <= (1e-3 if same_dtype else 1.0):
        raise UserError(
            f"{folder}: its logits are off by {gap:.3g} from those at the time it was saved. Use "
            "the base model and the versions it was made with (see cai.json)."
        )


def identity_of(folder: Path, base_sha256: str) -> dict[str, Any]:
    """What a saved role says of itself.

    Raises:
        UserError: when it belongs to another base.
    """
    identity = json.loads((folder / IDENTITY_FILE).read_bytes())
    if identity["base_sha256"] != base_sha256:
        raise UserError(
            f"{folder}: it was trained on {identity['base_id']} (weights "
            f"{identity['base_sha256'][:12]}), not on this base (weights {base_sha256[:12]})."
        )
    return identity


def load(base: PreTrainedModel, folder: Path, *, adapter: str, base_sha256: str) -> Tuned:
    """Attach a role that `save_adapter` wrote; it becomes the active one and is frozen.

    Only safetensors and JSON are read.

    Args:
        base: Without adapters; changed in place as by `attach`.
        folder: As given to `save_adapter`; its files say whether it is an adapter.
        adapter: The role's name here.
        base_sha256: Hash of this base's weights.

    Raises:
        UserError: when it belongs to another base, or its logits are not what they were.
    """
    identity = identity_of(folder, base_sha256)
    model = load_plain(base, folder, adapter=adapter)
    _check_probe(model, adapter, folder, identity)
    return model


def load_plain(base: PreTrainedModel, folder: Path, *, adapter: str) -> Tuned:
    """Like `load`, of a folder that says nothing of what it answered, as plain `peft` writes it."""
    model = attach(base, saved_lora(folder), adapter=adapter, seed=0)
    model.set_requires_grad(adapter, False)
    _roles(model).fill(adapter, folder)
    return model


def load_adapter(model: Tuned, folder: Path, *, adapter: str, base_sha256: str) -> None:
    """Like `load`, as a further role of a model that has some; it is not made active."""
    identity = identity_of(folder, base_sha256)
    add(model, saved_lora(folder), adapter, seed=0)
    _roles(model).fill(adapter, folder)
    _check_probe(model, adapter, folder, identity)


def load_head(folder: Path) -> ScoreHead:
    """The head that was saved with a role, on the CPU."""
    state = load_safetensors(folder / HEAD_FILE)
    head = ScoreHead(state["linear.weight"].shape[1], seed=0)
    head.load_state_dict(state)
    return head
