"""Folders that a comparison takes, leaves out or refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.compare.groups import differing, group_runs
from cai.compare.runs import Found, find_runs
from cai.errors import UserError
from tests.compared import config, write_run


def found(tmp_path: Path, *named: Path) -> Found:
    return find_runs([str(path) for path in named], output_dir=tmp_path)


def test_a_sweep_stands_for_its_jobs_in_their_order(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "one"
    for job in (10, 2, 0):
        write_run(sweep / f"{job}_seed={job}", config(seed=job))
    assert [run.seed for run in found(tmp_path, sweep).runs] == [0, 2, 10]


def test_unfinished_and_failed_jobs_are_named_and_left_out(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "one"
    for seed in (0, 1):
        write_run(sweep / f"{seed}_a", config(seed=seed))
    write_run(sweep / "2_failed", config(seed=2), status="failed")
    (write_run(sweep / "3_going_on", config(seed=3)) / "manifest.json").unlink()
    (sweep / "4_never").mkdir()
    (sweep / "4_never" / "run.log").write_text("")
    (write_run(sweep / "5_broken", config(seed=5)) / "metrics.json").write_text("{")
    got = found(tmp_path, sweep)
    assert [run.seed for run in got.runs] == [0, 1]
    told = {Path(one.folder).name: one.why for one in got.left_out}
    assert "Finish it with: python -m cai.run phase=rlaif seed=2" in told["2_failed"]
    assert "what was done is kept" in told["3_going_on"]
    assert "failed before it began" in told["4_never"]
    assert "metrics.json is damaged" in told["5_broken"]


def test_nothing_finished_is_an_error_that_says_why(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "x", config(), status="failed")
    with pytest.raises(UserError, match="none of the folders holds a finished run") as caught:
        found(tmp_path, one)
    assert "Finish it with" in str(caught.value)


def test_one_run_is_not_a_comparison(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "x", config())
    with pytest.raises(UserError, match=r"needs two finished runs.*") as caught:
        found(tmp_path, one)
    assert "seed=1" in str(caught.value)


@pytest.mark.parametrize("named", [None, []])
def test_no_runs_says_what_to_type(tmp_path: Path, named: list[str] | None) -> None:
    with pytest.raises(UserError, match=r"runs=\[SWEEP FOLDER\]"):
        find_runs(named, output_dir=tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run folder"):
        found(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder"):
        found(tmp_path, tmp_path / "nowhere")


def test_a_folder_named_twice_counts_once(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / "a" / str(s), config(seed=s)) for s in (0, 1))
    got = found(tmp_path, one, two, tmp_path / "a" / ".." / "a" / "0")
    assert len(got.runs) == 2
    assert "counts once" in got.notes[0]


def test_a_repeat_is_no_new_seed(tmp_path: Path) -> None:
    old = write_run(tmp_path / "a" / "old", config(), started="2026-01-01")
    new = write_run(tmp_path / "a" / "new", config(), started="2026-01-02")
    other = write_run(tmp_path / "a" / "other", config(seed=1))
    got = found(tmp_path, new, old, other)
    assert [run.folder for run in got.runs] == [new, other]
    assert got.left_out[0].folder == str(old)
    assert "no independent run" in got.left_out[0].why


def test_phases_that_measure_other_things_are_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "x", config())
    audit = {**config(), "phase": {"name": "audit"}}
    with pytest.raises(UserError, match="phases rlaif, audit measure different things"):
        found(tmp_path, first, write_run(tmp_path / "a" / "y", audit))
    trace = {**config(), "phase": {"name": "trace"}}
    with pytest.raises(UserError, match="phase=trace is about other runs"):
        found(tmp_path, first, write_run(tmp_path / "a" / "z", trace))
    both = {**config(), "phase": {"name": "dpo"}}
    assert len(found(tmp_path, first, write_run(tmp_path / "a" / "w", both)).runs) == 2


def test_seed_hardware_and_logger_make_no_configuration(tmp_path: Path) -> None:
    one = config()
    two = {**config(seed=1), "hardware": {"name": "gpu"}, "logger": {"kind": "wandb"}}
    two |= {"output_dir": "elsewhere", "audit": {"num_pairs": 0}}
    folders = [write_run(tmp_path / "a" / str(i), c) for i, c in enumerate((one, two))]
    (group,) = group_runs(found(tmp_path, *folders).runs)
    assert list(group.runs) == [0, 1]
    assert group.name == "rlaif medical"


def test_groups_are_named_by_the_fewest_settings_that_tell_them_apart(tmp_path: Path) -> None:
    configs = [
        config(constitution=name, kl_coef=kl) for name in ("medical", "none") for kl in (0.1, 0.2)
    ]
    for one in configs:  # moves with the constitution, so it says nothing more
        one["feedback"]["clamp"] = one["constitution"]["name"]
    folders = [write_run(tmp_path / "a" / str(i), c) for i, c in enumerate(configs)]
    groups = group_runs(found(tmp_path, *folders).runs)
    assert [group.name for group in groups] == [
        "constitution=medical, phase.ppo.kl_coef=0.1",
        "constitution=medical, phase.ppo.kl_coef=0.2",
        "constitution=none, phase.ppo.kl_coef=0.1",
        "constitution=none, phase.ppo.kl_coef=0.2",
    ]
    rows = {row.key: row.values for row in differing(groups)}
    assert rows["phase.ppo.kl_coef"] == ("0.1", "0.2", "0.1", "0.2")
    assert rows["feedback.clamp"] == ("medical", "medical", "none", "none")
    assert "seed" not in rows


def test_a_document_that_changed_under_its_name_is_another_configuration(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "x", config(), digest="a" * 64)
    two = write_run(tmp_path / "a" / "y", config(seed=1), digest="b" * 64)
    groups = group_runs(found(tmp_path, one, two).runs)
    assert [group.name for group in groups] == [
        f"constitution.digest={'a' * 12}",
        f"constitution.digest={'b' * 12}",
    ]


def test_a_setting_that_one_run_does_not_have_is_a_difference(tmp_path: Path) -> None:
    newer = config(seed=1)
    newer["phase"]["ppo"]["select"] = "final"
    folders = [write_run(tmp_path / "a" / str(i), c) for i, c in enumerate((config(), newer))]
    groups = group_runs(found(tmp_path, *folders).runs)
    assert [group.name for group in groups] == [
        "phase.ppo.select=(not there)",
        "phase.ppo.select=final",
    ]


def test_a_matrix_has_no_single_training(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / str(seed), config(seed=seed)) for seed in (0, 1)]
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["stages"] = [{"stage": "sl_policy", "digest": "a"}] * 2
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert found(tmp_path, *folders).runs[0].artifact("sl_policy") is None


def test_not_finite_metrics_are_left_out(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "x", config(), metrics={"a": 1.0})
    (one / "metrics.json").write_text(json.dumps({"a": float("nan"), "b": 2, "c": "text"}))
    two = write_run(tmp_path / "a" / "y", config(seed=1))
    assert found(tmp_path, one, two).runs[0].metrics == {"b": 2.0}
