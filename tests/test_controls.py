"""Do critiques do anything: arms that differ in one thing, numbers by hand, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cai.constitution import Constitution
from cai.critique_story import (
    Contest,
    Verdict,
    critique_findings,
    critique_metrics,
    critique_story,
    revisions_metrics,
    revisions_tail,
    tail_findings,
)
from cai.prompts import CRITIQUE_EXAMPLES, CRITIQUE_REQUEST, NO_OP
from cai.stages.controls import AGAINST, Resampler, compare_arms, make_controls
from cai.statistics import Estimate, wilson_interval
from cai.tokens import ChatEncoder
from cai.types import (
    Comparison,
    ControlArm,
    ControlComparison,
    CritiqueControl,
    Response,
    RevisionChain,
    RevisionOutcome,
    RevisionStep,
    Sample,
    Unjudged,
)
from tests.conftest import byte_tokenizer
from tests.feedback.test_multiple_choice import model, prefers
from tests.revising import draft, reviser
from tests.scripted import ScriptedGenerator
from tests.test_critique import Cut

ENCODER = ChatEncoder(byte_tokenizer())


def sample(text: str, *, finished: bool = True) -> Sample:
    return Sample(text=text, num_tokens=1, logprob=-1.0, finished=finished, seed=0)


def arms(
    constitution: Constitution,
    answers: Sequence[str],
    *,
    drafts: Sequence[Response] | None = None,
    again: Sample | None = None,
) -> tuple[list[CritiqueControl], ScriptedGenerator]:
    generator = Cut(ENCODER, answers)
    controls = make_controls(
        reviser(generator, constitution),
        lambda drafts: [again] * len(drafts),
        drafts or [draft()],
        lambda _: None,
    )
    return controls, generator


def test_the_arms_differ_only_in_the_critique(medical: Constitution) -> None:
    (control,), generator = arms(
        medical, ["CRIT", "critiqued text", "direct text"], again=sample("another text")
    )
    ask_critique, ask_revision, ask_direct = generator.prompts
    assert generator.seeds[1] == generator.seeds[2]
    principle = medical.find(control.principle_id)
    person = "Person:\n> PROMPT\nAssistant:\n> first answer\n\n"
    assert f"{person}{CRITIQUE_REQUEST} {principle.critique}" in ask_critique
    # Take the critique's turns out of what the revision was asked, and the control is left.
    shot = CRITIQUE_EXAMPLES[NO_OP]
    stripped = ask_revision
    for request, said in ((shot.critique_request, shot.critique), (principle.critique, "CRIT")):
        turns = f"{CRITIQUE_REQUEST} {request}<|end|><|assistant|>{said}<|end|><|user|>"
        assert turns in stripped
        stripped = stripped.replace(turns, "")
    assert stripped == ask_direct
    assert [(text.arm, text.response) for text in control.texts] == [
        ("draft", "first answer"),
        ("critiqued", "critiqued text"),
        ("uncritiqued", "direct text"),
        ("resampled", "another text"),
    ]
    assert control.critique is not None
    assert control.critique.text == "CRIT"


def test_a_revision_that_is_not_used_leaves_the_draft(medical: Constitution) -> None:
    (control,), _ = arms(medical, ["It is bad.", "It is bad.", "Revision request:"])
    outcomes = [text.outcome for text in control.texts]
    assert outcomes == [None, RevisionOutcome.copied, RevisionOutcome.malformed, None]
    assert {text.response for text in control.texts} == {"first answer"}


def test_a_critique_is_not_held_against_the_arm_without_one(medical: Constitution) -> None:
    (control,), _ = arms(medical, ["Say no.", "Say yes.", "Say no."])
    assert control.text(ControlArm.uncritiqued).outcome is RevisionOutcome.revised


def test_every_arm_is_cut_back_to_whole_sentences(medical: Constitution) -> None:
    unfinished = draft()
    unfinished = replace(unfinished, sample=sample("The draft. And", finished=False))
    (control,), generator = arms(
        medical,
        ["CRIT", "Critiqued text. And~", "Direct text. And~"],
        drafts=[unfinished],
        again=sample("Another text. And", finished=False),
    )
    assert [text.response for text in control.texts] == [
        "The draft.",
        "Critiqued text.",
        "Direct text.",
        "Another text.",
    ]
    assert "> The draft. And\n" in generator.prompts[0]  # as a chain would see it
    (control,), _ = arms(medical, ["CRIT", "CRIT", "Revision request:"], drafts=[unfinished])
    assert {text.response for text in control.texts} == {"The draft."}


class Recording(ScriptedGenerator):
    """Keeps how it was asked to sample."""

    def __init__(self, answers: Sequence[str], *, max_context: int = 100_000) -> None:
        super().__init__(ENCODER, answers, max_context=max_context)
        self.budgets: list[dict[str, Any]] = []

    def sample(self, prompts: Sequence[list[int]], **settings: Any) -> list:
        self.budgets.append({k: v for k, v in settings.items() if k != "seeds"})
        return super().sample(prompts, **settings)


def test_the_alternatives_have_one_budget_and_sampling_again_its_own_stream(
    medical: Constitution,
) -> None:
    generator, policy = Recording(["C", "R", "D"]), Recording(["again"])
    own = reviser(generator, medical)
    base = SimpleNamespace(encoder=ENCODER, prompt_ids=ENCODER.conversation)
    resampler = Resampler(base=base, generator=policy, config=own.config.revision, seed=own.seed)
    make_controls(own, resampler.sample, [draft()], lambda _: None)
    assert generator.budgets[1] == generator.budgets[2] == policy.budgets[0]
    assert policy.prompts == ["<|user|>PROMPT<|end|><|assistant|>"]
    assert policy.seeds[0] not in (*generator.seeds, draft().sample.seed)
    small = replace(resampler, generator=Recording([], max_context=3))
    assert small.sample([draft()]) == [None]


def control_of(constitution: Constitution, number: int, **responses: str) -> CritiqueControl:
    (control,), _ = arms(constitution, ["c", "x", "y"], drafts=[draft(number=number)])
    return replace(
        control, texts=tuple(replace(t, response=responses[str(t.arm)]) for t in control.texts)
    )


def test_the_feedback_compares_under_the_same_principle(medical: Constitution) -> None:
    texts = {"draft": "same", "critiqued": "a good one", "uncritiqued": "b", "resampled": "c"}
    control = control_of(medical, 0, **texts)
    asked = []

    def judge(text: str) -> dict[str, float]:
        asked.append(text)
        return prefers("good")(text)

    feedback = model(ScriptedGenerator(ENCODER, logprobs=judge), medical)
    compared = compare_arms(feedback, [(control, arm) for arm in AGAINST])
    principle = medical.find(control.principle_id)
    assert all(principle.compare in text for text in asked)
    assert [c.against for c in compared] == ["uncritiqued", "resampled", "draft"]
    for one in compared:
        assert one.comparison.response_a == "a good one"
        assert one.comparison.response_b == texts[one.against]
        assert one.comparison.principle_ids == (control.principle_id,)
        # The critiqued side is the one with the word, in both orders: e^2 / (e^2 + 1).
        assert one.comparison.prob_a == pytest.approx(0.880797, abs=1e-6)


def comparison(control: CritiqueControl, prob: float | Unjudged) -> Comparison:
    unjudged = prob if isinstance(prob, Unjudged) else None
    return Comparison(
        prompt=control.prompt,
        response_a="a",
        response_b="b",
        principle_ids=(control.principle_id,),
        judgements=(),
        labels=(),
        prob_a=None if unjudged else prob,
        weight=1.0,
        unjudged=unjudged,
        seed=0,
    )


def story_of(constitution: Constitution, probs: dict[ControlArm, Sequence[float | Unjudged]]):
    num = len(next(iter(probs.values())))
    controls = [
        control_of(
            constitution,
            number,
            draft="I can't help with that.",
            critiqued="one two three",
            uncritiqued="one",
            resampled="one two" if number else "one two three four",
        )
        for number in range(num)
    ]
    compared = [
        ControlComparison(against=arm, comparison=comparison(control, prob))
        for arm, own in probs.items()
        for control, prob in zip(controls, own, strict=True)
    ]
    return critique_story(
        controls,
        compared,
        judge="multiple_choice on tiny",
        judge_accuracy=wilson_interval(18, 36),
        num_bootstrap=400,
        seed=1,
    )


def test_numbers_by_hand(medical: Constitution) -> None:
    probs = [0.9, 0.6, 0.5, 0.2, Unjudged.identical, Unjudged.too_long]
    story = story_of(medical, {ControlArm.uncritiqued: probs, ControlArm.draft: [0.6] * 6})
    contest, against_draft = story.contests
    # Wins 1 + 1 + 0.5 + 0 + 0.5 of 5; mean (0.9 + 0.6 + 0.5 + 0.2 + 0.5) / 5.
    assert contest.wins == wilson_interval(3, 5)
    assert contest.probability.value == pytest.approx(0.54)
    assert contest.probability.num == 5
    assert 0.2 <= contest.probability.low < 0.54 < contest.probability.high <= 0.9
    assert contest.num_identical == 1
    assert contest.unjudged == {"too_long": 1}
    assert against_draft.wins.value == 1.0
    assert (against_draft.probability.low, against_draft.probability.high) == (0.6, 0.6)
    by_name = {arm.name: arm for arm in story.arms}
    assert by_name["the draft as it was"].refusal_rate.value == 1.0
    assert by_name["the draft as it was"].num_accepted is None
    assert by_name["critique, then revision"].refusal_rate.value == 0.0
    assert by_name["critique, then revision"].num_accepted == 6
    assert by_name["sampling again"].mean_words.value == pytest.approx((4 + 5 * 2) / 6)
    metrics = dict(critique_metrics(story))
    assert metrics["critique/num_prompts"] == 6
    assert metrics["critique/vs_uncritiqued"] == contest.probability
    assert metrics["critique/vs_uncritiqued_wins"] == contest.wins
    assert metrics["critique/vs_uncritiqued_ties"] == 1
    assert metrics["critique/vs_uncritiqued_unjudged"] == 1
    assert "critique/vs_resampled" not in metrics


def test_the_interval_resamples_prompts_and_narrows_with_them(medical: Constitution) -> None:
    few = story_of(medical, {ControlArm.draft: [0.9, 0.3] * 4}).contests[0].probability
    many = story_of(medical, {ControlArm.draft: [0.9, 0.3] * 16}).contests[0].probability
    assert few.value == many.value == pytest.approx(0.6)
    # Standard error of a mean of n values at 0.6 +- 0.3 is 0.3 / sqrt(n); 95 % is 1.96 of it.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.3 / 32**0.5, rel=0.15)
    assert few.high - few.low == pytest.approx(2 * (many.high - many.low), rel=0.2)


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, num=12)


@pytest.mark.parametrize(
    ("wins", "probability", "verdict"),
    [
        ((0.6, 0.9), (0.51, 0.6), Verdict.helps),
        ((0.4, 0.9), (0.51, 0.6), Verdict.not_distinguishable),
        ((0.6, 0.9), (0.49, 0.6), Verdict.not_distinguishable),
        ((0.1, 0.4), (0.3, 0.49), Verdict.does_not_help),
        ((0.1, 0.6), (0.3, 0.49), Verdict.not_distinguishable),
        ((0.6, 0.9), (0.3, 0.4), Verdict.not_distinguishable),
        ((0.5, 0.9), (0.5, 0.6), Verdict.not_distinguishable),
        (None, None, Verdict.not_distinguishable),
    ],
)
def test_a_verdict_needs_both_intervals(wins, probability, verdict: Verdict) -> None:
    contest = Contest(
        against=ControlArm.draft,
        name="x",
        wins=wins and estimate(*wins),
        probability=probability and estimate(*probability),
        num_identical=0,
        unjudged={},
    )
    assert contest.verdict is verdict


@pytest.mark.parametrize(
    ("direct", "again", "told"),
    [
        (0.9, 0.9, ["The critique helps:", "helps more than sampling again"]),
        (0.1, 0.1, ["The critique does not help:", "does not help; sampling again is better"]),
        (0.5, 0.5, ["The critique is not distinguishable from none (an interval covers 0.5)"]),
    ],
)
def test_the_finding_says_it_and_who_said_so(
    medical: Constitution, direct: float, again: float, told: list[str]
) -> None:
    story = story_of(
        medical, {ControlArm.uncritiqued: [direct] * 8, ControlArm.resampled: [again] * 8}
    )
    (finding,) = critique_findings(story)
    for text in (*told, "multiple_choice on tiny", "0.50 [0.34, 0.66], n = 36 of labelled pairs"):
        assert text in finding.replace("\xa0", " ")
    (unmeasured,) = critique_findings(replace(story, judge_accuracy=None))
    assert "accuracy was not measured" in unmeasured
    assert critique_findings(None) == []


def test_without_controls_there_is_no_story() -> None:
    found = critique_story([], [], judge="x", judge_accuracy=None, num_bootstrap=10, seed=0)
    assert found is None
    assert list(critique_metrics(None)) == []


def chain(number: int, *steps: tuple[str, RevisionOutcome]) -> RevisionChain:
    own = draft(number=number)
    return RevisionChain(
        prompt=own.prompt,
        draft=own.sample,
        steps=tuple(
            RevisionStep(
                step=i,
                principle_id="p",
                critique=None,
                revision=None,
                outcome=outcome,
                response=text,
            )
            for i, (text, outcome) in enumerate(steps, start=1)
        ),
    )


def test_an_ending_that_rows_share_is_reported_above_a_fifth_of_them() -> None:
    ok, no = RevisionOutcome.revised, RevisionOutcome.malformed
    ending = " and always ask your doctor."
    other = [chain(i, (f"Its own ending is {i}.", ok)) for i in range(8)]
    alike = [chain(90 + i, (f"One{ending}", ok), (f"Two{ending}", ok)) for i in range(3)]
    unused = [chain(80 + i, (f"Three{ending}", no)) for i in range(5)]
    fifth = revisions_tail([*other, *alike[:2], *unused])
    more = revisions_tail([*other, *alike, *unused])
    few = revisions_tail(alike)
    assert fifth is not None
    assert more is not None
    assert few is not None
    assert (fifth.text, fifth.num_rows, fifth.num) == ("and always ask your doctor", 2, 10)
    assert (few.num_rows, few.num) == (3, 3)
    assert tail_findings(fifth) == tail_findings(few) == tail_findings(None) == []
    (finding,) = tail_findings(more)
    assert finding.startswith("Revisions of 3 of 11 prompts end alike: \u201cand always ask")
    assert dict(revisions_metrics((), more)) == {"revisions/common_tail_share": 3 / 11}


def test_nothing_but_numbers_in_the_metrics_of_revisions() -> None:
    outcomes = ({"revised": 3, "copied": 1}, {"shortened": 2, "copied": 2})
    metrics = dict(revisions_metrics(outcomes, None))
    assert metrics["revisions/copied_share"] == 3 / 8
    assert metrics["revisions/revised_share"] == 3 / 8
    assert metrics["revisions/shortened_share"] == 2 / 8
    assert metrics["revisions/malformed_share"] == 0
    assert sum(metrics.values()) == 1
    assert dict(revisions_metrics((), None)) == {}
