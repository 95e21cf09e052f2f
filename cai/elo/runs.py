"""Policies of finished runs as players of one tournament, and whose labels trained them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cai.artifacts import Artifact
from cai.compare.groups import group_runs
from cai.compare.runs import Run, find_runs
from cai.errors import UserError
from cai.feedback.build import judges_in
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

    def trained_by(self, judge: Judge) -> bool:
        """Whether a policy was trained on labels of this judge, or of one of its members.

        The same method on the same model counts, with whatever seed, tests or settings: what it
        likes is much the same.
        """
        return any(judge.judges() & _judges_of(run) for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    policy: str
    run: str
    folder: Path
    artifact: Artifact
    num_rounds: int | None
    """Of PPO's snapshot that answered; None for a policy that a stage ended with."""
    rows: list[Response]

    @property
    def snapshot(self) -> str:
        """For names."""
        return "" if self.num_rounds is None else f"round {self.num_rounds}"

    def trained(self) -> tuple[int, float]:
        """Sorts by how much training is behind a policy."""
        order = ("base", "sl_cai")
        known = order.index(self.policy) if self.policy in order else len(order)
        return known, math.inf if self.num_rounds is None else self.num_rounds


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
    players = sorted(unique.values(), key=lambda one: (one.trained(), answered.index(one)))
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
    for artifact in found:
        rows = artifact.records(Response)
        kept.append(
            _Answered(
                policy=rows[0].policy,
                run=name,
                folder=run.folder,
                artifact=artifact,
                num_rounds=_num_rounds(artifact),
                rows=rows,
            )
        )
    return kept


def _num_rounds(artifact: Artifact) -> int | None:
    folder = artifact.manifest()["key"]["config"].get("folder", "")
    return int(PurePath(folder).name) if folder else None


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


def _judges_of(run: Run) -> frozenset[str]:
    """Who gave a run its training labels; nobody where nothing was trained on any."""
    compared = run.artifact("comparisons")
    if compared is None:
        return frozenset()
    return judges_in(compared.manifest()["key"]["identity"]["feedback"])
