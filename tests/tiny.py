"""A tiny random Llama and tiny settings for the training tests; no tokenizer, no network."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cai import adapters, ranks
from cai.choices import (
    Adapter,
    AtCut,
    Combine,
    Condition,
    DPOLoss,
    EngineName,
    KLControl,
    KLEstimator,
    KLPlace,
    ModelSource,
    Precision,
    RevisionsUsed,
    SamplerCorrection,
    Select,
    Strategy,
    ValueAdapter,
)
from cai.full_weights import FullCopies, Tuned
from cai.hardware_config import HardwareConfig
from cai.heads import ScoreHead
from cai.loaders import PairExample, SFTExample
from cai.low_rank import lora_layers
from cai.model_config import EngineConfig, LoRAConfig, ModelConfig
from cai.rollout import Sampled, ValueFunction
from cai.scoring import TokenScore, score_responses
from cai.training_config import (
    DPOConfig,
    OptimizerConfig,
    PPOConfig,
    PreferenceModelConfig,
    SLPolicyConfig,
)

VOCAB_SIZE = 300
EOS_ID = 2
PAD_ID = 0
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    hidden_size: int = 32,
    vocab_size: int = VOCAB_SIZE,
) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(dtype).eval()


def lora(rank: int = 4, alpha: int = 8) -> LoRAConfig:
    return LoRAConfig(rank=rank, alpha=alpha, target_modules=list(TARGETS))


LORA = lora()
KINDS = {"lora": LORA, "none": None}
"""What is trained, for tests that hold for both."""


@torch.no_grad()
def scramble(
    model: Tuned, adapter: str, generator: torch.Generator, *, scale: float = 0.05
) -> None:
    """Move a role away from the base: an adapter's B, or all weights a little."""
    if isinstance(model, FullCopies):
        for weight in model.copies[adapter].parameters():
            weight += scale * 0.3 * torch.randn(weight.shape, generator=generator)
        return
    for layer in lora_layers(model, adapter).values():
        layer.lora_B[adapter].weight.normal_(0, scale, generator=generator)


def engine() -> EngineConfig:
    return EngineConfig(name=EngineName.transformers, vllm=None, server=None)


def hardware(micro_batch_size: int = 4) -> HardwareConfig:
    return HardwareConfig(
        name="cpu",
        accelerator="cpu",
        devices=ranks.world().size,
        num_nodes=1,
        num_threads=1,
        strategy=Strategy.ddp,
        activation_checkpointing=False,
        precision=Precision.fp32,
        micro_batch_size=micro_batch_size,
        check_memory=True,
        memory_gb=None,
        teraflops=0.05,
        gb_per_second=10.0,
    )


def optimizer(learning_rate: float = 1e-3, max_grad_norm: float = 1.0) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        weight_decay=0.0,
        warmup_frac=0.0,
        max_grad_norm=max_grad_norm,
    )


def sl_config(learning_rate: float = 1e-3, **changes: int) -> SLPolicyConfig:
    values = {"num_epochs": 2, "batch_size": 4, "max_length": 64, "checkpoint_every": 2} | changes
    return SLPolicyConfig(revisions=RevisionsUsed.all, optimizer=optimizer(learning_rate), **values)


def pm_config(learning_rate: float = 1e-3, **changes: object) -> PreferenceModelConfig:
    values = {
        "num_epochs": 2,
        "batch_size": 4,
        "validation_frac": 0.1,
        "human_frac": None,
        "num_members": 1,
        "combine": Combine.mean,
        "condition": Condition.none,
        "principles_per_score": 2,
        "max_length": 64,
        "checkpoint_every": 2,
        "optimizer": optimizer(learning_rate),
    }
    return PreferenceModelConfig(**(values | changes))


def dpo_config(learning_rate: float = 1e-3, **changes: object) -> DPOConfig:
    values = {
        "loss": DPOLoss.sigmoid,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "num_epochs": 2,
        "batch_size": 4,
        "validation_frac": 0.1,
        "human_frac": None,
        "max_length": 64,
        "checkpoint_every": 2,
    }
    return DPOConfig(optimizer=optimizer(learning_rate), **(values | changes))


def ppo_config(learning_rate: float = 1e-3, **changes: object) -> PPOConfig:
    values = {
        "num_iterations": 4,
        "rollouts_per_iteration": 8,
        "shard_size": 8,
        "helpfulness_frac": 0.0,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "ppo_epochs": 2,
        "num_minibatches": 2,
        "kl_coef": 0.05,
        "kl_where": KLPlace.reward,
        "kl_estimator": KLEstimator.k1,
        "kl_control": KLControl.fixed,
        "kl_target": 6.0,
        "kl_horizon": 100,
        "clip_ratio": 0.2,
        "value_clip": 0.2,
        "value_coef": 0.1,
        "discount": 1.0,
        "gae_lambda": 0.95,
        "whiten_rewards": False,
        "score_clip": None,
        "at_cut": AtCut.terminal,
        "missing_eos_penalty": 1.0,
        "sampler_correction": SamplerCorrection.truncated,
        "sampler_ratio_cap": 2.0,
        "checkpoint_every": 1,
        "optimizer": optimizer(learning_rate),
        "value_adapter": ValueAdapter.shared,
        "value_learning_rate": learning_rate,
        "value_warmup_iterations": 0,
        "snapshot_every": 1,
        "select": Select.final,
    }
    return PPOConfig(**(values | changes))


