import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from cai import adapters
from cai.choices import DPOLoss
from cai.errors import SelfCheckError
from cai.loaders import EpochLoader, PairExample, collate_pairs
from cai.modules import dpo
from cai.modules.dpo import implicit_rewards, side_metrics
from cai.training import train_dpo
from tests.tiny import KINDS, dpo_config, dpo_setup, hardware, pair_examples, scramble


def train(work_dir, pairs, *, config=None, micro_batch_size=4, model=None, on_step=None):
    model = model or dpo_setup()
    reported = {}
    train_dpo(
        model,
        pairs,
        policy_adapter="policy",
        reference_adapter="reference",
        config=config or dpo_config(),
        seed=0,
        hardware=hardware(micro_batch_size),
        work_dir=work_dir,
        on_step=on_step or reported.__setitem__,
        stage="dpo_policy",
    )
    return model, reported


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_close(one, other):
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def slow_logprob(model, adapter, prompt_ids, response_ids):
    """One response at a time through the whole model, every token picked by hand."""
    with adapters.active(model, adapter):
        logits = model(torch.tensor([[*prompt_ids, *response_ids]])).logits[0].double()
    logp = logits.log_softmax(-1)
    start = len(prompt_ids) - 1
    return sum(float(logp[start + t, token]) for t, token in enumerate(response_ids))


