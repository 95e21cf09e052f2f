"""The command line: what it refuses and how it says so, what a job is told, how a run ends.

Settings that are wrong are tested in this process; whatever runs a job is a process of its own,
with a stand-in for `cai.session` that does what the seed tells it to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai import paths, run
from cai.errors import ConfigError
from cai.overrides import check_overrides
from cai.schema import options

STAND_IN = """
import json, sys, time, types

def execute(config, job):
    from cai.errors import UserError
    print("JOB " + json.dumps({"dir": job.run_dir, "seed": config.seed, "sweep": job.sweep,
          "num": job.job_num, "command": job.command, "choices": job.choices,
          "overrides": job.overrides}), flush=True)
    if config.seed == 11: raise UserError("out of luck: seed=1")
    if config.seed == 12: raise RuntimeError("a bug")
    if config.seed == 14: time.sleep(60)
    return 0.5

module = types.ModuleType("cai.session")
module.execute = execute
sys.modules["cai.session"] = module
from cai.run import main
sys.exit(main())
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAND_IN, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
    )


def jobs_of(output: str) -> list[dict]:
    return [json.loads(line[4:]) for line in output.splitlines() if line.startswith("JOB ")]


def ran(folder: Path, *arguments: str) -> tuple[int, list[dict], str]:
    process = start(folder, *arguments)
    output, complaints = process.communicate(timeout=60)
    return process.returncode, jobs_of(output), complaints


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Type a wrong command; return what is said. It must end with code 2 and leave no files."""

    def typed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cai", *arguments])
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        assert run.main() == 2
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.err

    return typed


# What is wrong on the command line


def test_an_unknown_key_gets_the_valid_ones_and_the_nearest(refuse):
    said = refuse("phase.ppo.kl_coeff=0.1")
    assert "Unknown key phase.ppo.kl_coeff (on the command line: phase.ppo.kl_coeff=0.1)" in said
    assert "Valid keys in phase.ppo: num_iterations, " in said
    assert "Type: phase.ppo.kl_coef=0.1" in said


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_new_tokens"])
def test_a_sampler_with_another_law_is_refused_with_the_reason(refuse, name):
    said = refuse(f"phase.ppo.{name}=2")
    assert f"phase.ppo.{name} is refused (on the command line: phase.ppo.{name}=2): " in said
    assert "does not follow the law that is scored" in said
    assert "phase.ppo.temperature" in said


def test_an_unknown_group_is_a_key_at_the_top(refuse):
    said = refuse("constituton=medical")
    assert "experiment, sweeps, debug" in said
    assert "Type: constitution=medical" in said


def test_a_key_without_its_section_is_found_elsewhere(refuse):
    assert "Did you mean phase.ppo.kl_coef" in refuse("kl_coef=3")


def test_an_unknown_option_gets_the_options(refuse):
    said = refuse("constitution=medcal")
    assert all(option in said for option in options("constitution"))
    assert "Type: constitution=medical" in said


def test_an_unknown_option_of_a_role_keeps_the_role(refuse):
    assert "Type: model@phase.feedback_model=qwen3_4b" in refuse("model@phase.feedback_model=qwen")


def test_a_role_that_the_phase_does_not_have_gets_the_roles(refuse):
    said = refuse("phase=sl_cai", "model@phase.reward_model=local")
    assert "model@phase.critique_models.main, model@phase.feedback_model" in said


def test_members_of_an_ensemble_are_explained(refuse):
    said = refuse("feedback=ensemble", "feedback@feedback.members.fourth=multiple_choice")
    assert "no member fourth to replace; it has first, second, third" in said
    assert "type: +feedback@feedback.members.fourth=<option>" in said
    said = refuse("feedback=multiple_choice", "feedback@feedback.members.third=multiple_choice")
    assert "Type: feedback=ensemble" in said
    said = refuse("feedback=ensemble", "feedback.members.thrd.num_few_shot=2")
    assert "Valid keys in feedback.members: first, second, third" in said
    assert "Type: feedback.members.third.num_few_shot=2" in said


def test_a_setting_inside_a_section_that_is_null_is_explained(refuse):
    said = refuse("feedback=multiple_choice", "feedback.model.max_context=3")
    assert "model@feedback.model=<option>" in said


def test_a_wrong_type_gets_the_right_one(refuse):
    assert "It takes a number" in refuse("phase.ppo.kl_coef=abc")
    assert "It takes a whole number" in refuse("seed=null")
    assert "It takes a section with the keys num_iterations" in refuse("phase.ppo=3")
    said = refuse("feedback.label=sof")
    assert "one of soft, hard, clamp" in said
    assert "Type: feedback.label=soft" in said


def test_several_values_need_the_multirun_flag_and_it_goes_first(refuse):
    assert "python -m cai.run -m phase=rlaif seed=1,2" in refuse("phase=rlaif", "seed=1,2")
    assert "python -m cai.run -m phase=rlaif seed=1,2" in refuse("phase=rlaif", "-m", "seed=1,2")


def test_a_setting_that_cannot_be_parsed_is_quoted(refuse):
    assert "Cannot read the setting a=b=[c" in refuse("a=b=[c")


def test_settings_with_dashes_are_explained(refuse):
    assert "key=value, without dashes" in refuse("--phase")


def test_an_unwritable_output_folder_is_a_sentence(refuse):
    said = refuse("output_dir=/dev/null/x")
    assert "Not a directory" in said
    assert "output_dir=<a folder" in said


@pytest.mark.parametrize(
    "override",
    [
        "constitution=../../x",
        "constitution=/etc/x",
        "model@phase.feedback_model=../x",
        "+experiment=a/b",
        "constitution=medical,../x",
        "constitution=choice(medical,../x)",
        "constitution='${oc.env:HOME}'",
        f"constitution={'x' * 65}",
        "hydra/launcher=../../x",
    ],
)
def test_an_option_that_is_a_path_is_refused(override):
    with pytest.raises(ConfigError, match="the name of a file"):
        check_overrides([override])


@pytest.mark.parametrize(
    "override",
    [
        "logger.api_key=hunter2",
        "+wandb.apikey=hunter2",
        "+HF_TOKEN=hunter2",
        "++a.b.secret=hunter2",
        "+data.password=hunter2",
        "hydra.job.env_set.WANDB_API_KEY=hunter2",
        "+logger={auth: {token: hunter2}}",
        "hydra.job.env_copy=[WANDB_API_KEY]",
    ],
)
def test_a_secret_is_refused_and_not_repeated(override):
    with pytest.raises(ConfigError, match="environment") as caught:
        check_overrides([override])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["+phase._target_=os.system", "hydra.callbacks.x._target_=x.y", "+a={_partial_: true}"],
)
def test_a_key_that_names_code_is_refused(override):
    with pytest.raises(ConfigError, match="names code to run"):
        check_overrides([override])


def test_settings_that_only_look_alike_pass():
    check_overrides(
        [
            "phase.drafts.max_new_tokens=8",
            "+tokenizer=x",
            "hydra/launcher=submitit_local",
            "constitution=null",
            "constitution=glob(*)",
            "constitution.document=../mine.yaml",
            "output_dir=/tmp/x",
            "seed=range(1,4)",
            "~logger",
        ]
    )


# What is wrong in a YAML file


@pytest.fixture
def option_file(tmp_path):
    def write(group: str, text: str) -> str:
        folder = tmp_path / "mine" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "broken.yaml").write_text(text)
        return f"--config-dir={tmp_path / 'mine'}"

    return write


def test_a_typo_in_a_file_names_file_and_line(refuse, option_file):
    flag = option_file("experiment", "# @package _global_\nphase:\n  ppo:\n    kl_coeff: 1\n")
    said = refuse(flag, "experiment=broken")
    assert "Unknown key phase.ppo.kl_coeff (in mine/experiment/broken.yaml:4)" in said
    assert "Did you mean phase.ppo.kl_coef?" in said


def test_a_typo_in_an_option_without_types_is_caught_as_well(refuse, option_file):
    said = refuse(option_file("model", "name: broken\nsorce: path\n"), "model=broken")
    assert "Unknown key model.sorce (in mine/model/broken.yaml:2)" in said
    assert "Valid keys in model: name, source" in said


def test_a_wrong_type_in_a_file_names_file_and_line(refuse, option_file):
    flag = option_file("experiment", "# @package _global_\nphase:\n  ppo:\n    kl_coef: x\n")
    said = refuse(flag, "experiment=broken")
    assert "Wrong value for phase.ppo.kl_coef (in mine/experiment/broken.yaml:4)" in said
    assert "It takes a number" in said


def test_an_unknown_option_in_a_file_names_file_and_line(refuse, option_file):
    text = "# @package _global_\ndefaults:\n  - override /constitution: medcal\n"
    said = refuse(option_file("experiment", text), "experiment=broken")
    assert "(in mine/experiment/broken.yaml:3)" in said
    assert "Did you mean medical?" in said


def test_an_experiment_without_a_package_is_told_its_first_line(refuse, option_file):
    assert "# @package _global_" in refuse(
        option_file("experiment", "seed: 1\n"), "experiment=broken"
    )


def test_broken_yaml_names_file_and_line(refuse, option_file):
    text = "# @package _global_\nseed: 1\nseed: 2\n"
    said = refuse(option_file("experiment", text), "experiment=broken")
    assert "broken.yaml:3" in said
    assert "duplicate key seed" in said


# Help, completion, imports


def test_nothing_heavy_is_imported_before_a_job():
    code = (
        "import sys, cai.run; heavy = {'torch', 'transformers', 'lightning', 'wandb', 'numpy',"
        " 'peft', 'matplotlib'}; print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_lists_every_group_with_its_options_and_is_light():
    before = os.times()
    shown = subprocess.run(
        [sys.executable, "-m", "cai.run", "--help"], capture_output=True, text=True, check=True
    )
    after = os.times()
    assert after.children_user - before.children_user < 0.8
    for group in ("phase", "constitution", "model", "data", "hardware", "logger", "experiment"):
        row = next(line for line in shown.stdout.splitlines() if line.startswith(f"  {group} "))
        assert options(group)[0] in row
    assert "outputs/<phase>/<constitution>/<time>/" in shown.stdout
    assert 'eval "$(cai -sc install=bash)"' in shown.stdout
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())


def test_the_console_script_completes_options():
    script = Path(sys.executable).parent / "cai"
    for group in ("constitution", "phase", "sweeps"):
        shown = subprocess.run(
            [script, "-sc", "query=bash"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COMP_LINE": f"cai {group}="},
        )
        assert shown.stdout.split() == [f"{group}={option}" for option in options(group)]


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "defaults-tree"]])
def test_hydras_own_views_work(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["cai", *flags, "constitution=medical"])
    assert run.main() == 0
    assert "medical" in capsys.readouterr().out


# Running


def test_runs_that_start_together_do_not_share_a_folder(tmp_path):
    processes = [start(tmp_path, "constitution=medical") for _ in range(4)]
    folders = set()
    for process in processes:
        output, _ = process.communicate(timeout=60)
        folders |= {job["dir"] for job in jobs_of(output)}
        assert process.returncode == 0
    assert len(folders) == 4
    assert {Path(folder).parent for folder in folders} == {tmp_path / "outputs/rlaif/medical"}


def test_a_job_knows_its_choices_and_its_command(tmp_path):
    code, (job,), _ = ran(tmp_path, "phase=sl_cai", "debug=tiny", "constitution.document=my file")
    assert code == 0
    assert job["choices"]["phase"] == "sl_cai"
    assert job["choices"]["model@phase.critique_models.main"] == "smollm2_135m"
    assert not [group for group in job["choices"] if "/" in group]
    assert job["command"].endswith("phase=sl_cai debug=tiny 'constitution.document=my file'")
    assert (job["sweep"], job["num"]) == (None, None)


def test_a_plan_leaves_nothing_behind(tmp_path):
    code, (job,), _ = ran(tmp_path, "plan=true")
    assert code == 0
    assert not list(tmp_path.iterdir())
    assert not Path(job["dir"]).exists()


@pytest.mark.parametrize(
    ("seed", "code", "said"),
    [
        (11, 1, "Error: out of luck: seed=1\n"),
        (12, 1, "Go on with: python -m cai.run seed=12\n"),
    ],
)
def test_a_failed_job_says_why_and_has_its_code(tmp_path, seed, code, said):
    got, (job,), complaints = ran(tmp_path, f"seed={seed}")
    assert got == code
    assert complaints.endswith(said)
    assert ("Traceback" in complaints) == (seed == 12)
    assert said.strip() in (Path(job["dir"]) / "run.log").read_text()


def test_a_multirun_goes_on_after_a_failed_job_and_lists_it(tmp_path):
    code, jobs, complaints = ran(tmp_path, "-m", "seed=11,12,2", "constitution=none")
    assert code == 1
    assert [job["num"] for job in jobs] == [0, 1, 2]
    assert len({job["dir"] for job in jobs}) == 3
    assert len({job["sweep"] for job in jobs}) == 1
    assert "2 failed" in complaints
    assert "#0 UserError: out of luck" in complaints
    assert "python -m cai.run seed=12 constitution=none\n" in complaints
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"sweeps"}


def test_a_sweep_file_needs_no_flag_and_its_runs_can_be_repeated_alone(tmp_path):
    code, jobs, _ = ran(tmp_path, "sweeps=kl_coef", "phase.ppo.kl_coef=0.1,0.2")
    assert code == 0
    assert [Path(job["dir"]).parts[-4:-2] for job in jobs] == [("sweeps", "kl_coef")] * 2
    assert all(job["sweep"].startswith("kl_coef-") for job in jobs)
    words = jobs[1]["command"].removeprefix("python -m cai.run ").split()
    code, again, _ = ran(tmp_path, *words)
    assert code == 0
    assert [job["num"] for job in again] == [None]
    assert "phase.ppo.kl_coef=0.2" in again[0]["overrides"]


@pytest.mark.parametrize(
    ("signum", "code", "arguments"),
    [
        (signal.SIGTERM, 143, ["seed=14"]),
        (signal.SIGINT, 130, ["seed=14"]),
        (signal.SIGINT, 130, ["-m", "seed=14,1"]),
        (signal.SIGTERM, 143, ["-m", "seed=14,1"]),
    ],
)
def test_a_signal_stops_everything_with_a_line_on_how_to_continue(
    tmp_path, signum, code, arguments
):
    process = start(tmp_path, *arguments)
    for line in process.stdout:
        if line.startswith("JOB "):
            break
    time.sleep(0.1)
    process.send_signal(signum)
    output, complaints = process.communicate(timeout=20)
    assert process.returncode == code
    assert not jobs_of(output)
    assert complaints.endswith(
        "Interrupted; what is done is kept. Continue with: python -m cai.run "
        f"{' '.join(arguments)}\n"
    )


def test_the_parts_of_the_project_are_where_paths_says():
    assert (paths.CONF / "config.yaml").is_file()
    assert (paths.CONSTITUTIONS / "default.yaml").is_file()
    assert (paths.SWEEPS / "kl_coef.yaml").is_file()