def random_ids(rng: random.Random, low: int, high: int) -> tuple[int, ...]:
    """Between `low` and `high` - 1 ordinary tokens."""
    return tuple(rng.randrange(10, VOCAB_SIZE) for _ in range(rng.randrange(low, high)))


def sft_examples(num: int = 10, seed: int = 0) -> list[SFTExample]:
    rng = random.Random(seed)
    return [SFTExample(random_ids(rng, 2, 9), (*random_ids(rng, 0, 9), EOS_ID)) for _ in range(num)]


def pair_examples(num: int = 10, seed: int = 0) -> list[PairExample]:
    rng = random.Random(seed)
    return [
        PairExample(
            random_ids(rng, 2, 9),
            (*random_ids(rng, 0, 9), EOS_ID),
            (*random_ids(rng, 0, 9), EOS_ID),
            rng.random(),
            rng.choice([0.5, 1.0]),
        )
        for _ in range(num)
    ]


def tiny_prompts(num: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [random_ids(rng, 2, 7) for _ in range(num)]


@torch.no_grad()
def sample_plainly(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float,
) -> list[Sampled]:
    """Ancestral sampling, one prompt at a time, without a cache: slow and simple."""
    samples = []
    for row, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(1000 * seed + row)
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < max_new_tokens and EOS_ID not in ids:
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            logp = (logits / temperature).log_softmax(-1)
            chosen = int(torch.multinomial(logp.exp(), 1, generator=generator))
            logprobs.append(float(logp[chosen]))
            ids.append(chosen)
        samples.append(
            Sampled(
                prompt_ids=prompt,
                response_ids=tuple(ids),
                finished=ids[-1] == EOS_ID,
                logprobs=tuple(logprobs),
            )
        )
    return samples


def dpo_setup(dtype: torch.dtype = torch.float32, *, trained: LoRAConfig | None = LORA) -> Tuned:
    """A model with roles policy = reference, both not the base."""
    model = adapters.attach(tiny_model(dtype=dtype), trained, adapter="reference", seed=1)
    scramble(model, "reference", torch.Generator().manual_seed(1))
    adapters.copy_adapter(model, "reference", "policy")
    return model


def ppo_setup(
    seed: int = 0, dtype: torch.dtype = torch.float32, *, trained: LoRAConfig | None = LORA
) -> tuple[Tuned, ValueFunction]:
    """A model with roles policy = reference and preference, none the base, and a value function."""
    base = tiny_model(dtype=dtype)
    # Llama starts its padding row, here the end of sequence, at zero: it would never be sampled.
    base.model.embed_tokens.weight.data[EOS_ID].normal_(
        0, 0.6, generator=torch.Generator().manual_seed(5)
    )
    model = adapters.attach(base, trained, adapter="reference", seed=seed)
    adapters.add(model, trained, "preference", seed + 1)
    generator = torch.Generator().manual_seed(seed)
    for name in ("reference", "preference"):
        scramble(model, name, generator)
    adapters.copy_adapter(model, "reference", "policy")
    return model, ValueFunction(adapter="policy", head=preference_head(seed).as_value_head())


def own_value(model: Tuned, seed: int = 0) -> ValueFunction:
    """A value function over a role of its own, which starts as the preference model."""
    adapters.copy_adapter(model, "preference", "value")
    return ValueFunction(adapter="value", head=preference_head(seed).as_value_head())


def preference_head(seed: int = 0) -> ScoreHead:
    """The score head that goes with the preference adapter of `ppo_setup`."""
    head = ScoreHead(32, seed=seed)
    head.linear.weight.data *= 3
    return head


def token_score(
    model: Tuned, head: ScoreHead | None = None, *, micro_batch_size: int = 4
) -> TokenScore:
    """The score function of `ppo_setup`'s preference adapter; by default with its head."""
    return functools.partial(
        score_responses,
        model,
        preference_head() if head is None else head,
        adapter="preference",
        micro_batch_size=micro_batch_size,
        pad_id=EOS_ID,
    )


class Sampler:
    """`sample(iteration)` for `train_ppo`: a pure function of the round and the policy."""

    def __init__(self, model: Tuned, config: PPOConfig, seed: int = 0) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.merged = adapters.merged_copy(model, "policy")

    def __call__(self, iteration: int) -> list[Sampled]:
        adapters.refresh_merged(self.merged, self.model, "policy")
        return sample_plainly(
            self.merged,
            tiny_prompts(self.config.rollouts_per_iteration, 100 * self.seed + iteration),
            seed=100 * self.seed + iteration,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
        )


def local(folder: Path, **changes: object) -> ModelConfig:
    """A model folder in a role, as `model=local model.path=...` has it."""
    values = {
        "name": "tiny",
        "source": ModelSource.path,
        "path": str(folder),
        "revision": None,
        "start": None,
        "max_context": 500,
        "system_prompt": None,
        "adapter": Adapter.lora,
        "lora": lora(),
        "engine": engine(),
    }
    return ModelConfig(**(values | changes))
