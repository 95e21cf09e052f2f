"""A matrix's artifacts read back and told; every number is computed from records in the store."""

from __future__ import annotations

import itertools

from cai.attribution import after_preferred
from cai.choices import Method
from cai.config import Config, MatrixConfig
from cai.feedback.measures import measure as measure_checks
from cai.matrix.measures import Bootstrap, Observed, Values
from cai.matrix.story import (
    CellStory,
    ControlStory,
    DominanceStory,
    JudgesStory,
    LikelihoodCellStory,
    MatrixStory,
    SubjectStory,
)
from cai.matrix.subjects import Subject
from cai.phases.matrix import POLICIES, Inputs, Outputs
from cai.roles import judge_name
from cai.types import FeedbackCheck, LikelihoodTest, PolicyComparison, Unjudged

SHARES = (0.0, 1.0)


def tell(
    config: Config, inputs: Inputs, outputs: Outputs, *, adapters: dict[str, str]
) -> MatrixStory:
    """The chapter.

    Args:
        config: The run's settings.
        inputs: What the phase got.
        outputs: What it made.
        adapters: Where the first seed's adapters were exported, by constitution.
    """
    phase = config.phase
    assert isinstance(phase, MatrixConfig)
    bootstrap = Bootstrap(num=config.evaluation.num_bootstrap, seed=config.seed)
    names = tuple(subject.name for subject in inputs.subjects)
    judged = _judged(outputs)
    values = Values(
        names=names,
        judges=names,
        observed={place: _preferred(rows) for place, rows in judged.items()},
    )
    margins = _margins(outputs)
    tested = tuple(name for name in names if (names[0], name) in margins)
    shifts = Values(names=names, judges=tested, observed=_shifts(outputs, margins))
    return MatrixStory(
        method=str(phase.method),
        policy=POLICIES[phase.method],
        seeds=tuple(phase.seeds),
        judge=_judge(config, phase),
        prompts=_prompts(config, phase),
        circular=phase.method is not Method.sl_cai,
        subjects=tuple(_subject(one, outputs, adapters) for one in inputs.subjects),
        cells=tuple(
            _cell(values, bootstrap, train, judge, judged[train, judge])
            for train in names
            for judge in names
        ),
        tests=tuple(
            _test_cell(shifts, margins[train, judge], bootstrap, train, judge)
            for train in names
            for judge in tested
        ),
        no_tests=tuple(name for name in names if name not in tested),
        dominance=_dominance(values, shifts, inputs, bootstrap),
        controls=tuple(
            ControlStory(
                judge=one.name,
                control=control.name,
                gap=bootstrap.mean(values.over(one.name, control.name)),
            )
            for one in inputs.subjects
            for control in inputs.subjects
            if control.control and not one.control
        ),
        judges=tuple(
            JudgesStory(first=one, second=other, correlation=values.correlation(one, other))
            for one, other in itertools.combinations(names, 2)
        ),
    )


def _judge(config: Config, phase: MatrixConfig) -> str:
    return judge_name(config.feedback, phase.feedback_model)


def _prompts(config: Config, phase: MatrixConfig) -> str:
    counts = phase.prompts
    domain = config.constitution.domain
    return (
        f"{counts.num_eval_red_team} red-team, {counts.num_eval_helpfulness} helpfulness and "
        f"{counts.num_eval_benign} benign held-out prompts of each seed, "
        + (f"in part of the domain {domain}" if domain else "of no domain")
        + f" (constitution={config.constitution.name})"
    )


def _subject(subject: Subject, outputs: Outputs, adapters: dict[str, str]) -> SubjectStory:
    document = subject.document
    checks = outputs.checks[subject.name].artifact.records(FeedbackCheck)
    return SubjectStory(
        name=subject.name,
        document=f"{document.name} {document.version}",
        num_principles=len(document.principles),
        control=subject.control,
        judge_accuracy=measure_checks(checks).accuracy if checks else None,
        adapter=adapters.get(subject.name, ""),
    )


Judged = dict[int, list[PolicyComparison]]
"""Seed -> judgements."""


