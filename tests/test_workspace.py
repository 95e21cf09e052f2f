"""Panels, custom charts and lineage, on what a real tiny run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cai.choices import PanelKind
from cai.wandb_charts import CHARTS, charts_of
from cai.workspace import SECTIONS
from tests.runs import Finished, run, tiny_arguments


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("mirrored")
    environment = {"WANDB_MODE": "offline", "HOME": str(folder)}
    done = run(folder, *tiny_arguments(tiny_folder), "logger=wandb", **environment)
    assert done.code == 0, done.output
    assert "switched off" not in done.output
    return done


@pytest.fixture(scope="module")
def run_dir(finished: Finished) -> Path:
    return finished.run_dirs()[-1]


@pytest.fixture(scope="module")
def local(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def mirrored(finished: Finished) -> list[dict]:
    """Records of the run as wandb's own reader shows them."""
    (folder,) = (finished.folder / "outputs" / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_key_of_the_workspace_is_logged_by_a_run(local: list[dict]) -> None:
    by_step = {
        f"{line['group']}/{name}"
        for line in local
        if line["kind"] == "metrics"
        for name in line["metrics"]
    }
    final = {name for line in local if line["kind"] == "summary" for name in line["metrics"]}
    tables = {line["name"] for line in local if line["kind"] == "table"}
    known = {
        PanelKind.lines: by_step,
        PanelKind.scatter: by_step,
        PanelKind.bars: final,
        PanelKind.chart: tables,
    }
    for section in SECTIONS:
        for panel in section.panels:
            assert set(panel.keys) <= known[panel.kind], (section.name, panel.title)


def test_lines_of_one_panel_share_a_step_axis() -> None:
    lines = [p for s in SECTIONS for p in s.panels if p.kind is PanelKind.lines]
    assert lines
    assert all(len({key.partition("/")[0] for key in panel.keys}) == 1 for panel in lines)


@pytest.mark.parametrize("name", list(CHARTS))
def test_a_custom_chart_draws_the_rows_that_are_in_the_run_folder(
    name: str, run_dir: Path, finished: Finished
) -> None:
    table = json.loads((run_dir / "tables" / f"{name}.json").read_text())
    assert set(CHARTS[name].fields.values()) <= set(table["columns"])
    media = finished.folder / "outputs" / "wandb"
    (drawn,) = media.glob(f"offline-run-*/files/media/table/{name}_chart_table_*.table.json")
    found = json.loads(drawn.read_text())
    assert found["columns"] == table["columns"]
    assert found["data"] == [[float(cell) for cell in row] for row in table["rows"]]


def test_kl_reward_has_the_rounds_of_ppo(run_dir: Path, local: list[dict]) -> None:
    rows = json.loads((run_dir / "tables" / "kl_reward.json").read_text())["rows"]
    rounds = [
        [line["metrics"]["objective/kl"], line["metrics"]["objective/scores"], line["step"]]
        for line in local
        if line["kind"] == "metrics" and line["group"] == "policy"
    ]
    assert [[float(cell) for cell in row] for row in rows] == rounds


def test_a_table_without_a_chart_is_only_a_table() -> None:
    assert charts_of("samples", ["prompt"], [["hello"]]) == {}


def test_lineage_leads_from_the_base_over_the_labels_to_the_policy(
    local: list[dict], mirrored: list[dict]
) -> None:
    kept = {line["name"]: line for line in local if line["kind"] == "artifact"}

    def behind(name: str) -> set[str]:
        return {name}.union(*(behind(one) for one in kept[name]["inputs"]))

    (policy,) = (name for name in kept if name.startswith("policy-"))
    stages = {name.partition("-")[0] for name in behind(policy)}
    path = ("model", "drafts", "revisions", "sl_policy", "pairs", "comparisons", "preference_model")
    assert stages >= set(path)
    assert not any(name.startswith("responses-") for name in behind(policy))
    names = list(kept)
    assert all(names.index(one) < names.index(n) for n, a in kept.items() for one in a["inputs"])
    logged = {
        record["artifact"]["name"]: json.loads(record["artifact"]["metadata"])
        for record in mirrored
        if record["type"] == "artifact" and record["artifact"]["type"] != "run_table"
    }
    assert {name: logged[name]["inputs"] for name in kept} == {
        name: line["inputs"] for name, line in kept.items()
    }


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "cai.workspace", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=inherited | environment,
    )


def test_the_dry_run_prints_the_panels_without_wandb() -> None:
    done = command("--dry-run", "--project", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["project"] == "mine"
    assert [section["name"] for section in told["sections"]] == [s.name for s in SECTIONS]


def test_without_a_server_it_ends_in_one_sentence(tmp_path: Path) -> None:
    done = command(HOME=str(tmp_path), NETRC=str(tmp_path / "none"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    expected = "pip install -e '.[workspace]'", "wandb login"
    assert any(text in done.stderr for text in expected)
