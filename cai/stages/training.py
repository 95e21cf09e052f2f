"""Stages that train: `sl_policy`, `preference_model` and `policy`, adapters on one frozen base.

Each ends in a folder `adapter/` that plain `peft` loads, and a `curve.json` of its metrics by step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from cai import adapters, data, training
from cai.artifacts import Artifact, Work, write_atomically
from cai.checkpoints import newest, step_of
from cai.config import (
    ComparisonSourceConfig,
    ModelConfig,
    PPOConfig,
    PreferenceModelConfig,
    RevisionsUsed,
    SLPolicyConfig,
)
from cai.context import Curve, RunContext, Stage
from cai.errors import UserError
from cai.heads import ScoreHead
from cai.loaders import PairExample, SFTExample
from cai.models import POLICY, PREFERENCE, REFERENCE, BaseModel, role_key
from cai.progress import bar
from cai.rollout import Heads, RolloutBatch, Sampled, score_responses
from cai.seeds import derive_seed, python_rng
from cai.stages.sampling import training_prompts
from cai.types import (
    Comparison,
    Message,
    PreferencePair,
    Prompt,
    PromptKind,
    Response,
    RevisionChain,
    RevisionOutcome,
    Rollout,
    Sample,
    ScoredPair,
    dump_line,
)

ADAPTER = "adapter"
ROLLOUTS = "rollouts.jsonl"
VALIDATION = "validation.jsonl"
PROBE = "How do you say hello?"
"""What a saved adapter is checked with; any text will do."""


@contextlib.contextmanager
def _detached(model: PeftModel) -> Iterator[PeftModel]:
    """Take the adapters off the shared base when the stage is over."""
    try:
        yield model
    finally:
        model.unload()


@contextlib.contextmanager
def _reported(
    context: RunContext, work: Work, *, total: int, unit: str, shown: str
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Curve, tracker and progress bar of a training as one callback for its steps."""
    curve = Curve(work=work, tracker=context.tracker)
    checkpoint = newest(work.scratch / "checkpoints")
    done = step_of(checkpoint) if checkpoint else 0
    with bar(total, name=work.artifact.stage, unit=unit, initial=done) as progress:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            curve.add(step, metrics)
            progress.update(1)
            if shown in metrics:
                progress.note(**{shown.rpartition("/")[2]: metrics[shown]})

        yield on_step
    curve.save()


def _save(
    base: BaseModel, model: PeftModel, adapter: str, work: Work, head: ScoreHead | None = None
) -> None:
    adapters.save_adapter(
        model,
        adapter,
        work.folder / ADAPTER,
        head=head,
        base_id=base.base_id,
        base_sha256=base.sha256,
        probe_ids=base.prompt_ids([Message(role="user", content=PROBE)]),
    )


def _training_identity(model: ModelConfig) -> dict[str, Any]:
    return {"model": role_key(model), "lora": dataclasses.asdict(model.lora)}


def _response_ids(base: BaseModel, text: str, *, finished: bool) -> tuple[int, ...]:
    """A response to learn; one that was cut is not taught to end where it was cut."""
    return tuple(base.encoder.response_ids(text) if finished else base.encoder.text_ids(text))


def revision_examples(
    base: BaseModel, chains: Sequence[RevisionChain], *, used: RevisionsUsed
) -> list[SFTExample]:
    """Revisions as examples: of all steps, or the last usable one of each chain.

    Steps without a usable revision teach nothing; a revision that repeats the response is taught,
    as the paper's no-op examples are.
    """
    usable = (RevisionOutcome.revised, RevisionOutcome.unchanged)
    examples = []
    for chain in chains:
        prompt_ids = tuple(base.prompt_ids(chain.prompt.messages))
        steps = [step for step in chain.steps if step.outcome in usable and step.revision]
        for step in steps if used is RevisionsUsed.all else steps[-1:]:
            finished = step.revision is not None and step.revision.finished
            response_ids = _response_ids(base, step.response, finished=finished)
            examples.append(SFTExample(prompt_ids=prompt_ids, response_ids=response_ids))
    return examples


def _helpful_examples(base: BaseModel, responses: Sequence[Response]) -> list[SFTExample]:
    return [
        SFTExample(
            prompt_ids=tuple(base.prompt_ids(response.prompt.messages)),
            response_ids=_response_ids(
                base, response.sample.text, finished=response.sample.finished
            ),
        )
        for response in responses
        if response.sample.text
    ]


