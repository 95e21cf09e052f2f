"""The account of a run: its artifacts read back and told as a story and as flat metrics.

Nothing is trained or sampled here; every number is computed from records that anyone can read in
the store. Examples are the first ones in hash order, not chosen ones.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from cai import chapters
from cai.artifacts import Artifact
from cai.attribution_record import attribution_metrics, attribution_record
from cai.attribution_story import attribution_story
from cai.capability_story import cost_metrics
from cai.chapters import Outputs
from cai.compliance.account import run_mixture
from cai.compliance.mixture import mixture_metrics
from cai.compliance.rates import rate_metrics
from cai.config import ComparedConfig, Config, EvaluateConfig, RLAIFConfig, SLCAIConfig
from cai.context import RunContext, versions
from cai.critic_chapters import critic_curves, direct_ppo, told_critic, told_reward
from cai.critic_story import critic_metrics, reward_metrics
from cai.critique_story import critique_metrics, critique_story, revisions_metrics
from cai.dpo_story import dpo_story
from cai.elo.account import elo_story
from cai.elo.text import elo_metrics
from cai.feedback import gate
from cai.feedback.attacks import attack_metrics
from cai.feedback.ensemble import label_notes
from cai.goodhart import GoodhartStory, Resampling, SnapshotScore
from cai.goodhart_story import goodhart_metrics, goodhart_story
from cai.job import Job
from cai.lineage import stage_stories
from cai.models import dtype_of
from cai.people_chapters import edge_story, listed, people_story
from cai.people_story import people_metrics
from cai.phases import critique_model, critique_rl, dpo, evaluate, hybrid, rlaif, rlhf
from cai.ppo_story import ppo_story
from cai.preference_measures import preference_metrics
from cai.revision_votes_story import votes_metrics
from cai.revisions_story import revisions_story
from cai.rlhf_config import RLHFConfig
from cai.roles import judge_name, name_of, roles, told_of
from cai.run_tables import Table, run_tables
from cai.samples import examples, num_left_out, training_samples
from cai.satisfaction_story import satisfaction_metrics
from cai.stages.preference_model import VALIDATION
from cai.statistics import Estimate
from cai.story import (
    FeedbackStory,
    Headline,
    PreferenceModelStory,
    RunStory,
)
from cai.tracking import config_record
from cai.types import PreferencePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a run has to say, for people, for scripts and for the mirror."""

    story: RunStory
    metrics: dict[str, float]
    """Flat `group/name`; an interval's ends are `<name>_low` and `<name>_high`."""
    objective: float | None
    """What a sweeper may maximise: the final policy's likelihood accuracy on principle tests, or
    the feedback's accuracy where there is no policy."""
    tables: dict[str, Table]
    attribution: dict[str, Any] | None
    """`attribution.json`; None where nothing learned from comparisons."""
    adapters: list[Artifact]
    files: dict[str, str]
    """Further files of the run folder, by name."""
    stop: str | None
    """Why a run that was told in full has failed all the same: a gate of a phase without training
    that `stop`s; a phase that trains is stopped before it does."""


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes (GPU memory not included)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tell(
    config: Config,
    job: Job,
    context: RunContext,
    outputs: Outputs,
    *,
    started: str,
    seconds: float,
) -> Account:
    """Read a run's artifacts back and tell what happened."""
    records = chapters.read(outputs)
    bootstrap = chapters.Bootstrap(num=config.evaluation.num_bootstrap, seed=context.seed)
    trained = outputs.trained if isinstance(outputs, chapters.Revised) else None
    feedback = chapters.feedback_story(config, outputs, records)
    counts = {result.name: result.counts for result in context.results}
    attribution = attribution_story(config, context, outputs, records, counts, bootstrap)
    preference = chapters.preference_story(outputs, records, counts, bootstrap)
    story = RunStory(
        headline=_headline(config, job, context, started=started, seconds=seconds),
        warnings=_warnings(config, context, records),
        can_show=_can_show(outputs),
        cannot_show=_cannot_show(config),
        limits=_limits(outputs),
        constitution=chapters.constitution_story(context.constitution, records),
        people=people_story(config, outputs, counts, bootstrap),
        edge=edge_story(job, outputs),
        revisions=revisions_story(config, trained, records.chains) if trained else None,
        critique=critique_story(
            records.controls,
            records.control_comparisons,
            judge=_judge(config),
            judge_accuracy=feedback.measured.accuracy if feedback else None,
            num_bootstrap=bootstrap.num,
            seed=bootstrap.seed,
        ),
        sl_policy=chapters.sl_policy_story(trained.sl_policy, counts["sl_policy"])
        if trained
        else None,
        feedback=feedback,
        preference_model=preference,
        dpo=dpo_story(config, outputs, records, counts, bootstrap),
        critic=told_critic(config, outputs, counts, bootstrap),
        critic_curves=critic_curves(outputs),
        reward=told_reward(config, outputs, bootstrap),
        ppo=ppo_story(config, outputs, counts) or direct_ppo(config, outputs, counts),
        goodhart=_goodhart(config, outputs, preference, bootstrap),
        attribution=attribution,
        examples=examples(records.evaluated),
        training=training_samples(records.chains, records.comparisons),
        num_left_out=num_left_out(records.evaluated, records.chains, records.comparisons),
        evaluation=chapters.evaluation_story(records, bootstrap) if records.likelihoods else None,
        mixture=run_mixture(
            config,
            context.constitution,
            chains=records.chains,
            labels=outputs.comparisons if isinstance(outputs, chapters.Compared) else None,
            comparisons=records.comparisons,
            checks=records.checks,
            evaluated=records.evaluated,
            mean=bootstrap.mean,
        ),
        elo=elo_story(config, context.constitution, outputs.tournament),
        stages=stage_stories(context.results),
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )
    metrics = _metrics(story)
    policies = list(records.likelihoods)
    target = f"eval/{policies[-1]}/likelihood_accuracy" if policies else "feedback/accuracy"
    if isinstance(outputs, critique_model.Outputs):
        target = "critic/vs_base"
    return Account(
        story=story,
        metrics=metrics,
        objective=metrics.get(target),
        tables=run_tables(story, records, outputs),
        attribution=attribution_record(
            attribution, context.constitution, document=config.constitution.document
        )
        if attribution
        else None,
        adapters=_adapters(outputs),
        files=listed(outputs),
        stop=gate.stop_message(feedback.gates, source=feedback.source)
        if feedback is not None
        else None,
    )


