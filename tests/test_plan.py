from __future__ import annotations

from pathlib import Path

from cai.artifacts import Artifact
from cai.context import StageResult, StageStatus
from cai.job import Job
from cai.plan import SweepPlan


def job(num: int | None, sweep: str | None = "one") -> Job:
    return Job(run_dir="r", overrides=(), sweep=sweep, job_num=num, choices={}, command="c")


def result(stage: str, status: StageStatus = StageStatus.planned) -> StageResult:
    artifact = Artifact(stage=stage, digest="0", folder=Path(stage))
    return StageResult(name=stage, artifact=artifact, status=status, seconds=0.0, counts={})


def test_a_job_shares_what_earlier_jobs_would_make_and_names_the_first() -> None:
    plan = SweepPlan()
    assert plan.earlier(job(0)) == {}
    plan.note(job(0), [result("drafts"), result("prompts", StageStatus.reused)])
    plan.note(job(1), [result("drafts"), result("policy")])
    assert plan.earlier(job(2)) == {Path("drafts"): 0, Path("policy"): 1}


def test_another_multirun_and_a_single_run_share_nothing() -> None:
    plan = SweepPlan()
    plan.earlier(job(0))
    plan.note(job(0), [result("drafts")])
    assert plan.earlier(job(0, "two")) == {}
    plan.note(job(0, "two"), [result("drafts")])
    assert plan.earlier(job(None, None)) == {}
    plan.note(job(None, None), [result("drafts")])
    assert plan.jobs == {}
