"""One static audit from typed settings to a run folder, without torch: a lint belongs in every CI.

The folder holds what other runs have (`config.yaml`, `manifest.json`, `metrics.json`,
`report.html`, the log), and `audit.json` (`cai.audit.record`).
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

from cai import __version__, constitution, paths
from cai.artifacts import write_atomically
from cai.audit.codes import Severity
from cai.audit.lint import Lint
from cai.audit.prompt_sets import harms_of
from cai.audit.record import record
from cai.audit.story import AuditStory
from cai.audit.text import terminal_audit, total
from cai.choices import FailOn
from cai.config import Config
from cai.constitution import Constitution
from cai.errors import UserError
from cai.job import Job
from cai.phases import audit
from cai.report import write_report
from cai.story import ConstitutionStory, Headline, PrincipleStory, RunStory
from cai.tracking import Tracker, config_record, open_tracker

_FAILS: dict[FailOn, tuple[Severity, ...]] = {
    FailOn.error: (Severity.error,),
    FailOn.warning: (Severity.error, Severity.warning),
    FailOn.never: (),
}


def execute(config: Config, job: Job) -> None:
    """Read the document, show and keep what is found, and fail as `audit.fail_on` says.

    Raises:
        UserError: when a document or a set of prompts cannot be read, or for the findings.
    """
    started, clock = _now(), time.monotonic()
    job = dataclasses.replace(job, command=str(config_record(job.command)))
    document = constitution.load(config.constitution.document, folder=paths.CONSTITUTIONS)
    inputs = audit.Inputs(
        constitution=document,
        compared=_compared(config.audit.compare_with),
        harms=harms_of(config.data, config.constitution.domain),
    )
    if config.plan:
        print(f"Plan: read {document.path.name}; no model, no stage. Nothing was run.")
        return
    outputs = audit.run(config.audit, inputs)
    run_dir = Path(job.run_dir)
    print(terminal_audit(outputs, run_dir=run_dir, encoding=sys.stdout.encoding), flush=True)
    problem = _problem(outputs.lint, config.audit.fail_on)
    tracker = open_tracker(
        config.logger,
        run_dir=run_dir,
        output_dir=Path(config.output_dir),
        group=job.sweep or f"{config.phase.name}-{document.name}",
        job_type=config.phase.name,
        tags=(document.name,),
        run_config={"cai": config_record(config)},
    )
    try:
        metrics = _metrics(outputs) | {"run/seconds": time.monotonic() - clock}
        _track(outputs, metrics, tracker)
        story = _story(config, job, outputs, started=started, seconds=metrics["run/seconds"])
        write_report(story, run_dir / "report.html")
        _write(run_dir / "audit.json", record(outputs, config.audit))
        _write(run_dir / "metrics.json", metrics)
        text = yaml.safe_dump(config_record(config), sort_keys=False)
        write_atomically(run_dir / "config.yaml", text.encode())
        status = "failed" if problem else "done"
        manifest = _manifest(config, job, document, status=status, started=started)
        _write(run_dir / "manifest.json", manifest)
    finally:
        tracker.close(1 if problem else 0)
    if problem:
        raise UserError(problem)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _compared(document: str | None) -> Constitution | None:
    if document is None:
        return None
    return constitution.load(document, folder=paths.CONSTITUTIONS, setting="audit.compare_with")


def _problem(found: Lint, fail_on: FailOn) -> str | None:
    """Why the run fails, if it does."""
    counts = found.counts()
    bad = [f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in _FAILS[fail_on] if counts[s]]
    if not bad:
        return None
    return (
        f"The audit found {' and '.join(bad)} (audit.fail_on={fail_on}). Change the document, or "
        "put `# noqa: <code> <reason>` on the line of what is meant."
    )


def _metrics(outputs: audit.Outputs) -> dict[str, float]:
    found = outputs.lint
    metrics = {f"audit/{severity}s": float(num) for severity, num in found.counts().items()}
    known = [row for row in found.coverage if row.known]
    metrics |= {
        "audit/waived": float(len(found.waived)),
        "audit/principles": float(len(outputs.document.principles)),
        "audit/tests": float(found.lengths.num),
        "audit/harms": float(len(known)),
        "audit/harms_uncovered": float(sum(not row.principles for row in known)),
    }
    if (share := found.lengths.longer_better) is not None:
        metrics["audit/longer_better"] = share.value
        metrics["audit/longer_better_low"] = share.low
        metrics["audit/longer_better_high"] = share.high
    return metrics


def _track(outputs: audit.Outputs, metrics: dict[str, float], tracker: Tracker) -> None:
    rows = [
        [
            finding.code,
            str(finding.kind.severity),
            finding.kind.name,
            f"{finding.place.file}:{finding.place.line}",
            finding.place.principle_id,
            finding.place.text,
            finding.message,
        ]
        for finding in outputs.lint.findings
    ]
    columns = ("code", "severity", "name", "place", "principle", "quote", "message")
    if rows:
        tracker.table("audit_findings", columns, rows)
    tracker.summary(metrics)


def _write(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _manifest(
    config: Config, job: Job, document: Constitution, *, status: str, started: str
) -> dict[str, Any]:
    return {
        "status": status,
        "command": job.command,
        "started": started,
        "seed": config.seed,
        "constitution": {
            "name": document.name,
            "version": document.version,
            "digest": document.digest,
        },
        "python": sys.version.split()[0],
        "versions": {"cai": __version__},
        "stages": [],
    }


def _story(
    config: Config, job: Job, outputs: audit.Outputs, *, started: str, seconds: float
) -> RunStory:
    document = outputs.document.constitution
    counts = outputs.lint.counts()
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution=document.name,
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
        warnings=(total(outputs.lint),) if counts[Severity.error] else (),
        can_show=(
            "What is wrong with the wording, the tests and the coverage of the document, by rules.",
        ),
        cannot_show=(
            "Whether a model can apply a principle, and what a policy would learn from it: no "
            "model was asked.",
            "What rules on words cannot see: a contradiction in other words, a test with the wrong "
            "label.",
        ),
        constitution=_constitution_story(document),
        audit=AuditStory(
            file=outputs.document.main.shown, lint=outputs.lint, changes=outputs.changes
        ),
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )


def _constitution_story(document: Constitution) -> ConstitutionStory:
    return ConstitutionStory(
        name=document.name,
        version=document.version,
        description=document.description,
        principles=tuple(
            PrincipleStory(
                id=principle.id,
                principle=principle.principle,
                critique=principle.critique,
                revise=principle.revise,
                compare=principle.compare,
                scope=principle.scope,
                weight=principle.weight,
                source=principle.source,
            )
            for principle in document.principles
        ),
    )
