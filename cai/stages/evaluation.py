"""Stages `responses`, `likelihoods` and `evaluation`: every policy on held-out prompts and tests.

`responses` and `likelihoods` are made per policy, so runs that share a policy share them;
`evaluation` puts them side by side and adds preference-model scores. Those scores come from the
model that PPO was trained against: they show that training worked, not that the policy is better,
and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.artifacts import Artifact, Work, in_shards
from cai.config import EvaluationConfig, PromptsConfig
from cai.context import RunContext, Stage
from cai.evaluation import is_refusal, mean_logprobs
from cai.feedback.labelled import Labelled, constitution_tests
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.scoring import Row, Scorer
from cai.stages import sampling
from cai.stages.preference_model import PreferenceModel, scored_pairs
from cai.types import Evaluated, LikelihoodTest, PreferencePair, PreferencePrediction, Response

PM_TESTS = "pm_tests.jsonl"
TESTS_PER_SHARD = 4
"""Eight sequences per forward pass; part of the stage, as batches decide the last digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation's artifacts."""

    responses: dict[str, Artifact]
    likelihoods: dict[str, Artifact]
    evaluated: Artifact


def likelihoods(
    context: RunContext,
    *,
    policy: str,
    model: ModelConfig,
    adapter: Artifact | None,
    config: EvaluationConfig,
) -> Artifact:
    """How probable a policy finds the better and the worse response of principle tests."""
    tests = constitution_tests(context.constitution, num=config.num_tests, seed=context.seed)

    def run(work: Work) -> None:
        base = context.models.base(model)
        generator = context.models.policy(model, adapter)

        def make(
            chunk: Sequence[Labelled], _advance: Callable[[int], None]
        ) -> list[LikelihoodTest]:
            means = mean_logprobs(
                generator,
                base.encoder,
                conversations=[test.messages for test in chunk for _ in range(2)],
                responses=[text for test in chunk for text in (test.better, test.worse)],
                system=model.system_prompt,
            )
            return [
                LikelihoodTest(
                    name=test.name,
                    policy=policy,
                    better=means[2 * row],
                    worse=means[2 * row + 1],
                )
                for row, test in enumerate(chunk)
            ]

        records = in_shards(
            work,
            tests,
            kind=LikelihoodTest,
            shard_size=TESTS_PER_SHARD,
            make=make,
            unit="tests",
        )
        work.write_records(records)
        work.counts = {"tests": len(records)}

    return context.run(
        Stage(
            name="likelihoods",
            version=3,
            config={"num_tests": config.num_tests},
            inputs={"adapter": adapter} if adapter else {},
            identity={
                "model": role_key(model),
                "constitution": context.constitution.digest,
                "policy": policy,
            },
            expect={"tests": len(tests)},
            run=run,
        )
    )


def _scored_tests(scorer: Scorer, tests: Sequence[Labelled]) -> list[PreferencePrediction]:
    """Principle tests under the preference model, which never saw them; a is the better one."""
    pairs = [
        PreferencePair(
            messages=test.messages,
            response_a=test.better,
            response_b=test.worse,
            prob_a=1.0,
            weight=1.0,
            source="test",
            principle_ids=(test.principle.id,) if test.principle else (),
        )
        for test in tests
    ]
    return scored_pairs(scorer, pairs, [test.name for test in tests])


def _evaluated(
    context: RunContext,
    *,
    model: ModelConfig,
    config: EvaluationConfig,
    responses: dict[str, Artifact],
    preference_model: PreferenceModel | None,
) -> Artifact:
    tests = constitution_tests(context.constitution, num=config.num_tests, seed=context.seed)

    def run(work: Work) -> None:
        rows = [row for artifact in responses.values() for row in artifact.records(Response)]
        scores: list[float | None] = [None] * len(rows)
        if preference_model:
            asked = [Row(messages=r.prompt.messages, response=r.sample.text) for r in rows]
            with preference_model.scorer(context) as scorer:
                scores = scorer.texts(asked)
                work.write_records(_scored_tests(scorer, tests), PM_TESTS)
        records = [
            Evaluated(response=row, score=value, refusal=is_refusal(row.sample.text))
            for row, value in zip(rows, scores, strict=True)
        ]
        work.write_records(records)
        work.counts = {"responses": len(records), "refusals": sum(r.refusal for r in records)}
        if preference_model:
            work.counts["not_scored"] = scores.count(None)

    identity: dict[str, Any] = {
        "model": role_key(model),
        "constitution": context.constitution.digest,
    }
    inputs = {f"responses_{name}": artifact for name, artifact in responses.items()}
    if preference_model:
        inputs["preference_model"] = preference_model.artifact
        identity["preference_model"] = preference_model.identity()
    return context.run(
        Stage(
            name="evaluation",
            version=3,
            config={"num_tests": config.num_tests},
            inputs=inputs,
            identity=identity,
            expect={"policies": len(responses)},
            run=run,
        )
    )


def evaluate(
    context: RunContext,
    *,
    model: ModelConfig,
    config: EvaluationConfig,
    counts: PromptsConfig,
    prompts: Artifact,
    policies: dict[str, Artifact | None],
    preference_model: PreferenceModel | None,
) -> Evaluation:
    """Responses and likelihoods of every policy, then all of them side by side."""
    num = counts.num_eval_red_team + counts.num_eval_helpfulness + counts.num_eval_benign
    answered = {
        policy: sampling.responses(
            context,
            policy=policy,
            model=model,
            adapter=adapter,
            config=config.sampling,
            source=prompts,
            num=num,
        )
        for policy, adapter in policies.items()
    }
    likely = {
        policy: likelihoods(context, policy=policy, model=model, adapter=adapter, config=config)
        for policy, adapter in policies.items()
    }
    evaluated = _evaluated(
        context,
        model=model,
        config=config,
        responses=answered,
        preference_model=preference_model,
    )
    return Evaluation(responses=answered, likelihoods=likely, evaluated=evaluated)
