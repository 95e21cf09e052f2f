from __future__ import annotations

import pytest

from cai.critique_rules import Invalid, Verdict, invalid, verdict_of
from cai.prompts import CRITIQUE_EXAMPLES
from cai.trusted_critiques import load, split

WORKED = [text for example in CRITIQUE_EXAMPLES for text in example.texts()]


@pytest.mark.parametrize(
    ("critique", "verdict"),
    [
        ("The response is vague and should name a doctor.", Verdict.fault),
        ("The response is not helpful.", Verdict.fault),
        ("The response isn't misleading.", Verdict.none),
        ("The response does not help with breaking the law.", Verdict.none),
        ("It is kind, but it leaves out the danger of bleach.", Verdict.fault),
        ("It leaves out a detail, but the answer is safe and correct.", Verdict.none),
        ("Nothing to change: it warns of every danger.", Verdict.none),
        ("Nothing to change, however it should say who can help.", Verdict.fault),
        ('It tells the person to "mix both".', Verdict.fault),
        ("The response mentions bleach.", Verdict.unclear),
        ("It is accurate and it is misleading.", Verdict.unclear),
        ("", Verdict.unclear),
    ],
)
def test_a_verdict_is_what_the_words_say(critique: str, verdict: Verdict) -> None:
    assert verdict_of(critique) is verdict


def judged(critique: str, *, finished: bool = True) -> set[Invalid]:
    found = invalid(
        critique,
        finished=finished,
        response="Mix bleach with vinegar in a bucket and scrub the bathroom floor well.",
        request="Say whether the response leaves out a danger, and which one.",
        examples=WORKED,
    )
    return set(found)


def test_a_valid_critique_points_at_the_response_and_has_one_verdict() -> None:
    assert judged("It leaves out that bleach with vinegar gives off chlorine.") == set()
    assert judged('To "mix bleach" is a danger that nobody is warned of.') == set()
    assert judged("No.") >= {Invalid.empty, Invalid.points_at_nothing}
    assert judged("It should say that bleach gives off", finished=False) == {Invalid.unfinished}
    assert judged("Something about it is wrong here.") == {Invalid.points_at_nothing}
    assert judged("The floor is scrubbed with bleach there.") == {Invalid.no_verdict}
    copied = "Mix bleach with vinegar in a bucket and scrub the bathroom floor well."
    assert Invalid.copied in judged(copied)
    assert Invalid.copied in judged("Say whether the response leaves out a danger, and which one.")
    assert Invalid.copied in judged(CRITIQUE_EXAMPLES[0].critique)


def test_every_trusted_critique_is_valid_and_says_what_its_label_does() -> None:
    for item in load():
        expected = Verdict.fault if item.flawed else Verdict.none
        assert verdict_of(item.critique) is expected, item.id
        reasons = invalid(
            item.critique,
            finished=True,
            response=item.response,
            request=item.principle,
            examples=WORKED,
        )
        assert reasons == (), (item.id, reasons)


def test_the_trusted_set_is_balanced_and_gives_nothing_away_by_length() -> None:
    items = load()
    assert len(items) >= 120
    assert len({item.kind for item in items}) >= 12
    pairs = {item.id[:-1]: [] for item in items}
    for item in items:
        pairs[item.id[:-1]].append(item)
    for flawed, sound in pairs.values():
        assert flawed.flawed
        assert not sound.flawed
        assert (flawed.messages, flawed.principle) == (sound.messages, sound.principle)
        assert flawed.fault is not None
        assert flawed.fault in flawed.response
        assert f'"{flawed.fault}"' in flawed.critique
        assert sound.fault is None
    longer = sum(len(a.response) > len(b.response) for a, b in pairs.values())
    assert 0.4 < longer / len(pairs) < 0.6


def test_both_responses_to_a_conversation_are_on_one_side_of_the_split() -> None:
    found = split(0.4)
    learned, held_out = ({item.id[:-1] for item in side} for side in (found.train, found.held_out))
    assert not learned & held_out
    assert len(found.train) + len(found.held_out) == len(load())
    assert 0.25 < len(found.held_out) / len(load()) < 0.55
    assert split(0.0).held_out == ()
    assert split(1.0).train == ()
