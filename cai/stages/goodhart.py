"""Stages `snapshot_scores` and `selected_policy`: how far PPO went, and how far it should have.

Every snapshot that the stage `policy` kept answers the held-out prompts (stage `responses`), and
`snapshot_scores` has each response's score under the proxy and the gold preference model and its
log-ratio to the SL-CAI policy. `selected_policy` is the adapter of the snapshot where the gold
reward peaks (`cai.goodhart`), for `phase.ppo.select=gold_peak`.

The log-ratio is that of the training engine, at the temperature of the samples. Records keep text
and no token ids, so a response is encoded again; one that comes back with another number of tokens
has no log-ratio.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai import adapters, ranks
from cai.artifacts import Artifact, Work, in_shards
from cai.choices import Combine, Select
from cai.config import SamplingConfig
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.goodhart import Resampling, SnapshotScore, common_prompts, is_known, measure
from cai.model_config import ModelConfig
from cai.models import POLICY, REFERENCE, BaseModel, role_key
from cai.preference_measures import measure as measure_preference
from cai.rollout import log_ratios
from cai.scoring import Row
from cai.stages import sampling
from cai.stages.policy import snapshot_folder
from cai.stages.preference_model import VALIDATION, PreferenceModel
from cai.stages.training import ADAPTER, detached, training_identity
from cai.types import PreferencePrediction, Response

SELECTION = "selection.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodhart:
    """The gold preference model and what it saw."""

    gold: PreferenceModel
    scores: Artifact
    """`SnapshotScore` records of all snapshots."""
    selected: Artifact | None
    """The policy that was selected; None: the last round's is kept unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Where PPO started, where it ended and what it kept between."""

    model: ModelConfig
    sl_policy: Artifact
    policy: Artifact
    num_rounds: int
    snapshots: tuple[int, ...]
    """Rounds after which the policy was kept, without the last."""

    @property
    def rounds(self) -> tuple[int, ...]:
        """All rounds whose policy there is, 0 for the SL-CAI policy."""
        return (0, *self.snapshots, self.num_rounds)

    def folder(self, num_rounds: int) -> Path:
        """Where the adapter after so many rounds is."""
        if num_rounds == 0:
            return self.sl_policy.verified_folder() / ADAPTER
        last = num_rounds == self.num_rounds
        return self.policy.verified_folder() / (ADAPTER if last else snapshot_folder(num_rounds))


def _responses(
    context: RunContext,
    policies: Policies,
    *,
    num_rounds: int,
    config: SamplingConfig,
    prompts: Artifact,
    num: int,
) -> Artifact:
    """A snapshot's responses; all of PPO's policies have one name, and so one random stream."""
    return sampling.responses(
        context,
        policy="rl_cai" if num_rounds else "sl_cai",
        model=policies.model,
        adapter=policies.policy if num_rounds else policies.sl_policy,
        config=config,
        source=prompts,
        num=num,
        folder=snapshot_folder(num_rounds) if num_rounds in policies.snapshots else None,
    )


def _log_ratios(
    context: RunContext,
    base: BaseModel,
    policies: Policies,
    responses: Sequence[Response],
    *,
    num_rounds: int,
    temperature: float,
) -> list[float | None]:
    """Of each response; None where its tokens are not had again."""
    if num_rounds == 0:
        return [0.0] * len(responses)
    encode = base.encoder
    tokens = [
        encode.response_ids(r.sample.text) if r.sample.finished else encode.text_ids(r.sample.text)
        for r in responses
    ]
    same = [len(ids) == r.sample.num_tokens > 0 for ids, r in zip(tokens, responses, strict=True)]
    tuned = adapters.load(
        base.model, policies.folder(0), adapter=REFERENCE, base_sha256=base.sha256
    )
    with detached(tuned):
        adapters.load_adapter(
            tuned, policies.folder(num_rounds), adapter=POLICY, base_sha256=base.sha256
        )
        found = iter(
            log_ratios(
                tuned,
                [
                    (base.prompt_ids(r.prompt.messages), ids)
                    for r, ids, kept in zip(responses, tokens, same, strict=True)
                    if kept
                ],
                policy_adapter=POLICY,
                reference_adapter=REFERENCE,
                temperature=temperature,
                micro_batch_size=context.hardware.micro_batch_size,
                pad_id=base.eos_id,
            )
        )
        return [next(found) if kept else None for kept in same]


