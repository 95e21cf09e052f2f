"""One audit from typed settings to a run folder.

Reading the document comes first and without torch, since a lint belongs in every CI; with
`audit.num_pairs` above 0 its labels are measured after that (`cai.audit.measuring`).

The folder holds what other runs have (`config.yaml`, `manifest.json`, `metrics.json`,
`report.html`, the log), and `audit.json` (`cai.audit.record`).
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cai import __version__, constitution, paths
from cai.artifacts import write_atomically, write_document
from cai.audit.codes import Severity
from cai.audit.lint import Lint
from cai.audit.measured import Measured
from cai.audit.measured_record import measured_metrics, measured_record, measured_tables
from cai.audit.measured_text import terminal_measured
from cai.audit.observed import Observed, observed, observed_metrics, observed_record
from cai.audit.observed_text import terminal_observed
from cai.audit.prompt_sets import harms_of
from cai.audit.record import record
from cai.audit.retrain import command, write_without
from cai.audit.story import AuditStory
from cai.audit.text import places, terminal_audit, total
from cai.choices import FailOn
from cai.config import Config
from cai.constitution import Constitution
from cai.errors import UserError
from cai.job import Job
from cai.phases import audit
from cai.report import write_report
from cai.story import ConstitutionStory, Headline, PrincipleStory, RunStory
from cai.tracking import RunTracker, Tracker, config_record, open_tracker

if TYPE_CHECKING:
    from cai.audit.measuring import MeasuredRun

_FAILS: dict[FailOn, tuple[Severity, ...]] = {
    FailOn.error: (Severity.error,),
    FailOn.warning: (Severity.error, Severity.warning),
    FailOn.never: (),
}

MEASURED = (
    "Which principles this feedback can apply, by the document's own tests, and how its labels of "
    "the sampled pairs depend on each principle.",
)
NOT_ASKED = (
    "Whether a model can apply a principle, and what a policy would learn from it: no model was "
    "asked."
)
NOT_TRAINED = (
    "What a policy would learn: what happens without a principle, or since another version, is "
    "predicted from labels, and nothing was trained."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The measured part, and what checks its predictions."""

    run: MeasuredRun
    commands: dict[str, str]
    """What to type to train without a principle, by its id."""
    command_after: str

    @property
    def measured(self) -> Measured:
        """Its numbers."""
        return self.run.measured


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
    seen = observed(config.run, document)
    if config.plan:
        _plan(config, job, inputs)
        return
    outputs = audit.run(config.audit, inputs)
    run_dir = Path(job.run_dir)
    print(terminal_audit(outputs, encoding=sys.stdout.encoding), flush=True)
    if seen is not None:
        print(terminal_observed(seen, encoding=sys.stdout.encoding), flush=True)
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
        text = yaml.safe_dump(config_record(config), sort_keys=False)
        write_atomically(run_dir / "config.yaml", text.encode())
        labels = _measure(config, job, inputs, outputs, tracker)
        metrics = _metrics(outputs) | (measured_metrics(labels.measured) if labels else {})
        metrics |= observed_metrics(seen) if seen else {}
        metrics["run/seconds"] = time.monotonic() - clock
        _track(outputs, labels, metrics, tracker)
        story = _story(
            config, job, outputs, labels, seen, started=started, seconds=metrics["run/seconds"]
        )
        write_report(story, run_dir / "report.html")
        write_document(run_dir / "audit.json", _record(config, outputs, labels, seen))
        write_document(run_dir / "metrics.json", metrics)
        status = "failed" if problem else "done"
        manifest = _manifest(config, job, document, labels, status=status, started=started)
        write_document(run_dir / "manifest.json", manifest)
    finally:
        tracker.close(1 if problem else 0)
    print(places(run_dir, encoding=sys.stdout.encoding), flush=True)
    if problem:
        raise UserError(problem)


def _plan(config: Config, job: Job, inputs: audit.Inputs) -> None:
    print(f"Plan: read {inputs.constitution.path.name}.", end=" ")
    if config.audit.num_pairs == 0:
        print("No model, no stage. Nothing was run.")
        return
    from cai.audit import measuring  # torch

    print(f"Then:\n{measuring.plan(config, job, inputs)}")


def _measure(
    config: Config,
    job: Job,
    inputs: audit.Inputs,
    outputs: audit.Outputs,
    tracker: RunTracker,
) -> Labels | None:
    """Label pairs of responses and say what was found; None when no model is asked."""
    if config.audit.num_pairs == 0:
        return None
    from cai.audit import measuring  # torch: not for a lint alone

    run = measuring.run(config, job, inputs, outputs, tracker)
    files = write_without(inputs.constitution, Path(job.run_dir))
    labels = Labels(
        run=run,
        commands={name: command(job, path) for name, path in files.items()},
        command_after=command(job, None),
    )
    told = terminal_measured(
        run.measured,
        commands=labels.commands,
        command_after=labels.command_after,
        encoding=sys.stdout.encoding,
    )
    print(f"\n{told}", flush=True)
    return labels


def _record(
    config: Config, outputs: audit.Outputs, labels: Labels | None, seen: Observed | None
) -> dict[str, Any]:
    measured = (
        None
        if labels is None
        else measured_record(
            labels.measured, commands=labels.commands, command_after=labels.command_after
        )
    )
    conflicts = None if seen is None else observed_record(seen)
    return record(outputs, config.audit) | {"measured": measured, "observed": conflicts}


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


def _track(
    outputs: audit.Outputs, labels: Labels | None, metrics: dict[str, float], tracker: Tracker
) -> None:
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
    tables = measured_tables(labels.measured) if labels else {}
    for name, (heads, cells) in tables.items():
        tracker.table(name, heads, cells)
    tracker.summary(metrics)


def _manifest(
    config: Config,
    job: Job,
    document: Constitution,
    labels: Labels | None,
    *,
    status: str,
    started: str,
) -> dict[str, Any]:
    measured = {} if labels is None else labels.run.manifest()
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
    } | measured


def _story(
    config: Config,
    job: Job,
    outputs: audit.Outputs,
    labels: Labels | None,
    seen: Observed | None,
    *,
    started: str,
    seconds: float,
) -> RunStory:
    document = outputs.document.constitution
    counts = outputs.lint.counts()
    run = labels.run if labels else None
    return RunStory(
        headline=Headline(
            phase=config.phase.name,
            constitution=document.name,
            models=run.models if run else {},
            seed=config.seed,
            command=job.command,
            started=started,
            seconds=seconds,
            peak_memory_bytes=run.peak_memory_bytes if run else None,
            hardware=run.hardware if run else "none needed",
            versions=run.versions if run else {"cai": __version__},
            run_dir=job.run_dir,
        ),
        warnings=(total(outputs.lint),) if counts[Severity.error] else (),
        can_show=(
            "What is wrong with the wording, the tests and the coverage of the document, by rules.",
            *(MEASURED if run else ()),
        ),
        cannot_show=(
            NOT_TRAINED if run else NOT_ASKED,
            "What rules on words cannot see: a contradiction in other words, a test with the wrong "
            "label.",
        ),
        constitution=_constitution_story(document),
        audit=AuditStory(
            file=outputs.document.main.shown,
            lint=outputs.lint,
            changes=outputs.changes,
            observed=seen,
            measured=run.measured if run else None,
            commands=labels.commands if labels else {},
            command_after=labels.command_after if labels else "",
        ),
        feedback=run.feedback if run else None,
        stages=run.stages() if run else (),
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
