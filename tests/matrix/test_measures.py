"""Numbers of a steering matrix, by hand."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest

from cai.errors import ConfigError, UserError
from cai.matrix.findings import matrix_findings
from cai.matrix.measures import Bootstrap, Values
from cai.matrix.seeded import Seeded, over_seeds
from cai.matrix.story import (
    CellStory,
    ControlStory,
    DominanceStory,
    JudgesStory,
    LikelihoodCellStory,
    MatrixStory,
    SubjectStory,
)
from cai.matrix.subjects import adapter_name, read_subjects
from cai.statistics import Estimate

BOOTSTRAP = Bootstrap(num=500, seed=0)
T_2 = 4.302653
"""97.5 % of Student's t with 2 degrees of freedom (any table)."""


def over(*groups: list[float]) -> Seeded:
    found = over_seeds(groups, num_resamples=2000, seed=0)
    assert found is not None
    return found


def test_seeds_count_alike_however_many_prompts_each_has() -> None:
    found = over([0.2] * 9, [0.8])
    assert found.estimate.value == pytest.approx(0.5)  # not 0.26, the mean of ten
    assert found.by_seed == pytest.approx((0.2, 0.8))
    assert found.estimate.num == 10


def test_with_no_noise_within_seeds_the_interval_is_students_over_their_means() -> None:
    means = [0.1, 0.2, 0.6]
    found = over(*([mean] * 5 for mean in means))
    half = T_2 * statistics.stdev(means) / 3**0.5
    assert found.estimate.low == pytest.approx(0.3 - half, abs=1e-5)
    assert found.estimate.high == pytest.approx(0.3 + half, abs=1e-5)


def test_seeds_that_happen_to_agree_do_not_hide_the_noise_of_prompts() -> None:
    found = over(*[[0.0, 1.0]] * 3)  # every mean is 0.5, Student's interval has width 0
    # Hierarchical resample: mean of three means of two fair coins; sd = sqrt(1/4 / 6) = 0.204.
    assert found.estimate.high - found.estimate.low > 2 * 1.5 * 0.204
    assert found.estimate.low <= 0.5 <= found.estimate.high


def test_the_bootstrap_draws_seeds_as_well_as_prompts() -> None:
    two = over([0.0] * 8, [1.0] * 8)  # too few seeds for Student
    assert (two.estimate.low, two.estimate.high) == (0.0, 1.0)


def test_a_share_s_interval_ends_where_shares_do() -> None:
    found = over_seeds([[1.0], [1.0], [0.7]], num_resamples=100, seed=0, bounds=(0.0, 1.0))
    assert found is not None
    assert found.estimate.high == 1.0
    assert found.estimate.low < 0.7


def test_a_seed_without_an_observation_is_left_out_and_none_gives_none() -> None:
    assert over([0.4], []).by_seed == (0.4,)
    assert over_seeds([[], []], num_resamples=10, seed=0) is None
    with pytest.raises(ValueError, match="finite"):
        over_seeds([[float("nan")]], num_resamples=10, seed=0)


@pytest.mark.parametrize(
    ("groups", "real"),
    [
        ([[0.10, 0.11], [0.11, 0.12], [0.10, 0.12]], True),
        ([[-0.10, -0.11], [-0.11, -0.12], [-0.10, -0.12]], True),
        ([[0.10, 0.11], [0.11, 0.12]], False),  # two seeds
        ([[0.01, 0.01], [0.02, 0.02], [0.30, 0.30]], False),  # one seed makes the mean
        ([[0.20, 0.20], [0.20, 0.20], [-0.01, -0.01]], False),  # a seed on the other side
        ([[-0.5, 0.9], [0.7, -0.3], [0.6, -0.2]], False),  # prompts disagree
    ],
)
def test_a_difference_inside_the_spread_is_not_called_real(
    groups: list[list[float]], real: bool
) -> None:
    assert over(*groups).real is real


def test_false_alarms_stay_rare_when_seeds_differ_more_than_prompts() -> None:
    """No effect, spread between seeds alone: a bootstrap would alarm every fourth time."""
    rng = np.random.Generator(np.random.PCG64(7))
    alarms = 0
    for trial in range(400):
        seeds = rng.normal(0, 0.1, size=3)
        groups = [(mean + rng.normal(0, 0.01, size=8)).tolist() for mean in seeds]
        found = over_seeds(groups, num_resamples=200, seed=trial)
        assert found is not None
        alarms += found.real
    assert alarms <= 32  # 5 % are 20, and 3 standard deviations 13


def values(observed: dict[tuple[str, str], dict[int, dict[str, float]]]) -> Values:
    names = tuple(dict.fromkeys(train for train, _ in observed))
    judges = tuple(dict.fromkeys(judge for _, judge in observed))
    return Values(names=names, judges=judges, observed=observed)


