"""The chapters of a run's account: records of the store turned into parts of a `RunStory`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cai import statistics
from cai.artifacts import Artifact
from cai.capability import CapabilityScore, capability_rows
from cai.collapse import ResponseLikelihood, collapse_rows, policy_texts
from cai.compliance.contrasts import over_refusals
from cai.compliance.rates import compliance_rates
from cai.config import Config
from cai.constitution import Constitution, Principle
from cai.context import CURVE
from cai.evaluation import commonest_phrase, distinct_n
from cai.feedback import gate
from cai.feedback.attacks import AttackResult, measure_attacks
from cai.feedback.measures import count_unjudged, flip_rate, measure
from cai.phases import critique_model, critique_rl, dpo, evaluate, rlaif, rlhf, sl_cai
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
    PreferenceModelStory,
    PrincipleStory,
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

PPO_STAGES = ("policy", "rlhf_policy", "direct_policy", "rl_critic")
KINDS = tuple(PromptKind)

Compared = rlaif.Outputs | dpo.Outputs
"""What a phase with comparisons made."""
Revised = sl_cai.Outputs | Compared | critique_rl.Outputs
"""What a phase that begins with phase 1 made."""
Outputs = Revised | rlhf.Outputs | evaluate.Outputs | critique_model.Outputs
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
    revised = outputs if isinstance(outputs, Revised) else None
    compared = outputs if isinstance(outputs, Compared) else None
    scored = outputs if isinstance(outputs, rlaif.Outputs | rlhf.Outputs) else None
    controls = revised.controls if revised else None
    untrained = evaluate.Outputs | critique_model.Outputs
    own = None if isinstance(outputs, untrained) else outputs.evaluation
    learner = _learner(outputs)
    return Records(
        chains=revised.trained.revisions.records(RevisionChain) if revised else [],
        evaluated=own.evaluated.records(Evaluated) if own else [],
        likelihoods=_by_policy(own.likelihoods, LikelihoodTest) if own else {},
        base_likelihoods=_by_policy(own.base_likelihoods, ResponseLikelihood) if own else {},
        capability=_by_policy(own.capability, CapabilityScore) if own else {},
        controls=controls.texts.records(CritiqueControl) if controls else [],
        control_comparisons=controls.comparisons.records(ControlComparison) if controls else [],
        checks=outputs.feedback.artifact.records(FeedbackCheck) if outputs.feedback else [],
        comparisons=compared.comparisons.records(Comparison) if compared else [],
        held_out=learner.records(PreferencePrediction, VALIDATION) if learner else [],
        pm_tests=scored.evaluation.evaluated.records(PreferencePrediction, PM_TESTS)
        if scored
        else [],
        contrasts=own.over_refusal.records(Evaluated) if own and own.over_refusal else [],
    )


def _by_policy(artifacts: Mapping[str, Artifact], kind: type[T]) -> dict[str, list[T]]:
    return {policy: artifact.records(kind) for policy, artifact in artifacts.items()}


def _learner(outputs: Outputs) -> Artifact | None:
    """What learned the comparisons and was measured on those held out."""
    match outputs:
        case rlaif.Outputs():
            return outputs.preference_model.artifact
        case rlhf.Outputs():
            return outputs.people.preference_model.artifact
        case dpo.Outputs():
            return outputs.policy
        case _:
            return None


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
        left_out=document.left_out,
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


def curves_of(
    artifact: Artifact, *specs: tuple[dict[str, str], str, str, str]
) -> tuple[Curve, ...]:
    """Charts of an artifact's curve: (metric to series name, title, y label, note) each."""
    rows = artifact.json(CURVE)
    x_label = "PPO round" if artifact.stage in PPO_STAGES else "optimizer step"
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
        curves=curves_of(
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
        if isinstance(outputs, sl_cai.Outputs | rlhf.Outputs)
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
    match outputs:
        case rlaif.Outputs():
            model = outputs.preference_model
        case rlhf.Outputs():
            model = outputs.people.preference_model
        case _:
            return None
    several = model.config.num_members > 1
    return PreferenceModelStory(
        labels="AI" if isinstance(outputs, rlaif.Outputs) else "human",
        num_ai=counts[model.artifact.stage]["ai"],
        num_human=counts[model.artifact.stage]["human"],
        num_members=model.config.num_members,
        combine=model.config.combine,
        condition=model.config.condition,
        curves=curves_of(
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
