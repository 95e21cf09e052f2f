"""The record, and the mirror as the real wandb writes it offline."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import wandb

from cai import tracking
from cai.choices import LoggerKind, ModelSource, WandbMode
from cai.config import LoggerConfig
from cai.model_config import LoRAConfig
from cai.tracking import FileTracker, MemoryTracker, open_tracker
from cai.wandb_lineage import LineageNode

CANARY = "canary-5f2b7d-secret"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    (tmp_path / "home").mkdir()
    yield
    # The service of this process ends here: a run forked later must not look for it.
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]


def logger_config(kind: LoggerKind = LoggerKind.wandb) -> LoggerConfig:
    return LoggerConfig(kind=kind, project="cai-test", entity=None, mode=WandbMode.auto)


def open_run(output: Path, name: str, config: LoggerConfig | None = None, **run_config: object):
    return open_tracker(
        config or logger_config(),
        run_dir=output / "rlaif" / "medical" / name,
        output_dir=output,
        group="kl_coef",
        job_type="rlaif",
        tags=["medical", "smollm2_135m"],
        run_config=run_config,
    )


def node(name: str, folder: Path) -> LineageNode:
    return LineageNode(
        name=name, kind="adapter", folder=folder, inputs=("revisions-ab",), reused=False
    )


def lines(run_dir: Path) -> list[dict]:
    text = (run_dir / "metrics.jsonl").read_bytes().decode("ascii")
    return [json.loads(line) for line in text.splitlines()]


def test_file_tracker_keeps_everything_in_ascii_lines(tmp_path):
    tracker = FileTracker(tmp_path)
    tracker.log("ppo", 3, {"reward": 0.5, "kl": math.nan, "entropy": -math.inf, "num": 4})
    # Flushed: a kill now loses nothing.
    assert lines(tmp_path)[0] == {
        "kind": "metrics",
        "group": "ppo",
        "step": 3,
        "metrics": {"reward": 0.5, "kl": "nan", "entropy": "-inf", "num": 4},
    }
    tracker.table("samples", ["prompt", "response"], [["a\u2028b", None], ["\ud800", 3]])
    tracker.artifact(node("sl_policy", tmp_path / "store"))
    tracker.summary({"pm/accuracy": 0.61})
    tracker.close(0)
    tracker.close(1)
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds == ["metrics", "table", "artifact", "summary", "exit"]
    table = json.loads((tmp_path / "tables" / "samples.json").read_bytes().decode("ascii"))
    assert table["columns"] == ["prompt", "response"]
    assert table["rows"] == [["a\u2028b", ""], ["\\ud800", "3"]]
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["samples.json"]


def test_file_tracker_appends_after_a_resume(tmp_path):
    for step in (1, 2):
        tracker = FileTracker(tmp_path)
        tracker.log("sl", step, {"loss": 1.0})
        tracker.close(0)
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "metrics"] == [1, 2]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\nb", ".hidden", "x" * 101])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    for tracker in (FileTracker(tmp_path), MemoryTracker()):
        with pytest.raises(ValueError, match="cannot name"):
            tracker.table(name, ["a"], [])
        with pytest.raises(ValueError, match="cannot name"):
            tracker.log(name, 1, {})
        with pytest.raises(ValueError, match="cannot name"):
            tracker.artifact(node(name, tmp_path))


def test_uneven_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 columns, a row has 1 cells"):
        MemoryTracker().table("samples", ["a", "b"], [["x", "y"], ["x"]])


def test_memory_tracker_remembers():
    tracker = MemoryTracker()
    tracker.log("sl", 1, {"loss": 2.0})
    tracker.summary({"sl/loss": 2.0})
    tracker.close(1)
    tracker.close(0)
    assert tracker.logs == [("sl", 1, {"loss": 2.0})]
    assert (tracker.final, tracker.exit_code) == ({"sl/loss": 2.0}, 1)


def test_config_record_is_plain_and_without_secrets(monkeypatch):
    @dataclass
    class Section:
        source: ModelSource
        path: str
        names: tuple[str, ...]
        parts: dict[str, LoRAConfig]

    monkeypatch.setenv("MY_API_KEY", CANARY)
    lora = LoRAConfig(rank=8, alpha=16, target_modules=["q_proj"])
    found = tracking.config_record(
        Section(
            ModelSource.hub,
            "https://user:hunter2@host.example/model",
            (f"x {CANARY} y", "max_new_tokens"),
            {"main": lora},
        )
    )
    assert found == {
        "source": "hub",
        "path": "https://<redacted>@host.example/model",
        "names": ["<redacted>", "max_new_tokens"],
        "parts": {"main": {"rank": 8, "alpha": 16, "target_modules": ["q_proj"]}},
    }
    assert type(found["source"]) is str


def test_config_record_refuses_what_is_not_on_the_list():
    with pytest.raises(TypeError, match="not set"):
        tracking.config_record({"a": {1, 2}})


def test_no_mirror_does_not_import_wandb(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cai.config import *; "
        "from cai.tracking import open_tracker\n"
        "c = LoggerConfig(kind=LoggerKind.none, project='p', entity=None, mode=WandbMode.auto)\n"
        f"t = open_tracker(c, run_dir=Path({str(tmp_path)!r}), output_dir=Path('.'), group='g', "
        "job_type='j', tags=[], run_config={})\n"
        "t.log('sl', 1, {'loss': 1.0}); t.close(0)\n"
        "assert t.notice() is None and 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("cai")]


def inspect(run: Path) -> list[dict]:
    """Records of a run, as wandb's own reader shows them."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(run)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture
