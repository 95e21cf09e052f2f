"""The report's figures: which numbers of a story are drawn, and how a reader is to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cai.audit.measured import Measured
from cai.charts import (
    Chart,
    IntervalRow,
    SignedCell,
    calibration_chart,
    heat_map,
    histogram,
    interval_chart,
    line_chart,
    num_not_finite,
    overlay_chart,
    signed_map,
)
from cai.compare.chart import scatter_chart
from cai.compare.record import correlation_line
from cai.compare.story import CompareStory
from cai.elo.chart import pareto_chart
from cai.elo.story import EloStory
from cai.goodhart_story import goodhart_curves
from cai.matrix.seeded import Seeded
from cai.matrix.story import MatrixStory
from cai.story import (
    Curve,
    DPOStory,
    EvaluationStory,
    FeedbackStory,
    PreferenceModelStory,
    RunStory,
    label,
)

MAX_HEAT = 24
"""Principles that a heat map can show."""
MAX_ROWS = 24
"""Differences that a chart can show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its words."""

    title: str
    note: str
    chart: Chart | None
    num_left_out: int = 0
    """Values that are not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of each chapter."""

    audit: tuple[Figure, ...]
    people: tuple[Figure, ...]
    sl_policy: tuple[Figure, ...]
    feedback: tuple[Figure, ...]
    preference_model: tuple[Figure, ...]
    dpo: tuple[Figure, ...]
    critic: tuple[Figure, ...]
    ppo: tuple[Figure, ...]
    goodhart: tuple[Figure, ...]
    evaluation: tuple[Figure, ...]
    elo: tuple[Figure, ...]
    matrix: tuple[Figure, ...]
    differences: tuple[Figure, ...]
    overlaid: tuple[Figure, ...]
    scatter: tuple[Figure, ...]


def figures_of(story: RunStory) -> Figures:
    """Every figure that the story has numbers for."""
    feedback, model = story.feedback, story.preference_model
    measured = story.audit.measured if story.audit else None
    return Figures(
        audit=_audit_figures(measured) if measured else (),
        people=_curves(story.people.curves if story.people else (), "people"),
        sl_policy=_curves(story.sl_policy.curves if story.sl_policy else (), "sl"),
        feedback=_feedback_figures(feedback) if feedback else (),
        preference_model=_preference_figures(model) if model else (),
        dpo=_dpo_figures(story.dpo) if story.dpo else (),
        critic=_curves(story.critic_curves, "critic"),
        ppo=_curves(story.ppo.curves if story.ppo else (), "ppo"),
        goodhart=_curves(goodhart_curves(story.goodhart) if story.goodhart else (), "goodhart"),
        evaluation=_evaluation_figures(story.evaluation) if story.evaluation else (),
        elo=_elo_figures(story.elo) if story.elo else (),
        matrix=_matrix_figures(story.matrix) if story.matrix else (),
        differences=_difference_figures(story.comparison) if story.comparison else (),
        overlaid=_overlaid_figures(story.comparison) if story.comparison else (),
        scatter=_scatter_figures(story.comparison) if story.comparison else (),
    )


def _curves(curves: Sequence[Curve], prefix: str) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            title=curve.title,
            note=curve.note,
            chart=line_chart(curve, key=f"{prefix}-{i}"),
            num_left_out=num_not_finite(curve),
        )
        for i, curve in enumerate(curves)
    )


def _drawn(title: str, note: str, chart: Chart | None) -> tuple[Figure, ...]:
    return (Figure(title=title, note=note, chart=chart),) if chart else ()


def _feedback_figures(feedback: FeedbackStory) -> tuple[Figure, ...]:
    tested = [
        IntervalRow(name=group.name, estimate=group.accuracy)
        for group in feedback.measured.by_principle
        if group.accuracy is not None
    ]
    reliability = calibration_chart(
        feedback.measured.bins,
        key="feedback-bins",
        x_label="stated confidence",
        y_label="share correct",
    )
    labels = histogram(
        feedback.comparisons.label_probabilities if feedback.comparisons else (),
        key="feedback-labels",
        x_label="P(response a preferred)",
        y_label="comparisons",
    )
    by_principle = interval_chart(
        tested, key="feedback-principles", x_label="accuracy on its pairs", reference=0.5
    )
    return (
        *_drawn(
            "Reliability of the feedback",
            "On the dotted line, stated confidence is what comes true. Numbers are pairs per bin.",
            reliability,
        ),
        *_drawn(
            "Labels of the comparisons",
            "A heap at 0.5 means that the feedback model hardly tells the responses apart.",
            labels,
        ),
        *_drawn("Feedback accuracy by principle", "The dotted line is chance.", by_principle),
    )


def _preference_figures(model: PreferenceModelStory) -> tuple[Figure, ...]:
    reliability = calibration_chart(
        model.measured.bins,
        key="pm-bins",
        x_label="stated confidence",
        y_label="label of that side",
    )
    note = (
        "On the dotted line, the model's confidence in the response it prefers is what the soft "
        "labels give it. Held-out pairs; numbers are pairs per bin."
    )
    return (
        *_curves(model.curves, "pm"),
        *_drawn("Reliability of the preference model", note, reliability),
    )


def _dpo_figures(dpo: DPOStory) -> tuple[Figure, ...]:
    reliability = calibration_chart(
        dpo.measured.bins,
        key="dpo-bins",
        x_label="stated confidence",
        y_label="label of that side",
    )
    note = (
        "The logistic of the margin against what the soft labels give the side that is ahead. "
        "Held-out pairs; numbers are pairs per bin."
    )
    return (
        *_curves(dpo.curves, "dpo"),
        *_drawn("Reliability of the implicit rewards", note, reliability),
    )


def _audit_figures(measured: Measured) -> tuple[Figure, ...]:
    order = _conflicted_first(measured)[:MAX_HEAT]
    shares = measured.conflict_shares[np.ix_(order, order)]
    chart = heat_map(
        [measured.principles[place].id for place in order],
        shares.tolist(),
        key="audit-conflicts",
        told="Share of the pairs that two principles decide differently",
    )
    left_out = len(measured.principles) - len(order)
    note = (
        "Share of the pairs on which both principles have an opinion, for different responses. "
        "Columns have the numbers of the rows."
    )
    if left_out:
        note += f" The {left_out:,} principles with the fewest conflicts are left out."
    return _drawn("Conflicts between principles", note, chart)


def _conflicted_first(measured: Measured) -> list[int]:
    """Places of the principles, in their order unless they are too many to draw."""
    num = len(measured.principles)
    if num <= MAX_HEAT:
        return list(range(num))
    sums = np.nansum(measured.conflict_shares, axis=1)
    return sorted(range(num), key=lambda place: (-sums[place], place))


def _evaluation_figures(evaluation: EvaluationStory) -> tuple[Figure, ...]:
    rows = [
        IntervalRow(name=f"{label(row.kind)}: {label(row.policy)}", estimate=row.refusal_rate)
        for row in evaluation.rows
        if row.refusal_rate is not None
    ]
    chart = interval_chart(rows, key="refusals", x_label="refusal rate")
    return _drawn("Refusal rate by prompt kind and policy", "95 % intervals.", chart)


def _elo_figures(elo: EloStory) -> tuple[Figure, ...]:
    note = (
        "95 % intervals; up and to the right is better. Hollow: another policy is at least as good "
        "in both."
    )
    circular = " Circular: the judge supplied the training labels." if elo.supplied_labels else ""
    chart = pareto_chart(elo, key="elo-pareto")
    return _drawn("Helpfulness against harmlessness", note + circular, chart)


def _difference_figures(comparison: CompareStory) -> tuple[Figure, ...]:
    """Intervals of differences over seeds, a chart for each measure."""
    by_measure: dict[str, list[IntervalRow]] = {}
    several = len(comparison.groups) > 2
    for one in comparison.differences:
        if one.seeds is None:
            continue
        name, _, measure = one.metric.rpartition("/")
        shown = f"{_short(name)}, {one.group}" if several else _short(name)
        row = IntervalRow(name=shown, estimate=one.seeds.difference)
        by_measure.setdefault(measure, []).append(row)
    figures = (
        Figure(
            title=f"Differences over seeds: {label(measure)}",
            note="95 % intervals without correction; on the dotted line there is no difference.",
            chart=interval_chart(
                rows[:MAX_ROWS],
                key=f"differences-{place}",
                x_label=f"difference in {label(measure)}",
                reference=0,
                limits=None,
            ),
        )
        for place, (measure, rows) in enumerate(by_measure.items())
    )
    return tuple(figures)


def _short(name: str) -> str:
    return " ".join(label(part) for part in name.removeprefix("eval/").split("/"))


def _scatter_figures(comparison: CompareStory) -> tuple[Figure, ...]:
    scatter = comparison.scatter
    if scatter is None:
        return ()
    note = "Each point is a run with its own 95 % intervals, which other seeds are not in. "
    title = f"{_short(scatter.y_name)} against {_short(scatter.x_name)}"
    return _drawn(
        title, note + correlation_line(scatter), scatter_chart(scatter, key="compare-scatter")
    )


def _overlaid_figures(comparison: CompareStory) -> tuple[Figure, ...]:
    note = "Thin: each run. Thick: the mean of a group's runs."
    return tuple(
        Figure(
            title=curves.title,
            note=note if any(len(group.lines) > 1 for group in curves.groups) else "",
            chart=overlay_chart(curves, key=f"overlaid-{place}"),
        )
        for place, curves in enumerate(comparison.curves)
    )


def _matrix_figures(matrix: MatrixStory) -> tuple[Figure, ...]:
    names = matrix.names
    judged = [[_signed(matrix.cell(row, judge).effect) for judge in names] for row in names]
    tests = [
        [_signed(matrix.test_cell(row, judge).effect) for judge in matrix.tested] for row in names
    ]
    note = (
        "The cell less its column's mean. Coloured and starred where that is beyond the spread of "
        "seeds and prompts; framed where the judge's constitution is the policy's own. Columns "
        "have the numbers of the rows."
    )
    return (
        *_drawn(
            "Effect before each judge",
            note,
            signed_map(
                names,
                names,
                judged,
                key="matrix-judged",
                told="Effect of training under the row's constitution before the column's judge: "
                "P(preferred to the base) less the mean of the column",
            ),
        ),
        *_drawn(
            "Effect on each constitution's tests, nats per token",
            note,
            signed_map(
                names,
                matrix.tested,
                tests,
                key="matrix-tests",
                told="Effect of training under the row's constitution on the column's tests: nats "
                "per token that better responses gained on worse ones, less the mean of the column",
            ),
        ),
    )


def _signed(found: Seeded | None) -> SignedCell | None:
    return None if found is None else SignedCell(value=found.estimate.value, real=found.real)
