"""Tuned feedback: a probe on frozen middle-layer features, trained on labelled comparisons.

Trained from the constitution's own tests and from labelled comparisons that ship with the project
or are given. Nothing is sampled and nothing is shown side by side, so there is no position to
prefer: a principle's question is put behind each response, and the response's value under the
principle is linear in what the model's middle layers make of the question there (`features.py`,
`probe.py`). However many the principles, a conversation and its responses are read together.

One response by itself has a value up to a constant of its conversation and question, since the
probe has seen differences alone. Held against the mean of a few plain responses to the same
conversation (`PLAIN_RESPONSES`) the constant is gone, and what is left can be calibrated
(`verdicts.py`).

What the probe was trained on it must not be measured on. Every training pair belongs to a fold, and
a pair that is met again (the constitution's tests are, in the feedback check) is judged by the
probe that did not see its fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cai.artifacts import digest_of
from cai.feedback.base import Case, Judged, Method, two_way
from cai.feedback.features import Asked, Reader
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.probe import Kernel
from cai.feedback.single import Single
from cai.feedback.wording import PLAIN_RESPONSES
from cai.feedback_config import TunedConfig
from cai.types import Judgement, Message

PROBE = "probe.safetensors"
FOLDS = "folds.json"


def pair_key(messages: Sequence[Message], response_a: str, response_b: str) -> str:
    """What makes two pairs the same: conversation and responses as shown, in either order."""
    turns = [[turn.role, turn.content.strip()] for turn in shown_turns(messages)]
    return digest_of([turns, sorted((shown(response_a), shown(response_b)))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Trained probes: one without each fold, and last the one trained on everything."""

    differences: torch.Tensor
    """(n, D) of the training pairs, better minus worse, as read."""
    principles: torch.Tensor
    """(n, d), as read."""
    alphas: torch.Tensor
    """(folds + 1, n)."""
    scale: float
    """Multiplies values, so that probabilities of held-out pairs are calibrated."""
    by_principle: float
    folds: Mapping[str, int]
    """Fold of every training pair, by `pair_key`."""

    def values(
        self, features: torch.Tensor, principles: torch.Tensor, probes: Sequence[int]
    ) -> torch.Tensor:
        """Value (m,) of each response, log-odds up to a constant of its pair.

        Args:
            features: (m, D), as read.
            principles: (m, d), as read.
            probes: Which row of `alphas` judges each response.
        """
        kernel = Kernel.of(self.differences, self.principles, by_principle=self.by_principle)
        return self.scale * (self.alphas[list(probes)] * kernel(features, principles)).sum(1)

    def save(self, folder: Path) -> None:
        """Write two files that `load` reads; what was read is kept in half precision."""
        tensors = {
            "differences": self.differences.half(),
            "principles": self.principles.half(),
            "alphas": self.alphas,
            "numbers": torch.tensor([self.scale, self.by_principle], dtype=torch.float64),
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / PROBE)
        (folder / FOLDS).write_text(json.dumps(dict(self.folds), indent=0), "ascii")

    @classmethod
    def load(cls, probe: Path, folds: Path) -> Probe:
        """Read what `save` wrote."""
        tensors = load_file(probe)
        scale, by_principle = tensors["numbers"].tolist()
        return cls(
            differences=tensors["differences"].double(),
            principles=tensors["principles"].double(),
            alphas=tensors["alphas"],
            scale=scale,
            by_principle=by_principle,
            folds=json.loads(folds.read_text("ascii")),
        )


class Tuned(Method):
    """Reads the questions behind the responses and judges by the probe."""

    config: TunedConfig

    def __init__(self, config: TunedConfig, *, reader: Reader, probe: Probe) -> None:
        super().__init__(config)
        self.reader = reader
        self.probe = probe
        self._principles: dict[str, torch.Tensor] = {}
        self._plain: dict[tuple[tuple[Message, ...], str, int], float] = {}

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement per case; long conversations lose their beginning, none is too long."""
        sides = [
            (case, response) for case in cases for response in (case.response_a, case.response_b)
        ]
        features = self.reader.read(
            [
                Asked(messages=case.messages, response=text, question=case.principle.compare)
                for case, text in sides
            ]
        )
        values = self.probe.values(
            features.double(),
            torch.stack([self._principle(case.principle.compare) for case, _ in sides]),
            [self._probe(case) for case, _ in sides],
        ).tolist()
        return [
            (_judgement(case, values[2 * number], values[2 * number + 1]),)
            for number, case in enumerate(cases)
        ]

    def values(self, singles: Sequence[Single], *, probes: Sequence[int]) -> list[float]:
        """Value of each response less the mean value of plain ones to the same conversation.

        All questions about one conversation are read together; those about the plain responses are
        read once.

        Args:
            singles: The responses.
            probes: Which of the trained probes judges each; -1 is the one that has seen all pairs.
        """
        asked = list(zip(singles, probes, strict=True))
        new = {
            (one.messages, one.principle.compare, probe): one
            for one, probe in asked
            if (one.messages, one.principle.compare, probe) not in self._plain
        }
        rows = [(one, one.response, probe) for one, probe in asked] + [
            (one, text, probe) for (_, _, probe), one in new.items() for text in PLAIN_RESPONSES
        ]
        features = self.reader.read(
            [
                Asked(messages=one.messages, response=text, question=one.principle.compare)
                for one, text, _ in rows
            ]
        )
        values = self.probe.values(
            features.double(),
            torch.stack([self._principle(one.principle.compare) for one, _, _ in rows]),
            [probe for _, _, probe in rows],
        ).tolist()
        plain = iter(values[len(asked) :])
        for key in new:
            self._plain[key] = sum(next(plain) for _ in PLAIN_RESPONSES) / len(PLAIN_RESPONSES)
        return [
            value - self._plain[one.messages, one.principle.compare, probe]
            for (one, probe), value in zip(asked, values[: len(asked)], strict=True)
        ]

    def fold(self, messages: Sequence[Message], response: str, other: str) -> int:
        """The probe that has not seen a pair: for a new one, that trained on everything."""
        return self.probe.folds.get(pair_key(messages, response, other), -1)

    def _probe(self, case: Case) -> int:
        return self.fold(case.messages, case.response_a, case.response_b)

    def _principle(self, question: str) -> torch.Tensor:
        if question not in self._principles:
            self._principles[question] = self.reader.read_text(question).double()
        return self._principles[question]


def _judgement(case: Case, value_a: float, value_b: float) -> Judgement:
    return Judgement(
        principle_id=case.principle.id,
        member=None,
        first=None,
        letter_a=None,
        letter_b=None,
        value_a=value_a,
        value_b=value_b,
        prob_a=two_way(value_a, value_b),
        text=None,
    )
