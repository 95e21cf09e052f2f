"""Policies of finished runs as players of one tournament, and whose labels trained them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from cai.artifacts import Artifact
from cai.compare.groups import group_runs
from cai.compare.runs import Run, find_runs
from cai.context import RunContext
from cai.errors import UserError
from cai.stages.comparisons import Judge
from cai.types import PromptKind, Response

SETTING = "evaluation.elo.runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Players:
    """The policies that meet."""

    responses: dict[str, Artifact]
    """To the same prompts, by the policy's name; where runs have different policies of one name,
    what sets the run apart is behind it. The least trained come first."""
    counts: dict[PromptKind, int]
    """Held-out prompts by kind."""
    runs: tuple[Run, ...]

    def trained_by(self, judge: Judge, context: RunContext) -> bool:
        """Whether a policy was trained on labels of this judge."""
        ours = _labels(judge.identity(context), judge.inputs())
        return any(_labels_of(run) == ours for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    policy: str
    place: int
    """Among the policies of its run."""
    run: str
    folder: Path
    artifact: Artifact
    snapshot: str
    """Which of PPO's snapshots answered; empty for a policy that a stage ended with."""
    rows: list[Response]


def players_of(named: list[str], *, output_dir: Path) -> Players:
    """Every different policy of the named runs.

    Raises:
        UserError: when a folder holds no finished run, when there are fewer than two policies, or
            when runs were evaluated on different prompts.
    """
    if not named:
        raise UserError(f"{SETTING} is empty; it takes folders of finished runs")
    try:
        found = find_runs(named, output_dir=output_dir, at_least=1)
    except UserError as error:
        raise UserError(f"evaluation.elo.{error}") from error
    if found.left_out:
        told = "".join(f"\n  {one.folder}: {one.why}" for one in found.left_out)
        raise UserError(f"{SETTING}: not every folder is a run whose policies can meet.{told}")
    answered = [one for name, run in _named(found.runs) for one in _answered(name, run)]
    _check_prompts(answered)
    unique = {one.artifact.digest: one for one in reversed(answered)}
    players = sorted(unique.values(), key=lambda one: (one.place, answered.index(one)))
    policies = [one.policy for one in players]
    if len(players) < 2:
        raise UserError(
            f"{SETTING}: a tournament needs two policies, and these runs have only {policies[0]}"
        )
    counts = {kind: sum(row.prompt.kind is kind for row in players[0].rows) for kind in PromptKind}
    return Players(
        responses=dict(zip(_names(players), [one.artifact for one in players], strict=True)),
        counts=counts,
        runs=tuple(found.runs),
    )


def _names(players: Sequence[_Answered]) -> list[str]:
    """Policies; several of one name have their run, PPO's snapshot or a number behind it."""
    names: list[str] = []
    for one in players:
        runs = {other.run for other in players if other.policy == one.policy}
        parts = [one.run] * (len(runs) > 1) + [one.snapshot] * bool(one.snapshot)
        name = f"{one.policy} ({', '.join(parts)})" if parts else one.policy
        number = sum(other == name or other.startswith(f"{name} no. ") for other in names)
        names.append(f"{name} no. {number + 1}" if number else name)
    return names


def _named(runs: list[Run]) -> list[tuple[str, Run]]:
    """Runs with what sets them apart: settings, and the seed where one has several."""
    return [
        (group.name if len(group.runs) == 1 else f"{group.name}, seed={seed}", run)
        for group in group_runs(runs)
        for seed, run in group.runs.items()
    ]


def _answered(name: str, run: Run) -> list[_Answered]:
    found = run.artifacts("responses")
    if not found:
        raise UserError(
            f"{SETTING}: {run.folder} has no responses of policies to held-out prompts, or its "
            f"store is gone. Type its command again: {run.manifest['command']}"
        )
    kept = []
    for place, artifact in enumerate(found):
        rows = artifact.records(Response)
        kept.append(
            _Answered(
                policy=rows[0].policy,
                place=place,
                run=name,
                folder=run.folder,
                artifact=artifact,
                snapshot=_snapshot(artifact),
                rows=rows,
            )
        )
    return kept


def _snapshot(artifact: Artifact) -> str:
    folder = artifact.manifest()["key"]["config"].get("folder", "")
    return f"round {int(PurePath(folder).name)}" if folder else ""


def _check_prompts(answered: list[_Answered]) -> None:
    first = answered[0]
    for other in answered[1:]:
        if [row.prompt for row in other.rows] != [row.prompt for row in first.rows]:
            ours, theirs = ({row.prompt.id for row in one.rows} for one in (first, other))
            raise UserError(
                f"{SETTING}: {first.folder} and {other.folder} were evaluated on different "
                f"prompts: {len(first.rows)} and {len(other.rows)}, of which {len(ours & theirs)} "
                "have the same id. Policies meet on the same prompts: give runs with the same "
                "seed, data, constitution.domain and phase.prompts.num_eval_*"
            )


def _labels(identity: dict[str, Any], inputs: dict[str, Artifact]) -> str:
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    return json.dumps([identity["feedback"], digests], sort_keys=True)


def _labels_of(run: Run) -> str | None:
    """What gave a run its training labels; None where nothing was trained on any."""
    compared = run.artifact("comparisons")
    if compared is None:
        return None
    key = compared.manifest()["key"]
    digests = {name: digest for name, digest in key["inputs"].items() if name != "pairs"}
    return json.dumps([key["identity"]["feedback"], digests], sort_keys=True)
