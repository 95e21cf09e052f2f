"""Types of the phases about critics and of direct RLAIF; `cai.config` says what holds for all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cai.choices import Learner, RewardKind, Select, Until
from cai.config import SLCAIConfig
from cai.evaluation_config import SamplingConfig
from cai.ranges import check, fraction, positive
from cai.training_config import FineTuneConfig, PPOConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def _adapter_name(name: str) -> None:
    check(
        NAME.fullmatch(name) is not None,
        f"adapter_name={name} cannot name a folder: only letters, digits, '.', '_' and '-'",
    )


@dataclass(kw_only=True, slots=True)
class CritiqueSamplesConfig:
    """Rejection sampling of critiques: the best of several by what the revision gains."""

    samples_per_draft: int
    """Critiques of each draft under its drawn principle, each followed by a revision."""
    min_gain: float
    """The best critique of a draft is learned when the feedback prefers its revision to the draft
    with a probability of more than 0.5 plus this."""

    def __post_init__(self) -> None:
        positive(self, "samples_per_draft")
        check(
            0 <= self.min_gain < 0.5,
            f"min_gain must be at least 0 and below 0.5, not {self.min_gain}: it is a probability "
            "above 0.5",
        )


@dataclass(kw_only=True, slots=True)
class CritiqueModelConfig(SLCAIConfig):
    """A critic: an adapter that critiques, trained on trusted critiques and on those that helped.

    Drafts, critiques and revisions are sampled with the settings of phase 1; no policy is trained.
    """

    adapter_name: str
    """The critic is left in `<output_dir>/adapters/<adapter_name>`, which `start` of a model can
    name; one that was there is replaced."""
    trusted_held_out_frac: float
    """Share of the shipped conversations with trusted critiques that the critic is measured on."""
    critique_samples: CritiqueSamplesConfig
    critic: FineTuneConfig

    def __post_init__(self) -> None:
        SLCAIConfig.__post_init__(self)
        fraction(self, "trusted_held_out_frac")
        _adapter_name(self.adapter_name)
        check_one_critic(self, "phase=critique_model")
        main = self.critique_models["main"]
        check(
            main.start is None,
            "critique_models.main.start must be null: phase=critique_model trains a critic from "
            "the base. phase=critique_rl phase.learner=critique_model goes on with a trained one",
        )


@dataclass(kw_only=True, slots=True)
class UnjudgedScores:
    """What a rollout is worth that the feedback does not judge, by the reason; each is counted."""

    empty: float
    identical: float
    """`reward: pairwise`: the same text as the reference, or critiqued, as the draft."""
    too_long: float
    no_verdict: float


@dataclass(kw_only=True, slots=True)
class CritiqueRLConfig(SLCAIConfig):
    """PPO on the feedback's own answers, without a preference model."""

    learner: Learner
    reward: RewardKind
    """For `learner: policy`."""
    max_log_odds: float
    """Log-odds of a comparison are held within plus and minus this, nats."""
    unjudged: UnjudgedScores
    references: SamplingConfig
    """`reward: pairwise`: of the SL-CAI policy's own response to each training prompt."""
    unaccepted: float
    """`learner: critique_model`: score of a critique whose revision is not accepted."""
    adapter_name: str
    """`learner: critique_model`: as in `phase=critique_model`."""
    trusted_held_out_frac: float
    """As in `phase=critique_model`; give the same, or a critic is measured on what it learned."""
    ppo: PPOConfig
    """With `learner: critique_model`, `max_new_tokens` and `temperature` are those of critiques."""

    def __post_init__(self) -> None:
        SLCAIConfig.__post_init__(self)
        positive(self, "max_log_odds")
        fraction(self, "trusted_held_out_frac")
        _adapter_name(self.adapter_name)
        check(
            self.ppo.select is Select.final,
            f"ppo.select={self.ppo.select} needs a gold preference model, which only phase=rlaif "
            "trains; type phase.ppo.select=final",
        )
        if self.learner is Learner.critique_model:
            check_one_critic(self, "learner=critique_model")


def check_one_critic(config: SLCAIConfig, where: str) -> None:
    """Refuse an ensemble, and chains that go on until satisfied, where one critic is trained."""
    check(
        config.revisions.until is Until.fixed,
        f"revisions.until={config.revisions.until} has no effect with {where}, which trains a "
        "critic on single steps; type phase.revisions.until=fixed",
    )
    check(
        list(config.critique_models) == ["main"],
        f"critique_models must be main alone with {where}, found "
        f"{', '.join(config.critique_models)}: one critic is trained",
    )
