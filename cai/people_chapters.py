"""The chapters on people's labels, read from a run's artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cai.artifacts import Artifact
from cai.chapters import Bootstrap, Outputs
from cai.config import Config
from cai.context import CURVE
from cai.edge_cases import FILE, LABELLED, EdgeCase, EdgeLabel, as_rows
from cai.human_comparisons import SHIPPED
from cai.job import Job
from cai.people_story import EdgeRow, EdgeStory, PeopleStory
from cai.phases import hybrid, rlhf
from cai.preference_measures import PreferenceMeasures, measure
from cai.stages.preference_model import VALIDATION
from cai.statistics import pair_accuracy, wilson_interval
from cai.story import Curve, curve, label
from cai.types import PreferencePrediction


def people_story(
    config: Config,
    outputs: Outputs,
    counts: dict[str, dict[str, int]],
    bootstrap: Bootstrap,
) -> PeopleStory | None:
    """What RLHF learned from; None in a phase without it."""
    if not isinstance(outputs, rlhf.Outputs | hybrid.Outputs):
        return None
    source, own = config.data.human_comparisons.path, counts["human_comparisons"]
    assert source is not None
    before = isinstance(outputs, hybrid.Outputs)
    people = outputs.people
    return PeopleStory(
        source=source,
        shipped=source == SHIPPED,
        num_learned=own["pairs"] - own["held_out"],
        num_held_out=own["held_out"],
        dropped={
            name.removeprefix("dropped_"): num
            for name, num in own.items()
            if name.startswith("dropped_")
        },
        begun=label(people.begun.name),
        num_examples=counts["sft_policy"]["examples"] if "sft_policy" in counts else None,
        curves=_curves(people, before=before),
        measured=_measured(people.preference_model.artifact, people, bootstrap) if before else None,
    )


def _measured(model: Artifact, people: rlhf.Trained, bootstrap: Bootstrap) -> PreferenceMeasures:
    return measure(
        model.records(PreferencePrediction, VALIDATION),
        (),
        combine=people.preference_model.config.combine,
        num_bootstrap=bootstrap.num,
        seed=bootstrap.seed,
    )


def _curves(people: rlhf.Trained, *, before: bool) -> tuple[Curve, ...]:
    """The fine-tune, and in a run that goes on from RLHF its other two trainings."""
    begun = label(people.begun.name)
    specs = [
        (
            people.begun.adapter,
            {"train/loss": "training"},
            ("SFT loss", "optimizer step", "nats per token"),
        )
    ]
    if before:
        specs += [
            (
                people.preference_model.artifact,
                {"train/loss": "training"},
                ("RLHF preference-model loss", "optimizer step", "nats per pair"),
            ),
            (
                people.policy,
                {"objective/scores": "score", "objective/rlhf_reward": "score minus penalties"},
                ("RLHF reward", "PPO round", f"{begun} standard deviations"),
            ),
            (
                people.policy,
                {"objective/kl": f"KL to {begun}"},
                (f"RLHF, KL to the {begun} policy", "PPO round", "nats per response"),
            ),
        ]
    drawn = (
        curve(artifact.json(CURVE), keys, title=title, x_label=x_label, y_label=y_label)
        for artifact, keys, (title, x_label, y_label) in specs
        if CURVE in artifact.manifest()["files"]
    )
    return tuple(one for one in drawn if one is not None)


def edge_story(job: Job, outputs: Outputs) -> EdgeStory | None:
    """What CAI was unsure of; None in another phase."""
    if not isinstance(outputs, hybrid.Outputs):
        return None
    cases, labels = outputs.edge.cases.records(EdgeCase), labels_of(outputs)
    counts = outputs.edge.cases.manifest()["counts"]
    file = outputs.edge.labels
    return EdgeStory(
        num_pairs=counts["pairs"],
        found=wilson_interval(counts["found"], counts["pairs"]),
        reasons=dict(Counter(str(case.reason) for case in cases)),
        rows=tuple(
            EdgeRow(
                id=case.id,
                prompt=case.prompt.messages[-1].content,
                response_a=case.response_a,
                response_b=case.response_b,
                reason=label(str(case.reason)),
                doubt=case.doubt,
                label=str(labels[case.id]) if case.id in labels else "",
            )
            for case in cases
        ),
        num_labelled=len(labels),
        label_file=file.path if file else None,
        sides_with_people=pair_accuracy(_on_their_side(cases, labels)),
        list_file=f"{job.run_dir}/{FILE}",
        next_command="" if file else f"{job.command} phase.labels={job.run_dir}/{LABELLED}",
    )


def _on_their_side(cases: Sequence[EdgeCase], labels: dict[str, EdgeLabel]) -> list[float]:
    """The feedback's mean P(people's side) of every decided case."""
    found = []
    for case in cases:
        said = labels.get(case.id)
        if said in (EdgeLabel.a, EdgeLabel.b):
            mean = sum(one.prob_a for one in case.labels) / len(case.labels)
            found.append(mean if said is EdgeLabel.a else 1 - mean)
    return found


def labels_of(outputs: hybrid.Outputs) -> dict[str, EdgeLabel]:
    """What people said, by id of the edge case."""
    return outputs.edge.labels.labels if outputs.edge.labels else {}


def listed(outputs: Outputs) -> dict[str, str]:
    """Files of the run folder for people: the list of edge cases, with the labels there are."""
    if not isinstance(outputs, hybrid.Outputs):
        return {}
    return {FILE: as_rows(outputs.edge.cases.records(EdgeCase), labels_of(outputs))}
