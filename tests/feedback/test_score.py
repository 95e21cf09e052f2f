from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from cai.constitution import Constitution
from cai.errors import UserError
from cai.feedback.base import same_position
from cai.feedback.score import Score, expected_mark
from cai.feedback_config import ScoreConfig
from cai.types import Unjudged
from tests.feedback.cases import (
    BASE,
    case,
    compare,
    encoder_with,
    examples,
    judgements,
    only,
    several,
    swapped,
    tiny_engine,
)
from tests.scripted import ScriptedGenerator

TWO_TOKENS = encoder_with()
ONE_TOKEN = encoder_with("10")


def score(engine, constitution: Constitution, *, encoder=TWO_TOKENS, **changes: object) -> Score:
    values = {"method": "score", "num_few_shot": 0, "calibrate": False, "scale": 1.0, **BASE}
    return Score(
        ScoreConfig(**(values | changes)),
        engine=engine,
        encoder=encoder,
        examples=examples(constitution, int(values["num_few_shot"] or 0)),
    )


def marks(probs: dict[str, dict[int, float]]):
    """A judge that marks a response by its first word, with 10 written as 1 and 0."""

    def logprobs(text: str) -> dict[str, float]:
        word = text.rpartition("Response:\n> ")[2].split()[0]
        own = probs[word]
        one = own.get(1, 0.0) + own.get(10, 0.0)
        if text.endswith("<|assistant|>1"):
            return {"0": math.log(own[10] / one)}
        first = {number: prob for number, prob in own.items() if number not in (1, 10)} | {1: one}
        return {str(number): math.log(prob) for number, prob in first.items() if prob}

    return logprobs


GOOD_AND_BAD = marks({"good": {10: 0.3, 1: 0.1, 5: 0.2}, "bad": {10: 0.1, 1: 0.1, 0: 0.6}})
# good: (10 * 0.3 + 1 * 0.1 + 5 * 0.2) / 0.6 = 6.833333; bad: (10 * 0.1 + 1 * 0.1) / 0.8 = 1.375


def test_a_mark_is_the_expected_number_with_ten_as_two_tokens(medical: Constitution) -> None:
    engine = ScriptedGenerator(TWO_TOKENS, logprobs=GOOD_AND_BAD)
    comparison = compare(score(engine, medical, scale=0.5), medical, "good", "bad")
    (judgement,) = comparison.judgements
    assert judgement.value_a == pytest.approx(0.5 * 6.833333, abs=1e-5)
    assert judgement.value_b == pytest.approx(0.5 * 1.375, abs=1e-5)
    # 1 / (1 + exp(0.6875 - 3.416667))
    assert comparison.prob_a == pytest.approx(0.938728, abs=1e-5)
    assert judgement.first is None
    assert same_position(comparison) == [False]
    assert len(engine.prompts) == 4


def test_ten_as_one_token_gives_the_same_mark_in_one_pass(medical: Constitution) -> None:
    values = {"10": math.log(0.3), "1": math.log(0.1), "5": math.log(0.2)}
    engine = ScriptedGenerator(ONE_TOKEN, logprobs=lambda _: values)
    judged = score(engine, medical, encoder=ONE_TOKEN).judge([case(medical, "good", "other")])
    assert only(judged).value_a == pytest.approx(6.833333, abs=1e-5)
    assert len(engine.prompts) == 2


def test_calibration_divides_by_the_content_free_response(medical: Constitution) -> None:
    logprobs = marks(
        {
            "good": {10: 0.4, 1: 0.1, 5: 0.1},
            "bad": {10: 0.4, 1: 0.1, 5: 0.2},
            "N/A": {10: 0.5, 1: 0.1, 5: 0.05},
        }
    )
    engine = ScriptedGenerator(TWO_TOKENS, logprobs=logprobs)
    judged = score(engine, medical, calibrate=True).judge([case(medical, "good", "bad")])
    # All other numbers have p = exp(-20) in every answer, so their ratio is 1: seven of them, 0, 2,
    # 3, 4, 6, 7, 8 and 9 without 5 are eight, with the sum 39. good: ratios 0.8, 1 and 2 for 10, 1
    # and 5, so (8 + 1 + 10 + 39) / (3.8 + 8); bad: 0.8, 1 and 4, so (8 + 1 + 20 + 39) / (5.8 + 8).
    assert only(judged).value_a == pytest.approx(58 / 11.8, abs=1e-4)
    assert only(judged).value_b == pytest.approx(68 / 13.8, abs=1e-4)
    assert sum("> N/A" in text for text in engine.prompts) == 2