MATRIX = values(
    {
        ("a", "a"): {0: {"p": 0.9, "q": 0.7}, 1: {"p": 0.8}},
        ("b", "a"): {0: {"p": 0.5, "q": 0.6}, 1: {"p": 0.5}},
        ("n", "a"): {0: {"p": 0.4, "r": 0.0}, 1: {"p": 0.2}},
        ("a", "b"): {0: {"p": 0.3, "q": 0.3}, 1: {"p": 0.5}},
        ("b", "b"): {0: {"p": 0.6, "q": 0.3}, 1: {"p": 0.9}},
        ("n", "b"): {0: {"p": 0.3, "q": 0.6}, 1: {"p": 0.1}},
    }
)


def close(found: dict[int, dict[str, float]]) -> dict[int, object]:
    return {seed: pytest.approx(own) for seed, own in found.items()}


def test_an_effect_is_the_cell_less_its_column_on_prompts_that_all_were_judged_on() -> None:
    # Judge a, seed 0, p: mean of .9 .5 .4 is .6; q has no value for n and r none for a and b.
    assert MATRIX.effect("a", "a") == close({0: {"p": 0.3}, 1: {"p": 0.3}})
    assert MATRIX.effect("n", "a") == close({0: {"p": -0.2}, 1: {"p": -0.3}})
    sums = [
        sum(MATRIX.effect(train, "b")[seed][key] for train in "abn")
        for seed, key in [(0, "p"), (0, "q"), (1, "p")]
    ]
    assert sums == pytest.approx([0, 0, 0])


def test_dominance_is_the_own_policy_less_the_mean_of_all_others() -> None:
    assert MATRIX.dominance("a") == close({0: {"p": 0.45}, 1: {"p": 0.45}})
    assert MATRIX.dominance("b") == close({0: {"p": 0.3, "q": -0.15}, 1: {"p": 0.6}})
    assert MATRIX.over("b", "n") == close({0: {"p": 0.3, "q": -0.3}, 1: {"p": 0.8}})


def test_the_mean_dominance_is_paired_by_prompt_and_judges_tests_count_alike() -> None:
    assert MATRIX.mean_dominance("ab") == close({0: {"p": 0.375}, 1: {"p": 0.525}})
    apart = values(
        {
            ("a", "a"): {0: {"s": 0.4}},
            ("b", "a"): {0: {"s": 0.1}},
            ("a", "b"): {0: {"t": 0.0}},
            ("b", "b"): {0: {"t": 0.1}},
        }
    )
    assert apart.mean_own_dominance("ab") == close({0: {"a:s": 0.3, "b:t": 0.1}})
    uneven = values(
        {
            ("a", "a"): {0: {"s": 0.4, "t": 0.6, "u": 0.8}},
            ("b", "a"): {0: {"s": 0.1, "t": 0.1, "u": 0.1}},
            ("a", "b"): {0: {"s": 0.0}},
            ("b", "b"): {0: {"s": 0.1}},
        }
    )
    # a: 0.3, 0.5, 0.7, mean 0.5; b: 0.1; their mean 0.3, though three of four tests are a's, and
    # though both have a test of the same name.
    own = uneven.mean_own_dominance("ab")[0]
    assert sum(own.values()) / len(own) == pytest.approx(0.3)


def test_a_judge_s_leniency_moves_no_contrast() -> None:
    lenient = dataclasses.replace(
        MATRIX,
        observed={
            (train, judge): {
                seed: {key: value + (0.07 if judge == "b" else 0) for key, value in own.items()}
                for seed, own in cell.items()
            }
            for (train, judge), cell in MATRIX.observed.items()
        },
    )
    assert lenient.effect("a", "b") == close(MATRIX.effect("a", "b"))
    assert lenient.dominance("b") == close(MATRIX.dominance("b"))


def test_judges_correlate_over_what_both_judged() -> None:
    pairs = [(0.9, 0.3), (0.7, 0.3), (0.8, 0.5), (0.5, 0.6), (0.6, 0.3), (0.5, 0.9), (0.4, 0.3)]
    pairs.append((0.2, 0.1))
    expected = statistics.correlation(*zip(*pairs, strict=True))
    assert MATRIX.correlation("a", "b") == pytest.approx(expected)
    same = values({("a", "a"): {0: {"p": 0.5}}, ("a", "b"): {0: {"p": 0.5}}})
    assert same.correlation("a", "b") is None


def seeded(*by_seed: float) -> Seeded:
    return over(*([value - 0.001, value + 0.001] for value in by_seed))