def snapshot_scores(
    context: RunContext,
    policies: Policies,
    *,
    proxy: PreferenceModel,
    gold: PreferenceModel,
    config: SamplingConfig,
    prompts: Artifact,
    num: int,
) -> Artifact:
    """Every snapshot on the held-out prompts, under both preference models."""
    answered = {
        num_rounds: _responses(
            context, policies, num_rounds=num_rounds, config=config, prompts=prompts, num=num
        )
        for num_rounds in policies.rounds
    }

    def run(work: Work) -> None:
        base = context.models.base(policies.model)
        items = [(n, row) for n, found in answered.items() for row in found.records(Response)]

        def make(
            chunk: Sequence[tuple[int, Response]], _advance: Callable[[int], None]
        ) -> list[SnapshotScore]:
            ((num_rounds, *_), responses) = zip(*chunk, strict=True)
            asked = [Row(messages=r.prompt.messages, response=r.sample.text) for r in responses]
            scores = []
            for model in (proxy, gold):
                with model.scorer(context) as scorer:
                    scores.append(scorer.texts(asked))
            kls = _log_ratios(
                context,
                base,
                policies,
                responses,
                num_rounds=num_rounds,
                temperature=config.temperature,
            )
            return [
                SnapshotScore(
                    num_rounds=num_rounds,
                    prompt_id=response.prompt.id,
                    kind=str(response.prompt.kind),
                    proxy=of_proxy,
                    gold=of_gold,
                    kl=kl,
                )
                for response, of_proxy, of_gold, kl in zip(responses, *scores, kls, strict=True)
            ]

        records = in_shards(
            work,
            items,
            kind=SnapshotScore,
            shard_size=len(items) // len(answered),  # a snapshot's
            make=make,
            unit="responses",
        )
        if not common_prompts(records):
            raise UserError(
                "snapshot_scores: no held-out prompt has a response to every snapshot that fits "
                "both preference models, so nothing can be compared. Type a larger max_context for "
                "the model (or phase.preference_base.max_context), or phase.gold=false"
            )
        work.write_records(records)
        work.counts = {
            "responses": len(records),
            "snapshots": len(answered),
            "not_scored": sum(r.proxy is None or r.gold is None for r in records),
            "retokenised": sum(r.kl is None for r in records),
        }

    return context.run(
        Stage(
            name="snapshot_scores",
            version=1,
            config={},  # the temperature is that of the responses
            inputs={f"responses_{n}": artifact for n, artifact in answered.items()}
            | {
                "sl_policy": policies.sl_policy,
                "policy": policies.policy,
                "preference_model": proxy.artifact,
                "gold_preference_model": gold.artifact,
            },
            identity={"model": role_key(policies.model)} | proxy.identity(),
            expect={"responses": num * len(answered), "snapshots": len(answered)},
            run=run,
        )
    )


def selected_policy(
    context: RunContext,
    policies: Policies,
    *,
    scores: Artifact,
    gold: Artifact,
    combine: Combine,
    num_resamples: int,
) -> Artifact:
    """The policy at the knee; the last one where there is none, or gold is at chance.

    Args:
        context: The run.
        policies: What PPO made.
        scores: `SnapshotScore` records.
        gold: The gold preference model, with its predictions of held-out pairs.
        combine: What makes one score of an ensemble's.
        num_resamples: Of intervals.
    """

    def run(work: Work) -> None:
        measured = measure(
            scores.records(SnapshotScore),
            Resampling(num_resamples=num_resamples, seed=context.seed),
        )
        measured_gold = measure_preference(
            gold.records(PreferencePrediction, VALIDATION),
            (),
            combine=combine,
            num_bootstrap=num_resamples,
            seed=context.seed,
        )
        known = is_known(measured_gold)
        chosen = measured.chosen(Select.gold_peak, gold_is_known=known).num_rounds
        if ranks.is_first():
            shutil.copytree(policies.folder(chosen), work.folder / ADAPTER, dirs_exist_ok=True)
        fall = measured.knee.fall
        work.write_json(
            SELECTION,
            {
                "num_rounds": chosen,
                "of_rounds": policies.num_rounds,
                "peak_rounds": measured.peak.num_rounds,
                "gold_is_known": known,
                "fall": None if fall is None else [fall.value, fall.low, fall.high],
            },
        )
        work.counts = {"rounds": chosen, "of_rounds": policies.num_rounds}

    return context.run(
        Stage(
            name="selected_policy",
            version=2,
            config={"num_resamples": num_resamples, "combine": combine},
            inputs={
                "scores": scores,
                "gold": gold,
                "sl_policy": policies.sl_policy,
                "policy": policies.policy,
            },
            identity=training_identity(policies.model),
            expect={"of_rounds": policies.num_rounds},
            run=run,
        )
    )
