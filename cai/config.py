"""Types of every setting; every value is in `conf/`.

A field without a default is mandatory in YAML, so a default lives in exactly one place. Traps that
were measured with hydra-core 1.3.8 and omegaconf 2.3.1, and the rules that follow from them:

* `frozen=True` breaks composition (YAML cannot merge on top), so configs are not frozen.
* `slots=True` turns an appended unknown key into an error instead of dropping it silently.
* `Literal` is refused by OmegaConf: a `StrEnum` whose member names equal their values instead.
* `Path` fields print as Python objects in `--cfg job`: paths are `str` here.
* A role is never shared by interpolation (an override of one would change both): each role is a
  group of its own, e.g. `model@phase.feedback_model=...`.
* `dict[str, Base]` takes and keeps entries of subclasses (`feedback.members`), but only when the
  schema comes before them in a defaults list; a new entry needs `+group@section.name=option`.
* `- /group@field: null` after `_self_` makes a field that is null by default a group that can be
  chosen without `+` (`model@feedback.model=...`); before `_self_`, the file's null would win.

Only the standard library is imported here, and by what `cai.run` imports before a job starts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cai.audit_config import AuditConfig
from cai.choices import (
    DataFormat,
    EngineName,
    LoggerKind,
    Method,
    PrincipleSampling,
    Select,
    WandbMode,
)
from cai.evaluation_config import EvaluationConfig, SamplingConfig
from cai.feedback_config import FeedbackConfig
from cai.hardware_config import HardwareConfig
from cai.model_config import ModelConfig
from cai.ranges import check, fraction, not_negative, positive
from cai.revisions_config import RevisionsConfig, check_members, check_verdicts
from cai.training_config import DPOConfig, PPOConfig, PreferenceModelConfig, SLPolicyConfig


@dataclass(kw_only=True, slots=True)
class ConstitutionConfig:
    """Which document, and how its principles are drawn."""

    name: str
    document: str
    """File name in `constitutions/`, or a path to your own file."""
    domain: str | None
    """Built-in domain prompts that belong to it (`domain_<domain>.jsonl`), or null."""
    sampling: PrincipleSampling
    num_principles: int | None
    """So many of its principles are used, drawn by `subset_seed`; null: all of them."""
    subset_seed: int
    """Which principles a subset holds; with one seed, a larger subset holds every smaller one."""

    def __post_init__(self) -> None:
        if self.num_principles is not None:
            positive(self, "num_principles")
        not_negative(self, "subset_seed")


@dataclass(kw_only=True, slots=True)
class PromptSourceConfig:
    """One set of prompts."""

    path: str
    """A built-in name (`red_team`), a file, or a hub id."""
    format: DataFormat
    prompt_column: str
    """Text or list of messages; with `transcript`, the column of the transcript."""
    id_column: str | None
    """null numbers the rows."""
    category_column: str | None
    hub_split: str
    """Split of a hub dataset, e.g. `train`."""


@dataclass(kw_only=True, slots=True)
class ComparisonSourceConfig:
    """Human comparisons: rows with a chosen and a rejected response."""

    path: str | None
    """null: none are mixed in."""
    format: DataFormat
    prompt_column: str | None
    """null when chosen and rejected are whole transcripts or conversations."""
    chosen_column: str
    rejected_column: str
    hub_split: str
    max_rows: int
    """At most so many are used, the first by hash order."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where prompts come from and how they are split."""

    name: str
    red_team: PromptSourceConfig
    helpfulness: PromptSourceConfig
    benign: PromptSourceConfig
    domain_frac: float
    """Share of prompts taken from the constitution's own domain, when it has one."""
    evaluation_frac: float
    """Share of each set that the hash split keeps for evaluation."""
    human_comparisons: ComparisonSourceConfig

    def __post_init__(self) -> None:
        fraction(self, "domain_frac", "evaluation_frac")


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """The mirror of the run folder's metrics."""

    kind: LoggerKind
    project: str
    entity: str | None
    mode: WandbMode


