"""`phase=trace` on tiny runs: what it shows, what it keeps, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cai.stages.preference_model import VALIDATION
from cai.trace.record import SCHEMA, SCHEMA_VERSION
from cai.types import Comparison, Evaluated, PreferencePrediction, Prompt, Rollout, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

TINY = ("phase=trace", "debug=tiny", "hardware.precision=fp32", "hardware.num_threads=1")


def traced(finished: Finished, *arguments: str, **settings: Any) -> Finished:
    return run(finished.folder, *TINY, *arguments, **settings)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished = run(tmp_path_factory.mktemp("whole"), *tiny_arguments(tiny_folder))
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(scope="module")
def run_dir(whole: Finished) -> Path:
    (folder,) = whole.folder.glob("outputs/rlaif/medical/*")
    return folder.relative_to(whole.folder)


def records(finished: Finished, stage: str, kind: type, name: str = "records.jsonl") -> list:
    (path,) = (finished.folder / "outputs" / "store" / stage).glob(f"*/{name}")
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def own_folder(finished: Finished) -> Path:
    (path,) = re.findall(r"^For machines: (.*)$", finished.output, re.M)
    return Path(path).parent


def kept(finished: Finished) -> dict[str, Any]:
    return json.loads((own_folder(finished) / "trace.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def trace(whole: Finished, run_dir: Path) -> Finished:
    prompt_id = records(whole, "evaluation", Evaluated)[0].response.prompt.id
    finished = traced(whole, f"run={run_dir}", f"example={prompt_id}/sl_cai")
    assert finished.code == 0, finished.output
    return finished


def test_everything_that_it_tells_is_in_the_artifacts(whole: Finished, trace: Finished) -> None:
    told = kept(trace)
    assert (told["schema"], told["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    first = records(whole, "evaluation", Evaluated)[0].response.prompt
    own = [e for e in records(whole, "evaluation", Evaluated) if e.response.prompt == first]
    assert [
        (a["policy"], a["text"], a["score"], a["asked"]) for a in told["answers"]
    ] == [
        (e.response.policy, e.response.sample.text, e.score, e.response.policy == "sl_cai")
        for e in own
    ]  # fmt: skip
    training = {p.id: p for p in records(whole, "prompts", Prompt, "train.jsonl")}
    compared = records(whole, "comparisons", Comparison)
    held_out = {
        one.name for one in records(whole, "preference_model", PreferencePrediction, VALIDATION)
    }
    rollouts = records(whole, "policy", Rollout, "rollouts.jsonl")
    near = told["neighbours"]
    assert len(near) == 4
    assert [one["similarity"] for one in near] == sorted(
        (one["similarity"] for one in near), reverse=True
    )
    for one in near:
        prompt = training[one["prompt"]["id"]]
        assert one["prompt"]["messages"][0]["content"] == prompt.messages[0].content
        theirs = [c for c in compared if c.prompt == prompt]
        assert [c["prob_a"] for c in one["comparisons"]] == [c.prob_a for c in theirs]
        assert [c["response_b"] for c in one["comparisons"]] == [c.response_b for c in theirs]
        for shown, comparison in zip(one["comparisons"], theirs, strict=True):
            learned = comparison.prob_a is not None and prompt.id not in held_out
            assert shown["learned"] == learned
        assert one["num_rollouts"] == sum(r.prompt == prompt for r in rollouts)
        assert len(one["rollouts"]) == min(2, one["num_rollouts"])
        assert len(one["revisions"]) == (2 if prompt.kind == "red_team" else 0)
    tables = {
        path.stem: json.loads(path.read_text()) for path in own_folder(trace).glob("tables/*")
    }
    assert set(tables) == {
        "trace_answers", "trace_labels", "trace_neighbours", "trace_principles"
    }  # fmt: skip
    assert len(tables["trace_neighbours"]["rows"]) == sum(len(n["comparisons"]) for n in near)
    assert [row[0] for row in tables["trace_principles"]["rows"]] == [
        row["id"] for row in told["principles"]
    ]
    shares = [row["near_share"] for row in told["principles"]]
    if shares[0] is not None:
        assert sum(shares) == pytest.approx(1)


def test_the_prompt_is_nearest_to_itself(whole: Finished, run_dir: Path, trace: Finished) -> None:
    """The order is that of the embeddings, recomputed from the store."""
    import numpy as np

    from cai.stages.prompt_embeddings import vectors
    from cai.trace.nearness import centred_cosines
    from cai.types import PromptEmbedding

    embedded = records(whole, "prompt_embeddings", PromptEmbedding)
    training = records(whole, "prompts", Prompt, "train.jsonl")
    assert [e.prompt_id for e in embedded[: len(training)]] == [p.id for p in training]
    rows = vectors(embedded)[: len(training)]
    for place, row in enumerate(rows):
        assert int(np.argmax(centred_cosines(row, rows))) == place


def test_the_terminal_says_what_nearness_is_not_and_how_to_check(trace: Finished) -> None:
    for text in (
        "Nearness is not causation",
        "P(later preferred) by the feedback that trained it (circular)",
        "[preference-model score",
        "asked about]",
        "phase=audit constitution.document=medical.yaml audit.pairs_from=outputs/rlaif/medical/",
        "except: [<principle>]",
        "1. ",
    ):
        assert text in trace.output
    table = trace.output[trace.output.index("Trace of") :]
    long = [line for line in table.splitlines() if len(line) > 100]
    assert all("python -m" in line or "report.html" in line or "/" in line for line in long)


def test_the_page_links_to_the_sample_in_the_report_of_the_run(trace: Finished) -> None:
    folder = own_folder(trace)
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<script") == 1  # its own
    (link,) = re.findall(r'href="(\.\./[^"]+)"', page)
    address, _, anchor = link.partition("#")
    assert f'id="{anchor}"' in (folder / address).read_text("utf-8")
    assert anchor.startswith("sample-")
    assert folder.parent.name == "medical"


def test_another_example_reuses_the_embeddings(whole: Finished, run_dir: Path, trace: Finished):
    evaluated = records(whole, "evaluation", Evaluated)
    before = artifact_bytes(whole.folder)
    again = traced(whole, f"run={run_dir}", f"example={evaluated[-1].response.prompt.id}", "seed=5")
    assert again.code == 0, again.output
    assert again.statuses() == {"prompt_embeddings": ["reused"]}
    assert artifact_bytes(whole.folder) == before
    assert [a["policy"] for a in kept(again)["answers"] if a["asked"]] == ["rl_cai"]


def test_a_plan_writes_nothing(whole: Finished, run_dir: Path) -> None:
    prompt_id = records(whole, "evaluation", Evaluated)[0].response.prompt.id
    before = sorted(whole.folder.rglob("*"))
    planned = traced(whole, f"run={run_dir}", f"example={prompt_id}", "plan=true")
    assert planned.code == 0, planned.output
    assert "prompt_embeddings" in planned.output
    assert sorted(whole.folder.rglob("*")) == before


def test_a_killed_trace_goes_on_to_the_same_bytes(
    whole: Finished, run_dir: Path, trace: Finished, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder / "outputs", tmp_path / "outputs")
    expected = artifact_bytes(tmp_path)
    (embeddings,) = (tmp_path / "outputs" / "store" / "prompt_embeddings").glob("*/")
    shutil.rmtree(embeddings)
    told = kept(trace)
    arguments = (*TINY, f"run={run_dir}", f"example={told['example']}")
    killed = run(tmp_path, *arguments, fault="prompt_embeddings:shard=1:kill")
    assert killed.code == -signal.SIGKILL
    assert list(embeddings.glob("work/shards/*.jsonl"))
    done = run(tmp_path, *arguments)
    assert done.code == 0, done.output
    assert done.statuses() == {"prompt_embeddings": ["continued"]}
    assert artifact_bytes(tmp_path) == expected
    assert kept(done) == told


def test_a_dpo_run_is_traced_without_scores_and_rollouts(tiny_folder: Path, tmp_path: Path) -> None:
    finished = run(tmp_path, *tiny_arguments(tiny_folder, "dpo"))
    assert finished.code == 0, finished.output
    (folder,) = tmp_path.glob("outputs/dpo/medical/*")
    account = json.loads((folder / "attribution.json").read_text())
    assert account["learner"] == "policy (DPO)"
    assert [(p["before"], p["after"]) for p in account["policies"]] == [
        ("base", "sl_cai"),
        ("sl_cai", "dpo"),
    ]
    prompt_id = records(finished, "evaluation", Evaluated)[0].response.prompt.id
    found = traced(finished, f"run={folder}", f"example={prompt_id}/dpo")
    assert found.code == 0, found.output
    told = kept(found)
    assert {a["score"] for a in told["answers"]} == {None}
    assert {n["num_rollouts"] for n in told["neighbours"]} == {0}
    assert {row["after"] for row in told["labels"]} <= {"sl_cai", "dpo"}


def test_the_account_of_the_run_is_that_of_its_comparisons(whole: Finished, run_dir: Path) -> None:
    account = json.loads((whole.folder / run_dir / "attribution.json").read_text())
    held_out = {
        one.name for one in records(whole, "preference_model", PreferencePrediction, VALIDATION)
    }
    signal: dict[str, float] = {}
    num = 0
    for c in records(whole, "comparisons", Comparison):
        if c.prob_a is not None and c.prompt.id not in held_out:
            num += 1
            (principle_id,) = c.principle_ids
            gained = c.weight * 2 * abs(c.prob_a - 0.5)
            signal[principle_id] = signal.get(principle_id, 0.0) + gained
    total = sum(signal.values())
    assert total > 0
    assert account["num_comparisons"] == num > 0
    for row in account["principles"]:
        assert row["share"] == pytest.approx(signal.get(row["id"], 0.0) / total)
    assert sum(row["share"] for row in account["principles"]) == pytest.approx(1)
    metrics = json.loads((whole.folder / run_dir / "metrics.json").read_text())
    assert metrics["attribution/max_share"] == account["max_share"]
    assert metrics["attribution/rl_cai_over_sl_cai"] == account["policies"][1]["mean"]["value"]
    page = (whole.folder / run_dir / "report.html").read_text("utf-8")
    assert "What each principle did" in page
    assert "<b>Circular:</b>" in page


def refused(whole: Finished, said: str, *arguments: str, code: int = 1) -> None:
    finished = traced(whole, *arguments)
    assert finished.code == code, finished.output
    assert said in finished.output
    assert "Traceback" not in finished.output


def test_a_wrong_run_is_refused_with_what_there_is(whole: Finished, run_dir: Path) -> None:
    refused(whole, f"Newest runs: {run_dir}")
    refused(whole, f"no such folder. Did you mean {run_dir}?", f"run={run_dir}x", "example=x")
    refused(whole, "is no run folder", "run=outputs/store", "example=x")


def test_a_wrong_example_is_refused_with_what_there_is(whole: Finished, run_dir: Path) -> None:
    ids = [e.response.prompt.id for e in records(whole, "evaluation", Evaluated)]
    train = records(whole, "prompts", Prompt, "train.jsonl")[0].id
    here = f"run={run_dir}"
    refused(whole, f"Type: example={ids[0]}", here)
    refused(whole, f"Did you mean {ids[0]}?", here, f"example={ids[0]}x")
    refused(whole, f"Prompts: {ids[0]}, ", here, "example=nothing-like-it")
    refused(whole, "is a training prompt", here, f"example={train}")
    refused(whole, "Did you mean sl_cai? The run has base, sl_cai, rl_cai", here,
            f"example={ids[0]}/sl_ca")  # fmt: skip


def test_run_and_example_belong_to_the_phase(tmp_path: Path) -> None:
    for setting in ("run=outputs", "example=x"):
        finished = run(tmp_path, "phase=rlaif", setting)
        assert finished.code == 2
        assert "is for phase=trace" in finished.output


@pytest.fixture
def copy(whole: Finished, run_dir: Path, tmp_path: Path) -> Finished:
    """The run somewhere else, for damage."""
    shutil.copytree(whole.folder / "outputs", tmp_path / "outputs")
    return Finished(code=0, output="", folder=tmp_path)


def test_a_run_that_was_not_finished_is_refused(copy: Finished, run_dir: Path) -> None:
    path = copy.folder / run_dir / "manifest.json"
    document = json.loads(path.read_text())
    names = [row["stage"] for row in document["stages"]]
    document["stages"] = document["stages"][: names.index("policy")]
    path.write_text(json.dumps(document | {"status": "failed"}))
    said = "was not finished (failed): its stage policy is missing. Type its command again"
    refused(copy, said, f"run={run_dir}", "example=x")
    path.write_text("{")
    refused(copy, "manifest.json: damaged", f"run={run_dir}", "example=x")
    path.unlink()
    refused(copy, "was not finished: it has no manifest.json", f"run={run_dir}", "example=x")


@pytest.mark.parametrize("stage", ["evaluation", "comparisons", "principle_scores"])
def test_an_artifact_that_is_gone_is_named(copy: Finished, run_dir: Path, stage: str) -> None:
    folder, *_ = (copy.folder / "outputs" / "store" / stage).glob("*/")
    shutil.rmtree(folder)
    refused(copy, f"its artifact {stage}/{folder.name} is gone", f"run={run_dir}", "example=x")


def test_an_artifact_that_was_changed_is_not_believed(copy: Finished, run_dir: Path) -> None:
    (path,) = (copy.folder / "outputs" / "store" / "comparisons").glob("*/records.jsonl")
    prompt_id = records(copy, "evaluation", Evaluated)[0].response.prompt.id
    path.write_bytes(path.read_bytes().replace(b'"prob_a": 0.', b'"prob_a": 1.', 1))
    refused(copy, "was changed or damaged", f"run={run_dir}", f"example={prompt_id}")
    assert json.loads((copy.run_dirs()[-1] / "manifest.json").read_text())["status"] == "failed"


def test_what_an_older_version_left_is_refused(copy: Finished, run_dir: Path) -> None:
    path = copy.folder / run_dir / "attribution.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 0'))
    refused(copy, "of another version of the program", f"run={run_dir}", "example=x")
    path.unlink()
    refused(copy, "has no attribution.json", f"run={run_dir}", "example=x")


def test_a_phase_without_comparisons_and_another_base_are_refused(
    copy: Finished, run_dir: Path, other_folder: Path
) -> None:
    path = copy.folder / run_dir / "config.yaml"
    text = path.read_text()
    prompt_id = records(copy, "evaluation", Evaluated)[0].response.prompt.id
    place = json.loads(json.dumps(re.findall(r"^model:\n(?:  .*\n)*?  path: (.*)$", text, re.M)))[0]
    path.write_text(text.replace(f"  path: {place}", f"  path: {other_folder}", 1))
    refused(copy, "has other weights now", f"run={run_dir}", f"example={prompt_id}")
    path.write_text(text.replace("name: rlaif", "name: sl_cai"))
    refused(copy, "whose policies learn from AI comparisons alone", f"run={run_dir}", "example=x")
    path.write_text("phase: [")
    refused(copy, "config.yaml: cannot be read", f"run={run_dir}", "example=x")
