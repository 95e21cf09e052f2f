"""Sweep files: what they say is typed works, jobs share stages, and a search needs its plugin."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from cai import paths
from cai.schema import options, to_config
from tests.runs import Finished, run, tiny_arguments
from tests.test_configs import PLUGINS

GRIDS = [name for name in options("sweeps") if name not in PLUGINS]
COMMANDS = sorted(
    {
        line
        for group in ("sweeps", "experiment")
        for path in (paths.CONF / group).glob("*.yaml")
        for line in re.findall(r"python -m cai\.run [^(\n]+", path.read_text())
    }
)


def parameters(sweep: str) -> dict[str, str]:
    return yaml.safe_load((paths.SWEEPS / f"{sweep}.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_stated_commands_compose(command: str) -> None:
    arguments = [a for a in shlex.split(command)[3:] if a != "-m"]
    arguments = [a for a in arguments if a.removeprefix("sweeps=") not in PLUGINS]
    first = [re.sub(r"=([^,\[]*),.*", r"=\1", argument) for argument in arguments]
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        to_config(compose("config", overrides=first))


def planned(folder: Path, model: Path, sweep: str, *, jobs: int) -> Finished:
    """The plan of a sweep's first jobs, of the tiny model."""
    swept = {key: str(values).split(",")[:jobs] for key, values in parameters(sweep).items()}
    phase = swept.get("phase", [str(compose_phase(sweep))])[0]
    fixed = [a for a in tiny_arguments(model, phase) if a.partition("=")[0] not in swept]
    values = [f"{key}={','.join(own)}" for key, own in swept.items()]
    return run(folder, *fixed, f"sweeps={sweep}", *values, "plan=true")


def compose_phase(sweep: str) -> str:
    text = (paths.SWEEPS / f"{sweep}.yaml").read_text()
    return re.findall(r"override /phase: (\w+)", text)[0]


@pytest.mark.parametrize("sweep", GRIDS)
def test_the_first_job_of_a_sweep_can_be_planned(
    sweep: str, tiny_folder: Path, tmp_path: Path
) -> None:
    plan = planned(tmp_path, tiny_folder, sweep, jobs=1)
    assert plan.code == 0, plan.output
    assert "Nothing was run." in plan.output


def test_a_plan_of_a_sweep_shows_what_its_jobs_share(tiny_folder: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, tiny_folder, "num_revisions", jobs=2)
    assert plan.code == 0, plan.output
    first, second = plan.output.split("Nothing was run.")[:2]
    rows = [
        {words[0]: words[1] for line in part.splitlines() if len(words := line.split()) > 2}
        for part in (first, second)
    ]
    assert rows[0]["drafts"] == rows[0]["sl_policy"] == "compute"
    assert rows[1]["drafts"] == "share"
    assert rows[1]["sl_policy"] == "compute"
    shared = [line for line in second.splitlines() if " share " in line]
    assert all("job 0" in line for line in shared)
    assert f"{len(shared)} are shared with earlier jobs of this multirun" in second
    assert not (tmp_path / "outputs").exists()


