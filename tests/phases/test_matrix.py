"""`phase=matrix` on the tiny model: what it trains, shares, writes and refuses."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.matrix.record import SCHEMA, SCHEMA_VERSION
from cai.types import PolicyComparison, parse_lines
from tests.runs import Finished, artifact_bytes, run, stage_lines, tiny_arguments

SEEDS = "phase.seeds=[0,1,2]"
TRAINED = ("sl_policy", "comparisons", "preference_model", "policy")


def matrix(folder: Path, model: Path, *arguments: str, **settings: Any) -> Finished:
    return run(folder, *tiny_arguments(model, "matrix"), *arguments, **settings)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two constitutions, three seeds, the whole of rlaif."""
    finished = matrix(tmp_path_factory.mktemp("whole"), tiny_folder, SEEDS)
    assert finished.code == 0, finished.output
    return finished


def own_folder(finished: Finished) -> Path:
    (path,) = re.findall(r"^For machines: (.*)$", finished.output, re.M)
    return Path(path).parent


def kept(finished: Finished, name: str = "matrix.json") -> dict[str, Any]:
    return json.loads((own_folder(finished) / name).read_text("utf-8"))


def test_what_does_not_depend_on_constitution_or_seed_is_made_once(whole: Finished) -> None:
    stages = kept(whole, "manifest.json")["stages"]
    digests = [row["digest"] for row in stages]
    assert len(set(digests)) == len(digests)
    made = {
        name: sum(row["stage"] == name for row in stages) for name in {r["stage"] for r in stages}
    }
    for stage in ("prompts", "drafts", "helpfulness"):
        assert made[stage] == 3, stage  # one for each seed
    for stage in TRAINED:
        assert made[stage] == 6, stage  # two constitutions, three seeds
    assert made["responses"] == 6 + 3  # and the base's
    assert made["steering"] == 12  # each before each judge
    assert made["likelihoods"] == 6 + 3  # on the tests of medical; none has no test
    manifest = kept(whole, "manifest.json")
    assert manifest["status"] == "done"
    assert manifest["seeds"] == [0, 1, 2]
    assert [one["name"] for one in manifest["constitutions"]] == ["medical", "none"]
    assert manifest["constitution"]["name"] == "medical, none"


