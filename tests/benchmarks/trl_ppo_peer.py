"""TRL 1.12's side: the last release with a PPO trainer (`trl.experimental.ppo`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from tests.benchmarks.job import ALPHA, PAD_ID, RANK, TEMPERATURE, Job, Outcome, serve, timed


def _scoring(job: Job) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(
        job.model, num_labels=1, dtype=getattr(torch, job.dtype), pad_token_id=PAD_ID
    )
    head = load_file(Path(job.start) / "head.safetensors")["linear.weight"]
    model.score.weight.data.copy_(head)
    return model


def _trainer(job: Job, rows: list[dict[str, list[int]]], folder: str) -> PPOTrainer:
    """One iteration over all rows: policy with an adapter, value and reward model of their own."""
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    tokenizer.pad_token_id = PAD_ID
    micro = min(job.micro_batch_size, len(rows))
    config = PPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=job.dtype == "bfloat16",
        gradient_checkpointing=job.checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=len(rows) // micro,
        num_mini_batches=1,
        local_rollout_forward_batch_size=micro,
        num_ppo_epochs=1,
        total_episodes=len(rows),
        response_length=job.new_tokens,
        temperature=TEMPERATURE,
        num_sample_generations=0,
        learning_rate=job.learning_rate,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    prompts = Dataset.from_list([{"input_ids": row["prompt"]} for row in rows])
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)),
        ref_model=None,
        reward_model=_scoring(job),
        value_model=_scoring(job),
        train_dataset=prompts,
        eval_dataset=prompts,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=job.targets, task_type="CAUSAL_LM"
        ),
    )


def run(job: Job) -> Outcome:
    """Warm up with a short round, then make one with the clock running."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _trainer(job, job.warm_up, folder).train()
        trainer = _trainer(job, job.examples, folder)

        def train() -> list[float]:
            trainer.train()
            return []

        return timed(train)


if __name__ == "__main__":
    serve(run)
