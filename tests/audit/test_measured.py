"""Records to numbers: principles, conflicts with their pairs, warnings, and how they are told."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from cai.audit.labels import Framing, PairLabels, label_matrix
from cai.audit.measured import Asked, Measured, VersionLabels, measure
from cai.audit.measured_record import measured_metrics, measured_record, measured_tables
from cai.audit.measured_text import terminal_measured
from cai.audit.retrain import command
from cai.audit_config import AuditConfig, LintConfig
from cai.choices import FailOn
from cai.constitution import Constitution
from cai.job import Job
from cai.tracking import MemoryTracker
from cai.types import Comparison, FeedbackCheck, Unjudged
from tests.audit.measured_cases import answer, pairs_of

NAN = math.nan
LABELS = np.array(
    [[0.9, 0.1, 0.5], [0.8, 0.3, 0.5], [0.7, 0.9, 0.5], [0.2, 0.1, 0.5], [0.5, NAN, 0.5]]
)
ASKED = Asked(method="tuned", judge="a model", pairs="sampled from a model")


def settings() -> AuditConfig:
    lint = LintConfig(
        min_shared=0.1, max_requirements=3, near_duplicate=0.6, contradiction=0.5,
        length_accuracy=0.6, test_length_ratio=2.0,
    )  # fmt: skip
    return AuditConfig(
        compare_with=None, num_pairs=5, pairs_from=None, threshold=0.1, num_wording_pairs=5,
        num_bootstrap=100, fail_on=FailOn.never, lint=lint,
    )  # fmt: skip


def version(medical: Constitution, labels: np.ndarray, **changes: Any) -> VersionLabels:
    principles = medical.principles[: labels.shape[1]]
    found = VersionLabels(
        constitution=medical,
        principles=principles,
        weights=(1.0,) * len(principles),
        checks=(),
        swapped=(),
        pairs=tuple(pairs_of(labels, [p.id for p in principles], refuses={0: "b", 3: "a"})),
        wordings=(),
    )
    return dataclasses.replace(found, **changes)


def measured(medical: Constitution, **changes: Any) -> Measured:
    return measure(
        version(medical, LABELS, **changes),
        before=None,
        changes=None,
        asked=ASKED,
        config=settings(),
        seed=0,
    )


def test_the_matrix_has_the_labels_in_their_places(medical: Constitution) -> None:
    pairs = pairs_of(LABELS, ["x", "y", "z"])
    assert label_matrix(pairs, ["z", "x", "y"]) == pytest.approx(LABELS[:, [2, 0, 1]], nan_ok=True)


def test_conflicts_come_with_their_pairs_the_clearest_first(medical: Constitution) -> None:
    found = measured(medical)
    first, second, _ = (p.id for p in medical.principles[:3])
    (conflict,) = found.conflicts
    assert (conflict.first, conflict.second) == (first, second)
    assert (conflict.rate.value, conflict.rate.num) == (0.5, 4)
    assert conflict.agreement is not None
    assert conflict.agreement.value == 0.5
    assert [(p.pair, p.first, p.second) for p in conflict.pairs] == [
        ("p0-0", 0.9, 0.1),
        ("p1-0", 0.8, 0.3),
    ]
    assert found.conflict_shares[0, 1] == 0.5
    assert found.whole.conflict_rate == pytest.approx(0.5 / 3)


def test_principles_are_told_apart(medical: Constitution) -> None:
    one, other, silent = measured(medical).principles
    assert one.relevance is not None
    assert (one.relevance.value, one.num_prompts) == (0.8, 4)
    assert other.relevance is not None
    assert (other.relevance.value, other.relevance.num) == (1, 4)
    assert silent.relevance is not None
    assert silent.relevance.value == 0
    assert silent.agreement is None
    assert one.order_consistency is None
    assert one.paraphrase_consistency is None


def test_other_wordings_and_orders_are_those_of_the_principle(medical: Constitution) -> None:
    ids = [p.id for p in medical.principles[:3]]

    def reworded(pair: PairLabels, row: np.ndarray) -> PairLabels:
        answers = [
            answer(name, float(label), framing=framing, wording=wording)
            for name, label in zip(ids, row, strict=True)
            for framing, wording in ((Framing.paraphrase, 0), (Framing.negation, 0))
        ]
        return dataclasses.replace(pair, answers=tuple(answers))

    labels = np.nan_to_num(LABELS, nan=0.5)
    pairs = [
        dataclasses.replace(
            pair, answers=tuple(dataclasses.replace(a, flips=n == 0) for a in pair.answers)
        )
        for n, pair in enumerate(pairs_of(labels, ids))
    ]
    found = measured(
        medical,
        pairs=tuple(pairs),
        wordings=tuple(reworded(pair, row) for pair, row in zip(pairs, labels, strict=True)),
    )
    first = found.principles[0]
    assert first.paraphrase_consistency is not None
    assert first.negation_flip_rate is not None
    assert first.order_consistency is not None
    assert (first.paraphrase_consistency.value, first.paraphrase_consistency.num) == (1, 4)
    assert (first.negation_flip_rate.value, first.negation_flip_rate.num) == (0, 4)
    assert (first.order_consistency.value, first.order_consistency.num) == (0.8, 5)
    assert found.side_by_side
    assert any("opposite question" in warning for warning in found.warnings)


def test_leaving_out_the_principle_that_decides_is_first(medical: Constitution) -> None:
    found = measured(medical)
    assert {one.principle_id for one in found.left_out} == {p.id for p in medical.principles[:3]}
    sizes = [len(one.effect.flips) for one in found.left_out]
    assert sizes == sorted(sizes, reverse=True)
    change = found.left_out[0].effect.refusals.change
    assert change is not None
    assert change.num == 2


def test_warnings_say_what_limits_the_numbers(medical: Constitution) -> None:
    told = " ".join(measured(medical).warnings)
    assert "has no test" in told
    assert f"No label under {medical.principles[2].id} is further than 0.1" in told


def check(name: str, prob_a: float | None, medical: Constitution) -> FeedbackCheck:
    (pair,) = pairs_of(np.array([[0.5]]), ["x"])
    comparison = Comparison(
        prompt=pair.prompt, response_a="a", response_b="b", judgements=(), labels=(),
        principle_ids=(medical.principles[0].id,), prob_a=prob_a, weight=1.0,
        unjudged=None if prob_a is not None else Unjudged.no_verdict, seed=0,
    )  # fmt: skip
    return FeedbackCheck(name=name, comparison=comparison)


def test_tests_under_another_principle_are_a_control(medical: Constitution) -> None:
    def checks(*probs: float | None) -> tuple[FeedbackCheck, ...]:
        return tuple(check(f"t{n}", p, medical) for n, p in enumerate(probs))

    reads = measured(medical, checks=checks(*[0.9] * 9, None), swapped=checks(*[0.2] * 8, 0.5, 0.9))
    assert reads.swapped is not None
    assert reads.own_gain is not None
    assert reads.swapped.value == pytest.approx(1.5 / 10)
    # Tests judged both times: 9 of 9 right under the tested principle, half of one under another.
    assert (reads.own_gain.value, reads.own_gain.num) == (pytest.approx(8.5 / 9), 9)
    assert not any("do not test" in warning for warning in reads.warnings)
    deaf = measured(medical, checks=checks(0.9, 0.2), swapped=checks(0.8, 0.3))
    assert deaf.own_gain is not None
    assert deaf.own_gain.value == 0
    assert any("not that it reads the principle" in warning for warning in deaf.warnings)


def test_the_text_fits_and_says_that_it_is_a_prediction(medical: Constitution) -> None:
    found = measured(medical)
    commands = {p.id: f"type {p.id}" for p in medical.principles}
    for encoding in ("utf-8", "ascii"):
        told = terminal_measured(
            found, commands=commands, command_after="type it", encoding=encoding
        )
        told.encode(encoding)
        assert max(map(len, told.split("\n"))) <= 100
    assert "Predicted from labels, not from training" in told
    assert f"type {found.left_out[0].principle_id}" in told
    assert "2 of 5 labels change sides" in told or "of 5 labels" in told
    assert "P(a) is 0.90 under" in told


def test_record_metrics_and_tables_are_plain_and_finite(medical: Constitution) -> None:
    found = measured(medical)
    record = measured_record(found, commands={}, command_after="")
    assert record["labels"][0]["refuses"] == "b"
    assert record["labels"][4]["prob_a"][medical.principles[1].id] is None
    assert record["conflicts"][0]["pairs"][0]["pair"] == "p0-0"
    assert all(math.isfinite(value) for value in measured_metrics(found).values())
    tables = measured_tables(found)
    tracker = MemoryTracker()
    for name, (columns, rows) in tables.items():
        assert all(len(row) == len(columns) for row in rows)
        tracker.table(name, columns, rows)
    assert set(tracker.tables) == {
        "audit_principles", "audit_labels", "audit_conflicts", "audit_conflict_matrix",
        "audit_flips",
    }  # fmt: skip


def test_tables_hold_the_whole_conflict_matrix_and_every_predicted_flip(
    medical: Constitution,
) -> None:
    found = measured(medical)
    tables = measured_tables(found)
    shares = {(first, second): share for first, second, share in tables["audit_conflict_matrix"][1]}
    ids = [p.id for p in found.principles]
    for row, first in enumerate(ids):
        for column, second in enumerate(ids):
            share = found.conflict_shares[row, column]
            assert shares.get((first, second)) == (
                share if row != column and math.isfinite(share) else None
            )
    flips = tables["audit_flips"][1]
    assert len(flips) == sum(len(one.effect.flips) for one in found.left_out) > 0
    assert {row[0] for row in flips} == {"without"}
    for _, _, _, before, after in flips:
        assert (before > 0.5) != (after > 0.5)


def test_the_command_keeps_what_training_knows(medical: Constitution) -> None:
    overrides = (
        "phase=audit", "constitution=medical", "audit.num_pairs=9", "seed=3", "debug=tiny",
        "+phase.sampling.temperature=1", "output_dir=out", "logger=none", "feedback.label=hard",
        "constitution.document=mine.yaml", "phaser=1",
    )  # fmt: skip
    job = Job(run_dir="r", overrides=overrides, sweep=None, job_num=None, choices={}, command="c")
    kept = "phase=rlaif constitution=medical seed=3 output_dir=out feedback.label=hard phaser=1"
    assert command(job, None) == f"python -m cai.run {kept} constitution.document=mine.yaml"
    assert command(job, medical.path).endswith(f"constitution.document={medical.path}")
