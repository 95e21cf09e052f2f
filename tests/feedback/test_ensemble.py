from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from cai import paths
from cai.choices import Adapter, Gate, LabelMode, ModelSource, PrincipleSampling, Vote
from cai.constitution import Constitution
from cai.errors import ConfigError
from cai.feedback.base import Case, Feedback, Judged, Method, Pair
from cai.feedback.build import Surroundings, build, identity
from cai.feedback.ensemble import Accuracy, Ensemble, disagreement, label_notes
from cai.feedback.multiple_choice import MultipleChoice
from cai.feedback_config import EnsembleConfig, FeedbackConfig, MultipleChoiceConfig
from cai.model_config import ModelConfig
from cai.schema import FEEDBACK, options, to_config
from cai.types import (
    Comparison,
    FeedbackCheck,
    Judgement,
    Message,
    Prompt,
    PromptKind,
    Split,
    Unjudged,
    parse_lines,
)
from tests.feedback.test_multiple_choice import ENCODER, prefers
from tests.runs import Finished, run, tiny_arguments
from tests.scripted import ScriptedGenerator
from tests.tiny import engine, lora

COMMON = {"model": None, "label": LabelMode.soft, "clamp": 0.4, "gate": Gate.off}
Rule = Callable[[Case], float | Unjudged]


def member_config(**changes: object) -> MultipleChoiceConfig:
    values = {"method": "multiple_choice", "both_orders": True, "num_few_shot": 0}
    return MultipleChoiceConfig(**(COMMON | values | {"calibrate": False} | changes))


class Says(Method):
    """A member with a rule for an opinion; two judgements whose mean it is."""

    def __init__(self, rule: Rule, **changes: object) -> None:
        super().__init__(member_config(**changes))
        self.rule = rule

    def judge(self, cases: list[Case]) -> list[Judged]:
        return [self._judged(case, self.rule(case)) for case in cases]

    def _judged(self, case: Case, said: float | Unjudged) -> Judged:
        if isinstance(said, Unjudged):
            return said
        return tuple(
            Judgement(
                principle_id=case.principle.id,
                member=None,
                first=first,
                letter_a=None,
                letter_b=None,
                value_a=0.0,
                value_b=0.0,
                prob_a=said + shift,
                text=None,
            )
            for first, shift in (("a", 0.05), ("b", -0.05))
        )


def says(prob: float | Unjudged, **changes: object) -> Says:
    return Says(lambda _: prob, **changes)


def ensemble(*members: Method, vote: Vote = Vote.mean, **changes: object) -> Ensemble:
    named = dict(zip("xyz", members, strict=False))
    config = EnsembleConfig(
        **(COMMON | {"method": "ensemble", "vote": vote} | changes),
        members={name: member.config for name, member in named.items()},
    )
    return Ensemble(config, members=named)


def pair(constitution: Constitution, text: str = "one", *, num: int = 1) -> Pair:
    prompt = Prompt(
        id=f"p-{text}",
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content="PROMPT"),),
    )
    return Pair(
        prompt=prompt,
        response_a=text,
        response_b="other",
        principles=constitution.principles[:num],
    )


def compare(method: Method, constitution: Constitution, *pairs: Pair) -> list[Comparison]:
    feedback = Feedback(
        method=method,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
        seed=3,
    )
    return feedback.compare(pairs or [pair(constitution)])


@pytest.mark.parametrize(
    ("vote", "probs", "expected"),
    [
        (Vote.mean, (0.9, 0.6, 0.2), 1.7 / 3),
        (Vote.vote, (0.9, 0.6, 0.2), 2 / 3),
        (Vote.vote, (0.9, 0.5, 0.2), 0.5),
        (Vote.vote, (0.5, 0.5, 0.2), 1 / 3),
    ],
)
def test_mean_and_vote_by_hand(
    medical: Constitution, vote: Vote, probs: tuple[float, ...], expected: float
) -> None:
    (comparison,) = compare(ensemble(*map(says, probs), vote=vote), medical)
    assert comparison.prob_a == pytest.approx(expected)
    assert [j.member for j in comparison.judgements] == ["x", "x", "y", "y", "z", "z"]


