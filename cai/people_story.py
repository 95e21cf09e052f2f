"""What people's labels are and did: comparisons of RLHF, and edge cases of Constitutional AI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai.preference_measures import PreferenceMeasures, preference_metrics
from cai.statistics import Estimate, at_chance

if TYPE_CHECKING:
    from cai.story import Curve

MIN_LABELS = 8
"""Fewer labels than this cannot tell whether people side with the feedback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleStory:
    """Comparisons by people that a policy was trained on."""

    source: str
    """Their file, hub id or name."""
    shipped: bool
    """Whether they are the package's own, which nobody outside this project labelled."""
    num_learned: int
    num_held_out: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    begun: str
    """The policy that PPO started from, as people read it."""
    num_examples: int | None
    """Preferred responses that it was fine-tuned on; None where it came from elsewhere."""
    curves: tuple[Curve, ...]
    measured: PreferenceMeasures | None
    """RLHF's preference model on held-out pairs, where it is not the run's own chapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRow:
    """One edge case as a page shows it."""

    id: str
    prompt: str
    response_a: str
    response_b: str
    reason: str
    doubt: float
    label: str
    """Empty where nobody has decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStory:
    """AI comparisons that the feedback is unsure of, and what people said of them."""

    num_pairs: int
    """Comparisons that were put to the feedback under every principle."""
    found: Estimate | None
    """Share of them that is an edge case."""
    reasons: dict[str, int]
    """Of those listed."""
    rows: tuple[EdgeRow, ...]
    """Those listed, the least sure first."""
    num_labelled: int
    label_file: str | None
    """Where the labels are from; None: nobody has labelled yet."""
    sides_with_people: Estimate | None
    """Labelled cases where the feedback's mean label is on people's side, ties left out."""
    list_file: str
    """Where the list is, for people to fill in."""
    next_command: str
    """What to type with the list filled in; empty when it was typed."""


def people_key_metrics(
    people: PeopleStory | None, edge: EdgeStory | None
) -> Iterator[tuple[str, Estimate | None, str]]:
    """Label, estimate and comment of each."""
    if people is not None and people.measured is not None:
        rule = people.measured.longer_wins
        comment = "chance 0.5" + (f"; longer wins {rule.value:.2f}" if rule else "")
        yield "RLHF's model agrees with held-out human labels", people.measured.accuracy, comment
    if edge is not None:
        yield "AI comparisons that are edge cases", edge.found, ""
        if edge.sides_with_people is not None:
            yield "Feedback is on people's side of edge cases", edge.sides_with_people, "chance 0.5"


def people_findings(people: PeopleStory | None) -> list[str]:
    """What a reader must know about the labels before any number."""
    found = []
    if people is not None and people.shipped:
        found.append(
            f"The human labels are the package's own {people.num_learned + people.num_held_out} "
            "comparisons, written and labelled by the authors of cai to be clear; no crowd worker "
            "saw them. RLHF here shows that the method works, not what people prefer: for that "
            "name their comparisons with data.human_comparisons.path."
        )
    if people is not None and people.measured is not None:
        accuracy = people.measured.accuracy
        if accuracy is not None and accuracy.low <= 0.5:
            how = "at chance" if at_chance(accuracy) else "worse than chance"
            found.append(
                f"RLHF's preference model is {how} agreeing with held-out human labels: "
                f"{accuracy.format()}. What the RLHF policy was rewarded for is not what they say."
            )
    return found


def edge_findings(edge: EdgeStory | None) -> list[str]:
    """Labels that are missing, few, or against the feedback."""
    if edge is None:
        return []
    if edge.label_file is None and edge.rows:
        return [
            f"The last step waits for people: {len(edge.rows)} edge cases have no label yet (what "
            "to type is at the end)."
        ]
    if edge.label_file is None:
        return [
            "No AI comparison is an edge case: the feedback is of one mind about all "
            f"{edge.num_pairs} of them, so there is nothing for people to decide."
        ]
    found = []
    missing = len(edge.rows) - edge.num_labelled
    if missing:
        found.append(
            f"{missing} of {len(edge.rows)} edge cases have no label; nothing learned them."
        )
    if edge.num_labelled < MIN_LABELS:
        found.append(
            f"The last fine-tune had {edge.num_labelled} labels by people: too few to expect a "
            "change beyond these pairs."
        )
    return found


def next_steps(edge: EdgeStory | None) -> tuple[str, ...]:
    """Lines that say how a run goes on; empty where nothing is left to do."""
    if edge is None or edge.label_file is not None or not edge.rows:
        return ()
    return (
        'Next: copy the list, put "a", "b" or "tie" in place of null where you can decide, and go '
        "on. Everything up to here is reused.",
        f"List: {edge.list_file}",
        f"Type: {edge.next_command}",
    )


def people_metrics(
    people: PeopleStory | None, edge: EdgeStory | None
) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat numbers."""
    if people is not None:
        yield "people/num_learned", people.num_learned
        yield "people/num_held_out", people.num_held_out
        if people.measured is not None:
            yield from preference_metrics(people.measured, group="rlhf_preference_model")
    if edge is not None:
        yield "edge_cases/num_pairs", edge.num_pairs
        yield "edge_cases/found_rate", edge.found
        yield "edge_cases/num_listed", len(edge.rows)
        yield "edge_cases/num_labelled", edge.num_labelled
        yield "edge_cases/sides_with_people", edge.sides_with_people
        for reason, num in edge.reasons.items():
            yield f"edge_cases/{reason}", num