@dataclass(kw_only=True, slots=True)
class PromptsConfig:
    """How many prompts of each kind the run draws, in hash order."""

    num_red_team: int
    num_helpfulness: int
    num_eval_red_team: int
    num_eval_helpfulness: int
    num_eval_benign: int

    def __post_init__(self) -> None:
        positive(self, "num_red_team", "num_eval_red_team")
        not_negative(self, "num_helpfulness", "num_eval_helpfulness", "num_eval_benign")


@dataclass(kw_only=True, slots=True)
class HelpfulnessConfig:
    """Samples that keep the fine-tune helpful (sec. 3.1: two per prompt)."""

    samples_per_prompt: int
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        positive(self, "samples_per_prompt")


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    """What every phase has."""

    name: str


@dataclass(kw_only=True, slots=True)
class SLCAIConfig(PhaseConfig):
    """Phase 1: drafts, critiques and revisions, fine-tune."""

    start: str | None
    """The policy that the phase begins with, instead of the base: the folder of an adapter as this
    project saves it, or of a finished run, which stands for its final policy. It drafts, and its
    own adapter goes on learning."""
    critique_models: dict[str, ModelConfig]
    """Who critiques and revises: `main`, and with `revisions.vote` others, whose revisions stand
    against each other: `+model@phase.critique_models.<name>=<option>`. The same model may be there
    again with another `system_prompt` than main's, which replaces the reviewer's system turn, or
    with another `start`. Controls of the critiques are made with `main`."""
    feedback_model: ModelConfig
    """Who compares; the paper takes the pretrained model."""
    prompts: PromptsConfig
    drafts: SamplingConfig
    revisions: RevisionsConfig
    helpfulness: HelpfulnessConfig
    sl_policy: SLPolicyConfig

    def __post_init__(self) -> None:
        check_members(self.critique_models, self.revisions)


@dataclass(kw_only=True, slots=True)
class PairsConfig:
    """Two SL-CAI samples per prompt (sec. 4.1)."""

    pairs_per_prompt: int
    """Pairs for each red-team training prompt; the paper takes 1."""
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        positive(self, "pairs_per_prompt")
        check(
            self.sampling.temperature > 0,
            "sampling.temperature must be above 0: two "
            "greedy samples are identical and cannot be compared",
        )


@dataclass(kw_only=True, slots=True)
class ComparisonsConfig:
    """AI comparisons under a drawn principle."""

    principles_per_pair: int
    """Different principles that each pair is judged under; labels are averaged. The paper: 1."""
    shard_size: int
    """Pairs per batch; also the unit of resuming."""
    compliance_coef: float
    """What the constitution's values of compliance add to a label's log-odds, nats per unit of
    value; 0: nothing. Without effect under a document that declares none."""

    def __post_init__(self) -> None:
        positive(self, "principles_per_pair", "shard_size")
        not_negative(self, "compliance_coef")


@dataclass(kw_only=True, slots=True)
class ComparedConfig(SLCAIConfig):
    """Phase 1 and AI comparisons of its samples, for whatever learns from them."""

    pairs: PairsConfig
    comparisons: ComparisonsConfig


@dataclass(kw_only=True, slots=True)
class DPOPhaseConfig(ComparedConfig):
    """Phase 1, comparisons, and the policy straight from them."""

    dpo: DPOConfig


