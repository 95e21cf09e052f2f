"""The account of a run: its artifacts read back and told as a story and as flat metrics.

Nothing is trained or sampled here; every number is computed from records that anyone can read in
the store. Examples are the first ones in hash order, not chosen ones.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch
import yaml

from cai import chapters
from cai.artifacts import Artifact
from cai.config import Config, RLAIFConfig
from cai.context import RunContext, versions
from cai.job import Job
from cai.models import dtype_of
from cai.phases import rlaif, sl_cai
from cai.statistics import Estimate
from cai.story import (
    Headline,
    RunStory,
    StageStory,
)
from cai.tracking import config_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a run has to say, for people, for scripts and for the mirror."""

    story: RunStory
    metrics: dict[str, float]
    """Flat `group/name`; an interval's ends are `<name>_low` and `<name>_high`."""
    objective: float | None
    """What a sweeper may maximise: the final policy's likelihood accuracy on principle tests."""
    sample_columns: tuple[str, ...]
    sample_rows: list[list[object]]
    adapters: list[Artifact]


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes (GPU memory not included)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tell(
    config: Config,
    job: Job,
    context: RunContext,
    outputs: sl_cai.Outputs | rlaif.Outputs,
    *,
    started: str,
    seconds: float,
) -> Account:
    """Read a run's artifacts back and tell what happened."""
    records = chapters.read(outputs)
    bootstrap = chapters.Bootstrap(num=config.evaluation.num_bootstrap, seed=context.seed)
    evaluation = chapters.evaluation_story(records, bootstrap)
    counts = {result.name: result.counts for result in context.results}
    story = RunStory(
        headline=_headline(config, job, context, started=started, seconds=seconds),
        warnings=_warnings(config, context, records),
        can_show=_can_show(outputs),
        cannot_show=_cannot_show(config),
        limits=LIMITS,
        constitution=chapters.constitution_story(context.constitution, records),
        revisions=chapters.revisions_story(records.chains),
        sl_policy=chapters.sl_policy_story(outputs.trained.sl_policy, counts["sl_policy"]),
        feedback=chapters.feedback_story(records),
        preference_model=chapters.preference_story(outputs, records, counts),
        ppo=chapters.ppo_story(config, outputs, counts),
        examples=chapters.examples(records.evaluated),
        evaluation=evaluation,
        stages=tuple(
            StageStory(
                name=result.name,
                status=str(result.status),
                seconds=result.seconds,
                num_records=next(iter(result.counts.values()), None),
                digest=result.artifact.digest[:16],
            )
            for result in context.results
        ),
        config_text=yaml.safe_dump(config_record(config), sort_keys=False),
    )
    metrics = _metrics(story, records)
    policies = list(records.likelihoods)
    adapters = [outputs.trained.sl_policy]
    if isinstance(outputs, rlaif.Outputs):
        adapters += [outputs.preference_model, outputs.policy]
    return Account(
        story=story,
        metrics=metrics,
        objective=metrics.get(f"eval/{policies[-1]}/likelihood_accuracy"),
        sample_columns=("prompt_id", "kind", "prompt", "policy", "response", "score", "refusal"),
        sample_rows=[
            [
                e.response.prompt.id,
                str(e.response.prompt.kind),
                e.response.prompt.messages[-1].content,
                e.response.policy,
                e.response.sample.text,
                "" if e.score is None else f"{e.score:.3f}",
                e.refusal,
            ]
            for e in records.evaluated
        ],
        adapters=adapters,
    )


def _headline(
    config: Config, job: Job, context: RunContext, *, started: str, seconds: float
) -> Headline:
    models = {"policy": config.model.name}
    for name, model in config.phase.critique_models.items():
        models[f"critique model ({name})"] = model.name
    if isinstance(config.phase, RLAIFConfig):
        models["feedback model"] = config.phase.feedback_model.name
    precision = str(dtype_of(context.hardware)).removeprefix("torch.")
    return Headline(
        phase=config.phase.name,
        constitution=context.constitution.name,
        models=models,
        seed=config.seed,
        command=job.command,
        started=started,
        seconds=seconds,
        peak_memory_bytes=peak_memory(),
        hardware=f"{config.hardware.name}, {torch.get_num_threads()} threads, {precision}",
        versions=versions(),
        run_dir=job.run_dir,
    )


