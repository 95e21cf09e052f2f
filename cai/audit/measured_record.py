"""The key `measured` of `audit.json`: labels, diagnostics and predictions for machines.

Schema, version 1, under the rules of `cai.audit.record`; null when no model was asked
(`audit.num_pairs=0`). An *estimate* is `value`, `low`, `high` (95 % interval), `num`, or null where
nothing was observed. Shares are in [0, 1], entropies in nats.

* `method`, `judge`, `pairs_from`: the feedback, its model, and where the pairs come from
* `threshold`: an opinion is a label further than this from 1/2
* `num_labels`, `num_judged`: labels asked for, and those given
* `warnings`: sentences
* `tests`: over all of the document's tests, estimates: `accuracy`, `longer_wins`, `swapped`
  (accuracy when each is judged under a principle that it does not test), `own_gain` (difference)
* `principles`: list of `id`, `tests`, `relevance`, `decisiveness`, `order_consistency`,
  `paraphrase_consistency`, `negation_flip_rate`, `agreement` (estimates), `num_prompts`
* `coverage`, `effective_number`, `entropy` (estimates), `conflict_rate` (number or null)
* `conflicts`: list of `first`, `second`, `rate`, `agreement`, and `pairs`: list of `pair`, `first`,
  `second` (P(a preferred) under each), the clearest first
* `labels`: list of `pair`, `prompt_id`, `kind`, `category`, `prompt` (last turn), `response_a`,
  `response_b`, `refuses` (`a`, `b` or null: exactly one declines), and `prob_a`: principle id to
  label or null
* `without`: principle id to *effect*, a prediction; and `commands`: principle id to what checks it
* *effect*: `num`, `flip_rate`, `mean_move` (estimates), `flips` (list of `pair`, `before`,
  `after`), `categories` (list of `kind`, `category`, `num`, `num_flips`, `mean_move`), `refusals`
  (`before`, `after`, `change`: estimates of the expected label for the refusing response)
* `version`: null, or `before`, `whole` (effect), `command`, and `steps`: list of `principle_id`,
  `old_id`, `what` (`added`, `removed`, `reworded`, `same`), `own_flips`, `effect` (made alone)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cai.audit.backfire import Effect, refusing_side
from cai.audit.labels import Framing, PairLabels
from cai.audit.measured import Conflict, Measured, PrincipleMeasures
from cai.statistics import Estimate


def measured_record(
    measured: Measured, *, commands: dict[str, str], command_after: str
) -> dict[str, Any]:
    """The measured part as plain JSON values."""
    whole, version = measured.whole, measured.version
    return {
        "method": measured.asked.method,
        "judge": measured.asked.judge,
        "pairs_from": measured.asked.pairs,
        "threshold": measured.threshold,
        "num_labels": measured.num_labels,
        "num_judged": measured.num_judged,
        "warnings": list(measured.warnings),
        "tests": {
            "accuracy": _estimate(measured.feedback.accuracy),
            "longer_wins": _estimate(measured.feedback.longer_wins),
            "swapped": _estimate(measured.swapped),
            "own_gain": _estimate(measured.own_gain),
        },
        "principles": [_principle(one) for one in measured.principles],
        "coverage": _estimate(whole.coverage),
        "effective_number": _estimate(whole.effective_number),
        "entropy": _estimate(whole.entropy),
        "conflict_rate": whole.conflict_rate,
        "conflicts": [_conflict(one) for one in measured.conflicts],
        "labels": [_labels(pair) for pair in measured.pairs],
        "without": {one.principle_id: _effect(one.effect) for one in measured.left_out},
        "commands": commands,
        "version": None
        if version is None
        else {
            "before": version.before,
            "whole": _effect(version.whole),
            "command": command_after,
            "steps": [
                {
                    "principle_id": step.principle_id,
                    "old_id": step.old_id,
                    "what": step.what,
                    "own_flips": step.own_flips,
                    "effect": _effect(step.effect),
                }
                for step in version.steps
            ],
        },
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "num": estimate.num,
    }


def _principle(one: PrincipleMeasures) -> dict[str, Any]:
    return {
        "id": one.id,
        "tests": _estimate(one.tests),
        "relevance": _estimate(one.relevance),
        "decisiveness": _estimate(one.decisiveness),
        "order_consistency": _estimate(one.order_consistency),
        "paraphrase_consistency": _estimate(one.paraphrase_consistency),
        "negation_flip_rate": _estimate(one.negation_flip_rate),
        "agreement": _estimate(one.agreement),
        "num_prompts": one.num_prompts,
    }


def _conflict(one: Conflict) -> dict[str, Any]:
    return {
        "first": one.first,
        "second": one.second,
        "rate": _estimate(one.rate),
        "agreement": _estimate(one.agreement),
        "pairs": [
            {"pair": pair.pair, "first": pair.first, "second": pair.second} for pair in one.pairs
        ],
    }


def _labels(pair: PairLabels) -> dict[str, Any]:
    return {
        "pair": pair.name,
        "prompt_id": pair.prompt.id,
        "kind": str(pair.prompt.kind),
        "category": pair.prompt.category,
        "prompt": pair.prompt.messages[-1].content,
        "response_a": pair.response_a,
        "response_b": pair.response_b,
        "refuses": refusing_side(pair),
        "prob_a": {
            answer.principle_id: answer.prob_a
            for answer in pair.answers
            if answer.framing is Framing.plain
        },
    }


def _effect(effect: Effect) -> dict[str, Any]:
    refusals = effect.refusals
    return {
        "num": effect.num,
        "flip_rate": _estimate(effect.flip_rate),
        "mean_move": _estimate(effect.mean_move),
        "flips": [
            {"pair": flip.pair, "before": flip.before, "after": flip.after} for flip in effect.flips
        ],
        "categories": [
            {
                "kind": one.kind,
                "category": one.category,
                "num": one.num,
                "num_flips": one.num_flips,
                "mean_move": one.mean_move,
            }
            for one in effect.categories
        ],
        "refusals": {
            "before": _estimate(refusals.before),
            "after": _estimate(refusals.after),
            "change": _estimate(refusals.change),
        },
    }


def measured_metrics(measured: Measured) -> dict[str, float]:
    """Flat numbers, `audit/...`; an interval's ends are `<name>_low` and `<name>_high`."""
    found: dict[str, float] = {
        "audit/pairs": float(len(measured.pairs)),
        "audit/labels": float(measured.num_labels),
        "audit/labels_judged": float(measured.num_judged),
    }

    def add(name: str, value: Estimate | None) -> None:
        if value is not None:
            found[f"audit/{name}"] = value.value
            found[f"audit/{name}_low"], found[f"audit/{name}_high"] = value.low, value.high

    whole = measured.whole
    add("test_accuracy", measured.feedback.accuracy)
    add("test_accuracy_swapped", measured.swapped)
    add("test_own_gain", measured.own_gain)
    add("coverage", whole.coverage)
    add("effective_principles", whole.effective_number)
    add("label_entropy", whole.entropy)
    if whole.conflict_rate is not None:
        found["audit/conflict_rate"] = whole.conflict_rate
    for one in measured.principles:
        group = f"principle/{one.id}"
        add(f"{group}/test_accuracy", one.tests)
        add(f"{group}/relevance", one.relevance)
        add(f"{group}/decisiveness", one.decisiveness)
        add(f"{group}/order_consistency", one.order_consistency)
        add(f"{group}/paraphrase_consistency", one.paraphrase_consistency)
        add(f"{group}/negation_flip_rate", one.negation_flip_rate)
        add(f"{group}/agreement", one.agreement)
    for left in measured.left_out:
        add(f"without/{left.principle_id}/flip_rate", left.effect.flip_rate)
        add(f"without/{left.principle_id}/refusal_change", left.effect.refusals.change)
    if measured.version is not None:
        add("version/flip_rate", measured.version.whole.flip_rate)
        add("version/refusal_change", measured.version.whole.refusals.change)
    return found


