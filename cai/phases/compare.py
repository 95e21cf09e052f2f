"""Finished runs side by side: groups of equal settings, their metrics, and what really differs."""

from __future__ import annotations

from dataclasses import dataclass

from cai.compare.curves import overlaid
from cai.compare.differences import Resampling, differences, metric_rows
from cai.compare.groups import RunGroup, differing, group_runs
from cai.compare.matrices import steering_matrices
from cai.compare.responses import Responses, responses_of
from cai.compare.runs import Found, Run
from cai.compare.scatter import scatter, with_final
from cai.compare.story import CompareStory, GroupRow, RunRow
from cai.config import CompareConfig
from cai.statistics import MIN_SEEDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What is compared."""

    found: Found
    seed: int
    """Of the resampling."""


def run(config: CompareConfig, inputs: Inputs) -> CompareStory:
    """Group the runs, test their metrics and overlay their curves."""
    runs = with_final(inputs.found.runs)
    groups = group_runs(runs)
    responses = {id(one): responses_of(one) for one in runs}
    rows = metric_rows(groups, config.metrics)
    tested = differences(
        groups,
        rows,
        responses,
        resampling=Resampling(num=config.num_resamples, seed=inputs.seed),
    )
    return CompareStory(
        groups=tuple(GroupRow(name=one.name, seeds=tuple(one.runs)) for one in groups),
        runs=tuple(_run_rows(groups)),
        left_out=tuple(inputs.found.left_out),
        notes=(*inputs.found.notes, *_notes(groups, responses)),
        settings=differing(groups),
        metrics=rows,
        differences=tested,
        scatter=scatter(groups, config.scatter),
        curves=overlaid(groups),
        matrices=tuple(matrix for one in runs for matrix in steering_matrices(one)),
    )


def _run_rows(groups: list[RunGroup]) -> list[RunRow]:
    return [
        RunRow(
            folder=str(run.folder),
            group=group.name,
            seed=seed,
            phase=run.phase,
            constitution=run.constitution["name"],
            started=str(run.manifest["started"]),
            command=str(run.manifest["command"]),
        )
        for group in groups
        for seed, run in group.runs.items()
    ]


def _notes(groups: list[RunGroup], responses: dict[int, Responses | None]) -> list[str]:
    """What a reader must know before a number."""
    runs = [run for group in groups for run in group.runs.values()]
    notes = []
    few = [group.name for group in groups if len(group.runs) < MIN_SEEDS]
    if few:
        notes.append(
            f"Fewer than {MIN_SEEDS} seeds: {'; '.join(few)}. No difference of these can be called "
            f"real. Type the same commands with seed=0,1,2 and -m; what is shared is reused."
        )
    seeds = [set(group.runs) for group in groups]
    if any(own != seeds[0] for own in seeds):
        notes.append(
            "The groups have different seeds: a metric's difference is over the seeds that both "
            "have, or where these are fewer than three, Welch's test of all of them."
        )
    if len({run.constitution["digest"] for run in runs}) > 1:
        notes.append(
            "The runs have different constitutions: what is measured on a constitution's own tests "
            "or labels is shown and not compared."
        )
    gone = [str(run.folder) for run in runs if responses[id(run)] is None and run.stages]
    if gone and len(gone) < len(runs):
        notes.append(f"Without evaluated responses in a store, so nothing is paired: {gone[0]}.")
    precisions = {str(run.manifest.get("precision", "")) for run in runs} - {""}
    if len(precisions) > 1:
        notes.append(
            f"The runs were computed in different precisions ({', '.join(sorted(precisions))}), "
            "which changes samples as a seed does; this is not counted as a setting."
        )
    unequal = [group.name for group in groups if not _same_prompts(group, groups[0], responses)]
    if unequal:
        notes.append(
            "Evaluation prompts differ from those of the first group, so nothing is paired by "
            f"prompt and intervals over prompts are of two separate sets: {'; '.join(unequal)}."
        )
    return notes


def _same_prompts(
    group: RunGroup, baseline: RunGroup, responses: dict[int, Responses | None]
) -> bool:
    common = group.runs.keys() & baseline.runs.keys()
    ours, theirs = (
        _prompts(
            [run for seed, run in side.runs.items() if seed in (common or side.runs)], responses
        )
        for side in (group, baseline)
    )
    return not ours or not theirs or ours == theirs


def _prompts(runs: list[Run], responses: dict[int, Responses | None]) -> set[tuple[str, str]]:
    """Kind and key of every evaluated prompt."""
    known = [own for run in runs if (own := responses[id(run)]) is not None]
    return {
        (kind, key) for own in known for (_, kind), rows in own.by_policy.items() for key in rows
    }
