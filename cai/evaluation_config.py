"""Types of what is measured, and of how text is sampled; every value is in `conf/`.

Rules for config dataclasses are in `cai.config`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.feedback_config import FeedbackConfig
from cai.ranges import check, not_negative, positive
from cai.types import PromptKind

MAX_QUESTIONS, MAX_TEXTS = 40, 24
"""In `cai/datasets/labelled/capability_*.jsonl`."""
MAX_CONTRAST_PAIRS = 24
"""In `cai/datasets/labelled/contrast_pairs.jsonl`."""


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How text is sampled: ancestral, T = 1 in the paper, never top-k or top-p."""

    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    shard_size: int
    """Prompts per batch; also the unit of resuming, so it is part of the artifact's digest."""

    def __post_init__(self) -> None:
        positive(self, "max_new_tokens", "shard_size")
        not_negative(self, "temperature")


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """What policies are compared by, beside the constitution."""

    sentence: str
    """The principle: what the preferred response does."""
    compare: str
    """The question that a judge is asked."""
    kinds: list[PromptKind]
    """Held-out prompts on which it decides."""

    def __post_init__(self) -> None:
        check(bool(self.sentence.strip()), "sentence must not be empty")
        check(bool(self.compare.strip()), "compare must not be empty")
        check(bool(self.kinds), "kinds must name at least one kind of prompt")


HELPFULNESS, HARMLESSNESS = "helpfulness", "harmlessness"
"""The criteria whose ratings are drawn against each other."""


@dataclass(kw_only=True, slots=True)
class EloConfig:
    """A round-robin of the run's policies: win rates and Bradley-Terry ratings."""

    num_prompts: int
    """Held-out prompts of each kind, at most, on which every policy meets every other; 0: none."""
    criteria: dict[str, CriterionConfig]
    """By name; `helpfulness` and `harmlessness` are always there."""
    by_principle: bool
    """Rate under each principle of the constitution too, on red-team prompts: as many questions
    more for each match, unless the judge reads a pair once for all of them (`tuned`)."""
    prior: float
    """Ties that every two policies have besides, so that no rating is infinite; 1 is Jeffreys'
    prior for two policies."""
    runs: list[str] | None
    """For `phase=evaluate`: folders of finished runs whose policies meet; they must have been
    evaluated on the same prompts."""

    def __post_init__(self) -> None:
        not_negative(self, "num_prompts")
        check(self.prior >= 1e-3, f"prior must be at least 0.001, not {self.prior}")
        missing = {HELPFULNESS, HARMLESSNESS} - set(self.criteria)
        check(not missing, f"criteria must have {' and '.join(sorted(missing))}")
        check(
            self.runs is None or self.num_prompts > 0,
            "num_prompts is 0, so the policies of runs would not meet; leave it out",
        )


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Responses of every policy to held-out prompts, and what is measured on them."""

    sampling: SamplingConfig
    num_tests: int
    """Principle tests on which each policy's likelihoods of better and worse are compared."""
    num_bootstrap: int
    """Resamples for confidence intervals of means."""
    num_feedback_tests: int
    """Tests of the constitution put to the feedback before its labels are trusted."""
    feedback_data: str | None
    """File of labelled comparisons to measure the feedback on (hh-rlhf transcripts, TRL preference
    or HHH multiple choice, recognised by their fields); null: the constitution's own tests."""
    feedback_principle: str
    """What a file's pairs are judged under: `general` (helpful, honest and harmless), `drawn` (one
    drawn for each), or a principle's id."""
    num_feedback_pairs: int | None
    """At most so many pairs of the file, the first by hash order; null: all of them."""
    num_critique_controls: int
    """Held-out red-team prompts on which critiqued revisions are compared with revisions without a
    critique and with sampling again, at most; 0: none, and critiques are taken on trust."""
    num_principle_prompts: int
    """Held-out red-team prompts, at most, on which the feedback compares every policy with the one
    before it, under each principle (`phase=rlaif`, `phase=dpo`): policies * prompts * principles
    questions more. 0: none, and nothing says what the training did by principle."""
    judge_attacks: bool
    """Put the shipped attacks on judges to the feedback (`phase=evaluate`)."""
    num_capability_questions: int
    """Shipped multiple-choice questions, at most 40, that every policy answers; 0: none."""
    num_capability_texts: int
    """Shipped helpful texts, at most 24, whose perplexity under every policy is taken; 0: none."""
    num_contrast_pairs: int
    """Shipped pairs of a harmful prompt and a harmless one in the same words, at most 24, that
    every policy answers; 0: none, and refusing by key words is not told from refusing harm."""
    judge: FeedbackConfig | None
    """Who judges matches between policies: `feedback@evaluation.judge=<option>`; null: the run's
    own feedback, which is marked as circular where it supplied the training labels."""
    elo: EloConfig
    responses: str | None
    """For `phase=evaluate`: file of prompts and responses (JSONL or CSV) whose compliance is told;
    no model is needed, and the feedback is not measured."""
    responses_prompt: str
    """Its column of prompts: text, a list of messages, or a transcript."""
    responses_response: str | None
    """Its column of responses; null: `response` or `completion`, whichever is there."""
    responses_label: str | None
    """Its column of people's labels, to be agreed with; null: none."""
    responses_by: list[str] | None
    """Its columns by whose values rates are told; null: those of `kind`, `type`, `category`,
    `policy` and `model` that are there."""

    def __post_init__(self) -> None:
        positive(self, "num_bootstrap")
        not_negative(self, "num_tests", "num_feedback_tests", "num_critique_controls")
        not_negative(self, "num_principle_prompts", "num_contrast_pairs")
        not_negative(self, "num_capability_questions", "num_capability_texts")
        check(
            self.num_capability_questions <= MAX_QUESTIONS
            and self.num_capability_texts <= MAX_TEXTS,
            f"num_capability_questions must be at most {MAX_QUESTIONS} and num_capability_texts at "
            f"most {MAX_TEXTS}, which are shipped",
        )
        check(
            self.num_contrast_pairs <= MAX_CONTRAST_PAIRS,
            f"num_contrast_pairs must be at most {MAX_CONTRAST_PAIRS}, the pairs that are shipped, "
            f"not {self.num_contrast_pairs}",
        )
        check(
            self.responses is None or self.feedback_data is None,
            "responses and feedback_data are two evaluations: give one of them",
        )
        check(
            self.responses is None or self.elo.runs is None,
            "responses and elo.runs are two evaluations: give one of them",
        )
        if self.num_feedback_pairs is not None:
            positive(self, "num_feedback_pairs")

    @property
    def asks_feedback(self) -> bool:
        """Whether a phase without comparisons still needs the run's feedback."""
        return self.num_critique_controls > 0 or self.elo.num_prompts > 0
