"""What a policy still can: easy questions, and how it finds helpful text that it has not seen.

Both sets are written for this project and are in no training prompt: 40 multiple-choice questions
of general knowledge and common sense with four options, and 24 short helpful answers. A question is
answered by the option whose tokens are likeliest on average as the policy's response, so length
does not decide and nothing has to be parsed; chance is 0.25. The frozen SmolLM2-135M-Instruct
answers 29 of 40 so. What alignment cost ("alignment tax", Askell et al. 2021, arXiv:2112.00861) is
the difference from the base, paired by question and by text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai import paths
from cai.collapse import perplexity
from cai.statistics import (
    Estimate,
    paired_bootstrap_difference,
    paired_proportion_difference,
    wilson_interval,
)

QUESTIONS = "capability_questions.jsonl"
TEXTS = "capability_texts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityItem:
    """A question with its options, or a prompt with one held-out response."""

    id: str
    prompt: str
    responses: tuple[str, ...]
    answer: int | None
    """Place of the right option; None for a held-out text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityScore:
    """How likely a policy finds an item's responses."""

    id: str
    mean_logprobs: tuple[float, ...]
    """Per token, nats."""
    answer: int | None

    @property
    def right(self) -> bool:
        """Whether the right option is the likeliest, and no other is as likely."""
        top = max(self.mean_logprobs)
        return self.mean_logprobs.count(top) == 1 and self.mean_logprobs.index(top) == self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityRow:
    """One policy, and what it lost or gained against the first one."""

    policy: str
    accuracy: Estimate | None
    """Questions answered right; chance is 0.25."""
    accuracy_change: Estimate | None
    """Paired by question; None for the first policy."""
    perplexity: Estimate | None
    """Per token of the held-out texts."""
    perplexity_factor: Estimate | None
    """Times the first policy's, paired by text; None for the first policy."""


def data_path(name: str) -> Path:
    """File of a shipped set."""
    return paths.PACKAGE / "datasets" / "labelled" / name


def capability_items(*, num_questions: int, num_texts: int) -> list[CapabilityItem]:
    """The first so many questions, then the first so many texts."""
    questions = [
        CapabilityItem(
            id=row["id"],
            prompt=row["question"],
            responses=tuple(row["options"]),
            answer=row["answer"],
        )
        for row in _rows(QUESTIONS)[:num_questions]
    ]
    texts = [
        CapabilityItem(
            id=row["id"], prompt=row["prompt"], responses=(row["response"],), answer=None
        )
        for row in _rows(TEXTS)[:num_texts]
    ]
    return [*questions, *texts]


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in data_path(name).read_text("utf-8").splitlines()]


def capability_rows(
    scores: Mapping[str, Sequence[CapabilityScore]], *, num_resamples: int, seed: int
) -> tuple[CapabilityRow, ...]:
    """Every policy, the first one being what the others are compared with."""
    if not scores:
        return ()
    first = next(iter(scores))
    before = _Split.of(scores[first])
    rows = []
    for policy, own in scores.items():
        after = _Split.of(own)
        changed = policy != first
        rows.append(
            CapabilityRow(
                policy=policy,
                accuracy=wilson_interval(sum(after.right), len(after.right)),
                accuracy_change=paired_proportion_difference(after.right, before.right)
                if changed
                else None,
                perplexity=perplexity(after.logprobs, num_resamples=num_resamples, seed=seed),
                perplexity_factor=_factor(after, before, num_resamples=num_resamples, seed=seed)
                if changed
                else None,
            )
        )
    return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    right: list[bool]
    logprobs: list[float]

    @classmethod
    def of(cls, scores: Sequence[CapabilityScore]) -> _Split:
        return cls(
            right=[score.right for score in scores if score.answer is not None],
            logprobs=[score.mean_logprobs[0] for score in scores if score.answer is None],
        )


def _factor(after: _Split, before: _Split, *, num_resamples: int, seed: int) -> Estimate | None:
    """Ratio of perplexities: e to the mean difference in nats per token."""
    found = paired_bootstrap_difference(
        before.logprobs, after.logprobs, num_resamples=num_resamples, seed=seed
    )
    if found is None:
        return None
    return Estimate(
        value=math.exp(found.value),
        low=math.exp(found.low),
        high=math.exp(found.high),
        num=found.num,
    )