def sl_policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: SLPolicyConfig,
    revisions: Artifact,
    helpfulness: Artifact,
) -> Artifact:
    """The SL-CAI policy: fine-tuned on revisions mixed with helpfulness samples (sec. 3.1)."""

    def run(work: Work) -> None:
        base = context.models.base(model)
        revised = revision_examples(base, revisions.records(RevisionChain), used=config.revisions)
        helpful = _helpful_examples(base, helpfulness.records(Response))
        examples = [e for e in revised + helpful if e.length <= config.max_length]
        if not examples:
            raise UserError(
                "sl_policy: there is nothing to learn: no revision was usable and no helpfulness "
                "sample either. See the outcomes of the stage revisions; type a larger "
                "phase.sl_policy.max_length or phase.revisions.revision.max_new_tokens"
            )
        seed = derive_seed(context.seed, "sl_policy")
        steps = -(-len(examples) // config.batch_size) * config.num_epochs
        tuned = adapters.attach(base.model, model.lora, adapter=POLICY, seed=seed)
        with (
            _detached(tuned),
            _reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step,
        ):
            training.train_sft(
                tuned,
                examples,
                adapter=POLICY,
                config=config,
                seed=seed,
                hardware=context.hardware,
                work_dir=work.scratch / "checkpoints",
                on_step=on_step,
                stage="sl_policy",
            )
            _save(base, tuned, POLICY, work)
        work.counts = {
            "examples": len(examples),
            "revisions": len(revised),
            "helpfulness": len(helpful),
            "dropped_too_long": len(revised) + len(helpful) - len(examples),
            "steps": steps,
        }

    return context.run(
        Stage(
            name="sl_policy",
            version=1,
            config=config,
            inputs={"revisions": revisions, "helpfulness": helpfulness},
            identity=_training_identity(model),
            expect={"epochs": config.num_epochs},
            run=run,
        )
    )


def ai_pairs(comparisons: Sequence[Comparison]) -> list[PreferencePair]:
    """Judged comparisons as training pairs; unjudged ones are left out."""
    return [
        PreferencePair(
            messages=c.prompt.messages,
            response_a=c.response_a,
            response_b=c.response_b,
            prob_a=c.prob_a,
            weight=1.0,
            source="ai",
            principle_id=c.principle_id,
        )
        for c in comparisons
        if c.prob_a is not None
    ]


def validation_prompts(comparisons: Sequence[Comparison], *, frac: float, seed: int) -> set[str]:
    """Ids of the prompts whose pairs are held out; at least one when `frac` is above 0."""
    ids = sorted({c.prompt.id for c in comparisons if c.prob_a is not None})
    python_rng(seed, "validation").shuffle(ids)
    num = max(1, round(frac * len(ids))) if frac > 0 and len(ids) > 1 else 0
    return set(ids[:num])


def _pair_example(base: BaseModel, pair: PreferencePair, weight: float) -> PairExample:
    return PairExample(
        prompt_ids=tuple(base.prompt_ids(pair.messages)),
        response_a_ids=tuple(base.encoder.response_ids(pair.response_a)),
        response_b_ids=tuple(base.encoder.response_ids(pair.response_b)),
        prob_a=pair.prob_a,
        weight=weight,
    )


def a_is_longer(response_a: str, response_b: str) -> bool | None:
    """Which of two responses has more characters; None when neither."""
    if len(response_a) == len(response_b):
        return None
    return len(response_a) > len(response_b)


Score = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]
"""Preference-model scores of (conversation, response) rows, at the end-of-sequence token."""


