"""Stages `feedback_check` and `comparisons`: the feedback measured, then used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cai.artifacts import Artifact, Work, in_shards
from cai.choices import PrincipleSampling
from cai.config import ComparisonsConfig
from cai.context import RunContext, Stage
from cai.feedback.base import Feedback, Pair
from cai.feedback.build import Surroundings, build, identity
from cai.feedback.labelled import Labelled
from cai.feedback_config import FeedbackConfig
from cai.model_config import ModelConfig
from cai.seeds import derive_seed
from cai.types import Comparison, FeedbackCheck, Prompt, PromptKind, Response, Split

PAIRS_PER_SHARD = 8
"""Labelled pairs per batch of `feedback_check`; part of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The run's feedback as stages use it."""

    config: FeedbackConfig
    model: ModelConfig
    """The phase's feedback model."""
    sampling: PrincipleSampling
    fitted: Mapping[str, Artifact] = field(default_factory=dict)
    """What tuned methods were trained to, by member name; "" outside an ensemble."""

    def identity(self, context: RunContext) -> dict:
        """What decides its labels, besides the artifacts that `inputs` names."""
        return {
            "feedback": identity(self.config, self.model),
            "constitution": context.constitution.digest,
            "principles": str(self.sampling),
        }

    def inputs(self) -> dict[str, Artifact]:
        """The artifacts that it is made of."""
        return {f"fitted{'-' if name else ''}{name}": a for name, a in self.fitted.items()}

    def feedback(self, context: RunContext, name: str) -> Feedback:
        """The loaded method with the random streams of one stage."""
        around = Surroundings(
            models=context.models,
            model=self.model,
            constitution=context.constitution,
            sampling=self.sampling,
            fitted=self.fitted,
        )
        return Feedback(
            method=build(self.config, around),
            constitution=context.constitution,
            sampling=self.sampling,
            seed=derive_seed(context.seed, name),
        )


def feedback_check(
    context: RunContext, *, judge: Judge, labelled: Sequence[Labelled], source: str
) -> Artifact:
    """The feedback's labels for pairs whose better side is known; a is the better response.

    Args:
        context: The run.
        judge: The feedback.
        labelled: Pairs; one without a principle is judged under one drawn from the constitution.
        source: Identifies the pairs, e.g. the file's sha256.
    """

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "feedback_check")

        def make(chunk: Sequence[Labelled], _advance: Callable[[int], None]) -> list[FeedbackCheck]:
            pairs = [_labelled_pair(feedback, one) for one in chunk]
            compared = feedback.compare(pairs)
            return [
                FeedbackCheck(name=one.name, comparison=comparison)
                for one, comparison in zip(chunk, compared, strict=True)
            ]

        records = in_shards(
            work,
            labelled,
            kind=FeedbackCheck,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="pairs",
        )
        work.write_records(records)
        work.counts = {"pairs": len(records)}

    return context.run(
        Stage(
            name="feedback_check",
            version=2,
            config={"num": len(labelled)},
            inputs=judge.inputs(),
            identity=judge.identity(context) | {"source": source},
            expect={"pairs": len(labelled)},
            run=run,
        )
    )


def _labelled_pair(feedback: Feedback, one: Labelled) -> Pair:
    prompt = Prompt(
        id=one.name,
        kind=PromptKind.red_team,
        category=one.principle.id if one.principle else "labelled",
        source=feedback.constitution.name,
        split=Split.evaluation,
        messages=one.messages,
    )
    principles = (one.principle,) if one.principle else feedback.draw(prompt, 0, num=1)
    return Pair(prompt=prompt, response_a=one.better, response_b=one.worse, principles=principles)


def comparisons(
    context: RunContext,
    *,
    judge: Judge,
    config: ComparisonsConfig,
    pairs: Artifact,
    num: int,
) -> Artifact:
    """AI comparisons of SL-CAI samples, each under one drawn principle or several."""

    def run(work: Work) -> None:
        feedback = judge.feedback(context, "comparisons")
        by_prompt: dict[str, list[Response]] = defaultdict(list)
        for response in pairs.records(Response):
            by_prompt[response.prompt.id].append(response)
        items = [
            Pair(
                prompt=sampled[k].prompt,
                response_a=sampled[k].sample.text,
                response_b=sampled[k + 1].sample.text,
                principles=feedback.draw(sampled[k].prompt, k // 2, num=config.principles_per_pair),
            )
            for sampled in by_prompt.values()
            for k in range(0, len(sampled), 2)
        ]
        records = in_shards(
            work,
            items,
            kind=Comparison,
            shard_size=config.shard_size,
            make=lambda chunk, _advance: feedback.compare(chunk),
            unit="pairs",
        )
        work.write_records(records)
        unjudged = Counter(str(r.unjudged) for r in records if r.unjudged)
        work.counts = {
            "pairs": len(records),
            "judged": sum(r.prob_a is not None for r in records),
            **dict(sorted(unjudged.items())),
        }

    return context.run(
        Stage(
            name="comparisons",
            version=2,
            config=config,
            inputs={"pairs": pairs, **judge.inputs()},
            identity=judge.identity(context),
            expect={"pairs": num},
            run=run,
        )
    )
