import dataclasses

import pytest
import torch

from cai import adapters
from cai.heads import ScoreHead
from cai.loaders import PairExample
from cai.scoring import score_responses
from cai.training import train_preference_model
from tests.tiny import hardware, lora, pair_examples, pm_config, tiny_model


def train(work_dir, pairs, *, config=None, micro_batch_size=4):
    model = adapters.attach(tiny_model(), lora(), adapter="preference", seed=1)
    head = ScoreHead(32, seed=2)
    reported = {}
    train_preference_model(
        model,
        head,
        pairs,
        adapter="preference",
        config=config or pm_config(),
        seed=0,
        hardware=hardware(micro_batch_size),
        work_dir=work_dir,
        on_step=reported.__setitem__,
        stage="preference_model",
    )
    return model, head, reported


def trained(model, head):
    return [p.detach() for p in (*model.parameters(), *head.parameters())]


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    runs = [
        train(tmp_path / str(size), pair_examples(), micro_batch_size=size) for size in (1, 4, 8)
    ]
    for model, head, reported in runs[1:]:
        for step, metrics in runs[0][2].items():
            assert reported[step] == pytest.approx(metrics, abs=1e-4)
        for one, other in zip(trained(*runs[0][:2]), trained(model, head), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_weighted_cross_entropy_of_the_step(tmp_path):
    pairs = pair_examples(4)
    model = adapters.attach(tiny_model(), lora(), adapter="preference", seed=1)
    sides = [(p.prompt_ids, r) for p in pairs for r in (p.response_a_ids, p.response_b_ids)]
    scores = score_responses(
        model, ScoreHead(32, seed=2), sides, adapter="preference", micro_batch_size=2, pad_id=0
    )
    margins = torch.tensor(scores[0::2]) - torch.tensor(scores[1::2])
    labels = torch.tensor([pair.prob_a for pair in pairs])
    nll = torch.nn.functional.binary_cross_entropy_with_logits(margins, labels, reduction="none")
    weights = torch.tensor([pair.weight for pair in pairs])
    _, _, reported = train(tmp_path, pairs, config=pm_config(num_epochs=1))
    expected = float((weights * nll).sum() / weights.sum())
    assert reported[1]["train/loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pairs_share_of_the_weight_is_its_share_of_an_epochs_loss(tmp_path, batch_size):
    weights = [4.0, 0.5, 0.5, 1.0, 0.25, 2.0]
    pairs = [
        dataclasses.replace(pair, weight=weight)
        for pair, weight in zip(pair_examples(6), weights, strict=True)
    ]
    config = pm_config(0.0, num_epochs=1, batch_size=batch_size)
    _, _, reported = train(tmp_path / "steps", pairs, config=config)
    config = pm_config(0.0, num_epochs=1, batch_size=6)
    _, _, whole = train(tmp_path / "whole", pairs, config=config)
    # Nothing is learned, so each step's loss is its own pairs' part of the weighted mean.
    losses = [metrics["train/loss"] for metrics in reported.values()]
    assert sum(losses) * batch_size / 6 == pytest.approx(whole[1]["train/loss"], abs=1e-5)
    assert sum(m["train/weight"] for m in reported.values()) == pytest.approx(sum(weights))


def swapped(pair):
    return dataclasses.replace(
        pair,
        response_a_ids=pair.response_b_ids,
        response_b_ids=pair.response_a_ids,
        prob_a=1.0 - pair.prob_a,
    )


def test_swapping_sides_and_labels_changes_nothing(tmp_path):
    pairs = pair_examples()
    one = train(tmp_path / "one", pairs)
    other = train(tmp_path / "other", [swapped(pair) for pair in pairs])
    for step, metrics in one[2].items():
        assert other[2][step] == pytest.approx(metrics, abs=1e-4)
    for a, b in zip(trained(*one[:2]), trained(*other[:2]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_pair_twice_with_half_the_weight_is_the_same(tmp_path):
    pairs = pair_examples(4)
    halved = [dataclasses.replace(pair, weight=pair.weight / 2) for pair in pairs]
    config = [pm_config(num_epochs=3, batch_size=size) for size in (4, 8)]
    one = train(tmp_path / "one", pairs, config=config[0])
    other = train(tmp_path / "other", halved + halved, config=config[1])
    for a, b in zip(trained(*one[:2]), trained(*other[:2]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_labels_are_learned(tmp_path):
    # The response that ends in token 77 is preferred.
    pairs = [
        PairExample((20 + i,), (77, 2), (100 + i, 2), 1.0, 1.0)
        if i % 2
        else PairExample((20 + i,), (100 + i, 2), (77, 2), 0.0, 1.0)
        for i in range(16)
    ]
    config = pm_config(1e-2, num_epochs=10, batch_size=16, checkpoint_every=100)
    _, _, reported = train(tmp_path, pairs, config=config)
    assert reported[10]["train/accuracy"] == 1.0
    assert reported[10]["train/loss"] < 0.2 < reported[1]["train/loss"]


def test_a_step_without_weight_changes_nothing(tmp_path):
    pairs = [dataclasses.replace(pair, weight=0.0) for pair in pair_examples(4)]
    model, head, reported = train(tmp_path, pairs)
    fresh = adapters.attach(tiny_model(), lora(), adapter="preference", seed=1)
    for one, other in zip(trained(model, head), trained(fresh, ScoreHead(32, seed=2)), strict=True):
        assert torch.equal(one, other)
    assert reported[1] == {"train/weight": 0.0}


def test_undecided_labels_have_no_accuracy(tmp_path):
    pairs = [dataclasses.replace(pair, prob_a=0.5) for pair in pair_examples(4)]
    _, _, reported = train(tmp_path, pairs)
    assert "train/accuracy" not in reported[1]
    assert reported[1]["train/loss"] > 0