def _adapters(outputs: Outputs) -> list[Artifact]:
    """What was trained, in the order of the run."""
    found = []
    if isinstance(outputs, rlhf.Outputs | hybrid.Outputs):
        people = outputs.people
        found += [people.begun.adapter, people.preference_model.artifact, people.policy]
    if isinstance(outputs, chapters.Revised):
        found.append(outputs.trained.sl_policy)
    if isinstance(outputs, rlaif.Outputs):
        found.append(outputs.preference_model.artifact)
        if outputs.goodhart and outputs.goodhart.selected:
            found.append(outputs.goodhart.selected)
    if isinstance(outputs, chapters.Compared | critique_rl.Outputs):
        found.append(outputs.policy)
    if isinstance(outputs, critique_model.Outputs):
        found.append(outputs.critic)
    if isinstance(outputs, hybrid.Outputs) and outputs.edge.policy:
        found.append(outputs.edge.policy)
    return found


def _goodhart(
    config: Config,
    outputs: Outputs,
    preference: PreferenceModelStory | None,
    bootstrap: chapters.Bootstrap,
) -> GoodhartStory | None:
    """PPO's snapshots under both preference models; None where there is no gold one."""
    if not isinstance(outputs, rlaif.Outputs) or outputs.goodhart is None or preference is None:
        return None
    assert isinstance(config.phase, RLAIFConfig)
    gold = outputs.goodhart.gold
    return goodhart_story(
        outputs.goodhart.scores.records(SnapshotScore),
        gold.artifact.records(PreferencePrediction, VALIDATION),
        proxy_accuracy=preference.measured.accuracy,
        combine=gold.config.combine,
        select=config.phase.ppo.select,
        resampling=Resampling(num_resamples=bootstrap.num, seed=bootstrap.seed),
    )


