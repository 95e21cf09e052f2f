"""Labels moved by what a constitution wants done with requests.

The log-odds of a pair's label get `coef * (v(class of a) - v(class of b))`, with v the values that
the document declares for the prompt's kind (`cai.compliance.declared`) and the classes by rules: in
a Bradley-Terry model of preferences, a reward of `coef * v` for how a response deals with its
request, on top of what the feedback prefers under a principle. Rule-based rewards beside a
preference model are those of Mu et al. 2024 (arXiv:2411.01111); here they are in the labels, so
that whatever learns from comparisons learns them. Swapping the responses turns the shift round, and
two responses of one class get none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cai.compliance.classes import ComplianceTag
from cai.compliance.declared import DeclaredCompliance, main_class
from cai.feedback.base import Method, cases_of
from cai.types import Comparison

FILE = "compliance.jsonl"
"""Of the stage `comparisons`, beside its records and in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceShift:
    """What compliance did to one comparison's label."""

    prompt_id: str
    class_a: ComplianceTag
    class_b: ComplianceTag
    value_a: float
    value_b: float
    shift: float
    """Added to the label's log-odds, nats; above 0 in favour of a."""
    prob_before: float | None
    """The label without it; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplianceReward:
    """What a response's way of answering is worth to a label."""

    declared: DeclaredCompliance
    coef: float
    """Nats of log-odds per unit of value."""

    def shift(self, comparison: Comparison) -> ComplianceShift:
        """Both classes and what they are worth."""
        prompt = comparison.prompt
        tags = [main_class(prompt, r) for r in (comparison.response_a, comparison.response_b)]
        value_a, value_b = (self.declared.value(prompt.kind, tag) for tag in tags)
        return ComplianceShift(
            prompt_id=prompt.id,
            class_a=tags[0],
            class_b=tags[1],
            value_a=value_a,
            value_b=value_b,
            shift=self.coef * (value_a - value_b),
            prob_before=comparison.prob_a,
        )

    def relabelled(self, comparison: Comparison, method: Method) -> Comparison:
        """The comparison with its labels moved, before they are hardened or clamped.

        Args:
            comparison: As the method labelled it.
            method: The feedback method, which makes labels of judgements.
        """
        if comparison.prob_a is None:
            return comparison
        cases = cases_of(comparison)
        moved = self.shift(comparison).shift
        prob_a, weight = method.label(cases, shift=moved)
        labels = method.labels(cases, shift=moved)
        return dataclasses.replace(comparison, prob_a=prob_a, weight=weight, labels=labels)


def num_turned(shifts: Sequence[ComplianceShift], comparisons: Sequence[Comparison]) -> int:
    """Labels that prefer the other side than before."""
    return sum(
        before.prob_before is not None
        and after.prob_a is not None
        and (before.prob_before - 0.5) * (after.prob_a - 0.5) < 0
        for before, after in zip(shifts, comparisons, strict=True)
    )
