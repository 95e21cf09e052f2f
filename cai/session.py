"""One run from typed settings to a run folder: set-up, phase, account of what happened.

The run folder holds `config.yaml` (resolved), `manifest.json` (stage, digest, reused or computed,
seconds, counts), `metrics.json` (flat), `metrics.jsonl` (by step), `report.html` and the log; after
rlaif and dpo also `attribution.json` (`cai.attribution_record`). What stages make is in the store,
so a run that is interrupted loses nothing: the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from cai import account, embedded, ranks
from cai.artifacts import Store, write_atomically
from cai.attribution_record import FILE as ATTRIBUTION
from cai.chapters import Outputs
from cai.choices import ModelSource
from cai.config import Config, DPOPhaseConfig, EvaluateConfig, RLAIFConfig, SLCAIConfig
from cai.constitution import Constitution
from cai.context import RunContext, StageResult, StageStatus, versions
from cai.critic_export import leave_critic
from cai.critique_config import CritiqueModelConfig, CritiqueRLConfig
from cai.engines import server_checks
from cai.errors import UserError
from cai.job import Job
from cai.model_card import write_model_card
from cai.model_config import ModelConfig
from cai.models import Models, dtype_of, start_of
from cai.phases import critique_model, critique_rl, dpo, evaluate, hybrid, rlaif, rlhf, sl_cai
from cai.plan import SweepPlan, plan_text
from cai.principle_subset import chosen_document
from cai.report import write_report
from cai.rlhf_config import HybridConfig, RLHFConfig
from cai.roles import roles, served_roles, trained_roles
from cai.sizes.planning import plan_told, predict
from cai.sizes.scene import check_layers, check_weights
from cai.summary import terminal_summary
from cai.tracking import MemoryTracker, RunTracker, Tracker, config_record, open_tracker
from cai.wandb_lineage import lineage_nodes

log = logging.getLogger("cai")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_sweep_plan = SweepPlan()
"""Of the multirun that this process plans."""


def execute(config: Config, job: Job) -> float | None:
    """Run a phase, or plan it; return what a sweeper may optimise.

    Raises:
        UserError: for everything that the user can put right.
    """
    set_up(config)
    check_weights(config)
    check_layers(config)
    require_models(config)
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    document = chosen_document(config.constitution)
    if config.plan:
        context = open_context(config, job, document, MemoryTracker())
        _run_phase(config, context)
        predicted = predict(config, document, context.results)
        text = plan_text(context, _sweep_plan.earlier(job), predicted.scene)
        print(plan_told(text, predicted))
        _sweep_plan.note(job, context.results)
        predicted.check()
        return None
    if config.hardware.check_memory:
        check_memory(config, job, document)
    require_servers(config, job, document)
    with limits_told(config, job):
        return _execute(config, job, document)


def check_memory(config: Config, job: Job, document: Constitution) -> None:
    """Plan a run and refuse it where a stage has no place in the device's memory.

    Raises:
        UserError: with the setting that would fit.
    """
    predict(config, document, _planned(config, job, document)).check()


def _planned(config: Config, job: Job, document: Constitution) -> list[StageResult]:
    """The stages of a run, of which nothing is computed."""
    context = open_context(dataclasses.replace(config, plan=True), job, document, MemoryTracker())
    with ranks.apart():
        _run_phase(config, context)
    return context.results


def require_servers(config: Config, job: Job, document: Constitution) -> None:
    """Refuse a run that has something to compute and an engine that cannot do its part.

    Raises:
        UserError: with what to install, or how the server must be started.
    """
    asked = served_roles(config)
    if not asked or not ranks.is_first():
        return
    stages = _planned(config, job, document)
    if any(stage.status is StageStatus.planned for stage in stages):
        for role, one in asked.items():
            server_checks.check_role(
                role,
                one,
                hardware=config.hardware,
                trained=role in trained_roles(config),
                shared=Path(config.output_dir),
            )


@contextlib.contextmanager
def limits_told(config: Config, job: Job) -> Iterator[None]:
    """A full disk or memory becomes a message that says how to go on.

    Raises:
        UserError: in place of the error of the operating system or of torch.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"The disk is full ({error.filename or config.output_dir}). What was finished "
                f"before is kept. Free some space and go on with: {job.command}"
            ) from error
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            "Out of memory. What was finished before is kept. Type a smaller "
            "hardware.micro_batch_size=... and go on with: " + job.command
        ) from error


def require_models(config: Config) -> None:
    """Refuse a run that would ask an embedded model or an adapter which was never made.

    Raises:
        UserError: with the command that makes it.
    """
    for asked in roles(config).values():
        if not isinstance(asked, ModelConfig):
            continue
        if asked.source is ModelSource.embedded:
            embedded.made(embedded.named(asked.path))
        start_of(asked)