def two_runs(tmp_path, monkeypatch, caplog):
    """Two jobs of a multirun in one process, with a secret in the environment and in argv."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr(sys, "argv", ["cai", f"x={CANARY}"])
    monkeypatch.setattr("sys.stdin", None)  # a question would fail
    output = tmp_path / "outputs"
    adapter = output / "store" / "sl_policy" / "abc"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (adapter / "outside").symlink_to("/etc/hostname")
    for i in range(2):
        tracker = open_run(
            output, f"run-{i}", seed=i, constitution={"name": "medical"}, note=f"a {CANARY}"
        )
        try:
            for step in range(1, 4):
                tracker.log("sl", step, {"loss": 3.0 / step, "odd": math.nan})
            tracker.log("ppo", 1, {"reward": 0.25 + i})
            tracker.table("samples", ["prompt", "response"], [["hi", "<b>\x1b]0;x"], ["\ud800", 1]])
            tracker.artifact(node("sl_policy", adapter))
            tracker.summary({"pm/accuracy": 0.5 + i})
        finally:
            tracker.close(i)
        assert str(output / "wandb") in tracker.notice()
    assert own_messages(caplog) == []
    return output, list((output / "wandb").glob("offline-run-*"))


def test_real_wandb_offline_holds_config_curves_table_and_artifact(two_runs, tmp_path):
    output, runs = two_runs
    assert len(runs) == 2
    heads = {of_kind(inspect(run), "run")[0]["display_name"]: run for run in runs}
    for i, run in enumerate([heads["run-0"], heads["run-1"]]):
        records = inspect(run)
        (head,) = of_kind(records, "run")
        assert (head["run_group"], head["job_type"]) == ("kl_coef", "rlaif")
        assert set(head["tags"]) == {"medical", "smollm2_135m"}
        config = {k: v for k, v in head["config"]["update"].items() if not k.startswith("_")}
        assert config == {"seed": i, "constitution": {"name": "medical"}, "note": "<redacted>"}
        axes = {
            metric["glob_name"]: metric["step_metric"]
            for metric in of_kind(records, "metric")
            if "glob_name" in metric
        }
        assert axes == {"sl/*": "sl/step", "ppo/*": "ppo/step"}
        items = [record["item"] for record in of_kind(records, "history")]
        assert [item["sl/loss"] for item in items if "sl/loss" in item] == [3.0, 1.5, 1.0]
        assert [item["sl/odd"] for item in items if "sl/odd" in item] == ["nan"] * 3
        assert [item["ppo/reward"] for item in items if "ppo/reward" in item] == [0.25 + i]
        assert "pm/accuracy" in json.dumps(of_kind(records, "summary"))
        (artifact,) = [a for a in of_kind(records, "artifact") if a["type"] == "adapter"]
        assert json.loads(artifact["metadata"])["inputs"] == ["revisions-ab"]
        contents = artifact["manifest"]["contents"]
        assert [item["path"] for item in contents] == ["adapter_model.safetensors"]
        assert str(output) in contents[0]["local_path"]
        assert [item.get("exit_code", 0) for item in of_kind(records, "exit")] == [i]
        (table,) = run.glob("files/media/table/samples_*.table.json")
        cells = json.loads(table.read_text())
        assert cells["data"] == [["hi", "<b>\x1b]0;x"], ["\\ud800", "1"]]


def test_nothing_is_written_outside_the_output_root_nor_any_secret(two_runs, tmp_path):
    output, _ = two_runs
    assert list((tmp_path / "home").rglob("*")) == []
    files = [path for path in output.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    # Negative control: the search would find it.
    (output / "leak").write_text(CANARY)
    assert CANARY.encode() in (output / "leak").read_bytes()


def test_environment_is_as_before_after_close(tmp_path):
    before = dict(os.environ)
    tracker = open_run(tmp_path / "outputs", "run")
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path))
    tracker.close(0)
    left = {k: v for k, v in os.environ.items() if before.get(k) != v}
    assert not any(name.endswith("_DIR") for name in left)


def test_wandb_mode_in_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = open_run(tmp_path / "outputs", "run")
    tracker.log("sl", 1, {"loss": 1.0})
    tracker.close(0)
    assert tracker.notice() is None
    assert not (tmp_path / "outputs" / "wandb").exists()


def test_wandb_without_any_folder_to_write_to_warns_once_and_the_run_goes_on(tmp_path, caplog):
    output = tmp_path / "outputs"
    output.mkdir()
    (output / "wandb").write_text("in the way")
    tracker = open_run(output, "run")
    for step in range(3):
        tracker.log("sl", step, {"loss": 1.0})
    tracker.table("samples", ["a"], [["b"]])
    tracker.close(0)
    run_dir = output / "rlaif" / "medical" / "run"
    assert len(lines(run_dir)) == 5
    (message,) = own_messages(caplog)
    assert message.startswith("wandb was switched off: NotADirectoryError")


KILL_CORE = """
import os, signal, sys, time
from pathlib import Path
from cai.config import LoggerConfig, LoggerKind, WandbMode
from cai.tracking import open_tracker

