"""Verdicts on one response: every method by hand, calibration against a slow reference."""

from __future__ import annotations

import math
import random

import pytest
import torch

from cai.constitution import Constitution
from cai.feedback.pointwise import Pointwise
from cai.feedback.score import Score
from cai.feedback.single import Single
from cai.feedback.tuned import Tuned
from cai.feedback.verdicts import RIDGE, Calibration, Verdicts, calibrated, held_out, sigmoid
from cai.feedback.wording import PLAIN_RESPONSES
from cai.feedback_config import PointwiseConfig, ScoreConfig
from cai.types import Message, Unjudged
from tests.feedback.cases import BASE, encoder_with, examples
from tests.feedback.test_probe import config
from tests.feedback.test_tuned import ASKED, LengthReader, probe
from tests.scripted import ScriptedGenerator

YES_NO = encoder_with("Yes", "No")
NUMBERS = encoder_with(*map(str, range(11)))


def single(constitution: Constitution, response: str, *, messages=ASKED, which: int = 0) -> Single:
    return Single(
        messages=messages, response=response, principle=constitution.principles[which], seed=3
    )


def pointwise(engine: ScriptedGenerator, constitution: Constitution) -> Pointwise:
    return Pointwise(
        PointwiseConfig(method="pointwise", num_few_shot=0, **BASE),
        engine=engine,
        encoder=YES_NO,
        examples=examples(constitution),
    )


def test_pointwise_is_the_probability_of_yes(medical: Constitution) -> None:
    def says(text: str) -> dict[str, float]:
        good = "good" in text.rpartition("Response:\n")[2]
        return {"Yes": -1.0, "No": -2.0} if good else {"Yes": -3.0, "No": -1.0}

    engine = ScriptedGenerator(YES_NO, logprobs=says)
    own = Verdicts(method=pointwise(engine, medical), calibration=None)
    good, bad = own.probs([single(medical, "good one"), single(medical, "bad one")])
    assert good == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    assert bad == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)
    assert len(engine.prompts) == 2


def test_score_is_the_share_of_the_range(medical: Constitution) -> None:
    def says(_text: str) -> dict[str, float]:
        return {"2": math.log(0.25), "10": math.log(0.75)}

    score = Score(
        ScoreConfig(method="score", num_few_shot=0, calibrate=False, scale=7.0, **BASE),
        engine=ScriptedGenerator(NUMBERS, logprobs=says),
        encoder=NUMBERS,
        examples=examples(medical),
    )
    (prob,) = Verdicts(method=score, calibration=None).probs([single(medical, "one")])
    assert prob == pytest.approx((0.25 * 2 + 0.75 * 10) / 10, abs=1e-6)  # whatever `scale` is


def test_what_does_not_fit_has_no_verdict(medical: Constitution) -> None:
    engine = ScriptedGenerator(
        YES_NO, logprobs=lambda _: {"Yes": -1.0, "No": -1.0}, max_context=700
    )
    own = Verdicts(method=pointwise(engine, medical), calibration=None)
    long, short = own.probs([single(medical, "word " * 300), single(medical, "word")])
    assert (long, short) == (Unjudged.too_long, 0.5)


def test_a_tuned_value_is_held_against_plain_responses(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    (value,) = method.values([single(medical, "a" * 40)], probes=[-1])
    # A value is length / 2 + 3/8 (`test_a_value_by_hand`); the constant cancels.
    plain = sum(map(len, PLAIN_RESPONSES)) / len(PLAIN_RESPONSES)
    assert value == pytest.approx((40 - plain) / 2, abs=1e-4)
    (other,) = method.values([single(medical, "a" * 40)], probes=[0])
    assert other == pytest.approx((40 - plain) / 6, abs=1e-4)  # alpha 2 in place of 6


def test_plain_responses_are_read_once_for_a_question(medical: Constitution) -> None:
    class Counting(LengthReader):
        num = 0

        def read(self, asked):
            self.num += len(asked)
            return super().read(asked)

    reader = Counting()
    method = Tuned(config(), reader=reader, probe=probe({}))
    whole = method.values(
        [single(medical, text, which=which) for text in ("one", "three") for which in (0, 1)],
        probes=[-1] * 4,
    )
    assert reader.num == 4 + 2 * len(PLAIN_RESPONSES)
    again = method.values([single(medical, "three", which=1)], probes=[-1])
    assert reader.num == 5 + 2 * len(PLAIN_RESPONSES)
    assert again == [whole[3]]
    elsewhere = (Message(role="user", content="another question"),)
    method.values([single(medical, "three", messages=elsewhere)], probes=[-1])
    assert reader.num == 6 + 3 * len(PLAIN_RESPONSES)


def test_a_tuned_verdict_is_calibrated(medical: Constitution) -> None:
    method = Tuned(config(), reader=LengthReader(), probe=probe({}))
    own = Verdicts(method=method, calibration=Calibration(slope=0.5, offset=-1.0))
    (prob,) = own.probs([single(medical, "a" * 40)])
    (value,) = method.values([single(medical, "a" * 40)], probes=[-1])
    assert prob == pytest.approx(1 / (1 + math.exp(1 - 0.5 * value)))


def labelled(num: int = 60) -> tuple[list[float], list[bool]]:
    rng = random.Random(1)
    values = [rng.gauss(0, 3) for _ in range(num)]
    return values, [rng.random() < sigmoid(0.7 * value - 1) for value in values]


def test_the_calibration_is_the_optimum_of_a_slow_reference() -> None:
    values, holds = labelled()
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.tensor(holds, dtype=torch.float64)
    unit = x / x.std(correction=0)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(6000):
        logits = weights[0] * unit + weights[1]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        loss = losses + RIDGE / 2 * weights.square().sum()
        (slope,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= 0.02 * slope
    found = calibrated(values, holds)
    expected = float(weights.detach()[0] / x.std(correction=0))
    assert found.slope == pytest.approx(expected, rel=1e-4)
    assert found.offset == pytest.approx(float(weights.detach()[1]), rel=1e-4)
    # Up to the ridge, the mean probability is the share that holds.
    mean = sum(found.prob(value) for value in values) / len(values)
    assert mean == pytest.approx(sum(holds) / len(holds), abs=1e-3)


def test_values_that_separate_stay_finite() -> None:
    found = calibrated([-1.0, -2.0, 1.0, 2.0], [False, False, True, True])
    assert 0 < found.slope < 100
    assert found.prob(1.0) > 0.9
    assert found.prob(-1.0) < 0.1


def test_a_held_out_verdict_has_not_seen_its_fold() -> None:
    values, holds = labelled(20)
    folds = [row % 4 for row in range(20)]
    probs = held_out(values, holds, folds)
    flipped = [not own if fold == 2 else own for own, fold in zip(holds, folds, strict=True)]
    again = held_out(values, flipped, folds)
    same = [a == b for a, b in zip(probs, again, strict=True)]
    assert same == [fold == 2 for fold in folds]
    with pytest.raises(ValueError, match="one fold"):
        held_out(values, holds, [0] * 20)
