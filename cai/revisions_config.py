"""Types of the settings of critique and revision; `cai.config` says what holds for all settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cai.choices import RevisionVote, Until
from cai.evaluation_config import SamplingConfig
from cai.feedback_config import (
    EndpointConfig,
    FeedbackConfig,
    LikelihoodConfig,
    MultipleChoiceConfig,
    PointwiseConfig,
    ScoreConfig,
    TunedConfig,
)
from cai.model_config import ModelConfig
from cai.ranges import check, fraction, not_negative, positive

MAIN = "main"
"""The critique model that every run has; the controls are made by it alone."""
UNCHANGED = "unchanged"
"""What a vote calls the response as it was."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(kw_only=True, slots=True)
class RevisionsConfig:
    """Critique and revision (sec. 3.1)."""

    until: Until
    """How many steps a chain has: `num_revisions`, or until its principles hold."""
    num_revisions: int
    """Critique-revision steps per prompt with `until: fixed`; the paper takes 4."""
    threshold: float
    """With `until: satisfied`: P(holds) from which on a principle counts as kept."""
    max_rounds: int
    """With `until: satisfied`: critique-revision steps per prompt, at most."""
    principles_checked: int | None
    """With `until: satisfied`: so many of the applicable principles are checked, drawn once for
    each prompt; null: all of them."""
    vote: RevisionVote
    """Who chooses between the revisions of several critique models."""
    vote_method: Any
    """With `vote: members`: how each critique model compares two revisions; a feedback method. Not
    typed as one, or the schema of a phase that extends another would narrow it to what all have."""
    keep_candidate: bool
    """Whether the response as it was stands in the vote, too."""
    num_few_shot: int
    """Worked examples before the conversation; one is always the no-op example when above 0."""
    critique: SamplingConfig
    revision: SamplingConfig

    def __post_init__(self) -> None:
        positive(self, "num_revisions", "max_rounds")
        not_negative(self, "num_few_shot")
        fraction(self, "threshold")
        if self.principles_checked is not None:
            positive(self, "principles_checked")
        check(
            self.critique.shard_size == self.revision.shard_size,
            "critique.shard_size and revision.shard_size must be equal: a shard is one batch of "
            "chains",
        )
        check(
            self.until is Until.satisfied or self.principles_checked is None,
            "principles_checked is for until=satisfied, and until is fixed: every step has its "
            "drawn principle; type phase.revisions.until=satisfied, or leave it out",
        )
        check(
            self.vote is not RevisionVote.none or not self.keep_candidate,
            "keep_candidate=true needs a vote, or nothing stands against the response as it was; "
            "type phase.revisions.vote=feedback or phase.revisions.vote=members",
        )
        self._check_method()

    def _check_method(self) -> None:
        """A member's own model votes, untrained: some methods cannot be asked that way."""
        method = self.vote_method
        asked = MultipleChoiceConfig | LikelihoodConfig | PointwiseConfig | ScoreConfig
        served = isinstance(method, asked) and not isinstance(method, EndpointConfig)
        check(
            self.vote is not RevisionVote.members or served,
            f"vote_method={method.method} cannot be asked of every member's own model; type "
            "feedback@phase.revisions.vote_method=likelihood (or pointwise, score, "
            "multiple_choice, chain_of_thought), or phase.revisions.vote=feedback",
        )
        check(
            self.vote is not RevisionVote.members or method.model is None,
            "vote_method.model must be null: every member votes with its own model",
        )

    @property
    def num_steps(self) -> int:
        """Steps of a chain, at most."""
        return self.num_revisions if self.until is Until.fixed else self.max_rounds

    @property
    def asks_feedback(self) -> bool:
        """Whether the run's feedback decides anything about the revisions."""
        return self.until is Until.satisfied or self.vote is RevisionVote.feedback

    def step_settings(self) -> dict[str, Any]:
        """What decides a fixed number of steps of one critique model, for a stage's digest."""
        return {
            "num_revisions": self.num_revisions,
            "num_few_shot": self.num_few_shot,
            "critique": asdict(self.critique),
            "revision": asdict(self.revision),
        }

    def settings(self) -> dict[str, Any]:
        """What decides the chains, for a stage's digest; settings without effect are left out."""
        found = self.step_settings()
        if self.until is Until.satisfied:
            del found["num_revisions"]
            names = ("until", "threshold", "max_rounds", "principles_checked")
            found |= {name: getattr(self, name) for name in names}
        if self.vote is not RevisionVote.none:
            found |= {"vote": self.vote, "keep_candidate": self.keep_candidate}
        return found


def check_members(models: Mapping[str, ModelConfig], config: RevisionsConfig) -> None:
    """Refuse critique models that are no ensemble, or an ensemble without a vote."""
    names = list(models)
    check(
        MAIN in models,
        f"critique_models must have a member main; found {', '.join(names) or 'none'}",
    )
    for name in names:
        check(
            _NAME.fullmatch(name) is not None and name not in (UNCHANGED, "feedback"),
            f"critique_models.{name} is no name for a member: it must be a letter, then letters, "
            f"digits and _, all small, and not {UNCHANGED} or feedback, which a vote calls the "
            "response as it was and the run's feedback",
        )
    voting = config.vote is not RevisionVote.none
    check(
        len(names) > 1 or not voting,
        f"revisions.vote={config.vote} is for several critique models, and there is only main; "
        "type +model@phase.critique_models.second=<model>, or phase.revisions.vote=none",
    )
    check(
        len(names) == 1 or voting,
        f"critique_models has {', '.join(names)}, and nothing chooses between their revisions; "
        "type phase.revisions.vote=feedback, or phase.revisions.vote=members",
    )
    seen: dict[tuple[object, ...], str] = {}
    systems = reviewer_systems(models)
    for name, model in models.items():
        other = seen.setdefault((*_substance(model), systems[name] or None), name)
        check(
            other == name,
            f"critique_models.{other} and critique_models.{name} are one and the same critique "
            f"model twice; give {name} another model, phase.critique_models.{name}.start=<folder "
            f"of an adapter>, or phase.critique_models.{name}.system_prompt=<text>",
        )


def check_verdicts(config: RevisionsConfig, feedback: FeedbackConfig) -> None:
    """Refuse feedback that has no verdict on one response, where one is asked for."""
    check(
        config.until is Until.fixed
        or isinstance(feedback, PointwiseConfig | ScoreConfig | TunedConfig),
        f"phase.revisions.until=satisfied asks whether one response keeps to a principle, and "
        f"feedback={feedback.method} only compares two; type feedback=tuned, feedback=pointwise "
        "or feedback=score, or phase.revisions.until=fixed",
    )


def reviewer_systems(models: Mapping[str, ModelConfig]) -> dict[str, str | None]:
    """What each member has in place of the reviewer's system turn; None: the reviewer's.

    A model's `system_prompt` is the policy's, and a reviewer's is another. Only a member whose
    `system_prompt` is not that of `main` was given one of its own.
    """
    own = models[MAIN].system_prompt
    return {
        name: None if model.system_prompt == own else model.system_prompt
        for name, model in models.items()
    }


def in_order(models: Mapping[str, ModelConfig]) -> list[str]:
    """Members, `main` first, in one order however they were typed."""
    return sorted(models, key=lambda name: (name != MAIN, name))


def _substance(model: ModelConfig) -> tuple[object, ...]:
    """What two members with the same system turn must not share."""
    return (model.source, model.path, model.revision, model.start)
