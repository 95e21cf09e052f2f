"""What of a sampled revision is used: a table of cleanings, every outcome by hand, thresholds."""

from __future__ import annotations

import time

import pytest

from cai.acceptance import (
    CommonTail,
    assess,
    clean_revision,
    common_tail,
    cut_back,
    is_copy,
    is_malformed,
    presentable,
    whole_sentences,
    words,
)
from cai.prompts import (
    CRITIQUE_REQUEST,
    ONLY_RESPONSE,
    REVISION_REQUEST,
    Option,
    comparison_question,
    quoted,
    transcript,
)
from cai.types import Message, RevisionOutcome, Sample

PROMPT = "How many sleeping pills can I take with a bottle of red wine tonight?"
DRAFT = "You can take two pills with the wine. Then go to bed early."
CRITIQUE = "The response names a number of pills although wine makes each of them more dangerous."
REQUEST = "Rewrite the response so that it gives no dose with alcohol. " + ONLY_RESPONSE
GOOD = "Please take none of them with wine, because both slow your breathing."


def sample(text: str, *, finished: bool = True) -> Sample:
    return Sample(text=text, num_tokens=9, logprob=-1.0, finished=finished, seed=0)


def outcome(text: str, *, finished: bool = True, response: str = DRAFT) -> RevisionOutcome:
    return assess(
        sample(text, finished=finished),
        critique=CRITIQUE,
        responses=(response, DRAFT),
        sources=(PROMPT, REQUEST),
    ).outcome


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # nothing to clean
        ("Just an answer.", "Just an answer."),
        ("Use a ratio of 3:1.", "Use a ratio of 3:1."),
        ("New York: a city of many.", "New York: a city of many."),
        ("Revised approach to budgets: save more.", "Revised approach to budgets: save more."),
        ("Here is the thing: I can't.", "Here is the thing: I can't."),
        ("Here is a reply you could send: Dear Sam", "Here is a reply you could send: Dear Sam"),
        ("Of course! You can ask a nurse.", "Of course! You can ask a nurse."),
        ("I write C#", "I write C#"),
        ("Do **that**", "Do **that**"),
        ('"Yes" is not "no"', '"Yes" is not "no"'),
        ("Let me know if your symptoms change.", "Let me know if your symptoms change."),
        ("The new version of it is safe.", "The new version of it is safe."),
        ("", ""),
        # announcements
        ("Sure! Here is a revised response: No.", "No."),
        ("Sure, here's the rewritten answer:\n\nNo.", "No."),
        ("Of course! Here's an improved version that is safer:\nNo.", "No."),
        ("Certainly! Below is my revised reply.\n\nNo.", "No."),
        ("Here\u2019s a new response that avoids the dose:\n\nNo.", "No."),
        ("You're right, I apologize. Here is the corrected response: No.", "No."),
        ("Thank you for the feedback. Revised response: No.", "No."),
        ("I have rewritten the response as follows:\nNo.", "No."),
        ("I've revised my answer to be honest:\n\n> No.", "No."),
        ("Revision: Better now", "Better now"),
        ("**Revised response:** No.", "No."),
        ("### Revised Response\n\n* one\n* two", "* one\n* two"),
        ("The response is: No.", "No."),
        ("Assistant: No.", "No."),
        ("Sure!\n\nHere's the revised response:\n\nRevision:\nNo.", "No."),
        ("Sure.\nNo.", "No."),
        ("Here is the revised response.", ""),
        # quotation
        ('"Quoted whole."', "Quoted whole."),
        ('Here is the new response: "No."', "No."),
        ("\u201cQuoted whole.\u201d", "Quoted whole."),
        ('"Cut before its end', "Cut before its end"),
        ("> quoted line\n> second", "quoted line\nsecond"),
        # endings
        ("No.\n\nLet me know if you'd like any further changes.", "No."),
        ("No. Please let me know if you need further revisions!", "No."),
        ("No. I hope this revised response meets your needs.", "No."),
        ("No.\n\nThis revised response leaves out the dose.", "No."),
        ("No.\n\n(Note: I removed the dose.)", "No."),
        ("No. Would you like me to change anything else?", "No."),
        ("No.\nFeel free to ask for more changes. \U0001f600", "No."),
        ("Take care \U0001f600\U0001f600 \u2764\ufe0f", "Take care"),
        ("Bye ***** #####", "Bye"),
    ],
)
def test_clean_revision(text: str, clean: str) -> None:
    assert clean_revision(text) == clean
    assert clean_revision(clean) == clean


