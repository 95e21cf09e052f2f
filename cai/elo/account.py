"""A tournament's chapter of a run's account: its matches read back and rated."""

from __future__ import annotations

from collections.abc import Mapping

from cai.config import Config
from cai.constitution import Constitution, Principle
from cai.elo.story import EloStory, Rated, Resampling, anchor_of, rated_under
from cai.feedback.measures import measure
from cai.feedback_config import EnsembleConfig, FeedbackConfig, MultipleChoiceConfig
from cai.roles import judge_name
from cai.stages.matches import Tournament, criteria_of
from cai.types import FeedbackCheck, PolicyComparison


def elo_story(
    config: Config, constitution: Constitution, tournament: Tournament | None
) -> EloStory | None:
    """Win rates and ratings under every criterion; None without a tournament."""
    if tournament is None:
        return None
    settings = config.evaluation.elo
    asked = {one.id: one for own in criteria_of(settings, constitution).values() for one in own}
    names = (*settings.criteria, *(name for name in asked if name not in settings.criteria))
    criteria = {name: asked[name] for name in names}
    compared = {pair: a.records(PolicyComparison) for pair, a in tournament.matches.items()}
    resampling = Resampling(num=config.evaluation.num_bootstrap, seed=config.seed)
    rated = [
        found
        for name, principle in criteria.items()
        if (found := _rated(name, principle, compared, tournament, config, resampling)) is not None
    ]
    judge = tournament.judge
    return EloStory(
        judge=judge_name(judge.judge.config, judge.judge.model),
        orders=_orders(judge.judge.config),
        supplied_labels=tournament.supplied_labels,
        judge_accuracy=measure(judge.checked.artifact.records(FeedbackCheck)).accuracy,
        judge_source=judge.checked.labelled.source,
        anchor=anchor_of(tournament.players),
        prior=settings.prior,
        rated=tuple(rated),
        not_rated=tuple(name for name in criteria if name not in {one.criterion for one in rated}),
    )


def _rated(
    name: str,
    principle: Principle,
    compared: Mapping[tuple[str, str], list[PolicyComparison]],
    tournament: Tournament,
    config: Config,
    resampling: Resampling,
) -> Rated | None:
    return rated_under(
        name,
        compared,
        players=tournament.players,
        sentence=principle.principle,
        by_constitution=name not in config.evaluation.elo.criteria,
        prior=config.evaluation.elo.prior,
        resampling=resampling,
    )


def _orders(config: FeedbackConfig) -> str:
    """How a judge is shown two responses."""
    match config:
        case EnsembleConfig():
            return "Members that are shown two responses side by side see them as each is set to."
        case MultipleChoiceConfig(both_orders=True):
            return "Every two responses were shown in both orders, and the answers averaged."
        case MultipleChoiceConfig():
            return (
                "Every two responses were shown in one order only (both_orders=false): a liking "
                "for a position is in the ratings."
            )
        case _:
            return "Responses are read one by one, so there is no order to depend on."
