"""A run that shows nothing must say so, and one that shows something must not be slandered."""

import dataclasses

import pytest

from cai import statistics
from cai.choices import Combine, Condition, Gate
from cai.feedback.gate import GateResult
from cai.feedback.measures import Group
from cai.findings import findings, key_metrics
from cai.story import (
    Change,
    ComparisonsStory,
    DPOStory,
    EvaluationRow,
    EvaluationStory,
    FeedbackStory,
    PPOStory,
    PreferenceModelStory,
    RevisionsStory,
    RunStory,
)
from tests import stories

RATE = statistics.wilson_interval


def story(**parts):
    return RunStory(headline=stories.headline(), **parts)


def feedback(*, gates=(), comparisons=None, **values):
    return FeedbackStory(
        method="multiple_choice",
        source="pairs.jsonl",
        note="",
        measured=stories.measures(**({"num_pairs": 100, "side_by_side": True} | values)),
        gates=gates,
        comparisons=comparisons,
    )


def preference_model(**values):
    return PreferenceModelStory(
        num_ai=9,
        num_human=0,
        num_members=1,
        combine=Combine.mean,
        condition=Condition.none,
        curves=(),
        measured=stories.preference_measures(**values),
    )


def gate(member, setting, *problems):
    return GateResult(member=member, gate=setting, problems=problems)


def dpo(**values):
    reward = values.pop("preferred_reward", None)
    measured = stories.preference_measures(**values)
    return DPOStory(
        num_ai=9, num_human=0, settings={}, curves=(), measured=measured, preferred_reward=reward
    )


def mean(low, high):
    middle = (low + high) / 2
    return statistics.Estimate(value=middle, low=low, high=high, num=24)


def by_length(shorter, longer):
    return tuple(
        Group(name=name, accuracy=RATE(right, 50), longer_wins=None)
        for name, right in (("better_shorter", shorter), ("better_longer", longer))
    )


def row(policy, kind, refused, *, num=40, phrase="", prompts=1):
    return EvaluationRow(
        policy=policy,
        kind=kind,
        refusal_rate=RATE(refused, num),
        mean_words=statistics.bootstrap_mean([1.0] * num, num_resamples=10, seed=0),
        mean_score=None,
        distinct_2=None,
        distinct_4=None,
        common_phrase=phrase,
        common_phrase_prompts=prompts,
    )


def test_a_sound_run_has_no_warning():
    sound = story(
        revisions=RevisionsStory(outcomes=({"revised": 80, "unchanged": 20},)),
        feedback=feedback(
            accuracy=RATE(80, 100),
            longer_wins=RATE(55, 100),
            same_position_rate=RATE(10, 100),
            unjudged={"identical": 20},
            by_length=by_length(38, 42),
            gates=(gate(None, Gate.warn), gate("one", Gate.stop)),
            comparisons=ComparisonsStory(num=100, unjudged={"identical": 20}),
        ),
        preference_model=preference_model(
            accuracy=RATE(80, 100), principle_tests=RATE(80, 100), cross_entropy=mean(0.5, 0.7)
        ),
        dpo=dpo(accuracy=RATE(20, 24), longer_wins=RATE(12, 24), preferred_reward=mean(-0.1, 0.9)),
        evaluation=EvaluationStory(rows=(row("base", "benign", 2), row("rl_cai", "benign", 4))),
    )
    assert findings(sound) == ()
    assert findings(story()) == ()


@pytest.mark.parametrize(
    ("part", "start"),
    [
        ({"feedback": feedback(accuracy=RATE(53, 100))}, "Feedback is at chance: accuracy 0.53"),
        ({"feedback": feedback(accuracy=RATE(20, 100))}, "Feedback is worse than chance"),
        (
            {"feedback": feedback(accuracy=RATE(70, 100), longer_wins=RATE(65, 100))},
            "Feedback does not beat taking the longer response",
        ),
        ({"feedback": feedback()}, "Feedback was not measured"),
        (
            {"feedback": feedback(accuracy=RATE(80, 100), same_position_rate=RATE(87, 100))},
            "Feedback follows the position",
        ),
        (
            {
                "feedback": feedback(
                    accuracy=RATE(80, 100), unjudged={"identical": 30, "too_long": 2, "empty": 0}
                )
            },
            "32 of 100 labelled pairs could not be judged (identical: 30, too long: 2).",
        ),
        (
            {
                "feedback": feedback(
                    accuracy=RATE(80, 100),
                    comparisons=ComparisonsStory(num=50, unjudged={"no_verdict": 20}),
                )
            },
            "20 of 50 pairs of the run's own could not be judged (no verdict: 20).",
        ),
        (
            {"feedback": feedback(accuracy=RATE(80, 100), by_length=by_length(20, 48))},
            "Feedback follows the length, to the longer response: it is right on "
            "0.96 [0.87, 0.99], n = 50 of the pairs whose better response is the longer one",
        ),
        (
            {"feedback": feedback(accuracy=RATE(80, 100), by_length=by_length(48, 20))},
            "Feedback follows the length, to the shorter response",
        ),
        (
            {
                "feedback": feedback(
                    accuracy=RATE(80, 100), gates=(gate("one", Gate.warn, "it is at chance"),)
                )
            },
            "The feedback's member one did not pass its gate (feedback.members.one.gate=warn): it "
            "is at chance.",
        ),
        (
            {"preference_model": preference_model(accuracy=RATE(12, 24))},
            "The preference model is at chance agreeing with held-out AI labels",
        ),
        (
            {"preference_model": preference_model(cross_entropy=mean(0.7, 0.9))},
            "The preference model is over-confident: its cross-entropy on held-out pairs is "
            "0.80 [0.70, 0.90], n = 24 nats",
        ),
        ({"dpo": dpo()}, "Nobody knows whether DPO learned anything but its own pairs"),
        ({"dpo": dpo(accuracy=RATE(12, 24))}, "DPO is at chance agreeing with held-out AI labels"),
        ({"dpo": dpo(accuracy=RATE(2, 24))}, "DPO is worse than chance agreeing"),
        (
            {"dpo": dpo(accuracy=RATE(18, 24), longer_wins=RATE(16, 24))},
            "DPO does not beat taking the longer response on held-out pairs: 0.75",
        ),
        (
            {"dpo": dpo(accuracy=RATE(24, 24), preferred_reward=mean(-0.9, -0.1))},
            "DPO made even the preferred responses of held-out pairs less likely",
        ),
        (
            {"dpo": dpo(accuracy=RATE(24, 24), cross_entropy=mean(0.7, 0.9))},
            "DPO is over-confident: its cross-entropy on held-out pairs is 0.80",
        ),
        (
            {"revisions": RevisionsStory(outcomes=({"revised": 3, "unchanged": 40},))},
            "Most revision steps changed nothing",
        ),
        (
            {
                "evaluation": EvaluationStory(
                    rows=(row("base", "benign", 1), row("rl_cai", "benign", 30))
                )
            },
            "Over-refusal grew: RL-CAI refuses",
        ),
        (
            {
                "evaluation": EvaluationStory(
                    rows=(
                        row("rl_cai", "benign", 1, phrase="you are valid and valued", prompts=33),
                        row("rl_cai", "red_team", 1, phrase="you are valid and valued", prompts=21),
                    )
                )
            },
            "Boilerplate: RL-CAI says \u201cyou are valid and valued\u201d to 33 of 40 benign "
            "prompts, 21 of 40 red team prompts.",
        ),
    ],
)
def test_each_failing_is_named(part, start):
    (found,) = findings(story(**part))
    assert found.replace("\xa0", " ").startswith(start)