@dataclass(kw_only=True, slots=True)
class RLAIFConfig(ComparedConfig):
    """Phase 1 and phase 2: comparisons, preference model, PPO."""

    preference_base: ModelConfig | None
    """What the preference model is trained on, read with its own tokenizer and chat template; null:
    the policy's base."""
    preference_model: PreferenceModelConfig
    gold: bool
    """Measure over-optimisation: the comparisons are split in half by prompt, PPO is trained
    against the preference model of one half, and its snapshots (`ppo.snapshot_every`) are scored by
    it and by a gold one of the other half. Costs half of the preference model's data."""
    ppo: PPOConfig

    def __post_init__(self) -> None:
        SLCAIConfig.__post_init__(self)
        check(
            self.gold or self.ppo.select is Select.final,
            f"ppo.select={self.ppo.select} needs a gold preference model, which sees where the "
            "peak is; type phase.gold=true (it takes half of the comparisons), or "
            "phase.ppo.select=final",
        )
        base = self.preference_base
        check(
            base is None or base.start is None,
            "preference_base.start is for roles that are not trained: the preference model is "
            "trained from a base; type phase.preference_base.start=null",
        )
        check(
            base is None or base.engine.name is EngineName.transformers,
            "preference_base.engine must be transformers: the preference model is trained in this "
            "process; type engine@phase.preference_base.engine=transformers",
        )


@dataclass(kw_only=True, slots=True)
class MatrixConfig(RLAIFConfig):
    """Several constitutions trained on one base, each policy judged under each of them."""

    constitutions: list[str]
    """Documents by their names in `constitutions/`, or paths to your own files; at least two."""
    seeds: list[int]
    """Every constitution is trained with each; below three nothing is claimed."""
    method: Method
    """Whose final policy is compared."""
    principles_per_prompt: int | None
    """Principles of the judging constitution that a prompt's two responses are judged under, drawn
    for it; null: all of them, which costs `tuned` feedback next to nothing more."""
    dpo: DPOConfig
    """For `method: dpo`."""

    def __post_init__(self) -> None:
        RLAIFConfig.__post_init__(self)
        check(
            not self.gold or self.method is Method.rlaif,
            f"gold=true is for PPO, and method={self.method} has none; type phase.method=rlaif",
        )
        named, seeds = self.constitutions, self.seeds
        check(
            len(named) >= 2,
            f"constitutions must name at least two documents, found {', '.join(named) or 'none'}; "
            "e.g. phase.constitutions=[default,none,inverted]",
        )
        twice = sorted({name for name in named if named.count(name) > 1})
        check(not twice, f"constitutions names {', '.join(twice)} more than once")
        check(bool(seeds), "seeds must name at least one, e.g. phase.seeds=[0,1,2]")
        check(
            all(0 <= seed < 2**31 for seed in seeds),
            f"seeds must be in [0, 2^31), found {', '.join(map(str, seeds))}",
        )
        again = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        check(not again, f"seeds names {', '.join(map(str, again))} more than once")
        if self.principles_per_prompt is not None:
            positive(self, "principles_per_prompt")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(PhaseConfig):
    """The feedback measured on labelled comparisons, or responses of a file classified."""

    feedback_model: ModelConfig
    """Who compares."""


@dataclass(kw_only=True, slots=True)
class AuditPhaseConfig(PhaseConfig):
    """The constitution examined; its settings are in `audit`."""

    feedback_model: ModelConfig
    """Who labels the pairs."""
    prompts: PromptsConfig
    """The run's prompts, as `phase=sl_cai` draws them; `audit.num_pairs` of them get a pair."""
    sampling: SamplingConfig
    """Of the two responses of a pair."""

    def __post_init__(self) -> None:
        check(
            self.sampling.temperature > 0,
            "sampling.temperature must be above 0: two greedy samples are identical and cannot be "
            "compared",
        )


@dataclass(kw_only=True, slots=True)
class TraceConfig(PhaseConfig):
    """One response of a finished run, and the training that was nearest to it."""

    num_nearest: int
    """Training prompts that are shown, the nearest first."""
    num_rollouts: int
    """PPO responses that are shown for each of them, the last ones."""

    def __post_init__(self) -> None:
        positive(self, "num_nearest")
        not_negative(self, "num_rollouts")


