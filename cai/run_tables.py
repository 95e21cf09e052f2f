"""What of a run is worth reading row by row, for the mirror and `tables/`."""

from __future__ import annotations

from dataclasses import dataclass

from cai import chapters
from cai.attribution import AttributionStory
from cai.attribution_record import attribution_table
from cai.chapters import Outputs
from cai.chart_tables import KL_REWARD, RELIABILITY, kl_reward_rows, reliability_rows
from cai.compliance.mixture import COLUMNS, MixtureStory, mixture_table
from cai.elo.story import EloStory
from cai.elo.text import contest_table, elo_table
from cai.goodhart import GoodhartStory
from cai.goodhart_story import TABLE as GOODHART_TABLE
from cai.goodhart_story import goodhart_table
from cai.phases import rlaif, rlhf
from cai.story import FeedbackStory, RevisionsStory, RunStory

SAMPLE_COLUMNS = (
    "prompt_id", "kind", "prompt", "policy", "response", "score", "compliance", "main", "tags",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Plain cells for the mirror."""

    columns: tuple[str, ...]
    rows: list[list[object]]


def run_tables(story: RunStory, records: chapters.Records, outputs: Outputs) -> dict[str, Table]:
    """Every table of a run by its name; empty ones are left out."""
    return (
        _rows_of_records(records, story.attribution, story.elo)
        | _goodhart_table(story.goodhart)
        | _mixture_table(story.mixture)
        | _revision_tables(story.revisions)
        | _chart_tables(story.feedback, outputs)
    )


def _goodhart_table(goodhart: GoodhartStory | None) -> dict[str, Table]:
    if goodhart is None:
        return {}
    return {"goodhart": Table(columns=GOODHART_TABLE, rows=goodhart_table(goodhart))}


def _mixture_table(mixture: MixtureStory | None) -> dict[str, Table]:
    if mixture is None:
        return {}
    return {"compliance": Table(columns=COLUMNS, rows=mixture_table(mixture))}


def _revision_tables(revisions: RevisionsStory | None) -> dict[str, Table]:
    """Conflicts between principles, and the members of a vote."""
    satisfaction = revisions.satisfaction if revisions else None
    votes = revisions.votes if revisions else None
    found = {
        "revision_conflicts": Table(
            columns=("broken", "under", "times", "oscillations", "prompt", "before", "after"),
            rows=[
                [
                    pair.broken, pair.under, pair.num, pair.num_oscillations,
                    pair.example.prompt.messages[-1].content,
                    pair.example.before, pair.example.after,
                ]
                for pair in (satisfaction.conflicts if satisfaction else ())
            ],
        ),
        "revision_members": Table(
            columns=("member", "model", "system", "accepted", "proposed", "win_rate", "self_first"),
            rows=[
                [
                    one.name, one.model, one.system, one.num_accepted, one.num_proposed,
                    "" if one.wins is None else one.wins.value,
                    "" if one.own_votes is None else one.own_votes.value,
                ]
                for one in (votes.members if votes else ())
            ],
        ),
    }  # fmt: skip
    return {name: table for name, table in found.items() if table.rows}


def _chart_tables(feedback: FeedbackStory | None, outputs: Outputs) -> dict[str, Table]:
    """What wandb draws as charts of its own (`cai.wandb_charts`)."""
    found = {}
    if feedback is not None:
        rows = reliability_rows(feedback.measured.bins)
        found["reliability"] = Table(columns=RELIABILITY, rows=rows)
    if isinstance(outputs, rlaif.Outputs):
        found["kl_reward"] = Table(columns=KL_REWARD, rows=kl_reward_rows(outputs.policy))
    if isinstance(outputs, rlhf.Outputs):
        rows = kl_reward_rows(outputs.people.policy)
        found["kl_reward"] = Table(columns=KL_REWARD, rows=rows)
    return {name: table for name, table in found.items() if table.rows}


def _rows_of_records(
    records: chapters.Records, attribution: AttributionStory | None, elo: EloStory | None
) -> dict[str, Table]:
    """What is worth reading row by row."""
    samples = [
        [
            e.response.prompt.id,
            str(e.response.prompt.kind),
            e.response.prompt.messages[-1].content,
            e.response.policy,
            e.response.sample.text,
            "" if e.score is None else f"{e.score:.3f}",
            str(e.compliance.compliance),
            str(e.compliance.main),
            ", ".join(e.compliance.tags),
        ]
        for e in records.evaluated
    ]
    checks = [
        [
            check.name,
            ", ".join(check.comparison.principle_ids),
            check.comparison.prompt.messages[-1].content,
            check.comparison.response_a,
            check.comparison.response_b,
            "" if check.comparison.prob_a is None else f"{check.comparison.prob_a:.3f}",
            str(check.comparison.unjudged or ""),
        ]
        for check in records.checks
    ]
    predictions = [
        [
            pair.name,
            ", ".join(pair.principle_ids),
            f"{pair.prob_a:.3f}",
            f"{pair.predicted:.3f}",
            ", ".join(f"{score:.3f}" for score in pair.scores_a),
            ", ".join(f"{score:.3f}" for score in pair.scores_b),
        ]
        for pair in (*records.held_out, *records.pm_tests)
    ]
    found = {
        "samples": Table(
            columns=SAMPLE_COLUMNS,
            rows=samples,
        ),
        "predictions": Table(
            columns=("pair", "principle", "label", "predicted", "scores_a", "scores_b"),
            rows=predictions,
        ),
        "feedback_check": Table(
            columns=("pair", "principle", "prompt", "better", "worse", "p_better", "unjudged"),
            rows=checks,
        ),
    }
    if attribution is not None:
        columns, rows = attribution_table(attribution)
        found["attribution"] = Table(columns=columns, rows=rows)
    for name, table in (("elo", elo_table), ("win_rates", contest_table)) if elo else ():
        columns, rows = table(elo)
        found[name] = Table(columns=columns, rows=rows)
    return {name: table for name, table in found.items() if table.rows}