@pytest.mark.parametrize(
    ("num_right", "said"),
    [(2, "finds the worse response likelier"), (10, "finds neither response likelier"), (19, None)],
)
def test_likelihoods_of_tests_that_do_not_favour_the_better_response_are_named(num_right, said):
    tests = {
        "base": statistics.wilson_interval(19, 20),
        "rl_cai": statistics.wilson_interval(num_right, 20),
    }
    found = findings(story(evaluation=EvaluationStory(rows=(), likelihood_tests=tests)))
    assert [f"On principle tests RL-CAI {said}" in text for text in found] == [True] * bool(said)


@pytest.mark.parametrize(
    ("moved", "num", "warned"),
    [
        ((-0.5, -0.7, -0.3), 40, True),
        ((0.5, 0.3, 0.7), 40, True),
        ((-0.5, -0.7, 0.1), 40, False),
        ((-0.2, -0.25, -0.15), 40, False),
        ((-0.5, -0.7, -0.3), 7, False),
    ],
)
def test_a_length_that_moved_far_and_surely_is_named(moved, num, warned):
    value, low, high = moved
    change = Change(
        metric="words",
        kind="benign",
        before="base",
        after="rl_cai",
        estimate=statistics.Estimate(value=value, low=low, high=high, num=num),
    )
    rows = (row("base", "benign", 1), row("rl_cai", "benign", 1))
    found = findings(story(evaluation=EvaluationStory(rows=rows, changes=(change,))))
    assert [text.startswith("RL-CAI answers benign prompts in") for text in found] == [
        True
    ] * warned


@pytest.mark.parametrize(
    ("setting", "ending"),
    [
        (Gate.warn, "principles. The gate only warns of it (feedback.gate=warn)."),
        (Gate.stop, "The gate stops a run that would train on it (feedback.gate=stop)."),
    ],
)
def test_what_the_gate_does_stands_beside_the_number(setting, ending):
    (found,) = findings(
        story(feedback=feedback(accuracy=RATE(53, 100), gates=(gate(None, setting, "chance"),)))
    )
    assert found.startswith("Feedback is at chance")
    assert found.endswith(ending)


def test_a_method_without_positions_has_no_position_among_the_numbers_that_matter():
    values = {"accuracy": RATE(80, 100), "same_position_rate": RATE(0, 100)}
    for side_by_side, num in ((True, 2), (False, 1)):
        told = story(feedback=feedback(side_by_side=side_by_side, **values))
        assert len(key_metrics(told)) == num


def test_own_warnings_come_last():
    found = findings(story(feedback=feedback(accuracy=RATE(1, 2)), warnings=("own",)))
    assert found[-1] == "own"
    assert len(found) == 2


def test_key_metrics_show_first_and_last_policy():
    full = stories.full_story()
    labels = [metric.label for metric in key_metrics(full)]
    assert "Refusals, red team, base" in labels
    assert "Refusals, red team, RL-CAI" in labels
    assert "Refusals, red team, SL-CAI" not in labels
    assert "Mean score, benign: RL-CAI - SL-CAI" in labels
    assert "DPO agrees with held-out AI labels" in labels
    assert key_metrics(dataclasses.replace(full, revisions=None, critique=None))[0].comment == (
        "chance 0.5; longer wins 0.56"
    )
    assert key_metrics(story()) == ()


@pytest.mark.parametrize(("explained", "told"), [(-0.31, True), (0.0, False), (None, False)])
def test_a_value_function_worse_than_the_mean_is_said(explained, told):
    ppo = PPOStory(
        num_rounds=6, num_rollouts=72, settings={}, curves=(), explained_variance=explained
    )
    found = [line for line in findings(story(ppo=ppo)) if "value function" in line]
    assert [("explained variance -0.31" in line) for line in found] == [True] * told
