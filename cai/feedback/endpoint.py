"""The two-option question to any OpenAI-compatible server's chat interface.

Presentation is that of `multiple_choice`: random letters tied to the positions, both orders, solved
tests as few-shot examples. A chat interface cannot open the answer for the model, so the model is
told to write the letter only, and the letter is looked for in what it writes:

* With log-probabilities, at the first position whose token is an option letter (white space,
  brackets and marks around it do not count: " K", "(K", "K)"). The probabilities of all spellings
  of a letter among the up to 20 tokens listed there are added up. A letter that is not among them
  gets the smallest listed log-probability, an upper bound of its own, so its probability in the
  label is overstated rather than zero.
* Without log-probabilities, from the text: one option letter that stands by itself is a verdict of
  probability 1; none, or both, is no verdict.

A server renders its own chat template, and many let its control tokens through in a text, so what
looks like one is broken up with a space (`disarmed`); a server's own list is not known here.

A server that refuses the request for log-probabilities, or that wants OpenAI's newer name for the
length limit, is asked again without or with it, and from then on in that way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.choices import PrincipleSampling
from cai.constitution import Constitution
from cai.endpoint import Client, Refusal
from cai.errors import UserError
from cai.feedback.multiple_choice import Answer, Order, TwoOptions
from cai.feedback_config import EndpointConfig
from cai.prompts import JUDGE_SYSTEM
from cai.types import Message, Unjudged

LETTER_ONLY = "Reply with its letter in parentheses and with nothing else."
"""Follows `JUDGE_SYSTEM`; the question itself ends with the two letters."""
TOP = 20
"""Tokens listed at each position, OpenAI's maximum."""
NEVER = -1000.0
"""Stands for the log-probability of a letter that a text without probabilities did not choose."""
_CONTROL = re.compile(
    r"<[|\uff5c]|[|\uff5c]>|</?(?:s|pad|unk|bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
"""What chat templates use as control tokens, or where such a token begins and ends."""
_MARKS = " \t\r\n()[]{}*_`\"'.,:;<>|"
"""What may stand around a letter in its token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One token of an answer."""

    token: str
    top: Mapping[str, float]
    """Log-probability of each listed token, the written one always among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server answered."""

    text: str
    positions: tuple[Position, ...]
    """Empty when it sent no log-probabilities."""


def read_reply(body: Any) -> Reply:
    """A reply from a chat completion's JSON; text without content is an empty text."""
    choice = body["choices"][0]
    content = (choice.get("logprobs") or {}).get("content") or ()
    positions = tuple(
        Position(
            token=str(one["token"]),
            top={
                str(one["token"]): float(one["logprob"]),
                **{
                    str(listed["token"]): float(listed["logprob"])
                    for listed in one.get("top_logprobs") or ()
                },
            },
        )
        for one in content
    )
    return Reply(text=str(choice["message"].get("content") or ""), positions=positions)


def _bare(token: str) -> str:
    return token.strip(_MARKS)


def letter_values(positions: Sequence[Position], letters: Sequence[str]) -> list[float] | None:
    """Log-probability of each letter at the first position whose token is one of them.

    A token that a word goes on from ("B" of "Both") is none. None when there is no such position.
    """
    for place, position in enumerate(positions):
        following = positions[place + 1].token[:1] if place + 1 < len(positions) else ""
        if _bare(position.token) in letters and not (
            following.isalnum() and position.token[-1:].isalnum()
        ):
            return [_log_sum(position.top, letter) for letter in letters]
    return None


def _log_sum(top: Mapping[str, float], letter: str) -> float:
    """Log of the summed probability of a letter's spellings, or the smallest listed value."""
    own = [value for token, value in top.items() if _bare(token) == letter]
    if not own:
        return min(top.values())
    peak = max(own)
    return peak + math.log(sum(math.exp(value - peak) for value in own))


def named_letter(text: str, letters: Sequence[str]) -> str | None:
    """The one option letter that stands by itself in a text; None when there are none or two."""
    found = {letter for letter in letters if re.search(rf"(?<!\w){letter}(?!\w)", text)}
    return found.pop() if len(found) == 1 else None


class Endpoint(TwoOptions):
    """Asks a server, all presentations of a shard at once."""

    config: EndpointConfig

    def __init__(
        self,
        config: EndpointConfig,
        *,
        client: Client,
        constitution: Constitution,
        sampling: PrincipleSampling,
    ) -> None:
        super().__init__(config, constitution=constitution, sampling=sampling)
        self.client = client
        self._form: dict[str, Any] = {
            "temperature": 0,
            "max_tokens": config.max_new_tokens,
            "logprobs": True,
            "top_logprobs": TOP,
        }

    def solved(self, letter: str) -> Message:
        """A few-shot example's answer, in the form that is asked for."""
        return Message(role="assistant", content=f"({letter})")

    def answers(self, orders: Sequence[Order]) -> list[Answer | Unjudged]:
        """What the server says of each presentation."""
        replies = self._replies([_chat(order) for order in orders])
        return [_answer(order, reply) for order, reply in zip(orders, replies, strict=True)]

    def _replies(self, chats: Sequence[list[dict[str, str]]]) -> list[Reply | Refusal]:
        requests = [{"messages": chat, **self._form} for chat in chats]
        replies = self.client.ask("chat/completions", requests, parse=read_reply)
        refused = [one for one in replies if isinstance(one, Refusal) and not one.too_long]
        if not refused:
            return replies
        if not self._adapt(refused[0].said):
            raise UserError(
                f"feedback=endpoint: {self.client.server.url} refuses the question: "
                f"{refused[0].said}"
            )
        return self._replies(chats)

    def _adapt(self, said: str) -> bool:
        """Change the form of requests to what a refusal asks for; False when it asks for none."""
        if "max_completion_tokens" in said and "max_tokens" in self._form:
            self._form["max_completion_tokens"] = self._form.pop("max_tokens")
            return True
        if "logprob" in said and "logprobs" in self._form:
            del self._form["logprobs"], self._form["top_logprobs"]
            return True
        return False


def wording() -> tuple[str, ...]:
    """What this method says beyond `comparison_wording`, for a stage's digest."""
    return (LETTER_ONLY, "(B)")


def disarmed(text: str) -> str:
    """A text whose would-be control tokens are broken up: `<|im_end|>` becomes `< |im_end| >`."""
    return _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _chat(order: Order) -> list[dict[str, str]]:
    system = {"role": "system", "content": f"{JUDGE_SYSTEM} {LETTER_ONLY}"}
    return [system, *({"role": m.role, "content": disarmed(m.content)} for m in order.messages)]


def _answer(order: Order, reply: Reply | Refusal) -> Answer | Unjudged:
    if isinstance(reply, Refusal):
        return Unjudged.too_long
    letters = (order.letter_a, order.letter_b)
    if reply.positions:
        values = letter_values(reply.positions, letters)
    else:
        named = named_letter(reply.text, letters)
        values = [0.0 if letter == named else NEVER for letter in letters] if named else None
    if values is None:
        return Unjudged.no_verdict
    return Answer(value_a=values[0], value_b=values[1], text=reply.text)
