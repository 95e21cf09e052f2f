"""Revising until every applicable principle holds: what is checked, what is revised, what broke.

*Applicable.* A principle's scope restricts it where one of its tags names a kind of harm that
prompts bring (by the words of `cai.audit.harms`, as the audit's coverage has it) or a domain of
prompts (`medical`); it then applies to prompts of those kinds (their `category`) and domains (their
`source`), and to no other. A principle without such a tag, or with the tag `general`, applies to
all. A prompt that no principle applies to is checked under all of them. A prompt's `kind` restricts
nothing: `helpfulness` is a tag of principles about how to answer, and drafts are of one kind.

*Rounds.* Before each round the response is checked under all of these; the round revises under the
failing principle with the lowest P(holds), ties by id. A check is a function of conversation,
response and principle and is made once for each text: a response that did not change is not checked
again, so no verdict can change without it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from cai.audit.harms import HARMS
from cai.audit.language import stem
from cai.audit.scope import words_of
from cai.choices import PrincipleSampling
from cai.constitution import Constitution, Principle, drawn
from cai.data_formats import builtin_names
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.single import Single
from cai.feedback.verdicts import Verdicts
from cai.revision_records import ChainEnd, PrincipleVerdict
from cai.revisions_config import RevisionsConfig
from cai.seeds import derive_seed, python_rng
from cai.types import Prompt, Unjudged

GENERAL = "general"
"""The tag of a principle that says of itself that it is for every prompt."""
_DOMAIN = "domain_"


@functools.cache
def _domains() -> frozenset[str]:
    """The domains that have prompts of their own."""
    names = builtin_names()
    return frozenset(n.removeprefix(_DOMAIN) for n in names if n.startswith(_DOMAIN))


def restricted_to(principle: Principle, categories: frozenset[str]) -> frozenset[str]:
    """Kinds of harm and domains that a principle's tags name; empty: it is for all prompts.

    Args:
        principle: Its scope is read.
        categories: Kinds of harm that are looked for.
    """
    if GENERAL in principle.scope:
        return frozenset()
    stems = " . ".join(
        " ".join(stem(part) for part in tag.split("_") if part) for tag in principle.scope
    )
    text = f" {stems} "
    named = {
        category
        for category in categories
        if category in principle.scope or any(f" {word} " in text for word in words_of(category))
    }
    return frozenset(named | (_domains() & set(principle.scope)))


def applicable(principles: Sequence[Principle], prompt: Prompt) -> tuple[Principle, ...]:
    """The principles that are for a prompt, by the rule in this module's text."""
    categories = frozenset({*HARMS, prompt.category})
    matters = {prompt.category, prompt.source.removeprefix(_DOMAIN)}
    found = []
    for principle in principles:
        only = restricted_to(principle, categories)
        if not only or only & matters:
            found.append(principle)
    return tuple(found or principles)


def failing(verdicts: Sequence[PrincipleVerdict], threshold: float) -> list[PrincipleVerdict]:
    """Those below the threshold, the lowest first, ties by id; unjudged ones are not among them."""
    found = [(v.prob, v.principle_id, v) for v in verdicts if v.prob is not None]
    return [v for prob, _, v in sorted(found, key=lambda row: row[:2]) if prob < threshold]


@dataclass(slots=True, kw_only=True)
class Checker:
    """Checks responses under every principle that applies to their prompt."""

    verdicts: Verdicts
    constitution: Constitution
    sampling: PrincipleSampling
    config: RevisionsConfig
    seed: int
    _known: dict[tuple[str, str, str], float | Unjudged] = field(default_factory=dict)
    """By prompt, response and principle, of the shard."""

    def principles(self, prompt: Prompt) -> tuple[Principle, ...]:
        """What a prompt's responses are checked under, in every round alike."""
        found = applicable(self.constitution.principles, prompt)
        if self.config.principles_checked is None:
            return found
        rng = python_rng(self.seed, "checked", prompt.id)
        weighted = self.sampling is PrincipleSampling.weighted
        return drawn(found, rng, num=self.config.principles_checked, weighted=weighted)

    def check(self, responses: Sequence[tuple[Prompt, str]]) -> list[tuple[PrincipleVerdict, ...]]:
        """The verdicts on each response; whatever is new is asked in one batch."""
        rows = [(prompt, response, self.principles(prompt)) for prompt, response in responses]
        new: dict[tuple[str, str, str], Single] = {}
        for prompt, response, principles in rows:
            for principle in principles:
                key = (prompt.id, response, principle.id)
                if not shown(response):
                    self._known[key] = Unjudged.empty
                elif key not in self._known:
                    new[key] = self._single(prompt, response, principle)
        if new:
            found = self.verdicts.probs(list(new.values()))
            self._known |= dict(zip(new, found, strict=True))
        return [
            tuple(_verdict(p.id, self._known[prompt.id, response, p.id]) for p in principles)
            for prompt, response, principles in rows
        ]

    def forget(self) -> None:
        """Drop what was checked: a shard is computed alike wherever a run went on."""
        self._known.clear()

    def _single(self, prompt: Prompt, response: str, principle: Principle) -> Single:
        return Single(
            messages=shown_turns(prompt.messages),
            response=shown(response),
            principle=principle,
            seed=derive_seed(self.seed, "holds", prompt.id, principle.id),
        )


def _verdict(principle_id: str, found: float | Unjudged) -> PrincipleVerdict:
    failed = isinstance(found, Unjudged)
    return PrincipleVerdict(
        principle_id=principle_id,
        prob=None if failed else found,
        unjudged=found if failed else None,
    )


def end_of(verdicts: Sequence[PrincipleVerdict], threshold: float) -> ChainEnd | None:
    """Why a chain ends at a check; None while a principle fails."""
    if failing(verdicts, threshold):
        return None
    judged = all(verdict.unjudged is None for verdict in verdicts)
    return ChainEnd.satisfied if judged else ChainEnd.unjudged
