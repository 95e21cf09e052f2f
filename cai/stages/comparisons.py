"""Stages `feedback_check` and `comparisons`: the feedback model measured, then used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from cai.artifacts import Artifact, Work, digest_of, in_shards
from cai.choices import PrincipleSampling
from cai.config import ComparisonsConfig, ModelConfig
from cai.context import RunContext, Stage
from cai.feedback import FeedbackModel, Pair, principle_tests
from cai.models import role_key
from cai.prompts import comparison_wording
from cai.seeds import derive_seed
from cai.types import Comparison, FeedbackCheck, Message, Prompt, PromptKind, Response, Split


def _feedback_model(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    config: ComparisonsConfig,
    name: str,
) -> FeedbackModel:
    base = context.models.base(model)
    return FeedbackModel(
        generator=base.generator(),
        encoder=base.encoder,
        constitution=context.constitution,
        sampling=sampling,
        config=config,
        seed=derive_seed(context.seed, name),
    )


def _identity(context: RunContext, model: ModelConfig, sampling: PrincipleSampling) -> dict:
    return {
        "feedback_model": role_key(model),
        "constitution": context.constitution.digest,
        "principles": str(sampling),
        "wording": digest_of(comparison_wording()),
    }


def feedback_check(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    config: ComparisonsConfig,
) -> Artifact:
    """The feedback model's labels for the constitution's own tests; a is the better response."""
    tests = principle_tests(context.constitution, num=config.num_checks, seed=context.seed)

    def run(work: Work) -> None:
        judge = _feedback_model(
            context, model=model, sampling=sampling, config=config, name="feedback_check"
        )

        def make(chunk: Sequence, _advance: Callable[[int], None]) -> list[FeedbackCheck]:
            pairs = [
                Pair(
                    prompt=Prompt(
                        id=f"{principle.id}-{index}",
                        kind=PromptKind.red_team,
                        category=principle.id,
                        source=context.constitution.name,
                        split=Split.evaluation,
                        messages=(Message(role="user", content=test.prompt),),
                    ),
                    response_a=test.better,
                    response_b=test.worse,
                    principle=principle,
                )
                for principle, index, test in chunk
            ]
            return [
                FeedbackCheck(
                    principle_id=principle.id,
                    test_index=index,
                    comparison=comparison,
                    better_is_longer=len(test.better) > len(test.worse),
                )
                for (principle, index, test), comparison in zip(
                    chunk, judge.compare(pairs), strict=True
                )
            ]

        records = in_shards(
            work,
            tests,
            kind=FeedbackCheck,
            shard_size=config.shard_size,
            make=make,
            unit="tests",
        )
        work.write_records(records)
        work.counts = {"tests": len(records)}

    return context.run(
        Stage(
            name="feedback_check",
            version=1,
            config=config,
            inputs={},
            identity=_identity(context, model, sampling),
            expect={"tests": len(tests)},
            run=run,
        )
    )


def comparisons(
    context: RunContext,
    *,
    model: ModelConfig,
    sampling: PrincipleSampling,
    config: ComparisonsConfig,
    pairs: Artifact,
    num: int,
) -> Artifact:
    """AI comparisons of SL-CAI samples, each under one drawn principle."""

    def run(work: Work) -> None:
        judge = _feedback_model(
            context, model=model, sampling=sampling, config=config, name="comparisons"
        )
        by_prompt: dict[str, list[Response]] = defaultdict(list)
        for response in pairs.records(Response):
            by_prompt[response.prompt.id].append(response)
        items = [
            Pair(
                prompt=sampled[k].prompt,
                response_a=sampled[k].sample.text,
                response_b=sampled[k + 1].sample.text,
                principle=judge.draw(sampled[k].prompt, k // 2),
            )
            for sampled in by_prompt.values()
            for k in range(0, len(sampled), 2)
        ]
        records = in_shards(
            work,
            items,
            kind=Comparison,
            shard_size=config.shard_size,
            make=lambda chunk, _advance: judge.compare(chunk),
            unit="pairs",
        )
        work.write_records(records)
        unjudged = Counter(str(r.unjudged) for r in records if r.unjudged)
        work.counts = {
            "pairs": len(records),
            "judged": sum(r.prob_a is not None for r in records),
            **dict(sorted(unjudged.items())),
        }

    return context.run(
        Stage(
            name="comparisons",
            version=1,
            config=config,
            inputs={"pairs": pairs},
            identity=_identity(context, model, sampling),
            expect={"pairs": num},
            run=run,
        )
    )
