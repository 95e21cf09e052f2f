"""Stages `audit_labels` and `audit_wordings`: the same pairs under every principle.

The first asks each principle's own question, which is all that leaving principles out and comparing
two documents needs; the second asks it in other words and asks the opposite. A method reads a
pair's responses once for all questions where it can (`tuned`); any other is asked once for each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.artifacts import MANIFEST, Artifact, Work, digest_of, in_shards
from cai.audit.framings import rules, wordings
from cai.audit.labels import Framing, PairLabels, PrincipleAnswer
from cai.constitution import Principle
from cai.context import RunContext, Stage
from cai.errors import UserError
from cai.feedback.base import Feedback, Pair
from cai.feedback.measures import flips_with_order
from cai.stages.comparisons import Judge
from cai.types import Comparison, Prompt, Response

PAIRS_PER_SHARD = 4
"""Part of the stages."""
LABELS = "audit_labels"

Question = tuple[Framing, int, Principle]
"""Framing, number of the wording, and the principle with that comparison form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampled:
    """A pair to be labelled."""

    name: str
    prompt: Prompt
    response_a: str
    response_b: str


def pairs_of_run(folder: str) -> Artifact:
    """The `pairs` of a finished run, from the store beside or above it.

    Raises:
        UserError: when there is no such run, or it has no pairs.
    """
    told, run = f"audit.pairs_from={folder}", Path(folder).expanduser()
    try:
        stages = json.loads((run / MANIFEST).read_bytes())["stages"]
        digest = {row["stage"]: row["digest"] for row in stages}["pairs"]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{told}: this is no folder of a finished run: its {MANIFEST} cannot be read "
            f"({type(error).__name__})"
        ) from error
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{told}: this run has no pairs of responses; name one of phase=rlaif or phase=dpo"
        ) from error
    for parent in run.resolve().parents:
        artifact = Artifact(
            stage="pairs", digest=digest, folder=parent / "store" / "pairs" / digest
        )
        if artifact.complete:
            return artifact
    raise UserError(f"{told}: no folder above it has store/pairs/{digest}")


def labels(context: RunContext, *, judge: Judge, pairs: Artifact, num: int) -> Artifact:
    """`PairLabels` of the first `num` pairs, under each principle's own question."""
    asked = [(Framing.plain, 0, one) for one in context.constitution.asked]
    return _stage(context, judge=judge, pairs=pairs, num=num, name=LABELS, asked=asked, wording="")


def other_wordings(context: RunContext, *, judge: Judge, pairs: Artifact, num: int) -> Artifact:
    """`PairLabels` of the same pairs: the questions in other words, and the opposite ones."""
    principles = context.constitution.asked
    asked = [question for one in principles for question in wordings(one)]
    wording = digest_of(rules())
    return _stage(
        context,
        judge=judge,
        pairs=pairs,
        num=num,
        name="audit_wordings",
        asked=asked,
        wording=wording,
    )


def _stage(
    context: RunContext,
    *,
    judge: Judge,
    pairs: Artifact,
    num: int,
    name: str,
    asked: Sequence[Question],
    wording: str,
) -> Artifact:
    def run(work: Work) -> None:
        # One stream for both stages: letters drawn for a pair are the same in every wording.
        feedback = judge.feedback(context, LABELS)

        def make(chunk: Sequence[_Sampled], advance: Callable[[int], None]) -> list[PairLabels]:
            found = _labelled(feedback, chunk, asked)
            advance(len(chunk) * len(asked))
            return found

        records = in_shards(
            work,
            _sampled(pairs.records(Response))[:num],
            kind=PairLabels,
            shard_size=PAIRS_PER_SHARD,
            make=make,
            unit="labels",
            units_per_item=len(asked),
        )
        work.write_records(records)
        answers = [answer for record in records for answer in record.answers]
        work.counts = {
            "labels": len(answers),
            "judged": sum(answer.prob_a is not None for answer in answers),
            "pairs": len(records),
        }

    return context.run(
        Stage(
            name=name,
            version=1,
            config={"num": num},
            inputs={"pairs": pairs, **judge.inputs()},
            identity=judge.identity(context) | {"wording": wording},
            expect={"labels": num * len(asked), "pairs": num},
            run=run,
        )
    )


def _sampled(responses: Sequence[Response]) -> list[_Sampled]:
    by_prompt: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        by_prompt[response.prompt.id].append(response)
    return [
        _Sampled(
            name=f"{prompt_id}-{k // 2}",
            prompt=own[k].prompt,
            response_a=own[k].sample.text,
            response_b=own[k + 1].sample.text,
        )
        for prompt_id, own in by_prompt.items()
        for k in range(0, len(own) - 1, 2)
    ]


def _labelled(
    feedback: Feedback, chunk: Sequence[_Sampled], asked: Sequence[Question]
) -> list[PairLabels]:
    """All questions about all pairs of a shard as one batch, so that what can be is read once."""
    items = [
        Pair(
            prompt=one.prompt,
            response_a=one.response_a,
            response_b=one.response_b,
            principles=(principle,),
        )
        for one in chunk
        for _, _, principle in asked
    ]
    compared = feedback.compare(items)
    num = len(asked)
    return [
        PairLabels(
            name=one.name,
            prompt=one.prompt,
            response_a=one.response_a,
            response_b=one.response_b,
            answers=tuple(
                _answer(question, comparison)
                for question, comparison in zip(
                    asked, compared[place * num : (place + 1) * num], strict=True
                )
            ),
        )
        for place, one in enumerate(chunk)
    ]


def _answer(question: Question, comparison: Comparison) -> PrincipleAnswer:
    framing, wording, principle = question
    side_by_side = any(judgement.first is not None for judgement in comparison.judgements)
    return PrincipleAnswer(
        principle_id=principle.id,
        framing=framing,
        wording=wording,
        prob_a=comparison.prob_a,
        flips=flips_with_order(comparison) if side_by_side else None,
        unjudged=comparison.unjudged,
    )
