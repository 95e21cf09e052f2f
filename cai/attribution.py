"""What each principle contributed to what was learned, and what became of it: numbers, by hand.

The training signal of a label is `w |2p - 1|`: p is the probability that it gives to one response,
w its weight. It is 0 for a label that says nothing (p = 0.5) and w for one without doubt; at an
untrained preference model, which gives 0.5 to every pair, it is twice the size of the gradient of
the pair's cross-entropy by the difference of scores. The share of a principle is its part of the
sum over everything that was learned from, so the shares of all principles and of people's
comparisons sum to 1.

A pair that was judged under n principles gives each of them 1/n of its weight, at the principle's
own label: two principles that contradict each other both count, although the label that they make
together says little. A preference model that reads the principle learns every label as a pair of
its own, and nothing is divided. Held-out pairs, unjudged ones and those that were too long for the
training count for nothing.

The effective number of principles is the exponential of the entropy of their shares: n where n
principles share the signal evenly, 1 where one has all of it.

A principle's score of a policy is how the run's own feedback prefers its responses to those of the
policy before, under that principle. The same feedback made the labels that the policy learned
from: the scores are circular, and show what the training did and not that it is good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai.statistics import Estimate, bootstrap_mean
from cai.types import PolicyComparison, PrincipleLabel, RevisionChain, Unjudged


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedLabel:
    """One label that something was trained on."""

    comparison: int | None
    """0-based row of the stage `comparisons`; None for a comparison by people."""
    principle_id: str | None
    prob_a: float
    weight: float
    """Of this label in its pair, and of the pair among those of its kind."""

    @property
    def signal(self) -> float:
        """How far the label is from saying nothing."""
        return self.weight * abs(2 * self.prob_a - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """How one policy's responses do against those of the policy before it."""

    before: str
    after: str
    num_prompts: int
    num_identical: int
    """Prompts that both answer with the same text: ties, worth 0.5."""
    num_unjudged: int
    mean: Estimate | None
    """Mean P(after preferred) over prompts and principles, bootstrapped over prompts."""
    by_principle: tuple[Estimate | None, ...]
    """The same under each principle, in the document's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleAttribution:
    """One principle's part."""

    id: str
    principle: str
    """Its sentence; empty where a document without principles has none."""
    share: float | None
    """Of the training signal; None where no label says anything."""
    num_comparisons: int
    """That were learned from."""
    num_critiques: int
    """Critique-revision steps under it."""
    num_accepted: int
    """Of these, revisions that were used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionStory:
    """The chapter on what each principle did."""

    learner: str
    """What learned the labels."""
    principles: tuple[PrincipleAttribution, ...]
    people_share: float | None
    """Of comparisons by people; None without any."""
    max_share: float | None
    """The largest share of a principle."""
    effective_principles: float | None
    num_comparisons: int
    """AI comparisons that were learned from."""
    scores: tuple[PolicyScore, ...]
    """Empty where they are not asked for."""


def share_of(labels: Sequence[LearnedLabel], principle_id: str | None) -> float | None:
    """A principle's share of the signal (None: that of people); None without any signal."""
    total = math.fsum(label.signal for label in labels)
    own = math.fsum(label.signal for label in labels if label.principle_id == principle_id)
    return own / total if total > 0 else None


def effective_number(shares: Sequence[float]) -> float | None:
    """Exponential of the entropy of shares, which need not sum to 1; None where all are 0."""
    total = math.fsum(shares)
    if total <= 0:
        return None
    kept = [share / total for share in shares if share > 0]
    return math.exp(-math.fsum(share * math.log(share) for share in kept))


def split_labels(
    comparison: int, labels: Sequence[PrincipleLabel], *, conditioned: bool
) -> list[LearnedLabel]:
    """A pair's labels as they were learned.

    Args:
        comparison: The pair's row.
        labels: One for each of its principles.
        conditioned: Every label is a pair of its own (`preference_model.condition=principle`).
    """
    parts = 1 if conditioned else len(labels)
    return [
        LearnedLabel(
            comparison=comparison,
            principle_id=label.principle_id,
            prob_a=label.prob_a,
            weight=label.weight / parts,
        )
        for label in labels
    ]


def principle_attribution(
    principle_id: str,
    sentence: str,
    labels: Sequence[LearnedLabel],
    chains: Sequence[RevisionChain],
) -> PrincipleAttribution:
    """One row of the account."""
    steps = [s for chain in chains for s in chain.steps if s.principle_id == principle_id]
    own = {label.comparison for label in labels if label.principle_id == principle_id}
    return PrincipleAttribution(
        id=principle_id,
        principle=sentence,
        share=share_of(labels, principle_id),
        num_comparisons=len(own),
        num_critiques=len(steps),
        num_accepted=sum(step.outcome.accepted for step in steps),
    )


def policy_scores(
    compared: Sequence[PolicyComparison],
    principle_ids: Sequence[str],
    *,
    num_bootstrap: int,
    seed: int,
) -> tuple[PolicyScore, ...]:
    """Every pair of policies, under each principle; response a is the later policy's."""
    groups: dict[tuple[str, str], list[PolicyComparison]] = {}
    for one in compared:
        groups.setdefault((one.before, one.after), []).append(one)
    return tuple(
        _policy_score(rows, principle_ids, num_bootstrap=num_bootstrap, seed=seed)
        for rows in groups.values()
    )


def _policy_score(
    rows: Sequence[PolicyComparison],
    principle_ids: Sequence[str],
    *,
    num_bootstrap: int,
    seed: int,
) -> PolicyScore:
    table = [probs for row in rows if (probs := after_preferred(row, principle_ids)) is not None]

    def mean(values: Sequence[float]) -> Estimate | None:
        return bootstrap_mean(values, num_resamples=num_bootstrap, seed=seed)

    identical = sum(row.comparison.unjudged is Unjudged.identical for row in rows)
    return PolicyScore(
        before=rows[0].before,
        after=rows[0].after,
        num_prompts=len(rows),
        num_identical=identical,
        num_unjudged=len(rows) - len(table),
        mean=mean([math.fsum(probs) / len(probs) for probs in table]),
        by_principle=tuple(
            mean([probs[column] for probs in table]) for column in range(len(principle_ids))
        ),
    )


def after_preferred(row: PolicyComparison, principle_ids: Sequence[str]) -> list[float] | None:
    """P(after preferred) under each principle; 0.5 for one and the same text, None unjudged."""
    if row.comparison.unjudged is Unjudged.identical:
        return [0.5] * len(principle_ids)
    if row.comparison.unjudged is not None:
        return None
    by_id = {label.principle_id: label.prob_a for label in row.comparison.labels}
    return [by_id[principle_id] for principle_id in principle_ids]
