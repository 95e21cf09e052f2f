"""Stage `principle_scores`: every policy against the one before it, under each principle.

The feedback that labelled the comparisons judges, so the scores are circular: a policy that learned
from its labels is measured with the same ruler. Feedback that reads responses instead of being
asked (`tuned`) reads each pair once for all principles.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.artifacts import Artifact, Work, in_shards
from cai.constitution import Principle
from cai.context import RunContext, Stage
from cai.feedback.base import Feedback, Pair
from cai.feedback.measures import count_unjudged
from cai.stages.comparisons import Judge
from cai.types import PolicyComparison, PromptKind, Response

PAIRS_PER_SHARD = 4
"""Part of the stage: a shard is one batch, under all principles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One prompt's responses of two policies."""

    before: Response
    after: Response


def steps(before: Sequence[Response], after: Sequence[Response], *, num: int) -> list[Step]:
    """The first red-team prompts with both policies' responses.

    Args:
        before: A policy's responses to held-out prompts.
        after: The next policy's, to the same prompts.
        num: At most so many prompts.
    """
    asked = [[r for r in rows if r.prompt.kind is PromptKind.red_team] for rows in (before, after)]
    return [
        Step(before=one, after=other)
        for one, other in zip(asked[0][:num], asked[1][:num], strict=True)
    ]


def compare_policies(
    feedback: Feedback, asked: Sequence[Step], principles: Sequence[Principle]
) -> list[PolicyComparison]:
    """The feedback's preferences, the later policy's response being a."""
    pairs = [
        Pair(
            prompt=step.after.prompt,
            response_a=step.after.sample.text,
            response_b=step.before.sample.text,
            principles=tuple(principles),
        )
        for step in asked
    ]
    return [
        PolicyComparison(before=step.before.policy, after=step.after.policy, comparison=comparison)
        for step, comparison in zip(asked, feedback.compare(pairs), strict=True)
    ]


def principle_scores(
    context: RunContext, *, judge: Judge, responses: Mapping[str, Artifact], num: int
) -> tuple[Artifact, ...]:
    """Every policy against the one before it; runs that share both policies share the scores.

    Args:
        context: The run.
        judge: The run's feedback, measured.
        responses: To held-out prompts, by policy, the least trained one first.
        num: Red-team prompts; 0 for no score.
    """
    if num == 0:
        return ()
    return tuple(
        _scores(context, judge=judge, before=before, after=after, num=num)
        for before, after in itertools.pairwise(responses.values())
    )


def _scores(
    context: RunContext, *, judge: Judge, before: Artifact, after: Artifact, num: int
) -> Artifact:
    document = context.constitution
    principles = document.asked

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "principle_scores")
        records = in_shards(
            work,
            steps(before.records(Response), after.records(Response), num=num),
            kind=PolicyComparison,
            shard_size=PAIRS_PER_SHARD,
            make=lambda chunk, _advance: compare_policies(feedback, chunk, principles),
            unit="pairs",
        )
        work.write_records(records)
        work.counts = {
            "pairs": len(records),
            "principles": len(principles),
            **count_unjudged([record.comparison for record in records]),
        }

    return context.run(
        Stage(
            name="principle_scores",
            version=1,
            config={"num": num},
            inputs={"before": before, "after": after, **judge.inputs()},
            identity=judge.identity(context),
            expect={"pairs": num, "questions": num * len(principles)},
            run=run,
        )
    )