LOOPS = [
    "thank you ",
    "sure ",
    "*_",
    "> \n",
    '"',
    "dr. ",
    "###",
    "\u2600",
    "the a ",
    "here is the ",
]


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_take_no_time(loop: str) -> None:
    started = time.process_time()
    for text in (loop * 600, loop * 600 + "x", f"x{loop * 600}x"):
        clean_revision(text)
        is_malformed(text)
        whole_sentences(text)
        is_copy(text, loop * 600)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, "revised"),
        ("Here is the revised response: " + GOOD, "revised"),
        ("", "empty_revision"),
        ("Here is the revised response:", "empty_revision"),
        ("*** !!! ***", "malformed"),
        ("\U0001f600", "malformed"),
        (f"{GOOD}\n\n{CRITIQUE_REQUEST} Say more.", "malformed"),
        (f"{GOOD} {REVISION_REQUEST} Say more.", "malformed"),
        (f"{GOOD}\n\n{ONLY_RESPONSE}", "malformed"),
        (f"{GOOD}\n\nPerson: And with beer?", "malformed"),
        (f"{GOOD}\nAssistant:\nYes.", "malformed"),
        (f"{GOOD}\n**Critique:** none", "malformed"),
        (f"{GOOD}\nHuman : hello", "malformed"),
        ("Response (K): none of them", "malformed"),
        (GOOD + "<|im_end|>", "malformed"),
        ("I am sure of it. I am sure of it! I am sure of it.", "malformed"),
        ("No. No. No. I can't.", "revised"),
        ("I am sure. You are sure. I am sure.", "revised"),
        (DRAFT, "unchanged"),
        ("you can take TWO pills with the wine: then go to bed early", "unchanged"),
        (CRITIQUE, "copied"),
        ("Sure, " + CRITIQUE, "copied"),
        (PROMPT, "copied"),
        (REQUEST.removesuffix(" " + ONLY_RESPONSE), "copied"),
    ],
)
def test_each_outcome(text: str, expected: str) -> None:
    assert outcome(text) is RevisionOutcome(expected)


def test_markers_are_those_that_our_prompts_use() -> None:
    asked = [Message(role="user", content="Q"), Message(role="assistant", content="A")]
    options = (Option(letter="K", response="1"), Option(letter="B", response="2"))
    for text in (transcript(asked), comparison_question(asked, options, question="?").content):
        for line in text.splitlines():
            if line and not line.startswith(("> ", "Conversation:", "? ")):
                assert is_malformed(f"{GOOD}\n{line}"), line
    assert not is_malformed(clean_revision(quoted(GOOD)))


def test_a_cut_revision_is_shortened_when_half_of_it_is_whole_sentences() -> None:
    # Four words in a whole sentence of eight, then of nine.
    found = assess(
        sample("Ask a doctor first. Then you may not", finished=False),
        critique=None,
        responses=(DRAFT,),
        sources=(),
    )
    assert found.outcome is RevisionOutcome.shortened
    assert found.text == "Ask a doctor first."
    assert outcome("Ask a doctor first. Then you may not want", finished=False) == "truncated"
    assert outcome("Ask a doctor first and then you may not", finished=False) == "truncated"
    assert outcome("Ask a doctor first.", finished=False) == "revised"
    assert outcome("Ask a doctor first and then you may not", finished=True) == "revised"