def test_disagreement_lowers_the_weight_by_hand(medical: Constitution) -> None:
    # |.9 - .6| + |.9 - .2| + |.6 - .2| = .3 + .7 + .4; a third of it is .466667.
    assert disagreement([0.9, 0.6, 0.2]) == pytest.approx(1.4 / 3)
    (comparison,) = compare(ensemble(says(0.9), says(0.6), says(0.2)), medical)
    assert comparison.weight == pytest.approx(1 - 1.4 / 3)
    assert disagreement([1.0, 0.0]) == 1
    assert disagreement([1.0, 1.0, 0.0]) == pytest.approx(2 / 3)
    assert disagreement([0.3]) == 0


def test_a_member_s_own_label_mode_comes_before_the_vote(medical: Constitution) -> None:
    clamped = says(0.95, label=LabelMode.clamp, clamp=0.4)
    (comparison,) = compare(ensemble(clamped, says(0.2)), medical)
    # .95 is held at .6: the mean of .6 and .2 is .4, and they are .4 apart.
    assert comparison.prob_a == pytest.approx(0.4)
    assert comparison.weight == pytest.approx(0.6)
    hard = says(0.7, label=LabelMode.hard)
    (comparison,) = compare(ensemble(hard, says(0.2), label=LabelMode.hard), medical)
    # 1 and .2: the mean is .6, which the ensemble's own mode makes 1.
    assert comparison.prob_a == 1
    assert comparison.weight == pytest.approx(0.2)


def test_several_principles_are_combined_after_the_vote(medical: Constitution) -> None:
    first = medical.principles[0].id
    member = Says(lambda case: 0.9 if case.principle.id == first else 0.2)
    (comparison,) = compare(ensemble(member, says(0.5)), medical, pair(medical, num=2))
    # Case by case: (.9 + .5) / 2 = .7 and .35; weights .6 and .7.
    assert comparison.prob_a == pytest.approx(0.525)
    assert comparison.weight == pytest.approx(0.65)


def test_a_member_that_cannot_judge_leaves_it_to_the_others_and_is_counted(
    medical: Constitution,
) -> None:
    first = medical.principles[0].id
    partly = Says(lambda case: 0.9 if case.principle.id == first else Unjudged.too_long)
    method = ensemble(says(0.8), says(Unjudged.no_verdict), partly)
    both = compare(method, medical, pair(medical, num=1), pair(medical, "two", num=2))
    assert both[0].prob_a == pytest.approx(0.85)
    assert both[0].unjudged is None
    assert both[1].prob_a == pytest.approx((0.85 + 0.8) / 2)
    assert both[1].weight == pytest.approx((0.9 + 1) / 2)
    assert method.counts(both) == {"without_y": 2, "without_z": 1}


def test_a_pair_that_no_member_can_judge_has_no_label(medical: Constitution) -> None:
    method = ensemble(says(Unjudged.too_long), says(Unjudged.no_verdict))
    (comparison,) = compare(method, medical)
    assert comparison.unjudged is Unjudged.too_long
    assert comparison.prob_a is None
    assert comparison.judgements == ()
    assert method.counts([comparison]) == {}


@pytest.mark.parametrize(
    ("num", "correct", "weight"),
    [
        (10, 9.0, math.log(10 / 2)),
        (10, 7.5, math.log(8.5 / 3.5)),
        (10, 5.0, 0.0),
        (10, 2.0, 0.0),
        (0, 0.0, 0.0),
    ],
)
def test_reliability_by_hand(num: int, correct: float, weight: float) -> None:
    assert Accuracy(num=num, correct=correct).reliability == pytest.approx(weight)


def checks(method: Method, constitution: Constitution, num: int = 3) -> list[FeedbackCheck]:
    pairs = [pair(constitution, str(number)) for number in range(num)]
    return [
        FeedbackCheck(name=c.prompt.id, comparison=c) for c in compare(method, constitution, *pairs)
    ]


def by_text(*probs: float) -> Says:
    """A member with one opinion for each of the pairs "0", "1", ..."""
    return Says(lambda case: probs[int(case.response_a)])


