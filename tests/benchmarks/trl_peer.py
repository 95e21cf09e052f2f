"""TRL 1.16's side: SFTTrainer, RewardTrainer and DPOTrainer on the tokens that they are given."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from tests.benchmarks.job import ALPHA, BETA, PAD_ID, RANK, Job, Outcome, serve, timed


def adapted(job: Job, model: PreTrainedModel, task: str) -> PeftModel:
    """The model with the adapter of the job's start; PEFT keeps it in float32."""
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=job.targets,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )
    tuned = get_peft_model(model, lora)
    weights = load_file(Path(job.start) / "adapter_model.safetensors")
    if task == "SEQ_CLS":
        head = load_file(Path(job.start) / "head.safetensors")
        weights["base_model.model.score.weight"] = head["linear.weight"]
    set_peft_model_state_dict(tuned, weights)
    return tuned


def causal(job: Job) -> PeftModel:
    """A policy."""
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    return adapted(job, model, "CAUSAL_LM")


def scoring(job: Job) -> PeftModel:
    """A reward model with the score head of the job's start."""
    model = AutoModelForSequenceClassification.from_pretrained(
        job.model, num_labels=1, dtype=getattr(torch, job.dtype), pad_token_id=PAD_ID
    )
    return adapted(job, model, "SEQ_CLS")


def tokenizer(job: Job) -> PreTrainedTokenizerBase:
    """With padding told from the end of sequence."""
    found = AutoTokenizer.from_pretrained(job.model)
    found.pad_token_id = PAD_ID
    return found


class TokenDPOTrainer(DPOTrainer):
    """Takes tokens; TRL's own would encode text."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def _sft_rows(rows: list[dict[str, list[int]]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["response"],
                "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["response"]),
            }
            for row in rows
        ]
    )


def _reward_rows(rows: list[dict[str, list[int]]]) -> Dataset:
    return Dataset.from_list(
        [
            {f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")}
            for row in rows
        ]
    )


def _dpo_rows(rows: list[dict[str, list[int]]]) -> Dataset:
    return Dataset.from_list([{f"{name}_ids": ids for name, ids in row.items()} for row in rows])


def _trainer(job: Job, rows: list[dict[str, list[int]]], folder: str) -> Trainer:
    settings = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": job.checkpointing,
        "per_device_train_batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": max(1, job.batch_size // job.micro_batch_size),
        "num_train_epochs": job.num_epochs,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    common = {"processing_class": tokenizer(job)}
    match job.trainer:
        case "sft":
            config = SFTConfig(completion_only_loss=True, **settings)
            return SFTTrainer(causal(job), config, train_dataset=_sft_rows(rows), **common)
        case "preference":
            config = RewardConfig(**settings)
            return RewardTrainer(
                scoring(job), args=config, train_dataset=_reward_rows(rows), **common
            )
        case "dpo":
            config = DPOConfig(beta=BETA, **settings)
            model = causal(job)
            return TokenDPOTrainer(model, args=config, train_dataset=_dpo_rows(rows), **common)
        case _:
            raise ValueError(f"TRL 1.16 has no trainer for {job.trainer}")


def run(job: Job) -> Outcome:
    """Warm up, then train with the clock running."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if job.warm_up:
            _trainer(job, job.warm_up, folder).train()
        trainer = _trainer(job, job.examples, folder)

        def train() -> list[float]:
            trainer.train()
            return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

        return timed(train)


if __name__ == "__main__":
    serve(run)
