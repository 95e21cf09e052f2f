"""Types of the settings of an audit: limits of the lint, what is measured, what fails a run.

The limits are judgements and not facts of language, so they are settings; what each one measures is
at the top of the module that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import FailOn
from cai.ranges import check, fraction, not_negative, positive


@dataclass(kw_only=True, slots=True)
class LintConfig:
    """Limits of the checks."""

    min_shared: float
    """Share of a form's content words that the rest of its principle must have (C103)."""
    max_requirements: int
    """Predicates that one principle may have (C203)."""
    near_duplicate: float
    """Dice coefficient of two principles' content words from which they are one (C302)."""
    contradiction: float
    """Share of the shorter clause's content words that two clauses must turn round (C304)."""
    length_accuracy: float
    """Share of the tests that length alone may solve (C502)."""
    test_length_ratio: float
    """Words of the longer response over words of the shorter one in a test (C503)."""

    def __post_init__(self) -> None:
        fraction(self, "min_shared", "near_duplicate", "contradiction", "length_accuracy")
        positive(self, "max_requirements")
        check(
            self.test_length_ratio > 1,
            f"test_length_ratio must be above 1, not {self.test_length_ratio}",
        )


@dataclass(kw_only=True, slots=True)
class AuditConfig:
    """What `phase=audit` looks at, and when it fails."""

    compare_with: str | None
    """Another document, e.g. the version before: what changed, and which findings came or went; on
    `num_pairs` pairs of responses, also which labels change."""
    num_pairs: int
    """Pairs of responses that are labelled under every principle, one a prompt, at most; 0: the
    document is read, and no model is asked."""
    pairs_from: str | None
    """Folder of a finished run whose `pairs` are labelled; null: sampled from `model`."""
    threshold: float
    """|P(a preferred) - 1/2| above which a label counts as an opinion."""
    num_wording_pairs: int
    """So many of the pairs, the first ones, are asked about in other words and in the opposite,
    too: four more questions per principle. 0: none."""
    num_bootstrap: int
    """Resamples for confidence intervals of means."""
    fail_on: FailOn
    """Findings from which on the exit status is 1."""
    lint: LintConfig

    def __post_init__(self) -> None:
        not_negative(self, "num_pairs", "num_wording_pairs")
        positive(self, "num_bootstrap")
        check(0 <= self.threshold < 0.5, f"threshold must be in [0, 0.5), not {self.threshold}")
