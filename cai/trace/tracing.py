"""A trace of a run that was found: models, context, files."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cai import account, embedded, session
from cai.artifacts import Store, write_atomically, write_document
from cai.choices import ModelSource
from cai.config import Config, TraceConfig
from cai.context import RunContext, versions
from cai.errors import UserError
from cai.job import Job
from cai.lineage import stage_stories
from cai.model_config import ModelConfig
from cai.models import dtype_of, identity
from cai.phases import trace as phase
from cai.plan import plan_text
from cai.principle_subset import chosen_document
from cai.report import write_report
from cai.story import Headline, RunStory, sample_anchor
from cai.trace.record import FILE, trace_metrics, trace_record, trace_tables
from cai.trace.story import NEARNESS, TraceStory
from cai.trace.text import terminal_trace
from cai.trace.traced import Asked, TracedRun
from cai.tracking import MemoryTracker, Tracker, config_record, open_tracker

CAN_SHOW = (
    "What was made of the training prompts most like this one: critiques, revisions, labels, "
    "rollouts, and the principles behind them.",
)
CANNOT_SHOW = (
    NEARNESS,
    "Whether another principle would have made another response: the commands at its end do that.",
)


def trace(config: Config, job: Job, run: TracedRun, asked: Asked) -> None:
    """Trace it, show it and keep it.

    Raises:
        UserError: when the run's base cannot be had or is another one.
    """
    session.set_up(config)
    started, clock = _now(), time.monotonic()
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    model = base_of(run)
    link, in_report = _report_link(run, asked, Path(job.run_dir))
    inputs = phase.Inputs(run=run, asked=asked, model=model, link=link, in_report=in_report)
    assert isinstance(config.phase, TraceConfig)
    if config.plan:
        context = _context(config, job, run, MemoryTracker())
        phase.run(config.phase, inputs, context)
        print(plan_text(context))
        return
    run_dir = Path(job.run_dir)
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or f"trace-{run.manifest['constitution']['name']}",
        job_type=config.phase.name,
        tags=(run.manifest["constitution"]["name"], model.name),
        run_config={"cai": config_record(config)},
    )
    status, context = "failed", _context(config, job, run, tracker)
    try:
        with session.limits_told(config, job):
            found = phase.run(config.phase, inputs, context).story
        assert found is not None
        told = _story(config, job, run, context, found, started=started, clock=clock)
        write_report(told, run_dir / "report.html")
        write_document(run_dir / FILE, trace_record(found))
        metrics = trace_metrics(found) | {"run/seconds": told.headline.seconds}
        write_document(run_dir / "metrics.json", metrics)
        tracker.summary(metrics)
        for name, (columns, rows) in trace_tables(found).items():
            tracker.table(name, columns, rows)
        write_atomically(run_dir / "config.yaml", told.config_text.encode("utf-8"))
        print(terminal_trace(found, run_dir=run_dir, encoding=sys.stdout.encoding), flush=True)
        status = "done"
    finally:
        tracker.close(0 if status == "done" else 1)
        write_document(
            run_dir / "manifest.json",
            _manifest(job, run, asked, context, status=status, started=started),
        )


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def base_of(run: TracedRun) -> ModelConfig:
    """The base of a run's policy, as the run had it.

    Raises:
        UserError: when the run's config does not say it, it cannot be had, or its weights are not
            those that the run computed with.
    """
    where = run.folder / "config.yaml"
    try:
        section = OmegaConf.merge(OmegaConf.structured(ModelConfig), run.config["model"])
        model = OmegaConf.to_object(section)
    except (KeyError, ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{where}: its section model cannot be read ({error})") from error
    assert isinstance(model, ModelConfig)
    if model.source is ModelSource.embedded:
        embedded.made(embedded.named(model.path))
    then = run.artifacts["evaluation"].manifest()["key"]["identity"]["model"]["sha256"]
    if identity(model) != then:
        raise UserError(
            f"{where}: model {model.name} ({model.path}) has other weights now than when the run "
            f"computed with it (sha256 {then[:12]}), so its prompts cannot be compared"
        )
    return model


def _context(config: Config, job: Job, run: TracedRun, tracker: Tracker) -> RunContext:
    """The traced run's own store and seed; its document may have changed, and nothing reads one."""
    document = chosen_document(config.constitution)
    context = session.open_context(config, job, document, tracker)
    return dataclasses.replace(context, store=Store(root=run.store), seed=int(run.manifest["seed"]))


def _report_link(run: TracedRun, asked: Asked, run_dir: Path) -> tuple[str, bool]:
    """Relative address of the run's report ("" without one), and whether it has the sample."""
    page = run.folder.resolve() / "report.html"
    if not page.is_file():
        return "", False
    anchor = sample_anchor(asked.prompt)
    there = f'id="{anchor}"' in page.read_text("utf-8")
    address = urllib.parse.quote(Path(os.path.relpath(page, run_dir.resolve())).as_posix())
    return f"{address}#{anchor if there else 'examples'}", there


def _manifest(
    job: Job, run: TracedRun, asked: Asked, context: RunContext, *, status: str, started: str
) -> dict[str, Any]:
    return {
        "status": status,
        "command": job.command,
        "started": started,
        "seed": context.seed,
        "run": str(run.folder),
        "example": asked.text,
        "constitution": run.manifest["constitution"],
        "precision": str(dtype_of(context.hardware)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "stages": [result.record() for result in context.results],
    }


def _story(
    config: Config,
    job: Job,
    run: TracedRun,
    context: RunContext,
    found: TraceStory,
    *,
    started: str,
    clock: float,
) -> RunStory:
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution=run.manifest["constitution"]["name"],
            models={"policy": run.config["model"]["name"]},
            seed=context.seed,
            command=job.command,
            started=started,
            seconds=time.monotonic() - clock,
            peak_memory_bytes=account.peak_memory(),
            hardware=f"{config.hardware.name}, {torch.get_num_threads()} threads",
            versions=versions(),
            run_dir=job.run_dir,
        ),
        can_show=CAN_SHOW,
        cannot_show=CANNOT_SHOW,
        trace=found,
        stages=stage_stories(context.results),
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )
