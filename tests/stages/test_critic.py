from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai.constitution import Constitution
from cai.critic_record import CritiqueSample, TrustedCheck
from cai.critic_story import critic_findings, critic_story, judged_story, reward_story
from cai.critique import Turn
from cai.critique_config import UnjudgedScores
from cai.critique_rules import Verdict
from cai.stages.critic import gains
from cai.stages.critic_policy import judge_revisions
from cai.stages.direct_reward import DirectScores, judgement_of, log_odds, without_reference
from cai.types import (
    Comparison,
    Message,
    Prompt,
    PromptKind,
    Response,
    RevisionOutcome,
    Sample,
    Split,
    Unjudged,
)

UNJUDGED = UnjudgedScores(empty=-3.0, identical=0.25, too_long=-2.0, no_verdict=-1.0)


def prompt(name: str) -> Prompt:
    return Prompt(
        id=name,
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content=name),),
    )


def compared(name: str, prob_a: float | None, unjudged: Unjudged | None = None) -> Comparison:
    return Comparison(
        prompt=prompt(name),
        response_a="a",
        response_b="b",
        principle_ids=("p",),
        judgements=(),
        labels=(),
        prob_a=prob_a,
        weight=1.0,
        unjudged=unjudged,
        seed=0,
    )


def sample(text: str) -> Sample:
    return Sample(text=text, num_tokens=1, logprob=-1.0, finished=True, seed=0)


def sampled(name: str, index: int, *, valid: bool = True, accepted: bool = True) -> CritiqueSample:
    text = sample("t")
    outcome = RevisionOutcome.revised if accepted else RevisionOutcome.copied
    return CritiqueSample(
        prompt=prompt(name),
        draft="draft",
        principle_id="p",
        index=index,
        critique=text,
        revision=text,
        outcome=outcome,
        response="r",
        valid=valid,
    )


def test_the_best_valid_critique_of_each_draft_is_learned_if_it_gains_enough() -> None:
    samples = [
        sampled("one", 0),
        sampled("one", 1),
        sampled("one", 2, valid=False),
        sampled("two", 0),
        sampled("two", 1, accepted=False),
        sampled("three", 0),
        sampled("three", 1),
    ]
    comparisons = [
        compared("one", 0.6),
        compared("one", 0.7),
        compared("one", 0.9),
        compared("two", 0.52),
        None,
        compared("three", 0.8),
        compared("three", 0.8),
    ]
    found = gains(samples, comparisons, min_gain=0.05)
    assert [one.chosen for one in found] == [False, True, False, False, False, True, False]
    assert found[1].gain == pytest.approx(0.2)
    assert found[4].gain is None
    half = gains(samples[:2], comparisons[:2], min_gain=0.2)
    assert not any(one.chosen for one in half)  # more than the least gain, not as much


def test_log_odds_by_hand_and_within_the_bound() -> None:
    assert log_odds(0.75, bound=3.0) == (pytest.approx(math.log(3)),) * 2
    assert log_odds(0.5, bound=3.0) == (0.0, 0.0)
    value, score = log_odds(0.01, bound=2.0)
    assert value == pytest.approx(math.log(0.01 / 0.99))
    assert score == -2.0
    assert log_odds(1.0, bound=3.0)[1] == 3.0
    assert log_odds(0.2, bound=9.0)[0] == pytest.approx(-log_odds(0.8, bound=9.0)[0])


@pytest.mark.parametrize(
    ("reason", "score"),
    [
        (Unjudged.empty, -3.0),
        (Unjudged.identical, 0.25),
        (Unjudged.too_long, -2.0),
        (Unjudged.no_verdict, -1.0),
    ],
)
def test_what_is_not_judged_has_its_configured_score(reason: Unjudged, score: float) -> None:
    found = judgement_of(
        compared("one", None, reason), iteration=2, row=1, max_log_odds=3.0, unjudged=UNJUDGED
    )
    assert (found.score, found.value, found.unjudged) == (score, None, reason)
    assert (found.iteration, found.row, found.principle_id) == (2, 1, "p")


def test_a_prompt_without_a_reference_is_not_trained_on(tmp_path: Path) -> None:
    texts = {"answered": "a text", "empty": "", "invisible": "\u200b"}
    responses = [
        Response(prompt=prompt(name), policy="sl_cai", index=0, sample=sample(text))
        for name, text in texts.items()
    ]
    scores = DirectScores(
        feedback=None, config=None, references=texts, folder=tmp_path,
        unanswered=without_reference(responses),
    )  # fmt: skip
    room = {name: scores.room(prompt(name).messages) for name in texts}
    assert room == {"answered": math.inf, "empty": -math.inf, "invisible": -math.inf}


class ScriptedFeedback:
    """Prefers what a script says; keeps the pairs that it was asked about."""

    def __init__(self, probs: list[float]) -> None:
        self.probs = probs
        self.pairs: list = []

    def compare(self, pairs: list) -> list[Comparison]:
        self.pairs = list(pairs)
        return [
            replace(
                compared(pair.prompt.id, prob),
                response_a=pair.response_a,
                response_b=pair.response_b,
            )
            for pair, prob in zip(pairs, self.probs, strict=True)
        ]


class Settings:
    """What the score is made by."""

    max_log_odds = 1.0
    unaccepted = -0.7
    unjudged = UNJUDGED
    ppo = SimpleNamespace(shard_size=8)


def test_a_critique_is_paid_by_the_revision_that_follows_it(medical: Constitution) -> None:
    principle = medical.principles[0]
    turns = [
        Turn(
            prompt=prompt(name),
            draft=f"draft {name}",
            response=f"draft {name}",
            principle=principle,
        )
        for name in ("one", "two", "three")
    ]
    outcomes = [
        (RevisionOutcome.revised, "better one"),
        (RevisionOutcome.malformed, "draft two"),
        (RevisionOutcome.shortened, "worse three"),
    ]
    feedback = ScriptedFeedback([0.6, 0.1])
    found = judge_revisions(feedback, turns, outcomes, config=Settings(), iteration=4)
    assert [(p.response_a, p.response_b) for p in feedback.pairs] == [
        ("better one", "draft one"),
        ("worse three", "draft three"),
    ]
    assert [one.score for one in found] == [pytest.approx(math.log(1.5)), -0.7, -1.0]
    assert [one.comparison is None for one in found] == [False, True, False]
    assert {one.iteration for one in found} == {4}
    assert [one.row for one in found] == [0, 1, 2]
    story = reward_story(found, asked="it", bound=1.0, num_bootstrap=50, seed=0)
    assert (story.num, story.num_unaccepted, story.num_bounded) == (3, 1, 1)
    assert story.first.value == pytest.approx((math.log(1.5) - 1.7) / 3)


def check(
    name: str, critic: str, *, flawed: bool, verdict: Verdict, logprob: float
) -> TrustedCheck:
    return TrustedCheck(
        name=name,
        kind="harm",
        critic=critic,
        flawed=flawed,
        critique=None,
        verdict=verdict,
        invalid=(),
        trusted_logprob=logprob,
    )


def test_a_critic_is_measured_against_the_labels_by_hand() -> None:
    fault, none, unclear = Verdict.fault, Verdict.none, Verdict.unclear
    labels = [True, True, True, True, False, False, False, False]
    base = [fault] * 8
    ours = [fault, fault, fault, unclear, none, none, none, fault]
    checks = {
        name: [
            check(f"{k}", name, flawed=flawed, verdict=verdict, logprob=logprob)
            for k, (flawed, verdict) in enumerate(zip(labels, verdicts, strict=True))
        ]
        for name, verdicts, logprob in (("base", base, -3.0), ("critic", ours, -2.0))
    }
    story = critic_story(checks, (), learned="it", num_bootstrap=200, seed=0)
    assert story.majority == 0.5
    first, last = story.rows
    assert (first.right.value, last.right.value) == (0.5, 0.75)
    assert first.kappa.value == 0.0
    # observed 6/8; expected: fault .5*.5 + none .5*3/8
    assert last.kappa.value == pytest.approx((0.75 - 0.4375) / (1 - 0.4375))
    assert last.num_unclear == 1
    assert story.right_change.value == pytest.approx(0.25)
    assert story.loss_change.value == pytest.approx(-1.0)
    alone = critic_story({"base": checks["base"]}, (), learned="it", num_bootstrap=50, seed=0)
    told = " ".join(critic_findings(alone))
    assert "not shown to be better than always saying the commoner one" in told
    assert "no better than chance" in told
    assert "finds fault with every held-out response" in told


def test_no_comparison_is_no_contest() -> None:
    assert judged_story("j", (), circular=True, num_bootstrap=50, seed=0).contests == ()