def test_expected_mark_does_not_need_normalised_weights() -> None:
    weights = torch.zeros(11, dtype=torch.float64)
    weights[[2, 8]] = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert expected_mark(weights) == pytest.approx(3.5)
    assert expected_mark(7 * weights) == pytest.approx(3.5)


def test_few_shots_mark_better_tests_ten_and_worse_ones_zero(medical: Constitution) -> None:
    engine = ScriptedGenerator(TWO_TOKENS, logprobs=lambda _: {"5": 0.0})
    judge = Score(
        ScoreConfig(method="score", num_few_shot=2, calibrate=True, scale=1.0, **BASE),
        engine=engine,
        encoder=TWO_TOKENS,
        examples=examples(medical, 2),
    )
    judge.judge([case(medical, "a", "b", number=i) for i in range(5)])
    tests = [test for p in medical.principles for test in p.tests]
    for text in engine.prompts:
        *shots, _ = text.split("<|user|>")[1:]
        answers = [shot.rpartition("<|assistant|>")[2].removesuffix("<|end|>") for shot in shots]
        assert Counter(answers) == {"10": 1, "0": 1}
        for shot, answer in zip(shots, answers, strict=True):
            said = shot.rpartition("Response:\n> ")[2].partition("\n\n")[0]
            (test,) = [test for test in tests if said in (test.better, test.worse)]
            assert said == (test.better if answer == "10" else test.worse)


@pytest.mark.parametrize("calibrate", [False, True])
def test_swapping_the_responses_complements_the_label(
    medical: Constitution, calibrate: bool
) -> None:
    judge = score(tiny_engine(TWO_TOKENS), medical, calibrate=calibrate)
    cases = several(medical)
    for one, other in zip(
        judgements(judge.judge(cases)),
        judgements(judge.judge([swapped(one) for one in cases])),
        strict=True,
    ):
        assert one.prob_a != pytest.approx(0.5, abs=1e-6)
        assert one.prob_a == pytest.approx(1 - other.prob_a, abs=1e-5)


def test_how_cases_are_batched_changes_nothing(medical: Constitution) -> None:
    judge = score(tiny_engine(TWO_TOKENS), medical, calibrate=True)
    cases = several(medical)
    together = judgements(judge.judge(cases))
    alone = [only(judge.judge([one])) for one in cases]
    assert [j.value_a for j in together] == pytest.approx([j.value_a for j in alone], abs=1e-4)


def test_a_case_too_long_for_the_context_has_no_judgement(medical: Constitution) -> None:
    engine = ScriptedGenerator(TWO_TOKENS, logprobs=lambda _: {"5": 0.0}, max_context=1500)
    cases = [case(medical, "x" * 1500, "y"), case(medical, "a", "b")]
    judged = score(engine, medical).judge(cases)
    assert judged[0] is Unjudged.too_long
    assert only(judged[1:]).value_a == pytest.approx(5.0, abs=1e-5)


def test_a_tokenizer_that_splits_a_digit_is_refused(medical: Constitution) -> None:
    encoder = encoder_with()
    encoder.text_ids = lambda text: [*text.encode(), 7, 8] if text == "3" else [*text.encode()]
    engine = ScriptedGenerator(encoder, logprobs=lambda _: {"5": 0.0})
    with pytest.raises(UserError, match="splits the answer 3"):
        score(engine, medical, encoder=encoder).judge([case(medical, "a", "b")])