def test_weights_come_from_the_labelled_comparisons(medical: Constitution) -> None:
    # x is right on all of 3, log(4 / 1) = 1.386294; y on 2 of 3, log(3 / 2) = 0.405465.
    method = ensemble(by_text(0.8, 0.7, 0.6), by_text(0.9, 0.9, 0.1), vote=Vote.reliability)
    measured = method.measured_on(checks(method, medical))
    assert measured.accuracies == {
        "x": Accuracy(num=3, correct=3.0),
        "y": Accuracy(num=3, correct=2.0),
    }
    probs = [c.comparison.prob_a for c in checks(measured, medical)]
    x, y = math.log(4), math.log(1.5)
    expected = [(0.8 * x + 0.9 * y), (0.7 * x + 0.9 * y), (0.6 * x + 0.1 * y)]
    assert probs == pytest.approx([value / (x + y) for value in expected])


def test_a_labelled_pair_is_combined_by_what_was_measured_on_the_others(
    medical: Constitution,
) -> None:
    method = ensemble(by_text(0.8, 0.8, 0.4), by_text(0.6, 0.3, 0.7), vote=Vote.reliability)
    found = checks(method, medical)
    held_out = method.held_out(found)
    # Without the first, each is right on 1 of 2: log(2 / 2) = 0, so the plain mean (.8 + .6) / 2.
    # Without the second, x is right on 1 of 2 and y on 2 of 2: only y has a say. The third: only x.
    compared = [check.comparison for check in held_out.checks]
    assert [c.prob_a for c in compared] == pytest.approx([0.7, 0.3, 0.4])
    assert [c.labels[0].prob_a for c in compared] == pytest.approx([0.7, 0.3, 0.4])
    assert held_out.counts == {"plain_mean": 1}
    assert [c.name for c in held_out.checks] == [c.name for c in found]
    # With their own labels known, both are right on 2 of 3 and all three would come out otherwise.
    inside = checks(method.measured_on(found), medical)
    assert [c.comparison.prob_a for c in inside] == pytest.approx([0.7, 0.55, 0.55])


def test_held_out_leaves_other_votes_and_unjudged_pairs_alone(medical: Constitution) -> None:
    method = ensemble(by_text(0.8, 0.8, 0.4), by_text(0.6, 0.3, 0.7))
    found = checks(method, medical)
    assert method.held_out(found).checks == found
    nothing = ensemble(says(Unjudged.empty), says(Unjudged.too_long), vote=Vote.reliability)
    unjudged = checks(nothing, medical)
    assert nothing.held_out(unjudged).checks == unjudged
    assert nothing.held_out(unjudged).counts == {}


def test_members_at_chance_leave_a_plain_mean_that_is_said_and_counted(
    medical: Constitution, caplog: pytest.LogCaptureFixture
) -> None:
    method = ensemble(by_text(0.2, 0.4, 0.9), says(0.5), vote=Vote.reliability)
    with caplog.at_level(logging.WARNING):
        measured = method.measured_on(checks(method, medical))
    assert "no member of the ensemble is right more often than wrong" in caplog.text
    found = [c.comparison for c in checks(measured, medical)]
    assert [c.prob_a for c in found] == pytest.approx([0.35, 0.45, 0.7])
    assert measured.counts(found) == {"plain_mean": 3}


def test_what_was_counted_is_said() -> None:
    counts = {"pairs": 1200, "judged": 1190, "without_y": 12, "plain_mean": 3}
    missing, plain = label_notes("comparisons", counts)
    assert "member y could not judge 12 of 1,200 pairs of comparisons" in missing
    assert "For 3 of 1,200 pairs of comparisons no member" in plain
    assert label_notes("drafts", {"prompts": 3}) == []


def scripted(constitution: Constitution, word: str) -> MultipleChoice:
    return MultipleChoice(
        member_config(),
        generator=ScriptedGenerator(ENCODER, logprobs=prefers(word)),
        encoder=ENCODER,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
    )


