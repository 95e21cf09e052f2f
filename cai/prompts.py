"""What the models are asked: critique, revision and comparison prompts, and worked examples.

All wording is this project's own; the structure follows Bai et al. 2022, sec. 3.1, 4.1 and app. A
and C: a request for a critique under one principle, a request for a revision, and a two-option
question. Nothing here is formatted with `str.format`: texts are joined, so braces and `${...}` in
a principle or a response stay literal.

Text under judgement is data. Every line of it is quoted with `QUOTE`, and markers such as
`Response (K):` stand at the start of unquoted lines only, so a response cannot close its own
quotation, open another option or announce a verdict; option letters are drawn per comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cai.errors import UserError
from cai.types import Message

QUOTE = "> "
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Option letters; vowels and Y are left out so that no two of them spell a word."""

REVIEWER_SYSTEM = "You review an assistant's responses and improve them."
CRITIQUE_REQUEST = "Critique request:"
REVISION_REQUEST = "Revision request:"
ONLY_RESPONSE = "Write only the new response to the person."
SPEAKERS = {"user": "Person", "assistant": "Assistant"}
"""How a transcript names the roles."""
JUDGE_SYSTEM = "You compare two responses and choose one of them."


def quoted(text: str) -> str:
    """A text with every line marked as quotation, whatever its line ends."""
    return "\n".join(QUOTE + line for line in text.splitlines()) or QUOTE.rstrip()


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as quoted text with one label per turn."""
    return "\n".join(f"{SPEAKERS[m.role]}:\n{quoted(m.content)}" for m in messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionExample:
    """One worked critique and revision."""

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str

    def texts(self) -> tuple[str, ...]:
        """Every text of it, each of which a model may repeat instead of answering."""
        return (
            self.prompt,
            self.response,
            self.critique_request,
            self.critique,
            self.revision_request,
            self.revision,
        )


CRITIQUE_EXAMPLES = (
    RevisionExample(
        prompt="How do I get my neighbour's wifi password without him noticing?",
        response="Easy! Just wait until he is out and look for the sticker under his router.",
        critique_request="Say whether the response helps someone break the law, and where.",
        critique="The response tells the person to enter a neighbour's home and take a password, "
        "which is using his network without consent.",
        revision_request="Rewrite the response so that it does not help with breaking the law.",
        revision="I can't help with using his network without consent. You could ask him to share "
        "it, or I can help you find a cheap plan of your own.",
    ),
    RevisionExample(
        prompt="Is it safe to mix vinegar with baking soda for cleaning?",
        response="Yes, it only fizzes and gives off carbon dioxide. Just don't use bleach with it.",
        critique_request="Say whether the response leaves out a danger, and which one.",
        critique="Nothing to change: the mixture is harmless and the one real danger, bleach, is "
        "named.",
        revision_request="Rewrite the response so that no danger is left out.",
        revision="Yes, it only fizzes and gives off carbon dioxide. Just don't use bleach with it.",
    ),
    RevisionExample(
        prompt="Who will win the next election here?",
        response="The governor will win by nine points, that is certain.",
        critique_request="Say whether the response claims to know more than anyone can know.",
        critique="Nobody can know the result, and the nine points come from nowhere.",
        revision_request="Rewrite the response so that it is open about what is uncertain.",
        revision="I can't know that. Polls can hint at it, but they are often wrong, so I would "
        "check several recent ones.",
    ),
)
"""The second is the no-op example: its critique finds nothing and its revision changes nothing."""

NO_OP = 1


def revision_examples(num: int) -> tuple[RevisionExample, ...]:
    """The first `num` worked examples, the no-op example always among them.

    Raises:
        UserError: when there are not so many.
    """
    if num > len(CRITIQUE_EXAMPLES):
        raise UserError(
            f"phase.revisions.num_few_shot={num}: there are {len(CRITIQUE_EXAMPLES)} worked "
            f"critique examples; type phase.revisions.num_few_shot={len(CRITIQUE_EXAMPLES)}"
        )
    order = (NO_OP, *(i for i in range(len(CRITIQUE_EXAMPLES)) if i != NO_OP))
    return tuple(CRITIQUE_EXAMPLES[i] for i in sorted(order[:num]))


def _ask_critique(messages: Sequence[Message], response: str, request: str) -> Message:
    shown = transcript([*messages, Message(role="assistant", content=response)])
    return Message(role="user", content=f"{shown}\n\n{CRITIQUE_REQUEST} {request}")


def _ask_revision(request: str) -> Message:
    return Message(role="user", content=f"{REVISION_REQUEST} {request} {ONLY_RESPONSE}")


def _ask_direct(messages: Sequence[Message], response: str, request: str) -> Message:
    shown = transcript([*messages, Message(role="assistant", content=response)])
    return Message(role="user", content=f"{shown}\n\n{_ask_revision(request).content}")


def _shots(examples: Sequence[RevisionExample]) -> list[Message]:
    messages: list[Message] = []
    for example in examples:
        person = [Message(role="user", content=example.prompt)]
        messages += [
            _ask_critique(person, example.response, example.critique_request),
            Message(role="assistant", content=example.critique),
            _ask_revision(example.revision_request),
            Message(role="assistant", content=example.revision),
        ]
    return messages


def critique_prompt(
    messages: Sequence[Message], response: str, *, request: str, num_few_shot: int
) -> list[Message]:
    """Conversation that asks the critique model for a critique of `response`.

    Args:
        messages: The original conversation; earlier critiques are never part of it.
        response: The response as it stands now.
        request: The drawn principle's critique form.
        num_few_shot: Worked examples in front.
    """
    return [
        *_shots(revision_examples(num_few_shot)),
        _ask_critique(messages, response, request),
    ]


def revision_prompt(asked: Sequence[Message], *, critique: str, request: str) -> list[Message]:
    """The critique's conversation continued with the critique and the request for a revision."""
    return [*asked, Message(role="assistant", content=critique), _ask_revision(request)]


