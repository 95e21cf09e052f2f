from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cai.choices import LabelMode, PrincipleSampling
from cai.constitution import Constitution
from cai.feedback.base import same_position
from cai.feedback.chain_of_thought import ChainOfThought
from cai.feedback.wording import REASONING_REQUEST
from cai.feedback_config import ChainOfThoughtConfig
from cai.types import Judgement, Unjudged
from tests.feedback.cases import (
    BASE,
    case,
    compare,
    encoder_with,
    judgements,
    several,
    swapped,
    tiny_engine,
)
from tests.scripted import ScriptedGenerator

ENCODER = encoder_with()


def thinker(engine, constitution: Constitution, **changes: object) -> ChainOfThought:
    values = {
        "method": "chain_of_thought", "both_orders": True, "num_few_shot": 0, "calibrate": False,
        "num_samples": 1, "max_new_tokens": 12, "temperature": 0.7, **BASE,
    }  # fmt: skip
    return ChainOfThought(
        ChainOfThoughtConfig(**(values | changes)),
        generator=engine,
        encoder=ENCODER,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
    )


def shown(text: str) -> list[tuple[str, str]]:
    """(letter, response) of the last question, in order."""
    return re.findall(r"Response \((\w)\):\n> ([^\n]*)", text)[-2:]


def follows(strengths: dict[str, float]) -> Callable[[str], dict[str, float]]:
    """Letters by the thought before the answer: how strongly it speaks for `good`."""

    def logprobs(text: str) -> dict[str, float]:
        thought = text.rpartition("<|assistant|>")[2].partition("\n\n")[0]
        return {letter: strengths[thought] * ("good" in said) for letter, said in shown(text)}

    return logprobs


def test_probabilities_are_averaged_over_chains_then_over_orders(medical: Constitution) -> None:
    engine = ScriptedGenerator(
        ENCODER, ["X", "Y", "Y", "Y"], logprobs=follows({"X": 2.0, "Y": 0.0})
    )
    comparison = compare(thinker(engine, medical, num_samples=2), medical, "good", "bad")
    first, second = comparison.judgements
    # (sigmoid(2) + sigmoid(0)) / 2 = (0.880797 + 0.5) / 2 = 0.690399, and 0.5 in the other order
    assert first.prob_a == pytest.approx(0.690399, abs=1e-6)
    assert second.prob_a == pytest.approx(0.5)
    assert comparison.prob_a == pytest.approx(0.595199, abs=1e-6)
    assert [first.text, second.text] == ["X\n\nY", "Y\n\nY"]
    assert [first.first, second.first] == ["a", "b"]
    assert same_position(comparison) == [False]


def test_certain_answers_are_clamped(medical: Constitution) -> None:
    engine = ScriptedGenerator(ENCODER, ["X", "X"], logprobs=follows({"X": 900.0}))
    comparison = compare(thinker(engine, medical, label=LabelMode.clamp), medical, "good", "bad")
    assert comparison.judgements[0].prob_a == pytest.approx(1.0)
    assert comparison.prob_a == 0.6


def test_the_letter_is_read_after_the_reasoning_and_not_after_a_verdict(
    medical: Constitution,
) -> None:
    engine = ScriptedGenerator(
        ENCODER,
        lambda text: " Both are short.\n\nThe answer is (K). Because it is.",
        logprobs=follows({"Both are short.": 1.0}),
    )
    judged = thinker(engine, medical).judge([case(medical, "good", "bad")])
    assert [j.text for j in judgements(judged)] == ["Both are short."] * 2
    asked, answered = engine.prompts[:2], engine.prompts[2:]
    for question, whole in zip(asked, answered, strict=True):
        assert question.endswith(f"{REASONING_REQUEST}<|end|><|assistant|>")
        assert whole == question + "Both are short.\n\nThe answer is ("


