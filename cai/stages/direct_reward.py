"""The feedback's own answer as PPO's score: direct RLAIF (Lee et al. 2023, arXiv:2309.00267).

There is no preference model between feedback and policy: every rollout is judged while the policy
learns, under a principle drawn for its round and row. `pairwise` compares it with the SL-CAI
policy's own response to the prompt (stage `reward_references`); the score is the log-odds of the
mean of both orders, held within `max_log_odds`. `score` takes the value that the method gives to
one response by itself (Lee et al. ask for a number from 1 to 10 in words).

What cannot be judged has a configured score, by the reason, and is counted. A score is a function
of the round, so a run that was killed goes on with the same ones. The value function starts at 0:
there is no head that it could start from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import ranks
from cai.artifacts import Artifact, Work, write_atomically
from cai.choices import RewardKind
from cai.constitution import Principle
from cai.context import RunContext
from cai.critic_record import RolloutJudgement
from cai.critique_config import CritiqueRLConfig, UnjudgedScores
from cai.errors import ConfigError, UserError
from cai.feedback.base import Feedback, Pair
from cai.feedback.hygiene import shown, shown_turns
from cai.feedback.pointwise import Pointwise
from cai.feedback.score import Score
from cai.feedback.single import Single
from cai.feedback_config import FeedbackConfig, PointwiseConfig, ScoreConfig
from cai.full_weights import Tuned
from cai.models import REFERENCE, BaseModel
from cai.rollout import ValueFunction
from cai.scoring import Sequences, TokenScore
from cai.seeds import derive_seed
from cai.stages.comparisons import Judge
from cai.stages.rewards import Round, no_value
from cai.training_config import PPOConfig
from cai.types import Comparison, Message, Prompt, Response, Unjudged, dump_line, parse_lines

JUDGEMENTS = "judgements.jsonl"
STREAM = "direct_reward"


def check_reward(config: CritiqueRLConfig, feedback: FeedbackConfig) -> None:
    """See that the feedback can give the score that is asked for.

    Raises:
        ConfigError: with what to type instead.
    """
    if config.reward is RewardKind.pairwise:
        return
    if not isinstance(feedback, PointwiseConfig | ScoreConfig):
        raise ConfigError(
            f"phase.reward=score needs a method that gives a value to one response, and "
            f"feedback={feedback.method} compares two. Type feedback=pointwise or feedback=score, "
            "or phase.reward=pairwise"
        )


def log_odds(prob: float, *, bound: float) -> tuple[float, float]:
    """Log-odds of a probability, nats, and the same held within plus and minus `bound`.

    A probability of 0 or 1 (hard labels) counts as one float's step inside.
    """
    inside = min(max(prob, 1e-12), 1 - 1e-12)
    value = math.log(inside) - math.log1p(-inside)
    return value, min(max(value, -bound), bound)


def unjudged_score(scores: UnjudgedScores, reason: Unjudged) -> float:
    """What a rollout is worth that was not judged for this reason."""
    return float(getattr(scores, reason.value))


def judgement_of(
    comparison: Comparison,
    *,
    iteration: int,
    row: int,
    max_log_odds: float,
    unjudged: UnjudgedScores,
) -> RolloutJudgement:
    """The score that a comparison of a rollout (a) with something else (b) makes."""
    value, score = None, None
    if comparison.prob_a is not None:
        value, score = log_odds(comparison.prob_a, bound=max_log_odds)
    else:
        assert comparison.unjudged is not None
        score = unjudged_score(unjudged, comparison.unjudged)
    return RolloutJudgement(
        iteration=iteration,
        row=row,
        prompt_id=comparison.prompt.id,
        principle_id=comparison.principle_ids[0],
        comparison=comparison,
        value=value,
        unjudged=comparison.unjudged,
        score=score,
    )


def without_reference(responses: Sequence[Response]) -> frozenset[tuple[Message, ...]]:
    """Conversations whose reference is empty; a rollout could only be fined for it."""
    return frozenset(one.prompt.messages for one in responses if not shown(one.sample.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectReward:
    """The feedback as a source of scores."""

    judge: Judge
    config: CritiqueRLConfig
    references: Artifact | None
    """The SL-CAI policy's own responses to training prompts; None where a single value is asked."""

    def inputs(self) -> dict[str, Artifact]:
        """The feedback's artifacts, and the references."""
        return self.judge.inputs() | ({"references": self.references} if self.references else {})

    def identity(self, context: RunContext) -> dict[str, Any]:
        """The feedback and what its answers are worth."""
        return self.judge.identity(context) | {
            "reward": str(self.config.reward),
            "max_log_odds": self.config.max_log_odds,
            "prompts": "with a reference",
            "unjudged": dataclasses.asdict(self.config.unjudged),
        }

    def limit(self) -> str:
        """What is too long for the feedback is counted, but an empty reference is none."""
        return ", with an SL-CAI response to be compared with" if self.references else ""

    @contextlib.contextmanager
    def beside(
        self, context: RunContext, base: BaseModel, tuned: Tuned, work: Work
    ) -> Iterator[DirectScores]:
        """The feedback on bases of its own, which the policy's adapters are not on."""
        apart = dataclasses.replace(context, models=context.models.apart())
        responses = [] if self.references is None else self.references.records(Response)
        folder = work.scratch / "judgements"
        folder.mkdir(exist_ok=True)
        yield DirectScores(
            feedback=self.judge.feedback(apart, STREAM),
            config=self.config,
            references={one.prompt.id: one.sample.text for one in responses},
            unanswered=without_reference(responses),
            folder=folder,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectScores:
    """The feedback while a policy is trained on its answers."""

    feedback: Feedback
    config: CritiqueRLConfig
    references: dict[str, str]
    """By prompt."""
    unanswered: frozenset[tuple[Message, ...]]
    """Prompts whose reference is empty: nothing could be compared with it."""
    folder: Path
    """Judgements by round."""

    def room(self, messages: Sequence[Message]) -> float:
        """As much as the policy's own context has; none for a prompt without a reference."""
        return -math.inf if tuple(messages) in self.unanswered else math.inf

    def value_function(
        self, config: PPOConfig, base: BaseModel, model: Tuned, *, seed: int
    ) -> ValueFunction:
        """0 everywhere."""
        return no_value(base, model, config, source=REFERENCE)

    def token_score(
        self, base: BaseModel, prompts: Sequence[Prompt], current: Callable[[], Round]
    ) -> TokenScore:
        """Scores of all rows of a round, whose judgements are kept."""

        def score(sequences: Sequences) -> list[float]:
            found = current()
            assert [row.prompt_ids for row in found.sampled] == [ids for ids, _ in sequences]
            texts = [base.encoder.decode(row.response_ids) for row in found.sampled]
            judged = self.judge(found.iteration, found.prompts, texts)
            if ranks.is_first():
                lines = "".join(map(dump_line, judged)).encode("ascii")
                write_atomically(self.folder / f"{found.iteration:05d}.jsonl", lines)
            return [one.score for one in judged]

        return score

    def judge(
        self, iteration: int, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> list[RolloutJudgement]:
        """What the feedback says of one round's responses; row k answers prompt k."""
        drawn = [
            self.feedback.draw(prompt, iteration * len(prompts) + row, num=1)[0]
            for row, prompt in enumerate(prompts)
        ]
        if self.config.reward is RewardKind.score:
            return self._values(iteration, prompts, texts, drawn)
        pairs = [
            Pair(
                prompt=prompt,
                response_a=text,
                response_b=self.references[prompt.id],
                principles=(principle,),
            )
            for prompt, text, principle in zip(prompts, texts, drawn, strict=True)
        ]
        return [
            judgement_of(
                comparison,
                iteration=iteration,
                row=row,
                max_log_odds=self.config.max_log_odds,
                unjudged=self.config.unjudged,
            )
            for row, comparison in enumerate(
                ranks.in_parts(pairs, self.config.ppo.shard_size, self.feedback.compare)
            )
        ]

    def _values(
        self,
        iteration: int,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        drawn: Sequence[Principle],
    ) -> list[RolloutJudgement]:
        method = self.feedback.method
        if not isinstance(method, Pointwise | Score):
            raise UserError("phase.reward=score needs feedback=pointwise or feedback=score")
        asked = {
            row: Single(
                messages=shown_turns(prompt.messages),
                response=shown(text),
                principle=principle,
                seed=derive_seed(self.feedback.seed, "value", prompt.id, principle.id),
            )
            for row, (prompt, text, principle) in enumerate(zip(prompts, texts, drawn, strict=True))
            if shown(text)
        }
        found = ranks.in_parts(list(asked.values()), self.config.ppo.shard_size, method.values)
        values = dict(zip(asked, found, strict=True))
        return [
            self._valued(iteration, row, prompt, principle, values.get(row, Unjudged.empty))
            for row, (prompt, principle) in enumerate(zip(prompts, drawn, strict=True))
        ]

    def _valued(
        self,
        iteration: int,
        row: int,
        prompt: Prompt,
        principle: Principle,
        found: float | Unjudged,
    ) -> RolloutJudgement:
        failed = isinstance(found, Unjudged)
        return RolloutJudgement(
            iteration=iteration,
            row=row,
            prompt_id=prompt.id,
            principle_id=principle.id,
            comparison=None,
            value=None if failed else found,
            unjudged=found if failed else None,
            score=unjudged_score(self.config.unjudged, found) if failed else found,
        )

    def finish(self, work: Work, rollouts: bytes) -> dict[str, int]:
        """Keep all judgements, and count what was not judged."""
        return keep_judgements(self.folder, work)


def keep_judgements(folder: Path, work: Work) -> dict[str, int]:
    """Write all rounds' judgements into the artifact, and count those without a label."""
    ranks.barrier()
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl")))
    if ranks.is_first():
        write_atomically(work.folder / JUDGEMENTS, content)
    found = parse_lines(RolloutJudgement, content.decode("ascii"), JUDGEMENTS)
    counts = Counter(f"unjudged_{one.unjudged}" for one in found if one.unjudged is not None)
    return dict(sorted(counts.items()))