def _score_function(
    context: RunContext, base: BaseModel, model: PeftModel, head: ScoreHead
) -> Score:
    def score(rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        return score_responses(
            model,
            head,
            [
                (tuple(base.prompt_ids(messages)), tuple(base.encoder.response_ids(response)))
                for messages, response in rows
            ],
            adapter=PREFERENCE,
            micro_batch_size=context.hardware.micro_batch_size,
            pad_id=base.eos_id,
        )

    return score


@contextlib.contextmanager
def scorer(
    context: RunContext, *, model: ModelConfig, preference_model: Artifact
) -> Iterator[Score]:
    """A trained preference model, while it is attached to its base."""
    base = context.models.base(model)
    folder = preference_model.verified_folder() / ADAPTER
    tuned = adapters.load(base.model, folder, adapter=PREFERENCE, base_sha256=base.sha256)
    with _detached(tuned):
        head = adapters.load_head(folder).to(base.model.device)
        yield _score_function(context, base, tuned, head)


def preference_model(
    context: RunContext,
    *,
    model: ModelConfig,
    config: PreferenceModelConfig,
    comparisons: Artifact,
    pairs: Artifact,
    human: ComparisonSourceConfig,
) -> Artifact:
    """The preference model: soft AI labels, human comparisons when given, calibrated scores."""

    def run(work: Work) -> None:
        base = context.models.base(model)
        compared = comparisons.records(Comparison)
        held_out = validation_prompts(
            compared, frac=config.validation_frac, seed=derive_seed(context.seed, "pm")
        )
        ai = ai_pairs([c for c in compared if c.prompt.id not in held_out])
        humans = data.load_comparisons(human)
        everything = [_pair_example(base, pair, 1.0) for pair in ai]
        everything += [_pair_example(base, pair, config.human_weight) for pair in humans]
        examples = [e for e in everything if e.length <= config.max_length]
        if not examples:
            raise UserError(
                f"preference_model: none of {len(compared)} comparisons has a label to learn from. "
                "See the counts of the stage comparisons; other seeds or longer "
                "phase.pairs.sampling.max_new_tokens give other pairs"
            )
        seed = derive_seed(context.seed, "preference_model")
        steps = -(-len(examples) // config.batch_size) * config.num_epochs
        tuned = adapters.attach(base.model, model.lora, adapter=PREFERENCE, seed=seed)
        head = ScoreHead(base.model.config.get_text_config().hidden_size, seed=seed)
        head.to(base.model.device)
        with (
            _detached(tuned),
            _reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step,
        ):
            training.train_preference_model(
                tuned,
                head,
                examples,
                adapter=PREFERENCE,
                config=config,
                seed=seed,
                hardware=context.hardware,
                work_dir=work.scratch / "checkpoints",
                on_step=on_step,
                stage="preference_model",
            )
            score = _score_function(context, base, tuned, head)
            samples = [r for r in pairs.records(Response) if r.sample.text]
            head.calibrate(score([(r.prompt.messages, r.sample.text) for r in samples]))
            _save(base, tuned, PREFERENCE, work, head)
            validation = [c for c in compared if c.prompt.id in held_out]
            work.write_records(_scored(score, validation), VALIDATION)
        work.counts = {
            "pairs": len(examples),
            "ai": len(ai),
            "human": len(humans),
            "dropped_too_long": len(everything) - len(examples),
            "held_out": len(ai_pairs(validation)),
            "steps": steps,
        }

    return context.run(
        Stage(
            name="preference_model",
            version=1,
            config=config,
            inputs={"comparisons": comparisons, "pairs": pairs},
            identity=_training_identity(model)
            | {
                "human": dataclasses.asdict(human),
                "human_data": data.source_digest(human, setting="data.human_comparisons"),
            },
            expect={"epochs": config.num_epochs},
            run=run,
        )
    )


def _scored(score: Score, comparisons: Sequence[Comparison]) -> list[ScoredPair]:
    """Held-out comparisons that have a label, with the scores of both responses."""
    judged = [c for c in comparisons if c.prob_a is not None]
    scores = score(
        [(c.prompt.messages, text) for c in judged for text in (c.response_a, c.response_b)]
    )
    return [
        ScoredPair(
            name=c.prompt.id,
            principle_id=c.principle_id,
            prob_a=c.prob_a if c.prob_a is not None else 0.5,
            score_a=scores[2 * row],
            score_b=scores[2 * row + 1],
            a_is_longer=a_is_longer(c.response_a, c.response_b),
        )
        for row, c in enumerate(judged)
    ]


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
        with _detached(tuned):
            folder = preference_model.verified_folder() / ADAPTER
            adapters.load_adapter(tuned, folder, adapter=PREFERENCE, base_sha256=base.sha256)
            adapters.add(tuned, model.lora, POLICY, seed)
            adapters.copy_adapter(tuned, REFERENCE, POLICY)
            head = adapters.load_head(folder).to(base.model.device)
            fits = base.generator().fits
            pools = [
                [
                    prompt
                    for prompt in training_prompts(prompts, kind)
                    if fits(base.prompt_ids(prompt.messages), config.max_new_tokens)
                ]
                for kind in (PromptKind.red_team, PromptKind.helpfulness)
            ]
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
            with _reported(
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
            _save(base, tuned, POLICY, work)
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
            identity=_training_identity(model),
            expect={"rounds": config.num_iterations},
            run=run,
        )
    )
