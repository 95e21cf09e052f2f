"""Stages `human_comparisons` and `sft_policy`: labels by people, and what they say is right to say.

The preference model of RLHF learns from the pairs of `train.jsonl`; those of `held_out.jsonl` show
how far it agrees with people on prompts that it did not see. The policy is fine-tuned on the
preferred responses of the same training pairs before PPO: "preferred fine-tuning" (Rafailov et al.
2023, arXiv:2305.18290, sec. 6, Preferred-FT), where InstructGPT has demonstrations (Ouyang et al.
2022, arXiv:2203.02155, sec. 3.1). All pairs of one prompt are on one side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai import data
from cai.artifacts import Artifact, Work, digest_of
from cai.config import ComparisonSourceConfig
from cai.context import RunContext, Stage
from cai.errors import ConfigError, UserError
from cai.human_comparisons import SETTING, read_comparisons
from cai.loaders import SFTExample
from cai.model_config import ModelConfig
from cai.models import BaseModel
from cai.seeds import python_rng
from cai.stages.preference_pairs import Conversation
from cai.stages.training import fine_tune, response_ids, training_identity
from cai.training_config import FineTuneConfig
from cai.types import PreferencePair

TRAIN = "train.jsonl"
HELD_OUT = "held_out.jsonl"


def prompt_name(messages: Conversation) -> str:
    """A name for a prompt that has no id: 12 hexadecimal characters of what it says."""
    return digest_of([[message.role, message.content] for message in messages])[:12]


def held_out_prompts(pairs: Sequence[PreferencePair], *, frac: float, seed: int) -> set[str]:
    """Names of the prompts whose pairs are held out; at least one when `frac` is above 0."""
    names = sorted({prompt_name(pair.messages) for pair in pairs})
    python_rng(seed, "people").shuffle(names)
    num = max(1, round(frac * len(names))) if frac > 0 and len(names) > 1 else 0
    return set(names[:num])


def preferred(pair: PreferencePair) -> str:
    """The response that was chosen."""
    return pair.response_a if pair.prob_a > 0.5 else pair.response_b


def human_comparisons(
    context: RunContext, *, source: ComparisonSourceConfig, validation_frac: float
) -> Artifact:
    """Comparisons by people, split by prompt into those to learn from and those held out.

    Raises:
        ConfigError: when none are named.
    """
    if source.path is None:
        raise ConfigError(
            f"{SETTING}.path=null: this phase learns from comparisons by people and needs some. "
            f"Type {SETTING}.path=human_comparisons for those that come with the package, or "
            f"{SETTING}.path= and a file"
        )

    def run(work: Work) -> None:
        found = read_comparisons(source)
        held_out = held_out_prompts(found.pairs, frac=validation_frac, seed=context.seed)
        sides: dict[bool, list[PreferencePair]] = {True: [], False: []}
        for pair in found.pairs:
            sides[prompt_name(pair.messages) in held_out].append(pair)
        if not sides[False]:
            raise UserError(f"{source.path}: no comparison is left to learn from")
        work.write_records(sides[False], TRAIN)
        work.write_records(sides[True], HELD_OUT)
        work.counts = {
            "pairs": len(found.pairs),
            "held_out": len(sides[True]),
            "rows": found.num_rows,
            **{f"dropped_{reason}": num for reason, num in sorted(found.dropped.items())},
        }

    return context.run(
        Stage(
            name="human_comparisons",
            version=1,
            config={"source": dataclasses.asdict(source), "validation_frac": validation_frac},
            inputs={},
            identity={"human_data": data.source_digest(source, setting=SETTING)},
            expect={"pairs": source.max_rows},
            run=run,
        )
    )


def sft_examples(base: BaseModel, pairs: Sequence[PreferencePair]) -> list[SFTExample]:
    """The preferred responses, each ended where people saw it end."""
    return [
        SFTExample(
            prompt_ids=tuple(base.prompt_ids(pair.messages)),
            response_ids=response_ids(base, preferred(pair), finished=True),
        )
        for pair in pairs
    ]


def sft_policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: FineTuneConfig,
    comparisons: Artifact,
    num: int,
) -> Artifact:
    """The policy fine-tuned on the preferred responses of the training pairs.

    Args:
        context: The run.
        model: The policy's base.
        config: Of the training.
        comparisons: Of the stage `human_comparisons`.
        num: Comparisons, for a plan.
    """

    def run(work: Work) -> None:
        base = context.models.base(model)
        pairs = comparisons.records(PreferencePair, TRAIN)
        examples = [e for e in sft_examples(base, pairs) if e.length <= config.max_length]
        if not examples:
            raise UserError(
                f"sft_policy: none of {len(pairs)} preferred responses fits into phase.sft."
                f"max_length={config.max_length} with its prompt; type a larger one"
            )
        steps = fine_tune(context, work, base, examples, model=model, config=config, start=None)
        work.counts = {
            "examples": len(examples),
            "dropped_too_long": len(pairs) - len(examples),
            "steps": steps,
        }

    return context.run(
        Stage(
            name="sft_policy",
            version=1,
            config=config,
            inputs={"comparisons": comparisons},
            identity=training_identity(model),
            expect={"examples": num * config.num_epochs},
            run=run,
        )
    )