def _judged(outputs: Outputs) -> dict[tuple[str, str], Judged]:
    found: dict[tuple[str, str], Judged] = {}
    for cell in outputs.cells:
        rows = cell.judged.records(PolicyComparison)
        found.setdefault((cell.train, cell.judge), {})[cell.seed] = rows
    return found


def _preferred(judged: Judged) -> Observed:
    """P(policy preferred) of every prompt that was judged, averaged over principles."""
    found: dict[int, dict[str, float]] = {}
    for seed, rows in judged.items():
        found[seed] = {}
        for row in rows:
            prompt, ids = row.comparison.prompt, row.comparison.principle_ids
            if (probs := after_preferred(row, ids)) is not None:
                found[seed][f"{prompt.kind}:{prompt.id}"] = sum(probs) / len(probs)
    return found


def _cell(
    values: Values, bootstrap: Bootstrap, train: str, judge: str, judged: Judged
) -> CellStory:
    reasons = [row.comparison.unjudged for rows in judged.values() for row in rows]
    identical = sum(reason is Unjudged.identical for reason in reasons)
    return CellStory(
        train=train,
        judge=judge,
        win_rate=bootstrap.mean(values.cell(train, judge), bounds=SHARES),
        effect=bootstrap.mean(values.effect(train, judge)),
        num_identical=identical,
        num_unjudged=sum(reason is not None for reason in reasons) - identical,
    )


Margins = dict[int, dict[str, float]]
"""Seed -> test -> log-probability per token of the better response less that of the worse one."""


def _margins(outputs: Outputs) -> dict[tuple[str, str], Margins]:
    found: dict[tuple[str, str], Margins] = {}
    for cell in outputs.cells:
        if cell.likelihoods is not None:
            own = _margins_of(cell.likelihoods.records(LikelihoodTest))
            found.setdefault((cell.train, cell.judge), {})[cell.seed] = own
    return found


def _margins_of(tests: list[LikelihoodTest]) -> dict[str, float]:
    return {test.name: test.better - test.worse for test in tests}


def _shifts(
    outputs: Outputs, margins: dict[tuple[str, str], Margins]
) -> dict[tuple[str, str], Observed]:
    """What training added to the margins of the base."""
    base = {
        (judge, seed): _margins_of(artifact.records(LikelihoodTest))
        for seed, one in outputs.bases.items()
        for judge, artifact in one.likelihoods.items()
    }
    return {
        (train, judge): {
            seed: {name: value - base[judge, seed][name] for name, value in own.items()}
            for seed, own in by_seed.items()
        }
        for (train, judge), by_seed in margins.items()
    }


def _test_cell(
    shifts: Values, margins: Margins, bootstrap: Bootstrap, train: str, judge: str
) -> LikelihoodCellStory:
    right = {
        seed: {name: 0.5 if value == 0 else float(value > 0) for name, value in own.items()}
        for seed, own in margins.items()
    }
    accuracy = bootstrap.mean(right, bounds=SHARES)
    shift = bootstrap.mean(shifts.cell(train, judge))
    effect = bootstrap.mean(shifts.effect(train, judge))
    assert accuracy is not None
    assert shift is not None
    assert effect is not None
    return LikelihoodCellStory(
        train=train, judge=judge, accuracy=accuracy, shift=shift, effect=effect
    )


def _dominance(
    values: Values, shifts: Values, inputs: Inputs, bootstrap: Bootstrap
) -> tuple[DominanceStory, ...]:
    """One for each judge, then the mean over those with a principle."""
    rows = [
        DominanceStory(
            judge=judge,
            judged=bootstrap.mean(values.dominance(judge)),
            tests=bootstrap.mean(shifts.dominance(judge)) if judge in shifts.judges else None,
        )
        for judge in values.judges
    ]
    guided = [one.name for one in inputs.subjects if one.document.principles]
    if len(guided) < 2:
        return tuple(rows)
    tested = [name for name in guided if name in shifts.judges]
    whole = DominanceStory(
        judge="",
        judged=bootstrap.mean(values.mean_dominance(guided)),
        tests=bootstrap.mean(shifts.mean_own_dominance(tested)) if len(tested) > 1 else None,
    )
    return (*rows, whole)
