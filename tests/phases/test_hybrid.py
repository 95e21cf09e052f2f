from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from cai.edge_cases import FILE, EdgeCase, EdgeReason
from cai.types import Comparison, Evaluated, Response, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

PEOPLE = [
    "human_comparisons",
    "prompts",
    "sft_policy",
    "samples",
    "rlhf_preference_model",
    "rlhf_policy",
]
POLICIES = ["base", "rlhf", "sl_cai", "rl_cai"]


@pytest.fixture(scope="module")
def after_rlhf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run without labels, where `phase=rlhf` has been."""
    folder = tmp_path_factory.mktemp("hybrid")
    first = run(folder, *tiny_arguments(tiny_folder, "rlhf"))
    assert first.code == 0, first.output
    second = run(folder, *tiny_arguments(tiny_folder, "hybrid"))
    assert second.code == 0, second.output
    return second


@pytest.fixture(scope="module")
def listed(after_rlhf: Finished) -> list[dict]:
    """The list that the run without labels wrote."""
    path = after_rlhf.run_dirs()[1] / FILE
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def labelled(after_rlhf: Finished, listed: list[dict], tiny_folder: Path) -> Finished:
    """The same run with labels for all cases but the last."""
    words = ["a", "b", "tie"]
    rows = [row | {"label": words[place % 3]} for place, row in enumerate(listed[:-1])]
    path = after_rlhf.folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, listed[-1]]))
    finished = run(
        after_rlhf.folder, *tiny_arguments(tiny_folder, "hybrid"), f"phase.labels={path}"
    )
    assert finished.code == 0, finished.output
    return finished


def artifact(finished: Finished, stage: str) -> Path:
    (digest,) = {s["digest"] for s in finished.manifest()["stages"] if s["stage"] == stage}
    return finished.folder / "outputs" / "store" / stage / digest


def records(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    path = artifact(finished, stage) / name
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def page(run_dir: Path) -> str:
    text = (run_dir / "report.html").read_text("utf-8")
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def manifest_of(run_dir: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage in json.loads((run_dir / "manifest.json").read_text())["stages"]:
        found.setdefault(stage["stage"], []).append(stage["status"])
    return found


def test_what_rlhf_made_is_reused_and_cai_begins_with_its_policy(after_rlhf: Finished) -> None:
    statuses = manifest_of(after_rlhf.run_dirs()[1])
    for stage in PEOPLE:
        assert set(statuses[stage]) == {"reused"}, stage
    for stage in ("drafts", "sl_policy", "policy", "edge_labels", "edge_cases"):
        assert statuses[stage] == ["computed"], stage
    assert "edge_policy" not in statuses
    assert statuses["responses"] == ["reused", "reused", "computed", "computed"]
    drafts = records(after_rlhf, "drafts", Response)
    assert {draft.policy for draft in drafts} == {"rlhf"}
    key = json.loads((artifact(after_rlhf, "sl_policy") / "manifest.json").read_text())["key"]
    assert key["inputs"]["start"] == artifact(after_rlhf, "rlhf_policy").name
    reference = json.loads((artifact(after_rlhf, "policy") / "manifest.json").read_text())["key"]
    assert reference["inputs"]["sl_policy"] == artifact(after_rlhf, "sl_policy").name


def test_edge_cases_are_judged_under_every_principle(
    after_rlhf: Finished, listed: list[dict]
) -> None:
    judged = records(after_rlhf, "edge_labels", Comparison)
    compared = records(after_rlhf, "comparisons", Comparison)
    usable = [c for c in compared if c.prob_a is not None]
    assert [c.response_a for c in judged] == [c.response_a for c in usable]
    assert all(len(c.labels) == 12 for c in judged)  # medical has 12 principles
    cases = records(after_rlhf, "edge_cases", EdgeCase)
    assert 0 < len(cases) <= 4
    assert [row["id"] for row in listed] == [one.id for one in cases]
    assert all(row["label"] is None for row in listed)
    doubts = [one.doubt for one in cases]
    assert doubts == sorted(doubts, reverse=True)
    for one in cases:
        probs = [label.prob_a for label in one.labels]
        if one.reason is EdgeReason.not_covered:
            assert max(abs(p - 0.5) for p in probs) <= 0.1
        else:
            assert min(probs) < 0.4 < 0.6 < max(probs)


def test_without_labels_the_run_ends_with_rl_cai_and_says_how_to_go_on(
    after_rlhf: Finished, listed: list[dict]
) -> None:
    run_dir = after_rlhf.run_dirs()[1]
    evaluated = [e.response.policy for e in records(after_rlhf, "evaluation", Evaluated)]
    assert list(dict.fromkeys(evaluated)) == POLICIES
    assert f"{len(listed)} edge cases have no label yet" in after_rlhf.output
    assert f"List: {run_dir / FILE}" in after_rlhf.output
    assert f"phase.labels={run_dir}/edge_cases.labelled.jsonl" in after_rlhf.output
    text = page(run_dir)
    for said in ("Edge cases for people", "Nobody has labelled them yet", "Labels by people"):
        assert said in text, said
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name in (
        "rlhf_preference_model/accuracy",
        "preference_model/accuracy",
        "edge_cases/num_listed",
        "eval/rlhf/likelihood_accuracy",
        "eval/rl_cai/likelihood_accuracy",
    ):
        assert name in metrics, sorted(metrics)
    assert metrics["edge_cases/num_labelled"] == 0


def test_with_labels_only_the_last_policy_and_its_evaluation_are_new(
    labelled: Finished, listed: list[dict]
) -> None:
    statuses = labelled.statuses()
    for stage in (*PEOPLE, "sl_policy", "comparisons", "preference_model", "policy", "edge_cases"):
        assert set(statuses[stage]) == {"reused"}, stage
    assert statuses["edge_policy"] == ["computed"]
    assert statuses["responses"] == ["reused"] * 4 + ["computed"]
    (counts,) = [s["counts"] for s in labelled.manifest()["stages"] if s["stage"] == "edge_policy"]
    assert counts["pairs"] == len(listed) - 1
    evaluated = [e.response.policy for e in records(labelled, "evaluation", Evaluated)]
    assert list(dict.fromkeys(evaluated)) == [*POLICIES, "hybrid"]
    adapter = "adapter/adapter_model.safetensors"
    before, after = (artifact(labelled, stage) / adapter for stage in ("policy", "edge_policy"))
    assert before.read_bytes() != after.read_bytes()
    curve = json.loads((artifact(labelled, "edge_policy") / "curve.json").read_text())
    assert curve[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4)
    metrics = json.loads((labelled.run_dirs()[-1] / "metrics.json").read_text())
    assert metrics["edge_cases/num_labelled"] == len(listed) - 1
    assert "eval/hybrid/likelihood_accuracy" in metrics
    assert f"1 of {len(listed)} edge cases have no label" in labelled.output
    written = (labelled.run_dirs()[-1] / FILE).read_text("utf-8").splitlines()
    assert json.loads(written[0])["label"] == "a"
    assert "the last policy learned these labels by DPO" in page(labelled.run_dirs()[-1])


def test_another_label_is_another_policy_and_the_same_file_recomputes_nothing(
    labelled: Finished, tiny_folder: Path
) -> None:
    path = labelled.folder / "labels.jsonl"
    arguments = [*tiny_arguments(tiny_folder, "hybrid"), f"phase.labels={path}"]
    before = artifact_bytes(labelled.folder)
    again = run(labelled.folder, *arguments)
    assert again.code == 0, again.output
    assert {s for statuses in again.statuses().values() for s in statuses} == {"reused"}
    assert artifact_bytes(labelled.folder) == before
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    turned = labelled.folder / "turned.jsonl"
    rows[0]["label"] = "b"
    turned.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = run(labelled.folder, *arguments[:-1], f"phase.labels={turned}", "plan=true")
    assert plan.code == 0, plan.output
    assert re.search(r"^edge_cases +reuse", plan.output, re.M)
    assert re.search(r"^edge_policy +compute", plan.output, re.M)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "cannot be read"),
        ([{"id": "edge-000000000000", "label": "a"}], ":1: id: edge-000000000000 is no edge case"),
        ([{"id": "x", "label": "maybe"}], ":1: label: must be one of a, b, tie"),
        ([{"id": "x", "label": None}], "none of its 1 rows has a label"),
    ],
)
def test_bad_labels_are_refused(
    after_rlhf: Finished, tiny_folder: Path, tmp_path: Path, rows: list | None, message: str
) -> None:
    path = tmp_path / "labels.jsonl"
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = artifact_bytes(after_rlhf.folder)
    refused = run(after_rlhf.folder, *tiny_arguments(tiny_folder, "hybrid"), f"phase.labels={path}")
    assert refused.code in (1, 2), refused.output
    assert message in refused.output
    assert artifact_bytes(after_rlhf.folder) == before


def test_a_missing_file_of_labels_is_refused_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = tiny_arguments(tiny_folder, "hybrid")
    for settings, message in (
        (["phase.labels=gone.jsonl"], "phase.labels=gone.jsonl: cannot be read"),
        (["phase.edge_dpo.validation_frac=0.2"], "phase.edge_dpo.human_frac must be null and"),
        (["phase.rlhf.preference_model.condition=principle"], "phase.rlhf.preference_model.condi"),
        (["phase.edge_threshold=0.5"], "phase.edge_threshold must be in [0, 0.5)"),
    ):
        refused = run(tmp_path, *arguments, *settings)
        assert refused.code == 2, refused.output
        assert message in refused.output
    assert not list((tmp_path / "outputs" / "store").glob("*/*/manifest.json"))


def test_a_killed_last_step_goes_on_and_ends_with_the_same_bytes(
    labelled: Finished, tiny_folder: Path
) -> None:
    arguments = [
        *tiny_arguments(tiny_folder, "hybrid"),
        f"phase.labels={labelled.folder / 'labels.jsonl'}",
        "phase.edge_dpo.num_epochs=3",
    ]
    killed = run(labelled.folder, *arguments, fault="edge_policy:step=2:kill")
    assert killed.code == -9, killed.output
    again = run(labelled.folder, *arguments)
    assert again.code == 0, again.output
    assert again.statuses()["edge_policy"] == ["continued"]
    file = artifact(again, "edge_policy") / "adapter" / "adapter_model.safetensors"
    resumed = file.read_bytes()
    (artifact(again, "edge_policy") / "manifest.json").unlink()
    whole = run(labelled.folder, *arguments)
    assert whole.code == 0, whole.output
    assert whole.statuses()["edge_policy"] == ["computed"]
    assert file.read_bytes() == resumed
