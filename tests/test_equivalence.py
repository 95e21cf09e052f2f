"""Trainings that must come to the same, for reasons that can be written down.

Here: full fine-tuning and adapters of full rank on one kind of layer; padding on the left; the
same examples twice. Elsewhere, beside what they are about: the amount of padding and what is in it
(tests/test_adapters.py, tests/test_batches.py); the split of a step into micro-batches, a pair
twice with half the weight, and swapped sides (tests/modules/); uninterrupted and resumed
(tests/test_training.py, tests/test_full_training.py).
"""

import dataclasses

import pytest
import torch

from cai import adapters
from cai.adapters import forward_hidden, training
from cai.batches import collate
from cai.full_weights import causal_of
from cai.heads import token_logprobs
from cai.loaders import collate_sft
from cai.losses import sft_loss
from cai.low_rank import lora_layers
from cai.model_config import LoRAConfig
from cai.training import train_sft
from tests.modules.test_ppo import everything
from tests.modules.test_ppo import train as train_ppo
from tests.tiny import (
    KINDS,
    Sampler,
    hardware,
    ppo_config,
    ppo_setup,
    sft_examples,
    sl_config,
    tiny_model,
)

LAYERS = "q_proj"
WIDTH = 32
STEPS = 5

both_kinds = pytest.mark.parametrize("trained", KINDS.values(), ids=KINDS)


def loss_of(model):
    """The SFT loss of some examples under the role `policy`."""
    batch = collate_sft(sft_examples(6))
    hidden = forward_hidden(model, batch.ids_BS, batch.mask_BS, adapter="policy")
    said = token_logprobs(
        model, batch.states(hidden), batch.targets_N, adapter="policy", temperature=1.0
    )
    return sft_loss(said.logprob_N, num_tokens=batch.num_tokens)


def descend(model, parameters, make_optimizer, steps):
    """Losses before each step; only `parameters` are changed."""
    optimizer = make_optimizer(parameters)
    losses = []
    with training(model, "policy"):
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def all_weights():
    """Full fine-tuning of some layers; their weights."""
    model = adapters.attach(tiny_model(), None, adapter="policy", seed=1)
    causal = causal_of(model, "policy")
    return model, [w for name, w in causal.named_parameters() if f"{LAYERS}.weight" in name]


def full_rank(make_a, *, scale=1):
    """Adapters as wide as these layers, with a given A and B = 0."""
    lora = LoRAConfig(rank=WIDTH, alpha=scale * WIDTH, target_modules=[LAYERS])
    model = adapters.attach(tiny_model(), lora, adapter="policy", seed=1)
    layers = list(lora_layers(model, "policy").values())
    for layer in layers:
        layer.lora_A["policy"].weight.data.copy_(make_a())
    return model, layers


def merged(layers):
    return [
        layer.get_base_layer().weight + layer.get_delta_weight("policy").detach()
        for layer in layers
    ]


def assert_close(ours, theirs, tolerance):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0),
    ],
    ids=["sgd", "adamw"],
)
def test_an_adapter_with_identity_a_and_trained_b_is_full_fine_tuning(make_optimizer):
    """With A = I and scale 1 the layer is W + B, so dL/dB = dL/dW at W + B.

    An optimizer whose steps depend on gradients alone then makes the same steps: if W + B_t = W_t,
    the next gradients are the same, and so is W + B_(t+1) = W_(t+1).
    """
    full, weights = all_weights()
    before = [weight.detach().clone() for weight in weights]
    expected = descend(full, weights, make_optimizer, STEPS)
    low, layers = full_rank(lambda: torch.eye(WIDTH))
    found = descend(low, [layer.lora_B["policy"].weight for layer in layers], make_optimizer, STEPS)
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 1e-2
    moved = [weight.detach() for weight in weights]
    assert_close(merged(layers), moved, 1e-5)
    assert max(float((w - b).abs().max()) for w, b in zip(moved, before, strict=True)) > 1e-2