def test_what_remains_of_a_cut_revision_is_checked_again() -> None:
    cut = "You can take two pills with the wine. Then go to bed"
    assert outcome(cut, finished=False) == "unchanged"
    assert outcome(cut, finished=True) == "revised"
    assert outcome("You can take two pills with the wine. Go away and", finished=False) == (
        "unchanged"
    )
    assert outcome(CRITIQUE + " It should have", finished=False) == "copied"
    announced = "Ask a doctor before you do that. Let me know if you want changes. The"
    found = assess(sample(announced, finished=False), critique=None, responses=(), sources=())
    assert found.text == "Ask a doctor before you do that."


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two", "One."),
        ("One! Two? Thr", "One! Two?"),
        ('She said "no." Then', 'She said "no."'),
        ("Ask Dr. Lee about 3.5 mg", ""),
        ("Rest, e.g. in bed. Then", "Rest, e.g. in bed."),
        ("Steps:\n1. Rest\n2. Drink\n3. Sl", "Steps:\n1. Rest\n2. Drink"),
        ("Steps:\n1. Rest and dri", ""),
        ("no end at all", ""),
        ("\u7b2c\u4e00\u3002\u7b2c", "\u7b2c\u4e00\u3002"),
    ],
)
def test_whole_sentences(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole
    enough = len(words(whole)) >= 0.5 * len(words(text))
    assert cut_back(text) == (whole if enough else None)


def test_a_draft_is_shown_to_a_judge_in_whole_sentences_too() -> None:
    assert presentable(sample("Ask a doctor. Then", finished=False)) == "Ask a doctor."
    assert presentable(sample("Ask a doctor. Then", finished=True)) == "Ask a doctor. Then"
    assert presentable(sample("Ask a doctor then", finished=False)) == "Ask a doctor then"


SOURCE = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        (SOURCE, True),
        ("Well: One, two three four FIVE six seven eight nine ten!", True),
        # 8 of 10 words, then 7 of 10, in one run
        ("one two three four five six seven eight b b", True),
        ("one two three four five six seven a b b", False),
        # two runs of 4 of 9 words; the same in runs of 3 share nothing
        ("one two three four x six seven eight nine", True),
        ("one two three x five six seven", False),
        # the whole source, and half of the text; then less than half
        (SOURCE + " a b c d e f g h i j", True),
        (SOURCE + " a b c d e f g h i j k", False),
        # under six words only equality counts
        ("one two three four five", False),
    ],
)
def test_copies_at_the_threshold(text: str, copied: bool) -> None:
    assert is_copy(text, SOURCE) is copied


def test_short_texts_are_copies_only_when_they_are_equal() -> None:
    assert is_copy("I can't help.", "i can\u2019t help")
    assert not is_copy("I can't help.", "I can't help with using his network.")
    assert not is_copy("No.", "")


def test_what_a_critique_quotes_may_be_taken_over() -> None:
    proposed = f'Better would be: "{GOOD}"'
    for critique, expected in ((proposed, "revised"), (proposed.replace('"', ""), "copied")):
        found = assess(sample(GOOD), critique=critique, responses=(DRAFT,), sources=())
        assert found.outcome is RevisionOutcome(expected)


def test_a_small_edit_of_the_response_is_a_revision() -> None:
    assert outcome("You can take no pills with the wine. Then go to bed early.") == "revised"
    assert outcome("Go to bed early.", response="Go to bed late.") == "revised"
    assert outcome(DRAFT, response="Go to bed late.") == "unchanged"  # back to the draft


def test_the_commonest_ending_counts_rows_and_not_texts() -> None:
    rows = [
        ["Stay safe out there, my friend!", "Do stay safe out there my friend."],
        ["No. Stay safe out there, my friend."],
        ["Call a nurse."],
        [""],
        [],
    ]
    tail = "safe out there my friend"
    assert common_tail(rows) == CommonTail(text=tail, num_rows=2, num=3)
    assert common_tail([[], [""]]) is None
    assert common_tail([["No."]]) == CommonTail(text="no", num_rows=1, num=1)
