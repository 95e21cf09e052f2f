"""What every training stage shares, and the stage `sl_policy`.

A training stage ends in a folder `adapter/` that plain `peft` loads (with `model.adapter=none`,
plain `transformers`), and a `curve.json` of its metrics by step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cai import adapters, ranks, training
from cai.artifacts import Artifact, Work
from cai.checkpoints import newest, step_of
from cai.choices import RevisionsUsed
from cai.compliance.classify import RULES_VERSION
from cai.compliance.declared import DeclaredCompliance
from cai.constitution import Constitution
from cai.context import Curve, RunContext, Stage
from cai.errors import ConfigError, UserError
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.loaders import SFTExample
from cai.model_config import ModelConfig
from cai.models import POLICY, BaseModel, role_key
from cai.progress import bar
from cai.seeds import derive_seed
from cai.training_config import FineTuneConfig, SLPolicyConfig
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
    """Write an adapter, and a head, into the artifact and check that they read back the same.

    On rank 0; the others have the same weights.
    """
    if not ranks.is_first():
        return
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


def begun(base: BaseModel, model: ModelConfig, start: Artifact | None, *, seed: int) -> Tuned:
    """The base with the policy that is to learn: a new one, or a copy of a trained one."""
    if start is None:
        return adapters.attach(base.model, model.trained, adapter=POLICY, seed=seed)
    folder = start.verified_folder() / ADAPTER
    return adapters.load(base.model, folder, adapter=POLICY, base_sha256=base.sha256)


def fine_tune(
    context: RunContext,
    work: Work,
    base: BaseModel,
    examples: Sequence[SFTExample],
    *,
    model: ModelConfig,
    config: FineTuneConfig,
    start: Artifact | None,
) -> int:
    """Fine-tune what the stage learns on its examples and save it; the number of steps taken.

    With a `start` that policy's own adapter, or weights, go on learning.
    """
    stage = work.artifact.stage
    seed = derive_seed(context.seed, stage)
    steps = -(-len(examples) // config.batch_size) * config.num_epochs
    tuned = begun(base, model, start, seed=seed)
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
            stage=stage,
        )
        save(base, tuned, POLICY, work)
    return steps


def response_ids(base: BaseModel, text: str, *, finished: bool) -> tuple[int, ...]:
    """A response to learn; one that was cut is not taught to end where it was cut."""
    return tuple(base.encoder.response_ids(text) if finished else base.encoder.text_ids(text))


def revision_examples(
    base: BaseModel,
    chains: Sequence[RevisionChain],
    *,
    used: RevisionsUsed,
    declared: DeclaredCompliance | None = None,
) -> list[SFTExample]:
    """Accepted revisions as examples: of all steps, or one text of each chain.

    What the paper calls "all revisional steps" (sec. 3.1), less those that `cai.acceptance` keeps
    out; a revision that repeats the response is one of them.

    Args:
        base: Whose tokens they become.
        chains: Drafts and their revisions.
        used: Which texts.
        declared: The constitution's values of compliance, for `best_compliance`.
    """
    examples = []
    for chain in chains:
        prompt_ids = tuple(base.prompt_ids(chain.prompt.messages))
        for text, finished in _learned(chain, used, declared):
            learned = response_ids(base, text, finished=finished)
            examples.append(SFTExample(prompt_ids=prompt_ids, response_ids=learned))
    return examples


def _learned(
    chain: RevisionChain, used: RevisionsUsed, declared: DeclaredCompliance | None
) -> list[tuple[str, bool]]:
    """Texts of a chain that are learned, and whether the model ended them."""
    revised = [
        (step.response, step.revision is not None and step.revision.finished)
        for step in chain.steps
        if step.outcome.accepted
    ]
    match used:
        case RevisionsUsed.all:
            return revised
        case RevisionsUsed.final:
            return revised[-1:]
        case RevisionsUsed.best_compliance:
            assert declared is not None, "call `check_revisions_used`"
            draft = (chain.draft.text, chain.draft.finished)
            texts = [draft, *revised] if chain.draft.text else revised
            values = [declared.value_of(chain.prompt, text) for text, _ in texts]
            best = max(range(len(texts)), key=lambda place: (values[place], place), default=None)
            return [] if best is None else [texts[best]]


def _choice_identity(config: SLPolicyConfig) -> dict[str, Any]:
    """The rules that told classes, where texts were chosen by them; values are the revisions'."""
    chosen = config.revisions is RevisionsUsed.best_compliance
    return {"compliance_rules": RULES_VERSION} if chosen else {}


def check_revisions_used(config: SLPolicyConfig, document: Constitution) -> None:
    """Refuse to choose revisions by values that nobody declares.

    Raises:
        ConfigError: with what to type instead.
    """
    if config.revisions is RevisionsUsed.best_compliance and document.compliance is None:
        raise ConfigError(
            f"phase.sl_policy.revisions=best_compliance: {document.name} does not say what ways of "
            "answering are worth; give it a section `compliance` (harmlessness_first has one), or "
            "type phase.sl_policy.revisions=all"
        )


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
    start: Artifact | None,
    revisions: Artifact,
    helpfulness: Artifact,
    num: int,
) -> Artifact:
    """The SL-CAI policy: fine-tuned on revisions mixed with helpfulness samples (sec. 3.1).

    With a `start` that policy's own adapter, or weights, go on learning.
    """

    def run(work: Work) -> None:
        base = context.models.base(model)
        chains = revisions.records(RevisionChain)
        revised = revision_examples(
            base, chains, used=config.revisions, declared=context.constitution.compliance
        )
        helpful = _helpful_examples(base, helpfulness.records(Response))
        examples = [e for e in revised + helpful if e.length <= config.max_length]
        if not examples:
            raise UserError(
                "sl_policy: there is nothing to learn: no revision was accepted and no helpfulness "
                "sample was usable. See the outcomes of the stage revisions; type a larger "
                "phase.sl_policy.max_length or phase.revisions.revision.max_new_tokens"
            )
        steps = fine_tune(context, work, base, examples, model=model, config=config, start=start)
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
            inputs={"revisions": revisions, "helpfulness": helpfulness}
            | ({"start": start} if start else {}),
            identity=training_identity(model) | _choice_identity(config),
            expect={"examples": num * config.num_epochs},
            run=run,
        )
    )
