"""A run's mixture of refusing, answering in part and complying, from its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai.artifacts import Artifact
from cai.choices import LabelMode
from cai.compliance.mixture import LabelsMoved, MixtureStory, labels_moved, mixture_story
from cai.compliance.shift import FILE, ComplianceReward, ComplianceShift
from cai.config import ComparedConfig, Config
from cai.constitution import Constitution
from cai.statistics import Estimate
from cai.types import Comparison, Evaluated, FeedbackCheck, RevisionChain


def run_mixture(
    config: Config,
    document: Constitution,
    *,
    chains: Sequence[RevisionChain],
    labels: Artifact | None,
    comparisons: Sequence[Comparison],
    checks: Sequence[FeedbackCheck],
    evaluated: Sequence[Evaluated],
    mean: Callable[[Sequence[float]], Estimate | None],
) -> MixtureStory | None:
    """What becomes of requests in a run; None where nothing was written.

    Args:
        config: The run's.
        document: Its constitution.
        chains: Drafts and revisions.
        labels: Where the comparisons are from; None where nothing learned from any.
        comparisons: Labelled pairs.
        checks: The feedback on pairs whose better side is known.
        evaluated: Every policy's responses.
        mean: Mean with an interval.
    """
    return mixture_story(
        chains,
        comparisons,
        evaluated,
        declared=document.compliance,
        moved=_moved(config, document, labels, comparisons, checks) if labels else None,
        mean=mean,
    )


def _moved(
    config: Config,
    document: Constitution,
    labels: Artifact,
    comparisons: Sequence[Comparison],
    checks: Sequence[FeedbackCheck],
) -> LabelsMoved | None:
    if FILE not in labels.manifest()["files"]:
        return None
    assert document.compliance is not None
    assert isinstance(config.phase, ComparedConfig)
    return labels_moved(
        labels.records(ComplianceShift, FILE),
        comparisons,
        [check.comparison for check in checks],
        reward=ComplianceReward(
            declared=document.compliance, coef=config.phase.comparisons.compliance_coef
        ),
        soft=config.feedback.label is LabelMode.soft,
    )
