"""`attribution.json`: what each principle did, for machines, in the folder of an rlaif or dpo run.

Schema, version 1. A reader may rely on every field below; a new field does not raise the version, a
changed meaning does. What the numbers mean is at the top of `cai.attribution`. An estimate is
`value`, `low`, `high` (95 % interval) and `num`, or null.

* `schema`: `"cai.attribution"`; `schema_version`: 1; `cai`: version of the program
* `constitution`: `name`, `version`, `digest`, `document` (as the command named it)
* `learner`: `preference model` or `policy (DPO)`: what learned the labels
* `num_comparisons`: AI comparisons that were learned from
* `people_share`: share of comparisons by people, or null; it and the shares of all principles sum
  to 1, unless no label says anything and all are null
* `max_share`, `effective_principles`: or null
* `principles`: in the document's order: `id`, `principle` (its sentence), `compare` (its question),
  `share`, `num_comparisons`, `num_critiques`, `num_accepted` (revisions that were used), and
  `scores`: estimates of P(after preferred) under it, by `<after>_over_<before>`
* `policies`: `before`, `after`, `num_prompts`, `num_identical`, `num_unjudged`, `mean` (estimate);
  empty with `evaluation.num_principle_prompts=0`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from cai import __version__
from cai.attribution import AttributionStory, PolicyScore
from cai.constitution import Constitution
from cai.statistics import Estimate

FILE = "attribution.json"
SCHEMA = "cai.attribution"
SCHEMA_VERSION = 1


def contest(score: PolicyScore) -> str:
    """Key of a pair of policies."""
    return f"{score.after}_over_{score.before}"


def attribution_record(
    story: AttributionStory, constitution: Constitution, *, document: str
) -> dict[str, Any]:
    """The account as plain JSON values."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "cai": __version__,
        "constitution": {
            "name": constitution.name,
            "version": constitution.version,
            "digest": constitution.digest,
            "document": document,
        },
        "learner": story.learner,
        "num_comparisons": story.num_comparisons,
        "people_share": story.people_share,
        "max_share": story.max_share,
        "effective_principles": story.effective_principles,
        "principles": [
            dataclasses.asdict(row)
            | {
                "compare": constitution.find(row.id).compare,
                "scores": {
                    contest(score): _estimate(score.by_principle[place]) for score in story.scores
                },
            }
            for place, row in enumerate(story.principles)
        ],
        "policies": [
            {
                "before": score.before,
                "after": score.after,
                "num_prompts": score.num_prompts,
                "num_identical": score.num_identical,
                "num_unjudged": score.num_unjudged,
                "mean": _estimate(score.mean),
            }
            for score in story.scores
        ],
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def attribution_metrics(story: AttributionStory | None) -> Iterator[tuple[str, Estimate | float]]:
    """Flat names and numbers: as many for sixteen principles as for one."""
    if story is None:
        return
    for name, value in (
        ("max_share", story.max_share),
        ("effective_principles", story.effective_principles),
        ("people_share", story.people_share),
    ):
        if value is not None:
            yield f"attribution/{name}", value
    yield "attribution/num_comparisons", float(story.num_comparisons)
    for score in story.scores:
        if score.mean is not None:
            yield f"attribution/{contest(score)}", score.mean
        known = [own for own in score.by_principle if own is not None]
        higher = sum(own.low > 0.5 for own in known)
        lower = sum(own.high < 0.5 for own in known)
        yield f"attribution/{contest(score)}_num_higher", float(higher)
        yield f"attribution/{contest(score)}_num_lower", float(lower)


def attribution_table(
    story: AttributionStory,
) -> tuple[tuple[str, ...], list[list[object]]]:
    """Columns and rows for the mirror: each principle's share, and the policies under it."""
    ends = ("", "_low", "_high")
    columns = (
        "principle", "sentence", "share", "comparisons", "critiques", "accepted",
        *(f"{contest(score)}{end}" for score in story.scores for end in ends),
    )  # fmt: skip
    rows: list[list[object]] = []
    for place, row in enumerate(story.principles):
        found = [score.by_principle[place] for score in story.scores]
        numbers = [
            number
            for one in found
            for number in ((None,) * 3 if one is None else (one.value, one.low, one.high))
        ]
        counts = (row.num_comparisons, row.num_critiques, row.num_accepted)
        rows.append([row.id, row.principle, row.share, *counts, *numbers])
    return columns, rows
