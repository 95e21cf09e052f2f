"""`compare.json`: a comparison for machines, and its flat metrics.

Schema `cai.compare`, version 1. Keys of the object:

* `schema`, `schema_version`, `cai` (version of the program).
* `groups`: `[{name, seeds, settings}]`, configurations in order; the first is the baseline.
  `settings` has those that differ between groups, null where one does not exist.
* `runs`: `[{folder, group, seed, phase, constitution, started, command}]`.
* `left_out`: `[{folder, why}]`; `notes`: `[text]`.
* `metrics`: `[{name, tested, groups: {group: {mean, interval, over, by_seed} | null}}]`;
  `interval` is `[low, high]` at 95 % or null, `over` is `seeds`, `prompts` or `none`.
* `differences`: `[{metric, group, baseline, difference, verdict, why, seeds, prompts}]`; `seeds` is
  `{low, high, p, p_holm, num, paired}` or null, `prompts` the same with `p` null where nothing is
  paired. `verdict` is one of `real`, `not after correction`, `inside the seed spread`,
  `inside the prompt spread`, `not enough seeds`, `identical`, `not comparable`.
* `num_tests`: `{seeds, prompts}`, over how many p-values Holm's correction went; `alpha`.
* `scatter`: `{x_name, y_name, points: [{folder, group, seed, x, y}], correlation, why}` or null; a
  coordinate is `{value, interval}`, `correlation` `{value, low, high, num}` or null.
* `matrices`: `[{folder, title, rows, columns, values, real}]`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cai import __version__
from cai.compare.story import (
    ALPHA,
    Cell,
    CompareStory,
    Difference,
    PromptTest,
    Scatter,
    SeedTest,
    Verdict,
)

FILE = "compare.json"
SCHEMA = "cai.compare"
SCHEMA_VERSION = 1


def compare_record(story: CompareStory) -> dict[str, Any]:
    """The comparison as plain JSON values."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "cai": __version__,
        "groups": [
            {
                "name": group.name,
                "seeds": list(group.seeds),
                "settings": {row.key: row.values[place] for row in story.settings},
            }
            for place, group in enumerate(story.groups)
        ],
        "runs": [dataclasses.asdict(run) for run in story.runs],
        "left_out": [dataclasses.asdict(one) for one in story.left_out],
        "notes": list(story.notes),
        "metrics": [
            {
                "name": row.name,
                "tested": row.tested,
                "groups": {
                    group.name: None if cell is None else _cell(cell)
                    for group, cell in zip(story.groups, row.cells, strict=True)
                },
            }
            for row in story.metrics
        ],
        "differences": [_difference(one) for one in story.differences],
        "num_tests": {"seeds": story.num_seed_tests, "prompts": story.num_prompt_tests},
        "alpha": ALPHA,
        "scatter": None if story.scatter is None else dataclasses.asdict(story.scatter),
        "matrices": [dataclasses.asdict(one) for one in story.matrices],
    }


def compare_metrics(story: CompareStory) -> dict[str, float]:
    """Flat numbers of a comparison."""
    counts = {
        f"compare/num_{verdict.value.replace(' ', '_')}": float(num)
        for verdict, num in story.counts().items()
    }
    return {
        "compare/num_runs": float(len(story.runs)),
        "compare/num_groups": float(len(story.groups)),
        "compare/num_left_out": float(len(story.left_out)),
        "compare/num_differences": float(len(story.differences)),
        **counts,
        **_correlation(story),
    }


def _correlation(story: CompareStory) -> dict[str, float]:
    found = story.scatter.correlation if story.scatter else None
    if found is None:
        return {}
    name = "compare/rank_correlation"
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def compare_tables(story: CompareStory) -> dict[str, tuple[list[str], list[list[object]]]]:
    """Tables for the tracker: columns and rows by name."""
    names = [group.name for group in story.groups]
    metrics = [
        [row.name, *(None if cell is None else cell.value for cell in row.cells)]
        for row in story.metrics
    ]
    tests = [
        [
            one.metric,
            one.group,
            one.baseline,
            one.value,
            one.seeds.difference.low if one.seeds else None,
            one.seeds.difference.high if one.seeds else None,
            one.seeds.p_adjusted if one.seeds else None,
            one.prompts.p_adjusted if one.prompts else None,
            one.verdict.value,
        ]
        for one in story.differences
    ]
    columns = ["metric", "group", "baseline", "difference", "low", "high", "p_seeds", "p_prompts"]
    tables = {"compare_metrics": (["metric", *names], metrics)}
    if (scatter := story.scatter) is not None and not scatter.why:
        heads = ["group", "seed", scatter.x_name, scatter.y_name]
        points = [[one.group, one.seed, one.x.value, one.y.value] for one in scatter.points]
        tables["compare_scatter"] = (heads, points)
    if tests:
        tables["compare_differences"] = ([*columns, "verdict"], tests)
    return tables


def correlation_line(scatter: Scatter) -> str:
    """Whether one metric follows the other, in a sentence."""
    pair = f"{scatter.y_name} against {scatter.x_name}"
    if scatter.correlation is None:
        num = len(scatter.points)
        return f"{pair}: {num} runs are too few, or too alike, for a rank correlation."
    return f"{pair}: rank correlation {scatter.correlation.format()} over runs."


def verdict_line(story: CompareStory) -> str:
    """All verdicts in a sentence."""
    counts = {verdict: num for verdict, num in story.counts().items() if num}
    if not story.differences:
        return "One configuration: nothing is compared. Its metrics have intervals from 3 seeds on."
    told = ", ".join(f"{num} {verdict.value}" for verdict, num in counts.items())
    start = (
        f"{counts[Verdict.real]} of {len(story.differences)} differences are real"
        if Verdict.real in counts
        else f"None of {len(story.differences)} differences may be called real"
    )
    return f"{start} ({told})."


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "mean": cell.value,
        "interval": None if cell.interval is None else list(cell.interval),
        "over": cell.spread.value,
        "by_seed": {str(seed): value for seed, value in cell.by_seed.items()},
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "metric": one.metric,
        "group": one.group,
        "baseline": one.baseline,
        "difference": one.value,
        "verdict": one.verdict.value,
        "why": one.why,
        "seeds": None if one.seeds is None else _test(one.seeds, paired=one.seeds.paired),
        "prompts": None
        if one.prompts is None
        else _test(one.prompts, paired=one.prompts.p_value is not None),
    }


def _test(test: SeedTest | PromptTest, *, paired: bool) -> dict[str, Any]:
    return {
        "low": test.difference.low,
        "high": test.difference.high,
        "p": test.p_value,
        "p_holm": test.p_adjusted,
        "num": test.difference.num,
        "paired": paired,
    }
