"""Tuned feedback: held-out folds, order, and whole runs of the tiny model."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cai import paths
from cai.constitution import Constitution
from cai.errors import UserError
from cai.feedback.base import Case
from cai.feedback.features import Asked
from cai.feedback.labelled import Labelled
from cai.feedback.shipped import SHIPPED, training_comparisons
from cai.feedback.tuned import Probe, Tuned, pair_key
from cai.types import Message
from tests.feedback.test_probe import config
from tests.runs import run, tiny_arguments

ASKED = (Message(role="user", content="question"),)


class LengthReader:
    """Features are the response's length and 1; principles say nothing."""

    def read(self, asked: Sequence[Asked]) -> torch.Tensor:
        return torch.tensor([[float(len(one.response)), 1.0] for one in asked])

    def read_text(self, _text: str) -> torch.Tensor:
        return torch.zeros(1)


def probe(folds: dict[str, int]) -> Probe:
    """One training pair; alpha 2 without fold 0, 4 without fold 1, 6 with all."""
    return Probe(
        differences=torch.tensor([[3.0, 4.0]], dtype=torch.float64),
        principles=torch.zeros(1, 1, dtype=torch.float64),
        alphas=torch.tensor([[2.0], [4.0], [6.0]], dtype=torch.float64),
        scale=0.5,
        by_principle=1.0,
        folds=folds,
    )


def case(medical: Constitution, a: str, b: str) -> Case:
    return Case(messages=ASKED, response_a=a, response_b=b, principle=medical.principles[0], seed=0)


def test_a_value_by_hand(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    ((judgement,),) = method.judge([case(medical, "abc", "a")])
    # In units of the root mean square the training pair is [1, 1] and a response [length/3, 1/4]:
    # 0.5 * alpha 6 * (1 + 0) * (length/3 + 1/4) / 2 features = length/2 + 3/8.
    assert judgement.value_a == pytest.approx(1.875, abs=1e-5)
    assert judgement.value_b == pytest.approx(0.875, abs=1e-5)
    assert judgement.prob_a == pytest.approx(0.731059, abs=1e-5)
    assert judgement.first is None


def test_a_training_pair_is_judged_by_the_fold_that_did_not_see_it(medical: Constitution) -> None:
    folds = {pair_key(ASKED, "abc", "a"): 1}
    method = Tuned(config(), reader=LengthReader(), probe=probe(folds))
    asked = [case(medical, "abc", "a"), case(medical, "a", "abc"), case(medical, "abc", "b")]
    values = [judged[0].value_a - judged[0].value_b for judged in method.judge(asked)]
    # Two characters more: 0.5 * 4 / 2 * 2/3 without its fold, in either order; 0.5 * 6 / 2 * 2/3.
    assert values == pytest.approx([2 / 3, -2 / 3, 1.0], abs=1e-5)
    assert pair_key(ASKED, "a", "abc") == pair_key(ASKED, "abc", "a")


def test_swapping_complements_and_shards_change_nothing(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    cases = [case(medical, "abc", "a"), case(medical, "a", "abc"), case(medical, "xx", "y")]
    together = [judged[0].prob_a for judged in method.judge(cases)]
    assert together[0] + together[1] == pytest.approx(1.0)
    assert together == [method.judge([one])[0][0].prob_a for one in cases]


def test_shipped_comparisons_are_whole_and_balanced() -> None:
    pairs = training_comparisons(SHIPPED, num=None).pairs
    assert len({pair.name for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert [m.role for m in pair.messages] == ["user", "assistant"] * (
            len(pair.messages) // 2
        ) + ["user"]
        assert pair.better.strip() != pair.worse.strip()
        assert pair.principle is not None
        assert pair.principle.compare
    by_key: dict[str, list[Labelled]] = defaultdict(list)
    for pair in pairs:
        by_key[pair_key(pair.messages, pair.better, pair.worse)].append(pair)
    opposed = [both for both in by_key.values() if len(both) == 2]
    assert len(opposed) == 800
    for one, other in opposed:
        assert (one.better, one.worse) == (other.worse, other.better)
        assert one.principle.compare != other.principle.compare
    assert {pair.turns for both in opposed for pair in both} == {True}
    general = [pair for (pair,) in (own for own in by_key.values() if len(own) == 1)]
    assert len(by_key) == len(general) + len(opposed)
    plain = [pair for pair in general if "manipulation" not in pair.name]
    assert len(plain) >= 800
    assert 20 <= len(general) - len(plain) <= 60
    for rows in (plain, [one for one, _ in opposed]):
        longer = sum(len(pair.better) > len(pair.worse) for pair in rows) / len(rows)
        assert 0.45 <= longer <= 0.55
    for num in (12, 400, 1237):
        kept = training_comparisons(SHIPPED, num=num).pairs
        assert 0.9 * num <= len(kept) <= num
        turned = [pair for pair in kept if pair.turns]
        assert 0.5 * num <= len(turned) <= 0.75 * num
        sides = Counter(pair_key(pair.messages, pair.better, pair.worse) for pair in turned)
        assert set(sides.values()) == {2}


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
    another = run(tmp_path, *arguments, "seed=1")
    assert another.statuses()["feedback_features"] == ["reused"]
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
