"""`phase=audit` with a model: labels under every principle, measured, compared and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai import constitution, paths
from cai.audit.labels import Framing, PairLabels
from cai.types import Response, parse_lines
from tests.runs import Finished, artifact_bytes, run, tiny_arguments

DOCUMENT = """\
name: small
version: {version}
description: For tests.
principles:
{principles}
"""
PRINCIPLE = """\
  - id: {id}
    principle: {sentence}
    critique: Check the last response for this. {sentence}
    revise: Rewrite the response so that this holds. {sentence}
    compare: Which response better keeps to this? {sentence}
    weight: {weight}
    tests:
      - {{prompt: "What is {id}?", better: "It is {id} and nothing more.", worse: "No idea."}}
      - {{prompt: "Tell me about {id}.", better: "Here is {id}.", worse: "I know of {id}, so."}}
"""
OLD = {"first": ("The response is short.", 1), "second": ("The response is kind.", 2),
       "third": ("The response names a source.", 1)}  # fmt: skip
NEW = {"first": ("The response is brief.", 1), "second": ("The response is kind.", 2),
       "fourth": ("The response gives one example.", 1)}  # fmt: skip


def write(path: Path, version: str, principles: dict[str, tuple[str, int]]) -> Path:
    texts = (
        PRINCIPLE.format(id=name, sentence=sentence, weight=weight)
        for name, (sentence, weight) in principles.items()
    )
    path.write_text(DOCUMENT.format(version=version, principles="".join(texts)))
    return path


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("documents")
    return write(folder / "old.yaml", "1", OLD), write(folder / "new.yaml", "2", NEW)


def arguments(model: Path, document: Path, *more: str) -> list[str]:
    asked = [*tiny_arguments(model, "audit"), f"constitution.document={document}"]
    return [*asked, "audit.fail_on=never", "feedback=multiple_choice", *more]


@pytest.fixture(scope="module")
def whole(
    tiny_folder: Path, documents: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    old, new = documents
    finished = run(
        tmp_path_factory.mktemp("audit"),
        *arguments(tiny_folder, new, f"audit.compare_with={old}", "audit.threshold=0"),
    )
    assert finished.code == 0, finished.output
    return finished


def audit_of(finished: Finished) -> dict[str, Any]:
    return json.loads((finished.run_dirs()[-1] / "audit.json").read_text())


def test_the_stages_and_what_they_count(whole: Finished) -> None:
    assert list(whole.statuses()) == [
        "prompts", "audit_pairs", "feedback_check", "audit_labels", "audit_wordings",
    ]  # fmt: skip
    assert len(whole.statuses()["feedback_check"]) == 4
    counts = [(s["stage"], s["counts"]) for s in whole.manifest()["stages"]]
    labelled = [count for name, count in counts if name == "audit_labels"]
    assert [(c["labels"], c["pairs"]) for c in labelled] == [(18, 6), (18, 6)]
    (wordings,) = [count for name, count in counts if name == "audit_wordings"]
    assert wordings["labels"] == 6 * 3 * 4


def test_one_pair_a_prompt_and_kinds_take_turns(whole: Finished) -> None:
    (path,) = whole.folder.glob("outputs/store/audit_pairs/*/records.jsonl")
    responses = list(parse_lines(Response, path.read_text("ascii"), str(path)))
    prompts = list(dict.fromkeys(r.prompt.id for r in responses))
    assert (len(responses), len(prompts)) == (12, 6)
    assert [r.index for r in responses] == [0, 1] * 6
    kinds = [str(r.prompt.kind) for r in responses[::2]]
    assert kinds == ["red_team", "helpfulness", "benign"] * 2


def test_the_record_holds_what_it_documents(whole: Finished) -> None:
    measured = audit_of(whole)["measured"]
    assert measured["num_labels"] == 18
    assert [one["id"] for one in measured["principles"]] == list(NEW)
    assert len(measured["labels"]) == 6
    for row in measured["labels"]:
        assert set(row["prob_a"]) == set(NEW)
    assert set(measured["without"]) == set(measured["commands"]) == set(NEW)
    steps = {step["principle_id"]: step for step in measured["version"]["steps"]}
    assert {name: step["what"] for name, step in steps.items()} == {
        "fourth": "added", "third": "removed", "first": "reworded", "second": "same",
    }  # fmt: skip
    # Multiple choice learns from no test, so a principle that is the same has the same labels,
    # but for the last digits that a batch decides.
    assert steps["second"]["own_flips"] == 0
    assert steps["second"]["effect"]["mean_move"]["value"] == pytest.approx(0, abs=1e-6)
    assert steps["first"]["effect"]["mean_move"]["value"] > 0


def test_predictions_follow_from_the_labels_in_the_record(whole: Finished) -> None:
    """Leave-one-out from the record's own labels, one number at a time."""
    measured = audit_of(whole)["measured"]
    weights = {name: weight for name, (_, weight) in NEW.items()}
    for gone, effect in measured["without"].items():
        moves, flips = [], []
        for row in measured["labels"]:
            given = {k: p for k, p in row["prob_a"].items() if p is not None}
            rest = {k: p for k, p in given.items() if k != gone}
            if not rest:
                continue
            before, after = (
                sum(weights[k] * p for k, p in some.items()) / sum(weights[k] for k in some)
                for some in (given, rest)
            )
            moves.append(abs(after - before))
            if (before - 0.5) * (after - 0.5) < 0:
                flips.append(row["pair"])
        assert [flip["pair"] for flip in effect["flips"]] == flips
        assert effect["mean_move"]["value"] == pytest.approx(sum(moves) / len(moves))