def test_swapping_the_responses_complements_the_label_and_keeps_the_weight(
    medical: Constitution,
) -> None:
    method = ensemble(scripted(medical, "good"), scripted(medical, "long"))
    one = dataclasses.replace(pair(medical), response_a="good", response_b="long and good")
    other = dataclasses.replace(one, response_a=one.response_b, response_b=one.response_a)
    (first,), (second,) = compare(method, medical, one), compare(method, medical, other)
    # x cannot tell them apart (.5), y prefers b by sigmoid(2) = .880797: (.5 + .119203) / 2.
    assert first.prob_a == pytest.approx(0.309602, abs=1e-6)
    assert second.prob_a == pytest.approx(1 - first.prob_a)
    assert second.weight == pytest.approx(first.weight)


def test_how_pairs_are_batched_changes_nothing(medical: Constitution) -> None:
    method = ensemble(scripted(medical, "2"), by_text(*(n / 9 + 0.06 for n in range(8))))
    pairs = [pair(medical, str(number)) for number in range(8)]
    alone = [c for one in pairs for c in compare(method, medical, one)]
    assert compare(method, medical, *pairs) == alone


def test_members_have_random_streams_of_their_own(medical: Constitution) -> None:
    method = ensemble(scripted(medical, "good"), scripted(medical, "good"))
    found = compare(method, medical, *(pair(medical, str(number)) for number in range(6)))
    letters = [
        {j.letter_a for j in comparison.judgements if j.member == name}
        for name in "xy"
        for comparison in found
    ]
    assert letters[:6] != letters[6:]


def model_config(path: Path, name: str = "m") -> ModelConfig:
    return ModelConfig(
        name=name,
        source=ModelSource.path,
        path=str(path),
        revision=None,
        start=None,
        max_context=100,
        system_prompt=None,
        adapter=Adapter.lora,
        lora=lora(),
        engine=engine(),
    )


def test_every_member_is_built_with_its_own_model_and_no_other_is_loaded(
    medical: Constitution, tiny_folder: Path
) -> None:
    loaded: list[str] = []

    def base(config: ModelConfig) -> SimpleNamespace:
        loaded.append(config.name)
        return SimpleNamespace(generator=lambda: None, encoder=ENCODER)

    around = Surroundings(
        models=SimpleNamespace(base=base),
        model=model_config(tiny_folder, "phase"),
        constitution=medical,
        sampling=PrincipleSampling.weighted,
        fitted={},
    )
    own = member_config(model=model_config(tiny_folder, "own"))
    config = ensemble(says(0.5), says(0.5)).config
    built = build(dataclasses.replace(config, members={"y": own, "x": own}), around)
    assert isinstance(built, Ensemble)
    assert list(built.members) == ["x", "y"]
    assert loaded == ["own", "own"]
    build(dataclasses.replace(config, members={"x": own, "y": member_config()}), around)
    assert loaded[2:] == ["own", "phase"]


def test_the_digest_knows_every_member_and_not_their_order(tiny_folder: Path) -> None:
    phase = model_config(tiny_folder)
    config = ensemble(says(0.5), says(0.5)).config

    def of(**changes: object) -> dict:
        return identity(dataclasses.replace(config, **changes), phase)

    assert of(members=dict(reversed(config.members.items()))) == of()
    other = dataclasses.replace(phase, max_context=50)
    variants = [
        of(members=config.members | {"y": member_config(calibrate=True)}),
        of(members=config.members | {"y": member_config(model=other)}),
        of(members=config.members | {"y": member_config(label=LabelMode.hard)}),
        of(members=config.members | {"z": member_config()}),
        of(vote=Vote.vote),
        of(label=LabelMode.hard),
    ]
    assert all(variant != of() for variant in variants)
    assert of(members=config.members | {"y": member_config(gate=Gate.stop)}) == of()
    assert of(members=config.members | {"y": member_config(model=phase)}) == of()


@pytest.fixture
def compose_feedback() -> Iterator[Callable[..., FeedbackConfig]]:
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        yield (
            lambda *overrides: (
                to_config(compose("config", overrides=["feedback=ensemble", *overrides])).feedback
            )
        )


