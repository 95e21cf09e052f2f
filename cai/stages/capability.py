"""Stages `capability`, what a policy still can, and `base_likelihoods`, how it looks to the base.

Both are made per policy, so runs that share a policy or its responses share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai.artifacts import Artifact, Work, file_sha256, in_shards
from cai.capability import (
    QUESTIONS,
    TEXTS,
    CapabilityItem,
    CapabilityScore,
    capability_items,
    data_path,
)
from cai.collapse import ResponseLikelihood
from cai.config import EvaluationConfig
from cai.context import RunContext, Stage
from cai.evaluation import mean_logprobs
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.types import Message, Response

SHARD_SIZE = 8
"""Items per forward pass, part of the stage as batches decide the last digits."""


def capability(
    context: RunContext, *, model: ModelConfig, adapter: Artifact | None, config: EvaluationConfig
) -> Artifact | None:
    """How likely a policy finds options of questions and held-out texts; None without any."""
    num_questions, num_texts = config.num_capability_questions, config.num_capability_texts
    items = capability_items(num_questions=num_questions, num_texts=num_texts)
    if not items:
        return None

    def run(work: Work) -> None:
        base = context.models.base(model)
        policy = context.models.policy(model, adapter)

        def make(
            chunk: Sequence[CapabilityItem], _advance: Callable[[int], None]
        ) -> list[CapabilityScore]:
            means = iter(
                mean_logprobs(
                    policy,
                    base.encoder,
                    conversations=[
                        [Message(role="user", content=item.prompt)]
                        for item in chunk
                        for _ in item.responses
                    ],
                    responses=[text for item in chunk for text in item.responses],
                    system=model.system_prompt,
                )
            )
            return [
                CapabilityScore(
                    id=item.id,
                    mean_logprobs=tuple(next(means) for _ in item.responses),
                    answer=item.answer,
                )
                for item in chunk
            ]

        records = in_shards(
            work, items, kind=CapabilityScore, shard_size=SHARD_SIZE, make=make, unit="items"
        )
        work.write_records(records)
        work.counts = {"items": len(records)}

    return context.run(
        Stage(
            name="capability",
            version=1,
            config={"num_questions": num_questions, "num_texts": num_texts},
            inputs={"adapter": adapter} if adapter else {},
            identity={
                "model": role_key(model),
                "questions": file_sha256(data_path(QUESTIONS)),
                "texts": file_sha256(data_path(TEXTS)),
            },
            expect={"items": len(items)},
            run=run,
        )
    )


def base_likelihoods(
    context: RunContext, *, model: ModelConfig, responses: Artifact, num: int
) -> Artifact:
    """How likely the frozen base finds each response of a policy.

    Args:
        context: The run.
        model: The policy's base.
        responses: `Response` records.
        num: How many there are, for a plan.
    """

    def run(work: Work) -> None:
        base = context.models.base(model)
        frozen = context.models.policy(model, None)

        def make(
            chunk: Sequence[Response], _advance: Callable[[int], None]
        ) -> list[ResponseLikelihood]:
            said = [row for row in chunk if row.sample.text]
            means = iter(
                mean_logprobs(
                    frozen,
                    base.encoder,
                    conversations=[row.prompt.messages for row in said],
                    responses=[row.sample.text for row in said],
                    finished=[row.sample.finished for row in said],
                    system=model.system_prompt,
                )
                if said
                else ()
            )
            return [
                ResponseLikelihood(
                    prompt_id=row.prompt.id,
                    kind=str(row.prompt.kind),
                    mean_logprob=next(means) if row.sample.text else None,
                )
                for row in chunk
            ]

        records = in_shards(
            work,
            responses.records(Response),
            kind=ResponseLikelihood,
            shard_size=SHARD_SIZE,
            make=make,
            unit="responses",
        )
        work.write_records(records)
        work.counts = {"responses": len(records)}

    return context.run(
        Stage(
            name="base_likelihoods",
            version=2,
            config={},
            inputs={"responses": responses},
            identity={"model": role_key(model)},
            expect={"responses": num},
            run=run,
        )
    )