def test_each_document_without_a_principle_can_be_trained_on(whole: Finished) -> None:
    measured = audit_of(whole)["measured"]
    for gone, command in measured["commands"].items():
        assert command.startswith("python -m cai.run phase=rlaif ")
        assert "audit." not in command
        assert "debug" not in command
        path = command.rpartition("constitution.document=")[2]
        without = constitution.load(path, folder=paths.CONSTITUTIONS)
        assert [p.id for p in without.principles] == [name for name in NEW if name != gone]


def test_the_terminal_the_report_and_the_metrics_tell_it(whole: Finished) -> None:
    folder = whole.run_dirs()[-1]
    page = (folder / "report.html").read_text("utf-8")
    for text in (
        "What its labels tell", "Without one principle: a prediction", "Labels since small 1",
        "predicted from labels, not from training", "Feedback quality", "made by rules",
    ):  # fmt: skip
        assert text in page
    assert "Measured on 6 pairs of responses" in whole.output
    assert "Predicted from labels, not from training" in whole.output
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("test_accuracy", "coverage", "label_entropy", "conflict_rate",
                 "principle/first/relevance", "principle/first/order_consistency",
                 "without/first/flip_rate", "version/flip_rate"):  # fmt: skip
        assert 0 <= metrics[f"audit/{name}"] <= 1
    assert 1 <= metrics["audit/effective_principles"] <= 3


def test_again_is_reused_and_a_kill_loses_nothing(
    whole: Finished, documents: tuple[Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    old, new = documents
    asked = arguments(tiny_folder, new, f"audit.compare_with={old}", "audit.threshold=0")
    killed = run(tmp_path, *asked, fault="audit_labels:shard=1:kill")
    assert killed.code < 0
    ended = run(tmp_path, *asked)
    assert ended.code == 0, ended.output
    assert ended.statuses()["audit_labels"][0] == "continued"
    one, other = artifact_bytes(whole.folder), artifact_bytes(tmp_path)
    assert one == other
    again = run(tmp_path, *asked)
    assert {s for found in again.statuses().values() for s in found} == {"reused"}
    assert audit_of(again)["measured"] | {"commands": 0, "version": 0} == audit_of(whole)[
        "measured"
    ] | {"commands": 0, "version": 0}


def test_a_plan_tells_how_much_and_reading_alone_needs_no_stage(
    documents: tuple[Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    old, _ = documents
    plan = run(tmp_path, *arguments(tiny_folder, old), "plan=true")
    assert plan.code == 0, plan.output
    assert "72 labels" in plan.output
    read = run(tmp_path, *arguments(tiny_folder, old), "audit.num_pairs=0")
    assert read.code == 0, read.output
    assert read.manifest()["stages"] == []
    assert audit_of(read)["measured"] is None


def test_tuned_feedback_has_no_orders_and_a_document_without_principles_has_no_rest(
    tiny_folder: Path, documents: tuple[Path, Path], tmp_path: Path
) -> None:
    _, new = documents
    tuned = [*arguments(tiny_folder, new), "feedback=tuned", "audit.num_wording_pairs=0"]
    finished = run(tmp_path, *tuned)
    assert finished.code == 0, finished.output
    for one in audit_of(finished)["measured"]["principles"]:
        assert one["order_consistency"] is one["paraphrase_consistency"] is None
        assert one["tests"]["num"] == 2
    (path,) = finished.folder.glob("outputs/store/audit_labels/*/records.jsonl")
    for pair in parse_lines(PairLabels, path.read_text("ascii"), str(path)):
        assert [a.principle_id for a in pair.answers] == list(NEW)
        assert all(a.framing is Framing.plain and a.flips is None for a in pair.answers)
    none = run(tmp_path, *tiny_arguments(tiny_folder, "audit"), "constitution=none",
               "audit.fail_on=never", "feedback=multiple_choice")  # fmt: skip
    assert none.code == 0, none.output
    measured = audit_of(none)["measured"]
    assert [one["id"] for one in measured["principles"]] == ["unguided"]
    assert measured["without"] == {}
    assert "no test" in " ".join(measured["warnings"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["audit.num_pairs=500"], "type audit.num_pairs="),
        (["audit.pairs_from=nowhere"], "no folder of a finished run"),
        (["audit.threshold=0.5"], "audit.threshold must be in [0, 0.5)"),
        (["phase.sampling.temperature=0"], "phase.sampling.temperature must be above 0"),
    ],
)
def test_a_wrong_setting_is_told(
    tiny_folder: Path,
    documents: tuple[Path, Path],
    tmp_path: Path,
    more: list[str],
    message: str,
) -> None:
    wrong = run(tmp_path, *arguments(tiny_folder, documents[0]), *more)
    assert wrong.code in (1, 2)
    assert message in wrong.output
    assert "Traceback" not in wrong.output
