from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cai.choices import PrincipleSampling, Until
from cai.constitution import Constitution, Principle
from cai.documents import derive_forms
from cai.feedback.single import Single
from cai.revising import Alone, Chains
from cai.revision_conflicts import Break, breaks
from cai.revision_records import (
    ChainEnd,
    PrincipleVerdict,
    RevisedDraft,
    RoundVerdicts,
    Satisfaction,
    VerdictCheck,
)
from cai.satisfaction import Checker, applicable, failing
from cai.satisfaction_story import (
    measure_verdicts,
    satisfaction_findings,
    satisfaction_metrics,
    satisfaction_story,
)
from cai.types import Response, RevisionChain, RevisionOutcome, RevisionStep, Unjudged
from tests.revising import ENCODER, draft, reviser, revisions_config
from tests.scripted import ScriptedGenerator

Opinion = Callable[[str, str], float | Unjudged]
"""From a response and a principle's id to P(holds)."""


class ScriptedVerdicts:
    """An opinion in place of a feedback model, with what it was asked."""

    def __init__(self, opinion: Opinion) -> None:
        self.opinion = opinion
        self.batches: list[list[tuple[str, str]]] = []

    def probs(self, singles: Sequence[Single]) -> list[float | Unjudged]:
        self.batches.append([(one.response, one.principle.id) for one in singles])
        return [self.opinion(one.response, one.principle.id) for one in singles]


def principle(name: str, *scope: str) -> Principle:
    sentence = f"The response keeps rule {name}."
    forms = derive_forms(sentence)
    return Principle(
        id=name,
        principle=sentence,
        critique=forms.critique,
        revise=f"{name}! {forms.revise}",
        compare=forms.compare,
        scope=scope,
        weight=1.0,
        source="",
        tests=(),
        document="",
    )


def document(medical: Constitution, *principles: Principle) -> Constitution:
    return replace(medical, principles=principles)


def until_satisfied(
    constitution: Constitution,
    verdicts: ScriptedVerdicts,
    answers: Callable[[str], str],
    drafts: list[Response],
    *,
    max_rounds: int = 4,
    principles_checked: int | None = None,
) -> list[RevisedDraft]:
    config = revisions_config(
        until=Until.satisfied, max_rounds=max_rounds, principles_checked=principles_checked
    )
    generator = ScriptedGenerator(ENCODER, answers)
    checker = Checker(
        verdicts=verdicts,
        constitution=constitution,
        sampling=PrincipleSampling.weighted,
        config=config,
        seed=7,
    )
    editor = Alone(reviser=reviser(generator, constitution))
    chains = Chains(editor=editor, num_steps=max_rounds, checker=checker)
    return chains.revise(drafts, lambda _: None)


def fix_what_is_asked(texts: dict[tuple[str, str], str]) -> Callable[[str], str]:
    """Revises as a table says, by the principle asked for and the response shown."""

    def answer(asked: str) -> str:
        last = asked.rpartition("<|user|>")[2]
        if "Revision request:" not in last:
            return "a critique of its own"
        for (name, before), after in texts.items():
            if f"{name}! " in asked and f"> {before}\n" in asked:
                return after
        raise AssertionError(asked)

    return answer


def test_the_worst_principle_is_revised_until_none_fails(medical: Constitution) -> None:
    scores = {
        "draft text": {"a": 0.4, "b": 0.2, "c": 0.9},
        "better text": {"a": 0.3, "b": 0.8, "c": 0.9},
        "best text": {"a": 0.5, "b": 0.7, "c": 0.6},
    }
    found = document(medical, principle("a"), principle("b"), principle("c"))
    verdicts = ScriptedVerdicts(lambda response, name: scores[response][name])
    answers = fix_what_is_asked(
        {("b", "draft text"): "better text", ("a", "better text"): "best text"}
    )
    (one,) = until_satisfied(found, verdicts, answers, [draft("draft text")])
    assert [step.principle_id for step in one.chain.steps] == ["b", "a"]
    assert [step.response for step in one.chain.steps] == ["better text", "best text"]
    assert one.satisfaction is not None
    assert one.satisfaction.end is ChainEnd.satisfied
    assert [r.round for r in one.satisfaction.rounds] == [0, 1, 2]
    assert {v.principle_id: v.prob for v in one.satisfaction.rounds[0].verdicts} == scores[
        "draft text"
    ]


