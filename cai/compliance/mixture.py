"""What becomes of requests on the way: drafts, revisions, both sides of comparisons, policies.

One table of main classes by prompt kind, so that a reader sees where refusals, caveats and
alternatives come in or get lost, and how far each step is from what the constitution declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cai.compliance.classes import ComplianceTag
from cai.compliance.classify import classify
from cai.compliance.declared import DeclaredCompliance
from cai.compliance.rates import ComplianceRates, compliance_rates
from cai.compliance.shift import ComplianceReward, ComplianceShift
from cai.feedback.base import shifted
from cai.statistics import Estimate, pair_accuracy, wilson_interval
from cai.types import Comparison, Evaluated, Prompt, PromptKind, RevisionChain

COLUMNS = ("source", "kind", "num", *(str(tag) for tag in ComplianceTag), "value")
"""Of `mixture_table`."""
DRAFTS = "drafts"
PREFERRED = "preferred"
REJECTED = "rejected"
REFUSING = (ComplianceTag.refusal, ComplianceTag.alternative)
"""Main classes that give nothing of what was asked; an abstention may be the honest answer."""
TURNED_LIMIT = 0.25
"""Share of labels on the other side beyond which rules say more than the feedback."""

Text = tuple[Prompt, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRow:
    """Some texts in response to one kind of prompt."""

    source: str
    """`drafts`, `revision_1`, ..., `preferred`, `rejected`, or a policy's name."""
    kind: PromptKind
    rates: ComplianceRates
    value: Estimate | None
    """Mean of what the constitution declares their classes to be worth; None without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsMoved:
    """What the declared values did to labels."""

    num: int
    """Labels."""
    num_moved: int
    """Pairs whose two classes are not worth the same."""
    num_turned: int
    """Labels that prefer the other side than before."""
    refusing_before: Estimate | None
    """Labels for the refusing side, of pairs where one side refuses; None without such pairs."""
    refusing: Estimate | None
    accuracy: Estimate | None
    """Labelled pairs judged right with the values, whose prompts count as red-team prompts; None
    where labels are not soft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureStory:
    """The whole way of a run."""

    rows: tuple[MixtureRow, ...]
    moved: LabelsMoved | None
    """None where labels are the feedback's alone."""


def mixture_story(
    chains: Sequence[RevisionChain],
    comparisons: Sequence[Comparison],
    evaluated: Sequence[Evaluated],
    *,
    declared: DeclaredCompliance | None,
    moved: LabelsMoved | None,
    mean: Callable[[Sequence[float]], Estimate | None],
) -> MixtureStory | None:
    """Every text of a run by source and kind; None without any.

    Args:
        chains: Drafts and revisions.
        comparisons: Labelled pairs.
        evaluated: Every policy's responses to held-out prompts.
        declared: The constitution's values.
        moved: What they did to labels.
        mean: Mean of per-text values, with an interval.
    """
    rows = [
        MixtureRow(
            source=source,
            kind=kind,
            rates=rates,
            value=mean([declared.value(kind, one.main) for one in found]) if declared else None,
        )
        for source, texts in _sources(chains, comparisons, evaluated)
        for kind in PromptKind
        if (found := [classify(_last(p), text) for p, text in texts if p.kind is kind])
        and (rates := compliance_rates(found)) is not None
    ]
    return MixtureStory(rows=tuple(rows), moved=moved) if rows else None


