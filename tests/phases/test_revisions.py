"""Whole runs whose revisions go on until satisfied, or are voted for by several critique models."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cai.revision_records import (
    CHECKS,
    VOTES,
    ChainEnd,
    Satisfaction,
    StepVote,
    VerdictCheck,
)
from cai.types import RevisionChain, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

SATISFIED = (
    "phase.revisions.until=satisfied",
    "phase.revisions.max_rounds=2",
    "phase.revisions.principles_checked=4",
    "evaluation.elo.num_prompts=0",
    "evaluation.num_critique_controls=0",
)
STRICT = "phase.critique_models.second.system_prompt='You are strict.'"
QUIET = ("evaluation.elo.num_prompts=0", "evaluation.num_critique_controls=0")


def second(model: Path) -> list[str]:
    place = "phase.critique_models.second"
    return [f"+model@{place}=local", f"{place}.path={model}", f"{place}.max_context=6000", STRICT]


def stored(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    (digest,) = {s["digest"] for s in finished.manifest()["stages"] if s["stage"] == stage}
    path = finished.folder / "outputs" / "store" / stage / digest / name
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def page_of(finished: Finished) -> str:
    return (finished.run_dirs()[-1] / "report.html").read_text("utf-8")


def metrics_of(finished: Finished) -> dict[str, float]:
    return json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())


@pytest.fixture(scope="module")
def satisfied(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("satisfied")
    finished = run(folder, *tiny_arguments(tiny_folder, "sl_cai"), *SATISFIED)
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def ensemble(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("ensemble")
    finished = run(
        folder,
        *tiny_arguments(tiny_folder, "sl_cai"),
        *second(tiny_folder),
        "phase.revisions.vote=members",
        "phase.revisions.keep_candidate=true",
        *QUIET,
    )
    assert finished.code == 0, finished.output
    return finished


def test_chains_go_on_until_satisfied(satisfied: Finished) -> None:
    chains = stored(satisfied, "revisions", RevisionChain)
    checks = stored(satisfied, "revisions", Satisfaction, CHECKS)
    verdicts = stored(satisfied, "verdict_check", VerdictCheck)
    assert len(verdicts) == 8  # better and worse of evaluation.num_feedback_tests=4
    for chain, found in zip(chains, checks, strict=True):
        assert chain.prompt.id == found.prompt_id
        assert len(found.rounds) == len(chain.steps) + 1
        assert len(chain.steps) <= 2
        for step, before in zip(chain.steps, found.rounds, strict=False):
            failing = [(v.prob, v.principle_id) for v in before.verdicts if v.prob < 0.5]
            assert step.principle_id == min(failing)[1]
        left = [v for v in found.rounds[-1].verdicts if v.prob is not None and v.prob < 0.5]
        assert (found.end is ChainEnd.satisfied) is not bool(left)
    metrics = metrics_of(satisfied)
    done = [found.end is ChainEnd.satisfied for found in checks]
    assert metrics["revisions/satisfied_rate"] == sum(done) / len(done)
    steps = [len(chain.steps) for chain in chains]
    assert metrics["revisions/rounds_mean"] == pytest.approx(sum(steps) / len(steps))
    for name in ("oscillation_rate", "verdict_accuracy", "satisfied_rate"):
        assert f"revisions/{name}_low" in metrics or f"revisions/{name}" not in metrics
    page = page_of(satisfied)
    assert "Until satisfied" in page
    assert "Chains that satisfy every applicable principle" in satisfied.output


def test_an_audit_lists_what_the_run_saw(satisfied: Finished, tiny_folder: Path) -> None:
    seen = satisfied.run_dirs()[-1]
    audited = run(
        satisfied.folder / "audit",
        "phase=audit",
        "constitution=medical",
        "audit.num_pairs=0",
        "logger=none",
        f"run={seen}",
    )
    assert audited.code == 0, audited.output
    assert "Conflicts seen in the revisions" in audited.output
    record = json.loads((audited.run_dirs()[-1] / "audit.json").read_text())
    assert record["observed"]["num_chains"] == 6
    assert "Conflicts seen in the revisions" in page_of(audited)
    other = run(satisfied.folder / "audit", "phase=audit", "constitution=default", f"run={seen}")
    assert other.code == 1
    assert "was under another document, medical" in other.output


def test_an_audit_of_a_run_that_checked_nothing_is_refused(ensemble: Finished) -> None:
    failed = run(
        ensemble.folder / "audit",
        "phase=audit",
        "constitution=medical",
        f"run={ensemble.run_dirs()[-1]}",
    )
    assert failed.code == 1
    assert "has a fixed number of revisions" in failed.output
    missing = run(ensemble.folder / "audit", "phase=audit", "run=nowhere")
    assert missing.code == 1
    assert "no such folder" in missing.output


def test_several_critique_models_vote(ensemble: Finished) -> None:
    chains = {c.prompt.id: c for c in stored(ensemble, "revisions", RevisionChain)}
    votes = stored(ensemble, "revisions", StepVote, VOTES)
    assert len(votes) == 12  # 6 drafts, 2 steps
    for vote in votes:
        assert [c.member for c in vote.candidates] == ["main", "second"]
        step = chains[vote.prompt_id].steps[vote.step - 1]
        assert step.principle_id == vote.principle_id
        if vote.ballots:
            assert [ballot.voter for ballot in vote.ballots] == ["main", "second"]
            assert vote.winner in vote.ballots[0].ranking
        if vote.winner in ("main", "second"):
            (won,) = [c for c in vote.candidates if c.member == vote.winner]
            assert (step.response, step.outcome) == (won.response, won.outcome)
    seeds = {c.critique.seed for vote in votes for c in vote.candidates if c.critique}
    assert len(seeds) == 24
    metrics = metrics_of(ensemble)
    assert metrics["revisions/vote_contested"] == sum(bool(vote.ballots) for vote in votes)
    page = page_of(ensemble)
    assert "Votes between critique models" in page
    assert "You are strict." in page


def test_both_go_together_and_a_killed_run_goes_on_alike(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [
        *tiny_arguments(tiny_folder, "sl_cai"),
        *second(tiny_folder),
        *SATISFIED,
        "phase.revisions.vote=feedback",
        "phase.revisions.principles_checked=2",
    ]
    whole = run(tmp_path / "whole", *arguments)
    assert whole.code == 0, whole.output
    killed = run(tmp_path / "killed", *arguments, fault="revisions:shard=1:kill")
    assert killed.code == -signal.SIGKILL, killed.output
    resumed = run(tmp_path / "killed", *arguments)
    assert resumed.code == 0, resumed.output
    assert resumed.statuses()["revisions"] == ["continued"]
    assert artifact_bytes(tmp_path / "whole") == artifact_bytes(tmp_path / "killed")
    votes = stored(resumed, "revisions", StepVote, VOTES)
    voters = {ballot.voter for vote in votes for ballot in vote.ballots}
    assert voters <= {"feedback"}
    assert len(stored(resumed, "revisions", Satisfaction, CHECKS)) == 6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["phase.revisions.until=satisfied", "feedback=multiple_choice"],
            "type feedback=tuned, feedback=pointwise or feedback=score",
        ),
        (
            ["phase.revisions.until=satisfied", "phase.revisions.num_revisions=3"],
            "phase.revisions.num_revisions has no effect with phase.revisions.until=satisfied",
        ),
        (
            ["phase.revisions.until=fixed", "phase.revisions.max_rounds=3"],
            "phase.revisions.max_rounds has no effect with phase.revisions.until=fixed",
        ),
        (["phase.revisions.principles_checked=3"], "principles_checked is for until=satisfied"),
        (["phase.revisions.threshold=2"], "threshold must be between 0 and 1"),
        (
            ["phase.revisions.until=satisfied", "constitution=none"],
            "until=satisfied needs principles, and none has none",
        ),
        (
            ["phase.revisions.until=satisfied", "evaluation.num_feedback_tests=2"],
            "raise evaluation.num_feedback_tests",
        ),
        (["phase.revisions.vote=feedback"], "is for several critique models"),
        (["+SECOND", STRICT], "nothing chooses between their revisions"),
        (["+SECOND", "phase.revisions.vote=feedback"], "one and the same critique model twice"),
        (
            ["+SECOND", STRICT, "phase.revisions.vote=members",
             "feedback@phase.revisions.vote_method=tuned"],
            "vote_method=tuned cannot be asked",
        ),
        (["phase.revisions.keep_candidate=true"], "keep_candidate=true needs a vote"),
        (["+UNCHANGED", "phase.revisions.vote=feedback"], "unchanged is no name for a member"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_anything_runs(
    tiny_folder: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    names = {"+SECOND": "second", "+UNCHANGED": "unchanged"}
    typed = []
    for argument in arguments:
        name = names.get(argument)
        typed += (
            [
                f"+model@phase.critique_models.{name}=local",
                f"phase.critique_models.{name}.path={tiny_folder}",
            ]
            if name
            else [argument]
        )
    failed = run(tmp_path, *tiny_arguments(tiny_folder, "sl_cai"), *typed)
    assert failed.code in (1, 2), failed.output
    assert expected in " ".join(failed.output.split())
    assert "Traceback" not in failed.output
    assert not list((tmp_path / "outputs" / "store").glob("*/*"))
