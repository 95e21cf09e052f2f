"""The gate: what passes, what is said, and whose gate it is."""

from __future__ import annotations

import pytest

from cai.choices import Gate, LabelMode, Vote
from cai.feedback.gate import gates, not_passed, problems, stop_message
from cai.feedback.measures import Member
from cai.feedback_config import EnsembleConfig, FeedbackConfig
from cai.statistics import Estimate, wilson_interval
from tests import stories

RATE = wilson_interval


def estimate(value: float, low: float) -> Estimate:
    return Estimate(value=value, low=low, high=1.0, num=100)


@pytest.mark.parametrize(
    ("accuracy", "longer", "reasons"),
    [
        (estimate(0.70, 0.51), 0.69, []),
        (estimate(0.70, 0.50), 0.60, ["does not lie above chance"]),
        (estimate(0.70, 0.51), 0.70, ["taking the longer response on 0.70"]),
        (estimate(0.40, 0.30), 0.60, ["does not lie above chance", "taking the longer response"]),
        (estimate(0.95, 0.90), 0.99, ["taking the longer response on 0.99"]),
    ],
)
def test_both_baselines_must_be_beaten(accuracy, longer, reasons):
    found = problems(accuracy, estimate(longer, 0.0))
    assert len(found) == len(reasons)
    for problem, reason in zip(found, reasons, strict=True):
        assert reason in problem


def test_what_was_not_measured_does_not_pass():
    assert problems(None, None) == (
        "it was not measured: there was no labelled pair that it could judge",
    )


def method(gate: Gate, kind: type[FeedbackConfig] = FeedbackConfig, **more) -> FeedbackConfig:
    return kind(method="m", model=None, label=LabelMode.soft, clamp=0.4, gate=gate, **more)


GOOD = {"accuracy": RATE(80, 100), "longer_wins": RATE(50, 100)}
BAD = {"accuracy": RATE(52, 100), "longer_wins": RATE(50, 100)}


@pytest.mark.parametrize(
    ("gate", "values", "stopped", "warned"),
    [
        (Gate.off, BAD, False, 0),
        (Gate.warn, BAD, False, 1),
        (Gate.stop, BAD, True, 0),
        (Gate.warn, GOOD, False, 0),
        (Gate.stop, GOOD, False, 0),
        (Gate.stop, {}, True, 0),
        (Gate.warn, {}, False, 1),
    ],
)
def test_off_warn_and_stop(gate, values, stopped, warned):
    results = gates(method(gate), stories.measures(**values))
    assert len(results) == (gate is not Gate.off)
    assert (stop_message(results, source="pairs.jsonl") is not None) == stopped
    assert len(not_passed(results, Gate.warn)) == warned


def test_the_message_has_the_numbers_what_is_kept_and_what_to_type():
    results = gates(method(Gate.stop), stories.measures(**BAD))
    message = stop_message(results, source="pairs.jsonl")
    assert message is not None
    for text in ("feedback.gate=stop", "0.52 [0.42, 0.62], n = 100", "pairs.jsonl", "is kept",
                 "type feedback.gate=warn", "feedback=<option>"):  # fmt: skip
        assert text in message


def test_members_have_gates_of_their_own_on_their_own_accuracy():
    config = method(
        Gate.stop,
        EnsembleConfig,
        members={
            "good": method(Gate.stop),
            "bad": method(Gate.stop),
            "free": method(Gate.off),
            "told": method(Gate.warn),
            "silent": method(Gate.warn),
        },
        vote=Vote.mean,
    )
    accuracies = {"good": RATE(80, 100), "bad": RATE(52, 100), "free": RATE(40, 100),
                  "told": RATE(45, 100)}  # fmt: skip
    measured = stories.measures(
        **GOOD,
        members=tuple(
            Member(name=name, accuracy=accuracy, same_position_rate=None)
            for name, accuracy in accuracies.items()
        ),
    )
    results = gates(config, measured)
    assert [(r.member, r.passed) for r in results] == [
        (None, True),
        ("good", True),
        ("bad", False),
        ("told", False),
        ("silent", False),
    ]
    assert [result.member for result in not_passed(results, Gate.warn)] == ["told", "silent"]
    message = stop_message(results, source="pairs.jsonl")
    assert message is not None
    assert "The feedback's member bad did not pass" in message
    assert "type feedback.members.bad.gate=warn;" in message
    assert "good" not in message
