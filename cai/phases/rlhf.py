"""Reinforcement learning from comparisons by people: the baseline of every claim about CAI.

Fine-tune on preferred responses, preference model, PPO (Ouyang et al. 2022, arXiv:2203.02155; Bai
et al. 2022a, arXiv:2204.05862). Everything that is not about whose labels they are is as in
`phase=rlaif`: prompts, PPO, evaluation. No principle and no model has a part in the labels; the
constitution only says from which domain prompts are, and what the policies are measured on.

Departures: the fine-tune is on the preferred responses of the same comparisons, since there are no
demonstrations; helpfulness and harmlessness are one preference model.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.config import PromptsConfig
from cai.context import RunContext
from cai.feedback.labelled import labelled_set
from cai.phases import sl_cai
from cai.phases.sl_cai import Inputs
from cai.rlhf_config import RLHFConfig, RLHFTrainingConfig
from cai.stages import evaluation, sampling
from cai.stages.comparisons import Checked
from cai.stages.human_comparisons import human_comparisons, sft_policy
from cai.stages.matches import Tournament
from cai.stages.policy import check_value_adapter
from cai.stages.policy import policy as rl_policy
from cai.stages.preference_labels import PeopleLabels
from cai.stages.preference_model import PreferenceModel, preference_model
from cai.stages.rewards import PreferenceReward
from cai.stages.start import Start, start_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was learned from people."""

    prompts: Artifact
    comparisons: Artifact
    """Of the stage `human_comparisons`."""
    begun: Start
    """What PPO starts from: the fine-tuned policy, `sft`, or the one that `phase.start` names."""
    preference_model: PreferenceModel
    policy: Artifact

    def policies(self) -> dict[str, Artifact | None]:
        """Every policy by its name, the least trained one first; None is the base."""
        return {"base": None, self.begun.name: self.begun.adapter, "rlhf": self.policy}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was made and measured."""

    people: Trained
    evaluation: evaluation.Evaluation
    tournament: Tournament | None
    feedback: Checked | None
    """The judge of the policies, measured; None where nothing is judged."""


def train(
    config: RLHFTrainingConfig,
    inputs: Inputs,
    context: RunContext,
    *,
    prompts: PromptsConfig,
    start: str | None,
) -> Trained:
    """Everything up to the policy; `phase=hybrid` begins with the same stages.

    Args:
        config: Of the training.
        inputs: The phase's.
        context: The run.
        prompts: How many of each kind.
        start: As `phase.start`.
    """
    check_value_adapter(config.ppo, model=inputs.model, preference_base=None)
    begun = start_policy(context, model=inputs.model, start=start)
    labelled = human_comparisons(
        context,
        source=inputs.data.human_comparisons,
        validation_frac=config.preference_model.validation_frac,
    )
    num = inputs.data.human_comparisons.max_rows
    drawn = sampling.prompts(context, config=prompts, sources=inputs.data, domain=inputs.domain)
    if begun is None:
        tuned = sft_policy(
            context, model=inputs.model, config=config.sft, comparisons=labelled, num=num
        )
        begun = Start(name="sft", adapter=tuned)
    samples = sampling.samples(
        context,
        policy=begun,
        model=inputs.model,
        config=config.samples,
        source=drawn,
        num=prompts.num_red_team + prompts.num_helpfulness,
    )
    scored = preference_model(
        context,
        model=inputs.model,
        config=config.preference_model,
        principles=inputs.principles,
        labels=PeopleLabels(comparisons=labelled),
        pairs=samples,
        num=num,
        half=None,
    )
    policy = rl_policy(
        context,
        model=inputs.model,
        config=config.ppo,
        prompts=drawn,
        sl_policy=begun.adapter,
        reward=PreferenceReward(model=scored),
        snapshots=(),
        name="rlhf_policy",
    )
    return Trained(
        prompts=drawn, comparisons=labelled, begun=begun, preference_model=scored, policy=policy
    )


def run(config: RLHFConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train the RLHF policy and measure it against what it began with and the base."""
    labelled = labelled_set(inputs.evaluation, context.constitution, seed=context.seed)
    trained = train(config.training, inputs, context, prompts=config.prompts, start=config.start)
    measured = evaluation.evaluate(
        context,
        model=inputs.model,
        config=inputs.evaluation,
        counts=config.prompts,
        prompts=trained.prompts,
        policies=trained.policies(),
        preference_model=trained.preference_model,
    )
    if inputs.evaluation.elo.num_prompts == 0:
        return Outputs(people=trained, evaluation=measured, tournament=None, feedback=None)
    found = sl_cai.judged(config.feedback_model, inputs, context, labelled=labelled)
    played = sl_cai.play(
        config,
        inputs,
        context,
        feedback=found.judge,
        checked=found.checked,
        responses=measured.responses,
    )
    return Outputs(people=trained, evaluation=measured, tournament=played, feedback=found.checked)
