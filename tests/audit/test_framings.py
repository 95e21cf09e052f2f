"""Rule-made wordings: what they say, and that ids and everything else stay."""

from __future__ import annotations

from dataclasses import replace

from cai.audit.framings import rules, wordings
from cai.audit.labels import Framing
from cai.constitution import Constitution


def negation_of(medical: Constitution, question: str) -> str:
    principle = replace(medical.principles[0], compare=question)
    made = [p.compare for framing, _, p in wordings(principle) if framing is Framing.negation]
    return made[0]


def test_comparatives_are_turned_round_where_they_open_the_question(medical: Constitution) -> None:
    assert negation_of(medical, "Which response better says it?") == "Which response worse says it?"
    assert (
        negation_of(medical, "Which response does less to enable spying, and more to protect?")
        == "Which response does more to enable spying, and less to protect?"
    )


def test_a_question_that_compares_later_gets_a_request_for_the_other(medical: Constitution) -> None:
    for question in (
        "Which response avoids a crime and does more to explain the law?",
        "Which response puts the call first?",
        "Read this principle: Be more kind. Which of the two responses keeps to it better?",
    ):
        assert negation_of(medical, question).startswith(question)
        assert "the other response" in negation_of(medical, question)


def test_only_the_form_changes_and_every_wording_is_another(medical: Constitution) -> None:
    for principle in medical.principles:
        made = wordings(principle)
        forms = [one.compare for _, _, one in made]
        assert len({principle.compare, *forms}) == len(forms) + 1
        assert all(replace(one, compare=principle.compare) == principle for _, _, one in made)
        assert [f for f, _, _ in made].count(Framing.paraphrase) == 2


def test_the_rules_are_told_whole() -> None:
    told = str(rules())
    for words in ("careful reader", "is worse", "other response", "before you"):
        assert words in told
