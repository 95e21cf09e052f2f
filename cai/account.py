"""The account of a run: its artifacts read back and told as a story and as flat metrics.

Nothing is trained or sampled here; every number is computed from records that anyone can read in
the store. Examples are the first ones in hash order, not chosen ones.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import yaml

from cai import statistics
from cai.artifacts import Artifact
from cai.config import Config, RLAIFConfig
from cai.constitution import Constitution, Principle
from cai.context import CURVE, RunContext, versions
from cai.evaluation import commonest_phrase, distinct_n
from cai.feedback import same_position
from cai.job import Job
from cai.models import dtype_of
from cai.phases import rlaif, sl_cai
from cai.stages.evaluation import PM_TESTS
from cai.stages.training import VALIDATION
from cai.statistics import Estimate, bootstrap_mean, pair_accuracy, wilson_interval
from cai.story import (
    Answer,
    Change,
    ConstitutionStory,
    Curve,
    EvaluationRow,
    EvaluationStory,
    Example,
    FeedbackStory,
    Headline,
    PPOStory,
    PreferenceModelStory,
    PrincipleStory,
    RevisionsStory,
    RunStory,
    SLPolicyStory,
    StageStory,
    curve,
)
from cai.tracking import config_record
from cai.types import (
    Comparison,
    Evaluated,
    FeedbackCheck,
    LikelihoodTest,
    PromptKind,
    RevisionChain,
    RevisionOutcome,
    ScoredPair,
)

NUM_CHAINS = 4
NUM_EXAMPLES = {PromptKind.red_team: 3, PromptKind.helpfulness: 2, PromptKind.benign: 2}
KINDS = tuple(PromptKind)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Records:
    """Everything that is read back."""

    chains: list[RevisionChain]
    evaluated: list[Evaluated]
    likelihoods: dict[str, list[LikelihoodTest]]
    checks: list[FeedbackCheck]
    comparisons: list[Comparison]
    validation: list[ScoredPair]
    pm_tests: list[ScoredPair]


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
    records = _read(outputs)
    bootstrap = _Bootstrap(num=config.phase.evaluation.num_bootstrap, seed=context.seed)
    evaluation = _evaluation(records, bootstrap)
    counts = {result.name: result.counts for result in context.results}
    story = RunStory(
        headline=_headline(config, job, context, started=started, seconds=seconds),
        can_show=CAN_SHOW,
        cannot_show=_cannot_show(config),
        limits=LIMITS,
        constitution=_constitution(context.constitution, records),
        revisions=_revisions(records.chains),
        sl_policy=_sl_policy(outputs.trained.sl_policy, counts["sl_policy"]),
        feedback=_feedback(records),
        preference_model=_preference_model(outputs, records, counts),
        ppo=_ppo(config, outputs, counts),
        examples=_examples(records.evaluated),
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


def _read(outputs: sl_cai.Outputs | rlaif.Outputs) -> _Records:
    measured = outputs.evaluation
    both = outputs if isinstance(outputs, rlaif.Outputs) else None
    return _Records(
        chains=outputs.trained.revisions.records(RevisionChain),
        evaluated=measured.evaluated.records(Evaluated),
        likelihoods={
            policy: artifact.records(LikelihoodTest)
            for policy, artifact in measured.likelihoods.items()
        },
        checks=both.feedback_check.records(FeedbackCheck) if both else [],
        comparisons=both.comparisons.records(Comparison) if both else [],
        validation=both.preference_model.records(ScoredPair, VALIDATION) if both else [],
        pm_tests=measured.evaluated.records(ScoredPair, PM_TESTS) if both else [],
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


CAN_SHOW = (
    "That every step of the method ran, with its texts, draws, labels and log-probabilities kept.",
    "How good the feedback model's labels are, measured on pairs whose better side is known.",
    "What changed between the base, the SL-CAI policy and the RL-CAI policy on held-out prompts.",
)

LIMITS = (
    "Refusals are found by rules on wording; a rule sees no partial answers and no quality.",
    "Preference-model scores of policies come from the model that PPO was trained against: they "
    "show that training worked, not that the policy is better.",
    "The likelihood test asks which of two given responses a policy finds likelier; it says "
    "nothing about what the policy writes by itself.",
    "Intervals cover sampling of prompts only, not other seeds; compare several seeds before "
    "believing a difference.",
)


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


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None


def _decisiveness(prob: float) -> float:
    return abs(2 * prob - 1)


def _constitution(document: Constitution, records: _Records) -> ConstitutionStory:
    judged = [c for c in records.comparisons if c.prob_a is not None]
    total = sum(_decisiveness(c.prob_a or 0.0) for c in judged)
    drawn: Sequence[Principle] = document.principles or (document.find("unguided"),)
    return ConstitutionStory(
        name=document.name,
        version=document.version,
        description=document.description,
        principles=tuple(_principle(p, records, judged, total) for p in drawn),
    )


def _principle(
    principle: Principle, records: _Records, judged: list[Comparison], total: float
) -> PrincipleStory:
    steps = [s for c in records.chains for s in c.steps if s.principle_id == principle.id]
    own = [c for c in judged if c.principle_id == principle.id]
    decided = [_decisiveness(c.prob_a or 0.0) for c in own]
    checks = [c.comparison.prob_a for c in records.checks if c.principle_id == principle.id]
    return PrincipleStory(
        id=principle.id,
        principle=principle.principle,
        critique=principle.critique,
        revise=principle.revise,
        compare=principle.compare,
        scope=principle.scope,
        weight=principle.weight,
        source=principle.source,
        num_critiques=len(steps),
        num_comparisons=len(own) if records.comparisons else None,
        revision_rate=wilson_interval(
            sum(s.outcome is RevisionOutcome.revised for s in steps), len(steps)
        ),
        decisiveness=bootstrap_mean(decided, num_resamples=1000, seed=0),
        signal_share=sum(decided) / total if total else None,
        flip_rate=_flip_rate(own),
        test_accuracy=pair_accuracy([p for p in checks if p is not None]),
    )


def _flip_rate(comparisons: Iterable[Comparison]) -> Estimate | None:
    """Share of comparisons whose two orders prefer different responses."""
    same = [same for c in comparisons if (same := same_position(c)) is not None]
    return wilson_interval(sum(same), len(same))


def _revisions(chains: list[RevisionChain]) -> RevisionsStory:
    num_steps = max((len(chain.steps) for chain in chains), default=0)
    words = [_mean(len(chain.draft.text.split()) for chain in chains)]
    words += [
        _mean(len(chain.steps[step].response.split()) for chain in chains)
        for step in range(num_steps)
    ]
    return RevisionsStory(
        outcomes=tuple(
            dict(Counter(str(chain.steps[step].outcome) for chain in chains))
            for step in range(num_steps)
        ),
        mean_words=tuple(value or 0.0 for value in words),
        chains=tuple(chains[:NUM_CHAINS]),
    )


def _curves(artifact: Artifact, *specs: tuple[dict[str, str], str, str, str]) -> tuple[Curve, ...]:
    """Charts of an artifact's curve: (metric to series name, title, y label, note) each."""
    rows = artifact.json(CURVE)
    x_label = "PPO round" if artifact.stage == "policy" else "optimizer step"
    drawn = (
        curve(rows, keys, title=title, x_label=x_label, y_label=y_label, note=note)
        for keys, title, y_label, note in specs
    )
    return tuple(item for item in drawn if item is not None)


