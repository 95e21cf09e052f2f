"""A trace put together from a run's artifacts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cai.artifacts import Artifact
from cai.attribution import LearnedLabel, after_preferred, share_of, split_labels
from cai.choices import Condition
from cai.config import TraceConfig
from cai.job import PROGRAM
from cai.seeds import derive_seed
from cai.stages.preference_pairs import Half, half_of, validation_prompts
from cai.stages.prompt_embeddings import vectors
from cai.stages.rewards import ROLLOUTS
from cai.stages.sampling import EVALUATION, TRAIN
from cai.trace.nearness import centred_cosines, lexical_cosines, prompt_text
from cai.trace.story import (
    Check,
    NearPrinciple,
    Neighbour,
    PolicyLabel,
    TracedAnswer,
    TracedComparison,
    TraceStory,
)
from cai.trace.traced import Asked, TracedRun
from cai.types import (
    Comparison,
    PolicyComparison,
    Prompt,
    PromptEmbedding,
    RevisionChain,
    Rollout,
)


def gather(
    config: TraceConfig,
    run: TracedRun,
    asked: Asked,
    *,
    embeddings: Artifact,
    link: str,
    in_report: bool,
) -> TraceStory:
    """Read everything back, checking sha256s."""
    neighbours = _neighbours(config, run, asked, embeddings)
    policies = [e.response.policy for e in asked.evaluated]
    return TraceStory(
        run=str(run.folder),
        example=asked.text,
        link=link,
        in_report=in_report,
        prompt=asked.prompt,
        answers=tuple(
            TracedAnswer(
                policy=e.response.policy,
                text=e.response.sample.text,
                score=e.score,
                refusal=e.refusal,
                asked=e.response.policy == (asked.policy or policies[-1]),
            )
            for e in asked.evaluated
        ),
        labels=_labels(run, asked.prompt),
        neighbours=neighbours,
        principles=near_principles(
            neighbours, run.attribution["principles"], conditioned=_conditioned(run)
        ),
        checks=_checks(run),
    )


def _settings(run: TracedRun) -> dict[str, Any]:
    """What the learner was trained with."""
    return run.learner.manifest()["key"]["config"]


def _conditioned(run: TracedRun) -> bool:
    return _settings(run).get("condition") == Condition.principle.value


def _labels(run: TracedRun, prompt: Prompt) -> tuple[PolicyLabel, ...]:
    ids = [row["id"] for row in run.attribution["principles"]]
    return tuple(
        PolicyLabel(before=row.before, after=row.after, principle_id=name, prob_after=prob)
        for artifact in run.scores
        for row in artifact.records(PolicyComparison)
        if (row.comparison.prompt.id, row.comparison.prompt.kind) == (prompt.id, prompt.kind)
        for name, prob in zip(ids, after_preferred(row, ids) or (), strict=False)
    )


def _neighbours(
    config: TraceConfig, run: TracedRun, asked: Asked, embeddings: Artifact
) -> tuple[Neighbour, ...]:
    prompts = run.artifacts["prompts"]
    training = prompts.records(Prompt, TRAIN)
    held_out = prompts.records(Prompt, EVALUATION)
    rows = vectors(embeddings.records(PromptEmbedding))
    own = len(training) + held_out.index(asked.prompt)
    near = centred_cosines(rows[own], rows[: len(training)])
    words = lexical_cosines(prompt_text(asked.prompt), [prompt_text(p) for p in training])
    order = sorted(range(len(training)), key=lambda row: -near[row])[: config.num_nearest]

    learner = run.learner.manifest()["key"]
    compared = run.artifacts["comparisons"].records(Comparison)
    kept_back = _kept_back(learner, compared)
    chains = {c.prompt: c for c in run.artifacts["revisions"].records(RevisionChain)}
    rollouts = (
        run.artifacts["policy"].records(Rollout, ROLLOUTS) if "policy" in run.artifacts else []
    )
    return tuple(
        _neighbour(
            training[row],
            similarity=float(near[row]),
            lexical=words[row],
            compared=compared,
            kept_back=kept_back,
            chain=chains.get(training[row]),
            rollouts=[r for r in rollouts if r.prompt == training[row]],
            num_rollouts=config.num_rollouts,
        )
        for row in order
    )


def _kept_back(learner: dict[str, Any], compared: Sequence[Comparison]) -> set[str]:
    """Ids of the prompts whose comparisons were not learned from, by the key of what learned."""
    held_out = validation_prompts(
        compared,
        frac=learner["config"]["validation_frac"],
        seed=derive_seed(learner["seed"], "pm"),
    )
    if (half := learner["identity"].get("half")) is None:
        return held_out
    rest = [c.prompt for c in compared if c.prob_a is not None and c.prompt.id not in held_out]
    own = half_of([prompt.messages for prompt in rest], (), half=Half(half), seed=learner["seed"])
    return held_out | {prompt.id for prompt in rest if prompt.messages not in own}


def _neighbour(
    prompt: Prompt,
    *,
    similarity: float,
    lexical: float,
    compared: Sequence[Comparison],
    kept_back: set[str],
    chain: RevisionChain | None,
    rollouts: Sequence[Rollout],
    num_rollouts: int,
) -> Neighbour:
    return Neighbour(
        prompt=prompt,
        similarity=similarity,
        lexical=lexical,
        comparisons=tuple(
            TracedComparison(
                comparison=c, learned=c.prob_a is not None and prompt.id not in kept_back
            )
            for c in compared
            if c.prompt == prompt
        ),
        chain=chain,
        rollouts=tuple(rollouts[max(0, len(rollouts) - num_rollouts) :]),
        num_rollouts=len(rollouts),
    )


def near_principles(
    neighbours: Sequence[Neighbour], account: Sequence[dict[str, Any]], *, conditioned: bool
) -> tuple[NearPrinciple, ...]:
    """What each principle did near the prompt, and in the whole run.

    Args:
        neighbours: The near training prompts.
        account: `principles` of the run's `attribution.json`.
        conditioned: As in `split_labels`.
    """
    learned = [t.comparison for n in neighbours for t in n.comparisons if t.learned]
    labels = [
        label
        for number, comparison in enumerate(learned)
        for label in split_labels(number, comparison.labels, conditioned=conditioned)
    ]
    steps = [s for n in neighbours if n.chain for s in n.chain.steps if s.outcome.accepted]
    rows = [
        _near_principle(row, labels, num_revisions=sum(s.principle_id == row["id"] for s in steps))
        for row in account
    ]
    kept = [row for row in rows if row.num_comparisons or row.num_revisions]
    return tuple(sorted(kept, key=lambda row: (-(row.near_share or 0.0), -row.num_revisions)))


def _near_principle(
    row: dict[str, Any], labels: Sequence[LearnedLabel], *, num_revisions: int
) -> NearPrinciple:
    own = {label.comparison for label in labels if label.principle_id == row["id"]}
    return NearPrinciple(
        id=row["id"],
        principle=row["principle"],
        near_share=share_of(labels, row["id"]),
        run_share=row["share"],
        num_comparisons=len(own),
        num_revisions=num_revisions,
    )


def _checks(run: TracedRun) -> tuple[Check, ...]:
    """Commands that change what a principle did, instead of looking at what lies near."""
    document = run.attribution["constitution"]["document"]
    audit = [
        "phase=audit",
        f"constitution.document={document}",
        f"audit.pairs_from={run.folder}",
    ]
    retrain = f"{run.command} constitution.document=without.yaml"
    return (
        Check(
            title="Which labels would change without a principle (no training)",
            text=f"{PROGRAM} {shlex.join(audit)}",
        ),
        Check(
            title="What the policy would be without a principle (trains again)",
            text="without.yaml:\n  name: without\n"
            f"  extends: [{{document: {document}, except: [<principle>]}}]\n{retrain}",
        ),
    )
