"""Memory of a stage by component, from shapes and settings; bytes on one device.

Sources: what training keeps per parameter is counted as in Rajbhandari et al. 2020
(arXiv:1910.02054, sec. 3), with trained weights in float32; what a layer keeps for the backward
pass as in Korthikanti et al. 2022 (arXiv:2205.05198, sec. 4), for gated layers, grouped heads and
attention that keeps no scores, and for what `cai/fused.py` and `cai/attention.py` keep; keys and
values as in Pope et al. 2022 (arXiv:2211.05102, sec. 3.3).

Symbols: H hidden size, F width of the gated layer, A heads, K key-value heads, D head size, V
vocabulary, L layers, e bytes per number of the base, N tokens of a micro-batch with padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cai.decoding import ATTENDED, GROUP_ROWS, GROWTH, MAX_PACKED_BYTES
from cai.heads import LOGITS_AT_ONCE
from cai.model_config import LoRAConfig
from cai.sizes.shape import Shape

FLOAT = 4
"""Bytes of a float32 number; whatever is trained has this format."""
CPU_PROCESS = 680_000_000
"""Python and the libraries in this process (measured with torch 2.13, transformers 5.23, peft and
lightning: 0.43 GB before a model is loaded), and the kernels that they make for every shape they
meet (0.1 GB after the first stage of a run, 0.4 after ten)."""
HEAP_SHARE = 0.4
"""What the C library's heap holds beyond the blocks that are in use, as a share of these: pieces
too small for the next block (measured on SmolLM2-135M in stages that sample, 0.33 to 0.4, and that
learn, 0.55)."""
GPU_PROCESS = 500_000_000
"""What a CUDA context takes of a GPU before anything is allocated on it; depends on the GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stage computes."""

    on_cpu: bool
    number_bytes: int
    """Of the base's numbers: 2 in bf16, 4 in fp32."""
    num_devices: int = 1
    sharded: bool = False
    """Whether weights lie in parts on the devices while a model learns (`split_weights.py`), and a
    layer is gathered when its turn comes; otherwise every device has all of them."""
    checkpointing: bool = False
    """Whether only a layer's input is kept and the layer computed again on the way back."""

    @property
    def shares(self) -> int:
        """Into how many parts the weights of a model that learns are split."""
        return self.num_devices if self.sharded else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one device, by component."""

    process: int = 0
    """Python and libraries, or the context of a GPU."""
    base: int = 0
    """Frozen bases, each once."""
    roles: int = 0
    """Adapters, or copies of all weights, of every role on the base."""
    optimizer: int = 0
    """Adam's two moments of what is trained."""
    gradients: int = 0
    activations: int = 0
    """What one micro-batch keeps for its backward pass, and one layer's work; in sampling and
    reading one layer's work."""
    kv_cache: int = 0
    """Keys and values of the rows that are sampled, or read, together."""
    logits: int = 0
    """Next-token scores, and their softmax."""
    copies: int = 0
    """Merged or repacked copies of the weights for sampling, a file while it is read, a layer
    gathered from other devices."""
    heap: int = 0
    """What lies between blocks in the heap of a process that computes on the CPU."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Every component by its name."""
        return dataclasses.asdict(self)

    def __add__(self, other: Memory) -> Memory:
        return Memory(**{name: num + other.parts()[name] for name, num in self.parts().items()})


def with_heap(held: Memory, place: Place) -> Memory:
    """Blocks that come and go in a stage, and on a CPU what lies between them."""
    return held + Memory(heap=round(HEAP_SHARE * held.total) if place.on_cpu else 0)


def largest(parts: Sequence[Memory]) -> Memory:
    """The one that takes most."""
    return max(parts, key=lambda one: one.total)


def process_memory(place: Place) -> Memory:
    """What is there before a model is."""
    return Memory(process=CPU_PROCESS if place.on_cpu else GPU_PROCESS)


def base_memory(shapes: Sequence[Shape], place: Place) -> Memory:
    """Frozen bases, whole on every device: it samples and scores by itself."""
    return Memory(base=sum(one.parameters for one in shapes) * place.number_bytes)


def loading_memory(shape: Shape, place: Place) -> Memory:
    """A base beside the file that it is read from, which is mapped into memory meanwhile.

    On a GPU the file is in the host's memory.
    """
    return Memory(copies=shape.parameters * shape.stored_bytes if place.on_cpu else 0)


def role_parameters(shape: Shape, lora: LoRAConfig | None) -> int:
    """Trained numbers of one role: an adapter's, or all weights."""
    return shape.parameters if lora is None else shape.low_rank(lora.rank, lora.target_modules)