def _sl_policy(artifact: Artifact, counts: dict[str, int]) -> SLPolicyStory:
    return SLPolicyStory(
        num_revisions=counts["revisions"],
        num_helpfulness=counts["helpfulness"],
        num_dropped=counts["dropped_too_long"],
        curves=_curves(
            artifact,
            ({"train/loss": "training"}, "SL-CAI loss", "nats per token", "Lower is better."),
        ),
    )


def _longer_wins(longer: Iterable[bool | None]) -> Estimate | None:
    """What taking the longer response gets; equal lengths count half."""
    wins = [0.5 if flag is None else float(flag) for flag in longer]
    return wilson_interval(sum(wins), len(wins))


def _feedback(records: _Records) -> FeedbackStory | None:
    if not records.comparisons:
        return None
    checked = [c for c in records.checks if c.comparison.prob_a is not None]
    probs = [c.comparison.prob_a for c in checked if c.comparison.prob_a is not None]
    sides = statistics.preferred_side(probs)
    bins = statistics.calibration_bins(sides.confidence, sides.correct) if probs else ()
    same = [s for c in checked if (s := same_position(c.comparison)) is not None]
    return FeedbackStory(
        num_comparisons=len(records.comparisons),
        unjudged=dict(Counter(str(c.unjudged) for c in records.comparisons if c.unjudged)),
        accuracy=pair_accuracy(probs),
        longer_wins=_longer_wins(c.better_is_longer for c in checked),
        same_position_rate=wilson_interval(sum(same), len(same)),
        flip_rate=_flip_rate(records.comparisons),
        calibration_error=statistics.calibration_error(bins),
        brier=statistics.brier_score(sides.confidence, sides.correct),
        bins=tuple(bins),
        label_probabilities=tuple(c.prob_a for c in records.comparisons if c.prob_a is not None),
    )