def _headline(
    config: Config, job: Job, context: RunContext, *, started: str, seconds: float
) -> Headline:
    precision = str(dtype_of(context.hardware)).removeprefix("torch.")
    return Headline(
        phase=config.phase.name,
        constitution=context.constitution.name,
        models={role: told_of(asked) for role, asked in roles(config).items()},
        seed=config.seed,
        command=job.command,
        started=started,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        hardware=f"{config.hardware.name}, {torch.get_num_threads()} threads, {precision}",
        versions=versions(),
        run_dir=job.run_dir,
    )


def _roles(config: Config) -> dict[str, str]:
    """Every role, and the name of its model."""
    return {role: name_of(asked) for role, asked in roles(config).items()}


def _judge(config: Config) -> str:
    """The feedback's method and models."""
    return judge_name(config.feedback, config.phase.feedback_model)


TRAINING_LIMITS = (
    "Whether a response refuses, answers in part or complies is told by rules on wording, not by a "
    "person; nothing is said about whether what it gives is right, good or harmful.",
    "Tuned feedback is trained on the constitution's tests. Its own accuracy on them is held out "
    "by fold, but preference models and policies learn from labels of a probe that has seen all of "
    "them, so their results on principle tests are not quite those of unseen tests.",
    "The likelihood test asks which of two given responses a policy finds likelier; it says "
    "nothing about what the policy writes by itself.",
    "Intervals count steps of one chain, pairs of one prompt and tests of one principle as if they "
    "were independent, so they are somewhat narrow, and they do not cover other seeds; compare "
    "several seeds before believing a difference.",
)
PPO_LIMITS = (
    "Preference-model scores of policies come from the model that PPO was trained against: they "
    "show that training worked, not that the policy is better.",
)
DPO_LIMITS = (
    "DPO learns from pairs that the SL-CAI policy sampled beforehand: nothing that the trained "
    "policy writes by itself was ever compared, and it may move to texts of which no label speaks.",
    "Implicit rewards are the policy's own: that they agree with labels of held-out pairs shows "
    "that the labels were learned, not that the policy's responses are better.",
)
PEOPLE_LIMITS = (
    "People's labels are taken for the truth: nothing is known of how far their authors agree.",
    "The fine-tune is on the preferred responses of the comparisons, which are often not how the "
    "model would answer; what it learned from them and what PPO made of it are told apart only by "
    "comparing the policies.",
)
DIRECT_LIMITS = (
    "The policy was paid by the very feedback that judges it here, for every response: what that "
    "feedback cannot see or likes for no reason is learned with the rest.",
)
CRITIC_LIMITS = (
    "Whether a critique is valid and what its verdict is are told by rules on wording: a valid "
    "critique with the right verdict may name the wrong fault.",
    "Trusted critiques were written for this project by one author, and half of the responses are "
    "flawed: responses of a model are flawed in other ways and more often.",
    "Revisions are by the base: a critic can improve them only as far as the base follows it.",
)
FEEDBACK_LIMITS = (
    "The labels of the pairs are taken for the truth: people disagree about such pairs, and files "
    "of comparisons hold mistakes.",
    "Intervals count pairs as if they were independent; pairs that share a prompt or a principle "
    "are not, so the intervals are somewhat narrow.",
)


def _people_limits(outputs: rlhf.Outputs | hybrid.Outputs) -> tuple[str, ...]:
    return PEOPLE_LIMITS if outputs.people.begun.name == "sft" else PEOPLE_LIMITS[:1]


