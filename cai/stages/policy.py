"""Stage `policy`: PPO from the SL-CAI policy against the preference model (sec. 4.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from cai import adapters, training
from cai.artifacts import Artifact, Work, write_atomically
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.model_config import ModelConfig
from cai.models import POLICY, PREFERENCE, REFERENCE, BaseModel
from cai.rollout import Heads, RolloutBatch, Sampled
from cai.seeds import derive_seed, python_rng
from cai.stages.sampling import training_prompts
from cai.stages.training import ADAPTER, detached, reported, save, training_identity
from cai.training_config import PPOConfig
from cai.types import Prompt, PromptKind, Rollout, Sample, dump_line

ROLLOUTS = "rollouts.jsonl"


def rollout_prompts(
    red_team: Sequence[Prompt],
    helpful: Sequence[Prompt],
    *,
    config: PPOConfig,
    seed: int,
    iteration: int,
) -> list[Prompt]:
    """The prompts of one round: a pure function of the seed and the round.

    Each kind is gone through in a new random order per pass, so no prompt comes twice in a round
    unless the round is larger than the set.
    """
    num_helpful = round(config.helpfulness_frac * config.rollouts_per_iteration) if helpful else 0
    wanted = (
        ("red_team", red_team, config.rollouts_per_iteration - num_helpful),
        ("helpfulness", helpful, num_helpful),
    )
    chosen = []
    for name, pool, num in wanted:
        for place in range(iteration * num, (iteration + 1) * num):
            turn, index = divmod(place, len(pool))
            order = list(range(len(pool)))
            python_rng(seed, name, turn).shuffle(order)
            chosen.append(pool[order[index]])
    return chosen


@dataclasses.dataclass(slots=True, kw_only=True)
class _Sampler:
    """Samples each round from a merged copy of the policy and keeps what it sampled."""

    base: BaseModel
    model: PeftModel
    red_team: list[Prompt]
    helpful: list[Prompt]
    config: PPOConfig
    seed: int
    folder: Path
    merged: PreTrainedModel
    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    sampled: list[Sampled] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=list)

    def sample(self, iteration: int) -> list[Sampled]:
        """The round's responses by the policy as it is now."""
        adapters.refresh_merged(self.merged, self.model, POLICY)
        self.prompts = rollout_prompts(
            self.red_team, self.helpful, config=self.config, seed=self.seed, iteration=iteration
        )
        ids = [tuple(self.base.prompt_ids(prompt.messages)) for prompt in self.prompts]
        self.seeds = [
            derive_seed(self.seed, "rollout", iteration, row, prompt.id)
            for row, prompt in enumerate(self.prompts)
        ]
        tokens = self.base.generator(self.merged).sample(
            ids,
            seeds=self.seeds,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
        )
        self.sampled = [
            Sampled(
                prompt_ids=prompt_ids,
                response_ids=row.ids,
                finished=row.finished,
                logprob=row.logprob,
            )
            for prompt_ids, row in zip(ids, tokens, strict=True)
        ]
        return self.sampled

    def keep(self, iteration: int, batch: RolloutBatch) -> None:
        """Write the round's rollouts, texts and scores, for the audit trail."""
        scores = batch.scores_B.tolist()
        kls = batch.kl_BT.sum(1).tolist()
        lines = [
            dump_line(
                Rollout(
                    iteration=iteration,
                    prompt=prompt,
                    sample=Sample(
                        text=self.base.encoder.decode(row.response_ids),
                        num_tokens=len(row.response_ids),
                        logprob=row.logprob or 0.0,
                        finished=row.finished,
                        seed=seed,
                    ),
                    score=score,
                    kl=kl,
                )
            )
            for prompt, row, seed, score, kl in zip(
                self.prompts, self.sampled, self.seeds, scores, kls, strict=True
            )
        ]
        write_atomically(self.folder / f"{iteration:05d}.jsonl", "".join(lines).encode("ascii"))

    def collect(self) -> bytes:
        """All rounds' rollouts."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("*.jsonl")))


def policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: PPOConfig,
    prompts: Artifact,
    sl_policy: Artifact,
    preference_model: Artifact,
) -> Artifact:
    """The RL-CAI policy: PPO against the preference model, with a KL penalty to SL-CAI."""

    def run(work: Work) -> None:
        base = context.models.base(model)
        seed = derive_seed(context.seed, "policy")
        tuned = adapters.load(
            base.model,
            sl_policy.verified_folder() / ADAPTER,
            adapter=REFERENCE,
            base_sha256=base.sha256,
        )
        with detached(tuned):
            folder = preference_model.verified_folder() / ADAPTER
            adapters.load_adapter(tuned, folder, adapter=PREFERENCE, base_sha256=base.sha256)
            adapters.add(tuned, model.lora, POLICY, seed)
            adapters.copy_adapter(tuned, REFERENCE, POLICY)
            head = adapters.load_head(folder).to(base.model.device)
            fits = base.generator(base.model).fits
            pools = [
                [
                    prompt
                    for prompt in training_prompts(prompts, kind)
                    if fits(base.prompt_ids(prompt.messages), config.max_new_tokens)
                ]
                for kind in (PromptKind.red_team, PromptKind.helpfulness)
            ]
            if not pools[0]:
                raise UserError(
                    "policy: no red-team prompt leaves room for phase.ppo.max_new_tokens="
                    f"{config.max_new_tokens} in model.max_context={model.max_context}; type a "
                    "smaller one or a larger other"
                )
            sampler = _Sampler(
                base=base,
                model=tuned,
                red_team=pools[0],
                helpful=pools[1],
                config=config,
                seed=seed,
                folder=work.scratch / "rollouts",
                merged=adapters.merged_copy(tuned, POLICY),
            )
            sampler.folder.mkdir(exist_ok=True)
            with reported(
                context,
                work,
                total=config.num_iterations,
                unit="rounds",
                shown="objective/scores",
            ) as on_step:
                training.train_ppo(
                    tuned,
                    heads=Heads(value=head.as_value_head(), preference=head),
                    policy_adapter=POLICY,
                    reference_adapter=REFERENCE,
                    preference_adapter=PREFERENCE,
                    sample=sampler.sample,
                    config=config,
                    seed=seed,
                    hardware=context.hardware,
                    work_dir=work.scratch / "checkpoints",
                    on_step=on_step,
                    on_rollout=sampler.keep,
                    pad_id=base.eos_id,
                    stage="policy",
                )
            save(base, tuned, POLICY, work)
            write_atomically(work.folder / ROLLOUTS, sampler.collect())
        work.counts = {
            "rounds": config.num_iterations,
            "rollouts": config.num_iterations * config.rollouts_per_iteration,
        }

    return context.run(
        Stage(
            name="policy",
            version=1,
            config=config,
            inputs={
                "prompts": prompts,
                "sl_policy": sl_policy,
                "preference_model": preference_model,
            },
            identity=training_identity(model),
            expect={
                "rollouts": config.num_iterations * config.rollouts_per_iteration,
                "rounds": config.num_iterations,
            },
            run=run,
        )
    )
