from __future__ import annotations

from collections.abc import Sequence

import pytest

from cai.choices import LabelMode, RevisionsUsed
from cai.compliance.classes import ComplianceTag
from cai.compliance.classify import classify
from cai.compliance.declared import DeclaredCompliance
from cai.compliance.mixture import (
    LabelsMoved,
    MixtureStory,
    labels_moved,
    mixture_findings,
    mixture_lines,
    mixture_metrics,
    mixture_story,
    mixture_table,
)
from cai.compliance.shift import ComplianceReward
from cai.feedback.random import Random
from cai.feedback_config import RandomConfig
from cai.stages import training
from cai.statistics import Estimate
from cai.types import (
    Evaluated,
    PromptKind,
    Response,
    RevisionChain,
    RevisionOutcome,
    RevisionStep,
    Sample,
)
from tests.compliance.pairs import ALTERNATIVE, ANSWER, REFUSAL, REQUEST, comparison, prompt
from tests.feedback.cases import BASE

DECLARED = DeclaredCompliance(
    values={
        PromptKind.red_team: {ComplianceTag.refusal: 0.5, ComplianceTag.compliance: -1.0},
    }
)


def mean(values: Sequence[float]) -> Estimate:
    value = sum(values) / len(values)
    return Estimate(value=value, low=value, high=value, num=len(values))


def sample(text: str, *, finished: bool = True) -> Sample:
    return Sample(text=text, num_tokens=1, logprob=-1.0, finished=finished, seed=0)


def chain(draft: str, *steps: tuple[str, RevisionOutcome]) -> RevisionChain:
    return RevisionChain(
        prompt=prompt(),
        draft=sample(draft),
        steps=tuple(
            RevisionStep(
                step=number,
                principle_id="one",
                critique=sample("c"),
                revision=sample(text),
                outcome=outcome,
                response=text,
            )
            for number, (text, outcome) in enumerate(steps, start=1)
        ),
    )


def evaluated(policy: str, text: str, kind: PromptKind) -> Evaluated:
    response = Response(prompt=prompt(kind), policy=policy, index=0, sample=sample(text))
    return Evaluated(response=response, score=None, compliance=classify(REQUEST, text))


def test_every_source_and_kind_has_its_row() -> None:
    story = mixture_story(
        [chain(ANSWER, (REFUSAL, RevisionOutcome.revised)), chain(ANSWER)],
        [comparison(REFUSAL, ANSWER, 0.8), comparison(REFUSAL, ALTERNATIVE, 0.5)],
        [
            evaluated("base", ANSWER, PromptKind.red_team),
            evaluated("base", ANSWER, PromptKind.benign),
            evaluated("dpo", REFUSAL, PromptKind.red_team),
        ],
        declared=DECLARED,
        moved=None,
        mean=mean,
    )
    assert story is not None
    found = {(row.source, str(row.kind)): row for row in story.rows}
    assert list(found) == [
        ("drafts", "red_team"),
        ("revision_1", "red_team"),
        ("preferred", "red_team"),
        ("rejected", "red_team"),
        ("base", "red_team"),
        ("base", "benign"),
        ("dpo", "red_team"),
    ]
    assert found["drafts", "red_team"].rates.main["compliance"] == 2
    assert found["revision_1", "red_team"].rates.num == 1  # the other chain has no such step
    assert found["preferred", "red_team"].rates.main["refusal"] == 1  # a tie prefers neither
    metrics = {
        name: value.value if isinstance(value, Estimate) else value
        for name, value in mixture_metrics(story)
    }
    assert metrics["compliance/drafts/red_team/compliance"] == 1.0
    assert metrics["compliance/drafts/red_team/value"] == -1.0
    assert metrics["compliance/dpo/red_team/value"] == 0.5
    assert len(mixture_table(story)) == 7


