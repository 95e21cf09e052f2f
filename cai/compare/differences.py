"""Metrics of groups, and whether their differences are more than the seed spread.

A difference is called real only when three things hold: Student's interval over seeds (paired by
seed where both groups have the same ones) leaves 0 out, it still does after Holm's correction for
everything that the table tests, and, where the metric is a mean over responses, flipping the signs
of the prompts' differences does as well (where prompts differ, the bootstrapped interval). Less
than three seeds give no verdict, whatever one run's interval says.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import statistics as plain
from collections.abc import Sequence
from dataclasses import dataclass

from cai import statistics
from cai.compare.groups import RunGroup
from cai.compare.responses import Responses, pair
from cai.compare.story import (
    ALPHA,
    Cell,
    Difference,
    MetricRow,
    PromptTest,
    SeedTest,
    Spread,
    Verdict,
)
from cai.statistics import MIN_SEEDS

_SCORE = re.compile(r"eval/.+/score(?:_.+)?")
_OWN_TESTS = re.compile(
    r"(?:feedback|critique|preference_model|dpo|attribution)/.+|eval/.+/likelihood_accuracy"
)
_SHARE = re.compile(r".+(?:rate|accuracy|share|wins|vs_\w+|distinct_\d)")
"""Metrics in [0, 1], whose intervals end there."""
OTHER_SCORES = "scored by different preference models, so the scores have no common scale"
OTHER_RULES = "some of these runs told refusals by other rules, of another version of the program"
OTHER_TESTS = "measured on each constitution's own tests and labels, which differ"
NO_SPREAD = "no seed moves it, so there is no spread over seeds that it could be compared with"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals and p-values over prompts are drawn."""

    num: int
    seed: int


def metric_rows(groups: Sequence[RunGroup], patterns: Sequence[str]) -> tuple[MetricRow, ...]:
    """Every metric of any group; the tested ones first."""
    names = dict.fromkeys(
        name for group in groups for run in group.runs.values() for name in run.metrics
    )
    shown = [name for name in names if not _is_bound(name, names)]
    rows = [
        MetricRow(
            name=name,
            cells=tuple(_cell(group, name) for group in groups),
            tested=any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns),
        )
        for name in shown
    ]
    return tuple(sorted(rows, key=lambda row: not row.tested))


def _is_bound(name: str, names: dict[str, None]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in names for end in ("_low", "_high"))


def _cell(group: RunGroup, name: str) -> Cell | None:
    by_seed = group.metric(name)
    if not by_seed:
        return None
    values = list(by_seed.values())
    interval, spread = None, Spread.none
    if (estimate := statistics.mean_over_seeds(values)) is not None:
        low, high = estimate.low, estimate.high
        if _SHARE.fullmatch(name):
            low, high = max(0.0, low), min(1.0, high)
        interval, spread = (low, high), Spread.seeds
    elif len(values) == 1:
        low, high = group.metric(f"{name}_low"), group.metric(f"{name}_high")
        if low and high:
            (a,), (b,) = low.values(), high.values()
            interval, spread = (a, b), Spread.prompts
    return Cell(value=plain.fmean(values), interval=interval, spread=spread, by_seed=by_seed)


def differences(
    groups: Sequence[RunGroup],
    rows: Sequence[MetricRow],
    responses: dict[int, Responses | None],
    *,
    resampling: Resampling,
) -> tuple[Difference, ...]:
    """Each group against the first, on every tested metric that both have, with verdicts."""
    found = [
        _difference(row.name, group, groups[0], responses, resampling)
        for row in rows
        if row.tested and row.cells[0] is not None
        for group, cell in zip(groups[1:], row.cells[1:], strict=True)
        if cell is not None
    ]
    return tuple(_judged(one) for one in _corrected(found))


def _difference(
    metric: str,
    group: RunGroup,
    baseline: RunGroup,
    responses: dict[int, Responses | None],
    resampling: Resampling,
) -> Difference:
    ours, theirs = group.metric(metric), baseline.metric(metric)
    common = tuple(sorted(ours.keys() & theirs.keys()))
    if len(common) < MIN_SEEDS <= min(len(ours), len(theirs)):
        common = ()
    if common:
        ours, theirs = ({seed: side[seed] for seed in common} for side in (ours, theirs))
    values, others = list(ours.values()), list(theirs.values())
    one = Difference(
        metric=metric,
        group=group.name,
        baseline=baseline.name,
        value=plain.fmean(values) - plain.fmean(others),
        seeds=None,
        prompts=None,
        verdict=Verdict.not_enough_seeds,
    )
    rules = {own.rules for own in responses.values() if own is not None}
    if metric.endswith("/refusal_rate") and len(rules) > 1:
        return dataclasses.replace(one, verdict=Verdict.not_comparable, why=OTHER_RULES)
    if reason := _not_comparable(metric, group, baseline, common):
        return dataclasses.replace(one, verdict=Verdict.not_comparable, why=reason)
    if common and values == others:
        return dataclasses.replace(one, verdict=Verdict.identical)
    seeds = _seed_test(group.metric(metric), baseline.metric(metric), common)
    return dataclasses.replace(
        one,
        seeds=seeds,
        why=NO_SPREAD if seeds is None and min(len(values), len(others)) >= MIN_SEEDS else "",
        prompts=_prompt_test(metric, group, baseline, responses, common, resampling),
    )


