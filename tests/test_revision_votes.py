from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cai.agreement import cohen_kappa, fleiss_kappa
from cai.choices import RevisionVote
from cai.constitution import Constitution
from cai.feedback.base import Pair
from cai.revising import Chains, Together
from cai.revision_records import FEEDBACK, Ballot, RevisedDraft, StepVote, VotePair
from cai.revision_votes import disagreement, elected, ranking
from cai.revision_votes_story import votes_findings, votes_metrics, votes_story
from cai.types import Comparison, Response, RevisionOutcome, Unjudged
from tests.revising import ENCODER, draft, model, reviser, revisions_config
from tests.scripted import ScriptedGenerator

NAMES = ("main", "second", "third")


def pair(first: str, second: str, prob: float | None) -> VotePair:
    unjudged = Unjudged.too_long if prob is None else None
    return VotePair(first=first, second=second, prob_first=prob, weight=1.0, unjudged=unjudged)


def ballot(voter: str, *names: str) -> Ballot:
    return Ballot(voter=voter, pairs=(), ranking=names)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        # main beats second, second beats third, main beats third: 2, 0, -2.
        ((0.6, 0.9, 0.9), ("main", "second", "third")),
        # Copeland before the mean: third wins both narrowly, main wins its other pair by far.
        ((0.99, 0.49, 0.49), ("third", "main", "second")),
        # A circle: all at 0; means .5 * (.9 + .3), .5 * (.1 + .8), .5 * (.7 + .2).
        ((0.9, 0.3, 0.8), ("main", "second", "third")),
        # Ties all over: the order of the members.
        ((0.5, 0.5, 0.5), ("main", "second", "third")),
        # A pair without a label is in neither count: main 0 from nothing, second +1, third -1.
        ((None, None, 0.8), ("second", "main", "third")),
    ],
)
def test_one_voter_ranks_by_copeland(
    probs: Sequence[float | None], expected: tuple[str, ...]
) -> None:
    pairs = [
        pair("main", "second", probs[0]),
        pair("main", "third", probs[1]),
        pair("second", "third", probs[2]),
    ]
    assert ranking(NAMES, pairs) == expected


def test_a_ranking_does_not_depend_on_who_is_shown_first() -> None:
    rng = random.Random(0)
    for _ in range(50):
        probs = [rng.choice([0.1, 0.3, 0.45, 0.7, 0.95]) for _ in range(3)]
        pairs = [
            pair("main", "second", probs[0]),
            pair("main", "third", probs[1]),
            pair("second", "third", probs[2]),
        ]
        assert all(one.prob_first is not None for one in pairs)
        swapped = [pair(p.second, p.first, 1 - (p.prob_first or 0.0)) for p in reversed(pairs)]
        assert ranking(NAMES, pairs) == ranking(NAMES, swapped)


def test_plurality_then_borda_then_order() -> None:
    first = [ballot("x", *NAMES), ballot("y", "second", "main", "third")]
    assert elected(NAMES, first) == "main"  # 1 to 1 first places, Borda 3 to 3: the order
    second = [
        ballot("x", "main", "second", "third"),
        ballot("y", "third", "second", "main"),
        ballot("z", "second", "third", "main"),
    ]
    assert elected(NAMES, second) == "second"  # one first place each; Borda 2, 4, 3
    third = [ballot("x", *NAMES), ballot("y", *NAMES), ballot("z", "third", "second", "main")]
    assert elected(NAMES, third) == "main"


def test_disagreement_by_hand() -> None:
    cast = [ballot("x", *NAMES), ballot("y", *NAMES), ballot("z", "third", "second", "main")]
    assert disagreement("main", cast) == pytest.approx(1 / 3)
    own = Ballot(
        voter=FEEDBACK,
        pairs=(
            pair("main", "second", 0.8),
            pair("main", "third", 0.5),
            pair("second", "third", 0.1),
        ),
        ranking=NAMES,
    )
    assert disagreement("main", [own]) == pytest.approx(0.35)  # mean of 0.8 and 0.5
    unknown = Ballot(voter=FEEDBACK, pairs=(pair("main", "second", None),), ranking=NAMES[:2])
    assert disagreement("main", [unknown]) is None
    assert disagreement("main", []) is None


class ScriptedFeedback:
    """Prefers by a function of two texts, and keeps what it was asked."""

    def __init__(self, prob_a: Callable[[str, str], float | None]) -> None:
        self.prob_a = prob_a
        self.asked: list[Pair] = []

    def compare(self, pairs: Sequence[Pair]) -> list[Comparison]:
        self.asked += pairs
        return [self._compare(one) for one in pairs]

    def _compare(self, one: Pair) -> Comparison:
        same = one.response_a == one.response_b
        prob = None if same else self.prob_a(one.response_a, one.response_b)
        unjudged = Unjudged.identical if same else Unjudged.too_long if prob is None else None
        return Comparison(
            prompt=one.prompt,
            response_a=one.response_a,
            response_b=one.response_b,
            principle_ids=tuple(p.id for p in one.principles),
            judgements=(),
            labels=(),
            prob_a=prob,
            weight=1.0,
            unjudged=unjudged,
            seed=0,
        )


