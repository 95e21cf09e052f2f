"""Stages that train: `sl_policy`, `preference_model` and `policy`, adapters on one frozen base.

Each ends in a folder `adapter/` that plain `peft` loads, and a `curve.json` of its metrics by step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peft import PeftModel

from cai import adapters, data, training
from cai.artifacts import Artifact, Work
from cai.checkpoints import newest, step_of
from cai.choices import RevisionsUsed
from cai.config import ComparisonSourceConfig
from cai.context import Curve, RunContext, Stage
from cai.errors import UserError
from cai.feedback.measures import a_is_longer
from cai.heads import ScoreHead
from cai.loaders import PairExample, SFTExample
from cai.model_config import ModelConfig
from cai.models import POLICY, PREFERENCE, BaseModel, role_key
from cai.progress import bar
from cai.rollout import score_responses
from cai.seeds import derive_seed, python_rng
from cai.training_config import PreferenceModelConfig, SLPolicyConfig
from cai.types import (
    Comparison,
    Message,
    PreferencePair,
    Response,
    RevisionChain,
    ScoredPair,
)

ADAPTER = "adapter"
VALIDATION = "validation.jsonl"
SCORED_AT_ONCE = 32
"""Responses per call; within it they are batched by length."""
PROBE = "How do you say hello?"
"""What a saved adapter is checked with; any text will do."""


@contextlib.contextmanager
def detached(model: PeftModel) -> Iterator[PeftModel]:
    """Take the adapters off the shared base when the stage is over."""
    try:
        yield model
    finally:
        model.unload()


@contextlib.contextmanager
def reported(
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


def save(
    base: BaseModel, model: PeftModel, adapter: str, work: Work, head: ScoreHead | None = None
) -> None:
    """Write an adapter, and a head, into the artifact and check that they read back the same."""
    adapters.save_adapter(
        model,
        adapter,
        work.folder / ADAPTER,
        head=head,
        base_id=base.base_id,
        base_sha256=base.sha256,
        probe_ids=base.prompt_ids([Message(role="user", content=PROBE)]),
    )


def training_identity(model: ModelConfig) -> dict[str, Any]:
    """What of the trained model decides a training's result."""
    return {"model": role_key(model), "lora": dataclasses.asdict(model.lora)}


def _response_ids(base: BaseModel, text: str, *, finished: bool) -> tuple[int, ...]:
    """A response to learn; one that was cut is not taught to end where it was cut."""
    return tuple(base.encoder.response_ids(text) if finished else base.encoder.text_ids(text))


def revision_examples(
    base: BaseModel, chains: Sequence[RevisionChain], *, used: RevisionsUsed
) -> list[SFTExample]:
    """Accepted revisions as examples: of all steps, or the last one of each chain.

    What the paper calls "all revisional steps" (sec. 3.1), less those that `cai.acceptance` keeps
    out; a revision that repeats the response is one of them.
    """
    examples = []
    for chain in chains:
        prompt_ids = tuple(base.prompt_ids(chain.prompt.messages))
        steps = [step for step in chain.steps if step.outcome.accepted]
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
    num: int,
) -> Artifact:
    """The SL-CAI policy: fine-tuned on revisions mixed with helpfulness samples (sec. 3.1)."""

    def run(work: Work) -> None:
        base = context.models.base(model)
        chains = revisions.records(RevisionChain)
        revised = revision_examples(base, chains, used=config.revisions)
        helpful = _helpful_examples(base, helpfulness.records(Response))
        examples = [e for e in revised + helpful if e.length <= config.max_length]
        if not examples:
            raise UserError(
                "sl_policy: there is nothing to learn: no revision was accepted and no helpfulness "
                "sample was usable. See the outcomes of the stage revisions; type a larger "
                "phase.sl_policy.max_length or phase.revisions.revision.max_new_tokens"
            )
        seed = derive_seed(context.seed, "sl_policy")
        steps = -(-len(examples) // config.batch_size) * config.num_epochs
        tuned = adapters.attach(base.model, model.lora, adapter=POLICY, seed=seed)
        with (
            detached(tuned),
            reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step,
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
            save(base, tuned, POLICY, work)
        work.counts = {
            "examples": len(examples),
            "revisions": len(revised),
            "helpfulness": len(helpful),
            "dropped_too_long": len(revised) + len(helpful) - len(examples),
            "revisions_kept_out": sum(not s.outcome.accepted for c in chains for s in c.steps),
            "steps": steps,
        }

    return context.run(
        Stage(
            name="sl_policy",
            version=2,
            config=config,
            inputs={"revisions": revisions, "helpfulness": helpfulness},
            identity=training_identity(model),
            expect={"examples": num * config.num_epochs},
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
            weight=c.weight,
            source="ai",
            principle_ids=c.principle_ids,
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


Score = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]
"""Preference-model scores of (conversation, response) rows, at the end-of-sequence token."""


def _score_function(
    context: RunContext, base: BaseModel, model: PeftModel, head: ScoreHead
) -> Score:
    def score(rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        scores: list[float] = []
        with bar(len(rows), name="preference scores", unit="responses") as progress:
            for start in range(0, len(rows), SCORED_AT_ONCE):
                chunk = rows[start : start + SCORED_AT_ONCE]
                scores += score_responses(
                    model,
                    head,
                    [
                        (tuple(base.prompt_ids(asked)), tuple(base.encoder.response_ids(response)))
                        for asked, response in chunk
                    ],
                    adapter=PREFERENCE,
                    micro_batch_size=context.hardware.micro_batch_size,
                    pad_id=base.eos_id,
                )
                progress.update(len(chunk))
        return scores

    return score


@contextlib.contextmanager
def scorer(
    context: RunContext, *, model: ModelConfig, preference_model: Artifact
) -> Iterator[Score]:
    """A trained preference model, while it is attached to its base."""
    base = context.models.base(model)
    folder = preference_model.verified_folder() / ADAPTER
    tuned = adapters.load(base.model, folder, adapter=PREFERENCE, base_sha256=base.sha256)
    with detached(tuned):
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
    num: int,
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
            detached(tuned),
            reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step,
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
            samples = [r for r in pairs.records(Response) if r.sample.text and r.index < 2]
            # The first pair of every prompt: enough for a mean and a deviation, at half the cost.
            head.calibrate(score([(r.prompt.messages, r.sample.text) for r in samples]))
            save(base, tuned, PREFERENCE, work, head)
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
            version=2,
            config=config,
            inputs={"comparisons": comparisons, "pairs": pairs},
            identity=training_identity(model)
            | {
                "human": dataclasses.asdict(human),
                "human_data": data.source_digest(human, setting="data.human_comparisons"),
            },
            expect={"pairs": num * config.num_epochs},
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
            principle_ids=c.principle_ids,
            prob_a=c.prob_a if c.prob_a is not None else 0.5,
            score_a=scores[2 * row],
            score_b=scores[2 * row + 1],
            a_is_longer=a_is_longer(c.response_a, c.response_b),
        )
        for row, c in enumerate(judged)
    ]