def _execute(config: Config, job: Job, document: Constitution) -> float | None:
    if not ranks.is_first():
        _run_phase(config, open_context(config, job, document, MemoryTracker()))
        return None
    run_dir = Path(job.run_dir)
    started = time.monotonic()
    when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    _write(run_dir / "config.yaml", yaml.safe_dump(config_record(config), sort_keys=False))
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or job.choices.get("experiment") or f"{config.phase.name}-{document.name}",
        job_type=config.phase.name,
        tags=(document.name, config.model.name),
        run_config={"cai": config_record(config)},
    )
    status = "failed"
    context = None
    try:
        context = open_context(config, job, document, tracker)
        outputs = _run_phase(config, context)
        seconds = time.monotonic() - started
        told = account.tell(config, job, context, outputs, started=when, seconds=seconds)
        _publish(told, context, tracker)
        _leave_critic(config, outputs, run_dir)
        status = "done" if told.stop is None else "failed"
        print(
            terminal_summary(
                told.story,
                report_path=run_dir / "report.html",
                notice=tracker.notice(),
                encoding=sys.stdout.encoding,
            )
        )
        if told.stop is not None:
            raise UserError(told.stop)
        return told.objective
    finally:
        tracker.close(0 if status == "done" else 1)
        if context is not None:
            _write_manifest(context, job, run_dir, status=status, started=when)


def set_up(config: Config) -> None:
    """Threads, determinism and quiet libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.hardware.num_threads is not None:
        torch.set_num_threads(config.hardware.num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*")


def open_context(config: Config, job: Job, document: Constitution, tracker: Tracker) -> RunContext:
    """What the stages of a run may touch."""
    return RunContext(
        run_dir=Path(job.run_dir),
        store=Store(root=Path(config.output_dir) / "store"),
        tracker=tracker,
        constitution=document,
        models=Models(config.hardware),
        hardware=config.hardware,
        seed=config.seed,
        plan=config.plan,
    )


def _run_phase(config: Config, context: RunContext) -> Outputs:
    inputs = sl_cai.Inputs(
        model=config.model,
        principles=config.constitution.sampling,
        domain=config.constitution.domain,
        data=config.data,
        feedback=config.feedback,
        evaluation=config.evaluation,
    )
    if isinstance(config.phase, SLCAIConfig):
        sl_cai.check_document(config.phase, inputs, context.constitution)
    match config.phase:
        case HybridConfig():
            return hybrid.run(config.phase, inputs, context)
        case RLHFConfig():
            return rlhf.run(config.phase, inputs, context)
        case RLAIFConfig():
            return rlaif.run(config.phase, inputs, context)
        case CritiqueModelConfig():
            return critique_model.run(config.phase, inputs, context)
        case CritiqueRLConfig():
            return critique_rl.run(config.phase, inputs, context)
        case DPOPhaseConfig():
            return dpo.run(config.phase, inputs, context)
        case SLCAIConfig():
            return sl_cai.run(config.phase, inputs, context)
        case EvaluateConfig():
            return evaluate.run(config.phase, inputs, context)
        case _:
            raise AssertionError(f"no phase for {type(config.phase).__name__}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot write to {path.parent}: {error.strerror}. Choose another folder with "
            "output_dir=..."
        ) from error
    write_atomically(path, text.encode("utf-8"))


def _publish(told: account.Account, context: RunContext, tracker: RunTracker) -> None:
    """Metrics, report, samples and artifacts, locally and in the mirror."""
    run_dir = context.run_dir
    _write(run_dir / "metrics.json", json.dumps(told.metrics, indent=1, allow_nan=False) + "\n")
    if told.attribution is not None:
        text = json.dumps(told.attribution, indent=1, allow_nan=False) + "\n"
        _write(run_dir / ATTRIBUTION, text)
    for name, text in told.files.items():
        _write(run_dir / name, text)
    write_report(told.story, run_dir / "report.html")
    write_model_card(told.story, run_dir)
    tracker.summary(told.metrics)
    for name, table in told.tables.items():
        tracker.table(name, table.columns, table.rows)
    for node in lineage_nodes(context.results, told.adapters, models=run_dir / "models"):
        tracker.artifact(node)


def _leave_critic(config: Config, outputs: Outputs, run_dir: Path) -> None:
    """Put a trained critic where other runs find it by name."""
    phase = config.phase
    if not isinstance(outputs, critique_model.Outputs):
        return
    assert isinstance(phase, CritiqueModelConfig | CritiqueRLConfig)
    folder = leave_critic(
        outputs.critic,
        phase.adapter_name,
        output_dir=Path(config.output_dir),
        run_dir=run_dir,
    )
    log.info("The critic is in %s; model@phase.critique_models.main=critic takes one there", folder)


def _write_manifest(
    context: RunContext, job: Job, run_dir: Path, *, status: str, started: str
) -> None:
    document: dict[str, Any] = {
        "status": status,
        "command": job.command,
        "started": started,
        "seed": context.seed,
        "constitution": {
            "name": context.constitution.name,
            "version": context.constitution.version,
            "digest": context.constitution.digest,
        },
        "precision": str(dtype_of(context.hardware)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": account.peak_memory(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "stages": [result.record() for result in context.results],
    }
    _write(run_dir / "manifest.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
