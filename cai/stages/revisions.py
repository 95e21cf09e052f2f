"""Stage `revisions`: critique-revision chains from drafts (Bai et al. 2022, sec. 3.1).

`records.jsonl` holds the chains; `checks.jsonl` what was checked between their steps where they go
on until satisfied, and `votes.jsonl` what several critique models proposed and voted for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling, RevisionVote, Until
from cai.config import RevisionsConfig
from cai.context import RunContext, Stage
from cai.critique import Reviser, critique_engines
from cai.feedback.base import Feedback
from cai.feedback.build import Surroundings, build, identity
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.prompts import REVIEWER_SYSTEM, revision_wording
from cai.revising import Alone, Chains, Editor, Together
from cai.revision_records import CHECKS, FEEDBACK, VOTES, RevisedDraft
from cai.revisions_config import MAIN, in_order, reviewer_systems
from cai.satisfaction import Checker
from cai.seeds import derive_seed
from cai.stages.comparisons import Judge
from cai.stages.verdicts import verdicts
from cai.types import Response

NAME = "revisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewers:
    """Who critiques, revises, checks and votes."""

    models: Mapping[str, ModelConfig]
    """Critique models by name."""
    judge: Judge | None = None
    """The feedback, measured; None where it decides nothing about the revisions."""
    verdicts: Artifact | None = None
    """`verdict_check`, where the feedback has verdicts on one response."""

    def inputs(self) -> dict[str, Artifact]:
        """What the chains are made from besides the drafts."""
        found = self.judge.inputs() if self.judge else {}
        return found | ({"verdicts": self.verdicts} if self.verdicts else {})

    def identity(self, context: RunContext, config: RevisionsConfig) -> dict[str, Any]:
        """What else decides the chains."""
        main = {"critique_model": role_key(self.models[MAIN])}
        if len(self.models) == 1:
            return main | self._judge(context)
        systems = reviewer_systems(self.models)
        members: dict[str, Any] = {
            name: {"model": role_key(model), "system": systems[name]}
            for name, model in self.models.items()
        }
        if config.vote is RevisionVote.members:
            for name, model in self.models.items():
                members[name]["votes"] = identity(config.vote_method, model)
        return {"critique_models": members} | self._judge(context)

    def _judge(self, context: RunContext) -> dict[str, Any]:
        return {"judge": self.judge.identity(context)} if self.judge else {}


def revisions(
    context: RunContext,
    *,
    reviewers: Reviewers,
    sampling: PrincipleSampling,
    config: RevisionsConfig,
    drafts: Artifact,
    num: int,
) -> Artifact:
    """One chain per draft, with every critique and revision and the principles of its steps."""
    texts_per_chain = 2 * config.num_steps * len(reviewers.models)

    def run(work: Work) -> None:
        maker = _Maker(context=context, reviewers=reviewers, sampling=sampling, config=config)
        revised = in_shards(
            work,
            drafts.records(Response),
            kind=RevisedDraft,
            shard_size=config.revision.shard_size,
            make=maker.chains().revise,
            unit="texts",
            units_per_item=texts_per_chain,
        )
        work.write_records([one.chain for one in revised])
        work.counts = {"chains": len(revised), **_outcomes(revised)}
        if config.until is Until.satisfied:
            checks = [one.satisfaction for one in revised if one.satisfaction]
            work.write_records(checks, CHECKS)
            work.counts |= dict(sorted(Counter(f"end_{one.end}" for one in checks).items()))
        if len(reviewers.models) > 1:
            votes = [vote for one in revised for vote in one.votes]
            work.write_records(votes, VOTES)
            work.counts["votes"] = sum(len(vote.ballots) for vote in votes)

    return context.run(
        Stage(
            name=NAME,
            version=2,
            config=config.settings(),
            inputs={"drafts": drafts, **reviewers.inputs()},
            identity={
                **reviewers.identity(context, config),
                "constitution": context.constitution.digest,
                "principles": str(sampling),
                "wording": digest_of(revision_wording()),
            },
            expect={"chains": num, "texts": num * texts_per_chain},
            run=run,
        )
    )


def _outcomes(revised: Sequence[RevisedDraft]) -> dict[str, int]:
    counts = Counter(str(step.outcome) for one in revised for step in one.chain.steps)
    return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """Loads models and puts them together."""

    context: RunContext
    reviewers: Reviewers
    sampling: PrincipleSampling
    config: RevisionsConfig

    @property
    def seed(self) -> int:
        """The stage's."""
        return derive_seed(self.context.seed, NAME)

    def chains(self) -> Chains:
        """What makes the chains."""
        return Chains(
            editor=self._editor(), num_steps=self.config.num_steps, checker=self._checker()
        )

    def _editor(self) -> Editor:
        names = in_order(self.reviewers.models)
        systems = reviewer_systems(self.reviewers.models)
        members = {name: self._reviser(name, systems[name] or REVIEWER_SYSTEM) for name in names}
        if len(members) == 1:
            return Alone(reviser=members[MAIN])
        return Together(
            members=members, voters=self._voters(names), keep_candidate=self.config.keep_candidate
        )

    def _reviser(self, name: str, system: str) -> Reviser:
        engines = critique_engines(self.context.models, self.reviewers.models[name])
        return Reviser(
            generator=engines.generator,
            critic=engines.critic,
            encoder=engines.encoder,
            constitution=self.context.constitution,
            sampling=self.sampling,
            config=self.config,
            seed=self.seed if name == MAIN else derive_seed(self.seed, "member", name),
            system=system,
        )

    def _voters(self, names: Sequence[str]) -> dict[str, Feedback]:
        if self.config.vote is RevisionVote.feedback:
            assert self.reviewers.judge is not None
            return {FEEDBACK: self.reviewers.judge.feedback(self.context, NAME)}
        return {name: self._member_vote(name) for name in names}

    def _member_vote(self, name: str) -> Feedback:
        around = Surroundings(
            models=self.context.models,
            model=self.reviewers.models[name],
            constitution=self.context.constitution,
            sampling=self.sampling,
            fitted={},
        )
        return Feedback(
            method=build(self.config.vote_method, around),
            constitution=self.context.constitution,
            sampling=self.sampling,
            seed=derive_seed(self.seed, "vote", name),
        )

    def _checker(self) -> Checker | None:
        if self.config.until is Until.fixed:
            return None
        judge, checked = self.reviewers.judge, self.reviewers.verdicts
        assert judge is not None
        assert checked is not None
        return Checker(
            verdicts=verdicts(self.context, judge=judge, checked=checked, name=NAME),
            constitution=self.context.constitution,
            sampling=self.sampling,
            config=self.config,
            seed=self.seed,
        )