def _not_comparable(
    metric: str, group: RunGroup, baseline: RunGroup, common: tuple[int, ...]
) -> str | None:
    if _SCORE.fullmatch(metric):
        pairs = [(group.runs[seed], baseline.runs[seed]) for seed in common]
        stages = [
            (a.stages.get("preference_model"), b.stages.get("preference_model")) for a, b in pairs
        ]
        if not stages or any(a is None or a != b for a, b in stages):
            return OTHER_SCORES
    if _OWN_TESTS.fullmatch(metric):
        documents = {
            run.constitution["digest"] for side in (group, baseline) for run in side.runs.values()
        }
        if len(documents) > 1:
            return OTHER_TESTS
    return None


def _seed_test(
    ours: dict[int, float], theirs: dict[int, float], common: tuple[int, ...]
) -> SeedTest | None:
    paired = len(common) >= MIN_SEEDS
    if paired:
        found = statistics.paired_t_test([ours[s] for s in common], [theirs[s] for s in common])
    else:
        found = statistics.welch_test(list(ours.values()), list(theirs.values()))
    if found is None:
        return None
    return SeedTest(
        difference=found.difference, p_value=found.p_value, p_adjusted=found.p_value, paired=paired
    )


def _prompt_test(
    metric: str,
    group: RunGroup,
    baseline: RunGroup,
    responses: dict[int, Responses | None],
    common: tuple[int, ...],
    resampling: Resampling,
) -> PromptTest | None:
    found = pair(metric, group, baseline, responses, seeds=common)
    if found is None:
        return None
    draws = {"num_resamples": resampling.num, "seed": resampling.seed}
    if not found.paired:
        estimate = statistics.bootstrap_difference(found.values, found.baseline, **draws)
        assert estimate is not None
        return PromptTest(difference=estimate, p_value=None, p_adjusted=None)
    estimate = statistics.paired_bootstrap_difference(found.values, found.baseline, **draws)
    p_value = statistics.paired_permutation_test(found.values, found.baseline, **draws)
    assert estimate is not None
    return PromptTest(difference=estimate, p_value=p_value, p_adjusted=p_value)


def _corrected(found: list[Difference]) -> list[Difference]:
    """Holm over all p-values of a kind, since all of them are looked at."""
    seeds = statistics.holm([one.seeds.p_value for one in found if one.seeds])
    prompts = statistics.holm(
        [one.prompts.p_value for one in found if one.prompts and one.prompts.p_value is not None]
    )
    of_seeds, of_prompts = iter(seeds), iter(prompts)
    corrected = []
    for one in found:
        if one.seeds is not None:
            own = dataclasses.replace(one.seeds, p_adjusted=next(of_seeds))
            one = dataclasses.replace(one, seeds=own)
        if one.prompts is not None and one.prompts.p_value is not None:
            theirs = dataclasses.replace(one.prompts, p_adjusted=next(of_prompts))
            one = dataclasses.replace(one, prompts=theirs)
        corrected.append(one)
    return corrected


def _judged(one: Difference) -> Difference:
    if one.verdict is not Verdict.not_enough_seeds or one.seeds is None:
        return one
    return dataclasses.replace(one, verdict=_verdict(one.seeds, one.prompts))


def _verdict(seeds: SeedTest, prompts: PromptTest | None) -> Verdict:
    if statistics.at_chance(seeds.difference, chance=0):
        return Verdict.inside_seed_spread
    if seeds.p_adjusted >= ALPHA:
        return Verdict.not_after_correction
    if prompts is not None and _inside(prompts):
        return Verdict.inside_prompt_spread
    return Verdict.real


def _inside(prompts: PromptTest) -> bool:
    """Whether prompts alone could make the difference; a bootstrap of very few is too narrow."""
    if prompts.p_adjusted is not None and prompts.p_adjusted >= ALPHA:
        return True
    return statistics.at_chance(prompts.difference, chance=0)