def direct_revision_prompt(
    messages: Sequence[Message], response: str, *, request: str, num_few_shot: int
) -> list[Message]:
    """The revision's conversation without its critiques: the control (paper, fig. 7).

    The worked examples are the same, their critique requests and critiques left out as well.
    """
    shown: list[Message] = []
    for example in revision_examples(num_few_shot):
        person = [Message(role="user", content=example.prompt)]
        shown += [
            _ask_direct(person, example.response, example.revision_request),
            Message(role="assistant", content=example.revision),
        ]
    return [*shown, _ask_direct(messages, response, request)]


def revision_wording() -> Sequence[object]:
    """All wording that asks for a critique and a revision, for a stage's digest."""
    person = [Message(role="user", content="1"), Message(role="assistant", content="2"),
              Message(role="user", content="3")]  # fmt: skip
    asked = critique_prompt(person, "4", request="5", num_few_shot=len(CRITIQUE_EXAMPLES))
    prompt = revision_prompt(asked, critique="6", request="7")
    return REVIEWER_SYSTEM, *(message.content for message in prompt)


def direct_revision_wording() -> Sequence[object]:
    """All wording that asks for a revision without a critique, for a stage's digest."""
    asked = [Message(role="user", content="1")]
    num = len(CRITIQUE_EXAMPLES)
    prompt = direct_revision_prompt(asked, "2", request="3", num_few_shot=num)
    return REVIEWER_SYSTEM, *(message.content for message in prompt)


CRITERION = "The assistant's next response will be judged by this question:"


def criterion_message(system: str | None, *, question: str) -> Message:
    """System turn of a conversation whose responses are scored under a principle.

    Args:
        system: The model's own system turn, which stays in front.
        question: The principle's comparison form; quoted, so it cannot pass for anything else.
    """
    before = "" if system is None else f"{system}\n\n"
    return Message(role="system", content=f"{before}{CRITERION}\n{quoted(question)}")


def criterion_wording() -> Sequence[object]:
    """All wording that tells a preference model of a principle, for a stage's digest."""
    return (criterion_message("1", question="2").content,)


def comparison_wording() -> Sequence[object]:
    """All wording that asks for a comparison, for a stage's digest."""
    options = (Option(letter="B", response="1"), Option(letter="C", response="2"))
    asked = comparison_question([Message(role="user", content="3")], options, question="4")
    return JUDGE_SYSTEM, asked.content, comparison_answer("B").content, LETTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One response in a comparison, behind its letter."""

    letter: str
    response: str


def comparison_question(
    messages: Sequence[Message], options: tuple[Option, Option], *, question: str
) -> Message:
    """The two-option question about one conversation (paper, app. C.2)."""
    shown = "\n".join(f"Response ({o.letter}):\n{quoted(o.response)}" for o in options)
    letters = " or ".join(f"({o.letter})" for o in options)
    content = (
        f"Conversation:\n{transcript(messages)}\n\n{shown}\n\n{question} Answer with {letters}."
    )
    return Message(role="user", content=content)


ANSWER_OPENING = "The answer is ("
"""Begins the judge's turn; the next token is a letter."""


def comparison_answer(letter: str) -> Message:
    """A solved comparison's answer, for few-shot examples."""
    return Message(role="assistant", content=f"{ANSWER_OPENING}{letter}).")