@dataclass(kw_only=True, slots=True)
class CompareConfig(PhaseConfig):
    """Finished runs side by side."""

    metrics: list[str]
    """Metrics whose differences are tested, as names of `metrics.json` or patterns with `*`. Holm's
    correction is over all of them, so fewer, chosen beforehand, show more."""
    num_resamples: int
    """Bootstrap resamples and flipped signs over prompts."""
    scatter: list[str] | None
    """Two metrics, a point for each run: the one along the page and the one up; `final` in a name
    stands for each run's last policy. null: none."""

    def __post_init__(self) -> None:
        positive(self, "num_resamples")
        check(
            self.scatter is None or len(set(self.scatter)) == len(self.scatter) == 2,
            "scatter must name two different metrics, e.g. phase.scatter=[feedback/accuracy,"
            "eval/final/likelihood_accuracy]",
        )


@dataclass(kw_only=True, slots=True)
class Config:
    """A whole run."""

    seed: int
    plan: bool
    """Print what would run, what is reused and how much there is to do; run nothing."""
    output_dir: str
    """Holds `store/` and the run folders."""
    run: str | None
    """For `phase=trace`: folder of a finished run of phase=rlaif or phase=dpo. For `phase=audit`:
    folder of one with `phase.revisions.until=satisfied`, whose conflicts between principles are
    listed."""
    example: str | None
    """For `phase=trace`: id of an evaluated prompt, or `<id>/<policy>` for one response to it."""
    runs: list[str] | None
    """For `phase=compare`: folders of finished runs, or of sweeps; the first run's settings are
    what the others are compared with."""
    model: ModelConfig
    """The policy."""
    constitution: ConstitutionConfig
    phase: PhaseConfig
    data: DataConfig
    feedback: FeedbackConfig
    evaluation: EvaluationConfig
    audit: AuditConfig
    hardware: HardwareConfig
    logger: LoggerConfig

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, f"seed must be in [0, 2^31), not {self.seed}")
        if isinstance(self.phase, SLCAIConfig):
            check_verdicts(self.phase.revisions, self.feedback)
        check(
            isinstance(self.phase, EvaluateConfig) or self.evaluation.responses is None,
            f"evaluation.responses={self.evaluation.responses} is for phase=evaluate, not "
            f"phase={self.phase.name}",
        )
        check(
            isinstance(self.phase, EvaluateConfig) or self.evaluation.elo.runs is None,
            f"evaluation.elo.runs is for phase=evaluate; phase={self.phase.name} rates its own "
            "policies",
        )
        check(
            isinstance(self.phase, TraceConfig | AuditPhaseConfig) or self.run is None,
            f"run={self.run} is for phase=trace and phase=audit; phase={self.phase.name} starts "
            "from its settings",
        )
        check(
            isinstance(self.phase, TraceConfig) or self.example is None,
            f"example={self.example} is for phase=trace, not phase={self.phase.name}",
        )
        check(
            isinstance(self.phase, CompareConfig) or self.runs is None,
            f"runs is for phase=compare; phase={self.phase.name} starts from its settings",
        )
        check(
            not (isinstance(self.phase, RLAIFConfig) and self.phase.gold)
            or self.evaluation.sampling.temperature > 0,
            "evaluation.sampling.temperature must be above 0 with phase.gold=true: how far a "
            "snapshot is from the SL-CAI policy is estimated on samples, and greedy ones are none",
        )
        check(
            self.constitution.num_principles is None
            or not isinstance(self.phase, AuditPhaseConfig | MatrixConfig),
            f"constitution.num_principles is not for phase={self.phase.name}, which reads whole "
            "documents; type constitution.num_principles=null",
        )
        check(
            self.model.start is None,
            f"model.start={self.model.start} is for roles that are not trained; a policy begins "
            "with another one by phase.start=<folder of its run or adapter>",
        )
        theirs = self.phase.preference_base if isinstance(self.phase, RLAIFConfig) else None
        check(
            theirs is None
            or theirs.path != self.model.path
            or theirs.adapter is self.model.adapter,
            "phase.preference_base.adapter must be that of model.adapter, because both are trained "
            f"on one base, {self.model.path}; type phase.preference_base.adapter="
            f"{self.model.adapter.value}",
        )


def field_names(kind: type) -> list[str]:
    """Settings of a section, for error messages."""
    return [field.name for field in fields(kind)]