def _limits(outputs: Outputs) -> tuple[str, ...]:
    match outputs:
        case evaluate.Outputs():
            return FEEDBACK_LIMITS
        case rlhf.Outputs():
            return (TRAINING_LIMITS[0], *TRAINING_LIMITS[2:], *PPO_LIMITS, *_people_limits(outputs))
        case hybrid.Outputs():
            return TRAINING_LIMITS + PPO_LIMITS + _people_limits(outputs)
        case rlaif.Outputs():
            return TRAINING_LIMITS + PPO_LIMITS
        case dpo.Outputs():
            return TRAINING_LIMITS + DPO_LIMITS
        case critique_model.Outputs():
            return CRITIC_LIMITS
        case critique_rl.Outputs():
            return TRAINING_LIMITS + DIRECT_LIMITS
        case _:
            return TRAINING_LIMITS


def _can_show(outputs: Outputs) -> tuple[str, ...]:
    found = ["That every step ran, with its texts, draws, labels and log-probabilities kept."]
    if outputs.feedback is not None:
        found.append(f"How good the feedback's labels are, on {outputs.feedback.labelled.source}.")
    if not isinstance(outputs, evaluate.Outputs | critique_model.Outputs):
        found.append("What changed between the policies on held-out prompts.")
    return tuple(found)


def _warnings(config: Config, context: RunContext, records: chapters.Records) -> tuple[str, ...]:
    """What a reader should know that no single number says."""
    found = []
    others = [
        f"{role} {name}" for role, name in _roles(config).items() if name != config.model.name
    ]
    if others and not isinstance(config.phase, EvaluateConfig):
        found.append(
            f"The policy is {config.model.name}, but other roles are other models: "
            f"{', '.join(others)}. Name them with model@phase.<role>=..."
        )
    precision = str(dtype_of(context.hardware)).removeprefix("torch.")
    other = sorted(
        {
            result.name
            for result in context.results
            if result.artifact.manifest()["precision"] != precision
        }
    )
    if other:
        found.append(
            f"Stages reused from runs in another precision than {precision}: {', '.join(other)}. "
            "Another output_dir computes them again."
        )
    for result in context.results:
        found += label_notes(result.name, result.counts)
    empty = sum(not e.response.sample.text for e in records.evaluated)
    if empty:
        found.append(
            f"{empty} of {len(records.evaluated)} evaluation responses are empty; they count as a "
            "refusal, with the main class abstention, and as 0 words."
        )
    return tuple(found)


def _cannot_show(config: Config) -> tuple[str, ...]:
    if not isinstance(config.phase, SLCAIConfig | RLHFConfig):
        return (
            "Whether the feedback is as good on pairs of another kind, such as a policy's own "
            "samples, which are often more alike than these.",
            "What a policy would learn from its labels: nothing was trained.",
        )
    found = [
        "Effects as large as the paper's: it used 182,831 red-team prompts and a 52B model; this "
        f"run used {config.phase.prompts.num_red_team} and {config.model.name}.",
        "Whether people would prefer the result: no person judged a policy's response here.",
    ]
    if config.data.human_comparisons.path is None and isinstance(config.phase, ComparedConfig):
        found.append(
            "Whether helpfulness would survive longer training: no human helpfulness comparisons "
            "were mixed into the AI comparisons (data.human_comparisons.path)."
        )
    return tuple(found)