def test_labels_for_the_refusing_side_without_and_with_values() -> None:
    reward = ComplianceReward(declared=DECLARED, coef=1.0)
    method = Random(RandomConfig(method="random", **BASE))
    pairs = [
        comparison(REFUSAL, ANSWER, 0.4),  # shift 1.5: turned
        comparison(ANSWER, REFUSAL, 0.4),
        comparison(ANSWER, ALTERNATIVE, 0.9),  # shift -1: stays
        comparison(REFUSAL, ALTERNATIVE, 0.9),  # both refuse: moved, and counted nowhere else
    ]
    moved = labels_moved(
        [reward.shift(pair) for pair in pairs],
        [reward.relabelled(pair, method) for pair in pairs],
        [comparison(REFUSAL, ANSWER, 0.4), comparison(ANSWER, REFUSAL, 0.9)],
        reward=reward,
        soft=True,
    )
    assert (moved.num, moved.num_moved, moved.num_turned) == (4, 4, 1)
    assert moved.refusing_before is not None
    assert moved.refusing is not None
    assert (moved.refusing_before.value, moved.refusing_before.num) == (pytest.approx(1 / 3), 3)
    assert moved.refusing.value == pytest.approx(2 / 3)
    assert moved.accuracy is not None
    assert moved.accuracy.value == 1.0  # the first is turned to the better side


class Base:
    """What `revision_examples` asks of a model: characters as tokens."""

    encoder: Base

    def __init__(self) -> None:
        self.encoder = self

    def prompt_ids(self, messages: object) -> list[int]:
        return [1]

    def response_ids(self, text: str) -> list[int]:
        return [*map(ord, text), 0]

    def text_ids(self, text: str) -> list[int]:
        return [*map(ord, text)]


@pytest.mark.parametrize(
    ("texts", "learned"),
    [
        ([ANSWER, REFUSAL, ALTERNATIVE], REFUSAL),
        ([REFUSAL, ANSWER], REFUSAL),  # the draft, as it was
        ([REFUSAL, REFUSAL + " Sorry."], REFUSAL + " Sorry."),  # of several the last
        ([ANSWER, "", ANSWER + " Done."], ANSWER + " Done."),
        (["", ANSWER], ANSWER),  # an empty draft is nothing to learn
        ([""], None),
    ],
)
def test_the_text_that_the_constitution_values_most_is_learned(
    texts: list[str], learned: str | None
) -> None:
    steps = [
        (text, RevisionOutcome.revised if text else RevisionOutcome.malformed) for text in texts[1:]
    ]
    examples = training.revision_examples(
        Base(),
        [chain(texts[0], *steps)],
        used=RevisionsUsed.best_compliance,
        declared=DECLARED,
    )
    told = ["".join(map(chr, one.response_ids[:-1])) for one in examples]
    assert told == ([learned] if learned else [])


def test_a_draft_that_was_cut_is_not_taught_to_end() -> None:
    one = RevisionChain(prompt=prompt(), draft=sample(REFUSAL, finished=False), steps=())
    (example,) = training.revision_examples(
        Base(), [one], used=RevisionsUsed.best_compliance, declared=DECLARED
    )
    assert "".join(map(chr, example.response_ids)) == REFUSAL


def test_hard_labels_have_no_accuracy_with_values() -> None:
    reward = ComplianceReward(declared=DECLARED, coef=1.0)
    pairs = [comparison(REFUSAL, ANSWER, 0.4)]
    shifts = [reward.shift(pair) for pair in pairs]
    hard = Random(RandomConfig(method="random", **BASE | {"label": LabelMode.hard}))
    after = [reward.relabelled(pair, hard) for pair in pairs]
    assert labels_moved(shifts, after, pairs, reward=reward, soft=False).accuracy is None


@pytest.mark.parametrize(
    ("num_moved", "num_turned", "told"),
    [(0, 0, "moved none of 40 labels"), (9, 10, ""), (30, 11, "turned 11 of 40 labels")],
)
def test_values_that_did_nothing_or_too_much_are_a_finding(
    num_moved: int, num_turned: int, told: str
) -> None:
    moved = LabelsMoved(
        num=40,
        num_moved=num_moved,
        num_turned=num_turned,
        refusing_before=None,
        refusing=None,
        accuracy=None,
    )
    found = list(mixture_findings(MixtureStory(rows=(), moved=moved)))
    assert [told in text for text in found] == ([True] if told else [])
    assert not list(mixture_findings(None))
    assert not list(mixture_lines(MixtureStory(rows=(), moved=None)))
