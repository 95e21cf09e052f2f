"""Labels of many principles at once: as one by one, read once, and from any run's pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cai.artifacts import MANIFEST
from cai.audit.labels import Framing
from cai.choices import PrincipleSampling
from cai.constitution import Constitution
from cai.errors import UserError
from cai.feedback.base import Feedback, Pair
from cai.feedback.features import Asked
from cai.feedback.tuned import Probe, Tuned
from cai.stages.audit import _labelled, _Sampled, pairs_of_run
from cai.stages.sampling import spread
from cai.types import Message, Prompt, PromptKind, Split, Unjudged
from tests.audit.measured_cases import prompt
from tests.feedback.test_probe import config

SIZE = 3


@dataclass
class CountingReader:
    """Features are made of the text's own characters; counts what it reads."""

    texts: list[str] = field(default_factory=list)

    def read(self, asked: Sequence[Asked]) -> torch.Tensor:
        self.texts += dict.fromkeys(one.response for one in asked)
        return torch.stack([vector(one.response + one.question, 2 * SIZE) for one in asked])

    def read_text(self, text: str) -> torch.Tensor:
        return vector(text, SIZE)


def vector(text: str, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, text)) + len(text))
    return torch.randn(size, generator=generator)


def tuned_feedback(medical: Constitution, reader: CountingReader) -> Feedback:
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    probe = Probe(
        differences=rows(5, 2 * SIZE),
        principles=rows(5, SIZE),
        alphas=rows(3, 5),
        scale=1.0,
        by_principle=1.0,
        folds={},
    )
    return Feedback(
        method=Tuned(config(), reader=reader, probe=probe),
        constitution=medical,
        sampling=PrincipleSampling.weighted,
        seed=0,
    )


def sampled() -> list[_Sampled]:
    texts = [("yes", "no, never"), ("a longer answer", "short"), ("same", "same")]
    return [
        _Sampled(name=f"p{k}-0", prompt=prompt(k), response_a=a, response_b=b)
        for k, (a, b) in enumerate(texts)
    ]


def test_all_principles_of_a_pair_are_labelled_from_one_reading(medical: Constitution) -> None:
    reader = CountingReader()
    feedback = tuned_feedback(medical, reader)
    asked = [(Framing.plain, 0, one) for one in medical.principles]
    labelled = _labelled(feedback, sampled(), asked)
    assert sorted(reader.texts) == sorted(["yes", "no, never", "a longer answer", "short"])
    different = set()
    for one, found in zip(sampled(), labelled, strict=True):
        assert [answer.principle_id for answer in found.answers] == [
            principle.id for principle in medical.principles
        ]
        for principle, answer in zip(medical.principles, found.answers, strict=True):
            pair = Pair(
                prompt=one.prompt,
                response_a=one.response_a,
                response_b=one.response_b,
                principles=(principle,),
            )
            (alone,) = feedback.compare([pair])
            assert answer.unjudged == alone.unjudged
            if alone.prob_a is None:
                assert answer.prob_a is None
            else:
                assert answer.prob_a == pytest.approx(alone.prob_a, abs=1e-6)
                different.add(round(alone.prob_a, 6))
    assert len(different) > len(medical.principles)
    assert {answer.unjudged for answer in labelled[2].answers} == {Unjudged.identical}


def test_kinds_of_prompts_take_turns() -> None:
    def one(kind: PromptKind, number: int) -> Prompt:
        return Prompt(
            id=f"{kind}{number}", kind=kind, category="c", source="s", split=Split.train,
            messages=(Message(role="user", content="x"),),
        )  # fmt: skip

    red, benign = PromptKind.red_team, PromptKind.benign
    prompts = [one(red, k) for k in range(3)] + [one(benign, 0)]
    assert [p.id for p in spread(prompts, 3)] == ["red_team0", "benign0", "red_team1"]
    assert len(spread(prompts, 9)) == 4
    assert spread([], 2) == []


def manifest(folder: Path, value: object) -> Path:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(value))
    return folder


def test_the_pairs_of_a_run_are_found_in_the_store_above_it(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "rlaif" / "medical" / "now"
    manifest(run, {"stages": [{"stage": "pairs", "digest": "d1"}]})
    stored = manifest(tmp_path / "outputs" / "store" / "pairs" / "d1", {})
    assert pairs_of_run(str(run)).folder == stored


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"stages": [{"stage": "drafts", "digest": "d"}]}, "this run has no pairs"),
        ({"stages": [{"stage": "pairs", "digest": "d"}]}, "no folder above it has store/pairs/d"),
        ({"digest": "d"}, "this run has no pairs"),
        ([], "this run has no pairs"),
    ],
)
def test_a_folder_without_pairs_is_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairs_of_run(str(manifest(tmp_path / "run", value)))
