"""Stage `steering`: a policy's held-out responses against the base's, as one constitution judges.

The judge is the feedback under the constitution's principles: all of them, or some drawn for each
prompt, the same ones for every policy. Each judgement is about the policy's (a) and the base's (b)
response to one prompt, of every kind, so that all policies of a seed are judged on the same prompts
against the same texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai.artifacts import Artifact, Work, in_shards
from cai.context import RunContext, Stage
from cai.feedback.base import Feedback, Pair
from cai.feedback.measures import count_unjudged
from cai.stages.comparisons import Judge
from cai.stages.principle_scores import PAIRS_PER_SHARD, Step
from cai.types import PolicyComparison, Response

NAME = "steering"


def judged_steps(
    feedback: Feedback, asked: Sequence[Step], *, num_principles: int | None
) -> list[PolicyComparison]:
    """The feedback's preferences, the policy's response being a.

    Args:
        feedback: Of the judging constitution.
        asked: Responses of the base (before) and of the policy (after).
        num_principles: Drawn for each prompt; None: all principles.
    """
    document = feedback.constitution
    everything = document.asked
    pairs = [
        Pair(
            prompt=step.after.prompt,
            response_a=step.after.sample.text,
            response_b=step.before.sample.text,
            principles=everything
            if num_principles is None
            else feedback.draw(step.after.prompt, 0, num=num_principles),
        )
        for step in asked
    ]
    return [
        PolicyComparison(before=step.before.policy, after=step.after.policy, comparison=comparison)
        for step, comparison in zip(asked, feedback.compare(pairs), strict=True)
    ]


def steering(
    context: RunContext,
    *,
    judge: Judge,
    base: Artifact,
    policy: Artifact,
    num: int,
    num_principles: int | None,
) -> Artifact:
    """`PolicyComparison` records, one for each held-out prompt.

    Args:
        context: Of the judging constitution, with the seed of the policy.
        judge: Its feedback, measured.
        base: The base's responses.
        policy: The policy's responses to the same prompts.
        num: Prompts.
        num_principles: Drawn for each prompt; None: all principles.
    """
    document = context.constitution
    asked = min(num_principles or len(document.principles), max(1, len(document.principles)))

    def run(work: Work) -> None:
        feedback = judge.feedback(context, NAME)
        steps = [
            Step(before=one, after=other)
            for one, other in zip(base.records(Response), policy.records(Response), strict=True)
        ]

        def make(chunk: Sequence[Step], _advance: Callable[[int], None]) -> list[PolicyComparison]:
            return judged_steps(feedback, chunk, num_principles=num_principles)

        records = in_shards(
            work,
            steps,
            kind=PolicyComparison,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="pairs",
        )
        work.write_records(records)
        work.counts = {
            "pairs": len(records),
            **count_unjudged([record.comparison for record in records]),
        }

    return context.run(
        Stage(
            name=NAME,
            version=1,
            config={"num": num, "num_principles": num_principles},
            inputs={"base": base, "policy": policy, **judge.inputs()},
            identity=judge.identity(context),
            expect={"pairs": num, "questions": num * max(1, asked)},
            run=run,
        )
    )