def longer(a: str, b: str) -> float:
    return 0.9 if len(a) > len(b) else 0.1


def together(
    constitution: Constitution,
    answers: dict[str, Callable[[str], str]],
    voters: dict[str, ScriptedFeedback],
    drafts: list[Response],
    *,
    keep_candidate: bool = False,
    num_steps: int = 1,
) -> tuple[list[RevisedDraft], dict[str, ScriptedGenerator]]:
    generators = {name: ScriptedGenerator(ENCODER, own) for name, own in answers.items()}
    members = {
        name: reviser(generator, constitution, seed=number)
        for number, (name, generator) in enumerate(generators.items())
    }
    editor = Together(members=members, voters=voters, keep_candidate=keep_candidate)
    chains = Chains(editor=editor, num_steps=num_steps, checker=None)
    return chains.revise(drafts, lambda _: None), generators


def says(revision: str) -> Callable[[str], str]:
    """A member that always revises alike."""

    def answer(asked: str) -> str:
        last = asked.rpartition("<|user|>")[2]
        return revision if "Revision request:" in last else "a critique of its own"

    return answer


def test_all_members_revise_the_same_response_under_one_principle(medical: Constitution) -> None:
    answers = {"main": says("short one"), "second": says("a much longer one")}
    feedback = ScriptedFeedback(longer)
    drafts = [draft(number=n) for n in range(3)]
    revised, generators = together(medical, answers, {FEEDBACK: feedback}, drafts, num_steps=2)
    for one in revised:
        assert [step.response for step in one.chain.steps] == ["a much longer one", "short one"]
        first, second = one.votes
        assert (first.winner, first.disagreement) == ("second", pytest.approx(0.1))
        assert [c.response for c in first.candidates] == ["short one", "a much longer one"]
        assert second.candidates[1].outcome is RevisionOutcome.unchanged  # it repeats itself
        assert second.winner == "main"  # nothing stood against it
    asked = [g.prompts for g in generators.values()]
    assert asked[0][:3] == asked[1][:3]  # the same critique requests, so the same principles
    assert not set(generators["main"].seeds) & set(generators["second"].seeds)


def test_the_response_as_it_was_can_win(medical: Constitution) -> None:
    answers = {"main": says("short"), "second": says("shorter")}
    drafts = [draft("the longest of all responses")]
    feedback = ScriptedFeedback(longer)
    (one,), _ = together(medical, answers, {FEEDBACK: feedback}, drafts, keep_candidate=True)
    (step,) = one.chain.steps
    (vote,) = one.votes
    assert (vote.winner, vote.ballots[0].ranking) == ("unchanged", ("unchanged", "second", "main"))
    assert step.outcome is RevisionOutcome.outvoted
    assert not step.outcome.accepted
    assert step.response == "the longest of all responses"
    assert step.revision is not None
    assert step.revision.text == "shorter"
    assert len(feedback.asked) == 3


def test_a_single_accepted_revision_is_taken_without_a_vote(medical: Constitution) -> None:
    answers = {"main": says("first answer"), "second": says("a new one")}
    feedback = ScriptedFeedback(longer)
    (one,), _ = together(medical, answers, {FEEDBACK: feedback}, [draft()])
    assert feedback.asked == []
    assert one.votes[0].winner == "second"
    assert one.votes[0].disagreement is None
    assert one.chain.steps[0].response == "a new one"


def test_without_an_accepted_revision_the_response_stays(medical: Constitution) -> None:
    answers = {"main": says("first answer"), "second": says("First answer!")}
    (one,), _ = together(
        medical, answers, {FEEDBACK: ScriptedFeedback(longer)}, [draft()], keep_candidate=True
    )
    assert one.votes[0].winner is None
    assert one.chain.steps[0].outcome is RevisionOutcome.unchanged
    assert one.chain.steps[0].response == "first answer"


def test_equal_texts_are_a_tie_and_unjudged_pairs_no_vote(medical: Constitution) -> None:
    answers = {"main": says("one and the same"), "second": says("one and the same")}
    (one,), _ = together(medical, answers, {FEEDBACK: ScriptedFeedback(longer)}, [draft()])
    assert one.votes[0].ballots[0].pairs[0].prob_first == 0.5
    assert one.votes[0].winner == "main"
    other = {"main": says("one thing"), "second": says("another thing")}
    cannot = ScriptedFeedback(lambda *_: None)
    (one,), _ = together(medical, other, {FEEDBACK: cannot}, [draft()])
    assert one.votes[0].ballots[0].pairs[0].unjudged is Unjudged.too_long
    assert (one.votes[0].winner, one.votes[0].disagreement) == ("main", None)


