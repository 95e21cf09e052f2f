"""What a run has to tell: filled from artifacts, shown by `report.html` and in the terminal.

Every part may be missing (None or empty): a phase without a preference model leaves that part out,
and so does the page. Texts are literal and untrusted; whoever shows them makes them inert, and
`visible` makes them legible: control, bidirectional and escape characters are written out, since
a reader must see what is there, and a terminal must not obey it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cai.acceptance import CommonTail
from cai.attribution import AttributionStory
from cai.audit.story import AuditStory
from cai.capability import CapabilityRow
from cai.choices import Combine, Condition
from cai.collapse import CollapseRow
from cai.compare.story import CompareStory
from cai.compliance.contrasts import OverRefusal
from cai.compliance.mixture import MixtureStory
from cai.compliance.rates import ComplianceRates
from cai.compliance.story import ResponsesStory
from cai.critic_story import CriticStory, RewardStory
from cai.critique_story import CritiqueStory
from cai.elo.story import EloStory
from cai.feedback.attacks import AttackResult
from cai.feedback.gate import GateResult
from cai.feedback.measures import Measures
from cai.goodhart import GoodhartStory
from cai.matrix.story import MatrixStory
from cai.people_story import EdgeStory, PeopleStory
from cai.preference_measures import PreferenceMeasures
from cai.revision_votes_story import VotesStory
from cai.satisfaction_story import SatisfactionStory
from cai.statistics import Estimate
from cai.trace.story import TraceStory
from cai.types import Prompt, RevisionChain

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_LABELS = {
    "sl_cai": "SL-CAI",
    "rl_cai": "RL-CAI",
    "rlaif": "RLAIF",
    "rlhf": "RLHF",
    "dpo": "DPO",
    "critique_model": "Critic",
    "critique_rl": "Direct RLAIF",
    "evaluate": "Evaluation",
    "audit": "Audit",
    "trace": "Trace",
    "compare": "Comparison",
    "matrix": "Steering matrix",
    "hybrid": "Hybrid",
    "sft": "SFT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What was run."""

    phase: str
    constitution: str
    models: dict[str, str]
    """Role to model, e.g. {"policy": "smollm2_135m", "feedback model": "smollm2_135m"}."""
    seed: int
    command: str
    started: str
    """ISO time."""
    seconds: float
    peak_memory_bytes: int | None
    hardware: str
    versions: dict[str, str]
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleStory:
    """A principle and what it did; None where the run has no such measurement."""

    id: str
    principle: str
    critique: str
    revise: str
    compare: str
    scope: tuple[str, ...]
    weight: float
    source: str
    num_critiques: int | None = None
    """Times drawn for a critique-revision step."""
    num_comparisons: int | None = None
    """Times drawn for a comparison."""
    revision_rate: Estimate | None = None
    """Share of its steps that changed the response."""
    decisiveness: Estimate | None = None
    """Mean |2p - 1| of its soft labels: 0 says nothing, 1 is certain."""
    flip_rate: Estimate | None = None
    """Share of its comparisons where the two presentation orders disagree."""
    test_accuracy: Estimate | None = None
    """The feedback on the labelled pairs that were judged under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstitutionStory:
    """The document."""

    name: str
    version: str
    description: str
    principles: tuple[PrincipleStory, ...]
    digest: str = ""
    """sha256 of what it says."""
    left_out: tuple[str, ...] = ()
    """Principles of the document that this run does without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionsStory:
    """Drafts, critiques, revisions."""

    outcomes: tuple[dict[str, int], ...]
    """Counts by `RevisionOutcome`, one entry per step."""
    mean_words: tuple[float, ...] = ()
    """Of the drafts, then of the responses after each step."""
    tail: CommonTail | None = None
    """The ending that the accepted revisions of most prompts share."""
    chains: tuple[RevisionChain, ...] = ()
    """Examples."""
    satisfaction: SatisfactionStory | None = None
    """None where every chain has the same number of steps."""
    votes: VotesStory | None = None
    """None with one critique model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(x, y); a y that is not finite is left out of the drawing and counted in the caption."""
    intervals: tuple[tuple[float, float], ...] = ()
    """Low and high end for every y, or none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One chart of lines."""

    title: str
    x_label: str
    y_label: str
    """With the unit, e.g. `nats per token`."""
    series: tuple[Series, ...]
    note: str = ""
    """How to read it."""
    marks: tuple[tuple[float, str], ...] = ()
    """x and what is there."""
    whole_steps: bool = True
    """Whether x counts something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SLPolicyStory:
    """SL-CAI fine-tune."""

    num_revisions: int
    """Training examples that are revisions."""
    num_helpfulness: int
    num_dropped: int
    """Examples longer than `max_length`."""
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackStory:
    """How good the feedback is on labelled pairs, and what its labels look like."""

    method: str
    """E.g. `multiple_choice`."""
    source: str
    """The labelled pairs, e.g. `the constitution's own tests`, or a file's name."""
    note: str
    """What they are and what they are judged under."""
    measured: Measures
    """On the labelled pairs."""
    gates: tuple[GateResult, ...] = ()
    """Those that are not off."""
    comparisons: ComparisonsStory | None = None
    """None where nothing is trained on its labels."""
    attacks: AttackResult | None = None
    """None unless attacks on the judge were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonsStory:
    """The labels that the preference model or the policy learns from."""

    num: int
    """Pairs put to the feedback, those without a label included."""
    unjudged: dict[str, int]
    """Pairs without a label, by reason."""
    flip_rate: Estimate | None = None
    """Share of them whose label changes its side with the order of presentation."""
    label_probabilities: tuple[float, ...] = ()
    """P(a preferred) of every label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceModelStory:
    """Preference model."""

    labels: str = "AI"
    """Whose labels it is measured against on held-out pairs: `AI` or `human`."""
    num_ai: int
    """Training pairs by AI feedback."""
    num_human: int
    num_members: int
    combine: Combine
    """What made one score of the members'."""
    condition: Condition
    curves: tuple[Curve, ...]
    measured: PreferenceMeasures


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOStory:
    """Direct preference optimization."""

    num_ai: int
    """Training pairs by AI feedback."""
    num_human: int
    settings: dict[str, str]
    """What shaped it, e.g. {"beta": "0.1"}."""
    curves: tuple[Curve, ...]
    measured: PreferenceMeasures
    """Implicit rewards on held-out pairs, as a preference model's scores are measured."""
    margin: Estimate | None = None
    """Mean implicit reward of their preferred side minus that of the other."""
    preferred_reward: Estimate | None = None
    """Mean implicit reward of their preferred side; below 0 it became less likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOStory:
    """Reinforcement learning."""

    reference: str = "SL-CAI"
    """The policy that it starts from and is held to, for people."""
    num_rounds: int
    num_rollouts: int
    """Over all rounds."""
    settings: dict[str, str]
    """What shaped it, e.g. {"kl_coef": "0.05"}."""
    curves: tuple[Curve, ...]
    explained_variance: float | None = None
    """Of the returns by the value function, mean over the later half of the rounds; None: no round
    was learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A policy's response in an example."""

    policy: str
    text: str
    score: float | None = None
    refusal: bool | None = None
    """Whether nothing of what was asked is given."""
    compliance: str = ""
    """Its main class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One held-out prompt, answered by every policy."""

    prompt: Prompt
    answers: tuple[Answer, ...]
    """Base first, most trained last."""


