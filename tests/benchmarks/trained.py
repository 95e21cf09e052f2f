"""This project's side of the comparison with TRL: `cai.training` on the same tokens."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from cai import adapters, paths, training
from cai.config import Config, RLAIFConfig
from cai.generation import Generator
from cai.heads import ScoreHead
from cai.loaders import PairExample, SFTExample
from cai.models import POLICY, PREFERENCE, REFERENCE, BaseModel, load
from cai.rollout import Sampled, ValueFunction
from cai.schema import to_config
from cai.scoring import score_responses
from tests.benchmarks.job import TEMPERATURE, Ids, Job, Outcome, peak_mib, serve, timed

UNUSED_ID = 49151
"""Hardly ever sampled, in place of the end: every response has as many tokens, as in TRL."""
PROBE = [1, 2, 3, 4]
PRECISION = {"float32": "fp32", "bfloat16": "bf16"}


def settings(job: Job | None, phase: str = "rlaif", *, dtype: str = "bfloat16") -> Config:
    """The defaults, with what the job says."""
    overrides = [f"phase={phase}", f"hardware.precision={PRECISION[job.dtype if job else dtype]}"]
    if job is not None:
        part = {"preference": "preference_model"}.get(job.trainer, job.trainer)
        of = {"sft": "phase.sl_policy"}.get(job.trainer, f"phase.{part}")
        overrides += [
            f"hardware.micro_batch_size={job.micro_batch_size}",
            f"{of}.checkpoint_every=1000",
            f"{of}.optimizer.learning_rate={job.learning_rate}",
            f"{of}.optimizer.warmup_frac=0.0",
        ]
        if job.trainer == "ppo":
            overrides += [
                "phase.ppo.num_iterations=2",
                "phase.ppo.num_minibatches=1",
                f"phase.ppo.rollouts_per_iteration={job.batch_size}",
                f"phase.ppo.max_new_tokens={job.new_tokens}",
                f"phase.ppo.temperature={TEMPERATURE}",
            ]
        else:
            overrides += [f"{of}.batch_size={job.batch_size}", f"{of}.num_epochs={job.num_epochs}"]
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return to_config(compose("config", overrides=overrides))


def base_of(config: Config) -> BaseModel:
    """The embedded model."""
    return load(config.model, config.hardware)


@torch.no_grad()
def make_start(folder: Path, dtype: str) -> None:
    """An adapter that changes the base a little, and a score head, for both sides to start from."""
    config = settings(None, dtype=dtype)
    base = base_of(config)
    tuned = adapters.attach(base.model, config.model.lora, adapter=POLICY, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapters.parameters_of(tuned, POLICY):
        if not parameter.any():
            parameter.normal_(0.0, 0.01, generator=generator)
    head = ScoreHead(base.model.config.hidden_size, seed=1)
    adapters.save_adapter(
        tuned,
        POLICY,
        folder,
        head=head,
        base_id=base.base_id,
        base_sha256=base.sha256,
        probe_ids=PROBE,
    )


def _pairs(rows: list[dict[str, Ids]]) -> list[PairExample]:
    return [
        PairExample(
            prompt_ids=tuple(row["prompt"]),
            response_a_ids=tuple(row["chosen"]),
            response_b_ids=tuple(row["rejected"]),
            prob_a=1.0,
            weight=1.0,
        )
        for row in rows
    ]


def _epochs(job: Job) -> Callable[[list[dict[str, Ids]]], list[float]]:
    """Trains on rows and gives the losses, for all trainers but PPO."""
    config = settings(job, phase="dpo" if job.trainer == "dpo" else "rlaif")
    base = base_of(config)
    adapter = PREFERENCE if job.trainer == "preference" else POLICY
    start = Path(job.start)
    tuned = adapters.load(base.model, start, adapter=adapter, base_sha256=base.sha256)
    shared: dict[str, Any] = {"seed": 0, "hardware": config.hardware, "stage": "benchmark"}

    def train(rows: list[dict[str, Ids]]) -> list[float]:
        losses: list[float] = []
        if job.trainer == "dpo":
            # The policy starts at the reference, also after a warm-up.
            adapters.copy_adapter(tuned, POLICY, REFERENCE)
        with tempfile.TemporaryDirectory() as folder:
            shared["work_dir"] = Path(folder)
            shared["on_step"] = lambda _, metrics: losses.append(metrics["train/loss"])
            match job.trainer:
                case "sft":
                    examples = [
                        SFTExample(tuple(row["prompt"]), tuple(row["response"])) for row in rows
                    ]
                    training.train_sft(
                        tuned, examples, adapter=POLICY, config=config.phase.sl_policy, **shared
                    )
                case "preference":
                    training.train_preference_model(
                        tuned,
                        adapters.load_head(start),
                        _pairs(rows),
                        adapter=PREFERENCE,
                        config=config.phase.preference_model,
                        **shared,
                    )
                case "dpo":
                    training.train_dpo(
                        tuned,
                        _pairs(rows),
                        policy_adapter=POLICY,
                        reference_adapter=REFERENCE,
                        config=config.phase.dpo,
                        **shared,
                    )
        return losses

    return train


def _rounds(job: Job) -> Outcome:
    """A short round of PPO, then one with the clock running."""
    config = settings(job)
    assert isinstance(config.phase, RLAIFConfig)
    base = base_of(config)
    start = Path(job.start)
    tuned = adapters.load(base.model, start, adapter=REFERENCE, base_sha256=base.sha256)
    adapters.load_adapter(tuned, start, adapter=PREFERENCE, base_sha256=base.sha256)
    adapters.copy_adapter(tuned, REFERENCE, POLICY)
    head = adapters.load_head(start).requires_grad_(False)
    merged = adapters.merged_copy(tuned, POLICY)
    clock: list[float] = []

    def sample(iteration: int) -> list[Sampled]:
        adapters.refresh_merged(merged, tuned, POLICY)
        prompts = [row["prompt"] for row in (job.warm_up, job.examples)[iteration]]
        generator = Generator(merged, eos_id=UNUSED_ID, max_context=2048)
        found = generator.sample(
            prompts,
            seeds=list(range(len(prompts))),
            max_new_tokens=job.new_tokens,
            temperature=TEMPERATURE,
        )
        return [
            Sampled(
                prompt_ids=tuple(prompt),
                response_ids=row.ids,
                finished=False,
                logprobs=row.logprobs,
            )
            for prompt, row in zip(prompts, found, strict=True)
        ]

    with tempfile.TemporaryDirectory() as folder:
        training.train_ppo(
            tuned,
            value=ValueFunction(adapter=POLICY, head=head.as_value_head()),
            policy_adapter=POLICY,
            reference_adapter=REFERENCE,
            score=functools.partial(
                score_responses,
                tuned,
                head,
                adapter=PREFERENCE,
                micro_batch_size=job.micro_batch_size,
                pad_id=base.eos_id,
            ),
            sample=sample,
            config=config.phase.ppo,
            seed=0,
            hardware=config.hardware,
            work_dir=Path(folder),
            on_step=lambda *_: clock.append(time.process_time()),
            on_rollout=lambda *_: None,
            pad_id=base.eos_id,
            stage="benchmark",
        )
    return Outcome(cpu_seconds=clock[1] - clock[0], peak_mib=peak_mib(), losses=[])


def run(job: Job) -> Outcome:
    """Warm up, then train with the clock running."""
    torch.set_num_threads(1)
    if job.trainer == "ppo":
        return _rounds(job)
    train = _epochs(job)
    if job.warm_up:
        train(job.warm_up)
    return timed(lambda: train(job.examples))


if __name__ == "__main__":
    serve(run)