def test_a_draft_that_satisfies_is_not_revised(medical: Constitution) -> None:
    found = document(medical, principle("a"))
    generator_must_not_be_asked = fix_what_is_asked({})
    (one,) = until_satisfied(
        found, ScriptedVerdicts(lambda *_: 0.5), generator_must_not_be_asked, [draft()]
    )
    assert one.chain.steps == ()
    assert one.satisfaction is not None
    assert one.satisfaction.end is ChainEnd.satisfied
    assert len(one.satisfaction.rounds) == 1


def test_a_chain_without_a_round_left_is_censored(medical: Constitution) -> None:
    texts = iter(f"text number {n}" for n in range(99))
    found = document(medical, principle("a"))
    (one,) = until_satisfied(
        found,
        ScriptedVerdicts(lambda *_: 0.1),
        lambda _: next(texts),
        [draft("draft text")],
        max_rounds=3,
    )
    assert len(one.chain.steps) == 3
    assert one.satisfaction is not None
    assert one.satisfaction.end is ChainEnd.max_rounds
    assert [r.round for r in one.satisfaction.rounds] == [0, 1, 2, 3]


def test_chains_of_a_shard_end_by_themselves_and_are_checked_together(
    medical: Constitution,
) -> None:
    found = document(medical, principle("a"), principle("b"))

    def opinion(response: str, name: str) -> float:
        return 0.9 if response in ("good", "fixed") or name == "b" else 0.1

    verdicts = ScriptedVerdicts(opinion)
    answers = fix_what_is_asked({("a", "bad"): "fixed"})
    drafts = [draft("bad", 0), draft("good", 1), draft("bad", 2)]
    revised = until_satisfied(found, verdicts, answers, drafts)
    assert [len(one.chain.steps) for one in revised] == [1, 0, 1]
    assert [len(batch) for batch in verdicts.batches] == [6, 4]  # all new texts in one batch
    alone = [until_satisfied(found, ScriptedVerdicts(opinion), answers, [d])[0] for d in drafts]
    assert [one.satisfaction for one in revised] == [one.satisfaction for one in alone]


def test_a_text_is_checked_once(medical: Constitution) -> None:
    """A step that is not used leaves the response, and its verdicts cannot change."""
    found = document(medical, principle("a"))
    verdicts = ScriptedVerdicts(lambda *_: 0.1)
    (one,) = until_satisfied(
        found, verdicts, lambda _: "draft text", [draft("draft text")], max_rounds=2
    )
    assert {step.outcome for step in one.chain.steps} <= {
        RevisionOutcome.unchanged,
        RevisionOutcome.copied,
    }
    assert verdicts.batches == [[("draft text", "a")]]


def test_what_cannot_be_judged_is_neither(medical: Constitution) -> None:
    found = document(medical, principle("a"), principle("b"))

    def opinion(_response: str, name: str) -> float | Unjudged:
        return Unjudged.too_long if name == "a" else 0.9

    (one,) = until_satisfied(found, ScriptedVerdicts(opinion), fix_what_is_asked({}), [draft()])
    assert one.satisfaction is not None
    assert one.satisfaction.end is ChainEnd.unjudged
    verdict = one.satisfaction.rounds[0].verdicts[0]
    assert (verdict.prob, verdict.unjudged) == (None, Unjudged.too_long)


def test_an_empty_response_is_not_asked_about(medical: Constitution) -> None:
    found = document(medical, principle("a"))
    verdicts = ScriptedVerdicts(lambda *_: 0.9)
    (one,) = until_satisfied(found, verdicts, fix_what_is_asked({}), [draft(" ")])
    assert one.satisfaction is not None
    assert one.satisfaction.end is ChainEnd.unjudged
    assert verdicts.batches == []


