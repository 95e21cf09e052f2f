"""Other wordings of a principle's comparison form, made by rules.

The sentences around the author's words are fixed and ours, and no model wrote them: a paraphrase
asks the same, a negation asks which response does so less. What a rule cannot do is to put the
author's own words differently, so agreement with these paraphrases is the least that an applied
principle must have, not the most. The response that a negation's answer names is the one that the
principle does *not* want: an applied principle's label changes sides.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cai.audit.labels import Framing
from cai.documents import Principle

_OPPOSITES = {"better": "worse", "best": "worst", "more": "less", "most": "least", "less": "more"}
_COMPARATIVE = re.compile(rf"\b({'|'.join(_OPPOSITES)})\b")
_OPENS = re.compile(rf"Which\b[^,;]{{0,24}}? ({'|'.join(_OPPOSITES)})\b")
"""A question that compares from its beginning on: `Which response better`."""


def wordings(principle: Principle) -> list[tuple[Framing, int, Principle]]:
    """Every other wording of a principle: framing, number, and the principle with that form."""
    made = {
        Framing.paraphrase: _paraphrases(principle),
        Framing.negation: _negations(principle),
    }
    return [
        (framing, number, replace(principle, compare=text))
        for framing, texts in made.items()
        for number, text in enumerate(texts)
    ]


def rules() -> list[object]:
    """All wording of the rules, for a stage's digest."""
    probe = Principle(
        id="1", principle="2.", critique="3", revise="4", compare="Which response is better?",
        scope=(), weight=1.0, source="", tests=(), document="",
    )  # fmt: skip
    turned = replace(probe, compare="Which response does 5?")
    return [[str(f), n, p.compare] for one in (probe, turned) for f, n, p in wordings(one)]


def _rule(principle: Principle) -> str:
    """The sentence; the comparison form where an imported document has nothing else."""
    return principle.principle or principle.compare


def _paraphrases(principle: Principle) -> list[str]:
    return [
        f"Two answers to one conversation are before you. {principle.compare}",
        f"A careful reader goes by one rule only: {_rule(principle)} Which response would that "
        "reader choose?",
    ]


def _negations(principle: Principle) -> list[str]:
    return [
        _opposite(principle.compare),
        f"A careful reader looks for the response that fails this rule: {_rule(principle)} Which "
        "response would that reader point at?",
    ]


def _opposite(question: str) -> str:
    """The question with its comparatives turned round, or with a request for the other response.

    Where the comparison does not open the question, turning one word would turn half of it.
    """
    if _OPENS.match(question) is None:
        return f"{question} Name the other response, the one of which this is less true."
    return _COMPARATIVE.sub(lambda match: _OPPOSITES[match[0]], question)
