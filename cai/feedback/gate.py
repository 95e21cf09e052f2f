"""The gate: whether a feedback is better than chance and than taking the longer response.

It passes when the whole interval of its accuracy on labelled pairs lies above 0.5 and the accuracy
is above what "longer wins" gets on the same pairs. A feedback that was not measured does not pass.
An ensemble has a gate of its own and one for each member, on that member's accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cai.choices import Gate
from cai.feedback.measures import Measures
from cai.feedback_config import EnsembleConfig, FeedbackConfig
from cai.statistics import Estimate

CHANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate and what came to it."""

    member: str | None
    """Of an ensemble; None for the feedback itself."""
    gate: Gate
    problems: tuple[str, ...]
    """Why it does not pass; empty when it does."""

    @property
    def passed(self) -> bool:
        """Whether it is better than both baselines."""
        return not self.problems

    @property
    def setting(self) -> str:
        """What sets it."""
        return "feedback.gate" if self.member is None else f"feedback.members.{self.member}.gate"

    def told(self) -> str:
        """The outcome of a gate that did not pass, as half a sentence."""
        what = "The feedback" if self.member is None else f"The feedback's member {self.member}"
        return f"{what} did not pass its gate ({self.setting}={self.gate}): " + ", and ".join(
            self.problems
        )


def problems(accuracy: Estimate | None, longer_wins: Estimate | None) -> tuple[str, ...]:
    """Why a feedback does not beat its baselines; empty when it does."""
    if accuracy is None or longer_wins is None:
        return ("it was not measured: there was no labelled pair that it could judge",)
    found = []
    if accuracy.low <= CHANCE:
        found.append(f"its accuracy {accuracy.format()} does not lie above chance, {CHANCE}")
    if accuracy.value <= longer_wins.value:
        found.append(
            f"it is right on {accuracy.value:.2f} of the pairs, and taking the longer response "
            f"on {longer_wins.value:.2f}"
        )
    return tuple(found)


def gates(config: FeedbackConfig, measured: Measures) -> tuple[GateResult, ...]:
    """Every gate that is not off, the feedback's own first."""
    found = [
        GateResult(
            member=None,
            gate=config.gate,
            problems=problems(measured.accuracy, measured.longer_wins),
        )
    ]
    if isinstance(config, EnsembleConfig):
        accuracies = {member.name: member.accuracy for member in measured.members}
        found += [
            GateResult(
                member=name,
                gate=member.gate,
                problems=problems(accuracies.get(name), measured.longer_wins),
            )
            for name, member in config.members.items()
        ]
    return tuple(result for result in found if result.gate is not Gate.off)


def not_passed(results: Iterable[GateResult], gate: Gate) -> list[GateResult]:
    """The gates of one kind that did not pass."""
    return [result for result in results if result.gate is gate and not result.passed]


def stop_message(results: Iterable[GateResult], *, source: str) -> str | None:
    """What ends a run; None when every gate that may stop it is passed.

    Args:
        results: Of `gates`.
        source: The labelled pairs, for people.
    """
    stopping = not_passed(results, Gate.stop)
    if not stopping:
        return None
    told = "\n".join(f"{result.told()}." for result in stopping)
    settings = " ".join(f"{result.setting}=warn" for result in stopping)
    return (
        f"{told}\n"
        f"  It was measured on {source}. Nothing was trained on its labels; what was computed is "
        "kept.\n"
        f"  To go on all the same, type {settings}; for another method feedback=<option>, for "
        "another model model@phase.feedback_model=<option>."
    )
