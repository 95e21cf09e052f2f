"""What the policies of several runs are called in one tournament."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cai.artifacts import Artifact
from cai.elo.runs import _Answered, _names


def answered(policy: str, run: str, num_rounds: int | None = None) -> _Answered:
    artifact = Artifact(stage="responses", digest=f"{policy}{run}{num_rounds}", folder=Path())
    return _Answered(
        policy=policy,
        run=run,
        folder=Path(run),
        artifact=artifact,
        num_rounds=num_rounds,
        rows=[],
    )


def test_a_policy_that_runs_share_needs_no_run() -> None:
    players = [answered("base", "one"), answered("rl_cai", "one"), answered("rl_cai", "two")]
    assert _names(players) == ["base", "rl_cai (one)", "rl_cai (two)"]


def test_snapshots_are_told_by_their_round_and_nothing_is_lost() -> None:
    first = answered("rl_cai", "one", 2)
    players = [first, dataclasses.replace(first, num_rounds=4), answered("rl_cai", "one")]
    assert _names(players) == ["rl_cai (round 2)", "rl_cai (round 4)", "rl_cai"]
    twice = [answered("rl_cai", "one")] * 3
    assert _names(twice) == ["rl_cai", "rl_cai no. 2", "rl_cai no. 3"]
    both = [first, answered("rl_cai", "two", 2)]
    assert _names(both) == ["rl_cai (one, round 2)", "rl_cai (two, round 2)"]


def test_players_are_told_by_their_training() -> None:
    played = [answered("rl_cai", "a"), answered("rl_cai", "a", 4), answered("rl_cai", "a", 2),
              answered("sl_cai", "a"), answered("base", "a")]  # fmt: skip
    order = sorted(played, key=lambda one: one.trained())
    assert [(one.policy, one.num_rounds) for one in order] == [
        ("base", None), ("sl_cai", None), ("rl_cai", 2), ("rl_cai", 4), ("rl_cai", None),
    ]  # fmt: skip