LIMITS = (
    "Refusals are explicit ones, found by rules on wording: answers that lecture or evade without "
    "declining are not counted, and nothing is said about quality.",
    "Preference-model scores of policies come from the model that PPO was trained against: they "
    "show that training worked, not that the policy is better.",
    "The likelihood test asks which of two given responses a policy finds likelier; it says "
    "nothing about what the policy writes by itself.",
    "Intervals count steps of one chain, pairs of one prompt and tests of one principle as if they "
    "were independent, so they are somewhat narrow, and they do not cover other seeds; compare "
    "several seeds before believing a difference.",
)


def _can_show(outputs: sl_cai.Outputs | rlaif.Outputs) -> tuple[str, ...]:
    found = [
        "That every step ran, with its texts, draws, labels and log-probabilities kept.",
        "What changed between the policies on held-out prompts.",
    ]
    if isinstance(outputs, rlaif.Outputs):
        found.insert(
            1,
            "How good the feedback model's labels are, on pairs whose better side the "
            "constitution's authors gave.",
        )
    return tuple(found)


def _warnings(config: Config, context: RunContext, records: chapters.Records) -> tuple[str, ...]:
    """What a reader should know that no single number says."""
    found = []
    roles = {f"critique model ({k})": m for k, m in config.phase.critique_models.items()}
    if isinstance(config.phase, RLAIFConfig):
        roles["feedback model"] = config.phase.feedback_model
    others = [f"{role} {m.name}" for role, m in roles.items() if m.name != config.model.name]
    if others:
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
    empty = sum(not e.response.sample.text for e in records.evaluated)
    if empty:
        found.append(
            f"{empty} of {len(records.evaluated)} evaluation responses are empty; they count as no "
            "refusal and as 0 words."
        )
    return tuple(found)


def _cannot_show(config: Config) -> tuple[str, ...]:
    found = [
        "Effects as large as the paper's: it used 182,831 red-team prompts and a 52B model; this "
        f"run used {config.phase.prompts.num_red_team} and {config.model.name}.",
        "Whether people would prefer the result: no person judged anything here.",
    ]
    if config.data.human_comparisons.path is None and isinstance(config.phase, RLAIFConfig):
        found.append(
            "Whether helpfulness would survive longer training: no human helpfulness comparisons "
            "were mixed into the preference model (data.human_comparisons.path)."
        )
    return tuple(found)


def _metrics(story: RunStory, records: chapters.Records) -> dict[str, float]:
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

    if feedback := story.feedback:
        add("feedback/accuracy", feedback.accuracy)
        add("feedback/longer_wins", feedback.longer_wins)
        add("feedback/position_same_rate", feedback.same_position_rate)
        add("feedback/flip_rate", feedback.flip_rate)
        add("feedback/ece", feedback.calibration_error)
        add("feedback/brier", feedback.brier)
        add("feedback/num_pairs", len(records.checks))
        add("feedback/num_comparisons", feedback.num_comparisons)
        add("feedback/num_unjudged", sum(feedback.unjudged.values()))
    if model := story.preference_model:
        add("pm/accuracy", model.accuracy)
        add("pm/principle_test_accuracy", model.principle_tests)
        add("pm/calibration_error", model.calibration_error)
    for row in story.evaluation.rows if story.evaluation else ():
        group = f"eval/{row.policy}/{row.kind}"
        add(f"{group}/refusal_rate", row.refusal_rate)
        add(f"{group}/words", row.mean_words)
        add(f"{group}/score", row.mean_score)
        add(f"{group}/distinct_2", row.distinct_2)
        add(f"{group}/distinct_4", row.distinct_4)
        add(f"{group}/common_phrase_prompts", row.common_phrase_prompts)
    if story.evaluation and story.evaluation.likelihood_tests:
        for policy, estimate in story.evaluation.likelihood_tests.items():
            add(f"eval/{policy}/likelihood_accuracy", estimate)
    return metrics
