"""Lightning's Trainer in explicit lines: exact resume, signals left alone.

Lightning 2.6 alone does not resume exactly, writes checkpoints that are not atomic, turns Ctrl-C
into exit status 1 and swallows SIGTERM (all measured). Here the order of data is a function of the
seed, the loader's place is in the checkpoint, every step begins with its own random stream,
checkpoints are our own (`checkpoints.py`), and the signal handlers that were there stay in force.
On one CPU thread in float32, a run that was killed anywhere and started again ends with the same
bits as one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from cai import preemption, ranks
from cai.checkpoints import VerifiedCheckpointIO, checkpoint_path, newest, prune, step_of
from cai.choices import Strategy
from cai.faults import fault
from cai.hardware_config import HardwareConfig
from cai.loaders import EpochLoader, RolloutLoader
from cai.modules.trained import TrainedModule
from cai.recomputing import recomputing
from cai.seeds import derive_seed
from cai.split_weights import FSDP

OnStep = Callable[[int, dict[str, float]], None]
"""Called with (steps done, metrics) after every step; see `fit`."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _signal_handlers() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in SIGNALS}


def _restore_signal_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


class _Steps(Callback):
    """What happens around every step: its random stream, its report, its checkpoint."""

    def __init__(
        self,
        *,
        work_dir: Path,
        max_steps: int,
        checkpoint_every: int,
        on_step: OnStep,
        seed: int,
        stage: str,
        handlers: Mapping[signal.Signals, Any],
    ) -> None:
        self.work_dir = work_dir
        self.max_steps = max_steps
        self.checkpoint_every = checkpoint_every
        self.on_step = on_step
        self.seed = seed
        self.stage = stage
        self.handlers = handlers
        self.done = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo Lightning's handlers: its SIGTERM ends a run with status 0."""
        _restore_signal_handlers(self.handlers)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Whatever draws from the global stream draws the same after a resume."""
        torch.manual_seed(derive_seed(self.seed, self.stage, "step", batch_idx))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report first: a step that a checkpoint covers has been reported."""
        self.done = batch_idx + 1
        self.on_step(self.done, outputs["metrics"])
        last = self.done == self.max_steps
        stopping = not last and preemption.stop_between_steps()
        if stopping or last or self.done % self.checkpoint_every == 0:
            trainer.save_checkpoint(checkpoint_path(self.work_dir, self.done))
            if ranks.is_first():
                prune(self.work_dir)
            fault(f"{self.stage}:checkpoint")
        if stopping:
            raise preemption.stop()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's advice; its errors still raise."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _restore_finished(module: TrainedModule, checkpoint: Path) -> None:
    """Take the weights of a training that was complete but for what came after it."""
    state = VerifiedCheckpointIO().load_checkpoint(checkpoint)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"], strict=False)


class _StepwiseDDP(DDPStrategy):
    """Lightning's DDP, whose gradients are added up once per step (`optimisation.sum_gradients`).

    A step here has several backward passes, and ranks may have different numbers of them, where
    DDP's own hooks would wait for each other after every one.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A whole step, in which gradients stay on their rank."""
        with self.block_backward_sync():
            return super().training_step(*args, **kwargs)


def _processes(hardware: HardwareConfig) -> dict[str, Any]:
    """What tells Lightning of the ranks that there are; they have the same weights already.

    Alone there is nothing to split.
    """
    world = ranks.world()
    if world.size == 1:
        return {"devices": [world.local_rank] if hardware.accelerator == "gpu" else 1}
    return {
        "devices": hardware.devices,
        "num_nodes": hardware.num_nodes,
        "strategy": (
            FSDP() if hardware.strategy is Strategy.fsdp else _StepwiseDDP(init_sync=False)
        ),
    }


def _trainer(hardware: HardwareConfig, work_dir: Path, steps: _Steps) -> Trainer:
    """A Trainer that writes, prints and checks nothing of its own."""
    world = [TorchElasticEnvironment()] if ranks.world().size > 1 else []
    return Trainer(
        accelerator=hardware.accelerator,
        **_processes(hardware),
        max_epochs=1,
        default_root_dir=work_dir,
        callbacks=[steps],
        plugins=[VerifiedCheckpointIO(), *world],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def _leaving_things_as_they_were(
    module: LightningModule, handlers: Mapping[signal.Signals, Any]
) -> Iterator[None]:
    """Undo what Lightning does to Ctrl-C, to signal handlers and to the module's device."""
    device = next(module.parameters()).device
    try:
        yield
    except SystemExit as stop:
        # Lightning turns Ctrl-C into this.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        _restore_signal_handlers(handlers)
        module.to(device)


def fit(
    module: TrainedModule,
    loader: EpochLoader[Any, Any] | RolloutLoader[Any],
    *,
    work_dir: Path,
    max_steps: int,
    checkpoint_every: int,
    hardware: HardwareConfig,
    on_step: OnStep,
    seed: int,
    stage: str,
) -> None:
    """Train to `max_steps`, from the newest valid checkpoint in `work_dir` when there is one.

    Several ranks train the same module together and end with the same weights; the checkpoints are
    those of one process, so any number of ranks goes on from them.

    Args:
        module: Its `training_step` returns `{"metrics": {name: number}}`.
        loader: One batch per step; `len(loader)` is `max_steps`.
        work_dir: Only this training's; checkpoints stay in it.
        max_steps: Steps of the whole training: optimizer steps, or rounds of PPO.
        checkpoint_every: Steps between checkpoints; there is always one after the last step.
        hardware: Device.
        on_step: Gets the absolute step, counted from 1. A step is reported before the checkpoint
            that covers it, so after a kill the steps since the last checkpoint are computed and
            reported once more, with the same number and the same values: keep one row per step.
        seed: Of the random stream of every step.
        stage: For fault points `<stage>:step` and `<stage>:checkpoint`.
    """
    if len(loader) != max_steps:
        raise AssertionError(f"{len(loader)} batches for {max_steps} steps")
    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = ranks.broadcast(newest(work_dir) if ranks.is_first() else None)
    if checkpoint is not None and step_of(checkpoint) == max_steps:
        _restore_finished(module, checkpoint)
        return
    steps = _Steps(
        work_dir=work_dir,
        max_steps=max_steps,
        checkpoint_every=checkpoint_every,
        on_step=on_step,
        seed=seed,
        stage=stage,
        handlers=_signal_handlers(),
    )
    with (
        _leaving_things_as_they_were(module, steps.handlers),
        _quiet(),
        torch.random.fork_rng(devices=[]),
        recomputing(hardware.activation_checkpointing),
    ):
        trainer = _trainer(hardware, work_dir, steps)
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
        module.join()
    if steps.done != max_steps:
        raise AssertionError(f"{stage}: {steps.done} of {max_steps} steps were done")