def test_matrix_json_says_what_the_records_say(whole: Finished) -> None:
    found = kept(whole)
    assert (found["schema"], found["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    assert (found["method"], found["policy"], found["circular"]) == ("rlaif", "rl_cai", True)
    cells = {(c["train"], c["judge"]): c for c in found["cells"]}
    assert set(cells) == {(t, j) for t in ("medical", "none") for j in ("medical", "none")}
    assert cells["none", "none"]["own"] is True
    assert cells["none", "medical"]["own"] is False
    # By hand, from the store: the stage of a cell has its policy's responses among its inputs.
    store = whole.folder / "outputs" / "store"
    policies = {p["digest"] for p in found["constitutions"][1]["policies"]}
    means = []
    for seed in (0, 1, 2):
        (folder,) = [
            path.parent
            for path in store.glob("steering/*/manifest.json")
            if (key := json.loads(path.read_text())["key"])["seed"] == seed
            and adapter_of(store, key["inputs"]["policy"]) in policies
            and len(principles(path.parent)) > 1  # medical judges, under all of its principles
        ]
        means.append(mean(folder))
    rate = cells["none", "medical"]["win_rate"]
    assert rate["by_seed"] == pytest.approx(means)
    assert rate["value"] == pytest.approx(sum(means) / 3)
    assert rate["low"] <= rate["value"] <= rate["high"]
    effects = [cells[t, "medical"]["effect"]["value"] for t in ("medical", "none")]
    assert sum(effects) == pytest.approx(0, abs=1e-12)
    judged = {row["judge"]: row["judged"] for row in found["dominance"]}
    assert judged["medical"]["value"] == pytest.approx(2 * effects[0])
    assert [row["judge"] for row in found["tests"]] == ["medical", "medical"]
    assert found["controls"][0]["control"] == "none"


def adapter_of(store: Path, responses: str) -> str:
    manifest = json.loads((store / "responses" / responses / "manifest.json").read_text())
    return manifest["key"]["inputs"]["adapter"]


def judgements(folder: Path) -> list[PolicyComparison]:
    path = folder / "records.jsonl"
    return list(parse_lines(PolicyComparison, path.read_text("ascii"), str(path)))


def principles(folder: Path) -> tuple[str, ...]:
    return judgements(folder)[0].comparison.principle_ids


def mean(folder: Path) -> float:
    rows = [row.comparison for row in judgements(folder)]
    assert len({(row.prompt.kind, row.prompt.id) for row in rows}) == 8  # all kinds
    kept = [
        0.5 if row.unjudged else sum(label.prob_a for label in row.labels) / len(row.labels)
        for row in rows
        if row.unjudged in (None, "identical")
    ]
    return sum(kept) / len(kept)


def test_metrics_are_flat_and_the_mirror_gets_tables(whole: Finished) -> None:
    metrics = kept(whole, "metrics.json")
    assert all(isinstance(value, float | int) for value in metrics.values())
    for name in (
        "matrix/medical/none/win_rate",
        "matrix/medical/none/win_rate_low",
        "matrix/none/medical/effect_high",
        "matrix/none/medical/test_shift",
        "matrix/dominance/medical",
        "matrix/dominance_on_tests/medical",
        "matrix/over_control/medical/none",
        "matrix/correlation/medical/none",
        "matrix/judge_accuracy/medical",
        "matrix/num_dominant",
    ):
        assert name in metrics
    folder = own_folder(whole)
    table = json.loads((folder / "tables" / "matrix.json").read_text())
    assert len(table["rows"]) == 4
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    contrasts = json.loads((folder / "tables" / "matrix_contrasts.json").read_text())
    assert [row[0] for row in contrasts["rows"]] == ["judged", "tests", "judged", "tests", "judged"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    groups = {line["group"] for line in lines if line["kind"] == "metrics"}
    assert {"sl_policy-medical-seed0", "policy-none-seed2"} <= groups
    artifacts = [line["name"] for line in lines if line["kind"] == "artifact"]
    assert artifacts == ["adapter-medical", "adapter-none"]


def test_the_report_has_a_heat_map_that_can_be_read_without_colour(whole: Finished) -> None:
    page = (own_folder(whole) / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))
    for said in (
        "Steering matrix under the constitutions “medical, none”".replace("“", "").replace("”", ""),
        "judged under medical",
        "trained under none",
        "within the spread",
        "own constitution; circular",
        "Own policy less the mean of all others",
        "tests of medical",
        "Without tests, hence without a column: none",
        "Seeds 0, 1, 2",
    ):
        assert said in text, said
    labels = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert any("medical before none" in label for label in labels)
    assert page.count("<script") == 1  # its own


def test_one_base_serves_every_constitution_by_name(whole: Finished, tiny_folder: Path) -> None:
    folder = own_folder(whole) / "adapters"
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tiny_folder)("Hello there")["input_ids"]])
    with torch.no_grad():
        plain = base(ids).logits.clone()
        model = PeftModel.from_pretrained(base, folder / "medical", adapter_name="medical")
        model.load_adapter(folder / "none", adapter_name="none")
        logits = {}
        for name in ("medical", "none", "medical"):
            model.set_adapter(name)
            again = model(ids).logits
            assert name not in logits or torch.equal(logits[name], again)
            logits[name] = again
        alone = {}
        for one in kept(whole)["constitutions"]:
            stored = whole.folder / "outputs/store/policy" / one["policies"][0]["digest"]
            fresh = AutoModelForCausalLM.from_pretrained(tiny_folder)
            own = PeftModel.from_pretrained(fresh, stored / "adapter")
            alone[one["name"]] = own(ids).logits
    assert not torch.equal(logits["medical"], logits["none"])
    for name, found in logits.items():
        assert not torch.equal(found, plain)
        assert torch.allclose(found, alone[name], atol=1e-6)


def test_the_same_command_again_recomputes_nothing(whole: Finished, tiny_folder: Path) -> None:
    before = artifact_bytes(whole.folder)
    again = matrix(whole.folder, tiny_folder, SEEDS)
    assert again.code == 0, again.output
    assert {row["status"] for row in kept(again, "manifest.json")["stages"]} == {"reused"}
    assert artifact_bytes(whole.folder) == before
    assert kept(again) == kept(whole)


def test_a_matrix_shares_with_runs_and_another_constitution_costs_its_own_part(
    whole: Finished, tiny_folder: Path
) -> None:
    alone = run(whole.folder, *tiny_arguments(tiny_folder, "rlaif"), "seed=2", "plan=true")
    assert alone.code == 0, alone.output
    lines = {line.split()[0]: line for line in stage_lines(alone.output)}
    for stage in TRAINED:
        assert "reuse" in lines[stage], stage
    named = "phase.constitutions=[medical,none,inverted]"
    plan = matrix(whole.folder, tiny_folder, SEEDS, named, "plan=true")
    assert plan.code == 0, plan.output
    rows = {line.split()[0]: line.split()[1:] for line in stage_lines(plan.output)}
    # asked for, different, reuse, compute
    assert rows["prompts"][1:4] == ["3", "3", "0"]
    assert rows["policy"][:4] == ["9", "9", "6", "3"]
    assert rows["steering"][:4] == ["27", "27", "12", "15"]
    assert rows["drafts"][:4] == ["9", "3", "3", "0"]
    assert "Nothing was run." in plan.output


