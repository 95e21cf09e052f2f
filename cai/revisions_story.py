"""The chapter on revisions: outcomes and lengths by step, checks and votes where there are any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cai.artifacts import Artifact
from cai.choices import RevisionVote, Until
from cai.config import Config, SLCAIConfig
from cai.critique_story import revisions_tail
from cai.phases.sl_cai import Trained
from cai.revision_records import CHECKS, VOTES, Satisfaction, StepVote, VerdictCheck
from cai.revision_votes_story import VotesStory, votes_story
from cai.roles import judge_name
from cai.satisfaction_story import SatisfactionStory, satisfaction_story
from cai.story import RevisionsStory
from cai.types import RevisionChain

NUM_CHAINS = 4
"""Shown as examples."""


def revisions_story(
    config: Config, trained: Trained, chains: Sequence[RevisionChain]
) -> RevisionsStory:
    """The revisions of a run.

    A chain that ended before a step counts with its last response in the lengths.
    """
    num_steps = max((len(chain.steps) for chain in chains), default=0)
    texts = [[chain.draft.text, *(step.response for step in chain.steps)] for chain in chains]
    taken = [[c.steps[n] for c in chains if n < len(c.steps)] for n in range(num_steps)]
    return RevisionsStory(
        outcomes=tuple(dict(Counter(str(step.outcome) for step in steps)) for steps in taken),
        mean_words=tuple(_mean_words(texts, step) for step in range(num_steps + 1)),
        tail=revisions_tail(chains),
        chains=tuple(chains[:NUM_CHAINS]),
        satisfaction=_satisfaction(config, trained, chains),
        votes=_votes(config, trained.revisions),
    )


def _mean_words(texts: Sequence[Sequence[str]], step: int) -> float:
    words = [len(own[min(step, len(own) - 1)].split()) for own in texts]
    return sum(words) / len(words) if words else 0.0


def _satisfaction(
    config: Config, trained: Trained, chains: Sequence[RevisionChain]
) -> SatisfactionStory | None:
    assert isinstance(config.phase, SLCAIConfig)
    if config.phase.revisions.until is Until.fixed or trained.verdicts is None:
        return None
    return satisfaction_story(
        chains,
        trained.revisions.records(Satisfaction, CHECKS),
        trained.verdicts.records(VerdictCheck),
        config=config.phase.revisions,
        num_bootstrap=config.evaluation.num_bootstrap,
        seed=config.seed,
    )


def _votes(config: Config, artifact: Artifact) -> VotesStory | None:
    assert isinstance(config.phase, SLCAIConfig)
    if config.phase.revisions.vote is RevisionVote.none:
        return None
    return votes_story(
        artifact.records(StepVote, VOTES),
        models=config.phase.critique_models,
        config=config.phase.revisions,
        judge=judge_name(config.feedback, config.phase.feedback_model),
        num_bootstrap=config.evaluation.num_bootstrap,
        seed=config.seed,
    )
