"""Who meets whom, on which prompts, under what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cai.choices import Gate, LabelMode, PrincipleSampling
from cai.constitution import Constitution
from cai.evaluation_config import CriterionConfig, EloConfig
from cai.feedback.base import Case, Feedback, Judged, Method
from cai.feedback.single import one_judgement
from cai.feedback_config import FeedbackConfig
from cai.stages.matches import criteria_of, criterion_principle, pairs_of, play
from cai.types import Message, Prompt, PromptKind, Response, Sample, Split, Unjudged

HELPFUL = CriterionConfig(
    sentence="It helps.", compare="Which helps?", kinds=[PromptKind.helpfulness, PromptKind.benign]
)
HARMLESS = CriterionConfig(
    sentence="It harms nobody.", compare="Which harms less?", kinds=[PromptKind.red_team]
)


def elo(**changes) -> EloConfig:
    settings = {
        "num_prompts": 2, "criteria": {"helpfulness": HELPFUL, "harmlessness": HARMLESS},
        "by_principle": False, "prior": 1.0, "runs": None,
    }  # fmt: skip
    return EloConfig(**settings | changes)


def response(policy: str, number: int, text: str, kind: PromptKind) -> Response:
    prompt = Prompt(
        id=f"p{number}",
        kind=kind,
        category="c",
        source="s",
        split=Split.evaluation,
        messages=(Message(role="user", content=f"PROMPT {number}"),),
    )
    sample = Sample(text=text, num_tokens=1, logprob=-1.0, finished=True, seed=0)
    return Response(prompt=prompt, policy=policy, index=0, sample=sample)


def responses(policy: str, texts: Sequence[str]) -> list[Response]:
    """The same texts to prompts of every kind."""
    return [
        response(policy, 10 * place + number, text, kind)
        for place, kind in enumerate(PromptKind)
        for number, text in enumerate(texts)
    ]


class Longer(Method):
    """Log-odds of 1 for every character more."""

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        return [
            one_judgement(case, float(len(case.response_a)), float(len(case.response_b)))
            for case in cases
        ]


def test_a_criterion_is_a_principle_of_its_words() -> None:
    made = criterion_principle("harmlessness", HARMLESS)
    assert (made.id, made.principle, made.compare) == (
        "harmlessness", "It harms nobody.", "Which harms less?",
    )  # fmt: skip


def test_each_kind_has_its_criteria_and_red_team_the_principles_too(medical: Constitution) -> None:
    found = criteria_of(elo(), medical)
    assert {kind: [one.id for one in own] for kind, own in found.items()} == {
        "red_team": ["harmlessness"], "helpfulness": ["helpfulness"], "benign": ["helpfulness"],
    }  # fmt: skip
    every = criteria_of(elo(by_principle=True), medical)
    ids = [principle.id for principle in medical.principles]
    assert [one.id for one in every[PromptKind.red_team]] == ["harmlessness", *ids]
    assert [one.id for one in every[PromptKind.benign]] == ["helpfulness"]


def test_the_first_prompts_of_each_kind_are_asked_and_a_is_the_later(medical) -> None:
    base, tuned = responses("base", "abc"), responses("dpo", "def")
    pairs = pairs_of(base, tuned, criteria=criteria_of(elo(), medical), num=2)
    assert [
        (str(p.prompt.kind), p.response_b + p.response_a, p.principles[0].id) for p in pairs
    ] == [
        ("red_team", "ad", "harmlessness"),
        ("red_team", "be", "harmlessness"),
        ("helpfulness", "ad", "helpfulness"),
        ("helpfulness", "be", "helpfulness"),
        ("benign", "ad", "helpfulness"),
        ("benign", "be", "helpfulness"),
    ]


def test_the_judge_prefers_and_ties_are_named(medical: Constitution) -> None:
    config = FeedbackConfig(
        method="longer", model=None, label=LabelMode.soft, clamp=0.4, gate=Gate.off
    )
    feedback = Feedback(
        method=Longer(config),
        constitution=medical,
        sampling=PrincipleSampling.weighted,
        seed=0,
    )
    base, tuned = responses("base", ["a", "same"]), responses("dpo", ["abc", "same"])
    criteria = {PromptKind.red_team: (criterion_principle("harmlessness", HARMLESS),)}
    pairs = pairs_of(base, tuned, criteria=criteria, num=2)
    longer, same = play(feedback, pairs, before="base", after="dpo")
    expected = 1 / (1 + math.exp(-2))
    assert longer.comparison.labels[0].prob_a == pytest.approx(expected)
    assert longer.comparison.principle_ids == ("harmlessness",)
    assert (longer.before, longer.after) == ("base", "dpo")
    assert same.comparison.unjudged is Unjudged.identical
    turned = pairs_of(tuned, base, criteria=criteria, num=1)
    (shorter,) = play(feedback, turned, before="dpo", after="base")
    assert shorter.comparison.labels[0].prob_a == pytest.approx(1 - expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prior": 1e-6}, "prior must be at least 0.001"),
        ({"num_prompts": -1}, "num_prompts"),
        ({"criteria": {"helpfulness": HELPFUL}}, "criteria must have harmlessness"),
        ({"num_prompts": 0, "runs": ["x"]}, "num_prompts is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        elo(**changes)
