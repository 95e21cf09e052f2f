"""What every training stage shares, and the stage `sl_policy`.

A training stage ends in a folder `adapter/` that plain `peft` loads (with `model.adapter=none`,
plain `transformers`), and a `curve.json` of its metrics by step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cai import adapters, training
from cai.artifacts import Artifact, Work
from cai.checkpoints import newest, step_of
from cai.choices import RevisionsUsed
from cai.context import Curve, RunContext, Stage
from cai.errors import UserError
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.loaders import SFTExample
from cai.model_config import ModelConfig
from cai.models import POLICY, BaseModel, role_key
from cai.progress import bar
from cai.seeds import derive_seed
from cai.training_config import SLPolicyConfig
from cai.types import Message, Response, RevisionChain

ADAPTER = "adapter"
PROBE = "How do you say hello?"
"""What a saved adapter is checked with; any text will do."""


@contextlib.contextmanager
def detached(model: Tuned) -> Iterator[Tuned]:
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
    done = sum(
        step_of(checkpoint)
        for folder in work.scratch.glob("checkpoints*")
        if (checkpoint := newest(folder)) is not None
    )
    with bar(total, name=work.artifact.stage, unit=unit, initial=done) as progress:

        def on_step(step: int, metrics: dict[str, float]) -> None:
            curve.add(step, metrics)
            progress.update(1)
            if shown in metrics:
                progress.note(**{shown.rpartition("/")[2]: metrics[shown]})

        yield on_step
    curve.save()


def save(
    base: BaseModel,
    model: Tuned,
    adapter: str,
    work: Work,
    head: ScoreHead | None = None,
    *,
    name: str = ADAPTER,
) -> None:
    """Write an adapter, and a head, into the artifact and check that they read back the same."""
    adapters.save_adapter(
        model,
        adapter,
        work.folder / name,
        head=head,
        base_id=base.base_id,
        base_sha256=base.sha256,
        probe_ids=base.prompt_ids([Message(role="user", content=PROBE)]),
    )


def training_identity(model: ModelConfig) -> dict[str, Any]:
    """What of the trained model decides a training's result."""
    adapter = {"lora": dataclasses.asdict(model.trained)} if model.trained else {"adapter": "none"}
    return {"model": role_key(model)} | adapter


def response_ids(base: BaseModel, text: str, *, finished: bool) -> tuple[int, ...]:
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
            learned = response_ids(base, step.response, finished=finished)
            examples.append(SFTExample(prompt_ids=prompt_ids, response_ids=learned))
    return examples


def _helpful_examples(base: BaseModel, responses: Sequence[Response]) -> list[SFTExample]:
    return [
        SFTExample(
            prompt_ids=tuple(base.prompt_ids(response.prompt.messages)),
            response_ids=response_ids(
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
        tuned = adapters.attach(base.model, model.trained, adapter=POLICY, seed=seed)
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
            version=3,
            config=config,
            inputs={"revisions": revisions, "helpfulness": helpfulness},
            identity=training_identity(model),
            expect={"examples": num * config.num_epochs},
            run=run,
        )
    )