def _sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


def _prob_preferred(pair: ScoredPair) -> float:
    """P(labelled side preferred) under the preference model: a logistic in the score difference."""
    difference = pair.score_a - pair.score_b
    return _sigmoid(difference if pair.prob_a > 0.5 else -difference)


def _preference_model(
    outputs: sl_cai.Outputs | rlaif.Outputs, records: _Records, counts: dict[str, dict[str, int]]
) -> PreferenceModelStory | None:
    if not isinstance(outputs, rlaif.Outputs):
        return None
    labelled = [pair for pair in records.validation if pair.prob_a != 0.5]
    probs = [_prob_preferred(pair) for pair in labelled]
    sides = statistics.preferred_side(probs)
    bins = statistics.calibration_bins(sides.confidence, sides.correct) if probs else ()
    return PreferenceModelStory(
        num_ai=counts["preference_model"]["ai"],
        num_human=counts["preference_model"]["human"],
        curves=_curves(
            outputs.preference_model,
            (
                {"train/loss": "training"},
                "Preference-model loss",
                "nats per pair",
                "0.693 is what a model without an opinion gets.",
            ),
        ),
        accuracy=pair_accuracy(probs),
        longer_wins=_longer_wins(
            None if pair.a_is_longer is None else pair.a_is_longer == (pair.prob_a > 0.5)
            for pair in labelled
        ),
        principle_tests=pair_accuracy([_prob_preferred(pair) for pair in records.pm_tests]),
        calibration_error=statistics.calibration_error(bins),
        bins=tuple(bins),
    )


def _ppo(
    config: Config,
    outputs: sl_cai.Outputs | rlaif.Outputs,
    counts: dict[str, dict[str, int]],
) -> PPOStory | None:
    if not isinstance(outputs, rlaif.Outputs) or not isinstance(config.phase, RLAIFConfig):
        return None
    ppo = config.phase.ppo
    return PPOStory(
        num_rounds=counts["policy"]["rounds"],
        num_rollouts=counts["policy"]["rollouts"],
        settings={
            "kl_coef": f"{ppo.kl_coef:g}",
            "clip_ratio": f"{ppo.clip_ratio:g}",
            "ppo_epochs": str(ppo.ppo_epochs),
            "learning_rate": f"{ppo.optimizer.learning_rate:g}",
            "temperature": f"{ppo.temperature:g}",
        },
        curves=_curves(
            outputs.policy,
            (
                {
                    "objective/scores": "score",
                    "objective/rlhf_reward": "score minus KL penalty",
                },
                "Reward",
                "standard deviations of SL-CAI scores",
                "Mean over the round's rollouts; 0 is the mean of SL-CAI samples.",
            ),
            (
                {"objective/kl": "KL to SL-CAI"},
                "KL to the SL-CAI policy",
                "nats per response",
                "Sum over tokens, mean over rollouts; sampled, so it can dip below 0.",
            ),
            ({"val/response_length": "length"}, "Response length", "tokens", ""),
            ({"objective/entropy": "entropy"}, "Entropy", "nats per token", ""),
            (
                {"policy/clipfrac_avg": "clipped", "val/eos_rate": "ended by the model"},
                "Clip fraction and responses ended",
                "share",
                "",
            ),
            (
                {"val/explained_variance": "explained variance"},
                "Explained variance of the value head",
                "share",
                "1 is perfect, 0 is no better than the mean.",
            ),
        ),
    )


