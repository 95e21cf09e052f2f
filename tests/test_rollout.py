import dataclasses

import numpy as np
import pytest
import torch

from cai.adapters import active
from cai.optimisation import NonFiniteError
from cai.rollout import Sampled, build_rollouts, log_ratios, plan_minibatches
from tests.tiny import (
    EOS_ID,
    Sampler,
    own_value,
    ppo_config,
    ppo_setup,
    preference_head,
    token_score,
)

ROUND = {
    "policy_adapter": "policy",
    "reference_adapter": "reference",
}


def build(model, value, samples, config, **changes):
    settings = {
        "score": token_score(model),
        "kl_coef": config.kl_coef,
        "micro_batch_size": 4,
        "eos_id": EOS_ID,
        "seed": 0,
        "iteration": 0,
        "fit_values": True,
        "stage": "policy",
    }
    return build_rollouts(
        model, samples, value=value, config=config, **ROUND, **(settings | changes)
    )


@pytest.fixture(scope="module")
def setup():
    model, value = ppo_setup()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.policy" in name:  # the policy has moved away from the reference
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    config = ppo_config(temperature=0.7, max_new_tokens=8)
    return model, value, config, Sampler(model, config)(0)


def plain_logits(model, adapter, sample):
    with torch.no_grad(), active(model, adapter):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        return model(input_ids=ids).logits[0].float()


