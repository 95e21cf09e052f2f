"""Stage `policy`: PPO from the SL-CAI policy against the preference model (sec. 4.1).

The scores may come from elsewhere (`cai.stages.rewards`); the stage is the same.

`rlhf_policy` is the same stage from the fine-tuned policy of RLHF on, against people's preference
model.

Where over-optimisation is measured, the artifact holds the policy after some of the rounds too, in
`snapshots/00002/` and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cai import adapters, ranks, training
from cai.artifacts import Artifact, Work, write_atomically
from cai.choices import ValueAdapter
from cai.context import RunContext, Stage
from cai.engines import Engine
from cai.engines.rollout_engine import RolloutEngine, rollout_engine
from cai.errors import ConfigError, UserError
from cai.generation import Tokens
from cai.model_config import ModelConfig
from cai.models import POLICY, REFERENCE, BaseModel, identity
from cai.rollout import RolloutBatch, Sampled
from cai.seeds import derive_seed, python_rng
from cai.stages.rewards import ROLLOUTS, Reward, Round, Scores
from cai.stages.sampling import training_prompts
from cai.stages.training import ADAPTER, detached, reported, save, training_identity
from cai.training_config import PPOConfig
from cai.types import Prompt, PromptKind, Rollout, Sample, dump_line


def snapshot_rounds(config: PPOConfig) -> tuple[int, ...]:
    """Rounds after which the policy is kept, the last round apart."""
    return tuple(range(config.snapshot_every, config.num_iterations, config.snapshot_every))


def snapshot_folder(num_rounds: int) -> str:
    """Where an artifact has the policy after so many rounds."""
    return f"snapshots/{num_rounds:05d}"


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


def sample_rollouts(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    *,
    seeds: Sequence[int],
    config: PPOConfig,
) -> list[Sampled]:
    """One response per prompt by the policy's engine, each from its own stream."""

    def sample(part: Sequence[tuple[tuple[int, ...], int]]) -> list[Tokens]:
        return engine.sample(
            [prompt_ids for prompt_ids, _ in part],
            seeds=[seed for _, seed in part],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )

    asked = list(zip(prompts, seeds, strict=True))
    tokens = ranks.in_parts(asked, config.shard_size, sample)
    return [
        Sampled(
            prompt_ids=prompt_ids,
            response_ids=row.ids,
            finished=row.finished,
            logprobs=row.logprobs,
        )
        for prompt_ids, row in zip(prompts, tokens, strict=True)
    ]


@dataclasses.dataclass(slots=True, kw_only=True)
class _Sampler:
    """Samples each round from the policy as it is then and keeps what it sampled."""

    base: BaseModel
    engine: RolloutEngine
    red_team: list[Prompt]
    helpful: list[Prompt]
    config: PPOConfig
    seed: int
    folder: Path
    iteration: int = 0
    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    sampled: list[Sampled] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=list)

    def sample(self, iteration: int) -> list[Sampled]:
        """The round's responses by the policy as it is now."""
        engine = self.engine.updated(iteration)
        self.iteration = iteration
        self.prompts = rollout_prompts(
            self.red_team, self.helpful, config=self.config, seed=self.seed, iteration=iteration
        )
        ids = [tuple(self.base.prompt_ids(prompt.messages)) for prompt in self.prompts]
        self.seeds = [
            derive_seed(self.seed, "rollout", iteration, row, prompt.id)
            for row, prompt in enumerate(self.prompts)
        ]
        self.sampled = sample_rollouts(engine, ids, seeds=self.seeds, config=self.config)
        return self.sampled

    def keep(self, iteration: int, batch: RolloutBatch) -> None:
        """Write the round's rollouts, texts and scores, for the audit trail; on rank 0."""
        if not ranks.is_first():
            return
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
                        logprob=sum(row.logprobs or ()),
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

    def current(self) -> Round:
        """The round that is being scored."""
        return Round(iteration=self.iteration, prompts=self.prompts, sampled=self.sampled)

    def collect(self) -> bytes:
        """All rounds' rollouts, on every rank."""
        ranks.barrier()
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("*.jsonl")))


def check_value_adapter(
    config: PPOConfig, *, model: ModelConfig, preference_base: ModelConfig | None
) -> None:
    """See that there will be a preference adapter for a value adapter to start from.

    Raises:
        ConfigError: when the preference model is to be trained on another base.
    """
    if config.value_adapter is ValueAdapter.shared or preference_base is None:
        return
    if identity(preference_base) != identity(model):
        raise ConfigError(
            "phase.ppo.value_adapter=own: the value function starts as a copy of the preference "
            f"model's adapter, and phase.preference_base={preference_base.name} has other weights "
            f"than the policy's model={model.name}. Type phase.ppo.value_adapter=shared"
        )