@pytest.fixture(scope="module")
def bounded(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The capability bound with two judges and two seeds; a third judge's jobs fail."""
    arguments = [a for a in tiny_arguments(tiny_folder, "dpo") if "constitution" not in a]
    return run(
        tmp_path_factory.mktemp("bounded"),
        *arguments,
        "sweeps=capability_bound",
        "experiment=judge_random,judge_multiple_choice",
        "seed=0,1",
        "constitution.document=medical.yaml,nowhere.yaml",
    )


def test_a_sweep_survives_failed_jobs_and_ends_in_one_comparison(bounded: Finished) -> None:
    assert bounded.code == 1
    assert "4 failed" in bounded.output
    (found,) = (bounded.folder / "outputs" / "compare").glob("*/*")
    record = json.loads((found / "compare.json").read_text())
    assert [group["seeds"] for group in record["groups"]] == [[0, 1], [0, 1]]
    assert len(record["left_out"]) == 4
    scatter = record["scatter"]
    assert (scatter["x_name"], scatter["y_name"]) == (
        "feedback/accuracy",
        "eval/final/likelihood_accuracy",
    )
    assert len(scatter["points"]) == 4
    assert all(point["x"]["interval"] for point in scatter["points"])


def test_jobs_that_differ_in_the_judge_share_phase_1(bounded: Finished) -> None:
    manifests = sorted((bounded.folder / "outputs" / "sweeps").glob("*/*/*/manifest.json"))
    status = {}
    for path in manifests:
        record = json.loads(path.read_text())
        if record["status"] == "done":
            method = yaml.safe_load((path.parent / "config.yaml").read_text())["feedback"]["method"]
            stages = {row["stage"]: row["status"] for row in record["stages"]}
            status[method, record["seed"]] = stages
    assert len(status) == 4
    for seed in (0, 1):
        assert status["random", seed]["sl_policy"] == "computed"
        assert status["multiple_choice", seed]["sl_policy"] == "reused"
        assert status["multiple_choice", seed]["comparisons"] == "computed"
    assert "feedback_features" not in status["random", 0]


@pytest.fixture(scope="module")
def searched(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two trials of the search over the KL coefficient."""
    arguments = tiny_arguments(tiny_folder, "rlaif")
    folder = tmp_path_factory.mktemp("searched")
    return run(folder, *arguments, "sweeps=optuna_kl_coef", "hydra.sweeper.n_trials=2")


def test_a_search_tries_what_its_results_suggest(searched: Finished) -> None:
    assert searched.code == 0, searched.output
    (found,) = (searched.folder / "outputs" / "sweeps").glob("*/*/optimization_results.yaml")
    best = yaml.safe_load(found.read_text())
    folders = sorted(path.parent for path in found.parent.glob("*/metrics.json"))
    tried = {}
    for folder in folders:
        settings = yaml.safe_load((folder / "config.yaml").read_text())["phase"]["ppo"]
        metrics = json.loads((folder / "metrics.json").read_text())
        tried[settings["kl_coef"]] = metrics["eval/rl_cai/likelihood_accuracy"]
    assert len(tried) == 2
    assert best["best_value"] == max(tried.values())
    assert best["best_params"]["phase.ppo.kl_coef"] in tried
    second = json.loads((folders[1] / "manifest.json").read_text())
    status = {row["stage"]: row["status"] for row in second["stages"]}
    assert (status["preference_model"], status["policy"]) == ("reused", "computed")
    assert "The runs of this multirun side by side" in searched.output


def test_a_plan_of_a_search_is_of_its_first_trial(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = tiny_arguments(tiny_folder, "rlaif")
    plan = run(tmp_path, *arguments, "sweeps=optuna_kl_coef", "plan=true")
    assert plan.code == 0, plan.output
    assert plan.output.count("Nothing was run.") == 1
    assert "this is the plan of the first one" in plan.output


HIDDEN = "import sys; sys.modules['hydra_plugins.hydra_optuna_sweeper'] = None"


def test_a_search_without_its_plugin_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    refused = subprocess.run(
        [sys.executable, "-m", "cai.run", "sweeps=optuna_kl_coef"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "hydra/sweeper/optuna is a plugin that is not installed" in refused.stderr
    assert "pip install -e '.[optuna]'" in refused.stderr


WANDB = [paths.SWEEPS / "wandb" / "kl_coef.yaml"]


@pytest.mark.parametrize("path", WANDB, ids=[path.stem for path in WANDB])
def test_a_wandb_sweep_sets_what_exists(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    drawn = {
        name: {"value": own.get("value", own.get("min", own.get("values", [None])[0]))}
        for name, own in sweep["parameters"].items()
    }
    told = create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    assert sweep["command"][1:] == ["python", "-m", "cai.run", "${args_no_hyphens}"]
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        to_config(compose("config", overrides=told))
    scalars = [value for own in sweep["parameters"].values() for value in own.get("values", ())]
    assert all(isinstance(value, int | float | str) for value in scalars)
    header = path.read_text().partition("method:")[0]
    assert all(word in header for word in ("Question", "Command", "Time", f"wandb/{path.name}"))


def test_a_wandb_sweep_is_no_option_of_hydra() -> None:
    assert not {f"wandb/{path.stem}" for path in WANDB} & set(options("sweeps"))
    assert "wandb" not in options("sweeps")