def measured_tables(measured: Measured) -> dict[str, tuple[tuple[str, ...], list[list[object]]]]:
    """Columns and rows for the mirror: principles, labels, conflicts, and what is predicted."""
    principles: list[list[object]] = [
        [
            one.id,
            *(
                None if value is None else value.value
                for value in (
                    one.tests,
                    one.relevance,
                    one.decisiveness,
                    one.order_consistency,
                    one.paraphrase_consistency,
                    one.negation_flip_rate,
                    one.agreement,
                )
            ),
            one.num_prompts,
        ]
        for one in measured.principles
    ]
    labels: list[list[object]] = [
        [
            pair.name,
            str(pair.prompt.kind),
            pair.prompt.category,
            pair.prompt.messages[-1].content,
            pair.response_a,
            pair.response_b,
            answer.principle_id,
            answer.prob_a,
        ]
        for pair in measured.pairs
        for answer in pair.answers
    ]
    conflicts: list[list[object]] = [
        [one.first, one.second, one.rate.value, shown.pair, shown.first, shown.second]
        for one in measured.conflicts
        for shown in one.pairs
    ]
    shares: list[list[object]] = [
        [first.id, second.id, float(measured.conflict_shares[row, column])]
        for row, first in enumerate(measured.principles)
        for column, second in enumerate(measured.principles)
        if row != column and np.isfinite(measured.conflict_shares[row, column])
    ]
    columns = (
        "principle", "tests", "relevance", "decisiveness", "order_consistency",
        "paraphrase_consistency", "negation_flip_rate", "agreement", "prompts",
    )  # fmt: skip
    asked = (
        "pair", "kind", "category", "prompt", "response_a", "response_b", "principle", "p_a",
    )  # fmt: skip
    return {
        "audit_principles": (columns, principles),
        "audit_labels": (asked, labels),
        "audit_conflicts": (("first", "second", "rate", "pair", "p_first", "p_second"), conflicts),
        "audit_conflict_matrix": (("first", "second", "share"), shares),
        "audit_flips": (("change", "principle", "pair", "before", "after"), _flips(measured)),
    }


def _flips(measured: Measured) -> list[list[object]]:
    """Labels that are predicted to change sides: without a principle, and in the new version."""
    changes: list[tuple[str, str | None, Effect]] = [
        ("without", left.principle_id, left.effect) for left in measured.left_out
    ]
    if (version := measured.version) is not None:
        changes.append(("new version", None, version.whole))
        changes += [(step.what, step.principle_id, step.effect) for step in version.steps]
    return [
        [what, principle_id, flip.pair, flip.before, flip.after]
        for what, principle_id, effect in changes
        for flip in effect.flips
    ]
