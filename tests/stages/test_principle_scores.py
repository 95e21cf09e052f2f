"""Which pairs of policies are judged, under what, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from cai.attribution import after_preferred
from cai.choices import PrincipleSampling
from cai.constitution import Constitution
from cai.feedback.base import Feedback
from cai.feedback.features import Asked
from cai.feedback.tuned import Tuned
from cai.stages.principle_scores import compare_policies, steps
from cai.types import Message, Prompt, PromptKind, Response, Sample, Split, Unjudged
from tests.feedback.test_probe import config
from tests.feedback.test_tuned import LengthReader, probe


def response(policy: str, number: int, text: str, kind: PromptKind = PromptKind.red_team):
    prompt = Prompt(
        id=f"p{number}",
        kind=kind,
        category="c",
        source="s",
        split=Split.evaluation,
        messages=(Message(role="user", content=f"PROMPT {number}"),),
    )
    sample = Sample(text=text, num_tokens=1, logprob=-1.0, finished=True, seed=0)
    return Response(prompt=prompt, policy=policy, index=0, sample=sample)


def responses(**texts: Sequence[str]) -> dict[str, list[Response]]:
    return {
        policy: [
            *(response(policy, number, text) for number, text in enumerate(own)),
            response(policy, 9, "other", PromptKind.benign),
        ]
        for policy, own in texts.items()
    }


def test_a_policy_meets_the_one_before_it_on_red_team_prompts() -> None:
    base, tuned = responses(base=["a", "b", "c"], sl_cai=["d", "e", "f"]).values()
    asked = steps(base, tuned, num=2)
    assert [
        (s.before.policy, s.after.policy, s.before.sample.text + s.after.sample.text)
        for s in asked
    ] == [
        ("base", "sl_cai", "ad"),
        ("base", "sl_cai", "be"),
    ]  # fmt: skip
    assert all(step.before.prompt == step.after.prompt for step in asked)


class Counting(LengthReader):
    """Keeps what it was asked to read."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def read(self, asked: Sequence[Asked]) -> torch.Tensor:
        self.calls.append([one.response for one in asked])
        return super().read(asked)


@pytest.fixture
def judged(medical: Constitution):
    reader = Counting()
    feedback = Feedback(
        method=Tuned(config(), reader=reader, probe=probe({})),
        constitution=medical,
        sampling=PrincipleSampling.weighted,
        seed=0,
    )
    asked = steps(*responses(base=["abc", "same", ""], dpo=["a", "same", "b"]).values(), num=9)
    return compare_policies(feedback, asked, medical.principles), reader


def test_the_later_policy_is_a_and_every_principle_has_its_label(judged, medical) -> None:
    (first, same, empty), _ = judged
    ids = [principle.id for principle in medical.principles]
    assert first.comparison.principle_ids == tuple(ids)
    assert [label.principle_id for label in first.comparison.labels] == ids
    # As `test_tuned.test_a_value_by_hand`, the other way round: the shorter response came later.
    assert after_preferred(first, ids) == pytest.approx([1 - 0.731059] * len(ids), abs=1e-5)
    assert (first.before, first.after) == ("base", "dpo")
    assert same.comparison.unjudged is Unjudged.identical
    assert after_preferred(same, ids) == [0.5] * len(ids)
    assert empty.comparison.unjudged is Unjudged.empty
    assert after_preferred(empty, ids) is None


def test_all_principles_of_a_pair_are_one_reading(judged, medical) -> None:
    _, reader = judged
    assert len(medical.principles) > 1
    assert reader.calls == [["a", "abc"] * len(medical.principles)]
