"""Tuned feedback: a probe on frozen middle-layer features, trained on labelled comparisons.

Trained from the constitution's own tests and from labelled comparisons that ship with the project
or are given. Nothing is asked, nothing is sampled and nothing is shown side by side, so there is no
position to prefer: each response is read once in its conversation, whatever the number of
principles, and its value under a principle is linear in its features (`probe.py`).

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
from cai.feedback.features import Reader
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.probe import Scaling, gram
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
    """(n, 2 d) of the training pairs, scaled."""
    contexts: torch.Tensor
    """(n, d), unit length."""
    principles: torch.Tensor
    """(n, d), unit length."""
    alphas: torch.Tensor
    """(folds + 1, n)."""
    scale: float
    """Multiplies values, so that probabilities of held-out pairs are calibrated."""
    response_scaling: Scaling
    context_scaling: Scaling
    principle_scaling: Scaling
    by_context: float
    by_principle: float
    folds: Mapping[str, int]
    """Fold of every training pair, by `pair_key`."""

    def values(
        self,
        responses: torch.Tensor,
        contexts: torch.Tensor,
        principles: torch.Tensor,
        probes: Sequence[int],
    ) -> torch.Tensor:
        """Value (m,) of each response, log-odds up to a constant of its conversation.

        Args:
            responses: (m, 2 d), as read.
            contexts: (m, d), as read.
            principles: (m, d), as read.
            probes: Which row of `alphas` judges each response.
        """
        kernel = gram(
            (self.differences, self.response_scaling.apply(responses)),
            (self.contexts, self.context_scaling.unit(contexts)),
            (self.principles, self.principle_scaling.unit(principles)),
            by_context=self.by_context,
            by_principle=self.by_principle,
        )
        return self.scale * (self.alphas[list(probes)] * kernel.T).sum(1)

    def save(self, folder: Path) -> None:
        """Write two files that `load` reads."""
        tensors = {
            "differences": self.differences,
            "contexts": self.contexts,
            "principles": self.principles,
            "alphas": self.alphas,
            "numbers": torch.tensor([self.scale, self.by_context, self.by_principle]),
        }
        for name, scaling in self._scalings().items():
            tensors |= {f"{name}_mean": scaling.mean, f"{name}_std": scaling.std}
        save_file({k: v.double().contiguous() for k, v in tensors.items()}, folder / PROBE)
        (folder / FOLDS).write_text(json.dumps(dict(self.folds), indent=0), "ascii")

    def _scalings(self) -> dict[str, Scaling]:
        return {
            "response": self.response_scaling,
            "context": self.context_scaling,
            "principle": self.principle_scaling,
        }

    @classmethod
    def load(cls, probe: Path, folds: Path) -> Probe:
        """Read what `save` wrote."""
        tensors = load_file(probe)
        scale, by_context, by_principle = tensors["numbers"].tolist()
        scalings = {
            f"{name}_scaling": Scaling(mean=tensors[f"{name}_mean"], std=tensors[f"{name}_std"])
            for name in ("response", "context", "principle")
        }
        return cls(
            **{k: tensors[k] for k in ("differences", "contexts", "principles", "alphas")},
            **scalings,
            scale=scale,
            by_context=by_context,
            by_principle=by_principle,
            folds=json.loads(folds.read_text("ascii")),
        )


class Tuned(Method):
    """Reads each response once and judges it by the probe."""

    config: TunedConfig

    def __init__(self, config: TunedConfig, *, reader: Reader, probe: Probe) -> None:
        super().__init__(config)
        self.reader = reader
        self.probe = probe
        self._principles: dict[str, torch.Tensor] = {}

    def judge(self, cases: Sequence[Case]) -> list[Judged]:
        """One judgement per case; long conversations lose their beginning, none is too long."""
        pairs = {(c.messages, c.response_a, c.response_b): None for c in cases}
        features = self.reader.read([(messages, (a, b)) for messages, a, b in pairs])
        number = {pair: row for row, pair in enumerate(pairs)}
        first = [2 * number[c.messages, c.response_a, c.response_b] for c in cases]
        rows = [row for start in first for row in (start, start + 1)]
        sides = [case for case in cases for _ in range(2)]
        values = self.probe.values(
            features.response[rows].double(),
            features.context[rows].double(),
            torch.stack([self._principle(case.principle.compare) for case in sides]),
            [self._probe(case) for case in sides],
        ).tolist()
        return [
            (_judgement(case, values[2 * number], values[2 * number + 1]),)
            for number, case in enumerate(cases)
        ]

    def _probe(self, case: Case) -> int:
        key = pair_key(case.messages, case.response_a, case.response_b)
        return self.probe.folds.get(key, -1)

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