def _shares(lora: LoRAConfig | None, place: Place) -> int:
    """Into how many parts roles are split: adapters are small and stay whole."""
    return place.shares if lora is None else 1


def roles_memory(shape: Shape, lora: LoRAConfig | None, num: int, place: Place) -> Memory:
    """Roles on a base while one of them learns, in float32."""
    return Memory(roles=num * FLOAT * role_parameters(shape, lora) // _shares(lora, place))


def learning_memory(shape: Shape, lora: LoRAConfig | None, num: int, place: Place) -> Memory:
    """Gradients and Adam's two moments of `num` roles that learn: 4 and 8 bytes per number."""
    numbers = num * role_parameters(shape, lora) // _shares(lora, place)
    return Memory(gradients=FLOAT * numbers, optimizer=2 * FLOAT * numbers)


def split_memory(shape: Shape, lora: LoRAConfig | None, place: Place) -> Memory:
    """What splitting changes of a base while a role on it learns.

    The base lies in parts. Gathered are two layers, one in use and one on its way, and embeddings
    and output layer during all of a pass; where all weights learn these are float32, and a layer's
    and the embeddings' gradients are whole for a moment.
    """
    if place.shares == 1:
        return Memory()
    outside = shape.parameters - shape.per_layer * shape.layers
    if lora is None:
        gathered = FLOAT * (3 * shape.per_layer + 2 * outside)
    else:
        gathered = place.number_bytes * (2 * shape.per_layer + outside)
    base = base_memory([shape], place).base
    return Memory(base=base // place.shares - base, copies=gathered)


def fit_memory(
    shape: Shape,
    lora: LoRAConfig | None,
    place: Place,
    *,
    roles: int,
    learning: int,
    rows: int,
    length: int,
) -> Memory:
    """A training on top of its base: roles, what `learning` of them keep, and a micro-batch.

    Weights that will be split are whole when a training begins.
    """
    split = (
        roles_memory(shape, lora, roles, place)
        + learning_memory(shape, lora, learning, place)
        + activations(shape, lora, place, rows=rows, length=length)
        + split_memory(shape, lora, place)
    )
    if place.shares == 1:
        return split
    return largest([split, roles_memory(shape, lora, roles, whole(place))])


def rollout_memory(
    shape: Shape, lora: LoRAConfig | None, place: Place, *, roles: int, learning: int
) -> Memory:
    """What PPO holds beside its base while it samples and scores: all weights are whole."""
    parts = 0
    if place.shares > 1:
        held = base_memory([shape], place) + roles_memory(shape, None, roles, place)
        parts = held.base // place.shares + (held.roles if lora is None else 0)
    return (
        roles_memory(shape, lora, roles, whole(place))
        + learning_memory(shape, lora, learning, place)
        + Memory(copies=parts)
    )


def whole(place: Place) -> Place:
    """The same devices with all weights on each."""
    return dataclasses.replace(place, sharded=False)


def kept_per_token(shape: Shape, lora: LoRAConfig | None, place: Place) -> int:
    """Bytes that one layer keeps of one token for the backward pass.

    On a CPU in this project's own forward pass (`fused.py`, `attention.py`): the inputs of both
    norms, 2H; the inputs of adapted linear maps, H behind each norm, A D behind attention, F behind
    the gate; queries, keys and values, (A + 2K) D; both inputs of the gate, 2F; and an adapter's
    own r numbers. Elsewhere transformers' norms keep two float32 copies of their inputs, the gate
    its silu too, and attention its result.
    """
    e = place.number_bytes
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    out = shape.heads * shape.head_dim
    targets = [one.name for one in shape.linears] if lora is None else lora.target_modules

    def learns(*names: str) -> bool:
        return bool(set(names) & set(targets))

    inputs = (
        shape.hidden * learns("q_proj", "k_proj", "v_proj")
        + out * learns("o_proj")
        + shape.hidden * learns("gate_proj", "up_proj")
        + shape.intermediate * learns("down_proj")
    )
    low = 0 if lora is None else lora.rank * len(lora.target_modules)
    ours = place.on_cpu and shape.written_out and lora is not None
    if ours:
        return e * (2 * shape.hidden + attention + 2 * shape.intermediate + inputs + low)
    kept = attention + out + 3 * shape.intermediate + inputs + low
    return e * kept + 2 * 2 * FLOAT * shape.hidden


def activations(
    shape: Shape, lora: LoRAConfig | None, place: Place, *, rows: int, length: int
) -> Memory:
    """One micro-batch's forward and backward pass.

    Args:
        shape: The base.
        lora: What learns; None: all weights.
        place: Where.
        rows: Sequences.
        length: Of the longest, tokens; the others are padded to it.
    """
    num = rows * length
    per_layer = kept_per_token(shape, lora, place)
    e = place.number_bytes
    # Of the layer that is on its way back: gradients of the gate's inputs and output, of the
    # queries, keys and values, and of the residual stream.
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    working = num * e * (3 * shape.intermediate + attention + 3 * shape.hidden)
    if place.checkpointing:
        kept = num * (shape.layers * e * shape.hidden + per_layer)
    else:
        kept = num * shape.layers * per_layer
    casts = 0
    if lora is None and e < FLOAT:  # autocast keeps what it rounded until the pass is over
        casts = shape.parameters * e // place.shares
    return Memory(
        activations=kept + working,
        logits=training_logits(shape, place, num_tokens=num),
        copies=casts,
    )


def training_logits(shape: Shape, place: Place, *, num_tokens: int) -> int:
    """Logits of a few tokens at a time (`heads.py`): as they come, float32, softmax, its product.

    Nothing of them is kept for the way back.
    """
    numbers = min(num_tokens * shape.vocabulary, max(LOGITS_AT_ONCE, shape.vocabulary))
    return numbers * (2 * place.number_bytes + 2 * FLOAT)


def kv_bytes(shape: Shape, place: Place) -> int:
    """Keys and values of one token: 2 L K D numbers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * place.number_bytes


def _repacked(shape: Shape, place: Place) -> int:
    """A copy of the weights as oneDNN multiplies them; the output layer too where it is tied."""
    whole = shape.parameters * place.number_bytes
    return whole if place.on_cpu and shape.written_out and whole <= MAX_PACKED_BYTES else 0


def _layer_work(shape: Shape, place: Place, num_tokens: int) -> int:
    """One layer without a backward pass: residual stream, queries, keys, values, gate."""
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    numbers = 3 * shape.hidden + 2 * attention + 3 * shape.intermediate
    scores = shape.heads * ATTENDED if place.on_cpu else 0
    return num_tokens * place.number_bytes * (numbers + scores)


def sampling_memory(shape: Shape, place: Place, *, rows: int, prompt: int, new: int) -> Memory:
    """Rows that are sampled together, on top of the base; bounds, as if all were as long.

    On a CPU keys and values lie in blocks with room for up to `GROWTH` more tokens, and prompts are
    read `GROUP_ROWS` at a time; elsewhere all at once, and a layer's cache is copied as it grows.
    """
    per_token = kv_bytes(shape, place)
    ours = place.on_cpu and shape.written_out
    length = prompt + (max(new, GROWTH) if ours else new)
    growing = 0 if ours else rows * length * per_token // shape.layers
    at_once = min(rows, GROUP_ROWS) if ours else rows
    return Memory(
        kv_cache=rows * length * per_token + growing,
        activations=_layer_work(shape, place, at_once * prompt),
        logits=rows * shape.vocabulary * (place.number_bytes + 4 * FLOAT),
        copies=_repacked(shape, place),
    )


def reading_memory(shape: Shape, place: Place, *, rows: int, length: int, scored: int) -> Memory:
    """Texts that are read and scored together, on top of the base.

    Args:
        shape: The model's.
        place: Where.
        rows: Texts in a call.
        length: Tokens of the longest.
        scored: Tokens of each that get logits, on a CPU one text's at a time; 0 for no logits. A
            float32 copy of the output layer is there for answers of one letter.
    """
    ours = place.on_cpu and shape.written_out
    at_once = min(rows, GROUP_ROWS) if ours else rows
    wide = shape.vocabulary * shape.hidden * FLOAT if scored else 0
    scored *= 1 if ours else at_once
    return Memory(
        kv_cache=at_once * length * kv_bytes(shape, place) if ours else 0,
        activations=_layer_work(shape, place, at_once * length),
        logits=max(scored * shape.vocabulary * (place.number_bytes + 2 * FLOAT), wide),
        copies=_repacked(shape, place),
    )


def merged_memory(shape: Shape, lora: LoRAConfig | None, place: Place) -> Memory:
    """A plain copy of a role for sampling: adapted layers, or all weights, in the base's format."""
    if lora is None:
        shared = place.number_bytes == FLOAT
        return Memory(copies=0 if shared else shape.parameters * place.number_bytes)
    return Memory(copies=shape.matching(lora.target_modules) * place.number_bytes)
