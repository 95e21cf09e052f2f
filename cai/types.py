"""Records handed from stage to stage; each is one line of a JSONL artifact.

Every record is frozen, typed and self-describing: texts travel with the prompt id, the principle
id, the seed and the log-probabilities that made them, so that an auditor can follow a behaviour
back to a principle without re-running anything. Log-probabilities are in nats under the sampling
law itself (temperature included), summed over the response's tokens with the end-of-sequence
token when one was sampled.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from cai.compliance.classes import Compliance

T = TypeVar("T")


class PromptKind(StrEnum):
    """What a prompt is for; the evaluation reads each kind differently."""

    red_team = "red_team"
    """Asks for something a constitution should stop or change."""
    helpfulness = "helpfulness"
    """An ordinary request that deserves an answer."""
    benign = "benign"
    """Merely looks dangerous; refusing it is over-refusal."""


class Split(StrEnum):
    """Which side of the hash split a prompt is on."""

    train = "train"
    evaluation = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`user` or `assistant`; `system` in what a conditioned preference model reads."""
    content: str
    """Literal text; never formatted nor resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that waits for the assistant's next response."""

    id: str
    """Stable and unique in its source, e.g. `red_team-fraud-014`."""
    kind: PromptKind
    category: str
    """Kind of harm or kind of task, as the source names it."""
    source: str
    """Where it came from: a built-in set's name, a file, or a hub id."""
    split: Split
    messages: tuple[Message, ...]
    """Alternating roles; first and last are the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sampled text with all that is needed to sample it again."""

    text: str
    """Decoded without control tokens, stripped of surrounding white space."""
    num_tokens: int
    """Sampled tokens, the end-of-sequence token included."""
    logprob: float
    """Sum over those tokens, nats."""
    finished: bool
    """True when the model ended it; False when it was cut at `max_new_tokens`."""
    seed: int
    """The row's own random stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A policy's response to a prompt."""

    prompt: Prompt
    policy: str
    """Who answered: `base`, `sl_cai`, `rl_cai` or `dpo`."""
    index: int
    """0-based number among this policy's responses to this prompt."""
    sample: Sample


class RevisionOutcome(StrEnum):
    """What a revision step did, by the rules of `cai.acceptance`; counted and reported.

    Only an accepted revision becomes the response and an example of the fine-tune; after any other
    outcome the response before the step is kept, and the step teaches nothing.
    """

    revised = "revised"
    shortened = "shortened"
    """Cut at the token limit, then back to its last full sentence."""
    unchanged = "unchanged"
    """The response repeated: the critique found nothing, or the model did nothing."""
    copied = "copied"
    """The prompt, the critique, a request or a worked example repeated."""
    malformed = "malformed"
    """Our own markers, another turn, symbols only, or one sentence over and over."""
    truncated = "truncated"
    """Cut at the token limit, with too little left in whole sentences."""
    empty_revision = "empty_revision"
    """Nothing was written, or nothing but an announcement."""
    too_long = "too_long"
    """The prompt of this step did not fit the context."""
    outvoted = "outvoted"
    """Several critique models revised, and the vote went to the response before it."""

    @property
    def accepted(self) -> bool:
        """Whether the revision is used."""
        return self in (RevisionOutcome.revised, RevisionOutcome.shortened)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionStep:
    """One critique and the revision that followed it, under one drawn principle."""

    step: int
    """1-based."""
    principle_id: str
    critique: Sample | None
    """None when the step's outcome is `too_long`."""
    revision: Sample | None
    outcome: RevisionOutcome
    response: str
    """After this step: the cleaned, perhaps shortened revision, or the response before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionChain:
    """A draft and its critique-revision steps (Bai et al. 2022, sec. 3.1)."""

    prompt: Prompt
    draft: Sample
    steps: tuple[RevisionStep, ...]


class Unjudged(StrEnum):
    """Why a pair has no label: a counted outcome, never a tie or a zero."""

    identical = "identical"
    empty = "empty"
    too_long = "too_long"
    no_verdict = "no_verdict"
    """The answer names no option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One answer of a feedback method about one pair under one principle."""

    principle_id: str
    member: str | None
    """Which member of an ensemble; None without one."""
    first: str | None
    """`a` or `b`: which response was shown first; None where nothing is shown side by side."""
    letter_a: str | None
    """Option letter that stood for response a; None where there are no options."""
    letter_b: str | None
    value_a: float
    """What speaks for response a, in nats: its letter's log-probability, its log-odds or score."""
    value_b: float
    prob_a: float
    """P(a preferred)."""
    text: str | None
    """Reasoning or words of the answer, where there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleLabel:
    """A pair's label under one of its principles alone."""

    principle_id: str
    prob_a: float
    weight: float
    """In [0, 1], as a comparison's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One AI comparison of two responses under one or several drawn principles (sec. 4.1)."""

    prompt: Prompt
    response_a: str
    response_b: str
    principle_ids: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    """Per principle, member and presentation order; empty when `unjudged` says why."""
    labels: tuple[PrincipleLabel, ...]
    """One per principle; empty when `unjudged` says why."""
    prob_a: float | None
    """Label P(a preferred): judgements averaged, then hardened or clamped as configured."""
    weight: float
    """In [0, 1]; below 1 where the members of an ensemble disagree."""
    unjudged: Unjudged | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """What the preference model learns from: an AI comparison or a human one."""

    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    prob_a: float
    """P(a preferred), in [0, 1]."""
    weight: float
    source: str
    """`ai`, `human`, or `test` for a principle test."""
    principle_ids: tuple[str, ...]
    """Empty for human comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackCheck:
    """The feedback on one labelled pair: a principle's own test, or a row of a file."""

    name: str
    """`<principle>-<index>`, or the row's id in its file."""
    comparison: Comparison
    """Response a is the better one by the label."""


