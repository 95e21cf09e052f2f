"""The samples that a reader can look through: held-out responses, comparisons, revisions.

Samples are the first ones in hash order, not chosen ones; what a page cannot hold is counted, and
is in the store like the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai.story import Answer, Example, SampleSource, TrainingSample, label, number
from cai.types import Comparison, Evaluated, RevisionChain

MAX_EXAMPLES = 2000
"""Held-out prompts on a page."""
MAX_TRAINING = 500
"""Comparisons on a page, and revised drafts."""


def examples(evaluated: Sequence[Evaluated]) -> tuple[Example, ...]:
    """The held-out prompts with every policy's response to each."""
    rows: dict[tuple[str, str], list[Evaluated]] = {}
    for one in evaluated:
        rows.setdefault((one.response.prompt.kind.value, one.response.prompt.id), []).append(one)
    return tuple(
        Example(
            prompt=own[0].response.prompt,
            answers=tuple(
                Answer(
                    policy=one.response.policy,
                    text=one.response.sample.text,
                    score=one.score,
                    refusal=one.refusal,
                    compliance=str(one.compliance.main),
                )
                for one in own
            ),
        )
        for own in list(rows.values())[:MAX_EXAMPLES]
    )


def num_left_out(
    evaluated: Sequence[Evaluated],
    chains: Sequence[RevisionChain],
    comparisons: Sequence[Comparison],
) -> int:
    """Samples that the page does not hold."""
    prompts = {(one.response.prompt.kind, one.response.prompt.id) for one in evaluated}
    return max(0, len(prompts) - MAX_EXAMPLES) + sum(
        max(0, len(rows) - MAX_TRAINING) for rows in (chains, comparisons)
    )


def training_samples(
    chains: Sequence[RevisionChain], comparisons: Sequence[Comparison]
) -> tuple[TrainingSample, ...]:
    """What the policies learned from: revised drafts, then compared responses."""
    return (
        *(_revision(chain) for chain in chains[:MAX_TRAINING]),
        *(_comparison(one) for one in comparisons[:MAX_TRAINING]),
    )


def _revision(chain: RevisionChain) -> TrainingSample:
    used = [step for step in chain.steps if step.outcome.accepted]
    outcomes = ", ".join(label(step.outcome.value) for step in chain.steps)
    return TrainingSample(
        source=SampleSource.revision,
        prompt=chain.prompt,
        answers=(
            Answer(policy="draft", text=chain.draft.text),
            *(Answer(policy=f"revision {step.step}", text=step.response) for step in used),
        ),
        principle_ids=tuple(dict.fromkeys(step.principle_id for step in chain.steps)),
        critiques=tuple(step.critique.text for step in used if step.critique is not None),
        told=f"Steps: {outcomes}" if outcomes else "",
    )


def _comparison(pair: Comparison) -> TrainingSample:
    told = (
        f"P(a preferred) {number(pair.prob_a)}"
        if pair.prob_a is not None
        else f"No label: {label(str(pair.unjudged))}"
    )
    return TrainingSample(
        source=SampleSource.comparison,
        prompt=pair.prompt,
        answers=(
            Answer(policy="a", text=pair.response_a),
            Answer(policy="b", text=pair.response_b),
        ),
        principle_ids=pair.principle_ids,
        critiques=(),
        told=told,
    )
