"""Stage `matches`: a judge compares two policies' responses to the same held-out prompts.

One artifact for each pair of policies, made of both policies' responses and the judge, so runs that
share all of these share the matches. A prompt's two responses are judged under every criterion that
its kind has, in one batch; judges that show two responses side by side do so in both orders
(`both_orders`). One and the same response is a tie.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cai.artifacts import Artifact, Work, in_shards
from cai.constitution import Constitution, Principle
from cai.context import RunContext, Stage
from cai.documents import derive_forms
from cai.evaluation_config import CriterionConfig, EloConfig
from cai.feedback.base import Feedback, Pair
from cai.feedback.measures import count_unjudged
from cai.stages.comparisons import Checked, Judge
from cai.types import PolicyComparison, PromptKind, Response

PAIRS_PER_SHARD = 4
"""Part of the stage: a shard is one batch, under all criteria."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchJudge:
    """Who judges matches."""

    judge: Judge
    """Measured."""
    checked: Checked
    """The measurement, on labelled pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tournament:
    """A round-robin of policies."""

    players: tuple[str, ...]
    """Names of the policies, the least trained first."""
    matches: Mapping[tuple[str, str], Artifact]
    """`PolicyComparison` records by the names of `before` and `after`; records have the names that
    the policies have in their own runs."""
    judge: MatchJudge
    supplied_labels: bool
    """Whether a policy was trained on this judge's labels."""


def criterion_principle(name: str, criterion: CriterionConfig) -> Principle:
    """A criterion in the shape that judges know."""
    forms = dataclasses.asdict(derive_forms(criterion.sentence)) | {"compare": criterion.compare}
    return Principle(
        id=name,
        principle=criterion.sentence,
        **forms,
        scope=(),
        weight=1.0,
        source="evaluation.elo.criteria",
        tests=(),
        document="",
    )


def criteria_of(
    config: EloConfig, constitution: Constitution
) -> dict[PromptKind, tuple[Principle, ...]]:
    """What the responses to each kind of prompt are compared under; kinds without any left out."""
    found: dict[PromptKind, tuple[Principle, ...]] = {}
    for kind in PromptKind:
        own = [criterion_principle(n, c) for n, c in config.criteria.items() if kind in c.kinds]
        if config.by_principle and kind is PromptKind.red_team:
            taken = {principle.id for principle in own}
            own += [one for one in constitution.principles if one.id not in taken]
        if own:
            found[kind] = tuple(own)
    return found


def pairs_of(
    before: Sequence[Response],
    after: Sequence[Response],
    *,
    criteria: Mapping[PromptKind, tuple[Principle, ...]],
    num: int,
) -> list[Pair]:
    """Both policies' responses to the first prompts of each kind; a is the later policy's.

    Args:
        before: Responses to held-out prompts.
        after: Another policy's, to the same prompts in the same order.
        criteria: By kind of prompt; other kinds are left out.
        num: At most so many prompts of each kind.
    """
    pairs = []
    for kind, principles in criteria.items():
        asked = [[r for r in rows if r.prompt.kind is kind] for rows in (before, after)]
        pairs += [
            Pair(
                prompt=later.prompt,
                response_a=later.sample.text,
                response_b=earlier.sample.text,
                principles=principles,
            )
            for earlier, later in zip(asked[0][:num], asked[1][:num], strict=True)
        ]
    return pairs


def play(
    feedback: Feedback, pairs: Sequence[Pair], *, before: str, after: str
) -> list[PolicyComparison]:
    """The judge's preferences."""
    return [
        PolicyComparison(before=before, after=after, comparison=comparison)
        for comparison in feedback.compare(pairs)
    ]


def tournament(
    context: RunContext,
    *,
    judge: MatchJudge,
    supplied_labels: bool,
    players: Mapping[str, Artifact],
    config: EloConfig,
    counts: Mapping[PromptKind, int],
) -> Tournament | None:
    """Every policy against every other; None when none is asked for.

    Args:
        context: The run.
        judge: Who judges.
        supplied_labels: As in `Tournament`.
        players: Responses to the same held-out prompts, by policy, the least trained first.
        config: How many prompts, and the criteria.
        counts: How many held-out prompts of each kind there are.
    """
    if config.num_prompts == 0 or len(players) < 2:
        return None
    matches = {
        (before, after): _matches(
            context,
            judge=judge.judge,
            before=players[before],
            after=players[after],
            config=config,
            counts=counts,
        )
        for before, after in itertools.combinations(players, 2)
    }
    return Tournament(
        players=tuple(players),
        matches=matches,
        judge=judge,
        supplied_labels=supplied_labels,
    )


def _matches(
    context: RunContext,
    *,
    judge: Judge,
    before: Artifact,
    after: Artifact,
    config: EloConfig,
    counts: Mapping[PromptKind, int],
) -> Artifact:
    criteria = criteria_of(config, context.constitution)

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "matches")
        earlier, later = before.records(Response), after.records(Response)
        records = in_shards(
            work,
            pairs_of(earlier, later, criteria=criteria, num=config.num_prompts),
            kind=PolicyComparison,
            shard_size=PAIRS_PER_SHARD,
            make=lambda chunk, _advance: play(
                feedback, chunk, before=earlier[0].policy, after=later[0].policy
            ),
            unit="matches",
        )
        work.write_records(records)
        work.counts = {
            "matches": len(records),
            **count_unjudged([record.comparison for record in records]),
        }

    num = {kind: min(config.num_prompts, counts[kind]) for kind in criteria}
    return context.run(
        Stage(
            name="matches",
            version=1,
            config={"num_prompts": config.num_prompts},
            inputs={"before": before, "after": after, **judge.inputs()},
            identity=judge.identity(context)
            | {
                "criteria": {
                    str(kind): [[one.id, one.principle, one.compare] for one in principles]
                    for kind, principles in criteria.items()
                }
            },
            expect={
                "matches": sum(num.values()),
                "questions": sum(num[kind] * len(criteria[kind]) for kind in criteria),
            },
            run=run,
        )
    )
