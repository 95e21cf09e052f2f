"""Stage `dpo_policy`: the policy from the comparisons themselves, starting at the SL-CAI policy.

A response that was cut at the token limit counts without an end-of-sequence token: DPO would
otherwise learn to end where the sampler stopped. The pairs that are held out are those of a
preference model with the same share, so that both are measured on the same labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from cai import adapters, data, training
from cai.artifacts import Artifact, Work
from cai.config import ComparisonSourceConfig
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.measures import a_is_longer
from cai.full_weights import Tuned
from cai.loaders import PairExample
from cai.model_config import ModelConfig
from cai.models import POLICY, REFERENCE, BaseModel
from cai.modules.dpo import implicit_rewards
from cai.seeds import derive_seed
from cai.stages.preference_model import VALIDATION
from cai.stages.preference_pairs import mixed, validation_prompts
from cai.stages.training import (
    ADAPTER,
    detached,
    reported,
    response_ids,
    save,
    training_identity,
)
from cai.training_config import DPOConfig
from cai.types import Comparison, PreferencePair, PreferencePrediction, Response

SETTING = "phase.dpo"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """A comparison with a label, and whether the model ended its responses itself."""

    comparison: Comparison
    prob_a: float
    finished_a: bool
    finished_b: bool


def labelled_pairs(
    comparisons: Sequence[Comparison], responses: Sequence[Response]
) -> list[LabelledPair]:
    """Judged comparisons with what their samples say; unjudged ones are left out.

    Args:
        comparisons: In the order in which they were made.
        responses: Of stage `pairs`: a prompt's n-th comparison is of its samples 2n and 2n + 1.
    """
    samples: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        samples[response.prompt.id].append(response)
    left: dict[str, Iterator[Response]] = {key: iter(rows) for key, rows in samples.items()}
    found = []
    for comparison in comparisons:
        first, second = (next(left[comparison.prompt.id]).sample for _ in range(2))
        if (first.text, second.text) != (comparison.response_a, comparison.response_b):
            raise AssertionError(f"a comparison of {comparison.prompt.id} is not of its samples")
        if comparison.prob_a is not None:
            found.append(
                LabelledPair(
                    comparison=comparison,
                    prob_a=comparison.prob_a,
                    finished_a=first.finished,
                    finished_b=second.finished,
                )
            )
    return found


def ai_example(base: BaseModel, pair: LabelledPair) -> PairExample:
    """An AI comparison as DPO reads it."""
    compared = pair.comparison
    return PairExample(
        prompt_ids=tuple(base.prompt_ids(compared.prompt.messages)),
        response_a_ids=response_ids(base, compared.response_a, finished=pair.finished_a),
        response_b_ids=response_ids(base, compared.response_b, finished=pair.finished_b),
        prob_a=pair.prob_a,
        weight=compared.weight,
    )


def human_example(base: BaseModel, pair: PreferencePair) -> PairExample:
    """A comparison by people as DPO reads it."""
    return PairExample(
        prompt_ids=tuple(base.prompt_ids(pair.messages)),
        response_a_ids=response_ids(base, pair.response_a, finished=True),
        response_b_ids=response_ids(base, pair.response_b, finished=True),
        prob_a=pair.prob_a,
        weight=pair.weight,
    )


@contextlib.contextmanager
def learned(
    context: RunContext,
    work: Work,
    *,
    base: BaseModel,
    start: Artifact,
    examples: Sequence[PairExample],
    config: DPOConfig,
    seed: int,
) -> Iterator[Tuned]:
    """The base with the policy trained and saved, and the reference that it started from.

    Args:
        context: The run.
        work: The stage's folder; its name is the training's.
        base: The policies' base.
        start: The policy that it starts from and is held to.
        examples: What is learned.
        config: Of the training.
        seed: Of the training.
    """
    steps = num_steps(examples, config)
    folder = start.verified_folder() / ADAPTER
    tuned = adapters.load(base.model, folder, adapter=REFERENCE, base_sha256=base.sha256)
    with detached(tuned):
        adapters.copy_adapter(tuned, REFERENCE, POLICY)
        with reported(context, work, total=steps, unit="steps", shown="train/loss") as on_step:
            training.train_dpo(
                tuned,
                examples,
                policy_adapter=POLICY,
                reference_adapter=REFERENCE,
                config=config,
                seed=seed,
                hardware=context.hardware,
                work_dir=work.scratch / "checkpoints",
                on_step=on_step,
                stage=work.artifact.stage,
            )
        save(base, tuned, POLICY, work)
        yield tuned


def num_steps(examples: Sequence[PairExample], config: DPOConfig) -> int:
    """Optimizer steps of a training."""
    return -(-len(examples) // config.batch_size) * config.num_epochs


def dpo_policy(
    context: RunContext,
    *,
    model: ModelConfig,
    config: DPOConfig,
    comparisons: Artifact,
    pairs: Artifact,
    sl_policy: Artifact,
    human: ComparisonSourceConfig,
    num: int,
) -> Artifact:
    """The DPO policy: soft AI labels, human comparisons when given, SL-CAI as the reference."""

    def run(work: Work) -> None:
        base = context.models.base(model)
        compared = comparisons.records(Comparison)
        held_out = validation_prompts(
            compared, frac=config.validation_frac, seed=derive_seed(context.seed, "pm")
        )
        labelled = labelled_pairs(compared, pairs.records(Response))
        ai = [ai_example(base, p) for p in labelled if p.comparison.prompt.id not in held_out]
        humans = [human_example(base, pair) for pair in data.load_comparisons(human)]
        kept = [[e for e in part if e.length <= config.max_length] for part in (ai, humans)]
        examples = mixed(kept[0], kept[1], human_frac=config.human_frac, setting=SETTING)
        if not any(example.weight for example in examples):
            raise UserError(
                f"dpo_policy: none of {len(compared)} comparisons has a label to learn from. See "
                "the counts of the stage comparisons; other seeds, a larger phase.dpo.max_length "
                "or longer phase.pairs.sampling.max_new_tokens give other pairs"
            )
        with learned(
            context,
            work,
            base=base,
            start=sl_policy,
            examples=examples,
            config=config,
            seed=derive_seed(context.seed, "dpo_policy"),
        ) as tuned:
            validation = [p for p in labelled if p.comparison.prompt.id in held_out]
            scored = _scored(context, base, tuned, validation, beta=config.beta)
            work.write_records(scored, VALIDATION)
        work.counts = {
            "pairs": len(examples),
            "ai": len(ai),
            "human": len(humans),
            "dropped_too_long": len(ai) + len(humans) - len(examples),
            "held_out": len(scored),
            "cut_responses": sum((not p.finished_a) + (not p.finished_b) for p in labelled),
            "steps": num_steps(examples, config),
        }

    return context.run(
        Stage(
            name="dpo_policy",
            version=2,
            config=config,
            inputs={"comparisons": comparisons, "pairs": pairs, "sl_policy": sl_policy},
            identity=training_identity(model)
            | {
                "human": dataclasses.asdict(human),
                "human_data": data.source_digest(human, setting="data.human_comparisons"),
            },
            expect={"pairs": num * config.num_epochs},
            run=run,
        )
    )


def _logistic(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))


def _scored(
    context: RunContext,
    base: BaseModel,
    model: Tuned,
    pairs: Sequence[LabelledPair],
    *,
    beta: float,
) -> list[PreferencePrediction]:
    """Held-out pairs with the implicit rewards of both responses."""
    examples = [ai_example(base, pair) for pair in pairs]
    sides = [(e.prompt_ids, r) for e in examples for r in (e.response_a_ids, e.response_b_ids)]
    rewards = implicit_rewards(
        model,
        sides,
        policy_adapter=POLICY,
        reference_adapter=REFERENCE,
        beta=beta,
        micro_batch_size=context.hardware.micro_batch_size,
    )
    return [
        PreferencePrediction(
            name=pair.comparison.prompt.id,
            principle_ids=pair.comparison.principle_ids,
            prob_a=pair.prob_a,
            scores_a=(rewards[2 * row],),
            scores_b=(rewards[2 * row + 1],),
            predicted=_logistic(rewards[2 * row] - rewards[2 * row + 1]),
            a_is_longer=a_is_longer(pair.comparison.response_a, pair.comparison.response_b),
        )
        for row, pair in enumerate(pairs)
    ]
