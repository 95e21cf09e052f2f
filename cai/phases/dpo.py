"""Phase 1 and comparisons as in `rlaif`, then the policy by DPO: no preference model and no PPO.

Everything up to the comparisons are the stages of `phase=rlaif` with the same digests, so the two
methods can be compared on the same labels, and share what was computed. The reference is the SL-CAI
policy, as the start of PPO is. Not part of the paper: Direct Preference Optimization is Rafailov et
al. 2023 (arXiv:2305.18290). There is no preference model, hence no score of a policy's responses.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import DPOPhaseConfig
from cai.context import RunContext
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.stages import comparisons, evaluation
from cai.stages.controls import Controls
from cai.stages.dpo import dpo_policy
from cai.stages.matches import Tournament
from cai.training_config import DPOConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was made and measured."""

    trained: sl_cai.Trained
    pairs: Artifact
    feedback: comparisons.Checked
    comparisons: Artifact
    policy: Artifact
    evaluation: evaluation.Evaluation
    principle_scores: tuple[Artifact, ...]
    """`PolicyComparison` records, one artifact for each policy but the first; empty unless they are
    asked for."""
    controls: Controls | None
    tournament: Tournament | None


def learn(
    config: DPOConfig, inputs: Inputs, context: RunContext, *, compared: sl_cai.Compared
) -> Artifact:
    """The policy, from the comparisons."""
    return dpo_policy(
        context,
        model=inputs.model,
        config=config,
        comparisons=compared.comparisons,
        pairs=compared.pairs,
        sl_policy=compared.trained.sl_policy,
        human=inputs.data.human_comparisons,
        num=compared.num,
    )


def run(config: DPOPhaseConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the DPO policy and measure it against the SL-CAI policy and the base."""
    start = sl_cai.start_of(config, inputs, context)
    compared = sl_cai.compare(config, inputs, context, start=start)
    policy = learn(config.dpo, inputs, context, compared=compared)
    measured = sl_cai.measure(
        config, inputs, context, compared=compared, last={"dpo": policy}, preference_model=None
    )
    return Outputs(
        trained=compared.trained,
        pairs=compared.pairs,
        feedback=compared.feedback,
        comparisons=compared.comparisons,
        policy=policy,
        evaluation=measured.evaluation,
        principle_scores=measured.principle_scores,
        controls=measured.controls,
        tournament=measured.tournament,
    )