def test_ties_go_by_id() -> None:
    rows = [("c", 0.2), ("b", 0.1), ("a", 0.1), ("d", 0.5)]
    verdicts = [PrincipleVerdict(principle_id=n, prob=p, unjudged=None) for n, p in rows]
    assert [v.principle_id for v in failing(verdicts, 0.5)] == ["a", "b", "c"]


def test_a_subset_is_drawn_once_for_each_prompt(medical: Constitution) -> None:
    texts = iter(f"text number {n}" for n in range(99))
    drafts = [draft(number=n) for n in range(12)]
    revised = until_satisfied(
        medical,
        ScriptedVerdicts(lambda *_: 0.1),
        lambda _: next(texts),
        drafts,
        max_rounds=2,
        principles_checked=3,
    )
    checked = set()
    for one in revised:
        assert one.satisfaction is not None
        rounds = [[v.principle_id for v in r.verdicts] for r in one.satisfaction.rounds]
        assert rounds[0] == rounds[1] == rounds[2]
        assert len(set(rounds[0])) == 3
        checked.add(frozenset(rounds[0]))
    assert len(checked) > 6


@pytest.mark.parametrize(
    ("category", "source", "names"),
    [
        ("fraud", "red_team", ["fraud", "tone", "both"]),
        ("weapons", "red_team", ["weapons", "tone", "both"]),
        ("medication_misuse", "domain_medical", ["medical", "tone", "both"]),
        ("something_else", "mine.jsonl", ["tone", "both"]),
    ],
)
def test_scopes_say_what_applies(category: str, source: str, names: list[str]) -> None:
    principles = [
        principle("fraud", "fraud", "honesty"),
        principle("weapons", "weapons"),
        principle("medical", "medical"),
        principle("tone", "tone"),
        principle("both", "weapons", "general"),
    ]
    prompt = draft(category=category, source=source).prompt
    assert [p.id for p in applicable(principles, prompt)] == names


def test_a_prompt_that_no_principle_is_for_is_checked_under_all() -> None:
    principles = [principle("weapons", "weapons"), principle("medical", "medical")]
    prompt = draft(category="fraud", source="red_team").prompt
    assert [p.id for p in applicable(principles, prompt)] == ["weapons", "medical"]


def chain_of(*principle_ids: str, accepted: bool = True) -> RevisionChain:
    first = draft("t0")
    steps = tuple(
        RevisionStep(
            step=number,
            principle_id=name,
            critique=None,
            revision=None,
            outcome=RevisionOutcome.revised if accepted else RevisionOutcome.copied,
            response=f"t{number}",
        )
        for number, name in enumerate(principle_ids, start=1)
    )
    return RevisionChain(prompt=first.prompt, draft=first.sample, steps=steps)


def satisfaction(end: ChainEnd, *rounds: dict[str, float]) -> Satisfaction:
    return Satisfaction(
        prompt_id="p0",
        rounds=tuple(
            RoundVerdicts(
                round=number,
                verdicts=tuple(
                    PrincipleVerdict(principle_id=name, prob=prob, unjudged=None)
                    for name, prob in probs.items()
                ),
            )
            for number, probs in enumerate(rounds)
        ),
        end=end,
    )


SWINGING = satisfaction(
    ChainEnd.max_rounds,
    {"a": 0.2, "b": 0.8, "c": 0.9},
    {"a": 0.7, "b": 0.4, "c": 0.9},  # under a: a is fixed, b is broken
    {"a": 0.3, "b": 0.6, "c": 0.9},  # under b: b is fixed, a is broken again
    {"a": 0.6, "b": 0.6, "c": 0.1},  # under a: a is fixed, c is broken
)


def test_conflicts_by_hand() -> None:
    found = list(breaks(chain_of("a", "b", "a"), SWINGING, 0.5))
    expected = [
        Break(broken="b", under="a", prompt_id="p0", round=1, before=0.8, after=0.4,
              oscillation=False),
        Break(broken="a", under="b", prompt_id="p0", round=2, before=0.7, after=0.3,
              oscillation=True),
        Break(broken="c", under="a", prompt_id="p0", round=3, before=0.9, after=0.1,
              oscillation=False),
    ]  # fmt: skip
    assert found == expected


