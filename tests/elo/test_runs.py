"""What the policies of several runs are called in one tournament."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cai.artifacts import Artifact
from cai.elo.runs import _Answered, _names


def answered(policy: str, run: str, snapshot: str = "") -> _Answered:
    artifact = Artifact(stage="responses", digest=policy + run + snapshot, folder=Path())
    return _Answered(
        policy=policy,
        place=0,
        run=run,
        folder=Path(run),
        artifact=artifact,
        snapshot=snapshot,
        rows=[],
    )


def test_a_policy_that_runs_share_needs_no_run() -> None:
    players = [answered("base", "one"), answered("rl_cai", "one"), answered("rl_cai", "two")]
    assert _names(players) == ["base", "rl_cai (one)", "rl_cai (two)"]


def test_snapshots_are_told_by_their_round_and_nothing_is_lost() -> None:
    first = answered("rl_cai", "one", "round 2")
    players = [first, dataclasses.replace(first, snapshot="round 4"), answered("rl_cai", "one")]
    assert _names(players) == ["rl_cai (round 2)", "rl_cai (round 4)", "rl_cai"]
    twice = [answered("rl_cai", "one")] * 3
    assert _names(twice) == ["rl_cai", "rl_cai no. 2", "rl_cai no. 3"]
    both = [first, answered("rl_cai", "two", "round 2")]
    assert _names(both) == ["rl_cai (one, round 2)", "rl_cai (two, round 2)"]
