"""A whole run whose feedback is a server on this machine, killed in the middle and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.feedback.test_endpoint import judging, prefers
from tests.runs import Finished, run, tiny_arguments
from tests.served import Asked, Sent, serving
from tests.vllm_like import TinyVLLM

NUM_TESTS = 12
"""Two shards of `feedback_check`."""


def evaluate(model: Path, folder: Path, url: str, **changes: str) -> Finished:
    return run(
        folder,
        *tiny_arguments(model, "evaluate"),
        f"evaluation.num_feedback_tests={NUM_TESTS}",
        "feedback=endpoint",
        f"feedback.server.url={url}",
        "feedback.server.model=judge-1",
        "feedback.server.key_env=JUDGE_KEY",
        "feedback.server.price_input=1",
        "feedback.server.price_output=2",
        CAI_CACHE=str(folder.parent / "cache"),
        JUDGE_KEY="sk-hunter2",
        **changes,
    )


def counting(answer: Callable[[Asked, int], Sent]) -> Callable[[Asked, int], Sent]:
    """The same server, which wants the key."""

    def checked(asked: Asked, number: int) -> Sent:
        assert asked.headers["authorization"] == "Bearer sk-hunter2"
        return answer(asked, number)

    return checked


def test_a_killed_run_goes_on_pays_once_and_counts_all_of_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with serving(counting(judging(prefers("the")))) as server:
        killed = evaluate(
            tiny_folder, tmp_path / "run", server.url, fault="feedback_check:shard=1:kill"
        )
        asked = len(server.asked)
        finished = evaluate(tiny_folder, tmp_path / "run", server.url)
    assert killed.code == -9
    assert 0 < asked < 2 * NUM_TESTS
    assert finished.code == 0, finished.output
    assert len(server.asked) == 2 * NUM_TESTS
    (stage,) = finished.manifest()["stages"]
    assert stage["status"] == "continued"
    # 24 questions of 50 tokens at $1 and answers of 3 tokens at $2 a million: 1200 + 144.
    expected = {"requests": 24, "retries": 0, "tokens_in": 1200, "tokens_out": 72}
    assert stage["counts"].items() >= (expected | {"cost_microdollars": 1344}).items()
    assert "24 requests (0 retries)" in finished.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_another_run_finds_every_answer_on_the_disk(tiny_folder: Path, tmp_path: Path) -> None:
    with serving(judging(prefers("the"))) as server:
        evaluate(tiny_folder, tmp_path / "one", server.url)
        again = evaluate(tiny_folder, tmp_path / "two", server.url)
    assert len(server.asked) == 2 * NUM_TESTS
    (stage,) = again.manifest()["stages"]
    assert stage["status"] == "computed"
    assert (stage["counts"]["requests"], stage["counts"]["cached_answers"]) == (0, 24)
    assert stage["counts"]["cost_microdollars"] == 0


def labels(finished: Finished) -> list[float]:
    assert finished.code == 0, finished.output
    (records,) = finished.folder.glob("outputs/store/feedback_check/*/records.jsonl")
    return [json.loads(line)["comparison"]["prob_a"] for line in records.read_text().splitlines()]


def test_the_engine_of_a_role_may_be_a_server_of_the_same_weights(
    tiny_folder: Path, tmp_path: Path
) -> None:
    place = "phase.feedback_model.engine"
    arguments = tiny_arguments(tiny_folder, "evaluate")
    arguments.append("feedback=multiple_choice")
    with TinyVLLM(folder=tiny_folder).serving() as server:
        there = run(
            tmp_path / "there",
            *arguments,
            f"engine@{place}=endpoint",
            f"{place}.server.url={server.url}",
            f"{place}.server.model=tiny",
            CAI_CACHE=str(tmp_path / "cache"),
        )
    here = run(tmp_path / "here", *arguments)
    assert labels(there) == pytest.approx(labels(here), abs=1e-4)
    assert len(set(labels(here))) == 4
    assert there.manifest()["stages"][0]["digest"] != here.manifest()["stages"][0]["digest"]
    assert there.manifest()["stages"][0]["counts"]["requests"] == 8  # four tests, both orders
