import pytest
import torch

from cai import adapters
from cai.loaders import SFTExample
from cai.optimisation import NonFiniteError
from cai.training import train_sft
from tests.tiny import hardware, lora, sft_examples, sl_config, tiny_model


def train(work_dir, examples, *, micro_batch_size=4, config=None, seed=0, prepare=None):
    model = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    if prepare:
        prepare(model)
    reported = {}
    train_sft(
        model,
        examples,
        adapter="policy",
        config=config or sl_config(),
        seed=seed,
        hardware=hardware(micro_batch_size),
        work_dir=work_dir,
        on_step=reported.__setitem__,
        stage="sl_policy",
    )
    return model, reported


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    runs = [
        train(tmp_path / str(size), sft_examples(), micro_batch_size=size) for size in (1, 3, 4)
    ]
    for model, reported in runs[1:]:
        for step, metrics in runs[0][1].items():
            assert reported[step] == pytest.approx(metrics, abs=1e-4)
        for name, weight in weights(runs[0][0]).items():
            torch.testing.assert_close(weights(model)[name], weight, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_over_the_tokens_of_the_step(tmp_path):
    examples = sft_examples(4)
    config = sl_config(num_epochs=1, batch_size=4)
    _, reported = train(tmp_path, examples, config=config, micro_batch_size=2)
    nlls = []
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        logp = tiny_model()(ids).logits[0].log_softmax(-1).detach()
        first = len(example.prompt_ids)
        nlls += [-float(logp[first + t - 1, token]) for t, token in enumerate(example.response_ids)]
    assert reported[1]["train/loss"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5)
    assert reported[1]["train/tokens"] == len(nlls)


def test_prompts_are_not_learned(tmp_path):
    # The prompt's own tokens are no targets: a lone end of sequence is the only one.
    config = sl_config(num_epochs=1, batch_size=1)
    _, reported = train(tmp_path, [SFTExample((11, 12, 13), (2,))], config=config)
    assert reported[1]["train/tokens"] == 1


def test_the_loss_falls_and_the_base_keeps_its_bits(tmp_path):
    config = sl_config(1e-2, num_epochs=8, batch_size=10, checkpoint_every=100)
    model, reported = train(tmp_path, sft_examples(), config=config)
    assert reported[8]["train/loss"] < 0.8 * reported[1]["train/loss"]
    for name, weight in tiny_model().state_dict().items():
        own = model.get_base_model().state_dict()
        wrapped = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(weight, own[name] if name in own else own[wrapped])


def test_a_learning_rate_of_zero_changes_nothing(tmp_path):
    untrained = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    model, _ = train(tmp_path, sft_examples(), config=sl_config(0.0))
    assert adapters_equal(model, untrained)


def adapters_equal(one, other):
    return all(torch.equal(weights(one)[n], w) for n, w in weights(other).items())


def test_only_empty_responses_change_nothing(tmp_path):
    # After a real step Adam has momentum, which must not act on a step without tokens.
    examples = [SFTExample((11, 12), ())] * 4
    untrained = adapters.attach(tiny_model(), lora(), adapter="policy", seed=1)
    model, reported = train(tmp_path, examples)
    assert adapters_equal(model, untrained)
    assert reported[1] == {"train/tokens": 0.0}


def test_one_empty_response_among_others_is_left_out(tmp_path):
    examples = sft_examples(3)
    with_empty = [*examples, SFTExample((11, 12), ())]
    config = sl_config(num_epochs=1, batch_size=4)
    one, other = (
        train(tmp_path / str(len(e)), e, config=config)[1][1] for e in (examples, with_empty)
    )
    assert one == pytest.approx(other, abs=1e-5)


def nan_in_base(model):
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight[12] = float("nan")


def inf_gradient(model):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.policy.weight"
    model.get_parameter(name).register_hook(lambda grad: grad * float("inf"))


@pytest.mark.parametrize("fault", [nan_in_base, inf_gradient])
def test_nothing_that_is_not_finite_is_learned(tmp_path, fault):
    seen = {}

    def prepare(model):
        fault(model)
        seen["model"], seen["before"] = model, weights(model)

    examples = [SFTExample((11, 12), (13, 2))] * 4
    with pytest.raises(NonFiniteError, match="sl_policy, step 1"):
        train(tmp_path, examples, prepare=prepare)
    for name, weight in seen["before"].items():
        assert torch.equal(weights(seen["model"])[name].nan_to_num(), weight.nan_to_num())
    assert not list(tmp_path.glob("*.ckpt"))
