r"""What a change of the document does to the labels, before anything is trained on them.

A pair in training is labelled under principles drawn with weights w, so over the draws its expected
label is

    E = sum_i w_i p_i / sum_i w_i

over the principles that judged it. Leaving one out, adding one or rewording one changes E without
asking anything again, given labels under every principle. A pair flips when E changes its side of
1/2. These are predictions from labels, not from training: a preference model smooths over pairs, a
policy moves to texts that are not among them, and feedback that is trained on the document's tests
is trained anew with every document.

Refusals: of the pairs of which exactly one response declines (rules of `cai.evaluation`), the mean
expected label for that response. Above 1/2 the labels teach to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai.audit.diagnostics import Bootstrap
from cai.audit.labels import PairLabels
from cai.compliance.classify import refuses
from cai.statistics import Estimate, wilson_interval


def expected_labels(labels: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """E (N,) of labels (N, K) under drawing weights (K,); NaN where no principle has a label."""
    judged = ~np.isnan(labels)
    drawn = judged * np.asarray(weights, dtype=np.float64)
    total = drawn.sum(1)
    summed = (np.nan_to_num(labels) * drawn).sum(1)
    return np.divide(summed, total, out=np.full(len(labels), np.nan), where=total > 0)


def leave_one_out(labels: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """E (K, N) without each principle in turn; NaN for a pair that no other principle judged."""
    rows = []
    for place in range(labels.shape[1]):
        kept = np.array(weights, dtype=np.float64)
        kept[place] = 0.0
        rows.append(expected_labels(labels, kept.tolist()))
    return np.stack(rows) if rows else np.empty((0, len(labels)))


def flipped(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N,) bool: which expected labels changed sides; a tie before or after is no side."""
    moved = (np.nan_to_num(before, nan=0.5) - 0.5) * (np.nan_to_num(after, nan=0.5) - 0.5)
    return moved < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A pair whose expected label changes sides."""

    pair: str
    before: float
    """Expected P(a preferred)."""
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryEffect:
    """A change on the pairs of one kind of prompt."""

    kind: str
    category: str
    num: int
    num_flips: int
    mean_move: float
    """Mean |after - before|."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalEffect:
    """A change on the pairs of which exactly one response refuses."""

    before: Estimate | None
    """Mean expected label for the refusing response; None when there is no such pair."""
    after: Estimate | None
    change: Estimate | None
    """Paired over pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a change of the document does to the expected labels of the sampled pairs."""

    num: int
    """Pairs with a label before and after."""
    flip_rate: Estimate | None
    flips: tuple[Flip, ...]
    mean_move: Estimate | None
    """Mean |after - before|."""
    categories: tuple[CategoryEffect, ...]
    refusals: RefusalEffect


def effect(
    pairs: Sequence[PairLabels], before: np.ndarray, after: np.ndarray, bootstrap: Bootstrap
) -> Effect:
    """Compare expected labels (N,) of the same pairs."""
    kept = np.flatnonzero(~np.isnan(before) & ~np.isnan(after))
    turned = flipped(before, after)
    moves = np.abs(after - before)
    return Effect(
        num=len(kept),
        flip_rate=wilson_interval(int(turned[kept].sum()), len(kept)),
        flips=tuple(
            Flip(pair=pairs[i].name, before=float(before[i]), after=float(after[i]))
            for i in kept
            if turned[i]
        ),
        mean_move=bootstrap.mean(moves[kept].tolist()),
        categories=_categories(pairs, kept, turned, moves),
        refusals=_refusals(pairs, before, after, kept, bootstrap),
    )


def _categories(
    pairs: Sequence[PairLabels], kept: np.ndarray, turned: np.ndarray, moves: np.ndarray
) -> tuple[CategoryEffect, ...]:
    """Those that move most first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in kept:
        prompt = pairs[i].prompt
        groups.setdefault((str(prompt.kind), prompt.category), []).append(i)
    found = [
        CategoryEffect(
            kind=kind,
            category=category,
            num=len(rows),
            num_flips=int(turned[rows].sum()),
            mean_move=float(moves[rows].mean()),
        )
        for (kind, category), rows in groups.items()
    ]
    return tuple(sorted(found, key=lambda c: (-c.num_flips, -c.mean_move, c.kind, c.category)))


def refusing_side(pair: PairLabels) -> str | None:
    """`a` or `b` where exactly one response refuses, otherwise None."""
    declined = refuses(pair.prompt, pair.response_a), refuses(pair.prompt, pair.response_b)
    if declined[0] == declined[1]:
        return None
    return "a" if declined[0] else "b"


def _refusals(
    pairs: Sequence[PairLabels],
    before: np.ndarray,
    after: np.ndarray,
    kept: np.ndarray,
    bootstrap: Bootstrap,
) -> RefusalEffect:
    one, other = [], []
    for i in kept:
        side = refusing_side(pairs[i])
        if side is not None:
            one.append(float(before[i] if side == "a" else 1 - before[i]))
            other.append(float(after[i] if side == "a" else 1 - after[i]))
    return RefusalEffect(
        before=bootstrap.mean(one),
        after=bootstrap.mean(other),
        change=bootstrap.mean([new - old for old, new in zip(one, other, strict=True)]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One principle of one version: its labels and how often it is drawn."""

    id: str
    labels: np.ndarray
    """(N,)."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One principle's part of the way from one version to the other."""

    principle_id: str
    old_id: str | None
    """Its id in the version before; None for an added one."""
    what: str
    """`added`, `removed`, `reworded` or `same`."""
    own_flips: int | None
    """Pairs whose label under this principle alone changes sides; None when it is in one version
    only."""
    effect: Effect
    """On the expected label, everything else left as it was before."""


def steps(
    pairs: Sequence[PairLabels],
    before: Sequence[Column],
    after: Sequence[Column],
    *,
    renamed: dict[str, str],
    reworded: set[str],
    bootstrap: Bootstrap,
) -> tuple[Step, ...]:
    """Each principle's change made alone, from the version before.

    Args:
        pairs: Those labelled.
        before: Principles of the version before, in order.
        after: Principles of the new version.
        renamed: New id to old id.
        reworded: New ids of the principles of which any text or the weight is different.
        bootstrap: For intervals.
    """
    start = _expected(pairs, before)
    old = {column.id: column for column in before}
    matched = {renamed.get(column.id, column.id) for column in after} & set(old)
    found = []
    for new in after:
        old_id = renamed.get(new.id, new.id)
        if old_id in old:
            mixed = [new if column.id == old_id else column for column in before]
            what = "reworded" if new.id in reworded else "same"
            turned = int(flipped(old[old_id].labels, new.labels).sum())
        else:
            mixed, what, turned = [*before, new], "added", None
        found.append(
            Step(
                principle_id=new.id,
                old_id=old_id if old_id in old else None,
                what=what,
                own_flips=turned,
                effect=effect(pairs, start, _expected(pairs, mixed), bootstrap),
            )
        )
    for gone in before:
        if gone.id not in matched:
            rest = [column for column in before if column.id != gone.id]
            found.append(
                Step(
                    principle_id=gone.id,
                    old_id=gone.id,
                    what="removed",
                    own_flips=None,
                    effect=effect(pairs, start, _expected(pairs, rest), bootstrap),
                )
            )
    return tuple(found)


def _expected(pairs: Sequence[PairLabels], columns: Sequence[Column]) -> np.ndarray:
    if not columns:
        return np.full(len(pairs), np.nan)
    labels = np.stack([column.labels for column in columns], axis=1)
    return expected_labels(labels, [column.weight for column in columns])
