"""`phase=evaluate evaluation.responses=FILE`: a file of responses classified into a run folder.

No model, no torch, no network. The folder holds `responses.jsonl` (a line per row: `id`, `prompt`,
`response`, `compliance`, `main`, `tags`, `rule`, `evidence`, with `label` where people's labels are
named, and the row's other columns in `columns`), `metrics.json`, `report.html`, `manifest.json`,
`config.yaml` and the log.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from cai import __version__
from cai.artifacts import write_atomically, write_document
from cai.compliance.classify import RULES_VERSION
from cai.compliance.story import ResponsesStory, responses_metrics, responses_story
from cai.compliance.table import ClassifiedResponse, ResponseTable, name_of, read_responses
from cai.compliance.text import terminal_responses
from cai.config import Config
from cai.job import Job
from cai.report import write_report
from cai.statistics import Estimate
from cai.story import Headline, RunStory
from cai.tracking import RunTracker, config_record, open_tracker

FILE = "responses.jsonl"
CAN_SHOW = ("How often responses refuse, answer in part, warn, offer something else and comply.",)
CANNOT_SHOW = (
    "Whether what a response gives is right, good or harmful: rules read how it is worded.",
    "Whether refusing was right: that depends on the prompt.",
)
UNLABELLED = (
    "How far these rules agree with people on these responses: name a column of labels with "
    "evaluation.responses_label=."
)


def execute(config: Config, job: Job) -> None:
    """Classify the file, and keep and show what is found.

    Raises:
        UserError: when the file cannot be read; nothing was written then.
    """
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    clock = time.monotonic()
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    if config.plan:
        print(f"Plan: classify {config.evaluation.responses}. No model, no stage. Nothing was run.")
        return
    table = read_responses(config.evaluation)
    story = responses_story(
        table,
        label=config.evaluation.responses_label,
        num_bootstrap=config.evaluation.num_bootstrap,
        seed=config.seed,
    )
    run_dir = Path(job.run_dir)
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or "responses",
        job_type=config.phase.name,
        tags=(),
        run_config={"cai": config_record(config)},
    )
    status = "failed"
    try:
        told = _story(config, job, story, started=started, seconds=time.monotonic() - clock)
        write_atomically(run_dir / "config.yaml", told.config_text.encode("utf-8"))
        _write_rows(table, run_dir / FILE)
        write_report(told, run_dir / "report.html")
        metrics = _flat(story) | {"run/seconds": time.monotonic() - clock}
        write_document(run_dir / "metrics.json", metrics)
        _track(story, metrics, tracker)
        print(terminal_responses(story, run_dir=run_dir, encoding=sys.stdout.encoding), flush=True)
        if (notice := tracker.notice()) is not None:
            print(notice)
        status = "done"
    finally:
        tracker.close(0 if status == "done" else 1)
        write_document(run_dir / "manifest.json", _manifest(config, job, table, status, started))


def _record(row: ClassifiedResponse, *, labelled: bool) -> dict[str, Any]:
    label = {"label": row.label} if labelled else {}
    return {
        "id": row.id,
        "prompt": row.prompt,
        "response": row.response,
        "compliance": row.found.compliance,
        "main": row.found.main,
        "tags": row.found.tags,
        "rule": row.found.rule,
        "evidence": row.found.evidence,
        **label,
        "columns": row.columns,
    }


def _write_rows(table: ResponseTable, path: Path) -> None:
    labelled = any(row.label is not None for row in table.rows)
    lines = (
        json.dumps(_record(row, labelled=labelled), ensure_ascii=True, allow_nan=False)
        for row in table.rows
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("ascii"))


def _flat(story: ResponsesStory) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, value in responses_metrics(story):
        if isinstance(value, Estimate):
            metrics[name] = value.value
            metrics[f"{name}_low"], metrics[f"{name}_high"] = value.low, value.high
        else:
            metrics[name] = value
    return metrics


def _track(story: ResponsesStory, metrics: dict[str, float], tracker: RunTracker) -> None:
    tracker.summary(metrics)
    columns = ("id", "prompt", "response", "compliance", "main", "tags", "rule", "label")
    cells = [
        [
            row.id,
            row.prompt,
            row.response,
            str(row.found.compliance),
            str(row.found.main),
            ", ".join(row.found.tags),
            str(row.found.rule),
            "" if row.label is None else str(row.label),
        ]
        for row in story.shown
    ]
    tracker.table("responses", columns, cells)


def _manifest(
    config: Config, job: Job, table: ResponseTable, status: str, started: str
) -> dict[str, Any]:
    return {
        "status": status,
        "command": job.command,
        "started": started,
        "seed": config.seed,
        "responses": {
            "file": name_of(table),
            "sha256": table.sha256,
            "num": len(table.rows),
            "rules_version": RULES_VERSION,
        },
        "python": sys.version.split()[0],
        "versions": {"cai": __version__},
        "stages": [],
    }


def _story(
    config: Config, job: Job, story: ResponsesStory, *, started: str, seconds: float
) -> RunStory:
    limits = CANNOT_SHOW if story.agreement else (*CANNOT_SHOW, UNLABELLED)
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution="none needed",
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
        warnings=_warnings(story),
        can_show=CAN_SHOW,
        cannot_show=limits,
        responses=story,
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )


def _warnings(story: ResponsesStory) -> tuple[str, ...]:
    found = [
        f"Rates are not told by {column}, which has {num:,} different values."
        for column, num in story.ungrouped.items()
    ]
    if story.agreement is not None and story.agreement.num_unlabelled:
        found.append(
            f"{story.agreement.num_unlabelled:,} of {story.rates.num:,} rows have no label in "
            f"{story.agreement.column}; agreement is over the others."
        )
    return tuple(found)
