"""Stages that draw prompts and sample responses to them.

`prompts` draws what the run works on; `drafts` and `helpfulness` sample the base, or the policy
that phase 1 begins with, on training prompts (Bai et al. 2022, sec. 3.1), `pairs` the SL-CAI policy
(sec. 4.1), `samples` any policy on training prompts and `responses` on held-out ones, `audit_pairs`
the base on prompts of every kind. Every row has its own random stream, derived from the seed, the
stage, the prompt and the row's number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai import data
from cai.artifacts import Artifact, Work, in_shards
from cai.config import DataConfig, HelpfulnessConfig, PairsConfig, PromptsConfig, SamplingConfig
from cai.context import RunContext, Stage
from cai.critique import to_sample
from cai.model_config import ModelConfig
from cai.models import role_key
from cai.seeds import derive_seed
from cai.stages.start import Start
from cai.types import Prompt, PromptKind, Response, Sample, Split

TRAIN = "train.jsonl"
EVALUATION = "evaluation.jsonl"


def prompts(
    context: RunContext, *, config: PromptsConfig, sources: DataConfig, domain: str | None
) -> Artifact:
    """The run's prompts: `train.jsonl` (red-team, helpfulness) and `evaluation.jsonl`."""
    counts = {
        (Split.train, PromptKind.red_team): config.num_red_team,
        (Split.train, PromptKind.helpfulness): config.num_helpfulness,
        (Split.evaluation, PromptKind.red_team): config.num_eval_red_team,
        (Split.evaluation, PromptKind.helpfulness): config.num_eval_helpfulness,
        (Split.evaluation, PromptKind.benign): config.num_eval_benign,
    }
    by_kind = {
        PromptKind.red_team: sources.red_team,
        PromptKind.helpfulness: sources.helpfulness,
        PromptKind.benign: sources.benign,
    }

    def run(work: Work) -> None:
        pools = {
            kind: data.load_prompts(source, kind=kind, evaluation_frac=sources.evaluation_frac)
            for kind, source in by_kind.items()
        }
        own = data.load_domain(domain, evaluation_frac=sources.evaluation_frac) if domain else []
        chosen: dict[Split, list[Prompt]] = {split: [] for split in Split}
        for (split, kind), num in counts.items():
            chosen[split] += data.select(
                pools[kind],
                split,
                num,
                seed=context.seed,
                domain=own,
                domain_frac=sources.domain_frac if domain else 0.0,
            )
        work.write_records(chosen[Split.train], TRAIN)
        work.write_records(chosen[Split.evaluation], EVALUATION)
        everything = chosen[Split.train] + chosen[Split.evaluation]
        ids = {prompt.id for prompt in own}
        work.counts = {
            "prompts": len(everything),
            "domain": sum(prompt.id in ids for prompt in everything),
        }

    hashes = {
        str(kind): data.source_digest(source, setting=f"data.{kind}")
        for kind, source in by_kind.items()
    }
    return context.run(
        Stage(
            name="prompts",
            version=1,
            config={
                "counts": dataclasses.asdict(config),
                "sources": {str(k): dataclasses.asdict(source) for k, source in by_kind.items()},
                "domain": domain,
                "domain_frac": sources.domain_frac,
                "evaluation_frac": sources.evaluation_frac,
            },
            inputs={},
            identity={"sources": hashes, "domain": data.domain_digest(domain) if domain else None},
            expect={"prompts": sum(counts.values())},
            run=run,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One response to be sampled."""

    prompt: Prompt
    index: int


def _sampling_stage(
    context: RunContext,
    *,
    name: str,
    policy: str,
    model: ModelConfig,
    adapter: Artifact | None,
    config: SamplingConfig,
    source: Artifact,
    choose: Callable[[], Sequence[Prompt]],
    num_prompts: int,
    per_prompt: int = 1,
    chosen: dict[str, int] | None = None,
    folder: str | None = None,
) -> Artifact:
    """Sample `per_prompt` responses to each chosen prompt of a `prompts` artifact.

    `chosen` is for the digest: what decides the choice where it is not all prompts of a kind.
    `folder` says where the adapter is in its artifact; None: where the trained one is.
    """

    def run(work: Work) -> None:
        requests = [
            _Request(prompt=prompt, index=index)
            for prompt in choose()
            for index in range(per_prompt)
        ]
        base = context.models.base(model)
        generator = context.models.policy(model, adapter, folder=folder)

        def make(chunk: Sequence[_Request], _advance: Callable[[int], None]) -> list[Response]:
            ids = [base.prompt_ids(request.prompt.messages) for request in chunk]
            fits = [generator.fits(row, config.max_new_tokens) for row in ids]
            seeds = [derive_seed(context.seed, name, policy, r.prompt.id, r.index) for r in chunk]
            sampled = iter(
                generator.sample(
                    [row for row, fit in zip(ids, fits, strict=True) if fit],
                    seeds=[seed for seed, fit in zip(seeds, fits, strict=True) if fit],
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                )
            )
            empty = Sample(text="", num_tokens=0, logprob=0.0, finished=False, seed=0)
            return [
                Response(
                    prompt=request.prompt,
                    policy=policy,
                    index=request.index,
                    sample=to_sample(base.encoder, next(sampled), seed) if fit else empty,
                )
                for request, seed, fit in zip(chunk, seeds, fits, strict=True)
            ]

        records = in_shards(
            work,
            requests,
            kind=Response,
            shard_size=config.shard_size,
            make=make,
            unit="responses",
        )
        work.write_records(records)
        work.counts = {
            "responses": len(records),
            "ended": sum(r.sample.finished for r in records),
            "empty": sum(not r.sample.text for r in records),
            "prompt_too_long": sum(r.sample.num_tokens == 0 for r in records),
        }

    inputs = {"prompts": source} | ({"adapter": adapter} if adapter else {})
    return context.run(
        Stage(
            name=name,
            version=1,
            config={"sampling": dataclasses.asdict(config), "per_prompt": per_prompt}
            | (chosen or {})
            | ({"folder": folder} if folder else {}),
            inputs=inputs,
            identity={"model": role_key(model), "policy": policy},
            expect={"responses": num_prompts * per_prompt},
            run=run,
        )
    )


def training_prompts(source: Artifact, kind: PromptKind) -> list[Prompt]:
    """Training prompts of one kind."""
    return [prompt for prompt in source.records(Prompt, TRAIN) if prompt.kind is kind]


def drafts(
    context: RunContext,
    *,
    model: ModelConfig,
    start: Start | None,
    config: SamplingConfig,
    source: Artifact,
    num: int,
) -> Artifact:
    """First responses to red-team prompts, by the base or the policy that phase 1 begins with."""
    return _sampling_stage(
        context,
        name="drafts",
        policy=start.name if start else "base",
        model=model,
        adapter=start.adapter if start else None,
        config=config,
        source=source,
        choose=lambda: training_prompts(source, PromptKind.red_team),
        num_prompts=num,
    )


def helpfulness(
    context: RunContext,
    *,
    model: ModelConfig,
    start: Start | None,
    config: HelpfulnessConfig,
    source: Artifact,
    num: int,
) -> Artifact:
    """The same policy's responses to helpfulness prompts, mixed into the fine-tune."""
    return _sampling_stage(
        context,
        name="helpfulness",
        policy=start.name if start else "base",
        model=model,
        adapter=start.adapter if start else None,
        config=config.sampling,
        source=source,
        choose=lambda: training_prompts(source, PromptKind.helpfulness),
        num_prompts=num,
        per_prompt=config.samples_per_prompt,
    )


def pairs(
    context: RunContext,
    *,
    model: ModelConfig,
    config: PairsConfig,
    source: Artifact,
    sl_policy: Artifact,
    num: int,
) -> Artifact:
    """SL-CAI samples, two per pair; responses 2k and 2k+1 of a prompt are compared."""
    return _sampling_stage(
        context,
        name="pairs",
        policy="sl_cai",
        model=model,
        adapter=sl_policy,
        config=config.sampling,
        source=source,
        choose=lambda: training_prompts(source, PromptKind.red_team),
        num_prompts=num,
        per_prompt=2 * config.pairs_per_prompt,
    )


def samples(
    context: RunContext,
    *,
    policy: Start,
    model: ModelConfig,
    config: SamplingConfig,
    source: Artifact,
    num: int,
    name: str = "samples",
) -> Artifact:
    """A policy's responses to all training prompts, one each."""
    return _sampling_stage(
        context,
        name=name,
        policy=policy.name,
        model=model,
        adapter=policy.adapter,
        config=config,
        source=source,
        choose=lambda: source.records(Prompt, TRAIN),
        num_prompts=num,
    )


def audit_pairs(
    context: RunContext, *, model: ModelConfig, config: SamplingConfig, source: Artifact, num: int
) -> Artifact:
    """Two responses of the base model to each of `num` prompts, of every kind alike."""
    return _sampling_stage(
        context,
        name="audit_pairs",
        policy="base",
        model=model,
        adapter=None,
        config=config,
        source=source,
        choose=lambda: spread(
            [*source.records(Prompt, TRAIN), *source.records(Prompt, EVALUATION)], num
        ),
        num_prompts=num,
        per_prompt=2,
        chosen={"num": num},
    )


def spread(prompts: Sequence[Prompt], num: int) -> list[Prompt]:
    """The first `num` prompts, one of each kind in turn while there are any of it."""
    queues = [[prompt for prompt in prompts if prompt.kind is kind] for kind in PromptKind]
    rounds = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)][:num]


def responses(
    context: RunContext,
    *,
    policy: str,
    model: ModelConfig,
    adapter: Artifact | None,
    config: SamplingConfig,
    source: Artifact,
    num: int,
    name: str = "responses",
    folder: str | None = None,
) -> Artifact:
    """A policy's responses to held-out prompts; see `_sampling_stage` for `folder`."""
    return _sampling_stage(
        context,
        name=name,
        policy=policy,
        model=model,
        adapter=adapter,
        config=config,
        source=source,
        choose=lambda: source.records(Prompt, EVALUATION),
        num_prompts=num,
        folder=folder,
    )
