"""One comparison from typed settings to a run folder, without a model.

The folder holds `compare.json` (`cai.compare.record`), `report.html`, `metrics.json`,
`manifest.json`, `config.yaml` and the log.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from cai import __version__
from cai.artifacts import write_atomically, write_document
from cai.compare.record import FILE, compare_metrics, compare_record, compare_tables, verdict_line
from cai.compare.runs import find_runs
from cai.compare.story import CompareStory, Verdict
from cai.compare.text import terminal_comparison
from cai.config import CompareConfig, Config
from cai.job import Job
from cai.phases import compare
from cai.report import write_report
from cai.story import Headline, RunStory
from cai.tracking import config_record, open_tracker

CAN_SHOW = (
    "Which settings the runs differ in, and every metric by configuration.",
    "Whether a difference is larger than what other seeds and other prompts do to it.",
)
CANNOT_SHOW = (
    "That a difference is absent: an interval over three seeds is wide.",
    "What other prompts, models or settings than these runs' would give.",
)


def execute(config: Config, job: Job) -> None:
    """Read the runs, compare them, and keep and show what is found.

    Raises:
        UserError: when a folder is no run or the runs cannot be compared; nothing was written then.
    """
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    clock = time.monotonic()
    assert isinstance(config.phase, CompareConfig)
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    found = find_runs(config.runs, output_dir=Path(config.output_dir))
    if config.plan:
        named = "".join(f"\n  {run.folder}" for run in found.runs)
        print(f"Plan: compare {len(found.runs)} finished runs. No model, no stage.{named}")
        return
    story = compare.run(config.phase, compare.Inputs(found=found, seed=config.seed))
    run_dir = Path(job.run_dir)
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or "compare",
        job_type=config.phase.name,
        tags=tuple(dict.fromkeys(run.constitution for run in story.runs)),
        run_config={"cai": config_record(config)},
    )
    status = "failed"
    try:
        told = _story(config, job, story, started=started, seconds=time.monotonic() - clock)
        write_atomically(run_dir / "config.yaml", told.config_text.encode("utf-8"))
        write_document(run_dir / FILE, compare_record(story))
        write_report(told, run_dir / "report.html")
        metrics = compare_metrics(story) | {"run/seconds": time.monotonic() - clock}
        write_document(run_dir / "metrics.json", metrics)
        tracker.summary(metrics)
        for name, (columns, rows) in compare_tables(story).items():
            tracker.table(name, columns, rows)
        print(terminal_comparison(story, run_dir=run_dir, encoding=sys.stdout.encoding), flush=True)
        if (notice := tracker.notice()) is not None:
            print(notice)
        status = "done"
    finally:
        tracker.close(0 if status == "done" else 1)
        write_document(run_dir / "manifest.json", _manifest(config, job, story, status, started))


def _manifest(
    config: Config, job: Job, story: CompareStory, status: str, started: str
) -> dict[str, Any]:
    return {
        "status": status,
        "command": job.command,
        "started": started,
        "seed": config.seed,
        "runs": [run.folder for run in story.runs],
        "python": sys.version.split()[0],
        "versions": {"cai": __version__},
        "stages": [],
    }


def _story(
    config: Config, job: Job, story: CompareStory, *, started: str, seconds: float
) -> RunStory:
    constitutions = dict.fromkeys(run.constitution for run in story.runs)
    real = [one for one in story.differences if one.verdict is Verdict.real]
    left_out = [f"Left out: {one.folder}: {one.why}" for one in story.left_out]
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution=", ".join(constitutions),
            models={},
            seed=config.seed,
            command=job.command,
            started=started,
            seconds=seconds,
            peak_memory_bytes=None,
            hardware="none needed",
            versions={"cai": __version__},
            run_dir=job.run_dir,
        ),
        warnings=(*(() if real else (verdict_line(story),)), *left_out, *story.notes),
        can_show=CAN_SHOW,
        cannot_show=CANNOT_SHOW,
        comparison=story,
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )
