"""Where PPO's scores come from: what a stage needs of a source of them, and the preference model.

A `Reward` is what a phase hands to the stage: it knows its artifacts and what else decides its
scores. While the stage runs it is open (`beside`) as a `Scores`, which scores one round at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from cai import adapters
from cai.artifacts import Artifact, Work
from cai.choices import ValueAdapter
from cai.context import RunContext
from cai.full_weights import Tuned
from cai.heads import ScoreHead
from cai.models import POLICY, VALUE, BaseModel
from cai.rollout import Sampled, ValueFunction
from cai.scoring import Scorer, TokenScore
from cai.stages.preference_model import PreferenceModel
from cai.training_config import PPOConfig
from cai.types import Message, Prompt, Rollout, parse_lines

ROLLOUTS = "rollouts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a policy has sampled in one round; row k answers prompt k."""

    iteration: int
    """Counted from 0."""
    prompts: Sequence[Prompt]
    sampled: Sequence[Sampled]


class Scores(Protocol):
    """A source of scores while a policy is trained on them."""

    def room(self, messages: Sequence[Message]) -> float:
        """Tokens that are left for a response to a conversation."""
        ...

    def value_function(
        self, config: PPOConfig, base: BaseModel, model: Tuned, *, seed: int
    ) -> ValueFunction:
        """PPO's value function before training."""
        ...

    def token_score(
        self, base: BaseModel, prompts: Sequence[Prompt], current: Callable[[], Round]
    ) -> TokenScore:
        """Scores of closed sequences, as PPO asks for them: all rows of one round in one call.

        Args:
            base: The policy's.
            prompts: All that a round may have.
            current: The round whose rows are being scored.
        """
        ...

    def finish(self, work: Work, rollouts: bytes) -> dict[str, int]:
        """Write what is kept of the scoring into the artifact; what is counted of it."""
        ...


class Reward(Protocol):
    """A source of scores as a phase hands it to the stage."""

    def inputs(self) -> dict[str, Artifact]:
        """The artifacts that it is made of."""
        ...

    def identity(self, context: RunContext) -> dict[str, Any]:
        """What else decides its scores."""
        ...

    def limit(self) -> str:
        """The context that bounds `room`, for a message; empty without one."""
        ...

    def beside(
        self, context: RunContext, base: BaseModel, tuned: Tuned, work: Work
    ) -> AbstractContextManager[Scores]:
        """Itself, next to the policy.

        Args:
            context: The run.
            base: The policy's base.
            tuned: That base with the policy's adapters, which may get further ones.
            work: The stage's.
        """
        ...


def no_value(base: BaseModel, model: Tuned, config: PPOConfig, *, source: str) -> ValueFunction:
    """A value function that says 0 everywhere; its own adapter is a copy of `source`."""
    size = base.model.config.get_text_config().hidden_size
    head = ScoreHead(size, seed=0).zeroed().to(base.model.device)
    if config.value_adapter is ValueAdapter.shared:
        return ValueFunction(adapter=POLICY, head=head)
    adapters.copy_adapter(model, source, VALUE)
    return ValueFunction(adapter=VALUE, head=head)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceReward:
    """The preference model's calibrated score (sec. 4.1)."""

    model: PreferenceModel

    def inputs(self) -> dict[str, Artifact]:
        """The trained model."""
        return {"preference_model": self.model.artifact}

    def identity(self, context: RunContext) -> dict[str, Any]:
        """How its members' scores become one."""
        return self.model.identity()

    def limit(self) -> str:
        """Its base's context."""
        return f" and in the preference model's {self.model.model.max_context}"

    @contextlib.contextmanager
    def beside(
        self, context: RunContext, base: BaseModel, tuned: Tuned, work: Work
    ) -> Iterator[PreferenceScores]:
        """Its adapters on the policy's base, or on its own."""
        with self.model.beside(context, base, tuned) as scorer:
            yield PreferenceScores(
                scorer=scorer, same_base=scorer.reader.base.sha256 == base.sha256
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceScores:
    """A preference model while a policy is trained on its scores."""

    scorer: Scorer
    same_base: bool
    """Whether it reads the policy's own tokens."""

    def room(self, messages: Sequence[Message]) -> float:
        """What its context leaves; it reads an end-of-sequence token more than was sampled."""
        return self.scorer.reader.room(messages) - 1

    def value_function(
        self, config: PPOConfig, base: BaseModel, model: Tuned, *, seed: int
    ) -> ValueFunction:
        """The preference model's, as far as it is of the policy's base.

        With an adapter of its own it is the preference score (of the first member of an ensemble)
        at every token. On the policy's adapter it is the preference head there, or 0 when the
        preference model has another base.
        """
        member = self.scorer.members[0]
        if config.value_adapter is ValueAdapter.own:
            adapters.copy_adapter(model, member.adapter, VALUE)
            return ValueFunction(adapter=VALUE, head=member.head.as_value_head())
        if self.same_base:
            return ValueFunction(adapter=POLICY, head=member.head.as_value_head())
        size = base.model.config.get_text_config().hidden_size
        head = ScoreHead(size, seed=seed).zeroed().to(base.model.device)
        return ValueFunction(adapter=POLICY, head=head)

    def token_score(
        self, base: BaseModel, prompts: Sequence[Prompt], current: Callable[[], Round]
    ) -> TokenScore:
        """Scores by the sequences alone."""
        conversations = {tuple(base.prompt_ids(p.messages)): p.messages for p in prompts}
        return self.scorer.tokens(base, conversations)

    def finish(self, work: Work, rollouts: bytes) -> dict[str, int]:
        """Sampled responses that were no text, such as one cut inside a character.

        A preference model of another base reads them with a replacement character.
        """
        if self.same_base:
            return {}
        found = parse_lines(Rollout, rollouts.decode("ascii"), ROLLOUTS)
        return {"not_text": sum("\ufffd" in rollout.sample.text for rollout in found)}