def story(**changes: object) -> MatrixStory:
    """Two constitutions and a control; nothing steers."""
    small, half = seeded(0.01, -0.01, 0.0), seeded(0.5, 0.49, 0.51)
    names = ("good", "other", "none")
    base = MatrixStory(
        method="dpo",
        policy="dpo",
        seeds=(0, 1, 2),
        judge="tuned on tiny",
        prompts="some",
        circular=True,
        subjects=tuple(
            SubjectStory(
                name=name,
                document=f"{name} 1",
                num_principles=0 if name == "none" else 3,
                control=name == "none",
                judge_accuracy=None
                if name == "none"
                else Estimate(value=0.9, low=0.8, high=0.95, num=36),
                adapter=f"adapters/{name}",
            )
            for name in names
        ),
        cells=tuple(
            CellStory(
                train=t, judge=j, win_rate=half, effect=small, num_identical=0, num_unjudged=0
            )
            for t in names
            for j in names
        ),
        tests=tuple(
            LikelihoodCellStory(train=t, judge=j, accuracy=half, shift=small, effect=small)
            for t in names
            for j in names[:2]
        ),
        no_tests=("none",),
        dominance=tuple(
            DominanceStory(judge=name, judged=small, tests=None if name == "none" else small)
            for name in (*names, "")
        ),
        controls=tuple(ControlStory(judge=j, control="none", gap=small) for j in names[:2]),
        judges=(JudgesStory(first="good", second="other", correlation=0.2),),
    )
    return dataclasses.replace(base, **changes)


def test_nothing_that_steers_is_said_first() -> None:
    told = " ".join(matrix_findings(story()))
    assert "At chance: under no judge" in told
    assert "none under good (0.000 [" in told
    assert "too few" not in told
    assert "whatever their constitution" not in told


def test_what_steers_is_circular_until_the_tests_say_so() -> None:
    ahead = seeded(0.2, 0.21, 0.19)
    rows = {row.judge: row for row in story().dominance}
    won = dataclasses.replace(rows["good"], judged=ahead)
    told = " ".join(
        matrix_findings(
            story(
                dominance=(won, rows["other"]),
                controls=(ControlStory(judge="good", control="none", gap=ahead),),
            )
        )
    )
    assert "At chance" not in told
    assert "Controls" not in told
    assert "good nothing beyond the spread" in told
    with_tests = dataclasses.replace(won, tests=seeded(0.05, 0.05, 0.06))
    assert "good the same" in " ".join(matrix_findings(story(dominance=(with_tests,))))
    own = matrix_findings(story(dominance=(won,), circular=False))
    assert not any("circular" in one for one in own)


BEHIND = DominanceStory(judge="good", judged=seeded(-0.2, -0.21, -0.2), tests=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (0,)}, "1 seed: too few"),
        ({"seeds": (0, 1)}, "2 seeds: too few"),
        (
            {"judges": (JudgesStory(first="good", second="other", correlation=0.95),)},
            "correlation of good and other (0.95)",
        ),
        (
            {"dominance": (BEHIND,)},
            "Training under good pleases its own judge less",
        ),
    ],
)
def test_what_makes_a_matrix_say_less(changes: dict[str, object], said: str) -> None:
    assert said in " ".join(matrix_findings(story(**changes)))


def test_ties_and_silent_judges_are_told() -> None:
    cells = story().cells
    tied = [dataclasses.replace(cell, num_identical=5) for cell in cells if cell.train == "good"]
    assert "the base's own words: good" in " ".join(matrix_findings(story(cells=tuple(tied))))
    silent = [
        dataclasses.replace(cell, win_rate=None, effect=None, num_unjudged=6)
        if cell.judge == "none"
        else cell
        for cell in cells
    ]
    told = " ".join(matrix_findings(story(cells=tuple(silent))))
    assert "The judges of none judged nothing" in told


def test_documents_are_read_by_name_and_by_path_and_told_apart(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("name: Ärzte & Co.\nprinciples: [The response is short.]\n", "utf-8")
    subjects = read_subjects(["medical", "none", "inverted", str(own)])
    assert [one.name for one in subjects] == ["medical", "none", "inverted", "rzte-Co"]
    assert [one.control for one in subjects] == [False, True, True, False]
    assert adapter_name("1.0/..") == "1-0"
    assert adapter_name("日本") == "constitution"


def test_what_cannot_be_a_matrix_is_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"phase\.constitutions=medcial: .*Did you mean medical"):
        read_subjects(["medcial", "none"])
    same = tmp_path / "copy.yaml"
    same.write_text("name: copy\nextends: medical\n", "utf-8")
    with pytest.raises(ConfigError, match=r"medical and .*copy\.yaml have the same principles"):
        read_subjects(["medical", str(same)])
    named = tmp_path / "other.yaml"
    named.write_text("name: medical\nprinciples: [The response is short.]\n", "utf-8")
    with pytest.raises(ConfigError, match="are both called medical"):
        read_subjects(["medical", str(named)])