def test_members_vote_and_may_vote_for_themselves(medical: Constitution) -> None:
    answers = {name: says(f"{name} says this") for name in NAMES}
    voters = {
        name: ScriptedFeedback(lambda a, b, name=name: 0.9 if name in a else 0.1 if name in b
                               else 0.8)
        for name in NAMES
    }  # fmt: skip
    revised, _ = together(medical, answers, voters, [draft(number=n) for n in range(4)])
    for one in revised:
        (vote,) = one.votes
        assert [b.ranking[0] for b in vote.ballots] == list(NAMES)
        # A first place each; the others rank main, second, third in this order: Borda 4, 3, 2.
        assert vote.winner == "main"
        assert vote.disagreement == pytest.approx(2 / 3)


def test_the_batch_does_not_matter(medical: Constitution) -> None:
    answers = {"main": says("short one"), "second": says("a much longer one")}
    drafts = [draft(f"answer {n}", n) for n in range(4)]
    whole, _ = together(medical, answers, {FEEDBACK: ScriptedFeedback(longer)}, drafts)
    alone = [
        together(medical, answers, {FEEDBACK: ScriptedFeedback(longer)}, [one])[0][0]
        for one in drafts
    ]
    assert whole == alone


def votes_of(medical: Constitution) -> list[StepVote]:
    answers = {name: says(f"{name} says this") for name in NAMES}
    voters = {
        "main": ScriptedFeedback(lambda a, b: 0.9 if "main" in a else 0.2),
        "second": ScriptedFeedback(lambda a, b: 0.9 if "main" in a else 0.2),
        "third": ScriptedFeedback(lambda a, b: 0.1),
    }
    revised, _ = together(medical, answers, voters, [draft(number=n) for n in range(5)])
    return [vote for one in revised for vote in one.votes]


def test_the_numbers_of_a_story_by_hand(medical: Constitution) -> None:
    votes = votes_of(medical)
    config = revisions_config(vote=RevisionVote.members)
    models = {name: model(name) for name in NAMES}
    models["third"] = replace(models["third"], system_prompt="You are strict.")
    story = votes_story(
        votes, models=models, config=config, judge="nobody", num_bootstrap=20, seed=0
    )
    assert (story.num_steps, story.num_contested, story.num_unopposed) == (5, 5, 0)
    main, second, third = story.members
    assert main.wins is not None
    assert second.wins is not None
    assert (main.wins.value, second.wins.value) == (1.0, 0.0)
    assert main.by_chance == pytest.approx(1 / 3)
    assert (main.system, third.system) == ("", "You are strict.")
    metrics = dict(votes_metrics(story))
    # main and third put themselves first, second does not; 2 of 3 votes go to the winner.
    assert metrics["revisions/self_preference"].value == pytest.approx(2 / 3)
    assert metrics["revisions/vote_disagreement"].value == pytest.approx(1 / 3)
    # 1 of 3 pairs agrees; shares 2/3 and 1/3: (1/3 - 5/9) / (1 - 5/9).
    assert metrics["revisions/vote_kappa"] == pytest.approx(-0.5)
    assert story.rows[0].wins == (5, 0, 0)
    assert any("their own" in text for text in votes_findings(story))


def test_steps_without_a_contest_are_told(medical: Constitution) -> None:
    (vote, *_) = votes_of(medical)
    single = replace(vote, ballots=(), disagreement=None)
    story = votes_story(
        [single] * 4,
        models={name: model(name) for name in NAMES},
        config=revisions_config(vote=RevisionVote.members),
        judge="nobody",
        num_bootstrap=20,
        seed=0,
    )
    assert story.num_unopposed == 4
    assert any("Only 0 of 4 steps" in text for text in votes_findings(story))


def test_fleiss_kappa_of_a_published_shape() -> None:
    """Two raters, by hand: 3 of 4 agree; shares 5/8 and 3/8, expected 34/64."""
    ratings = ["aa", "aa", "bb", "ab"]
    assert fleiss_kappa(ratings) == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64))
    assert fleiss_kappa(["aaa", "bbb"]) == pytest.approx(1)
    assert fleiss_kappa(["aaa", "aaa"]) is None
    assert fleiss_kappa([]) is None
    assert cohen_kappa("aabb", "aabb") == fleiss_kappa(["aa", "aa", "bb", "bb"])
