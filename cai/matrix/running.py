"""A matrix whose documents were read: models, context, files."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cai import account, ranks, session
from cai.artifacts import digest_of, write_atomically, write_document
from cai.config import Config, MatrixConfig
from cai.context import RunContext, versions
from cai.job import Job
from cai.lineage import stage_stories
from cai.matrix.account import tell
from cai.matrix.adapters import export_adapters
from cai.matrix.findings import matrix_findings
from cai.matrix.record import FILE, matrix_metrics, matrix_record, matrix_tables
from cai.matrix.story import MatrixStory
from cai.matrix.subjects import Subject
from cai.matrix.text import distinct, plan_text, terminal_matrix
from cai.models import dtype_of
from cai.phases import matrix as phase
from cai.phases import sl_cai
from cai.report import write_report
from cai.roles import name_of, roles
from cai.sizes.planning import plan_told, predict
from cai.sizes.scene import check_layers, check_weights
from cai.story import Headline, RunStory
from cai.tracking import MemoryTracker, RunTracker, config_record, open_tracker
from cai.wandb_lineage import LineageNode

CAN_SHOW = (
    "Whether a policy that was trained under a constitution does better before that constitution's "
    "judge than policies trained under others, and by more than seeds and prompts make.",
    "What the procedure does by itself: the controls.",
)
CANNOT_SHOW = (
    "Whether people would prefer the result: no person judged anything here.",
    "Which of two constitutions is better: each is judged by its own words.",
    "Steering that the judge cannot see, or that the held-out prompts do not call for.",
)
LIMITS = (
    "A judge reads its constitution as its feedback does; where judges of different constitutions "
    "agree on everything, the matrix compares policies and not constitutions.",
    "Prompts of different seeds are drawn from one pool, so some are the same, and the intervals "
    "count them as different.",
    "There are many cells and contrasts, and each interval is for itself: of twenty, one misses "
    "its true value.",
    "Tuned feedback is trained on the constitution's tests, so the labels that a policy learned "
    "from come from a probe that has seen them; no label is about their responses.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    started: str
    begun: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def run(config: Config, job: Job, subjects: tuple[Subject, ...]) -> None:
    """Train, judge, tell.

    Raises:
        UserError: for everything that the user can put right.
    """
    session.set_up(config)
    check_weights(config)
    check_layers(config)
    session.require_models(config)
    clock = _Clock(
        started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        begun=time.monotonic(),
    )
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    section = config.phase
    assert isinstance(section, MatrixConfig)
    inputs = phase.Inputs(shared=_shared(config), subjects=subjects)
    first = subjects[0].document
    if config.plan:
        context = session.open_context(config, job, first, MemoryTracker())
        phase.run(section, inputs, context)
        predicted = predict(config, first, context.results)
        print(plan_told(plan_text(context, predicted.scene), predicted))
        predicted.check()
        return
    if config.hardware.check_memory:
        planned = session.open_context(
            dataclasses.replace(config, plan=True), job, first, MemoryTracker()
        )
        phase.run(section, inputs, planned)
        predict(config, first, planned.results).check()
    if not ranks.is_first():
        phase.run(section, inputs, session.open_context(config, job, first, MemoryTracker()))
        return
    names = tuple(subject.name for subject in subjects)
    run_dir = Path(job.run_dir)
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or f"matrix-{'-'.join(names)}"[:100],
        job_type=config.phase.name,
        tags=(*names, config.model.name),
        run_config={"cai": config_record(config)},
    )
    text = yaml.safe_dump(config_record(config), sort_keys=False)
    write_atomically(run_dir / "config.yaml", text.encode("utf-8"))
    status, context = "failed", session.open_context(config, job, first, tracker)
    try:
        with session.limits_told(config, job):
            outputs = phase.run(section, inputs, context)
        adapters = export_adapters(outputs, run_dir, seed=section.seeds[0])
        told = tell(config, inputs, outputs, adapters=adapters)
        _publish(config, job, context, told, outputs, tracker, clock)
        status = "done"
    finally:
        tracker.close(0 if status == "done" else 1)
        manifest = _manifest(job, section, subjects, context, status=status, clock=clock)
        write_document(run_dir / "manifest.json", manifest)


def _shared(config: Config) -> sl_cai.Inputs:
    return sl_cai.Inputs(
        model=config.model,
        principles=config.constitution.sampling,
        domain=config.constitution.domain,
        data=config.data,
        feedback=config.feedback,
        evaluation=config.evaluation,
    )


def _publish(
    config: Config,
    job: Job,
    context: RunContext,
    told: MatrixStory,
    outputs: phase.Outputs,
    tracker: RunTracker,
    clock: _Clock,
) -> None:
    """Files, mirror and terminal."""
    run_dir = Path(job.run_dir)
    warnings = matrix_findings(told)
    metrics = matrix_metrics(told) | {
        "run/seconds": clock.seconds,
        "run/peak_memory_bytes": float(account.peak_memory()),
    }
    story = _story(config, job, context, told, warnings, clock)
    write_report(story, run_dir / "report.html")
    write_document(run_dir / FILE, matrix_record(told, outputs, warnings=warnings))
    write_document(run_dir / "metrics.json", metrics)
    tracker.summary(metrics)
    for name, (columns, rows) in matrix_tables(told).items():
        tracker.table(name, columns, rows)
    for one in told.subjects:
        if one.adapter:
            tracker.artifact(
                LineageNode(
                    name=f"adapter-{one.name}",
                    kind="adapter",
                    folder=run_dir / one.adapter,
                    inputs=(),
                    reused=False,
                )
            )
    text = terminal_matrix(
        told,
        warnings=warnings,
        results=context.results,
        seconds=clock.seconds,
        run_dir=run_dir,
        notice=tracker.notice(),
        encoding=sys.stdout.encoding,
    )
    print(text, flush=True)


def _manifest(
    job: Job,
    section: MatrixConfig,
    subjects: tuple[Subject, ...],
    context: RunContext,
    *,
    status: str,
    clock: _Clock,
) -> dict[str, Any]:
    return {
        "status": status,
        "command": job.command,
        "started": clock.started,
        "seed": context.seed,
        "seeds": list(section.seeds),
        "constitution": {  # as other runs have it: all of them together
            "name": ", ".join(one.name for one in subjects),
            "version": ", ".join(one.document.version for one in subjects),
            "digest": digest_of([one.document.digest for one in subjects]),
        },
        "constitutions": [
            {
                "name": one.name,
                "version": one.document.version,
                "digest": one.document.digest,
            }
            for one in subjects
        ],
        "precision": str(dtype_of(context.hardware)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": account.peak_memory(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "stages": [result.record() for result in distinct(context.results)],
    }


def _story(
    config: Config,
    job: Job,
    context: RunContext,
    told: MatrixStory,
    warnings: tuple[str, ...],
    clock: _Clock,
) -> RunStory:
    precision = str(dtype_of(context.hardware)).removeprefix("torch.")
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution=", ".join(told.names),
            models={role: name_of(asked) for role, asked in roles(config).items()},
            seed=config.seed,
            command=job.command,
            started=clock.started,
            seconds=clock.seconds,
            peak_memory_bytes=account.peak_memory(),
            hardware=f"{config.hardware.name}, {torch.get_num_threads()} threads, {precision}",
            versions=versions(),
            run_dir=job.run_dir,
        ),
        warnings=warnings,
        can_show=CAN_SHOW,
        cannot_show=CANNOT_SHOW,
        limits=LIMITS,
        matrix=told,
        stages=stage_stories(distinct(context.results)),
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )
