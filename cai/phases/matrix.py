"""Several constitutions trained on one base, each policy judged under each of them.

Not part of the paper. Every policy is that of `phase=<method>` with the same digests, so a matrix
shares what such runs made, and constitutions and seeds share among themselves whatever does not
depend on them. All policies of a seed answer the same held-out prompts, and are compared with the
base's responses to them. A constitution's judge is one for all seeds, that of the first, so that
what differs between seeds is the policies and the prompts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cai.artifacts import Artifact
from cai.choices import Method
from cai.config import MatrixConfig
from cai.context import RunContext
from cai.feedback.labelled import labelled_set
from cai.matrix.curves import Labelled
from cai.matrix.subjects import Subject
from cai.phases import dpo, rlaif, sl_cai
from cai.stages import sampling
from cai.stages.comparisons import Checked, Judge
from cai.stages.evaluation import likelihoods
from cai.stages.policy import check_value_adapter
from cai.stages.steering import steering

POLICIES = {Method.sl_cai: "sl_cai", Method.dpo: "dpo", Method.rlaif: "rl_cai"}
"""What the stages call the policy that a method ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a matrix gets besides its own section."""

    shared: sl_cai.Inputs
    """The same for every constitution."""
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One constitution's policy of one seed."""

    train: str
    seed: int
    adapter: Artifact
    responses: Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The untrained base with the prompts of one seed."""

    responses: Artifact
    likelihoods: dict[str, Artifact]
    """On each constitution's tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One policy before one judge."""

    train: str
    judge: str
    seed: int
    judged: Artifact
    """`PolicyComparison` records against the base."""
    likelihoods: Artifact | None
    """`LikelihoodTest` records on the judge's tests; None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a matrix made."""

    policies: tuple[Trained, ...]
    bases: dict[int, Base]
    checks: dict[str, Checked]
    """How good each constitution's judge is on its own tests."""
    cells: tuple[Cell, ...]


def run(config: MatrixConfig, inputs: Inputs, context: RunContext) -> Outputs:
    """Train every constitution with every seed, then judge each policy under each."""
    if config.method is Method.rlaif:
        base = config.preference_base
        check_value_adapter(config.ppo, model=inputs.shared.model, preference_base=base)
    labelled = {  # files that cannot be read are refused before anything is computed
        subject.name: labelled_set(inputs.shared.evaluation, subject.document, seed=config.seeds[0])
        for subject in inputs.subjects
    }
    for subject in inputs.subjects:
        sl_cai.check_document(config, inputs.shared, subject.document)
    bases = {seed: _base(config, inputs, context, seed) for seed in config.seeds}
    policies = tuple(
        _trained(config, inputs, subject, _sibling(context, subject, seed))
        for seed in config.seeds
        for subject in inputs.subjects
    )
    checks: dict[str, Checked] = {}
    cells: list[Cell] = []
    for subject in inputs.subjects:
        own = _sibling(context, subject, config.seeds[0])
        found = sl_cai.judged(
            config.feedback_model, inputs.shared, own, labelled=labelled[subject.name]
        )
        judge, checks[subject.name] = found.judge, found.checked
        for one in policies:
            there = _sibling(context, subject, one.seed)
            cells.append(_cell(config, inputs, there, subject, one, bases[one.seed], judge))
    return Outputs(policies=policies, bases=bases, checks=checks, cells=tuple(cells))


def _sibling(context: RunContext, subject: Subject, seed: int) -> RunContext:
    """The same run under another constitution and seed; results go to the same list."""
    return dataclasses.replace(
        context,
        constitution=subject.document,
        seed=seed,
        tracker=Labelled(context.tracker, f"{subject.name}-seed{seed}"),
    )


def _num_held_out(config: MatrixConfig) -> int:
    counts = config.prompts
    return counts.num_eval_red_team + counts.num_eval_helpfulness + counts.num_eval_benign


def _responses(
    config: MatrixConfig, inputs: Inputs, context: RunContext, policy: str, adapter: Artifact | None
) -> Artifact:
    shared = inputs.shared
    prompts = sampling.prompts(
        context, config=config.prompts, sources=shared.data, domain=shared.domain
    )
    return sampling.responses(
        context,
        policy=policy,
        model=shared.model,
        adapter=adapter,
        config=shared.evaluation.sampling,
        source=prompts,
        num=_num_held_out(config),
    )


def _base(config: MatrixConfig, inputs: Inputs, context: RunContext, seed: int) -> Base:
    contexts = {one.name: _sibling(context, one, seed) for one in inputs.subjects}
    return Base(
        responses=_responses(config, inputs, next(iter(contexts.values())), "base", None),
        likelihoods={
            subject.name: _likelihoods(inputs, contexts[subject.name], "base", None)
            for subject in inputs.subjects
            if _has_tests(subject)
        },
    )


def _has_tests(subject: Subject) -> bool:
    return any(principle.tests for principle in subject.document.principles)


def _likelihoods(
    inputs: Inputs, context: RunContext, policy: str, adapter: Artifact | None
) -> Artifact:
    shared = inputs.shared
    return likelihoods(
        context, policy=policy, model=shared.model, adapter=adapter, config=shared.evaluation
    )


def _trained(
    config: MatrixConfig, inputs: Inputs, subject: Subject, context: RunContext
) -> Trained:
    adapter = _policy(config, inputs.shared, context)
    return Trained(
        train=subject.name,
        seed=context.seed,
        adapter=adapter,
        responses=_responses(config, inputs, context, POLICIES[config.method], adapter),
    )


def _policy(config: MatrixConfig, shared: sl_cai.Inputs, context: RunContext) -> Artifact:
    start = sl_cai.start_of(config, shared, context)
    if config.method is Method.sl_cai:
        return sl_cai.train(config, shared, context, start=start).sl_policy
    compared = sl_cai.compare(config, shared, context, start=start)
    if config.method is Method.dpo:
        return dpo.learn(config.dpo, shared, context, compared=compared)
    return rlaif.learn(config, shared, context, compared=compared).final


def _cell(
    config: MatrixConfig,
    inputs: Inputs,
    context: RunContext,
    subject: Subject,
    one: Trained,
    base: Base,
    judge: Judge,
) -> Cell:
    """`context` is the judge's, with the policy's seed."""
    tested = _has_tests(subject)
    return Cell(
        train=one.train,
        judge=subject.name,
        seed=one.seed,
        judged=steering(
            context,
            judge=judge,
            base=base.responses,
            policy=one.responses,
            num=_num_held_out(config),
            num_principles=config.principles_per_prompt,
        ),
        likelihoods=_likelihoods(inputs, context, POLICIES[config.method], one.adapter)
        if tested
        else None,
    )