def slow_log_ratio(model, pair):
    sides = [
        slow_logprob(model, "policy", pair.prompt_ids, ids)
        - slow_logprob(model, "reference", pair.prompt_ids, ids)
        for ids in (pair.response_a_ids, pair.response_b_ids)
    ]
    return sides[0] - sides[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("kind", "expected"), [("sigmoid", math.log(2)), ("ipo", 25.0), ("hinge", 1.0)]
)
def test_before_the_first_update_margins_are_zero_and_the_loss_is_known(
    kind, expected, dtype, trained, tmp_path
):
    config = dpo_config(0.0, loss=DPOLoss(kind), num_epochs=1)
    _, reported = train(
        tmp_path, pair_examples(), config=config, model=dpo_setup(dtype, trained=trained)
    )
    assert len(reported) == 3
    for metrics in reported.values():  # the learning rate is 0: every step is a first one
        assert metrics["train/loss"] == pytest.approx(expected, rel=1e-6)
        for name in ("train/logratio", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert metrics[name] == 0.0
        assert metrics["train/grad_norm"] > 0


def test_in_later_epochs_pairs_meet_in_other_batches_and_still_have_their_own_reference(tmp_path):
    _, reported = train(tmp_path, pair_examples(), config=dpo_config(0.0, num_epochs=3))
    assert len(reported) == 9
    for metrics in reported.values():
        assert metrics["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_the_loss_of_a_step_is_that_of_a_slow_computation(tmp_path):
    pairs = pair_examples(8)
    config = dpo_config(1e-2, num_epochs=1, beta=0.3, label_smoothing=0.1)
    model = dpo_setup()
    reported, expected = {}, {}
    order = EpochLoader(
        pairs, batch_size=4, micro_batch_size=2, seed=0, num_epochs=1, collate=collate_pairs
    )

    def on_step(step, metrics):
        reported[step] = metrics
        if step == 1:  # as the policy is before the second step
            second = [pairs[index] for group in order.groups(1) for index in group]
            for pair in second:
                margin = 0.3 * slow_log_ratio(model, pair)
                label = 0.9 * pair.prob_a + 0.1 * (1 - pair.prob_a)
                loss = F.binary_cross_entropy_with_logits(
                    torch.tensor(margin), torch.tensor(label, dtype=torch.float64)
                )
                expected[pair] = pair.weight, float(loss), margin

    train(tmp_path, pairs, config=config, model=model, on_step=on_step)
    total = sum(weight for weight, _, _ in expected.values())
    loss = sum(weight * loss for weight, loss, _ in expected.values()) / total
    assert reported[2]["train/loss"] == pytest.approx(loss, abs=1e-5)
    ahead = [m if pair.prob_a > 0.5 else -m for pair, (_, _, m) in expected.items()]
    assert max(map(abs, ahead)) > 1e-2
    assert reported[2]["rewards/margins"] == pytest.approx(sum(ahead) / 4, abs=1e-5)
    assert reported[2]["rewards/accuracies"] == sum(m > 0 for m in ahead) / 4


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    runs = [
        train(tmp_path / str(size), pair_examples(), micro_batch_size=size) for size in (1, 4, 8)
    ]
    for model, reported in runs[1:]:
        for step, metrics in runs[0][1].items():
            assert reported[step] == pytest.approx(metrics, abs=1e-4)
        assert_close(runs[0][0], model)


def swapped(pair):
    return dataclasses.replace(
        pair,
        response_a_ids=pair.response_b_ids,
        response_b_ids=pair.response_a_ids,
        prob_a=1.0 - pair.prob_a,
    )


@pytest.mark.parametrize("kind", list(DPOLoss))
def test_swapping_sides_and_labels_changes_nothing(kind, tmp_path):
    pairs, config = pair_examples(), dpo_config(loss=kind, label_smoothing=0.1)
    one, reported = train(tmp_path / "one", pairs, config=config)
    other, again = train(tmp_path / "other", [swapped(pair) for pair in pairs], config=config)
    for step, metrics in reported.items():
        assert again[step] == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    assert_close(one, other)


def test_a_pair_twice_with_half_the_weight_is_the_same(tmp_path):
    pairs = pair_examples(4)
    halved = [dataclasses.replace(pair, weight=pair.weight / 2) for pair in pairs]
    one, _ = train(tmp_path / "one", pairs, config=dpo_config(num_epochs=3, batch_size=4))
    config = dpo_config(num_epochs=3, batch_size=8)
    other, _ = train(tmp_path / "other", halved + halved, config=config)
    assert_close(one, other)


def test_only_the_policy_changes(tmp_path):
    before = weights(dpo_setup())
    model, _ = train(tmp_path, pair_examples())
    changed = {name for name, p in weights(model).items() if not torch.equal(p, before[name])}
    assert changed
    assert all(".policy." in name for name in changed)
    assert not adapters.same_adapter(model, "policy", "reference")


def test_labels_are_learned(tmp_path):
    # The response that ends in token 77 is preferred.
    pairs = [
        PairExample((20 + i,), (77, 2), (100 + i, 2), 1.0, 1.0)
        if i % 2
        else PairExample((20 + i,), (100 + i, 2), (77, 2), 0.0, 1.0)
        for i in range(16)
    ]
    config = dpo_config(1e-2, num_epochs=10, batch_size=16, checkpoint_every=100)
    model, reported = train(tmp_path, pairs, config=config)
    assert reported[1]["rewards/accuracies"] == 0.0  # nothing is ahead of its equal
    assert reported[10]["rewards/accuracies"] == 1.0
    assert reported[10]["train/loss"] < 0.5
    assert reported[10]["rewards/chosen"] > reported[10]["rewards/rejected"]
    assert reported[10]["logps/chosen"] > reported[1]["logps/chosen"]
    # A prompt that was never seen.
    said = [
        slow_logprob(model, adapter, (50,), (77, 2)) - slow_logprob(model, adapter, (50,), (90, 2))
        for adapter in ("policy", "reference")
    ]
    assert said[0] > said[1] + 1


@pytest.mark.parametrize(
    ("kind", "log_ratio"),
    [
        ("sigmoid", math.log(3) / 0.5),  # beta h = ln(p / (1 - p))
        ("ipo", 0.5 / (2 * 0.5)),  # h = (2 p - 1) / (2 beta)
    ],
)
def test_a_soft_label_is_learned_as_soft_as_it_is(kind, log_ratio, tmp_path):
    pair = PairExample((20, 21), (77, 30, 2), (90, 2), 0.75, 1.0)
    config = dpo_config(
        3e-3, loss=DPOLoss(kind), beta=0.5, num_epochs=80, batch_size=1, checkpoint_every=100
    )
    model, _ = train(tmp_path, [pair], config=config)
    assert slow_log_ratio(model, pair) == pytest.approx(log_ratio, abs=0.02)


def test_a_step_without_weight_changes_nothing(tmp_path):
    pairs = [dataclasses.replace(pair, weight=0.0) for pair in pair_examples(4)]
    model, reported = train(tmp_path, pairs)
    assert adapters.same_adapter(model, "policy", "reference")
    assert reported[1] == {"train/weight": 0.0}


def test_undecided_labels_are_learned_but_have_no_chosen_side(tmp_path):
    pairs = [dataclasses.replace(pair, prob_a=0.5) for pair in pair_examples(4)]
    _, reported = train(tmp_path, pairs)
    assert set(reported[1]) == {
        "train/loss",
        "train/weight",
        "train/grad_norm",
        "train/learning_rate",
        "train/logratio",
    }


def test_the_metrics_of_the_sides_by_hand():
    policy = torch.tensor([[-3.0, -5.0, -1.0], [-4.0, -2.0, -1.5]])
    reference = torch.tensor([[-4.0, -4.0, -1.0], [-2.0, -3.0, -1.0]])
    # log-ratios: a 1, -1, 0; b -2, 1, -0.5. The second pair prefers b, the third neither.
    found = side_metrics(policy, reference, prob_a_P=torch.tensor([0.9, 0.2, 0.5]), beta=0.5)
    assert found == pytest.approx(
        {
            "train/logratio": -1.5 / 6,
            "rewards/chosen": 0.5 * (1 + 1) / 2,
            "rewards/rejected": 0.5 * (-2 - 1) / 2,
            "rewards/margins": 0.5 * (3 + 2) / 2,
            "rewards/accuracies": 1.0,
            "logps/chosen": (-3 - 2) / 2,
            "logps/rejected": (-4 - 5) / 2,
        }
    )


def test_implicit_rewards_are_those_of_a_slow_computation(tmp_path):
    model, _ = train(tmp_path, pair_examples(), config=dpo_config(1e-2))
    pairs = pair_examples(7, seed=5)
    found = implicit_rewards(
        model,
        [(p.prompt_ids, p.response_a_ids) for p in pairs],
        policy_adapter="policy",
        reference_adapter="reference",
        beta=0.2,
        micro_batch_size=3,
    )
    slow = [
        0.2
        * (
            slow_logprob(model, "policy", p.prompt_ids, p.response_a_ids)
            - slow_logprob(model, "reference", p.prompt_ids, p.response_a_ids)
        )
        for p in pairs
    ]
    assert found == pytest.approx(slow, abs=1e-5)
    assert max(map(abs, found)) > 1e-3


def test_a_policy_that_is_not_the_reference_is_refused(tmp_path):
    model = dpo_setup()
    scramble(model, "policy", torch.Generator().manual_seed(7))
    before = weights(model)
    with pytest.raises(SelfCheckError, match=r"dpo_policy: .* must be a copy of the reference"):
        train(tmp_path, pair_examples(), model=model)
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())


def test_a_loss_that_is_not_what_it_must_be_is_refused(tmp_path, monkeypatch):
    right = dpo.dpo_loss
    monkeypatch.setattr(dpo, "dpo_loss", lambda *args, **kwargs: 2 * right(*args, **kwargs))
    model = dpo_setup()
    with pytest.raises(SelfCheckError, match=r"first loss must be 0\.6931, but it is 1\.386"):
        train(tmp_path, pair_examples(), model=model)
    assert adapters.same_adapter(model, "policy", "reference")