def _last(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _sources(
    chains: Sequence[RevisionChain],
    comparisons: Sequence[Comparison],
    evaluated: Sequence[Evaluated],
) -> Iterator[tuple[str, list[Text]]]:
    yield DRAFTS, [(chain.prompt, chain.draft.text) for chain in chains]
    for number in range(max((len(chain.steps) for chain in chains), default=0)):
        reached = [chain for chain in chains if len(chain.steps) > number]
        texts = [(chain.prompt, chain.steps[number].response) for chain in reached]
        yield f"revision_{number + 1}", texts
    yield PREFERRED, [side for c in comparisons if (side := _side(c, preferred=True)) is not None]
    yield REJECTED, [side for c in comparisons if (side := _side(c, preferred=False)) is not None]
    for policy in dict.fromkeys(one.response.policy for one in evaluated):
        own = [one.response for one in evaluated if one.response.policy == policy]
        yield policy, [(response.prompt, response.sample.text) for response in own]


def _side(comparison: Comparison, *, preferred: bool) -> Text | None:
    """One side of a label; None without one and for a tie."""
    if comparison.prob_a is None or comparison.prob_a == 0.5:
        return None
    first = (comparison.prob_a > 0.5) == preferred
    return comparison.prompt, comparison.response_a if first else comparison.response_b


def labels_moved(
    shifts: Sequence[ComplianceShift],
    comparisons: Sequence[Comparison],
    checks: Sequence[Comparison],
    *,
    reward: ComplianceReward,
    soft: bool,
) -> LabelsMoved:
    """What values of compliance did to a run's labels.

    Args:
        shifts: One for each comparison, in order.
        comparisons: With the labels that are learned.
        checks: Labelled pairs as the feedback alone judged them; a is the better response.
        reward: What moved the labels.
        soft: Whether labels are probabilities, so that a check's can be moved here.
    """
    labelled = [
        (shift, comparison.prob_a, shift.prob_before)
        for shift, comparison in zip(shifts, comparisons, strict=True)
        if comparison.prob_a is not None and shift.prob_before is not None
    ]
    before = [prob for shift, _, old in labelled if (prob := _for_refusing(shift, old)) is not None]
    after = [prob for shift, new, _ in labelled if (prob := _for_refusing(shift, new)) is not None]
    return LabelsMoved(
        num=len(labelled),
        num_moved=sum(shift.shift != 0 for shift, _, _ in labelled),
        num_turned=sum((new - 0.5) * (old - 0.5) < 0 for _, new, old in labelled),
        refusing_before=_share(before),
        refusing=_share(after),
        accuracy=pair_accuracy(
            [
                shifted(check.prob_a, reward.shift(check).shift)
                for check in checks
                if check.prob_a is not None
            ]
        )
        if soft
        else None,
    )


def _for_refusing(shift: ComplianceShift, prob_a: float) -> float | None:
    """P(the refusing side preferred); None unless exactly one side refuses."""
    a, b = shift.class_a in REFUSING, shift.class_b in REFUSING
    if a == b:
        return None
    return prob_a if a else 1 - prob_a


def _share(probs: Iterable[float]) -> Estimate | None:
    """Labels on the side, ties half."""
    wins = [0.5 if prob == 0.5 else float(prob > 0.5) for prob in probs]
    return wilson_interval(sum(wins), len(wins))


def mixture_metrics(story: MixtureStory | None) -> Iterator[tuple[str, Estimate | float]]:
    """`compliance/<source>/<kind>/<class>` as shares, `value`, and what was done to labels."""
    for row in story.rows if story else ():
        group = f"compliance/{row.source}/{row.kind}"
        yield f"{group}/num", float(row.rates.num)
        for tag, count in row.rates.main.items():
            yield f"{group}/{tag}", count / row.rates.num
        if row.value is not None:
            yield f"{group}/value", row.value
    moved = story.moved if story else None
    if moved is None:
        return
    yield "compliance/labels/num", float(moved.num)
    yield "compliance/labels/num_moved", float(moved.num_moved)
    yield "compliance/labels/num_turned", float(moved.num_turned)
    if moved.refusing is not None and moved.refusing_before is not None:
        yield "compliance/labels/refusing_before", moved.refusing_before
        yield "compliance/labels/refusing", moved.refusing
    if moved.accuracy is not None:
        yield "feedback/accuracy_with_compliance", moved.accuracy


def mixture_lines(story: MixtureStory | None) -> Iterator[tuple[str, Estimate | None, str]]:
    """The numbers that matter, with a comment each."""
    moved = story.moved if story else None
    if moved is not None:
        yield "Labels for the refusing side, by feedback alone", moved.refusing_before, ""
        yield "Labels for the refusing side, with declared values", moved.refusing, ""


def mixture_findings(story: MixtureStory | None) -> Iterator[str]:
    """What a reader must know of the declared values before any number."""
    moved = story.moved if story else None
    if moved is None or moved.num == 0:
        return
    if moved.num_moved == 0:
        yield (
            f"The constitution's values of compliance moved none of {moved.num} labels: by rules "
            "both responses of every pair are answers of the same worth. What it declares was not "
            "learned from this run's pairs."
        )
    elif moved.num_turned > TURNED_LIMIT * moved.num:
        yield (
            f"The constitution's values of compliance turned {moved.num_turned} of {moved.num} "
            "labels to the other side: what is learned is the rules' reading of these pairs as "
            "much as the feedback's. A smaller phase.comparisons.compliance_coef leaves more to it."
        )


def mixture_table(story: MixtureStory) -> list[list[object]]:
    """Rows of `COLUMNS` for the mirror."""
    return [
        [
            row.source,
            str(row.kind),
            row.rates.num,
            *(row.rates.main[tag] / row.rates.num for tag in ComplianceTag),
            row.value.value if row.value else None,
        ]
        for row in story.rows
    ]
