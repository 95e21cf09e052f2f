"""Stage `prompt_embeddings`: where a run's prompts lie for the frozen base of its policy."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import numpy as np

from cai.artifacts import Artifact, Work, in_shards
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.features import Reader, trunk_of
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.stages.sampling import EVALUATION, TRAIN
from cai.trace.nearness import prompt_text
from cai.types import Prompt, PromptEmbedding

PROMPTS_PER_SHARD = 32
MAX_TOKENS = 512
"""The beginning of a prompt that is read; part of the stage."""


def middle_reader(context: RunContext, model: ModelConfig) -> Reader:
    """What reads the middle one of the base's layers.

    Raises:
        UserError: when the model is not built of layers that can be read.
    """
    base = context.models.base(model)
    layer = max(1, base.model.config.get_text_config().num_hidden_layers // 2)
    try:
        trunk = trunk_of(base.model, layer)
    except ValueError as error:
        raise UserError(
            f"phase=trace cannot read {base.config.name}, the base of the run: {error}"
        ) from error
    return Reader(trunk=trunk, encoder=base.encoder, layers=(layer,), max_length=MAX_TOKENS)


def prompt_embeddings(
    context: RunContext, *, model: ModelConfig, prompts: Artifact, num: int
) -> Artifact:
    """Mean direction of the middle layer's states for every prompt, training ones first."""

    def run(work: Work) -> None:
        reader = middle_reader(context, model)

        def make(chunk: Sequence[Prompt], _advance: Callable[[int], None]) -> list[PromptEmbedding]:
            return [
                PromptEmbedding(
                    prompt_id=prompt.id,
                    kind=prompt.kind,
                    vector=_packed(reader.read_text(prompt_text(prompt)).numpy()),
                )
                for prompt in chunk
            ]

        records = in_shards(
            work,
            prompts.records(Prompt, TRAIN) + prompts.records(Prompt, EVALUATION),
            kind=PromptEmbedding,
            shard_size=PROMPTS_PER_SHARD,
            make=make,
            unit="prompts",
        )
        work.write_records(records)
        work.counts = {"prompts": len(records)}

    return context.run(
        Stage(
            name="prompt_embeddings",
            version=1,
            config={"max_tokens": MAX_TOKENS},
            inputs={"prompts": prompts},
            identity={"model": role_key(model)},
            expect={"prompts": num},
            run=run,
        )
    )


def _packed(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")


def vectors(records: Sequence[PromptEmbedding]) -> np.ndarray:
    """(n, d) float64."""
    rows = [np.frombuffer(base64.b64decode(record.vector), dtype="<f4") for record in records]
    return np.stack(rows).astype(np.float64)
