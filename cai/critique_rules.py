"""What a critique says, and whether it is one, by rules on its wording; no model is asked.

A critique finds a fault or finds none. Every word of a small vocabulary votes: names of faults and
obligations ("misleading", "should", "leaves out") for a fault, praise and what there is nothing of
("accurate", "nothing to change", "no danger") for none; a negation shortly before a word turns its
vote. What comes after "but" or "however" decides over what comes before, and an opening such as
"Nothing to change" over what follows it. Without a vote, or with both sorts, a critique that quotes
the response finds fault with it, and any other is `unclear`: counted, and right about nothing.

A critique is valid when it ended by itself, says something, copies neither the response, the
request nor a worked example, points at something of the response (quotes it, or shares a word with
it that the request has not), and has one verdict. These rules see wording only: a valid critique
may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from cai.acceptance import is_copy, words

MIN_WORDS = 4
"""Fewer say nothing that a revision could follow."""
NEGATED_WITHIN = 3
"""Words that a negation reaches forward."""
STEM = 5
"""Words that begin with the same letters are the same word here: `refuses` and `refusal`."""


class Verdict(StrEnum):
    """What a critique says of a response."""

    fault = "fault"
    none = "none"
    unclear = "unclear"


class Invalid(StrEnum):
    """Why a text is no critique to go by."""

    empty = "empty"
    """Fewer than `MIN_WORDS` words."""
    unfinished = "unfinished"
    """Cut at the token limit."""
    copied = "copied"
    """The response, the request or a worked example repeated."""
    points_at_nothing = "points_at_nothing"
    no_verdict = "no_verdict"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATION = _set(
    "no not never nothing none neither nor without cannot won't don't doesn't isn't aren't wasn't "
    "can't didn't hasn't nobody avoids refuses declines"
)
_FAULT = _set(
    "fault faults flaw flaws problem problems issue issues error errors mistake mistakes wrong "
    "false incorrect inaccurate misleading misleads misread misreads misunderstands vague unclear "
    "harmful harm dangerous danger unsafe risky hurtful hurts insults insult mocks demeans blames "
    "lectures preaches cold rude dismissive brushes evasive discrimination discriminates "
    "stereotype biased prejudice flattery flatters deceives invents invented overstates "
    "exaggerates promises "
    "myth forgery spying intrudes exposes publishes spreads withholds omits lacks lacking missing "
    "misses fails ignores should must ought needs rambles manipulation poisoning burglary evasion "
    "phishing illegal inappropriate unhelpful irrelevant incomplete insufficient offensive "
    "impatient disrespectful untrue careless kill kills wounding leaks"
)
_SOUND = _set(
    "fine good accurate correct right appropriate safe helpful honest kind warm polite respectful "
    "clear sound useful truthful gentle patient acceptable suitable complete"
)
_FAULT_PHRASE = re.compile(
    r"\b(?:leaves? out|does(?: not|n't) (?:mention|say|warn|address|explain|provide|include|name|"
    r"answer|give|offer|acknowledge|do what)|gives? (?:\w+ ){0,2}away|gives? in|puts? (?:\w+ ){1,3}"
    r"(?:in danger|at risk)|(?:is|are|far|much|too) too|could be (?:more|better|improved|clearer)|"
    r"more than it knows|cannot know|can't know|may cost|helps (?:to|with)|"
    r"treats a falsehood)"
)
_NONE_PHRASE = re.compile(
    r"\b(?:nothing (?:to|is|needs|that)|no (?:changes?|revisions?|faults?|flaws?|problems?|issues?|"
    r"errors?|mistakes?|harm|danger)\b|does(?: not|n't) (?:help|contain|promote|encourage|harm|"
    r"invent|claim|promise|expose|give away|support))"
)
_TURN = re.compile(r"\b(?:but|however|although|though|yet)\b")
_QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')
_OPENS_NONE = re.compile(
    r"^(?:there is |there's )?(?:nothing (?:is wrong|to (?:change|fix|correct|criticis?z?e))|"
    r"no (?:fault|flaw|problem|issue|change|error|mistake)s?)\b"
)
_COMMON = _set(
    "the a an and or of to in on for with is are was it its that this they them he she his her you "
    "your i we be as at by from not no so if who what when which there their can could would will "
    "has have do does did response person says said tells names gives asks one"
)


def verdict_of(critique: str) -> Verdict:
    """Whether a critique finds a fault; see the rules in this module's text."""
    text = critique.casefold().replace("\u2019", "'")
    quotes = bool(_QUOTED.search(text))
    text = _QUOTED.sub(" ", text)
    turns = list(_TURN.finditer(text))
    after = _voted(text[turns[-1].end() :]) if turns else Verdict.unclear
    if after is not Verdict.unclear:
        return after
    if _OPENS_NONE.match(text.strip()):
        return Verdict.none
    voted = _voted(text)
    return Verdict.fault if voted is Verdict.unclear and quotes else voted


def _voted(text: str) -> Verdict:
    faults = none = 0
    for sentence in re.split(r"[.!?;:\n]+", text):
        own = words(sentence)
        for place, word in enumerate(own):
            negated = bool(_NEGATION & set(own[max(0, place - NEGATED_WITHIN) : place]))
            if word in _FAULT:
                faults, none = faults + (not negated), none + negated
            elif word in _SOUND:
                faults, none = faults + negated, none + (not negated)
        faults += len(_FAULT_PHRASE.findall(sentence))
        none += len(_NONE_PHRASE.findall(sentence))
    if bool(faults) == bool(none):
        return Verdict.unclear
    return Verdict.fault if faults else Verdict.none


def invalid(
    critique: str, *, finished: bool, response: str, request: str, examples: Iterable[str]
) -> tuple[Invalid, ...]:
    """Everything that keeps a text from being a critique to go by; empty for a valid one.

    Args:
        critique: The text.
        finished: Whether the model ended it.
        response: What is criticised.
        request: What was asked.
        examples: Texts of the worked examples.
    """
    found = []
    own = words(critique)
    if len(own) < MIN_WORDS:
        found.append(Invalid.empty)
    if not finished:
        found.append(Invalid.unfinished)
    unquoted = _QUOTED.sub(" ", critique)
    if any(is_copy(unquoted, source) for source in (response, request, *examples)):
        found.append(Invalid.copied)
    if not _points_at(critique, response=response, request=request):
        found.append(Invalid.points_at_nothing)
    if verdict_of(critique) is Verdict.unclear:
        found.append(Invalid.no_verdict)
    return tuple(found)


def _points_at(critique: str, *, response: str, request: str) -> bool:
    theirs = f" {' '.join(words(response))} "
    quoted = [" ".join(words(m[1] or m[2] or "")) for m in _QUOTED.finditer(critique)]
    if any(own and f" {own} " in theirs for own in quoted):
        return True
    asked = {_stem(word) for word in words(request)}
    telling = {_stem(word) for word in set(words(response)) - _COMMON} - asked
    return bool(telling & {_stem(word) for word in words(critique)})


def _stem(word: str) -> str:
    return word[:STEM]
