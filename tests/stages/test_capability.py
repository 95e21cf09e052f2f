"""Stages `capability` and `base_likelihoods` on a tiny run: what they keep, share and leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import Finished, run, tiny_arguments


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("capability")
    done = run(folder, *tiny_arguments(tiny_folder, "sl_cai"))
    assert done.code == 0, done.output
    return done


def artifacts(finished: Finished, stage: str) -> list[list[dict]]:
    digests = [s["digest"] for s in finished.manifest()["stages"] if s["stage"] == stage]
    store = finished.folder / "outputs" / "store" / stage
    return [
        [json.loads(line) for line in (store / d / "records.jsonl").read_text().splitlines()]
        for d in digests
    ]


def test_every_policy_is_asked_the_same(finished: Finished) -> None:
    base, tuned = artifacts(finished, "capability")
    assert [row["id"] for row in base] == [row["id"] for row in tuned]
    assert [len(row["mean_logprobs"]) for row in base] == [4, 4, 4, 1, 1]
    assert base != tuned
    metrics = json.loads((finished.run_dirs()[-1] / "metrics.json").read_text())
    right = sum(
        max(range(4), key=lambda k: row["mean_logprobs"][k]) == row["answer"] for row in base[:3]
    )
    assert metrics["capability/base/accuracy"] == pytest.approx(right / 3)
    assert "capability/sl_cai/perplexity_factor_low" in metrics
    assert "capability/base/accuracy_change" not in metrics


def test_the_base_finds_its_own_responses_as_likely_as_it_sampled_them(finished: Finished) -> None:
    own, tuned = artifacts(finished, "base_likelihoods")
    responses, others = artifacts(finished, "responses")
    assert [row["prompt_id"] for row in own] == [r["prompt"]["id"] for r in responses]
    assert len(tuned) == len(others)
    report = (finished.run_dirs()[-1] / "report.html").read_text("utf-8")
    assert "Signs of collapse" in report
    assert "what alignment cost" in report.lower()


def test_zero_leaves_it_out_and_another_run_shares_the_rest(
    finished: Finished, tiny_folder: Path
) -> None:
    again = run(
        finished.folder,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "evaluation.num_capability_questions=0",
        "evaluation.num_capability_texts=0",
    )
    assert again.code == 0, again.output
    statuses = again.statuses()
    assert "capability" not in statuses
    assert statuses["base_likelihoods"] == ["reused", "reused"]
    refused = run(
        finished.folder,
        *tiny_arguments(tiny_folder, "sl_cai"),
        "evaluation.num_capability_questions=41",
    )
    assert refused.code == 2
    assert "at most 40" in refused.output
