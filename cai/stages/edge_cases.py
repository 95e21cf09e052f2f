"""Stages `edge_labels`, `edge_cases`, `edge_policy`: what CAI is unsure of, decided by people.

The first puts every AI comparison's pair to the feedback again, under all principles of the
constitution; the second chooses (`cai.edge_cases`); the third learns from people's labels of the
chosen pairs by DPO, from the RL-CAI policy on, with that policy as the reference. So the policy is
pulled on pairs that its predecessor SL-CAI sampled, and held where nobody decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.context import RunContext, Stage
from cai.edge_cases import (
    EdgeCase,
    EdgeReason,
    LabelFile,
    doubt_of,
    member_labels,
    most_doubtful,
)
from cai.errors import UserError
from cai.feedback.base import Pair
from cai.feedback.measures import count_unjudged
from cai.loaders import PairExample
from cai.model_config import ModelConfig
from cai.models import BaseModel
from cai.seeds import derive_seed
from cai.stages.comparisons import Judge
from cai.stages.dpo import LabelledPair, labelled_pairs, learned, num_steps
from cai.stages.training import response_ids, training_identity
from cai.training_config import DPOConfig
from cai.types import Comparison, Response

PAIRS_PER_SHARD = 4
"""Part of the stage: a shard is one batch, under all principles."""


def edge_labels(
    context: RunContext, *, judge: Judge, comparisons: Artifact, pairs: Artifact, num: int
) -> Artifact:
    """The judged comparisons' pairs under every principle, as `Comparison` records.

    Args:
        context: The run.
        judge: The run's feedback, measured.
        comparisons: `Comparison` records.
        pairs: The samples that they are of.
        num: Comparisons, for a plan.
    """
    principles = context.constitution.asked

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "edge_labels")

        def make(
            chunk: Sequence[LabelledPair], _advance: Callable[[int], None]
        ) -> list[Comparison]:
            return feedback.compare(
                [
                    Pair(
                        prompt=one.comparison.prompt,
                        response_a=one.comparison.response_a,
                        response_b=one.comparison.response_b,
                        principles=principles,
                    )
                    for one in chunk
                ]
            )

        records = in_shards(
            work,
            labelled_pairs(comparisons.records(Comparison), pairs.records(Response)),
            kind=Comparison,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="pairs",
        )
        work.write_records(records)
        work.counts = {
            "pairs": len(records),
            "principles": len(principles),
            **count_unjudged(records),
        }

    return context.run(
        Stage(
            name="edge_labels",
            version=1,
            config={},
            inputs={"comparisons": comparisons, "pairs": pairs, **judge.inputs()},
            identity=judge.identity(context),
            expect={"pairs": num, "questions": num * len(principles)},
            run=run,
        )
    )


def edge_cases(
    context: RunContext,
    *,
    comparisons: Artifact,
    pairs: Artifact,
    labels: Artifact,
    num: int,
    threshold: float,
) -> Artifact:
    """`EdgeCase` records: the pairs that the feedback is least sure of.

    Args:
        context: The run.
        comparisons: `Comparison` records.
        pairs: The samples that they are of.
        labels: Of the stage `edge_labels`.
        num: At most so many.
        threshold: From which |p - 1/2| on a label is an opinion.
    """

    def run(work: Work) -> None:
        asked = labelled_pairs(comparisons.records(Comparison), pairs.records(Response))
        found = [
            case
            for pair, judged in zip(asked, labels.records(Comparison), strict=True)
            if (case := edge_case(pair, judged, threshold=threshold)) is not None
        ]
        different = {case.id: case for case in found}  # one pair of texts may come twice
        chosen = most_doubtful(list(different.values()), num=num)
        work.write_records(chosen)
        reasons = Counter(case.reason for case in chosen)
        work.counts = {
            "cases": len(chosen),
            "found": len(found),
            "pairs": len(asked),
            **{str(reason): reasons[reason] for reason in EdgeReason},
        }

    return context.run(
        Stage(
            name="edge_cases",
            version=1,
            config={"num": num, "threshold": threshold},
            inputs={"comparisons": comparisons, "pairs": pairs, "labels": labels},
            identity={},
            expect={"cases": num},
            run=run,
        )
    )


def edge_case(pair: LabelledPair, judged: Comparison, *, threshold: float) -> EdgeCase | None:
    """A pair that people are to decide; None where the feedback is of one mind about it.

    Args:
        pair: With how its responses ended.
        judged: The same pair under every principle.
        threshold: From which |p - 1/2| on a label is an opinion.
    """
    members = member_labels(judged.judgements)
    doubt = doubt_of(
        [label.prob_a for label in judged.labels],
        [one.prob_a for one in members],
        threshold=threshold,
    )
    if doubt is None or not judged.labels:
        return None
    compared = pair.comparison
    parts = [compared.prompt.id, compared.response_a, compared.response_b]
    return EdgeCase(
        id=f"edge-{digest_of(parts)[:12]}",
        prompt=compared.prompt,
        response_a=compared.response_a,
        response_b=compared.response_b,
        finished_a=pair.finished_a,
        finished_b=pair.finished_b,
        reason=doubt.reason,
        doubt=doubt.value,
        labels=judged.labels,
        members=members,
    )


def edge_example(base: BaseModel, case: EdgeCase, prob_a: float) -> PairExample:
    """A labelled edge case as DPO reads it."""
    return PairExample(
        prompt_ids=tuple(base.prompt_ids(case.prompt.messages)),
        response_a_ids=response_ids(base, case.response_a, finished=case.finished_a),
        response_b_ids=response_ids(base, case.response_b, finished=case.finished_b),
        prob_a=prob_a,
        weight=1.0,
    )


def edge_policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: DPOConfig,
    cases: Artifact,
    labels: LabelFile,
    start: Artifact,
) -> Artifact:
    """The last policy: DPO on people's labels of edge cases.

    Args:
        context: The run.
        model: The policy's base.
        config: Of the training.
        cases: `EdgeCase` records.
        labels: What people said of them.
        start: The policy that it starts from and is held to.

    Raises:
        UserError: when a label is of no edge case of this run.
    """
    if cases.complete:
        labels.check_known([case.id for case in cases.records(EdgeCase)])

    def run(work: Work) -> None:
        base = context.models.base(model)
        decided = [
            edge_example(base, case, labels.labels[case.id].prob_a)
            for case in cases.records(EdgeCase)
            if case.id in labels.labels
        ]
        examples = [example for example in decided if example.length <= config.max_length]
        if not examples:
            raise UserError(
                f"edge_policy: none of {len(decided)} labelled edge cases fits into phase.edge_dpo."
                f"max_length={config.max_length}; type a larger one"
            )
        with learned(
            context,
            work,
            base=base,
            start=start,
            examples=examples,
            config=config,
            seed=derive_seed(context.seed, "edge_policy"),
        ):
            pass
        said = Counter(labels.labels.values())
        work.counts = {
            "pairs": len(examples),
            "dropped_too_long": len(decided) - len(examples),
            **{f"label_{label}": num for label, num in sorted(said.items())},
            "steps": num_steps(examples, config),
        }

    return context.run(
        Stage(
            name="edge_policy",
            version=1,
            config=config,
            inputs={"cases": cases, "start": start},
            identity=training_identity(model)
            | {"labels": {name: str(label) for name, label in sorted(labels.labels.items())}},
            expect={"pairs": len(labels.labels) * config.num_epochs},
            run=run,
        )
    )
