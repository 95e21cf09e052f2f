"""Stages `responses`, `likelihoods`, `evaluation`, `over_refusal`: every policy on new prompts.

`responses` and `likelihoods` are made per policy, so runs that share a policy share them;
`evaluation` puts them side by side and adds preference-model scores. Those scores come from the
model that PPO was trained against: they show that training worked, not that the policy is better,
and the report says so. `over_refusal` has every policy's responses to the shipped contrast pairs
(`cai.compliance.contrasts`), sampled in `contrast_responses`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.artifacts import Artifact, Work, file_sha256, in_shards
from cai.compliance.classify import RULES_VERSION, classify
from cai.compliance.contrasts import contrast_prompts, contrasts_path
from cai.config import EvaluationConfig, PromptsConfig
from cai.context import RunContext, Stage
from cai.evaluation import mean_logprobs
from cai.feedback.labelled import Labelled, constitution_tests
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.scoring import Row, Scorer
from cai.stages import sampling
from cai.stages.capability import base_likelihoods, capability
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
    base_likelihoods: dict[str, Artifact]
    """`ResponseLikelihood` records of the responses, by policy."""
    capability: dict[str, Artifact]
    """`CapabilityScore` records by policy; empty when nothing is asked."""
    over_refusal: Artifact | None
    """`Evaluated` records of the contrast pairs' prompts; None when none are asked for."""


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


def _classified(response: Response, *, score: float | None) -> Evaluated:
    found = classify(response.prompt.messages[-1].content, response.sample.text)
    return Evaluated(response=response, score=score, compliance=found)


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
        records = [_classified(row, score=value) for row, value in zip(rows, scores, strict=True)]
        work.write_records(records)
        work.counts = {"responses": len(records), "refusals": sum(r.refusal for r in records)}
        if preference_model:
            work.counts["not_scored"] = scores.count(None)

    identity: dict[str, Any] = {
        "model": role_key(model),
        "constitution": context.constitution.digest,
        "compliance_rules": RULES_VERSION,
    }
    inputs = {f"responses_{name}": artifact for name, artifact in responses.items()}
    if preference_model:
        inputs["preference_model"] = preference_model.artifact
        identity["preference_model"] = preference_model.identity()
    return context.run(
        Stage(
            name="evaluation",
            version=4,
            config={"num_tests": config.num_tests},
            inputs=inputs,
            identity=identity,
            expect={"policies": len(responses)},
            run=run,
        )
    )


def _over_refusal(
    context: RunContext,
    *,
    model: ModelConfig,
    config: EvaluationConfig,
    policies: dict[str, Artifact | None],
) -> Artifact | None:
    """Every policy on contrast pairs: prompts that look harmful, and their harmful twins."""
    num = config.num_contrast_pairs
    if num == 0:
        return None
    sha256 = file_sha256(contrasts_path())

    def draw(work: Work) -> None:
        chosen = contrast_prompts(num, seed=context.seed)
        work.write_records(chosen, sampling.EVALUATION)
        work.counts = {"prompts": len(chosen)}

    prompts = context.run(
        Stage(
            name="contrast_prompts",
            version=1,
            config={"num": num},
            inputs={},
            identity={"pairs": sha256},
            expect={"prompts": 2 * num},
            run=draw,
        )
    )
    answered = {
        policy: sampling.responses(
            context,
            policy=policy,
            model=model,
            adapter=adapter,
            config=config.sampling,
            source=prompts,
            num=2 * num,
            name="contrast_responses",
        )
        for policy, adapter in policies.items()
    }

    def run(work: Work) -> None:
        rows = [row for artifact in answered.values() for row in artifact.records(Response)]
        records = [_classified(row, score=None) for row in rows]
        work.write_records(records)
        work.counts = {"responses": len(records), "refusals": sum(r.refusal for r in records)}

    return context.run(
        Stage(
            name="over_refusal",
            version=1,
            config={},
            inputs={f"responses_{name}": artifact for name, artifact in answered.items()},
            identity={"compliance_rules": RULES_VERSION},
            expect={"responses": 2 * num * len(policies)},
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
    base_likely = {
        policy: base_likelihoods(context, model=model, responses=own, num=num)
        for policy, own in answered.items()
    }
    capable = {
        policy: artifact
        for policy, adapter in policies.items()
        if (artifact := capability(context, model=model, adapter=adapter, config=config))
    }
    evaluated = _evaluated(
        context,
        model=model,
        config=config,
        responses=answered,
        preference_model=preference_model,
    )
    return Evaluation(
        responses=answered,
        likelihoods=likely,
        evaluated=evaluated,
        base_likelihoods=base_likely,
        capability=capable,
        over_refusal=_over_refusal(context, model=model, config=config, policies=policies),
    )
