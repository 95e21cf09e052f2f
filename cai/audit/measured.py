"""What the labels of one document, or of two, say: records turned into numbers with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cai.audit import diagnostics
from cai.audit.backfire import (
    Column,
    Effect,
    Step,
    effect,
    expected_labels,
    leave_one_out,
    refusing_side,
    steps,
)
from cai.audit.changes import Changes
from cai.audit.diagnostics import Bootstrap, Overlaps
from cai.audit.labels import Framing, PairLabels, label_matrix
from cai.audit_config import AuditConfig
from cai.constitution import Constitution, Principle
from cai.feedback.measures import Measures
from cai.feedback.measures import measure as measure_checks
from cai.statistics import Estimate, at_chance, proportion_difference, wilson_interval
from cai.types import FeedbackCheck

MIN_REFUSALS = 8
"""Pairs with one refusal below which a predicted change in refusals is a hint at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who labelled what; for people."""

    method: str
    judge: str
    pairs: str
    """Where the pairs are from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLabels:
    """Everything that one document's stages made."""

    constitution: Constitution
    principles: tuple[Principle, ...]
    """Those labelled under; without any, the question asked instead."""
    weights: tuple[float, ...]
    """How often each is drawn."""
    checks: tuple[FeedbackCheck, ...]
    """Its tests."""
    swapped: tuple[FeedbackCheck, ...]
    """The same tests, each under another principle; empty where there is no other."""
    pairs: tuple[PairLabels, ...]
    wordings: tuple[PairLabels, ...]
    """The first of the same pairs in other wordings; empty when those were not asked."""

    @property
    def ids(self) -> list[str]:
        """Of the principles, in order."""
        return [principle.id for principle in self.principles]

    def matrix(self) -> np.ndarray:
        """(pairs, principles)."""
        return label_matrix(self.pairs, self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleMeasures:
    """One principle; None where nothing was observed or asked."""

    id: str
    tests: Estimate | None
    """Accuracy on its own tests, each judged by feedback that did not learn from it."""
    relevance: Estimate | None
    decisiveness: Estimate | None
    order_consistency: Estimate | None
    """Pairs whose label is the same in both orders of presentation; None without positions."""
    paraphrase_consistency: Estimate | None
    negation_flip_rate: Estimate | None
    num_prompts: int
    """Prompts with a pair on which it has an opinion."""
    agreement: Estimate | None
    """With every other principle, over all pairs on which both have an opinion; an interval over
    pairs of labels, which are not independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictPair:
    """A pair of responses that two principles decide differently."""

    pair: str
    first: float
    """P(a preferred) under the first principle."""
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two principles that decide some pairs differently."""

    first: str
    second: str
    rate: Estimate
    agreement: Estimate | None
    pairs: tuple[ConflictPair, ...]
    """All of them, the clearest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstitutionMeasures:
    """The document as a whole."""

    coverage: Estimate | None
    conflict_rate: float | None
    effective_number: Estimate | None
    entropy: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The document without one principle."""

    principle_id: str
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEffect:
    """From the other version of the document to this one."""

    before: str
    whole: Effect
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measured part of an audit."""

    asked: Asked
    threshold: float
    num_judged: int
    """Labels given in the plain wording."""
    num_labels: int
    """Labels asked for."""
    feedback: Measures
    """On the document's tests."""
    swapped: Estimate | None
    """Accuracy on the same tests under principles that they do not test."""
    own_gain: Estimate | None
    """Accuracy under the tested principle minus that, over the tests judged both times: at 0 they
    are solved without reading the principle."""
    principles: tuple[PrincipleMeasures, ...]
    side_by_side: bool
    """Whether the method shows two responses in one question, so that orders can disagree."""
    conflicts: tuple[Conflict, ...]
    """The most frequent first."""
    conflict_shares: np.ndarray
    """(K, K): share of the pairs that two principles decide differently; NaN where none was judged
    under both."""
    whole: ConstitutionMeasures
    left_out: tuple[LeftOut, ...]
    """Those that move most first; empty for a document with fewer than two principles."""
    version: VersionEffect | None
    pairs: tuple[PairLabels, ...]
    warnings: tuple[str, ...]

    def pair(self, name: str) -> PairLabels:
        """A pair by its name."""
        return next(pair for pair in self.pairs if pair.name == name)


def measure(
    version: VersionLabels,
    *,
    before: VersionLabels | None,
    changes: Changes | None,
    asked: Asked,
    config: AuditConfig,
    seed: int,
) -> Measured:
    """All numbers of the measured part.

    Args:
        version: The document.
        before: The version it is compared with, on the same pairs.
        changes: From that version to the document; given with it.
        asked: For people.
        config: Threshold and resamples.
        seed: Of the resamples.
    """
    bootstrap = Bootstrap(num=config.num_bootstrap, seed=seed)
    labels = version.matrix()
    found = diagnostics.overlaps(labels, config.threshold)
    feedback = measure_checks(version.checks)
    judged = found.judged
    shares = np.where(judged > 0, found.conflicts / np.maximum(judged, 1), np.nan)
    whole = ConstitutionMeasures(
        coverage=diagnostics.coverage(
            labels, [pair.prompt.id for pair in version.pairs], config.threshold
        ),
        conflict_rate=diagnostics.conflict_rate(found, version.weights),
        effective_number=diagnostics.effective_number(labels, bootstrap),
        entropy=diagnostics.label_entropy(labels, bootstrap),
    )
    own_gain = _own_gain(version)
    principles = tuple(_principles(version, labels, found, config.threshold, bootstrap))
    return Measured(
        asked=asked,
        threshold=config.threshold,
        num_judged=int((~np.isnan(labels)).sum()),
        num_labels=labels.size,
        feedback=feedback,
        swapped=measure_checks(version.swapped).accuracy,
        own_gain=own_gain,
        principles=principles,
        side_by_side=any(a.flips is not None for pair in version.pairs for a in pair.answers),
        conflicts=_conflicts(version, labels, found, config.threshold),
        conflict_shares=shares,
        whole=whole,
        left_out=_left_out(version, labels, bootstrap),
        version=_version_effect(version, before, changes, bootstrap),
        pairs=version.pairs,
        warnings=(
            *_warnings(feedback, whole, principles, labels, config.threshold),
            *_swap_warnings(feedback, own_gain),
            *_refusal_warnings(version.pairs),
        ),
    )


def _principles(
    version: VersionLabels,
    labels: np.ndarray,
    found: Overlaps,
    threshold: float,
    bootstrap: Bootstrap,
) -> Iterator[PrincipleMeasures]:
    tested = {group.name: group.accuracy for group in measure_checks(version.checks).by_principle}
    heard = diagnostics.speaks(labels, threshold)
    for place, principle in enumerate(version.principles):
        others = np.arange(len(version.principles)) != place
        plain = labels[:, place]
        paraphrases = _wordings(version, principle.id, Framing.paraphrase)
        negations = _wordings(version, principle.id, Framing.negation)
        worded = plain[: len(paraphrases)]
        spoken = {version.pairs[row].prompt.id for row in np.flatnonzero(heard[:, place])}
        yield PrincipleMeasures(
            id=principle.id,
            tests=tested.get(principle.id),
            relevance=diagnostics.relevance(plain, threshold),
            decisiveness=diagnostics.decisiveness(plain, bootstrap),
            order_consistency=_order_consistency(version.pairs, principle.id),
            paraphrase_consistency=diagnostics.consistency(worded, paraphrases, threshold),
            negation_flip_rate=diagnostics.flip_rate(worded, negations, threshold),
            num_prompts=len(spoken),
            agreement=wilson_interval(
                int(found.same[place, others].sum()), int(found.speak[place, others].sum())
            ),
        )


def _wordings(version: VersionLabels, principle_id: str, framing: Framing) -> np.ndarray:
    """(pairs asked so, wordings) of one principle; NaN without a label."""
    if not version.wordings:
        return np.empty((0, 0))
    return np.array(
        [
            [
                np.nan if answer.prob_a is None else answer.prob_a
                for answer in pair.answers
                if answer.principle_id == principle_id and answer.framing is framing
            ]
            for pair in version.wordings
        ]
    )


def _order_consistency(pairs: Sequence[PairLabels], principle_id: str) -> Estimate | None:
    flips = [
        answer.flips
        for pair in pairs
        for answer in pair.answers
        if answer.principle_id == principle_id and answer.flips is not None
    ]
    return wilson_interval(len(flips) - sum(flips), len(flips))


def _conflicts(
    version: VersionLabels, labels: np.ndarray, found: Overlaps, threshold: float
) -> tuple[Conflict, ...]:
    heard = diagnostics.speaks(labels, threshold)
    conflicts = []
    for i in range(len(version.ids)):
        for j in range(i + 1, len(version.ids)):
            rate = found.conflict(i, j)
            if rate is None or rate.value == 0:
                continue
            opposite = (labels[:, i] - 0.5) * (labels[:, j] - 0.5) < 0
            rows = np.flatnonzero(heard[:, i] & heard[:, j] & opposite)
            clear = np.minimum(np.abs(labels[:, i] - 0.5), np.abs(labels[:, j] - 0.5))
            order = sorted(rows, key=lambda row: (-clear[row], row))
            conflicts.append(
                Conflict(
                    first=version.ids[i],
                    second=version.ids[j],
                    rate=rate,
                    agreement=found.agreement(i, j),
                    pairs=tuple(
                        ConflictPair(
                            pair=version.pairs[row].name,
                            first=float(labels[row, i]),
                            second=float(labels[row, j]),
                        )
                        for row in order
                    ),
                )
            )
    return tuple(sorted(conflicts, key=lambda c: (-c.rate.value, c.first, c.second)))


def _left_out(
    version: VersionLabels, labels: np.ndarray, bootstrap: Bootstrap
) -> tuple[LeftOut, ...]:
    if len(version.principles) < 2:
        return ()
    whole = expected_labels(labels, version.weights)
    found = [
        LeftOut(principle_id=name, effect=effect(version.pairs, whole, without, bootstrap))
        for name, without in zip(version.ids, leave_one_out(labels, version.weights), strict=True)
    ]
    return tuple(sorted(found, key=lambda one: _by_size(one.effect)))


def _by_size(one: Effect) -> tuple[float, float]:
    return -len(one.flips), -(one.mean_move.value if one.mean_move else 0.0)


def _version_effect(
    version: VersionLabels,
    before: VersionLabels | None,
    changes: Changes | None,
    bootstrap: Bootstrap,
) -> VersionEffect | None:
    if before is None or changes is None:
        return None
    new, old = _columns(version), _columns(before)
    found = steps(
        version.pairs,
        old,
        new,
        renamed=dict(changes.renamed),
        reworded={change.principle_id for change in changes.fields},
        bootstrap=bootstrap,
    )
    order = ("added", "removed", "reworded", "same")
    return VersionEffect(
        before=changes.before,
        whole=effect(
            version.pairs,
            expected_labels(before.matrix(), before.weights),
            expected_labels(version.matrix(), version.weights),
            bootstrap,
        ),
        steps=tuple(sorted(found, key=lambda s: (order.index(s.what), *_by_size(s.effect)))),
    )


def _columns(version: VersionLabels) -> list[Column]:
    labels = version.matrix()
    return [
        Column(id=name, labels=labels[:, place], weight=weight)
        for place, (name, weight) in enumerate(zip(version.ids, version.weights, strict=True))
    ]


def _warnings(
    feedback: Measures,
    whole: ConstitutionMeasures,
    principles: Sequence[PrincipleMeasures],
    labels: np.ndarray,
    threshold: float,
) -> Iterator[str]:
    """What makes the numbers say less than they seem to."""
    if feedback.accuracy is None:
        yield (
            "The document has no test, so nobody knows whether the feedback can apply its "
            "principles: what is measured is the feedback as much as the document."
        )
    elif at_chance(feedback.accuracy) or feedback.accuracy.value < 0.5:
        yield (
            f"The feedback is at chance on the document's own tests ({feedback.accuracy.format()})"
            ": its labels say little about the principles, and so does what is measured below."
        )
    num = whole.effective_number
    if num is not None and len(principles) > 2 and num.value < 0.25 * len(principles):
        yield (
            f"{len(principles)} principles label the pairs like {num.value:.1f}: either they say "
            "the same, or the feedback hardly reads which principle it is asked about."
        )
    flips = [p.negation_flip_rate.value for p in principles if p.negation_flip_rate]
    if flips and np.mean(flips) < 0.5:
        yield (
            f"Asked the opposite question, the feedback changes sides in only {np.mean(flips):.2f} "
            "of the cases: it judges the responses more than it reads the question."
        )
    silent = [p.id for p in principles if p.relevance and p.relevance.value == 0]
    if silent:
        yield (
            f"No label under {', '.join(silent)} is further than {threshold:g} from 1/2: on these "
            "prompts nothing is learned from it."
        )
    missing = float(np.isnan(labels).mean()) if labels.size else 0.0
    if missing > 0.25:
        yield f"{missing:.2f} of the labels are missing: the feedback could not judge these pairs."


def _own_gain(version: VersionLabels) -> Estimate | None:
    """Over the tests judged both times; no bootstrap, since equal outcomes would give width 0."""

    def right(checks: Sequence[FeedbackCheck]) -> dict[str, float]:
        judged = ((check.name, check.comparison.prob_a) for check in checks)
        return {name: float(np.sign(p - 0.5) + 1) / 2 for name, p in judged if p is not None}

    own, other = right(version.checks), right(version.swapped)
    both = [name for name in own if name in other]
    return proportion_difference(
        sum(own[name] for name in both), sum(other[name] for name in both), num=len(both)
    )


def _swap_warnings(feedback: Measures, own_gain: Estimate | None) -> Iterator[str]:
    """Tests that show no more than that one response is the better one by any principle."""
    if feedback.accuracy is None or own_gain is None or own_gain.low > 0:
        return
    yield (
        "The feedback solves the tests as well under a principle that they do not test: accuracy "
        f"under the tested one is higher by {own_gain.format()}. Its accuracy shows that it tells "
        "good responses from bad ones, not that it reads the principle."
    )


def _refusal_warnings(pairs: Sequence[PairLabels]) -> Iterator[str]:
    num = sum(refusing_side(pair) is not None for pair in pairs)
    if num == 0:
        yield (
            "In no pair does exactly one response refuse, so nothing can be predicted of refusals."
        )
    elif num < MIN_REFUSALS:
        yield (
            f"{num} of {len(pairs)} pairs have exactly one response that refuses: what is said of "
            "refusals rests on these alone."
        )
