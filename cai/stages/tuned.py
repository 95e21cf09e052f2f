"""Stages `feedback_features` and `tuned_feedback`: the probe of tuned feedback, trained.

The features of the labelled comparisons depend on the model alone, so every constitution, every
seed and every run shares them; only the constitution's tests are read anew.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from cai import ranks
from cai.artifacts import Artifact, Work, in_shards
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.build import reader_of
from cai.feedback.features import Asked, Reader
from cai.feedback.fit import Examples, fit
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.labelled import GENERAL_PRINCIPLE, Labelled, constitution_tests
from cai.feedback.shipped import training_comparisons
from cai.feedback.tuned import pair_key
from cai.feedback_config import EnsembleConfig, FeedbackConfig, TunedConfig
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.types import Reading

PAIRS_PER_SHARD = 32
"""Labelled pairs per shard; part of the stage."""


def fitted(
    context: RunContext, *, feedback: FeedbackConfig, model: ModelConfig
) -> dict[str, Artifact]:
    """What the run's feedback has to be trained to, by member name; "" outside an ensemble."""
    members = feedback.members if isinstance(feedback, EnsembleConfig) else {"": feedback}
    return {
        name: _tuned(context, config=config, model=config.model or model)
        for name, config in sorted(members.items())
        if isinstance(config, TunedConfig)
    }


def _features(
    context: RunContext, *, config: TunedConfig, model: ModelConfig, path: str
) -> Artifact:
    """Features of labelled comparisons."""
    comparisons = training_comparisons(path, num=config.max_comparisons)

    def run(work: Work) -> None:
        records = _read(work, reader_of(context.models.base(model), config), comparisons.pairs)
        work.write_records(records)
        work.counts = {"pairs": len(records)}

    unseeded = dataclasses.replace(context, seed=0)
    return unseeded.run(
        Stage(
            name="feedback_features",
            version=3,
            config={**_reading(config), "max_comparisons": config.max_comparisons},
            inputs={},
            identity={"model": role_key(model), **comparisons.identity},
            expect={"pairs": len(comparisons.pairs)},
            run=run,
        )
    )


def _reading(config: TunedConfig) -> dict[str, object]:
    return {"depths": config.depths, "max_length": config.max_length}


def _tuned(context: RunContext, *, config: TunedConfig, model: ModelConfig) -> Artifact:
    """The trained probe, by cross-validation."""
    tests = constitution_tests(context.constitution, num=None, seed=context.seed)
    if not tests and config.comparisons is None:
        raise UserError(
            f"feedback=tuned has nothing to be trained on: {context.constitution.name} has no "
            "tests, and feedback.comparisons is null. Type feedback.comparisons=shipped, or name a "
            "file"
        )
    inputs = {}
    if config.comparisons is not None:
        inputs["features"] = _features(context, config=config, model=model, path=config.comparisons)

    def run(work: Work) -> None:
        readings = _read(work, reader_of(context.models.base(model), config), tests)
        num_tests = len(readings)
        for artifact in inputs.values():
            readings += artifact.records(Reading)
        trained = fit(_examples(readings, num_tests=num_tests), config)
        if ranks.is_first():
            trained.probe.save(work.folder)
        work.write_json("chosen.json", list(trained.comparison_weights))
        work.counts = {"pairs": len(readings), "tests": num_tests}

    return context.run(
        Stage(
            name="tuned_feedback",
            version=3,
            config={
                "num_folds": config.num_folds,
                "comparison_weights": config.comparison_weights,
                "penalty": config.penalty,
                "by_principle": config.by_principle,
                **_reading(config),
            },
            inputs=inputs,
            identity={"model": role_key(model), "constitution": context.constitution.digest},
            expect={"tests": len(tests)},
            run=run,
        )
    )


def _read(work: Work, reader: Reader, pairs: Sequence[Labelled]) -> list[Reading]:
    """Features of every pair, shard by shard, the shortest first, so that little is padding."""
    texts = functools.cache(reader.read_text)

    def make(chunk: Sequence[Labelled], _advance: Callable[[int], None]) -> list[Reading]:
        pairs = [
            (shown_turns(pair.messages), shown(pair.better), shown(pair.worse)) for pair in chunk
        ]
        questions = [(pair.principle or GENERAL_PRINCIPLE).compare for pair in chunk]
        features = reader.read(
            [
                Asked(messages=messages, response=text, question=question)
                for (messages, *responses), question in zip(pairs, questions, strict=True)
                for text in responses
            ]
        )
        return [
            Reading(
                name=pair.name,
                key=pair_key(*shown_pair),
                group=pair.messages[0].content,
                turns=pair.turns,
                difference=_packed(features[2 * row] - features[2 * row + 1]),
                principle=_packed(texts(questions[row])),
            )
            for row, (pair, shown_pair) in enumerate(zip(chunk, pairs, strict=True))
        ]

    return in_shards(
        work,
        sorted(pairs, key=_length),
        kind=Reading,
        shard_size=PAIRS_PER_SHARD,
        make=make,
        unit="pairs",
    )


def _length(pair: Labelled) -> tuple[int, str]:
    texts = [*(message.content for message in pair.messages), pair.better, pair.worse]
    return sum(map(len, texts)), pair.name


def _packed(row: torch.Tensor) -> str:
    """Little-endian half precision as base64."""
    return base64.b64encode(row.numpy().astype("<f2").tobytes()).decode("ascii")


def _unpacked(texts: Sequence[str]) -> torch.Tensor:
    rows = [np.frombuffer(base64.b64decode(text), dtype="<f2") for text in texts]
    return torch.from_numpy(np.stack(rows).astype(np.float64))


def _examples(readings: Sequence[Reading], *, num_tests: int) -> Examples:
    is_test = torch.arange(len(readings)) < num_tests
    return Examples(
        differences=_unpacked([reading.difference for reading in readings]),
        principles=_unpacked([reading.principle for reading in readings]),
        is_test=is_test,
        is_general=~is_test & ~torch.tensor([reading.turns for reading in readings]),
        keys=[reading.key for reading in readings],
        groups=[reading.group for reading in readings],
    )
