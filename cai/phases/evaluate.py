"""The feedback measured on labelled comparisons; nothing is trained on its labels.

`evaluation.feedback_data` names the comparisons; without it they are the constitution's own tests.
With `evaluation.judge_attacks` it is also put to responses that try to win by working on the judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import EvaluateConfig
from cai.context import RunContext
from cai.feedback.labelled import labelled_set
from cai.phases.sl_cai import Inputs, judge_of
from cai.stages import comparisons
from cai.stages.attacks import judge_attacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was measured."""

    feedback: comparisons.Checked
    attacks: Artifact | None
    """`AttackCheck` records; None unless they are asked for."""


def run(config: EvaluateConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Put every labelled pair to the feedback, and every attack."""
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    judge = judge_of(config.feedback_model, inputs, context)
    checked = comparisons.feedback_check(context, judge=judge, labelled=labelled)
    attacked = (
        judge_attacks(context, judge=judge.measured(checked))
        if inputs.evaluation.judge_attacks
        else None
    )
    return Outputs(feedback=checked, attacks=attacked)