def test_members_are_whole_feedback_sections(compose_feedback) -> None:
    config = compose_feedback()
    assert isinstance(config, EnsembleConfig)
    assert list(config.members) == ["first", "second", "third"]
    without_a_model = {"ensemble", "endpoint", "random"}
    for option in set(options("feedback")) - without_a_model:
        changed = compose_feedback(
            f"feedback@feedback.members.third={option}",
            "model@feedback.members.third.model=qwen3_4b",
            "feedback.members.third.model.max_context=77",
            "feedback.members.third.label=hard",
        )
        third = changed.members["third"]
        assert type(third) is FEEDBACK[option]
        assert third.method == option
        assert third.label is LabelMode.hard
        assert (third.model.name, third.model.max_context) == ("qwen3_4b", 77)
        assert changed.members["first"] == config.members["first"]


def test_members_are_added_and_removed_on_the_command_line(compose_feedback) -> None:
    assert list(compose_feedback("~feedback.members.third").members) == ["first", "second"]
    added = compose_feedback(
        "+feedback@feedback.members.fourth=multiple_choice",
        "model@feedback.members.fourth.model=qwen3_4b",
    )
    assert list(added.members) == ["first", "second", "third", "fourth"]
    assert added.members["fourth"].model.name == "qwen3_4b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+feedback.members.first.foo=1"], r"Unknown key feedback\.members\.first\.foo"),
        (["feedback.members.first.clamp=0.7"], r"feedback\.members\.first\.clamp must be in"),
        (["~feedback.members.second", "~feedback.members.third"], "must be at least two"),
        (["feedback@feedback.members.third=ensemble"], r"feedback\.members\.third is an ensemble"),
    ],
)
def test_wrong_members_are_named(compose_feedback, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_feedback(*overrides)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    finished = run(
        tmp_path_factory.mktemp("ensemble"),
        *tiny_arguments(tiny_folder),
        "feedback=ensemble",
        "feedback@feedback.members.first=multiple_choice",
        "feedback@feedback.members.second=multiple_choice",
        "feedback.members.second.calibrate=true",
        "~feedback.members.third",
        "feedback.vote=reliability",
    )
    assert finished.code == 0, finished.output
    return finished


def stored(finished: Finished, stage: str, kind: type) -> list:
    (path,) = (finished.folder / "outputs" / "store" / stage).glob("*/records.jsonl")
    return list(parse_lines(kind, path.read_text("ascii"), str(path)))


def means(comparison: Comparison) -> dict[str, float]:
    """P(a) of each member, both orders averaged."""
    found: dict[str, list[float]] = {}
    for judgement in comparison.judgements:
        found.setdefault(str(judgement.member), []).append(judgement.prob_a)
    return {name: sum(probs) / len(probs) for name, probs in found.items()}


def weighted(probs: dict[str, float], right: dict[str, list[float]]) -> float:
    """The label by the formula, from 1 for right, 0.5 for a tie and 0 for wrong."""
    weights = {
        name: max(0.0, math.log((sum(own) + 1) / (len(own) - sum(own) + 1)))
        for name, own in right.items()
    }
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1.0)
    return sum(weights[name] * probs[name] for name in probs) / sum(weights.values())


def test_a_whole_run_by_reliability(whole: Finished) -> None:
    checks = [means(check.comparison) for check in stored(whole, "feedback_check", FeedbackCheck)]
    right = {
        name: [0.5 if probs[name] == 0.5 else float(probs[name] > 0.5) for probs in checks]
        for name in ("first", "second")
    }
    for row, check in enumerate(stored(whole, "feedback_check", FeedbackCheck)):
        others = {name: own[:row] + own[row + 1 :] for name, own in right.items()}
        assert check.comparison.prob_a == pytest.approx(weighted(checks[row], others))
    judged = [c for c in stored(whole, "comparisons", Comparison) if c.prob_a is not None]
    assert judged
    for comparison in judged:
        probs = means(comparison)
        assert set(probs) == {"first", "second"}
        assert comparison.prob_a == pytest.approx(weighted(probs, right))
        assert comparison.weight == pytest.approx(1 - abs(probs["first"] - probs["second"]))
    assert any(comparison.weight < 1 for comparison in judged)


def test_the_comparisons_depend_on_the_check(whole: Finished) -> None:
    (manifest,) = (whole.folder / "outputs" / "store" / "comparisons").glob("*/manifest.json")
    digests = {stage["stage"]: stage["digest"] for stage in whole.manifest()["stages"]}
    assert digests["feedback_check"] in manifest.read_text("ascii")