def _fitting(
    prompts: Sequence[Prompt], base: BaseModel, scores: Scores, max_new_tokens: int
) -> list[Prompt]:
    """Prompts that leave room for a response, in the policy's context and for its score."""
    fits = base.generator(base.model).fits
    return [
        prompt
        for prompt in prompts
        if fits(base.prompt_ids(prompt.messages), max_new_tokens)
        and scores.room(prompt.messages) >= max_new_tokens
    ]


def _keeping_snapshots(
    on_step: Callable[[int, dict[str, float]], None],
    keep: Callable[[str], None],
    rounds: Sequence[int],
) -> Callable[[int, dict[str, float]], None]:
    """Report a round and keep its policy, before the checkpoint that covers both.

    So a round that a kill cut short keeps the same policy once more, and none is missing.
    """

    def after_round(done: int, metrics: dict[str, float]) -> None:
        on_step(done, metrics)
        if done in rounds:
            keep(snapshot_folder(done))

    return after_round


def policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: PPOConfig,
    prompts: Artifact,
    sl_policy: Artifact,
    reward: Reward,
    snapshots: Sequence[int],
    name: str = "policy",
) -> Artifact:
    """The RL-CAI policy: PPO on a score of its responses, with a KL penalty to SL-CAI.

    Args:
        context: The run.
        model: The policy's base.
        config: Everything about PPO.
        prompts: Training prompts.
        sl_policy: What it starts from, and is held to.
        reward: Scores the rollouts.
        snapshots: Rounds after which the policy is kept, besides the last (`snapshot_rounds`).
        name: Of the stage.
    """

    def run(work: Work) -> None:
        base = context.models.base(model)
        seed = derive_seed(context.seed, name)
        tuned = adapters.load(
            base.model,
            sl_policy.verified_folder() / ADAPTER,
            adapter=REFERENCE,
            base_sha256=base.sha256,
        )
        with detached(tuned), reward.beside(context, base, tuned, work) as scores:
            adapters.add(tuned, model.trained, POLICY, seed)
            adapters.copy_adapter(tuned, REFERENCE, POLICY)
            pools = [
                _fitting(training_prompts(prompts, kind), base, scores, config.max_new_tokens)
                for kind in (PromptKind.red_team, PromptKind.helpfulness)
            ]
            if not pools[0]:
                raise UserError(
                    f"{name}: no red-team prompt leaves room for phase.ppo.max_new_tokens="
                    f"{config.max_new_tokens} in model.max_context={model.max_context}"
                    f"{reward.limit()}; type a smaller one or a larger other"
                )
            engine = rollout_engine(base, tuned, folder=work.scratch / "pushed", name=name)
            sampler = _Sampler(
                base=base,
                engine=engine,
                red_team=pools[0],
                helpful=pools[1],
                config=config,
                seed=seed,
                folder=work.scratch / "rollouts",
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
                    value=scores.value_function(config, base, tuned, seed=seed),
                    policy_adapter=POLICY,
                    reference_adapter=REFERENCE,
                    score=scores.token_score(base, [*pools[0], *pools[1]], sampler.current),
                    sample=sampler.sample,
                    config=config,
                    seed=seed,
                    hardware=context.hardware,
                    work_dir=work.scratch / "checkpoints",
                    on_step=_keeping_snapshots(
                        on_step,
                        lambda name: save(base, tuned, POLICY, work, name=name),
                        snapshots,
                    ),
                    on_rollout=sampler.keep,
                    pad_id=base.eos_id,
                    stage=name,
                )
            engine.close()
            save(base, tuned, POLICY, work)
            rollouts = sampler.collect()
            if ranks.is_first():
                write_atomically(work.folder / ROLLOUTS, rollouts)
            counted = scores.finish(work, rollouts)
        work.counts = {
            "rounds": config.num_iterations,
            "rollouts": config.num_iterations * config.rollouts_per_iteration,
            **counted,
        }

    section = dataclasses.asdict(config)
    del section["snapshot_every"], section["select"]  # `snapshots`, and up to what follows
    kept = {"snapshots": list(snapshots)} if snapshots else {}
    return context.run(
        Stage(
            name=name,
            version=3,
            config=section,
            inputs={
                "prompts": prompts,
                "sl_policy": sl_policy,
                **reward.inputs(),
            },
            identity=training_identity(model) | reward.identity(context) | kept,
            expect={
                "rollouts": config.num_iterations * config.rollouts_per_iteration,
                "rounds": config.num_iterations,
            },
            run=run,
        )
    )