def _examples(evaluated: list[Evaluated]) -> tuple[Example, ...]:
    examples = []
    for kind, num in NUM_EXAMPLES.items():
        ids = list(
            dict.fromkeys(e.response.prompt.id for e in evaluated if e.response.prompt.kind is kind)
        )[:num]
        for prompt_id in ids:
            rows = [e for e in evaluated if e.response.prompt.id == prompt_id]
            examples.append(
                Example(
                    prompt=rows[0].response.prompt,
                    answers=tuple(
                        Answer(
                            policy=row.response.policy,
                            text=row.response.sample.text,
                            score=row.score,
                            refusal=row.refusal,
                        )
                        for row in rows
                    ),
                )
            )
    return tuple(examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bootstrap:
    """Intervals of means by resampling prompts."""

    num: int
    seed: int

    def mean(self, values: Sequence[float]) -> Estimate | None:
        return bootstrap_mean(values, num_resamples=self.num, seed=self.seed)

    def difference(self, after: Sequence[float], before: Sequence[float]) -> Estimate | None:
        return statistics.paired_bootstrap_difference(
            after, before, num_resamples=self.num, seed=self.seed
        )


def _evaluation(records: _Records, bootstrap: _Bootstrap) -> EvaluationStory:
    policies = list(records.likelihoods)
    rows = [
        _evaluation_row(policy, kind, group, bootstrap)
        for policy in policies
        for kind in KINDS
        if (group := _group(records.evaluated, policy, kind))
    ]
    first, last = policies[0], policies[-1]
    measures: dict[str, Callable[[Evaluated], float]] = {
        "refusal rate": lambda e: float(e.refusal),
        "words": lambda e: float(len(e.response.sample.text.split())),
    }
    if records.pm_tests:
        measures["preference-model score"] = lambda e: e.score or 0.0
    changes = [
        Change(metric=name, kind=str(kind), before=first, after=last, estimate=estimate)
        for name, measure in measures.items()
        for kind in KINDS
        if (before := _group(records.evaluated, first, kind))
        and (
            estimate := bootstrap.difference(
                [measure(e) for e in _group(records.evaluated, last, kind)],
                [measure(e) for e in before],
            )
        )
    ]
    return EvaluationStory(
        rows=tuple(rows),
        changes=tuple(changes),
        likelihood_tests={
            policy: estimate
            for policy, tests in records.likelihoods.items()
            if (estimate := _likelihood_accuracy(tests))
        },
    )


def _group(evaluated: list[Evaluated], policy: str, kind: PromptKind) -> list[Evaluated]:
    return [e for e in evaluated if e.response.policy == policy and e.response.prompt.kind is kind]


def _likelihood_accuracy(tests: Iterable[LikelihoodTest]) -> Estimate | None:
    return pair_accuracy([_sigmoid(test.better - test.worse) for test in tests])


def _evaluation_row(
    policy: str, kind: PromptKind, group: list[Evaluated], bootstrap: _Bootstrap
) -> EvaluationRow:
    texts = [e.response.sample.text for e in group]
    phrase = commonest_phrase(texts)
    return EvaluationRow(
        policy=policy,
        kind=str(kind),
        refusal_rate=wilson_interval(sum(e.refusal for e in group), len(group)),
        mean_words=bootstrap.mean([float(len(text.split())) for text in texts]),
        mean_score=bootstrap.mean([e.score for e in group if e.score is not None]),
        distinct_2=distinct_n(texts, 2),
        distinct_4=distinct_n(texts, 4),
        common_phrase=phrase.text if phrase else "",
        common_phrase_prompts=phrase.num_prompts if phrase else 0,
    )


def _metrics(story: RunStory, records: _Records) -> dict[str, float]:
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