def _metrics(story: RunStory) -> dict[str, float]:
    """Flat numbers of the story."""
    metrics: dict[str, float] = {
        "run/seconds": story.headline.seconds,
        "run/peak_memory_bytes": float(story.headline.peak_memory_bytes or 0),
    }

    def add(name: str, value: Estimate | float | None) -> None:
        if isinstance(value, Estimate):
            metrics[name] = value.value
            metrics[f"{name}_low"], metrics[f"{name}_high"] = value.low, value.high
        elif value is not None:
            metrics[name] = float(value)

    for name, value in _feedback_metrics(story.feedback).items() if story.feedback else ():
        add(f"feedback/{name}", value)
    for name, value in people_metrics(story.people, story.edge):
        add(name, value)
    for name, value in critique_metrics(story.critique):
        add(name, value)
    if revisions := story.revisions:
        for name, value in revisions_metrics(revisions.outcomes, revisions.tail):
            add(name, value)
        for name, value in satisfaction_metrics(revisions.satisfaction):
            add(name, value)
        for name, value in votes_metrics(revisions.votes):
            add(name, value)
    if model := story.preference_model:
        for name, value in preference_metrics(model.measured, group="preference_model"):
            add(name, value)
    if direct := story.dpo:
        for name, value in preference_metrics(direct.measured, group="dpo"):
            add(name, value)
        add("dpo/margin", direct.margin)
        add("dpo/preferred_reward", direct.preferred_reward)
    for name, value in critic_metrics(story.critic):
        add(name, value)
    for name, value in reward_metrics(story.reward):
        add(name, value)
    for name, value in mixture_metrics(story.mixture):
        add(name, value)
    for name, value in goodhart_metrics(story.goodhart):
        add(name, value)
    for name, value in attribution_metrics(story.attribution):
        add(name, value)
    for name, value in elo_metrics(story.elo):
        add(name, value)
    for row in story.evaluation.rows if story.evaluation else ():
        group = f"eval/{row.policy}/{row.kind}"
        add(f"{group}/refusal_rate", row.refusal_rate)
        for name, rate in rate_metrics(row.compliance) if row.compliance else ():
            add(f"{group}/{name}", rate)
        add(f"{group}/words", row.mean_words)
        add(f"{group}/score", row.mean_score)
        add(f"{group}/distinct_2", row.distinct_2)
        add(f"{group}/distinct_4", row.distinct_4)
        add(f"{group}/common_phrase_prompts", row.common_phrase_prompts)
    for contrast in story.evaluation.over_refusal if story.evaluation else ():
        group = f"eval/{contrast.policy}/contrast"
        add(f"{group}/harmful_refusal_rate", contrast.harmful)
        add(f"{group}/over_refusal_rate", contrast.benign)
        add(f"{group}/discrimination", contrast.discrimination)
    if story.evaluation and story.evaluation.likelihood_tests:
        for policy, estimate in story.evaluation.likelihood_tests.items():
            add(f"eval/{policy}/likelihood_accuracy", estimate)
    if story.evaluation:
        for name, value in cost_metrics(story.evaluation).items():
            add(name, value)
    return metrics


def _feedback_metrics(feedback: FeedbackStory) -> dict[str, Estimate | float | None]:
    measured, compared = feedback.measured, feedback.comparisons
    found: dict[str, Estimate | float | None] = {
        "accuracy": measured.accuracy,
        "longer_wins": measured.longer_wins,
        "position_same_rate": measured.same_position_rate,
        "flip_rate": compared.flip_rate if compared else measured.flip_rate,
        "ece": measured.calibration_error,
        "brier": measured.brier,
        "kappa": measured.kappa,
        "num_pairs": measured.num_pairs,
        "num_unjudged": sum(measured.unjudged.values()),
    }
    found |= {f"unjudged/{reason}": num for reason, num in measured.unjudged.items()}
    found |= {f"principle/{group.name}/accuracy": group.accuracy for group in measured.by_principle}
    found |= {f"length/{group.name}/accuracy": group.accuracy for group in measured.by_length}
    found |= {f"member/{member.name}/accuracy": member.accuracy for member in measured.members}
    if feedback.attacks:
        found |= attack_metrics(feedback.attacks)
    if compared:
        found["num_comparisons"] = compared.num
        found["num_comparisons_unjudged"] = sum(compared.unjudged.values())
    return found
