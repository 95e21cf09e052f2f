"""Memory by component: hand-computed numbers, and what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from cai import adapters
from cai.model_config import LoRAConfig
from cai.sizes import memory
from cai.sizes.memory import Memory, Place
from cai.sizes.shape import Linear, Shape, published, shape_of
from tests.tiny import KINDS, lora, tiny_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoRAConfig(rank=16, alpha=32, target_modules=TARGETS)
CPU = Place(on_cpu=True, number_bytes=2)
GPU = Place(on_cpu=False, number_bytes=2)
SMOLLM2 = Shape(
    parameters=134_515_008,
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=1536,
    vocabulary=49_152,
    linears=tuple(
        Linear(name=name, num_in=num_in, num_out=num_out, count=30)
        for name, num_in, num_out in (
            ("q_proj", 576, 576),
            ("k_proj", 576, 192),
            ("v_proj", 576, 192),
            ("o_proj", 576, 576),
            ("gate_proj", 576, 1536),
            ("up_proj", 576, 1536),
            ("down_proj", 1536, 576),
        )
    ),
    written_out=True,
    stored_bytes=4,
    names_layers=True,
)


def test_published_shapes_have_the_published_numbers_of_parameters():
    assert {name.rpartition("/")[2]: s.parameters for name, s in published().items()} == {
        "SmolLM2-1.7B-Instruct": 1_711_376_384,
        "Llama-3.1-8B-Instruct": 8_030_261_248,
        "Llama-3.1-70B-Instruct": 70_553_706_496,
    }


def test_a_shape_is_read_off_a_config():
    shape = shape_of(tiny_model().config)
    assert shape.parameters == sum(p.numel() for p in tiny_model().parameters())
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads) == (32, 2, 4, 2)
    assert (shape.head_dim, shape.intermediate, shape.vocabulary) == (8, 64, 300)
    assert shape.written_out
    # q and o 32 x 32, k and v 32 x 16, gate, up and down 32 x 64
    assert shape.per_layer == 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64


def test_adapters_are_counted_layer_by_layer():
    # rank (in + out) of q, k, v, o, gate, up, down; 30 layers
    per_layer = 16 * (1152 + 768 + 768 + 1152 + 2112 + 2112 + 2112)
    assert memory.role_parameters(SMOLLM2, LORA) == 30 * per_layer == 4_884_480
    assert memory.role_parameters(SMOLLM2, None) == 134_515_008
    learns = memory.learning_memory(SMOLLM2, LORA, 1, CPU)
    assert (learns.gradients, learns.optimizer) == (4 * 4_884_480, 8 * 4_884_480)


def test_keys_and_values_of_a_token():
    assert memory.kv_bytes(SMOLLM2, CPU) == 2 * 30 * 3 * 64 * 2 == 23_040


def test_what_a_layer_keeps_of_a_token():
    # norms 2 x 576; queries, keys, values 15 x 64; gate 2 x 1536; inputs of adapted layers 576
    # behind each norm, 576 behind attention, 1536 behind the gate; 7 x 16 of the adapters
    numbers = 1152 + 960 + 3072 + 576 + 576 + 576 + 1536 + 112
    assert memory.kept_per_token(SMOLLM2, LORA, CPU) == 2 * numbers == 17_120
    queries = LoRAConfig(rank=16, alpha=32, target_modules=["q_proj"])
    fewer = 1152 + 960 + 3072 + 576 + 16
    assert memory.kept_per_token(SMOLLM2, queries, CPU) == 2 * fewer
    # elsewhere attention keeps its result, the gate its silu, norms two float32 copies
    assert (
        memory.kept_per_token(SMOLLM2, LORA, GPU)
        == 2 * (15 * 64 + 576 + 3 * 1536 + 576 + 576 + 576 + 1536 + 112) + 2 * 2 * 4 * 576
    )


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_what_was_predicted(kind):
    trained = KINDS[kind]
    model = adapters.attach(tiny_model(), trained, adapter="policy", seed=0)
    shape, rows, length = shape_of(tiny_model().config), 4, 96
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(10, 300, (rows, length), generator=torch.Generator().manual_seed(0))
    with adapters.training(model, "policy"), saved_tensors_hooks(keep, lambda saved: saved):
        hidden = adapters.forward_hidden(
            model, ids, torch.ones_like(ids, dtype=torch.bool), adapter="policy"
        )
    place = Place(on_cpu=True, number_bytes=4)
    predicted = rows * length * shape.layers * memory.kept_per_token(shape, trained, place)
    assert hidden.requires_grad
    assert sum(kept.values()) == pytest.approx(predicted, rel=0.15)


LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SPLIT = Place(on_cpu=False, number_bytes=2, num_devices=8, sharded=True)


def test_a_base_that_learns_adapters_lies_in_parts_and_two_layers_are_gathered():
    shape = published()[LLAMA]
    parts = memory.split_memory(shape, LORA, SPLIT)
    assert parts.base == 8_030_261_248 * 2 // 8 - 8_030_261_248 * 2
    # two layers of 218,103,808 parameters, and what is outside of layers
    assert parts.copies == 2 * (2 * 218_103_808 + 8_030_261_248 - 32 * 218_103_808)
    # adapters stay whole
    assert memory.roles_memory(shape, LORA, 2, SPLIT) == memory.roles_memory(shape, LORA, 2, GPU)
    together = Place(on_cpu=False, number_bytes=2, num_devices=8)
    alone = Place(on_cpu=False, number_bytes=2, num_devices=1, sharded=True)
    for place in (together, alone):
        assert memory.split_memory(shape, LORA, place) == Memory()


def test_all_weights_that_learn_lie_in_parts():
    shape = published()[LLAMA]
    # 4 bytes of a role, 4 of gradients and 8 of moments over 8 devices
    full = memory.roles_memory(shape, None, 1, SPLIT) + memory.learning_memory(
        shape, None, 1, SPLIT
    )
    assert full.total == pytest.approx(16 * 8_030_261_248 / 8, abs=16)
    # gathered in float32, and the gradients of one layer and of what is outside
    outside = 8_030_261_248 - 32 * 218_103_808
    gathered = memory.split_memory(shape, None, SPLIT).copies
    assert gathered == 4 * (3 * 218_103_808 + 2 * outside)


@pytest.mark.parametrize("trained", [LORA, None])
def test_what_is_split_is_whole_when_training_begins_and_in_rollouts(trained: LoRAConfig | None):
    shape = published()[LLAMA]
    sizes = {"roles": 3, "learning": 1}
    many = Place(on_cpu=False, number_bytes=2, num_devices=64, sharded=True)
    least = memory.roles_memory(shape, trained, 3, GPU)
    begun = memory.fit_memory(shape, trained, many, **sizes, rows=1, length=16)
    assert begun.total >= least.total
    rollouts = memory.rollout_memory(shape, trained, SPLIT, **sizes)
    alone = memory.rollout_memory(shape, trained, GPU, **sizes)
    learns = memory.learning_memory(shape, trained, 1, GPU)
    learns_split = memory.learning_memory(shape, trained, 1, SPLIT)
    base = 2 * 8_030_261_248
    parts = (base + (6 * base if trained is None else 0)) // 8
    assert alone == least + learns
    assert rollouts == least + learns_split + Memory(copies=parts)


def test_checkpointing_keeps_one_state_per_layer_and_one_layer():
    kept = memory.activations(SMOLLM2, LORA, GPU, rows=2, length=100)
    place = Place(on_cpu=False, number_bytes=2, checkpointing=True)
    less = memory.activations(SMOLLM2, LORA, place, rows=2, length=100)
    per_layer = memory.kept_per_token(SMOLLM2, LORA, GPU)
    assert kept.activations - less.activations == 200 * (29 * per_layer - 30 * 2 * 576)


def test_logits_of_a_training_do_not_grow_with_its_tokens():
    few = memory.training_logits(SMOLLM2, CPU, num_tokens=10)
    assert few == 10 * 49_152 * (2 + 2 + 4 + 4)
    many = memory.training_logits(SMOLLM2, CPU, num_tokens=10_000)
    assert many == 2**23 * 12
    assert memory.training_logits(SMOLLM2, CPU, num_tokens=20_000) == many


def test_more_rows_longer_texts_and_wider_numbers_take_more():
    wide = Place(on_cpu=True, number_bytes=4)
    sizes = {"rows": 4, "prompt": 100, "new": 80}
    least = memory.sampling_memory(SMOLLM2, CPU, **sizes).total
    for change in ({"rows": 5}, {"prompt": 101}, {"new": 81}):
        assert memory.sampling_memory(SMOLLM2, CPU, **(sizes | change)).total > least
    assert memory.sampling_memory(SMOLLM2, wide, **sizes).total > least
    assert memory.sampling_memory(SMOLLM2, CPU, **sizes).kv_cache >= 4 * 180 * 23_040


def test_components_add_up():
    both = Memory(base=1, logits=2) + Memory(base=3, copies=4)
    assert both == Memory(base=4, logits=2, copies=4)
    assert both.total == 10
    assert memory.largest([Memory(base=1), both]) is both


def test_a_full_role_is_a_float32_copy():
    place = Place(on_cpu=True, number_bytes=2)
    assert memory.roles_memory(SMOLLM2, None, 3, place).roles == 3 * 4 * 134_515_008
    assert memory.merged_memory(SMOLLM2, None, place).copies == 2 * 134_515_008
    # adapted layers are all linear maps of the trunk
    assert memory.merged_memory(SMOLLM2, LORA, place).copies == 2 * 30 * 3_538_944
    assert lora().target_modules == TARGETS
