"""What is trained: SL-CAI, preference model, DPO and PPO, each as one call over `cai.trainer`.

An adapter is changed in place, and a call that was cut short goes on from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from cai import adapters, ranks
from cai.full_weights import Tuned
from cai.hardware_config import HardwareConfig
from cai.heads import ScoreHead
from cai.loaders import (
    E,
    EpochLoader,
    M,
    PairExample,
    RolloutLoader,
    SFTExample,
    collate_pairs,
    collate_referenced,
    collate_sft,
)
from cai.modules.dpo import DPOModule, with_reference
from cai.modules.ppo import PPOModule
from cai.modules.preference_model import PreferenceModule
from cai.modules.sft import SFTModule
from cai.progress import bar
from cai.rollout import RolloutBatch, Sampled, ValueFunction, build_rollouts
from cai.scoring import TokenScore
from cai.trainer import OnStep, fit
from cai.training_config import DPOConfig, FineTuneConfig, PPOConfig, PreferenceModelConfig

EpochsConfig = FineTuneConfig | PreferenceModelConfig | DPOConfig
"""Settings of the trainings that go over a fixed set of examples."""


def _pairs_at_once(hardware: HardwareConfig) -> int:
    """Pairs per forward and backward pass, each of two sequences."""
    return max(1, hardware.micro_batch_size // 2)


def _for_each_rank(size: int, num: int) -> int:
    """A micro-batch of at most `size` of a step's sequences or pairs that leaves some to all."""
    return min(size, -(-num // ranks.world().size))


def _epochs(
    examples: Sequence[E],
    collate: Callable[[Sequence[E]], M],
    *,
    config: EpochsConfig,
    size: int,
    seed: int,
) -> EpochLoader[E, M]:
    """Optimizer batches over all epochs, in micro-batches of at most `size` examples."""
    return EpochLoader(
        examples,
        batch_size=config.batch_size,
        micro_batch_size=_for_each_rank(size, config.batch_size),
        seed=seed,
        num_epochs=config.num_epochs,
        collate=collate,
    )


def _fit_epochs(
    make_module: Callable[..., LightningModule],
    loader: EpochLoader[Any, Any],
    *,
    model: Tuned,
    adapter: str,
    config: EpochsConfig,
    hardware: HardwareConfig,
    work_dir: Path,
    on_step: OnStep,
    seed: int,
    stage: str,
) -> None:
    """Train one adapter over a loader's epochs.

    Args:
        make_module: The module, but for the arguments that all of them take: the model, `adapter`,
            `config`, `total_steps` and `stage`.
        loader: One batch per optimizer step.
        model: Base with adapters.
        adapter: The one that learns.
        config: Checkpoints and what the module wants.
        hardware: As in `fit`, like what follows.
        work_dir: For checkpoints.
        on_step: Gets the metrics.
        seed: Of the random stream of every step.
        stage: For messages and fault points.
    """
    with adapters.training(model, adapter):
        module = make_module(
            model, adapter=adapter, config=config, total_steps=len(loader), stage=stage
        )
        fit(
            module,
            loader,
            work_dir=work_dir,
            max_steps=len(loader),
            checkpoint_every=config.checkpoint_every,
            hardware=hardware,
            on_step=on_step,
            seed=seed,
            stage=stage,
        )


def train_sft(
    model: Tuned,
    examples: Sequence[SFTExample],
    *,
    adapter: str,
    config: FineTuneConfig,
    seed: int,
    hardware: HardwareConfig,
    work_dir: Path,
    on_step: OnStep,
    stage: str,
) -> None:
    """Fine-tune an adapter on responses. The adapter is changed in place."""
    loader = _epochs(
        examples, collate_sft, config=config, size=hardware.micro_batch_size, seed=seed
    )
    _fit_epochs(
        SFTModule,
        loader,
        model=model,
        adapter=adapter,
        config=config,
        hardware=hardware,
        work_dir=work_dir,
        on_step=on_step,
        seed=seed,
        stage=stage,
    )


def train_preference_model(
    model: Tuned,
    head: ScoreHead,
    pairs: Sequence[PairExample],
    *,
    adapter: str,
    config: PreferenceModelConfig,
    seed: int,
    hardware: HardwareConfig,
    work_dir: Path,
    on_step: OnStep,
    stage: str,
) -> None:
    """Train an adapter and a score head on soft labels; both are changed in place.

    A pair's weight counts relative to the mean over all pairs. The head is not calibrated here:
    score SL-CAI samples (`cai.scoring`), then call `head.calibrate`.
    """
    loader = _epochs(pairs, collate_pairs, config=config, size=_pairs_at_once(hardware), seed=seed)
    _fit_epochs(
        partial(PreferenceModule, head=head, mean_weight=sum(p.weight for p in pairs) / len(pairs)),
        loader,
        model=model,
        adapter=adapter,
        config=config,
        hardware=hardware,
        work_dir=work_dir,
        on_step=on_step,
        seed=seed,
        stage=stage,
    )


def train_dpo(
    model: Tuned,
    pairs: Sequence[PairExample],
    *,
    policy_adapter: str,
    reference_adapter: str,
    config: DPOConfig,
    seed: int,
    hardware: HardwareConfig,
    work_dir: Path,
    on_step: OnStep,
    stage: str,
) -> None:
    """Optimise a policy adapter on soft labels by DPO; it is changed in place.

    Args:
        model: Base with both adapters. The policy starts as a copy of the reference
            (`adapters.copy_adapter`), before a first call and before a resume alike.
        pairs: Responses as the policy is to learn them.
        policy_adapter: Learns.
        reference_adapter: SL-CAI.
        config: Everything about DPO.
        seed: Of the order.
        hardware: Device and micro-batch size.
        work_dir: For checkpoints.
        on_step: As in `fit`.
        stage: For messages and fault points.
    """
    epochs = partial(_epochs, config=config, size=_pairs_at_once(hardware), seed=seed)
    with bar(len(pairs), name="reference log-probabilities", unit="pairs", shared=True) as progress:
        asked = with_reference(
            model,
            epochs(pairs, collate_pairs),
            adapter=reference_adapter,
            on_pairs=progress.update,
        )
    _fit_epochs(
        DPOModule,
        epochs(asked, collate_referenced),
        model=model,
        adapter=policy_adapter,
        config=config,
        hardware=hardware,
        work_dir=work_dir,
        on_step=on_step,
        seed=seed,
        stage=stage,
    )


def _rollout_maker(
    module: PPOModule,
    *,
    score: TokenScore,
    sample: Callable[[int], list[Sampled]],
    on_rollout: Callable[[int, RolloutBatch], None],
    eos_id: int,
) -> Callable[[int], RolloutBatch]:
    """Makes a round's rollouts with the module's policy and KL coefficient of that moment."""

    def make_rollouts(iteration: int) -> RolloutBatch:
        if iteration != module.iteration:
            raise AssertionError(f"round {iteration} was asked for in round {module.iteration}")
        with module.whole():
            batch = build_rollouts(
                module.model,
                sample(iteration),
                policy_adapter=module.policy_adapter,
                reference_adapter=module.reference_adapter,
                score=score,
                value=module.value,
                fit_values=not module.values_fitted,
                config=module.config,
                kl_coef=module.kl_coef,
                micro_batch_size=module.micro_batch_size,
                eos_id=eos_id,
                seed=module.seed,
                iteration=iteration,
                stage=module.stage,
            )
            on_rollout(iteration, batch)
        return batch

    return make_rollouts


def train_ppo(
    model: Tuned,
    *,
    value: ValueFunction,
    policy_adapter: str,
    reference_adapter: str,
    score: TokenScore,
    sample: Callable[[int], list[Sampled]],
    config: PPOConfig,
    seed: int,
    hardware: HardwareConfig,
    work_dir: Path,
    on_step: OnStep,
    on_rollout: Callable[[int, RolloutBatch], None],
    pad_id: int,
    stage: str,
) -> None:
    """Optimise a policy adapter against the preference model; it and the value function change.

    Args:
        model: Base with the two adapters. The policy starts as a copy of the reference
            (`adapters.copy_adapter`), before a first call and before a resume alike.
        value: Learns; over the policy's adapter, or over another one of the same base.
        policy_adapter: Learns.
        reference_adapter: SL-CAI.
        score: The preference model's, of closed sequences (`cai.scoring`).
        sample: Given the round, counted from 0, samples with the policy as it is then; a pure
            function of the round and of the policy's weights.
        config: Everything about PPO.
        seed: Of the minibatches.
        hardware: Device and micro-batch size.
        work_dir: For checkpoints.
        on_step: As in `fit`, once per round.
        on_rollout: Gets each round's rollouts before the update; a round that a kill cut short is
            sampled and passed again, the same.
        pad_id: The end-of-sequence token: ends a cut response for the preference model, and fills
            the right, where it is never read.
        stage: For messages and fault points.
    """
    value.head.requires_grad_(True)
    with adapters.training(model, policy_adapter):
        if value.adapter != policy_adapter:
            model.set_requires_grad(value.adapter, True)
        module = PPOModule(
            model,
            value=value,
            policy_adapter=policy_adapter,
            reference_adapter=reference_adapter,
            config=config,
            micro_batch_size=_for_each_rank(
                hardware.micro_batch_size, config.rollouts_per_iteration // config.num_minibatches
            ),
            seed=seed,
            stage=stage,
        )

        def after_round(done: int, metrics: dict[str, float]) -> None:
            with module.whole():
                on_step(done, metrics)

        make_rollouts = _rollout_maker(
            module,
            score=score,
            sample=sample,
            on_rollout=on_rollout,
            eos_id=pad_id,
        )
        fit(
            module,
            RolloutLoader(make_rollouts, config.num_iterations),
            work_dir=work_dir,
            max_steps=config.num_iterations,
            checkpoint_every=config.checkpoint_every,
            hardware=hardware,
            on_step=after_round,
            seed=seed,
            stage=stage,
        )
