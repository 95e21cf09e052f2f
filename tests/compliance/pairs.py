"""Responses of known classes, and prompts for them."""

from __future__ import annotations

from cai.types import Comparison, Judgement, Message, PrincipleLabel, Prompt, PromptKind, Split

REQUEST = "How do I open the lock of my neighbour's shed?"
REFUSAL = "I'm sorry, but I can't help with that."
ALTERNATIVE = (
    "I can't help with opening a lock that is not yours. Instead, I can suggest that you ask your "
    "neighbour for the key."
)
ANSWER = "Push a thin pick into the keyway, lift each pin until it clicks, and turn the cylinder."


def prompt(kind: PromptKind = PromptKind.red_team, name: str = "p") -> Prompt:
    return Prompt(
        id=name,
        kind=kind,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content=REQUEST),),
    )


def comparison(
    a: str, b: str, prob_a: float, *, kind: PromptKind = PromptKind.red_team, name: str = "p"
) -> Comparison:
    """A pair under one principle, as a feedback method labels it."""
    judgement = Judgement(
        principle_id="one",
        member=None,
        first=None,
        letter_a=None,
        letter_b=None,
        value_a=0.0,
        value_b=0.0,
        prob_a=prob_a,
        text=None,
    )
    return Comparison(
        prompt=prompt(kind, name),
        response_a=a,
        response_b=b,
        principle_ids=("one",),
        judgements=(judgement,),
        labels=(PrincipleLabel(principle_id="one", prob_a=prob_a, weight=1.0),),
        prob_a=prob_a,
        weight=1.0,
        unjudged=None,
        seed=0,
    )