def test_every_chain_has_a_stream_of_its_own_whatever_the_batch(medical: Constitution) -> None:
    def seeds(cases) -> list[int]:
        engine = ScriptedGenerator(ENCODER, lambda _: "X", logprobs=follows({"X": 1.0}))
        thinker(engine, medical, num_samples=3).judge(cases)
        return engine.seeds

    cases = [case(medical, "good", "bad", number=i) for i in range(3)]
    together = seeds(cases)
    assert len(set(together)) == 18
    assert [seed for one in cases for seed in seeds([one])] == together


def test_swapping_the_responses_complements_the_label(medical: Constitution) -> None:
    judge = thinker(tiny_engine(ENCODER), medical, num_samples=2, num_few_shot=1)
    cases = several(medical)
    ones = judge.judge(cases)
    others = judge.judge([swapped(one) for one in cases])
    for one, other in zip(ones, others, strict=True):
        by_order = {j.first: j for j in judgements([one])}
        for judgement in judgements([other]):
            same = by_order["b" if judgement.first == "a" else "a"]
            assert judgement.text == same.text
            assert same.prob_a != pytest.approx(0.5, abs=1e-6)
            assert judgement.prob_a == pytest.approx(1 - same.prob_a, abs=1e-5)


def test_how_cases_are_batched_changes_nothing(medical: Constitution) -> None:
    def told(found: list[Judgement]) -> list[tuple[str | None, float]]:
        return [(judgement.text, round(judgement.value_a, 3)) for judgement in found]

    judge = thinker(tiny_engine(ENCODER), medical, num_samples=2)
    cases = several(medical)
    together = judgements(judge.judge(cases))
    alone = [j for one in cases for j in judgements(judge.judge([one]))]
    assert told(together) == told(alone)
    assert len({judgement.text for judgement in together}) > 1


def test_few_shots_reason_before_they_answer(medical: Constitution) -> None:
    engine = ScriptedGenerator(ENCODER, lambda _: "X", logprobs=follows({"X": 1.0}))
    thinker(engine, medical, num_few_shot=2).judge([case(medical, "good", "bad")])
    for text in engine.prompts[:2]:
        *shots, question = text.split("<|user|>")[1:]
        assert len(shots) == 2
        for shot in shots:
            asked, answer = shot.removesuffix("<|end|>").split("<|end|><|assistant|>")
            assert asked.endswith(REASONING_REQUEST)
            reasoning, _, verdict = answer.partition("\n\n")
            letter = re.fullmatch(r"The answer is \((\w)\)\.", verdict)
            assert letter is not None
            assert f"response ({letter[1]})" in reasoning
        assert question.count(REASONING_REQUEST) == 1


def test_calibration_subtracts_what_reasoning_about_nothing_says(medical: Constitution) -> None:
    def logprobs(text: str) -> dict[str, float]:
        (first, said), (second, _) = shown(text)
        return {first: 3.0 if said == "N/A" else 4.0, second: 0.0}

    engine = ScriptedGenerator(ENCODER, lambda _: "X", logprobs=logprobs)
    judged = thinker(engine, medical, calibrate=True).judge([case(medical, "one", "two")])
    odds = [j.value_a - j.value_b for j in judgements(judged)]
    assert odds == pytest.approx([1.0, -1.0])


def test_a_case_without_room_for_the_reasoning_has_no_judgement(medical: Constitution) -> None:
    engine = ScriptedGenerator(
        ENCODER, lambda _: "X", logprobs=follows({"X": 1.0}), max_context=2000
    )
    cases = [case(medical, "good", "x" * 2000), case(medical, "good", "bad")]
    judged = thinker(engine, medical).judge(cases)
    assert judged[0] is Unjudged.too_long
    assert judgements(judged[1:])[0].value_a == pytest.approx(-0.313262, abs=1e-6)  # log sigmoid(1)
    short = ScriptedGenerator(ENCODER, lambda _: "X", max_context=300)
    assert thinker(short, medical).judge(cases) == [Unjudged.too_long] * 2
    assert short.prompts == []
