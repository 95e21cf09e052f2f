"""The rows behind two charts: how well stated confidence holds, and reward against KL."""

from __future__ import annotations

from collections.abc import Sequence

from cai.artifacts import Artifact
from cai.context import CURVE
from cai.statistics import CalibrationBin

RELIABILITY = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "num_pairs")
KL_REWARD = ("kl", "reward", "round")


def reliability_rows(bins: Sequence[CalibrationBin]) -> list[list[object]]:
    """One row a bin of the reliability diagram: mean confidence and the share that was right."""
    return [
        [
            item.mean_probability,
            item.outcome.value,
            item.outcome.low,
            item.outcome.high,
            item.outcome.num,
        ]
        for item in bins
    ]


def kl_reward_rows(policy: Artifact) -> list[list[object]]:
    """One row a PPO round.

    Args:
        policy: What PPO trained.

    Returns:
        KL to the SL-CAI policy in nats per response; the preference model's score in standard
        deviations of SL-CAI samples, penalties not taken off; the round. A round in which no
        response was scored (all were cut, with `at_cut=bootstrap`) has no row.
    """
    keys = ("objective/kl", "objective/scores", "step")
    return [[row[key] for key in keys] for row in policy.json(CURVE) if row.keys() >= set(keys)]