def test_log_probabilities_are_those_of_the_whole_model_at_the_temperature(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    for row, sample in enumerate(samples):
        for adapter, found in (
            ("policy", batch.old_logprobs_BT),
            ("reference", batch.reference_logprobs_BT),
        ):
            logp = (plain_logits(model, adapter, sample) / 0.7).log_softmax(-1)
            first = len(sample.prompt_ids)
            expected = [
                float(logp[first + t - 1, token]) for t, token in enumerate(sample.response_ids)
            ]
            torch.testing.assert_close(
                found[row, : len(expected)], torch.tensor(expected), atol=1e-5, rtol=1e-5
            )


def test_log_ratios_of_responses_by_hand(setup):
    """Summed over a response's tokens from plain logits; in any batch, and 0 against itself."""
    model, _, _, samples = setup
    sequences = [(sample.prompt_ids, sample.response_ids) for sample in samples]
    expected = []
    for sample in samples:
        total = 0.0
        for adapter, sign in (("policy", 1), ("reference", -1)):
            logp = (plain_logits(model, adapter, sample) / 0.7).log_softmax(-1)
            first = len(sample.prompt_ids)
            total += sign * sum(
                float(logp[first + t - 1, token]) for t, token in enumerate(sample.response_ids)
            )
        expected.append(total)
    assert max(map(abs, expected)) > 0.05  # the policy has moved
    for size in (1, 3, 8):
        assert ratios(model, sequences, micro_batch_size=size) == pytest.approx(expected, abs=1e-4)
    again = ratios(model, sequences, reference_adapter="policy")
    assert again == [0.0] * len(samples)


def ratios(model, sequences, **changes):
    settings = {"temperature": 0.7, "micro_batch_size": 4, "pad_id": EOS_ID} | ROUND | changes
    return log_ratios(model, sequences, **settings)


def test_log_ratios_are_what_ppo_penalises(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    sequences = [(sample.prompt_ids, sample.response_ids) for sample in samples]
    assert ratios(model, sequences) == pytest.approx(batch.kl_BT.sum(1).tolist(), abs=1e-4)


def test_the_mean_log_ratio_is_the_kl(setup):
    """One-token responses of one prompt, each with its probability: the sum is the exact KL."""
    model, _, _, samples = setup
    prompt = samples[0].prompt_ids
    one = Sampled(prompt_ids=prompt, response_ids=(), finished=False)
    law, other = (
        (plain_logits(model, adapter, one)[-1] / 0.7).log_softmax(-1).double()
        for adapter in ("policy", "reference")
    )
    exact = float((law.exp() * (law - other)).sum())
    found = ratios(model, [(prompt, (token,)) for token in range(len(law))], micro_batch_size=300)
    assert float(law.exp() @ torch.tensor(found, dtype=torch.float64)) == pytest.approx(
        exact, abs=1e-5
    )
    assert exact > 0.001


def test_the_sampler_and_the_training_engine_agree(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    torch.testing.assert_close(
        batch.old_logprobs_BT, batch.sampler_logprobs_BT, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        batch.weights_BT, batch.response_mask_BT.float(), atol=1e-4, rtol=1e-4
    )


def test_scores_and_values_are_read_at_their_tokens(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    assert {sample.finished for sample in samples} == {True, False}
    for row, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        ended = torch.tensor([[*ids[0].tolist(), *([] if sample.finished else [EOS_ID])]])
        trunk = model.get_base_model().base_model
        with torch.no_grad():
            with active(model, "preference"):
                score = preference_head()(trunk(ended).last_hidden_state[0])[-1]
            with active(model, "policy"):
                values = value.head(trunk(ids).last_hidden_state[0])
        torch.testing.assert_close(batch.scores_B[row], score, atol=1e-5, rtol=1e-5)
        first, length = len(sample.prompt_ids), len(sample.response_ids)
        torch.testing.assert_close(
            batch.values_BT[row, :length],
            values[first - 1 : first + length - 1],
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            batch.final_values_B[row], values[first + length - 1], atol=1e-5, rtol=1e-5
        )


def test_an_own_value_function_is_the_preference_score_at_every_token(setup):
    model, value, config, samples = setup
    shared = build(model, value, samples, config, fit_values=False)
    own = build(model, own_value(model), samples, config, fit_values=False)
    trunk = model.get_base_model().base_model
    for row, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        with torch.no_grad(), active(model, "preference"):
            scores = preference_head()(trunk(ids).last_hidden_state[0])
        first, length = len(sample.prompt_ids), len(sample.response_ids)
        seen = torch.cat([own.values_BT[row, :length], own.final_values_B[row, None]])
        torch.testing.assert_close(seen, scores[first - 1 : first + length], atol=1e-5, rtol=1e-5)
    # After the end-of-sequence token, that is the preference model's score itself.
    ended = own.finished_B
    assert ended.any()
    torch.testing.assert_close(own.final_values_B[ended], own.scores_B[ended], atol=1e-5, rtol=1e-5)
    assert torch.equal(own.old_logprobs_BT, shared.old_logprobs_BT)
    assert not torch.equal(own.values_BT, shared.values_BT)


def test_rewards_add_up_to_penalised_score_minus_kl(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    kl = (batch.old_logprobs_BT - batch.reference_logprobs_BT).sum(1)
    expected = batch.scores_B - 1.0 * (~batch.finished_B).float() - config.kl_coef * kl
    torch.testing.assert_close(batch.rewards_BT.sum(1), expected, atol=1e-5, rtol=1e-5)
    assert kl.abs().max() > 1e-3


def test_advantages_are_whitened_over_the_tokens_of_the_whole_batch(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    kept = batch.advantages_BT[batch.response_mask_BT]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(kept.std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def tensors(batch):
    return {
        field.name: found
        for field in dataclasses.fields(batch)
        if isinstance(found := getattr(batch, field.name), torch.Tensor) and field.name != "ids_BS"
    }


def assert_same(one, other, atol):
    for name, found in tensors(one).items():
        torch.testing.assert_close(found, tensors(other)[name], atol=atol, rtol=0, msg=name)


def test_nothing_is_kept_outside_the_response(setup):
    model, value, config, samples = setup
    batch = build(model, value, samples, config)
    assert len(set(batch.response_lengths)) > 1
    for name, found in tensors(batch).items():
        if name.endswith("_BT"):
            assert not found[~batch.response_mask_BT].any(), name


def test_micro_batches_change_nothing(setup):
    model, value, config, samples = setup
    one, other = (build(model, value, samples, config, micro_batch_size=size) for size in (1, 8))
    assert_same(one, other, atol=2e-5)


def test_an_empty_response_is_defined_and_left_out(setup):
    model, value, config, samples = setup
    empty = Sampled(prompt_ids=(11, 12), response_ids=(), finished=False)
    batch = build(model, value, [*samples, empty], config)
    assert batch.scores_B[-1] == 0
    assert not batch.response_mask_BT[-1].any()
    without = build(model, value, samples, config)
    torch.testing.assert_close(
        batch.advantages_BT[:-1], without.advantages_BT, atol=2e-5, rtol=1e-5
    )
    for name, found in tensors(batch).items():
        assert found.isfinite().all(), name


def test_only_empty_responses_are_finite(setup):
    model, value, config, _ = setup
    empty = [Sampled(prompt_ids=(11, 12), response_ids=(), finished=False)] * 3
    batch = build(model, value, empty, config)
    assert batch.advantages_BT.shape == (3, 0)
    assert batch.scores_B.tolist() == [0.0, 0.0, 0.0]


def test_an_immediate_end_of_sequence_is_a_response(setup):
    model, value, config, _ = setup
    sample = Sampled(prompt_ids=(11, 12), response_ids=(EOS_ID,), finished=True)
    batch = build(model, value, [sample] * 2, config)
    assert batch.response_mask_BT.tolist() == [[True], [True]]
    assert batch.scores_B[0] != 0


def test_equal_rewards_give_no_advantage_and_no_nan():
    model, value = ppo_setup()
    value.head.linear.weight.data.zero_()
    config = ppo_config(whiten_rewards=True, missing_eos_penalty=0.0)
    samples = [Sampled(prompt_ids=(11, 12), response_ids=(13, EOS_ID), finished=True)] * 4
    batch = build(model, value, samples, config, score=lambda rows: [0.0] * len(rows))
    assert torch.equal(batch.advantages_BT, torch.zeros(4, 2))


def test_a_finished_response_must_end_with_the_end_of_sequence(setup):
    model, value, config, _ = setup
    sample = Sampled(prompt_ids=(11, 12), response_ids=(13,), finished=True)
    with pytest.raises(ValueError, match="does not end with token 2"):
        build(model, value, [sample], config)


def test_a_score_that_is_not_finite_is_refused(setup):
    model, value, config, samples = setup
    with pytest.raises(NonFiniteError, match="policy, step 1: one of scores_B is not finite"):
        build(model, value, samples, config, score=lambda rows: [float("nan")] * len(rows))


def test_minibatches_are_a_partition_and_a_function_of_their_arguments():
    lengths = [5, 9, 3, 7, 7, 2, 8]

    def plan(**changes):
        settings = {"micro_batch_size": 2, "seed": 1, "iteration": 0, "epoch": 0}
        return plan_minibatches(lengths, num_minibatches=3, **(settings | changes))

    made = plan()
    assert sorted(row for part in made for rows in part for row in rows) == list(range(7))
    assert [sum(map(len, part)) for part in made] == [3, 2, 2]
    assert made == plan()
    for change in ({"seed": 2}, {"iteration": 1}, {"epoch": 1}):
        assert plan(**change) != made


def test_the_first_round_puts_values_on_the_scale_of_the_returns(setup):
    model, value, config, samples = setup
    fitted = dataclasses.replace(value, head=preference_head().as_value_head())
    later = build(model, fitted, samples, config, fit_values=False)
    first = build(model, fitted, samples, config)
    assert (later.values_fitted, first.values_fitted) == (False, True)
    mask = first.response_mask_BT
    # Rewards do not depend on values, so both rounds have the same whole returns.
    returns = torch.zeros_like(first.rewards_BT)
    for t in reversed(range(returns.shape[1])):
        tail = returns[:, t + 1] if t + 1 < returns.shape[1] else 0.0
        returns[:, t] = first.rewards_BT[:, t] + tail
    slope, intercept = np.polyfit(later.values_BT[mask].numpy(), returns[mask].numpy(), 1)
    slope = max(slope, 0.0)
    if slope == 0.0:
        intercept = float(returns[mask].mean())
    expected = slope * later.values_BT[mask] + intercept
    torch.testing.assert_close(first.values_BT[mask], expected.float(), atol=1e-4, rtol=1e-4)
    again = build(model, fitted, samples, config, fit_values=False)
    torch.testing.assert_close(again.values_BT, first.values_BT, atol=1e-4, rtol=1e-4)