class SampleSource(StrEnum):
    """Where in the training a sample is from."""

    revision = "revision"
    comparison = "comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One prompt of the training, and responses that something was learned from."""

    source: SampleSource
    prompt: Prompt
    answers: tuple[Answer, ...]
    """The draft and the revisions that were used, or both responses of a comparison."""
    principle_ids: tuple[str, ...]
    critiques: tuple[str, ...]
    """Of the revisions that were used."""
    told: str
    """What became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One policy on one kind of prompt."""

    policy: str
    kind: str
    refusal_rate: Estimate | None
    mean_words: Estimate | None
    mean_score: Estimate | None
    """Preference-model score."""
    distinct_2: float | None
    """Different 2-grams over all 2-grams of the responses."""
    distinct_4: float | None
    common_phrase: str
    """The 5-gram that the responses to most prompts share; empty when there is none."""
    common_phrase_prompts: int
    compliance: ComplianceRates | None = None
    """The mixture of refusing, answering in part and complying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Difference between two policies on the same prompts."""

    metric: str
    kind: str
    before: str
    after: str
    estimate: Estimate
    """After minus before, paired by prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationStory:
    """Held-out prompts."""

    rows: tuple[EvaluationRow, ...]
    changes: tuple[Change, ...] = ()
    collapse: tuple[CollapseRow, ...] = ()
    """Every policy on all prompts, the least trained first."""
    capability: tuple[CapabilityRow, ...] = ()
    """Every policy, the least trained first."""
    likelihood_tests: dict[str, Estimate] | None = None
    """Per policy: principle tests whose better response it finds likelier per token."""
    over_refusal: tuple[OverRefusal, ...] = ()
    """Each policy on contrast pairs."""
    note: str = ""
    """What was not measured, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStory:
    """One stage of the run."""

    name: str
    full_name: str
    """With the policies that it is of, where several stages have the same name."""
    status: str
    """`computed`, `continued`, `reused`."""
    seconds: float
    num_records: int | None
    digest: str
    """Short form."""
    inputs: tuple[str, ...] = ()
    """Short digests of what it was computed from."""
    version: int | None = None
    """Of the code that computes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStory:
    """A whole run."""

    headline: Headline
    warnings: tuple[str, ...] = ()
    """Beyond what `cai.findings` derives."""
    can_show: tuple[str, ...] = ()
    """What a run of this size and model can tell."""
    cannot_show: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    """Known limits of the method and measures."""
    constitution: ConstitutionStory | None = None
    audit: AuditStory | None = None
    people: PeopleStory | None = None
    edge: EdgeStory | None = None
    revisions: RevisionsStory | None = None
    critique: CritiqueStory | None = None
    sl_policy: SLPolicyStory | None = None
    feedback: FeedbackStory | None = None
    preference_model: PreferenceModelStory | None = None
    dpo: DPOStory | None = None
    critic: CriticStory | None = None
    critic_curves: tuple[Curve, ...] = ()
    reward: RewardStory | None = None
    ppo: PPOStory | None = None
    goodhart: GoodhartStory | None = None
    attribution: AttributionStory | None = None
    trace: TraceStory | None = None
    responses: ResponsesStory | None = None
    mixture: MixtureStory | None = None
    matrix: MatrixStory | None = None
    comparison: CompareStory | None = None
    examples: tuple[Example, ...] = ()
    training: tuple[TrainingSample, ...] = ()
    num_left_out: int = 0
    """Examples and training samples that are only in the store."""
    evaluation: EvaluationStory | None = None
    elo: EloStory | None = None
    stages: tuple[StageStory, ...] = ()
    config_text: str = ""
    """The resolved config as YAML."""


def visible(text: str) -> str:
    r"""Text with every control, bidirectional, zero-width and escape character written out.

    New lines and tabs stay, `\r\n` becomes a new line. Joiners (U+200C, U+200D) stay: scripts and
    emoji need them.
    """
    return _INVISIBLE.sub(lambda m: f"\u27e8U+{ord(m[0]):04X}\u27e9", text.replace("\r\n", "\n"))


def sample_anchor(prompt: Prompt) -> str:
    """Where a report shows a held-out prompt; the same for the same prompt in every report."""
    name = f"{prompt.kind}:{prompt.id}".encode("utf-8", "surrogatepass")
    return f"sample-{hashlib.sha256(name).hexdigest()[:12]}"


def label(name: str) -> str:
    """A policy's, phase's or kind's name for people: SL-CAI for `sl_cai`."""
    return _LABELS.get(name, name.replace("_", " "))


def curve(
    rows: Sequence[Mapping[str, float]],
    keys: Mapping[str, str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    note: str = "",
) -> Curve | None:
    """Chart of stored training metrics; None when no row has any of the keys.

    Args:
        rows: As in an artifact's `curve.json`: `step` and metrics.
        keys: Metric to series name.
        title: What is plotted.
        x_label: What a step is.
        y_label: With the unit.
        note: How to read it.
    """
    series = [
        Series(name=name, points=tuple((row["step"], row[key]) for row in rows if key in row))
        for key, name in keys.items()
    ]
    drawn = tuple(item for item in series if item.points)
    if not drawn:
        return None
    return Curve(title=title, x_label=x_label, y_label=y_label, series=drawn, note=note)


def number(value: float) -> str:
    """Three figures, thousands separated; text for what is not finite."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.2e}"
    digits = 2 if value == 0 else max(0, min(6, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """E.g. `4 min 12 s`, `1 h 3 min`, `0.8 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
