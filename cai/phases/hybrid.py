"""RLHF first, then SL-CAI and RLAIF from its policy, then people on what CAI is unsure of.

Up to the RLHF policy the stages are those of `phase=rlhf` with the same digests; from there on
those of `phase=rlaif`, with that policy in the base's place: it drafts, and its adapter goes on
learning (the paper's own drafts come from a helpful-only RLHF model, sec. 3.1). The comparisons
that the feedback is least sure of are listed for people (`cai.edge_cases`); with their labels the
RL-CAI policy is fine-tuned once more, without them the run ends with it. That last step is not in
the paper. People's comparisons are in the RLAIF preference model too, as in any phase that has
`data.human_comparisons`; `phase.preference_model.human_frac=0` leaves them to RLHF.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.context import RunContext
from cai.edge_cases import LabelFile, read_labels
from cai.phases import rlaif, rlhf, sl_cai
from cai.phases.sl_cai import Inputs
from cai.rlhf_config import HybridConfig
from cai.stages.edge_cases import edge_cases, edge_labels, edge_policy
from cai.stages.policy import check_value_adapter
from cai.stages.start import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCases:
    """What CAI is unsure of."""

    judged: Artifact
    """`Comparison` records of the AI comparisons' pairs under every principle."""
    cases: Artifact
    """`EdgeCase` records."""
    labels: LabelFile | None
    policy: Artifact | None
    """None until there are labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs(rlaif.Outputs):
    """What RLAIF made from the RLHF policy, what was before, and what came after."""

    people: rlhf.Trained
    edge: EdgeCases


def _edge(
    config: HybridConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    compared: sl_cai.Compared,
    policy: Artifact,
    labels: LabelFile | None,
) -> EdgeCases:
    judged = edge_labels(
        context,
        judge=compared.judge,
        comparisons=compared.comparisons,
        pairs=compared.pairs,
        num=compared.num,
    )
    cases = edge_cases(
        context,
        comparisons=compared.comparisons,
        pairs=compared.pairs,
        labels=judged,
        num=config.num_edge_cases,
        threshold=config.edge_threshold,
    )
    tuned = None
    if labels is not None:
        tuned = edge_policy(
            context,
            model=inputs.model,
            config=config.edge_dpo,
            cases=cases,
            labels=labels,
            start=policy,
        )
    return EdgeCases(judged=judged, cases=cases, labels=labels, policy=tuned)


def run(config: HybridConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train all policies and measure them side by side."""
    labels = read_labels(config.labels) if config.labels is not None else None
    check_value_adapter(config.ppo, model=inputs.model, preference_base=config.preference_base)
    people = rlhf.train(config.rlhf, inputs, context, prompts=config.prompts, start=config.start)
    start = Start(name="rlhf", adapter=people.policy)
    compared = sl_cai.compare(config, inputs, context, start=start)
    learned = rlaif.learn(config, inputs, context, compared=compared)
    edge = _edge(config, inputs, context, compared=compared, policy=learned.final, labels=labels)
    measured = sl_cai.measure(
        config,
        inputs,
        context,
        compared=compared,
        last={"rl_cai": learned.final} | ({"hybrid": edge.policy} if edge.policy else {}),
        preference_model=learned.preference_model,
    )
    return Outputs(
        trained=compared.trained,
        pairs=compared.pairs,
        feedback=compared.feedback,
        comparisons=compared.comparisons,
        preference_model=learned.preference_model,
        policy=learned.policy,
        evaluation=measured.evaluation,
        principle_scores=measured.principle_scores,
        controls=measured.controls,
        goodhart=learned.goodhart,
        tournament=measured.tournament,
        people=people,
        edge=edge,
    )
