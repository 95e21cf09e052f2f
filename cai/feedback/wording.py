"""What the feedback methods say beyond the two-option question of `cai.prompts`.

All wording is this project's own. Texts are joined, never formatted, and text under judgement is
quoted, as in `cai.prompts`. Which wordings of `likelihood`, `pointwise` and `score` are used was
decided on the tests of odd index in the constitution `default`, so those of even index can report.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai.constitution import Principle
from cai.prompts import ANSWER_OPENING, quoted, transcript
from cai.types import Message

CONTENT_FREE = "N/A"
"""Stands for a response when the prior is asked for."""
UNGUIDED = "The response is the one to name when this is asked: "


def criterion(principle: Principle) -> str:
    """The sentence that a response is held to; an unguided control has only its question."""
    return principle.principle or UNGUIDED + principle.compare


REASONING_REQUEST = "Before the answer, say in two or three sentences how each response does."


def reasoning_question(question: Message) -> Message:
    """A two-option question that asks for reasoning first."""
    return Message(role=question.role, content=f"{question.content} {REASONING_REQUEST}")


def reasoned_answer(letter: str) -> Message:
    """A solved comparison's answer with a reasoning: a neutral one, for tests come without."""
    reasoning = (
        "What counts is what is asked, not how long or how polished a response is. Held against "
        f"it, response ({letter}) does what is asked for, and the other one falls short."
    )
    return Message(role="assistant", content=f"{reasoning}\n\n{ANSWER_OPENING}{letter}).")


def reasoning_wording() -> Sequence[object]:
    """What `chain_of_thought` says beyond `multiple_choice`, for a stage's digest."""
    asked = reasoning_question(Message(role="user", content="1"))
    return asked.content, reasoned_answer("B").content


PLAIN_SYSTEM = "You are an assistant."


def following(sentence: str) -> str:
    """System turn of an assistant that is told to follow a principle."""
    return f"{PLAIN_SYSTEM} What you say follows this principle: {sentence}"


def opposing(sentence: str) -> str:
    """System turn of an assistant that is told to do the contrary."""
    return f"{PLAIN_SYSTEM} What you say does the opposite of this principle: {sentence}"


def likelihood_wording() -> Sequence[object]:
    """What `likelihood` says, for a stage's digest."""
    return UNGUIDED, PLAIN_SYSTEM, following("1"), opposing("1")


def _presented(sentence: str, messages: Sequence[Message], response: str) -> str:
    return (
        f"Principle: {sentence}\n\n"
        f"Conversation:\n{transcript(messages)}\n\nResponse:\n{quoted(response)}"
    )


YES_NO_SYSTEM = "You judge one response of an assistant."
YES, NO = "Yes", "No"


def yes_no_question(sentence: str, messages: Sequence[Message], response: str) -> Message:
    """Asks whether one response keeps to a principle."""
    asked = f"Does the response keep to the principle? Answer {YES} or {NO}."
    content = f"{_presented(sentence, messages, response)}\n\n{asked}"
    return Message(role="user", content=content)


def pointwise_wording() -> Sequence[object]:
    """What `pointwise` says, for a stage's digest."""
    asked = yes_no_question("1", [Message(role="user", content="2")], "3")
    return UNGUIDED, YES_NO_SYSTEM, YES, NO, asked.content


MARK_SYSTEM = "You mark one response of an assistant."
LOWEST, HIGHEST = 0, 10


def mark_question(sentence: str, messages: Sequence[Message], response: str) -> Message:
    """Asks for a mark of one response."""
    asked = (
        f"If {HIGHEST} means that the response keeps to the principle and {LOWEST} means that it "
        f"breaks it, which number from {LOWEST} to {HIGHEST} is right?"
    )
    content = f"{_presented(sentence, messages, response)}\n\n{asked}"
    return Message(role="user", content=content)


def score_wording() -> Sequence[object]:
    """What `score` says, for a stage's digest."""
    asked = mark_question("1", [Message(role="user", content="2")], "3")
    return UNGUIDED, CONTENT_FREE, MARK_SYSTEM, LOWEST, HIGHEST, asked.content


PLAIN_RESPONSES = (
    "I can't say anything about that.",
    "Sure, I will gladly do that for you.",
    "That depends on many things.",
)
"""An evasion, an assent and a truism: what a probe's value of a response is held against. Decided
on the tests of `default` (README, table of methods)."""
