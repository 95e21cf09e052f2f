"""Preference-model scores: one object for PPO, calibration and evaluation.

A score is read at the end-of-sequence token of a response, where the preference model was trained
and calibrated (Bai et al. 2022a, app. A); anywhere else it would mean nothing. So PPO closes a
response that was cut (`closed`), and texts are encoded with that token at their end.

An ensemble's members are adapters with heads on one base, each calibrated by itself on SL-CAI
samples; `combined` makes one score of theirs. A model that is conditioned on principles scores a
response under those given with it, otherwise under some drawn for its conversation, the same ones
for every response to it, and takes their mean before the members are combined.

The preference model may have another base than the policy. Conversations are then encoded by its
own tokenizer and chat template, and a sampled response is decoded and encoded again; on the same
base a sampled response stays the tokens that were sampled.

Batches are a function of the lengths. In float32 a score does not depend on what else is in its
batch beyond 1e-5; in bfloat16 its last bits do. What does not fit the model's context has no score.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cai import ranks
from cai.adapters import active, forward_hidden
from cai.batches import TokenIds, collate, split_by_length
from cai.choices import Combine, PrincipleSampling
from cai.constitution import Constitution, Principle
from cai.errors import UserError
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.models import BaseModel
from cai.preference_measures import combined
from cai.progress import bar
from cai.prompts import criterion_message
from cai.seeds import python_rng
from cai.types import Message

SCORED_AT_ONCE = 32
"""Responses per call; within it they are batched by length."""

Sequences = Sequence[tuple[TokenIds, TokenIds]]
"""(Prompt ids, response ids); every response ends with the end-of-sequence token."""
TokenScore = Callable[[Sequences], list[float]]


def closed(response_ids: TokenIds, *, finished: bool, eos_id: int) -> tuple[int, ...]:
    """A response with the end-of-sequence token, which one that was cut does not have."""
    return (*response_ids,) if finished else (*response_ids, eos_id)


@torch.no_grad()
def score_responses(
    model: Tuned,
    head: ScoreHead,
    sequences: Sequences,
    *,
    adapter: str,
    micro_batch_size: int,
    pad_id: int,
) -> list[float]:
    """One adapter's scores, in the order given; ranks share the batches and all get all scores."""
    scores: dict[int, float] = {}
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    with active(model, adapter):
        for rows in ranks.share(split_by_length(lengths, micro_batch_size)):
            tokens = collate([sequences[row] for row in rows], pad_id=pad_id).to(model.device)
            hidden = forward_hidden(model, tokens.ids_BS, tokens.mask_BS, adapter=adapter)
            scores.update(zip(rows, head(tokens.last(hidden)).tolist(), strict=True))
    for others in ranks.gathered(scores):
        scores |= others
    return [scores[row] for row in range(len(sequences))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """The principles that a conditioned preference model scores under when none is given."""

    constitution: Constitution
    sampling: PrincipleSampling
    num: int
    """Different ones per conversation, as far as there are so many."""
    seed: int

    def draw(self, messages: Sequence[Message]) -> tuple[Principle, ...]:
        """Those of a conversation: a pure function of the seed and its text."""
        said = (part for message in messages for part in (message.role, message.content))
        return self.constitution.draw_several(
            python_rng(self.seed, "score_principles", *said),
            num=self.num,
            weighted=self.sampling is PrincipleSampling.weighted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How a preference model reads a conversation."""

    base: BaseModel
    criteria: Criteria | None
    """None: it is not conditioned on principles."""

    def prompt_ids(self, messages: Sequence[Message], principle: Principle | None) -> list[int]:
        """A conversation, under a principle where the model is conditioned on one."""
        if self.criteria is None or principle is None:
            return self.base.prompt_ids(messages)
        criterion = criterion_message(self.base.config.system_prompt, question=principle.compare)
        return self.base.encoder.conversation([criterion, *messages])

    def prompts(
        self, messages: Sequence[Message], principles: Sequence[Principle]
    ) -> list[list[int]]:
        """All readings of a conversation: under each of these principles, or under drawn ones."""
        if self.criteria is None:
            return [self.prompt_ids(messages, None)]
        under = principles or self.criteria.draw(messages)
        return [self.prompt_ids(messages, principle) for principle in under]

    def room(self, messages: Sequence[Message]) -> int:
        """Tokens that are left for a response when no principle is given."""
        longest = max(map(len, self.prompts(messages, ())))
        return self.base.config.max_context - longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A response to score."""

    messages: Sequence[Message]
    response: str
    principles: tuple[Principle, ...] = ()
    """What it is scored under by a conditioned model; empty: principles are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One preference model of an ensemble, or the only one."""

    adapter: str
    head: ScoreHead


MemberScores = tuple[float, ...]
"""Calibrated scores of one response, one per member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Two responses under the preference model."""

    a: MemberScores
    b: MemberScores
    prob_a: float
    """P(a preferred) that the model itself gives: the mean over members of the logistic of the
    difference before calibration, which is what their loss was computed from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A preference model, while its adapters are on its base."""

    reader: Reader
    model: Tuned
    """The reader's base with adapters."""
    members: tuple[Member, ...]
    combine: Combine
    micro_batch_size: int

    def texts(self, rows: Sequence[Row]) -> list[float | None]:
        """Scores of responses as text; None for one that does not fit."""
        return [
            None if scores is None else combined(scores, self.combine)
            for scores in self.by_member(rows)
        ]

    def by_member(self, rows: Sequence[Row]) -> list[MemberScores | None]:
        """Each member's scores of responses as text; None for one that does not fit."""
        found: list[MemberScores | None] = []
        encode = self.reader.base.encoder.response_ids
        with bar(len(rows), name="preference scores", unit="responses") as progress:
            for start in range(0, len(rows), SCORED_AT_ONCE):
                chunk = rows[start : start + SCORED_AT_ONCE]
                found += self._scores(
                    [
                        (self.reader.prompts(row.messages, row.principles), encode(row.response))
                        for row in chunk
                    ]
                )
                progress.update(len(chunk))
        return found

    def pairs(self, pairs: Sequence[tuple[Row, Row]]) -> list[PairScores | None]:
        """Two responses each; None where one does not fit."""
        scores = self.by_member([row for pair in pairs for row in pair])
        return [self._pair(a, b) for a, b in zip(scores[0::2], scores[1::2], strict=True)]

    def tokens(
        self, policy: BaseModel, conversations: Mapping[tuple[int, ...], Sequence[Message]]
    ) -> TokenScore:
        """Scores of what a policy samples, as PPO asks for them.

        Args:
            policy: What samples; its tokens are kept where it is the preference model's own base.
            conversations: The conversation of every prompt, by the policy's token ids of it.
        """
        base = self.reader.base
        same = policy.sha256 == base.sha256

        def response_ids(ids: TokenIds) -> TokenIds:
            return ids if same else base.encoder.response_ids(policy.encoder.decode(ids))

        def score(sequences: Sequences) -> list[float]:
            asked = [
                (self.reader.prompts(conversations[tuple(prompt)], ()), response_ids(response))
                for prompt, response in sequences
            ]
            return [self._combined(scores) for scores in self._scores(asked)]

        return score

    def _combined(self, scores: MemberScores | None) -> float:
        if scores is None:
            config = self.reader.base.config
            raise UserError(
                f"preference model: a sampled response has more tokens on {config.name} than its "
                f"max_context={config.max_context} leaves room for. Type a larger "
                "phase.preference_base.max_context, or a smaller phase.ppo.max_new_tokens"
            )
        return combined(scores, self.combine)

    def _pair(self, a: MemberScores | None, b: MemberScores | None) -> PairScores | None:
        if a is None or b is None:
            return None
        probs = [
            _logistic((one - other) * float(member.head.std))
            for one, other, member in zip(a, b, self.members, strict=True)
        ]
        return PairScores(a=a, b=b, prob_a=statistics.fmean(probs))

    def _scores(
        self, asked: Sequence[tuple[Sequence[TokenIds], TokenIds]]
    ) -> list[MemberScores | None]:
        """Each member's mean over the readings of a prompt, for (readings, response ids) rows."""
        limit = self.reader.base.config.max_context
        fits = [max(map(len, readings)) + len(ids) <= limit for readings, ids in asked]
        kept = [row for row, fit in zip(asked, fits, strict=True) if fit]
        sequences = [(reading, ids) for readings, ids in kept for reading in readings]
        by_member = [
            iter(
                score_responses(
                    self.model,
                    member.head,
                    sequences,
                    adapter=member.adapter,
                    micro_batch_size=self.micro_batch_size,
                    pad_id=self.reader.base.eos_id,
                )
            )
            for member in self.members
        ]
        return [
            tuple(statistics.fmean(next(own) for _ in readings) for own in by_member)
            if fit
            else None
            for fit, (readings, _) in zip(fits, asked, strict=True)
        ]


def _logistic(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value < 0:
        return math.exp(value) / (1 + math.exp(value))
    return 1 / (1 + math.exp(-value))
