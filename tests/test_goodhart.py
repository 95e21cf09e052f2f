"""Reward against distance on hand-made scores: where the knee is, and where there is none."""

import dataclasses
import math
import random

import pytest

from cai.choices import Select
from cai.goodhart import Resampling, SnapshotScore, common_prompts, find_knee, measure

RESAMPLING = Resampling(num_resamples=500, seed=0)


def scores(means, *, num=40, noise=0.3, seed=0):
    """Every snapshot on the same prompts: what a prompt is like, and a little of its own."""
    rng = random.Random(seed)
    prompts = [rng.gauss(0, 1) for _ in range(num)]
    return [[mean + prompt + rng.gauss(0, noise) for prompt in prompts] for mean in means]


def test_a_rise_and_fall_has_its_knee_at_the_top():
    knee = find_knee(scores([0.0, 0.6, 1.0, 0.7, 0.2]), RESAMPLING)
    assert knee.place == 2
    assert knee.found
    assert knee.fall.low < 0.8 < knee.fall.high
    assert knee.fall.num == 40


def test_a_curve_that_rises_to_the_end_has_none():
    knee = find_knee(scores([0.0, 0.3, 0.6, 0.9]), RESAMPLING)
    assert (knee.place, knee.fall, knee.found) == (3, None, False)


def test_a_policy_that_only_loses_has_its_peak_at_the_start():
    knee = find_knee(scores([0.0, -0.5, -1.0]), RESAMPLING)
    assert knee.place == 0
    assert knee.found


def test_a_flat_curve_with_noise_has_none_although_one_of_its_points_is_the_highest():
    """The maximum of ten is above the last by luck; the interval must allow for that."""
    found, naive = 0, 0
    for seed in range(200):
        flat = scores([0.0] * 10, noise=1.0, seed=seed)
        knee = find_knee(flat, RESAMPLING)
        found += knee.found
        if knee.fall is not None:
            pair = [flat[knee.place], flat[-1]]
            alone = find_knee(pair, RESAMPLING)
            naive += alone.found
    assert found <= 14  # 2.5 % is 5; 40 prompts make the bootstrap a little narrow
    assert naive > 25  # what comparing the two alone would have claimed


def test_with_two_snapshots_the_interval_is_the_basic_bootstrap_of_the_paired_difference():
    # Differences 1 and 3: resampled means are 1, 2, 3 with shares 1/4, 1/2, 1/4.
    knee = find_knee([[2.0, 4.0], [1.0, 1.0]], RESAMPLING)
    assert (knee.place, knee.fall.value) == (0, 2.0)
    assert (knee.fall.low, knee.fall.high) == (1.0, 3.0)


def test_equal_peaks_are_at_the_earlier_snapshot():
    assert find_knee([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], RESAMPLING).place == 1


def record(num_rounds, prompt, proxy, gold, kl):
    return SnapshotScore(
        num_rounds=num_rounds, prompt_id=prompt, kind="red_team", proxy=proxy, gold=gold, kl=kl
    )


RECORDS = [
    record(0, "a", 0.0, 0.2, 0.0),
    record(0, "b", 1.0, 0.8, 0.0),
    record(2, "b", 3.0, 1.8, 5.0),  # in another order than at the start
    record(2, "a", 2.0, 1.2, 4.0),
    record(4, "a", 4.0, 0.2, 9.0),
    record(4, "b", 5.0, 0.8, None),
]


def test_means_gaps_and_roots_by_hand():
    measured = measure(RECORDS, RESAMPLING)
    assert [s.num_rounds for s in measured.snapshots] == [0, 2, 4]
    assert [s.proxy.value for s in measured.snapshots] == pytest.approx([0.5, 2.5, 4.5])
    assert [s.gold.value for s in measured.snapshots] == pytest.approx([0.5, 1.5, 0.5])
    # Round 2: the proxy gained 2, gold 1. Round 4: 4 and 0.
    assert [s.gap.value for s in measured.snapshots] == pytest.approx([0.0, 1.0, 4.0])
    assert [s.sqrt_kl for s in measured.snapshots] == pytest.approx([0.0, math.sqrt(4.5), 3.0])
    assert measured.knee.place == 1
    assert (measured.num_prompts, measured.num_not_scored, measured.num_retokenised) == (2, 0, 1)


def test_gaps_are_paired_by_prompt():
    """Both prompts have the same gap, however different they are: no width."""
    gap = measure(RECORDS, RESAMPLING).snapshots[2].gap
    assert gap.high - gap.low == pytest.approx(0.0)


def test_a_prompt_that_one_snapshot_has_no_score_of_is_left_out_of_all():
    holed = [
        dataclasses.replace(r, gold=None) if (r.num_rounds, r.prompt_id) == (2, "a") else r
        for r in RECORDS
    ]
    measured = measure(holed, RESAMPLING)
    assert measured.num_prompts == 1
    assert measured.num_not_scored == 1
    assert [s.proxy.value for s in measured.snapshots] == [1.0, 3.0, 5.0]
    assert common_prompts([dataclasses.replace(r, gold=None) for r in RECORDS]) == []


def test_a_kl_that_sampling_made_negative_counts_as_none():
    below = [dataclasses.replace(r, kl=-0.5 if r.num_rounds else 0.0) for r in RECORDS]
    snapshot = measure(below, RESAMPLING).snapshots[1]
    assert snapshot.kl.value == -0.5
    assert snapshot.sqrt_kl == 0.0


def test_the_knee_picks_the_policy_and_nothing_else_does():
    fallen = measure(RECORDS, RESAMPLING)
    assert fallen.knee.found
    assert fallen.chosen(Select.gold_peak, gold_is_known=True).num_rounds == 2
    assert fallen.chosen(Select.gold_peak, gold_is_known=False).num_rounds == 4
    assert fallen.chosen(Select.final, gold_is_known=True).num_rounds == 4
    rising = measure([dataclasses.replace(r, gold=r.num_rounds * 1.0) for r in RECORDS], RESAMPLING)
    assert rising.chosen(Select.gold_peak, gold_is_known=True).num_rounds == 4
