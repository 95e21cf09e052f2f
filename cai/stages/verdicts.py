"""Stage `verdict_check`: whether the feedback's verdict on one response means anything.

The constitution's tests say which of two responses is better under a principle. Taken one by one,
the better ones should hold and the worse ones should not; a tuned verdict is calibrated on them,
and reported on each by what has not seen it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.constitution import Constitution, Principle
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.base import Method
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.labelled import Labelled, constitution_tests
from cai.feedback.pointwise import Pointwise
from cai.feedback.score import Score
from cai.feedback.single import Single
from cai.feedback.tuned import Tuned
from cai.feedback.verdicts import Calibration, Verdicts, calibrated, held_out
from cai.feedback.wording import PLAIN_RESPONSES
from cai.feedback_config import FeedbackConfig, TunedConfig
from cai.revision_records import VerdictCheck
from cai.seeds import derive_seed
from cai.stages.comparisons import Judge
from cai.types import Unjudged

CALIBRATION = "calibration.json"
RESPONSES_PER_SHARD = 16
"""Responses of tests per batch; part of the stage."""
MIN_TESTS = 4
"""Fewer cannot calibrate a verdict of tuned feedback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One response of a test."""

    test: Labelled
    holds: bool

    @property
    def response(self) -> str:
        """As shown."""
        return shown(self.test.better if self.holds else self.test.worse)


def check_satisfiable(
    constitution: Constitution, feedback: FeedbackConfig, *, num_tests: int
) -> None:
    """Refuse a document that cannot be satisfied, or whose tests cannot calibrate a verdict.

    Raises:
        UserError: saying what to type instead.
    """
    if not constitution.principles:
        raise UserError(
            f"phase.revisions.until=satisfied needs principles, and {constitution.name} has none; "
            "type phase.revisions.until=fixed"
        )
    prompts = {test.messages for test in constitution_tests(constitution, num=num_tests, seed=0)}
    if isinstance(feedback, TunedConfig) and len(prompts) < MIN_TESTS:
        raise UserError(
            f"phase.revisions.until=satisfied with feedback=tuned is calibrated on the "
            f"constitution's tests, and there are {len(prompts)} with different prompts, not "
            f"{MIN_TESTS} (evaluation.num_feedback_tests={num_tests}); type feedback=pointwise, "
            "raise evaluation.num_feedback_tests, or write tests"
        )


def verdict_check(context: RunContext, *, judge: Judge, num_tests: int) -> Artifact:
    """The verdicts on the responses of the constitution's tests, and the calibration."""
    tests = constitution_tests(context.constitution, num=num_tests, seed=context.seed)
    asked = [_Asked(test=test, holds=holds) for test in tests for holds in (True, False)]

    def run(work: Work) -> None:
        method = single_method(judge.feedback(context, "verdict_check").method)
        seed = derive_seed(context.seed, "verdict_check")
        checks = in_shards(
            work,
            asked,
            kind=VerdictCheck,
            shard_size=RESPONSES_PER_SHARD,
            make=lambda chunk, _advance: _values(method, chunk, seed=seed),
            unit="responses",
        )
        calibration = None
        if isinstance(method, Tuned):
            calibration, checks = _calibrate(method, asked, checks)
            work.write_json(CALIBRATION, dataclasses.asdict(calibration))
        else:
            checks = [_with_prob(Verdicts(method=method, calibration=None), c) for c in checks]
        work.write_records(checks)
        work.counts = {"responses": len(checks), "judged": sum(c.prob is not None for c in checks)}

    return context.run(
        Stage(
            name="verdict_check",
            version=1,
            config={"num_tests": len(tests)},
            inputs=judge.inputs(),
            identity=judge.identity(context) | {"plain": digest_of(PLAIN_RESPONSES)},
            expect={"responses": len(asked)},
            run=run,
        )
    )


def verdicts(context: RunContext, *, judge: Judge, checked: Artifact, name: str) -> Verdicts:
    """The loaded method with its calibration, for the stage of a name."""
    method = single_method(judge.feedback(context, name).method)
    calibration = None
    if isinstance(method, Tuned):
        calibration = Calibration(**checked.json(CALIBRATION))
    return Verdicts(method=method, calibration=calibration)


def single_method(method: Method) -> Pointwise | Score | Tuned:
    """A method that has a verdict on one response; the config has no other here."""
    assert isinstance(method, Pointwise | Score | Tuned)
    return method


def _values(
    method: Pointwise | Score | Tuned, chunk: Sequence[_Asked], *, seed: int
) -> list[VerdictCheck]:
    singles = [
        Single(
            messages=shown_turns(one.test.messages),
            response=one.response,
            principle=_principle(one.test),
            seed=derive_seed(seed, one.test.name),
        )
        for one in chunk
    ]
    values: Sequence[float | Unjudged]
    if isinstance(method, Tuned):
        values = method.values(singles, probes=[_fold(method, one.test) for one in chunk])
    else:
        values = method.values(singles)
    return [
        VerdictCheck(
            name=one.test.name,
            principle_id=single.principle.id,
            holds=one.holds,
            value=None if isinstance(value, Unjudged) else value,
            prob=None,
            unjudged=value if isinstance(value, Unjudged) else None,
        )
        for one, single, value in zip(chunk, singles, values, strict=True)
    ]


def _principle(test: Labelled) -> Principle:
    assert test.principle is not None
    return test.principle


def _fold(method: Tuned, test: Labelled) -> int:
    return method.fold(shown_turns(test.messages), shown(test.better), shown(test.worse))


def _calibrate(
    method: Tuned, asked: Sequence[_Asked], checks: Sequence[VerdictCheck]
) -> tuple[Calibration, list[VerdictCheck]]:
    """The calibration on all tests, and each check by that of the other folds."""
    values = [check.value for check in checks if check.value is not None]
    holds = [check.holds for check in checks]
    folds = [_fold(method, one.test) for one in asked]
    probs = held_out(values, holds, folds)
    found = [
        dataclasses.replace(check, prob=prob) for check, prob in zip(checks, probs, strict=True)
    ]
    return calibrated(values, holds), found


def _with_prob(own: Verdicts, check: VerdictCheck) -> VerdictCheck:
    if check.value is None:
        return check
    return dataclasses.replace(check, prob=own.prob(check.value))
