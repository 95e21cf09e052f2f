"""Stage `revisions`: critique-revision chains from drafts (Bai et al. 2022, sec. 3.1)."""

from __future__ import annotations

from collections import Counter

from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling
from cai.config import RevisionsConfig
from cai.context import RunContext, Stage
from cai.critique import Reviser
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.prompts import revision_wording
from cai.seeds import derive_seed
from cai.types import Response, RevisionChain


def revisions(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    config: RevisionsConfig,
    drafts: Artifact,
    num: int,
) -> Artifact:
    """One chain per draft, with every critique and revision and the principles drawn."""
    texts_per_chain = 2 * config.num_revisions

    def run(work: Work) -> None:
        base = context.models.base(model)
        reviser = Reviser(
            generator=base.generator(),
            encoder=base.encoder,
            constitution=context.constitution,
            sampling=sampling,
            config=config,
            seed=derive_seed(context.seed, "revisions"),
        )
        chains = in_shards(
            work,
            drafts.records(Response),
            kind=RevisionChain,
            shard_size=config.revision.shard_size,
            make=reviser.revise,
            unit="texts",
            units_per_item=texts_per_chain,
        )
        work.write_records(chains)
        outcomes = Counter(str(step.outcome) for chain in chains for step in chain.steps)
        work.counts = {"chains": len(chains), **dict(sorted(outcomes.items()))}

    return context.run(
        Stage(
            name="revisions",
            version=2,
            config=config,
            inputs={"drafts": drafts},
            identity={
                "critique_model": role_key(model),
                "constitution": context.constitution.digest,
                "principles": str(sampling),
                "wording": digest_of(revision_wording()),
            },
            expect={"chains": num, "texts": num * texts_per_chain},
            run=run,
        )
    )
