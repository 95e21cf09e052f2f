"""DPO's chapter of a run's account: its curves, and its implicit rewards on held-out pairs.

A policy trained by DPO ranks two responses by `beta (log pi - log ref)`, its implicit reward
(Rafailov et al. 2023, sec. 4). How that ranking agrees with the labels of held-out pairs is what a
preference model's accuracy is in the other phase, on the same pairs.
"""

from __future__ import annotations

from cai.chapters import Bootstrap, Outputs, Records
from cai.choices import Combine
from cai.config import Config, DPOPhaseConfig
from cai.context import CURVE
from cai.modules.dpo import start_loss
from cai.phases import dpo
from cai.preference_measures import measure
from cai.story import Curve, DPOStory, curve, number
from cai.training_config import DPOConfig
from cai.types import PreferencePrediction


def dpo_story(
    config: Config,
    outputs: Outputs,
    records: Records,
    counts: dict[str, dict[str, int]],
    bootstrap: Bootstrap,
) -> DPOStory | None:
    """DPO by step and on held-out pairs; None in another phase."""
    if not isinstance(outputs, dpo.Outputs) or not isinstance(config.phase, DPOPhaseConfig):
        return None
    settings = config.phase.dpo
    sided = [pair for pair in records.held_out if pair.prob_a != 0.5]
    rewards = [_preferred_first(pair) for pair in sided]
    return DPOStory(
        num_ai=counts["dpo_policy"]["ai"],
        num_human=counts["dpo_policy"]["human"],
        settings={
            "loss": str(settings.loss),
            "beta": f"{settings.beta:g}",
            "label_smoothing": f"{settings.label_smoothing:g}",
            "num_epochs": str(settings.num_epochs),
            "learning_rate": f"{settings.optimizer.learning_rate:g}",
        },
        curves=_curves(outputs.policy.json(CURVE), settings),
        measured=measure(
            records.held_out,
            (),
            combine=Combine.mean,
            num_bootstrap=bootstrap.num,
            seed=bootstrap.seed,
        ),
        margin=bootstrap.mean([preferred - other for preferred, other in rewards]),
        preferred_reward=bootstrap.mean([preferred for preferred, _ in rewards]),
    )


def _preferred_first(pair: PreferencePrediction) -> tuple[float, float]:
    """Implicit rewards of the side that the label prefers, and of the other."""
    (reward_a,), (reward_b,) = pair.scores_a, pair.scores_b
    return (reward_a, reward_b) if pair.prob_a > 0.5 else (reward_b, reward_a)


def _curves(rows: list[dict[str, float]], settings: DPOConfig) -> tuple[Curve, ...]:
    start = number(start_loss(settings))
    specs = (
        (
            {"train/loss": "training"},
            "DPO loss",
            "per pair",
            f"A policy that says what SL-CAI says has {start}.",
        ),
        (
            {"rewards/chosen": "preferred side", "rewards/rejected": "other side"},
            "Implicit rewards",
            "beta times nats per response",
            "Where the preferred side falls below 0 too, both became less likely and the "
            "probability went to responses that nobody compared.",
        ),
        (
            {"rewards/accuracies": "ranked as labelled"},
            "Training pairs ranked as labelled",
            "share",
            "Equal rewards count as wrong, so it starts at 0.",
        ),
        (
            {"logps/chosen": "preferred side", "logps/rejected": "other side"},
            "Log-probabilities of the pairs' responses",
            "nats per response",
            "",
        ),
        (
            {"train/logratio": "DPO to SL-CAI"},
            "Log-ratio to the SL-CAI policy",
            "nats per response",
            "Mean over responses that SL-CAI sampled: an estimate of -KL(SL-CAI || DPO).",
        ),
    )
    drawn = (
        curve(rows, keys, title=title, x_label="optimizer step", y_label=y_label, note=note)
        for keys, title, y_label, note in specs
    )
    return tuple(item for item in drawn if item is not None)
