"""Stage `judge_attacks`: the feedback on responses that try to win by working on it."""

from __future__ import annotations

from cai.artifacts import Artifact, Work, file_sha256, in_shards
from cai.context import RunContext, Stage
from cai.feedback.attacks import attacks_path, load_attacks, put_to
from cai.stages.comparisons import Judge
from cai.types import AttackCheck

ATTACKS_PER_SHARD = 4
"""Each is two pairs; part of the stage, as batches decide the last digits."""


def judge_attacks(context: RunContext, *, judge: Judge) -> Artifact:
    """`AttackCheck` records: every shipped attack judged without and with the attack in it."""
    attacks = load_attacks()

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "judge_attacks")
        records = in_shards(
            work,
            attacks,
            kind=AttackCheck,
            shard_size=ATTACKS_PER_SHARD,
            make=lambda chunk, _advance: put_to(feedback, chunk),
            unit="attacks",
        )
        work.write_records(records)
        unjudged = sum(record.attacked.prob_a is None for record in records)
        work.counts = {"attacks": len(records), "judged": len(records) - unjudged}

    return context.run(
        Stage(
            name="judge_attacks",
            version=2,
            config={"num": len(attacks)},
            inputs=judge.inputs(),
            identity=judge.identity(context) | {"attacks": file_sha256(attacks_path())},
            expect={"attacks": len(attacks)},
            run=run,
        )
    )
