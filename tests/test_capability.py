"""What a policy still can: the shipped sets, right answers by hand, paired differences."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from cai import paths, statistics
from cai.capability import CapabilityScore, capability_items, capability_rows
from cai.capability_story import alignment_tax, capability_findings, cost_metrics
from cai.evaluation_config import MAX_QUESTIONS, MAX_TEXTS
from cai.story import EvaluationStory


def question(name: str, *logprobs: float, answer: int = 0) -> CapabilityScore:
    return CapabilityScore(id=name, mean_logprobs=logprobs, answer=answer)


def text(name: str, logprob: float) -> CapabilityScore:
    return CapabilityScore(id=name, mean_logprobs=(logprob,), answer=None)


def test_the_shipped_sets_are_whole_and_in_no_training_prompt() -> None:
    items = capability_items(num_questions=MAX_QUESTIONS, num_texts=MAX_TEXTS)
    questions = [item for item in items if item.answer is not None]
    assert (len(questions), len(items)) == (MAX_QUESTIONS, MAX_QUESTIONS + MAX_TEXTS)
    assert len({item.id for item in items}) == len(items)
    for item in questions:
        assert len(set(item.responses)) == 4
        assert all(option.endswith(".") for option in item.responses)
    places = Counter(item.answer for item in questions)
    assert set(places.values()) == {10}, "one place of the right option would be a rule"
    longest = sum(
        len(item.responses[item.answer or 0]) == max(map(len, item.responses)) for item in questions
    )
    assert longest < 20, "the longest option would be a rule"
    prompts = {item.prompt.lower() for item in items}
    for path in (paths.PACKAGE / "datasets").glob("*.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            assert str(row.get("prompt", "")).lower() not in prompts


def test_the_likeliest_option_answers_and_a_tie_does_not() -> None:
    assert question("a", -1.0, -2.0, answer=0).right
    assert not question("a", -1.0, -2.0, answer=1).right
    assert not question("a", -1.0, -1.0, answer=0).right


def test_rows_by_hand() -> None:
    before = [question("a", -1, -2), question("b", -1, -2), text("t", -1.0), text("u", -2.0)]
    after = [question("a", -1, -2), question("b", -3, -2), text("t", -1.5), text("u", -2.1)]
    first, last = capability_rows({"base": before, "rl_cai": after}, num_resamples=500, seed=0)
    assert first.accuracy is not None
    assert (first.accuracy.value, first.accuracy.num) == (1.0, 2)
    assert (first.accuracy_change, first.perplexity_factor) == (None, None)
    assert last.accuracy_change is not None
    assert last.accuracy_change.value == -0.5
    assert first.perplexity is not None
    assert first.perplexity.value == pytest.approx(math.exp(1.5))
    assert last.perplexity_factor is not None
    assert last.perplexity_factor.value == pytest.approx(math.exp((0.5 + 0.1) / 2))
    assert last.perplexity_factor.low == pytest.approx(math.exp(0.1), rel=1e-6)
    metrics = cost_metrics(EvaluationStory(rows=(), capability=(first, last)))
    assert metrics["capability/rl_cai/accuracy_change"] == last.accuracy_change
    assert capability_rows({}, num_resamples=10, seed=0) == ()


def test_a_measurable_loss_is_a_warning_and_no_loss_is_told_without_one() -> None:
    before = [question(f"q{i}", -1, -2) for i in range(40)] + [text(f"t{i}", -2) for i in range(9)]
    lost = [question(f"q{i}", -1, -2 + i % 2 * 3) for i in range(40)] + before[40:]
    rows = capability_rows({"base": before, "rl_cai": lost}, num_resamples=200, seed=0)
    (warning,) = capability_findings(rows)
    assert "RL-CAI against base: it answers fewer of easy questions: -0.50" in warning
    same = capability_rows({"base": before, "rl_cai": before}, num_resamples=200, seed=0)
    assert capability_findings(same) == []
    assert "does not measurably answer fewer or more" in alignment_tax(same)
    odder = before[:40] + [text(f"t{i}", -2.5) for i in range(9)]
    rows = capability_rows({"base": before, "rl_cai": odder}, num_resamples=200, seed=0)
    assert "finds unseen helpful text odder" in capability_findings(rows)[0]
    assert alignment_tax(rows[:1]) == ""


def test_paired_proportions_are_newcombes_example() -> None:
    # Newcombe 1998, Statist. Med. 17, p. 2635: cells 36, 12, 2, 0; method 10: 0.0569 to 0.3404.
    after = [True] * 48 + [False] * 2
    before = [True] * 36 + [False] * 12 + [True] * 2
    found = statistics.paired_proportion_difference(after, before)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    swapped = statistics.paired_proportion_difference(before, after)
    assert swapped is not None
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    same = statistics.paired_proportion_difference([True] * 40, [True] * 40)
    assert same is not None
    assert same.low < 0 < same.high
    assert statistics.paired_proportion_difference([], []) is None
