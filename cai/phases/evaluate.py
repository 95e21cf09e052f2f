"""The feedback measured on labelled comparisons; nothing is trained on its labels.

`evaluation.feedback_data` names the comparisons; without it they are the constitution's own tests.
With `evaluation.judge_attacks` it is also put to responses that try to win by working on the judge.
With `evaluation.elo.runs` the policies of finished runs meet in a tournament.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import EvaluateConfig
from cai.context import RunContext
from cai.elo.runs import Players, players_of
from cai.feedback.labelled import labelled_set
from cai.phases.sl_cai import Inputs, judged, match_judge
from cai.stages import comparisons
from cai.stages.attacks import judge_attacks
from cai.stages.matches import Tournament, tournament


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was measured."""

    feedback: comparisons.Checked
    attacks: Artifact | None
    """`AttackCheck` records; None unless they are asked for."""
    tournament: Tournament | None
    """Of finished runs' policies; None unless it is asked for."""


def run(config: EvaluateConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Put every labelled pair to the feedback, every attack, and the policies of finished runs."""
    runs = inputs.evaluation.elo.runs
    players = players_of(runs, output_dir=context.store.root.parent) if runs is not None else None
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    found = judged(config.feedback_model, inputs, context, labelled=labelled)
    judge, checked = found.judge, found.checked
    return Outputs(
        feedback=checked,
        attacks=judge_attacks(context, judge=judge) if inputs.evaluation.judge_attacks else None,
        tournament=_play(config, inputs, context, players, feedback=judge, checked=checked)
        if players is not None
        else None,
    )


def _play(
    config: EvaluateConfig,
    inputs: Inputs,
    context: RunContext,
    players: Players,
    *,
    feedback: comparisons.Judge,
    checked: comparisons.Checked,
) -> Tournament | None:
    judge = match_judge(
        inputs, context, feedback=feedback, checked=checked, model=config.feedback_model
    )
    return tournament(
        context,
        judge=judge,
        supplied_labels=players.trained_by(judge.judge),
        players=players.responses,
        config=inputs.evaluation.elo,
        counts=players.counts,
    )
