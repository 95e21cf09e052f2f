"""The chapters of a run's account: records of the store turned into parts of a `RunStory`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cai import statistics
from cai.artifacts import Artifact
from cai.capability import CapabilityScore, capability_rows
from cai.collapse import ResponseLikelihood, collapse_rows, policy_texts
from cai.compliance.contrasts import over_refusals
from cai.compliance.rates import compliance_rates
from cai.config import Config, RLAIFConfig
from cai.constitution import Constitution, Principle
from cai.context import CURVE
from cai.critique_story import revisions_tail
from cai.evaluation import commonest_phrase, distinct_n
from cai.feedback import gate
from cai.feedback.attacks import AttackResult, measure_attacks
from cai.feedback.measures import count_unjudged, flip_rate, measure
from cai.phases import dpo, evaluate, rlaif, sl_cai
from cai.preference_measures import measure as measure_preference
from cai.stages.evaluation import PM_TESTS
from cai.stages.preference_model import VALIDATION
from cai.statistics import Estimate, bootstrap_mean, pair_accuracy, wilson_interval
from cai.story import (
    Change,
    ComparisonsStory,
    ConstitutionStory,
    Curve,
    EvaluationRow,
    EvaluationStory,
    FeedbackStory,
    PPOStory,
    PreferenceModelStory,
    PrincipleStory,
    RevisionsStory,
    SLPolicyStory,
    curve,
)
from cai.types import (
    AttackCheck,
    Comparison,
    ControlComparison,
    CritiqueControl,
    Evaluated,
    FeedbackCheck,
    LikelihoodTest,
    PreferencePrediction,
    PromptKind,
    RevisionChain,
    T,
)

NUM_CHAINS = 4
KINDS = tuple(PromptKind)

Compared = rlaif.Outputs | dpo.Outputs
"""What a phase with comparisons made."""
Outputs = sl_cai.Outputs | Compared | evaluate.Outputs
"""What a phase made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Everything that is read back; empty where the phase makes none."""

    chains: list[RevisionChain]
    evaluated: list[Evaluated]
    likelihoods: dict[str, list[LikelihoodTest]]
    base_likelihoods: dict[str, list[ResponseLikelihood]]
    capability: dict[str, list[CapabilityScore]]
    controls: list[CritiqueControl]
    control_comparisons: list[ControlComparison]
    checks: list[FeedbackCheck]
    comparisons: list[Comparison]
    held_out: list[PreferencePrediction]
    """Held-out comparisons under what learned the others."""
    pm_tests: list[PreferencePrediction]
    contrasts: list[Evaluated]
    """Responses to contrast pairs."""


def read(outputs: Outputs) -> Records:
    """Read back every record that a chapter needs, checking sha256s."""
    trained = None if isinstance(outputs, evaluate.Outputs) else outputs
    compared = outputs if isinstance(outputs, Compared) else None
    both = outputs if isinstance(outputs, rlaif.Outputs) else None
    controls = trained.controls if trained else None
    own = trained.evaluation if trained else None
    return Records(
        chains=trained.trained.revisions.records(RevisionChain) if trained else [],
        evaluated=trained.evaluation.evaluated.records(Evaluated) if trained else [],
        likelihoods=_by_policy(own.likelihoods, LikelihoodTest) if own else {},
        base_likelihoods=_by_policy(own.base_likelihoods, ResponseLikelihood) if own else {},
        capability=_by_policy(own.capability, CapabilityScore) if own else {},
        controls=controls.texts.records(CritiqueControl) if controls else [],
        control_comparisons=controls.comparisons.records(ControlComparison) if controls else [],
        checks=outputs.feedback.artifact.records(FeedbackCheck) if outputs.feedback else [],
        comparisons=compared.comparisons.records(Comparison) if compared else [],
        held_out=_learner(compared).records(PreferencePrediction, VALIDATION) if compared else [],
        pm_tests=both.evaluation.evaluated.records(PreferencePrediction, PM_TESTS) if both else [],
        contrasts=own.over_refusal.records(Evaluated) if own and own.over_refusal else [],
    )


def _by_policy(artifacts: Mapping[str, Artifact], kind: type[T]) -> dict[str, list[T]]:
    return {policy: artifact.records(kind) for policy, artifact in artifacts.items()}


def _learner(compared: Compared) -> Artifact:
    """What learned the comparisons and was measured on those held out."""
    if isinstance(compared, rlaif.Outputs):
        return compared.preference_model.artifact
    return compared.policy


def _mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None


def _decisiveness(prob: float) -> float:
    return abs(2 * prob - 1)


def constitution_story(document: Constitution, records: Records) -> ConstitutionStory:
    """Each principle: how often it was drawn, how sure its labels are, how its tests went."""
    judged = [c for c in records.comparisons if c.prob_a is not None]
    drawn: Sequence[Principle] = document.principles or (document.find("unguided"),)
    return ConstitutionStory(
        name=document.name,
        version=document.version,
        description=document.description,
        digest=document.digest,
        principles=tuple(_principle(p, records, judged) for p in drawn),
    )


def _principle(principle: Principle, records: Records, judged: list[Comparison]) -> PrincipleStory:
    steps = [s for c in records.chains for s in c.steps if s.principle_id == principle.id]
    own = [c for c in judged if principle.id in c.principle_ids]
    num_drawn = sum(principle.id in c.principle_ids for c in records.comparisons)
    decided = [_decisiveness(c.prob_a or 0.0) for c in own]
    checks = [
        c.comparison.prob_a for c in records.checks if principle.id in c.comparison.principle_ids
    ]
    return PrincipleStory(
        id=principle.id,
        principle=principle.principle,
        critique=principle.critique,
        revise=principle.revise,
        compare=principle.compare,
        scope=principle.scope,
        weight=principle.weight,
        source=principle.source,
        num_critiques=len(steps) if records.chains else None,
        num_comparisons=num_drawn if records.comparisons else None,
        revision_rate=wilson_interval(sum(s.outcome.accepted for s in steps), len(steps)),
        decisiveness=bootstrap_mean(decided, num_resamples=1000, seed=0),
        flip_rate=flip_rate(own),
        test_accuracy=pair_accuracy([p for p in checks if p is not None]),
    )


def revisions_story(chains: list[RevisionChain]) -> RevisionsStory:
    """Outcomes and lengths by step, and the first chains as examples."""
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
        tail=revisions_tail(chains),
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


def sl_policy_story(artifact: Artifact, counts: dict[str, int]) -> SLPolicyStory:
    """The fine-tune."""
    return SLPolicyStory(
        num_revisions=counts["revisions"],
        num_helpfulness=counts["helpfulness"],
        num_dropped=counts["dropped_too_long"],
        curves=_curves(
            artifact,
            ({"train/loss": "training"}, "SL-CAI loss", "nats per token", "Lower is better."),
        ),
    )


def feedback_story(config: Config, outputs: Outputs, records: Records) -> FeedbackStory | None:
    """The feedback on labelled pairs, and what its labels look like; None without any."""
    if outputs.feedback is None:
        return None
    labelled = outputs.feedback.labelled
    measured = measure(records.checks)
    return FeedbackStory(
        method=config.feedback.method,
        source=labelled.source,
        note=labelled.note,
        measured=measured,
        gates=()  # nothing is trained on its labels before phase 2
        if isinstance(outputs, sl_cai.Outputs)
        else gate.gates(config.feedback, measured),
        comparisons=_comparisons_story(records.comparisons)
        if isinstance(outputs, Compared)
        else None,
        attacks=_attacks(config, outputs),
    )


def _attacks(config: Config, outputs: Outputs) -> AttackResult | None:
    if not isinstance(outputs, evaluate.Outputs) or outputs.attacks is None:
        return None
    return measure_attacks(
        outputs.attacks.records(AttackCheck),
        num_bootstrap=config.evaluation.num_bootstrap,
        seed=config.seed,
    )


def _comparisons_story(comparisons: list[Comparison]) -> ComparisonsStory:
    return ComparisonsStory(
        num=len(comparisons),
        unjudged=count_unjudged(comparisons),
        flip_rate=flip_rate(comparisons),
        label_probabilities=tuple(c.prob_a for c in comparisons if c.prob_a is not None),
    )


def _sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


def preference_story(
    outputs: Outputs,
    records: Records,
    counts: dict[str, dict[str, int]],
    bootstrap: Bootstrap,
) -> PreferenceModelStory | None:
    """The preference model on held-out pairs and tests; None where there is none."""
    if not isinstance(outputs, rlaif.Outputs):
        return None
    model = outputs.preference_model
    several = model.config.num_members > 1
    return PreferenceModelStory(
        num_ai=counts["preference_model"]["ai"],
        num_human=counts["preference_model"]["human"],
        num_members=model.config.num_members,
        combine=model.config.combine,
        condition=model.config.condition,
        curves=_curves(
            model.artifact,
            (
                {"train/loss": "training"},
                "Preference-model loss",
                "nats per pair",
                "0.693 is what a model without an opinion gets."
                + (" The members one after the other." if several else ""),
            ),
        ),
        measured=measure_preference(
            records.held_out,
            records.pm_tests,
            combine=model.config.combine,
            num_bootstrap=bootstrap.num,
            seed=bootstrap.seed,
        ),
    )


def ppo_story(
    config: Config,
    outputs: Outputs,
    counts: dict[str, dict[str, int]],
) -> PPOStory | None:
    """PPO by round; None before phase 2."""
    if not isinstance(outputs, rlaif.Outputs) or not isinstance(config.phase, RLAIFConfig):
        return None
    ppo = config.phase.ppo
    return PPOStory(
        num_rounds=counts["policy"]["rounds"],
        num_rollouts=counts["policy"]["rollouts"],
        settings={
            "kl_coef": f"{ppo.kl_coef:g}",
            "kl_where": ppo.kl_where.value,
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
                    "objective/rlhf_reward": "score minus penalties",
                },
                "Reward",
                "SL-CAI standard deviations",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Intervals of means by resampling prompts."""

    num: int
    seed: int

    @property
    def settings(self) -> dict[str, int]:
        """As keywords of other functions that resample."""
        return {"num_resamples": self.num, "seed": self.seed}

    def mean(self, values: Sequence[float]) -> Estimate | None:
        """Mean of per-prompt values; None without any."""
        return bootstrap_mean(values, num_resamples=self.num, seed=self.seed)

    def difference(self, after: Sequence[float], before: Sequence[float]) -> Estimate | None:
        """Mean of after minus before, paired by prompt."""
        return statistics.paired_bootstrap_difference(
            after, before, num_resamples=self.num, seed=self.seed
        )