class AttackKind(StrEnum):
    """How a response works on its judge."""

    instruct_judge = "instruct_judge"
    """Asks, orders, bribes or threatens."""
    forged_verdict = "forged_verdict"
    forged_option = "forged_option"
    """Another option, another turn, another principle."""
    close_quotation = "close_quotation"
    control_tokens = "control_tokens"
    homoglyphs = "homoglyphs"
    zero_width = "zero_width"
    """Invisible characters: zero-width, bidirectional, tags, soft hyphens."""
    very_long = "very_long"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackCheck:
    """The feedback on one pair without and with an attack in the worse response, which is b."""

    name: str
    kind: AttackKind
    plain: Comparison
    attacked: Comparison


class ControlArm(StrEnum):
    """What is done with a draft on a held-out prompt, to see whether critiques do anything."""

    draft = "draft"
    """Nothing."""
    critiqued = "critiqued"
    """One critique-revision step under a drawn principle."""
    uncritiqued = "uncritiqued"
    """The same request for a revision, without a critique before it."""
    resampled = "resampled"
    """The same prompt sampled again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlText:
    """What one arm hands on."""

    arm: ControlArm
    sample: Sample | None
    """As sampled; None where the prompt did not fit the context."""
    outcome: RevisionOutcome | None
    """Of a revision; None for the draft and for what is sampled again."""
    response: str
    """What is compared: an accepted revision, otherwise the draft. Every arm's text that ran into
    the token limit is cut back to whole sentences where that is possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueControl:
    """One held-out prompt in every arm, under one drawn principle."""

    prompt: Prompt
    principle_id: str
    critique: Sample | None
    texts: tuple[ControlText, ...]
    """One per arm, in the order of `ControlArm`."""

    def text(self, arm: ControlArm) -> ControlText:
        """One arm's."""
        return next(text for text in self.texts if text.arm is arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlComparison:
    """The feedback's preference between the critiqued revision (a) and another arm (b)."""

    against: ControlArm
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyComparison:
    """The feedback's preference between two policies' responses, under every principle."""

    before: str
    """Policy whose response is b."""
    after: str
    """Policy whose response is a."""
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEmbedding:
    """Where a prompt lies for the frozen base."""

    prompt_id: str
    kind: PromptKind
    vector: str
    """(d,) float32 as base64, little-endian: mean direction of the middle layer's states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Features of a labelled pair, half precision as base64, little-endian."""

    name: str
    key: str
    """Identifies conversation and responses (`cai/feedback/tuned.py`)."""
    group: str
    """Pairs of one group are held out together."""
    turns: bool
    """As the pair's `Labelled.turns`."""
    difference: str
    """(D,), of the question behind the better response, minus that behind the worse one."""
    principle: str
    """(d,), of the question by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodTest:
    """How probable a policy finds the two responses of one principle test."""

    name: str
    """`<principle>-<index>`."""
    policy: str
    better: float
    """Mean log-probability per token of the better response, nats."""
    worse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePrediction:
    """A labelled pair under what did not learn from it: a preference model, or a policy by DPO."""

    name: str
    """Prompt of a held-out pair, or `<principle>-<index>` of a principle test."""
    principle_ids: tuple[str, ...]
    prob_a: float
    """The label; 1.0 for a principle test, whose better response is a."""
    scores_a: tuple[float, ...]
    """Calibrated, one for each member of the preference model; DPO: the implicit reward."""
    scores_b: tuple[float, ...]
    predicted: float
    """P(a preferred) by the preference model itself (`cai.scoring.PairScores`); DPO: the logistic
    of the difference of the implicit rewards."""
    a_is_longer: bool | None
    """By characters; None when equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation response with its measurements."""

    response: Response
    score: float | None
    """Preference-model score, centred on SL-CAI samples; None without a preference model, and for
    what does not fit its context."""
    compliance: Compliance
    """Whether it does what it was asked (`cai.compliance`)."""

    @property
    def refusal(self) -> bool:
        """Whether nothing of what was asked is given."""
        return self.compliance.refuses


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One response sampled by PPO, with what its update was computed from."""

    iteration: int
    prompt: Prompt
    sample: Sample
    score: float
    """Preference-model score, before penalties and KL."""
    kl: float
    """Sum over tokens of the KL estimate to the SL-CAI policy, nats."""


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [k for k in typing.get_args(kind) if k is not type(None)]
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, found {type(value).__name__}")
        inner = typing.get_args(kind)[0]
        return tuple(_convert(inner, v, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def from_json(kind: type[T], value: Any, where: str = "record") -> T:
    """Build a record from parsed JSON, checking every field's name and type.

    Raises:
        ValueError: naming the field's path when a field is missing, unknown or of a wrong type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    if missing := [name for name in hints if name not in value]:
        raise ValueError(f"{where}: missing field(s) {', '.join(missing)} of {kind.__name__}")
    if unknown := [name for name in value if name not in hints]:
        raise ValueError(f"{where}: unknown field(s) {', '.join(unknown)} for {kind.__name__}")
    return kind(**{n: _convert(hint, value[n], f"{where}.{n}") for n, hint in hints.items()})


def dump_line(record: Any) -> str:
    """One record as one line of ASCII JSON with a final newline.

    ASCII keeps U+2028 and the like from being taken for line ends.

    Raises:
        ValueError: when a number is NaN or infinite.
    """
    return json.dumps(dataclasses.asdict(record), ensure_ascii=True, allow_nan=False) + "\n"


def parse_lines(kind: type[T], text: str, where: str) -> Iterator[T]:
    """Records of a JSONL text; errors name `where` and the line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            yield from_json(kind, json.loads(line), f"{where}:{number}")
