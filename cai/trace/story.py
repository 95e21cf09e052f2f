"""What a trace tells: one held-out prompt, and what of the training was nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

from cai.types import Comparison, Prompt, RevisionChain, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedAnswer:
    """One policy's response to the prompt."""

    policy: str
    text: str
    score: float | None
    """Preference-model score; None without a preference model."""
    refusal: bool
    asked: bool
    """The response that was asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLabel:
    """The feedback on two policies' responses to the prompt, under one principle."""

    before: str
    after: str
    principle_id: str
    prob_after: float
    """P(after preferred); 0.5 for one and the same text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedComparison:
    """A comparison of two SL-CAI samples for a near prompt."""

    comparison: Comparison
    learned: bool
    """False for one that is held out or has no label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A training prompt that is near, and everything that the training did with it."""

    prompt: Prompt
    similarity: float
    """Cosine of the centred embeddings, in [-1, 1]."""
    lexical: float
    """Cosine of the TF-IDF vectors of words, in [0, 1]."""
    comparisons: tuple[TracedComparison, ...]
    chain: RevisionChain | None
    """None for a prompt that is not critiqued."""
    rollouts: tuple[Rollout, ...]
    """The last ones."""
    num_rollouts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPrinciple:
    """What a principle did near the prompt, beside what it did in the whole run."""

    id: str
    principle: str
    """Its sentence."""
    near_share: float | None
    """Of the training signal of the near comparisons; None where they have none."""
    run_share: float | None
    """Of that of all comparisons."""
    num_comparisons: int
    """Near ones that were learned from."""
    num_revisions: int
    """Near ones that were used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStory:
    """The whole trace."""

    run: str
    """Folder of the traced run, as it was named."""
    example: str
    """As it was asked for."""
    link: str
    """Relative address of the run's report, at this sample if it is there."""
    in_report: bool
    """Whether the report shows this sample."""
    prompt: Prompt
    answers: tuple[TracedAnswer, ...]
    """The least trained policy first."""
    labels: tuple[PolicyLabel, ...]
    """Empty where the run has none for the prompt."""
    neighbours: tuple[Neighbour, ...]
    """The nearest first."""
    principles: tuple[NearPrinciple, ...]
    """Those that did anything near, the largest share first."""
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What to type to find out whether a principle was the cause."""

    title: str
    text: str
    """Commands and file contents, line by line."""


NEARNESS = (
    "Nearness is not causation: these are the training examples most like the prompt, not the ones "
    "that made the response. Every example moved the weights that wrote it."
)
"""Said wherever a trace is shown."""
