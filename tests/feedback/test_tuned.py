"""Tuned feedback: held-out folds, order, and whole runs of the tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cai import paths
from cai.constitution import Constitution
from cai.errors import UserError
from cai.feedback.base import Case
from cai.feedback.features import Features
from cai.feedback.probe import Scaling
from cai.feedback.shipped import SHIPPED, training_comparisons
from cai.feedback.tuned import Probe, Tuned, pair_key
from cai.types import Message
from tests.feedback.test_probe import config
from tests.runs import run, tiny_arguments

ASKED = (Message(role="user", content="question"),)


class LengthReader:
    """Features are the response's length and 1; contexts and principles say nothing."""

    def read(self, asked: Sequence[tuple[Sequence[Message], Sequence[str]]]) -> Features:
        texts = [text for _, responses in asked for text in responses]
        return Features(
            response=torch.tensor([[float(len(text)), 1.0] for text in texts]),
            context=torch.zeros(len(texts), 1),
        )

    def read_text(self, _text: str) -> torch.Tensor:
        return torch.zeros(1)


def plain() -> Scaling:
    return Scaling(mean=torch.zeros(1).double(), std=torch.ones(1).double())


def probe(folds: dict[str, int]) -> Probe:
    """One training pair along the length; alpha 2 without fold 0, 4 without fold 1, 6 with all."""
    return Probe(
        differences=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        contexts=torch.zeros(1, 1, dtype=torch.float64),
        principles=torch.zeros(1, 1, dtype=torch.float64),
        alphas=torch.tensor([[2.0], [4.0], [6.0]], dtype=torch.float64),
        scale=0.5,
        response_scaling=plain(),
        context_scaling=plain(),
        principle_scaling=plain(),
        by_context=1.0,
        by_principle=1.0,
        folds=folds,
    )


def case(medical: Constitution, a: str, b: str) -> Case:
    return Case(messages=ASKED, response_a=a, response_b=b, principle=medical.principles[0], seed=0)


def test_a_value_by_hand(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    ((judgement,),) = method.judge([case(medical, "abc", "a")])
    # scale 0.5 * alpha 6 * (1 + 0 + 0) * <[1, 0], [length, 1]> / 2 features = 1.5 * length.
    assert (judgement.value_a, judgement.value_b) == (4.5, 1.5)
    assert judgement.prob_a == pytest.approx(0.952574, abs=1e-6)
    assert judgement.first is None


def test_a_training_pair_is_judged_by_the_fold_that_did_not_see_it(medical: Constitution) -> None:
    folds = {pair_key(ASKED, "abc", "a"): 1}
    method = Tuned(config(), reader=LengthReader(), probe=probe(folds))
    asked = [case(medical, "abc", "a"), case(medical, "a", "abc"), case(medical, "abc", "b")]
    values = [judged[0].value_a - judged[0].value_b for judged in method.judge(asked)]
    # Two characters more: 0.5 * 4 / 2 * 2 without its fold, in either order; 0.5 * 6 / 2 * 2 else.
    assert values == [2.0, -2.0, 3.0]
    assert pair_key(ASKED, "a", "abc") == pair_key(ASKED, "abc", "a")


def test_swapping_complements_and_shards_change_nothing(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    cases = [case(medical, "abc", "a"), case(medical, "a", "abc"), case(medical, "xx", "y")]
    together = [judged[0].prob_a for judged in method.judge(cases)]
    assert together[0] + together[1] == pytest.approx(1.0)
    assert together == [method.judge([one])[0][0].prob_a for one in cases]


def test_shipped_comparisons_are_whole_and_balanced() -> None:
    pairs = training_comparisons(SHIPPED, num=None).pairs
    assert len(pairs) >= 800
    assert len({pair.name for pair in pairs}) == len(pairs)
    keys = {pair_key(pair.messages, pair.better, pair.worse) for pair in pairs}
    assert len(keys) == len(pairs)
    for pair in pairs:
        assert [m.role for m in pair.messages] == ["user", "assistant"] * (
            len(pair.messages) // 2
        ) + ["user"]
        assert pair.better.strip() != pair.worse.strip()
    plain = [pair for pair in pairs if "manipulation" not in pair.name]
    assert 20 <= len(pairs) - len(plain) <= 60
    longer = sum(len(pair.better) > len(pair.worse) for pair in plain) / len(plain)
    assert 0.45 <= longer <= 0.55
    assert len(training_comparisons(SHIPPED, num=12).pairs) == 12


def test_comparisons_of_a_file_leave_out_pairs_without_a_difference(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(training_comparisons(str(path), num=None).pairs) == 1
    with pytest.raises(UserError, match=r"feedback\.comparisons"):
        training_comparisons(str(tmp_path / "none.jsonl"), num=None)


def test_features_are_shared_by_constitutions_and_checks_are_held_out(
    tmp_path: Path, tiny_folder: Path
) -> None:
    arguments = [*tiny_arguments(tiny_folder, "evaluate"), "feedback=tuned"]
    first = run(tmp_path, *arguments)
    assert first.code == 0, first.output
    assert first.statuses()["feedback_features"] == ["computed"]
    other = run(tmp_path, *arguments, "constitution=legal")
    assert other.statuses()["feedback_features"] == ["reused"]
    assert other.statuses()["tuned_feedback"] == ["computed"]
    folds = (tmp_path / "outputs" / "store" / "tuned_feedback").glob("*/folds.json")
    known = [json.loads(path.read_text()) for path in folds]
    assert all(len(found) >= 40 for found in known)
    store = tmp_path / "outputs" / "store" / "feedback_check"
    checks = [
        json.loads(line)
        for path in store.glob("*/records.jsonl")
        for line in path.read_text().splitlines()
    ]
    for check in checks:
        pair = check["comparison"]
        asked = [Message(**turn) for turn in pair["prompt"]["messages"]]
        key = pair_key(asked, pair["response_a"], pair["response_b"])
        assert any(key in found for found in known)


def test_a_killed_reading_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    arguments = [*tiny_arguments(tiny_folder, "evaluate"), "feedback=tuned"]
    killed = run(tmp_path, *arguments, fault="tuned_feedback:shard=1:kill")
    assert killed.code == -9
    done = run(tmp_path, *arguments)
    assert done.code == 0, done.output
    assert done.statuses()["tuned_feedback"] == ["continued"]


def test_manipulations_are_none_of_the_attacks_that_feedback_is_measured_on() -> None:
    folder = paths.PACKAGE / "datasets" / "labelled"
    texts, attacks = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("manipulations.jsonl", "judge_attacks.jsonl")
    )
    for manipulation in texts:
        words = manipulation["text"].lower().split()
        for attack in attacks:
            attacked = " ".join(attack["attacked"].lower().split())
            runs = [" ".join(words[k : k + 6]) for k in range(len(words) - 5)]
            assert not any(run_ in attacked for run_ in runs), (manipulation["id"], attack["id"])
