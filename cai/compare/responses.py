"""Measures of single evaluated responses, so that two configurations can be paired by prompt.

Records are read as plain JSON: a comparison takes runs of older versions too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cai.compare.groups import RunGroup
from cai.compare.runs import Run
from cai.compare.scatter import FINAL, final_policy
from cai.errors import UserError

STAGE = "evaluation"
OLDER_RULES = "explicit refusals only"
"""How runs told refusals before responses had compliance classes."""
_METRIC = re.compile(r"eval/(?P<policy>[^/]+)/(?P<kind>[^/]+)/(?P<measure>[^/]+)")
_MEASURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "refusal_rate": lambda row: float(_refuses(row)),
    "words": lambda row: float(len(row["response"]["sample"]["text"].split())),
    "score": lambda row: row["score"],
}


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The evaluated responses of one run."""

    rows: tuple[dict[str, Any], ...]
    rules: str
    """Which rules told refusals."""

    @cached_property
    def by_policy(self) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
        """(policy, kind of prompt) to prompt to row."""
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for row in self.rows:
            response = row["response"]
            prompt = response["prompt"]
            own = found.setdefault((response["policy"], prompt["kind"]), {})
            own[_key(prompt)] = row
        return found


def _refuses(row: dict[str, Any]) -> bool:
    """By the class of a response; earlier versions had a refusal by rule instead."""
    if "refusal" in row:
        return bool(row["refusal"])
    return bool(row["compliance"]["compliance"] == "refusal")


def _key(prompt: dict[str, Any]) -> str:
    """A prompt by id and content: an id of one's own file may name another text elsewhere."""
    text = json.dumps(prompt["messages"], sort_keys=True)
    return f"{prompt['id']}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def responses_of(run: Run) -> Responses | None:
    """Evaluated responses of a run; None when it has none or its store is gone.

    Raises:
        UserError: when the records were damaged.
    """
    artifact = run.artifact(STAGE)
    if artifact is None:
        return None
    path = artifact.file("records.jsonl")
    try:
        rows = tuple(json.loads(line) for line in path.read_text("ascii").splitlines())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    key = artifact.manifest().get("key", {"identity": {}})
    rules = key["identity"].get("compliance_rules", OLDER_RULES)
    return Responses(rows=rows, rules=str(rules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A measure of two groups by prompt: means over the seeds that are compared."""

    values: tuple[float, ...]
    baseline: tuple[float, ...]
    paired: bool
    """Whether places in both are the same prompts."""


def pair(
    metric: str,
    group: RunGroup,
    baseline: RunGroup,
    responses: dict[int, Responses | None],
    *,
    seeds: tuple[int, ...],
) -> Pairing | None:
    """Responses behind a metric, by prompt; None where it is no mean of single responses.

    Args:
        metric: E.g. `eval/rl_cai/red_team/words`.
        group: The one.
        baseline: The other.
        responses: Of each run, by its `id()`.
        seeds: Those that both have; without any, all of each.
    """
    match = _METRIC.fullmatch(metric)
    if match is None or match["measure"] not in _MEASURES:
        return None
    sides = [
        _by_prompt(
            match, [run for seed, run in side.runs.items() if not seeds or seed in seeds], responses
        )
        for side in (group, baseline)
    ]
    if not sides[0] or not sides[1]:
        return None
    same = sides[0].keys() == sides[1].keys()
    return Pairing(
        values=tuple(sides[0].values()),
        baseline=tuple(sides[1][key] for key in sides[0]) if same else tuple(sides[1].values()),
        paired=same,
    )


def _by_prompt(
    match: re.Match[str], runs: list[Run], responses: dict[int, Responses | None]
) -> dict[str, float]:
    """Mean over runs of what each prompt's response measures."""
    measure = _MEASURES[match["measure"]]
    found: dict[str, list[float]] = {}
    for run in runs:
        own = responses[id(run)]
        policy = final_policy(run) if match["policy"] == FINAL else match["policy"]
        rows = own.by_policy.get((str(policy), match["kind"]), {}) if own else {}
        for key, row in rows.items():
            value = measure(row)
            if value is not None:
                found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}