output = Path(sys.argv[1])
config = LoggerConfig(kind=LoggerKind.wandb, project="p", entity=None, mode=WandbMode.auto)

def start(name):
    return open_tracker(config, run_dir=output / name, output_dir=output, group="g",
                        job_type="j", tags=[], run_config={})

tracker = start("first")
tracker.log("ppo", 1, {"reward": 1.0})
children = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        continue
    if int(stat.rsplit(")", 1)[1].split()[1]) == os.getpid() and "(wandb-core)" in stat:
        children.append(int(pid))
assert len(children) == 1, children
os.kill(children[0], signal.SIGKILL)
time.sleep(0.3)
for step in range(2, 50):
    tracker.log("ppo", step, {"reward": 1.0})
tracker.close(0)
print(tracker.notice())
tracker = start("second")
tracker.log("ppo", 1, {"reward": 1.0})
tracker.close(0)
print(tracker.notice())
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process in /proc")
def test_killed_wandb_core_costs_one_warning_and_not_the_next_job(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILL_CORE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr.count("was switched off") == 1
    assert "Traceback" not in done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("wandb was switched off: ")
    assert second.startswith("wandb is offline; upload this run with: wandb sync ")
    logged = [line for line in lines(tmp_path / "first") if line["kind"] == "metrics"]
    assert [line["step"] for line in logged] == list(range(1, 50))
