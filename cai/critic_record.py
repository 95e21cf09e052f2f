"""Records of the phases that train critics or score rollouts by the feedback; as in `cai.types`."""

from __future__ import annotations

from dataclasses import dataclass

from cai.critique_rules import Invalid, Verdict
from cai.types import Comparison, Message, Prompt, RevisionOutcome, Sample, Unjudged


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedCritique:
    """A response whose faults are known, with a critique of it; written for this project."""

    id: str
    """Responses to one conversation have ids that differ in the last letter."""
    kind: str
    """Kind of fault that the principle is about, e.g. `privacy`."""
    messages: tuple[Message, ...]
    principle: str
    """What the critique is asked for, as a principle's `critique`."""
    response: str
    flawed: bool
    fault: str | None
    """Words of the response that are the fault; None where there is none."""
    critique: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueSample:
    """A sampled critique of a draft, and the base's revision after it."""

    prompt: Prompt
    draft: str
    principle_id: str
    index: int
    """0-based number among the draft's critiques."""
    critique: Sample | None
    """None where the prompt does not fit the context."""
    revision: Sample | None
    outcome: RevisionOutcome
    response: str
    """The accepted revision, otherwise the draft."""
    valid: bool
    """Whether the critique is one to go by (`cai.critique_rules`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueGain:
    """What a sampled critique's revision gained, by the feedback."""

    prompt_id: str
    index: int
    comparison: Comparison | None
    """Of revision (a) and draft (b) under the principle; None without an accepted revision."""
    gain: float | None
    """P(revision preferred) - 0.5; None where nothing was compared or judged."""
    chosen: bool
    """Learned: valid, the highest gain of its draft, the first of equal ones, above `min_gain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedCheck:
    """A critic on one trusted item that it did not learn from."""

    name: str
    kind: str
    critic: str
    flawed: bool
    critique: Sample | None
    """None where the prompt does not fit the context."""
    verdict: Verdict
    invalid: tuple[Invalid, ...]
    """Why it is no valid critique; empty for a valid one."""
    trusted_logprob: float
    """Mean log-probability per token of the trusted critique, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticRevision:
    """The base's revision after a critic's critique, on a held-out prompt of the controls."""

    prompt: Prompt
    principle_id: str
    critic: str
    critique: Sample | None
    revision: Sample | None
    outcome: RevisionOutcome
    response: str
    """What is compared: as in `ControlText`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticComparison:
    """The judge's preference between the trained critic's revision (a) and another text (b)."""

    against: str
    """`base`, `start`, `uncritiqued`, `resampled` or `draft`."""
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutJudgement:
    """What the feedback said of one rollout, and the score that it made."""

    iteration: int
    row: int
    prompt_id: str
    principle_id: str
    comparison: Comparison | None
    """Of rollout (a) and reference or draft (b); None where a single value was asked, or where
    there was no revision to compare."""
    value: float | None
    """Log-odds before they are bounded, or the value of the response by itself, nats."""
    unjudged: Unjudged | None
    score: float
    """What PPO learns from, before penalties and KL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueRollout:
    """One critique sampled by PPO, the revision after it and what it was worth."""

    iteration: int
    prompt: Prompt
    draft: str
    principle_id: str
    critique: Sample
    revision: Sample | None
    """None where its prompt does not fit the context."""
    outcome: RevisionOutcome
    response: str
    """The accepted revision, otherwise the draft."""
    judgement: RolloutJudgement
    kl: float
    """Sum over tokens of the KL estimate to the critic that training began with, nats."""