@pytest.mark.parametrize("scale", [1, 2])
def test_the_first_step_of_an_adapter_with_orthogonal_a_is_that_of_full_fine_tuning(scale):
    """B starts at 0, so A has no gradient and dL/dB = s dL/dW A^T; with A^T A = I the layer moves
    by `-lr s^2 dL/dW A^T A`: one step of SGD with the learning rate lr s^2."""

    def orthogonal():
        generator = torch.Generator().manual_seed(3)
        return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q

    rate = 0.5
    full, weights = all_weights()
    before = [weight.detach().clone() for weight in weights]
    descend(full, weights, lambda p: torch.optim.SGD(p, lr=rate * scale**2), 1)
    low, layers = full_rank(orthogonal, scale=scale)
    parameters = [
        part["policy"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)
    ]
    descend(low, parameters, lambda p: torch.optim.SGD(p, lr=rate), 1)
    moved = [weight.detach() for weight in weights]
    assert_close(merged(layers), moved, 1e-6)
    assert max(float((w - b).abs().max()) for w, b in zip(moved, before, strict=True)) > 1e-3


@both_kinds
def test_padding_on_the_left_gives_what_padding_on_the_right_gives(trained):
    """Ours is on the right; a model's own forward pass on the left says the same of every token."""
    model = adapters.attach(tiny_model(), trained, adapter="policy", seed=1)
    sequences = [(e.prompt_ids, e.response_ids) for e in sft_examples(5)]
    batch = collate(sequences, pad_id=0)
    with torch.no_grad():
        hidden = forward_hidden(model, batch.ids_BS, batch.mask_BS, adapter="policy")
        ours = token_logprobs(
            model, batch.states(hidden), batch.targets_N, adapter="policy", temperature=1.0
        ).logprob_N
        rows = [prompt + response for prompt, response in sequences]
        width = max(map(len, rows)) + 3
        ids = torch.tensor([[7] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = causal_of(model, "policy")(
            input_ids=ids, attention_mask=mask, position_ids=positions
        ).logits
    logp = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    theirs = torch.cat(
        [logp[row, width - 1 - len(response) :] for row, (_, response) in enumerate(sequences)]
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@both_kinds
def test_every_example_twice_is_every_example_once(trained, tmp_path):
    """The SFT loss is a mean over tokens: a step on a batch and its copy is one on the batch."""
    runs = []
    for copies in (1, 2):
        model = adapters.attach(tiny_model(), trained, adapter="policy", seed=1)
        examples = sft_examples(6) * copies
        train_sft(
            model,
            examples,
            adapter="policy",
            config=sl_config(num_epochs=3, batch_size=len(examples)),
            seed=0,
            hardware=hardware(4),
            work_dir=tmp_path / str(copies),
            on_step=lambda step, metrics: None,
            stage="sl_policy",
        )
        runs.append([p.detach() for p in model.parameters()])
    assert_close(*runs, 2e-5)


@both_kinds
def test_every_rollout_twice_is_every_rollout_once(trained, tmp_path):
    """All of PPO's statistics are means over the tokens or responses of a round."""
    config = ppo_config(num_iterations=2, num_minibatches=1)
    runs = []
    for copies in (1, 2):
        model, value = ppo_setup(trained=trained)
        sampler = Sampler(model, config)
        found, head, steps, _ = train_ppo(
            tmp_path / str(copies),
            config=config,
            setup=(model, value),
            sample=lambda iteration, sampler=sampler, copies=copies: [
                dataclasses.replace(one) for one in sampler(iteration) for _ in range(copies)
            ],
        )
        runs.append((everything(found, head), steps))
    (one, first), (other, second) = runs
    assert second[2]["objective/scores"] == pytest.approx(first[2]["objective/scores"], abs=1e-4)
    assert second[2]["policy/approxkl_avg"] == pytest.approx(
        first[2]["policy/approxkl_avg"], rel=1e-2
    )
    assert_close(one, other, 1e-4)