@pytest.mark.parametrize(
    "point", ["sl_policy:step=5", "policy:commit=1", "steering:shard=3", "likelihoods:start=6"]
)
def test_a_killed_matrix_goes_on_and_ends_with_the_same_bytes(
    whole: Finished, tiny_folder: Path, tmp_path: Path, point: str
) -> None:
    killed = matrix(tmp_path, tiny_folder, SEEDS, fault=f"{point}:kill")
    assert killed.code == -9, killed.output
    again = matrix(tmp_path, tiny_folder, SEEDS)
    assert again.code == 0, again.output
    assert artifact_bytes(tmp_path) == artifact_bytes(whole.folder)


@pytest.mark.parametrize(("method", "stage"), [("sl_cai", "sl_policy"), ("dpo", "dpo_policy")])
def test_another_method_compares_another_policy(
    whole: Finished, tiny_folder: Path, method: str, stage: str
) -> None:
    settings = (f"phase.method={method}", "phase.principles_per_prompt=2", SEEDS)
    finished = matrix(whole.folder, tiny_folder, *settings)
    assert finished.code == 0, finished.output
    found = kept(finished)
    assert found["policy"] == method
    assert found["circular"] is (method == "dpo")
    assert {p["stage"] for one in found["constitutions"] for p in one["policies"]} == {stage}
    rows = kept(finished, "manifest.json")["stages"]
    assert {row["status"] for row in rows if row["stage"] == "sl_policy"} == {"reused"}
    steering = [row["digest"] for row in rows if row["stage"] == "steering"]
    store = whole.folder / "outputs" / "store" / "steering"
    drawn = {len(principles(store / digest)) for digest in steering}
    assert drawn == {1, 2}  # `none` has one question


def test_one_seed_is_told_to_be_too_few(whole: Finished, tiny_folder: Path) -> None:
    finished = matrix(whole.folder, tiny_folder, "phase.seeds=[1]")
    assert finished.code == 0, finished.output
    assert "1 seed: too few" in finished.output
    found = kept(finished)
    assert not any(cell["effect"]["real"] for cell in found["cells"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["phase.constitutions=[medical]"], "phase.constitutions must name at least two documents"),
        (["phase.constitutions=[]"], "must name at least two documents, found none"),
        (["phase.constitutions=[none,none]"], "phase.constitutions names none more than once"),
        (["phase.constitutions=[medcal,none]"], "Did you mean medical?"),
        (["phase.constitutions=[none,./gone.yaml]"], "phase.constitutions=./gone.yaml"),
        (["phase.constitutions=[none,bad.yaml]"], "bad.yaml"),
        (["phase.seeds=[]"], "phase.seeds must name at least one"),
        (["phase.seeds=[1,1]"], "phase.seeds names 1 more than once"),
        (["phase.seeds=[-1]"], "phase.seeds must be in [0, 2^31), found -1"),
        (["phase.seeds=[a]"], "phase.seeds"),
        (["phase.method=grpo"], "phase.method"),
        (["phase.principles_per_prompt=0"], "phase.principles_per_prompt must be above 0"),
        (["seed=3"], "Type: phase.seeds=[3]"),
        (["constitution.document=mine.yaml"], "phase.constitutions=[mine.yaml,none,"),
        (["model@phase.nobody=local"], "model@phase.nobody is no role"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nprinciples: 3\n", "utf-8")
    finished = matrix(tmp_path, tiny_folder, *settings)
    assert finished.code in (1, 2), finished.output  # 1 for documents, as in every phase
    assert message in finished.output
    assert not (tmp_path / "outputs" / "store").exists()


def test_the_domain_is_the_run_s_and_that_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    settings = ("constitution=default", "phase.method=sl_cai", "phase.seeds=[0]")
    finished = matrix(tmp_path, tiny_folder, *settings)
    assert finished.code == 0, finished.output
    assert (
        "constitution=default is not trained here: it gives the domain of the prompts (none)"
        in (re.sub(r"\s+", " ", finished.output))
    )
    assert "of no domain (constitution=default)" in kept(finished)["prompts"]
