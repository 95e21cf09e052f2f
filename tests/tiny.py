"""A tiny random Llama and tiny settings for the training tests; no tokenizer, no network."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cai.config import (
    HardwareConfig,
    KLControl,
    KLEstimator,
    LoRAConfig,
    OptimizerConfig,
    PPOConfig,
    Precision,
    PreferenceModelConfig,
    RevisionsUsed,
    SLPolicyConfig,
)

VOCAB_SIZE = 300
EOS_ID = 2
PAD_ID = 0
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
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


def hardware(micro_batch_size: int = 4) -> HardwareConfig:
    return HardwareConfig(
        name="cpu",
        accelerator="cpu",
        devices=1,
        num_threads=1,
        precision=Precision.fp32,
        micro_batch_size=micro_batch_size,
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


def pm_config(learning_rate: float = 1e-3, **changes: int) -> PreferenceModelConfig:
    values = {"num_epochs": 2, "batch_size": 4, "max_length": 64, "checkpoint_every": 2} | changes
    return PreferenceModelConfig(
        validation_frac=0.1, human_weight=1.0, optimizer=optimizer(learning_rate), **values
    )


def ppo_config(learning_rate: float = 1e-3, **changes: object) -> PPOConfig:
    values = {
        "num_iterations": 4,
        "rollouts_per_iteration": 8,
        "helpfulness_frac": 0.0,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "ppo_epochs": 2,
        "num_minibatches": 2,
        "kl_coef": 0.05,
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
        "missing_eos_penalty": 1.0,
        "checkpoint_every": 1,
        "optimizer": optimizer(learning_rate),
        "value_learning_rate": learning_rate,
    }
    return PPOConfig(**(values | changes))
