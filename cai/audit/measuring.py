"""The measured part of an audit: which stages it runs, and the world around them.

Two documents are each judged as a run under them would be: feedback that learns from a document's
tests is trained on that document's, so an unchanged principle's labels may move a little, too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cai import account, session
from cai.artifacts import Artifact
from cai.audit.labels import PairLabels
from cai.audit.measured import Asked, Measured, VersionLabels, measure
from cai.choices import PrincipleSampling
from cai.config import AuditPhaseConfig, Config
from cai.constitution import Constitution
from cai.context import RunContext, StageResult, versions
from cai.errors import UserError
from cai.feedback.labelled import LabelledSet, constitution_tests
from cai.job import Job
from cai.lineage import stage_stories
from cai.models import dtype_of
from cai.phases import sl_cai
from cai.phases.audit import Inputs, Outputs
from cai.plan import plan_text
from cai.roles import feedback_roles, name_of, roles
from cai.seeds import python_rng
from cai.sizes.planning import plan_told, predict
from cai.stages import audit as stages
from cai.stages import sampling
from cai.stages.comparisons import feedback_check
from cai.story import FeedbackStory, StageStory
from cai.tracking import MemoryTracker, RunTracker
from cai.types import FeedbackCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """What was measured, and on what machine with what."""

    measured: Measured
    results: tuple[StageResult, ...]
    models: dict[str, str]
    hardware: str
    peak_memory_bytes: int
    versions: dict[str, str]
    precision: str
    threads: int

    feedback: FeedbackStory
    """On the document's tests."""

    def manifest(self) -> dict[str, Any]:
        """What the run's manifest says of the machine and the stages."""
        return {
            "precision": self.precision,
            "threads": self.threads,
            "peak_memory_bytes": self.peak_memory_bytes,
            "versions": self.versions,
            "stages": [result.record() for result in self.results],
        }

    def stages(self) -> tuple[StageStory, ...]:
        """For the report."""
        return stage_stories(self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """One document's stages."""

    constitution: Constitution
    check: Artifact
    swapped: Artifact | None
    """The tests, each under another principle; None where there is no other."""
    labels: Artifact
    wordings: Artifact | None


def run(
    config: Config, job: Job, inputs: Inputs, outputs: Outputs, tracker: RunTracker
) -> MeasuredRun:
    """Label the pairs under every principle and measure.

    Raises:
        UserError: for everything that the user can put right.
    """
    with session.limits_told(config, job):
        session.set_up(config)
        session.require_models(config)
        context = session.open_context(config, job, inputs.constitution, tracker)
        pairs, num = _pairs(config, context)
        version = _version(
            config, context, pairs, num=num, num_worded=config.audit.num_wording_pairs
        )
        before = None
        if inputs.compared is not None:
            other = dataclasses.replace(context, constitution=inputs.compared)
            before = _version(config, other, pairs, num=num, num_worded=0)
        measured = measure(
            _labels(version, config.constitution.sampling),
            before=_labels(before, config.constitution.sampling) if before else None,
            changes=outputs.changes,
            asked=_asked(config),
            config=config.audit,
            seed=context.seed,
        )
        precision = str(dtype_of(context.hardware)).removeprefix("torch.")
        threads = torch.get_num_threads()
        return MeasuredRun(
            measured=measured,
            results=tuple(context.results),
            models={role: name_of(asked) for role, asked in roles(config).items()},
            hardware=f"{config.hardware.name}, {threads} threads, {precision}",
            peak_memory_bytes=account.peak_memory(),
            versions=versions(),
            precision=precision,
            threads=threads,
            feedback=_feedback(context, config, measured),
        )


def _feedback(context: RunContext, config: Config, measured: Measured) -> FeedbackStory:
    tests = _tests(context)
    return FeedbackStory(
        method=config.feedback.method,
        source=tests.source,
        note=tests.note,
        measured=measured.feedback,
    )


def plan(config: Config, job: Job, inputs: Inputs) -> str:
    """What would run: how many labels, and how long where such a stage ran before."""
    session.set_up(config)
    session.require_models(config)
    context = session.open_context(config, job, inputs.constitution, MemoryTracker())
    pairs, num = _pairs(config, context)
    _version(config, context, pairs, num=num, num_worded=config.audit.num_wording_pairs)
    if inputs.compared is not None:
        other = dataclasses.replace(context, constitution=inputs.compared)
        _version(config, other, pairs, num=num, num_worded=0)
    predicted = predict(config, inputs.constitution, context.results)
    told = plan_told(plan_text(context, None, predicted.scene), predicted)
    predicted.check()
    return told


def _pairs(config: Config, context: RunContext) -> tuple[Artifact, int]:
    """The pairs, and how many of them are labelled."""
    phase = _phase(config)
    wanted = config.audit.num_pairs
    if config.audit.pairs_from is not None:
        artifact = stages.pairs_of_run(config.audit.pairs_from)
        return artifact, min(wanted, artifact.manifest()["counts"]["responses"] // 2)
    counts = dataclasses.asdict(phase.prompts)
    if wanted > sum(counts.values()):
        raise UserError(
            f"audit.num_pairs={wanted}: a pair needs a prompt of its own, and there are "
            f"{sum(counts.values())}; type audit.num_pairs={sum(counts.values())}, or a larger "
            "phase.prompts.num_red_team"
        )
    prompts = sampling.prompts(
        context, config=phase.prompts, sources=config.data, domain=config.constitution.domain
    )
    artifact = sampling.audit_pairs(
        context, model=config.model, config=phase.sampling, source=prompts, num=wanted
    )
    return artifact, wanted


def _phase(config: Config) -> AuditPhaseConfig:
    assert isinstance(config.phase, AuditPhaseConfig)
    return config.phase


def _version(
    config: Config, context: RunContext, pairs: Artifact, *, num: int, num_worded: int
) -> _Version:
    inputs = sl_cai.Inputs(
        model=config.model,
        principles=config.constitution.sampling,
        domain=config.constitution.domain,
        data=config.data,
        feedback=config.feedback,
        evaluation=config.evaluation,
    )
    judge = sl_cai.judge_of(_phase(config).feedback_model, inputs, context)
    checked = feedback_check(context, judge=judge, labelled=_tests(context))
    swapped = None
    if len(context.constitution.principles) > 1 and checked.labelled.pairs:
        swapped = feedback_check(context, judge=judge, labelled=_swapped(context)).artifact
    judge = judge.measured(checked)
    labelled = stages.labels(context, judge=judge, pairs=pairs, num=num)
    others = None
    if num_worded:
        others = stages.other_wordings(context, judge=judge, pairs=pairs, num=min(num, num_worded))
    return _Version(
        constitution=context.constitution,
        check=checked.artifact,
        swapped=swapped,
        labels=labelled,
        wordings=others,
    )


def _tests(context: RunContext) -> LabelledSet:
    """All tests of the document, not the share of them that a training run asks."""
    tests = constitution_tests(context.constitution, num=None, seed=context.seed)
    return LabelledSet(
        pairs=tuple(tests),
        source="the constitution's own tests",
        note=f"All {len(tests):,} tests, each judged under the principle that it tests.",
        identity={"source": "tests"},
    )


def _swapped(context: RunContext) -> LabelledSet:
    """The same tests, each under a principle of the document that it does not test."""
    principles = context.constitution.principles
    rng = python_rng(context.seed, "another principle")
    tests = [
        dataclasses.replace(
            test, principle=rng.choice([one for one in principles if one != test.principle])
        )
        for test in _tests(context).pairs
    ]
    return LabelledSet(
        pairs=tuple(tests),
        source="the constitution's own tests under another principle",
        note="Each test judged under a principle that it does not test, drawn for it.",
        identity={"source": "tests", "principle": "another"},
    )


def _labels(version: _Version, drawing: PrincipleSampling) -> VersionLabels:
    plain = version.labels.records(PairLabels)
    others = version.wordings.records(PairLabels) if version.wordings else ()
    return VersionLabels(
        constitution=version.constitution,
        principles=version.constitution.asked,
        weights=tuple(
            principle.weight if drawing is PrincipleSampling.weighted else 1.0
            for principle in version.constitution.asked
        ),
        checks=tuple(version.check.records(FeedbackCheck)),
        swapped=tuple(version.swapped.records(FeedbackCheck) if version.swapped else ()),
        pairs=tuple(plain),
        wordings=tuple(others),
    )


def _asked(config: Config) -> Asked:
    judges = feedback_roles(config.feedback, _phase(config).feedback_model).values()
    sampled = f"sampled from {config.model.name}"
    return Asked(
        method=config.feedback.method,
        judge=", ".join(dict.fromkeys(map(name_of, judges))) or "no model",
        pairs=sampled
        if config.audit.pairs_from is None
        else f"of the run {Path(config.audit.pairs_from).name}",
    )