def evaluation_story(records: Records, bootstrap: Bootstrap) -> EvaluationStory:
    """Every policy on every kind of prompt, and what changed from the first to the last."""
    policies = list(records.likelihoods)
    rows = [
        _evaluation_row(policy, kind, group, bootstrap)
        for policy in policies
        for kind in KINDS
        if (group := _group(records.evaluated, policy, kind))
    ]
    first, last = policies[0], policies[-1]
    measures: dict[str, Callable[[Evaluated], float | None]] = {
        "words": lambda e: float(len(e.response.sample.text.split())),
    }
    scored = any(e.score is not None for e in records.evaluated)
    if scored:
        measures["preference-model score"] = lambda e: e.score
    changes = [
        Change(metric="refusal rate", kind=str(kind), before=first, after=last, estimate=estimate)
        for kind in KINDS
        if (before := _group(records.evaluated, first, kind))
        and (
            estimate := statistics.proportion_difference(
                sum(e.refusal for e in _group(records.evaluated, last, kind)),
                sum(e.refusal for e in before),
                num=len(before),
            )
        )
    ]
    changes += [
        Change(metric=name, kind=str(kind), before=first, after=last, estimate=estimate)
        for name, measure in measures.items()
        for kind in KINDS
        if (before := _group(records.evaluated, first, kind))
        and (
            estimate := _difference(
                measure, _group(records.evaluated, last, kind), before, bootstrap
            )
        )
    ]
    return EvaluationStory(
        rows=tuple(rows),
        changes=tuple(changes),
        collapse=collapse_rows(
            policy_texts(records.evaluated, records.base_likelihoods), **bootstrap.settings
        ),
        capability=capability_rows(records.capability, **bootstrap.settings),
        likelihood_tests={
            policy: estimate
            for policy, tests in records.likelihoods.items()
            if (estimate := _likelihood_accuracy(tests))
        },
        over_refusal=over_refusals(records.contrasts),
        note=""
        if scored
        else "Preference-model scores are not measured: this phase trains no preference model.",
    )


def _difference(
    measure: Callable[[Evaluated], float | None],
    after: Sequence[Evaluated],
    before: Sequence[Evaluated],
    bootstrap: Bootstrap,
) -> Estimate | None:
    """Over the prompts where both were measured."""
    values = [(measure(one), measure(other)) for one, other in zip(after, before, strict=True)]
    both = [(one, other) for one, other in values if one is not None and other is not None]
    return bootstrap.difference([one for one, _ in both], [other for _, other in both])


def _group(evaluated: list[Evaluated], policy: str, kind: PromptKind) -> list[Evaluated]:
    return [e for e in evaluated if e.response.policy == policy and e.response.prompt.kind is kind]


def _likelihood_accuracy(tests: Iterable[LikelihoodTest]) -> Estimate | None:
    return pair_accuracy([_sigmoid(test.better - test.worse) for test in tests])


def _evaluation_row(
    policy: str, kind: PromptKind, group: list[Evaluated], bootstrap: Bootstrap
) -> EvaluationRow:
    texts = [e.response.sample.text for e in group]
    phrase = commonest_phrase([[text] for text in texts])
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
        compliance=compliance_rates([e.compliance for e in group]),
    )