def test_a_principle_that_was_never_fixed_does_not_oscillate() -> None:
    """It fails, then holds by somebody else's step, then fails: broken, but not its own fix."""
    rounds = satisfaction(
        ChainEnd.max_rounds,
        {"a": 0.2, "b": 0.1},
        {"a": 0.7, "b": 0.2},
        {"a": 0.3, "b": 0.6},
    )
    (found,) = breaks(chain_of("b", "b"), rounds, 0.5)
    assert (found.broken, found.under, found.oscillation) == ("a", "b", False)


def test_the_numbers_of_a_story_by_hand() -> None:
    fine = satisfaction(ChainEnd.satisfied, {"a": 0.2, "b": 0.8, "c": 0.9}, dict.fromkeys("abc", 1))
    other = replace(chain_of("a"), prompt=draft(number=1).prompt)
    story = satisfaction_story(
        [chain_of("a", "b", "a"), other],
        [SWINGING, replace(fine, prompt_id="p1")],
        [check(True, 0.9), check(False, 0.4), check(True, 0.5), check(False, 0.8)],
        config=revisions_config(until=Until.satisfied, max_rounds=3),
        num_bootstrap=20,
        seed=0,
    )
    assert story.ends == {"satisfied": 1, "max_rounds": 1, "unjudged": 0}
    assert story.rounds == (0, 1, 0, 0)
    metrics = dict(satisfaction_metrics(story))
    assert metrics["revisions/satisfied_rate"].value == 0.5
    assert metrics["revisions/rounds_mean"].value == 2
    assert metrics["revisions/oscillation_rate"].value == 0.5
    assert metrics["revisions/break_rate"].value == 3 / 4
    assert metrics["revisions/verdict_accuracy"].value == 3 / 4
    assert metrics["revisions/verdict_better_hold"].value == 1
    assert metrics["revisions/verdict_worse_fail"].value == 0.5
    a, b, c = sorted(story.principles, key=lambda row: row.id)
    assert (a.num_failed, a.num_steps, a.num_fixed, a.num_broken, a.num_left) == (2, 3, 3, 1, 0)
    assert (b.num_failed, b.num_steps, b.num_fixed, b.num_broken, b.num_left) == (0, 1, 1, 1, 0)
    assert (c.num_failed, c.num_steps, c.num_fixed, c.num_broken, c.num_left) == (0, 0, 0, 1, 1)
    first = story.conflicts[0]
    assert (first.broken, first.under, first.num_oscillations) == ("a", "b", 1)
    assert (first.example.before, first.example.after) == ("t1", "t2")
    told = " ".join(satisfaction_findings(story))
    assert "a was fixed and then broken again by a step under b" in told


def check(holds: bool, prob: float | None) -> VerdictCheck:
    return VerdictCheck(
        name="a-0",
        principle_id="a",
        holds=holds,
        value=prob,
        prob=prob,
        unjudged=None if prob is not None else Unjudged.too_long,
    )


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([check(True, 0.9), check(False, 0.9)] * 20, "says little"),
        ([check(True, 0.1), check(False, 0.9)] * 20, "means the opposite"),
        ([check(True, None)], "was not measured"),
        ([check(True, 0.9), check(False, 0.1)] * 20, ""),
    ],
)
def test_what_satisfied_is_worth(checks: list[VerdictCheck], expected: str) -> None:
    story = satisfaction_story(
        [chain_of("a", "b", "a")],
        [SWINGING],
        checks,
        config=revisions_config(until=Until.satisfied, max_rounds=3),
        num_bootstrap=20,
        seed=0,
    )
    told = [text for text in satisfaction_findings(story) if "\u201cSatisfied\u201d" in text]
    assert len(told) == bool(expected)
    assert all(expected in text for text in told)


def test_an_unjudged_response_is_in_no_measure() -> None:
    measured = measure_verdicts([check(True, 0.9), check(False, None)], threshold=0.5)
    assert measured.num_unjudged == 1
    assert measured.accuracy is not None
    assert measured.accuracy.num == 1
    assert measured.worse_fail is None
