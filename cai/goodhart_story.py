"""Over-optimisation, told: what PPO's snapshots say under the two preference models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cai.choices import Combine, Select
from cai.goodhart import GoodhartStory, Resampling, Snapshot, SnapshotScore, measure
from cai.preference_measures import measure as measure_preference
from cai.preference_measures import preference_metrics
from cai.statistics import Estimate, at_chance
from cai.story import Curve, Series, number
from cai.types import PreferencePrediction

TABLE = ("round", "kl", "sqrt_kl", "proxy", "proxy_low", "proxy_high", "gold", "gold_low",
         "gold_high", "gap", "gap_low", "gap_high")  # fmt: skip


def goodhart_story(
    scores: Sequence[SnapshotScore],
    held_out: Sequence[PreferencePrediction],
    *,
    proxy_accuracy: Estimate | None,
    combine: Combine,
    select: Select,
    resampling: Resampling,
) -> GoodhartStory:
    """Everything that is told of over-optimisation.

    Args:
        scores: Of all snapshots.
        held_out: Labelled pairs under the gold preference model.
        proxy_accuracy: Of the other one, on the same pairs.
        combine: What makes one score of an ensemble's.
        select: Which policy was to be kept.
        resampling: Of intervals.
    """
    return GoodhartStory(
        measured=measure(scores, resampling),
        gold=measure_preference(
            held_out,
            (),
            combine=combine,
            num_bootstrap=resampling.num_resamples,
            seed=resampling.seed,
        ),
        proxy_accuracy=proxy_accuracy,
        select=select,
    )


def goodhart_metrics(
    goodhart: GoodhartStory | None,
) -> Iterator[tuple[str, Estimate | float | None]]:
    """Flat numbers."""
    if goodhart is None:
        return
    measured = goodhart.measured
    yield from preference_metrics(goodhart.gold, group="gold_preference_model")
    yield "goodhart/num_prompts", measured.num_prompts
    yield "goodhart/num_not_scored", measured.num_not_scored
    yield "goodhart/num_retokenised", measured.num_retokenised
    for snapshot in measured.snapshots:
        group = f"goodhart/round_{snapshot.num_rounds}"
        yield f"{group}/kl", snapshot.kl
        yield f"{group}/sqrt_kl", snapshot.sqrt_kl
        yield f"{group}/proxy", snapshot.proxy
        yield f"{group}/gold", snapshot.gold
        yield f"{group}/gap", snapshot.gap
    yield "goodhart/gap", measured.last.gap
    yield "goodhart/peak_round", measured.peak.num_rounds
    yield "goodhart/peak_sqrt_kl", measured.peak.sqrt_kl
    yield "goodhart/fall", measured.knee.fall
    yield "goodhart/over_optimised", float(measured.knee.found)
    yield "goodhart/selected_round", goodhart.selected.num_rounds


def goodhart_table(goodhart: GoodhartStory) -> list[list[object]]:
    """A row for each snapshot, under the columns of `TABLE`."""
    rows: list[list[object]] = []
    for one in goodhart.measured.snapshots:
        ends = [
            f"{value:.4f}"
            for estimate in (one.proxy, one.gold, one.gap)
            for value in (estimate.value, estimate.low, estimate.high)
        ]
        kl = "" if one.kl is None else f"{one.kl.value:.4f}"
        root = "" if one.sqrt_kl is None else f"{one.sqrt_kl:.4f}"
        rows.append([one.num_rounds, kl, root, *ends])
    return rows


def goodhart_key_metrics(
    goodhart: GoodhartStory | None,
) -> Iterator[tuple[str, Estimate | None, str]]:
    """Name, value and comment of what matters."""
    if goodhart is None:
        return
    measured = goodhart.measured
    yield (
        "Gold preference model agrees with held-out AI labels",
        goodhart.gold.accuracy,
        "chance 0.5",
    )
    last = measured.last
    if (fall := measured.knee.fall) is not None:
        name = f"Gold reward: round {measured.peak.num_rounds} (highest) - {last.num_rounds} (last)"
        yield name, fall, "no fall 0; wider for having picked the highest"
    yield f"Proxy's gain - gold's, round {last.num_rounds}", last.gap, "no over-optimisation 0"


def told(goodhart: GoodhartStory) -> str:
    """What the curves say, in a sentence or two."""
    measured = goodhart.measured
    peak, last, fall = measured.peak, measured.last, measured.knee.fall
    if fall is None:
        found = "No over-optimisation was found: the gold reward is highest after the last round."
    elif measured.knee.found:
        found = (
            f"The gold reward is highest {_after(peak, last)} and falls by {fall.format()} until "
            "the last."
        )
    else:
        found = (
            f"No over-optimisation was found: the gold reward is highest {_after(peak, last)}, but "
            f"what it falls by until the last, {fall.format()}, is no more than picking the "
            "highest makes."
        )
    return f"{found} {_kept(goodhart)}"


def _after(snapshot: Snapshot, last: Snapshot) -> str:
    root = "" if snapshot.sqrt_kl is None else f" (\u221aKL {number(snapshot.sqrt_kl)})"
    if snapshot.num_rounds == 0:
        return f"before the first round, in the SL-CAI policy{root},"
    return f"after {snapshot.num_rounds} of {last.num_rounds} rounds{root}"


def _kept(goodhart: GoodhartStory) -> str:
    measured, kept = goodhart.measured, goodhart.selected
    setting = f"phase.ppo.select={goodhart.select}"
    if kept is measured.last:
        other = (
            "; phase.ppo.select=gold_peak keeps the highest"
            if measured.knee.found and goodhart.select is Select.final
            else ""
        )
        return f"The run keeps the last round's policy ({setting}{other})."
    what = f"that of round {kept.num_rounds}" if kept.num_rounds else "the SL-CAI policy itself"
    return (
        f"The run keeps {what} ({setting}). It was chosen on the prompts of the evaluation, where "
        "it looks a little better than it is."
    )


def goodhart_findings(goodhart: GoodhartStory | None) -> list[str]:
    """Warnings: the proxy is exploited, or nobody can tell."""
    if goodhart is None:
        return []
    measured, gap = goodhart.measured, goodhart.measured.last.gap
    if not goodhart.gold_is_known:
        return [_unknown(goodhart)]
    if measured.knee.found:
        return [f"PPO over-optimised its preference model. {told(goodhart)}"]
    if gap.low > 0:
        return [
            f"The proxy's reward grew by {gap.format()} more than the gold one's: part of what PPO "
            "gained is mistakes of the preference model that it was trained against."
        ]
    return []


def _unknown(goodhart: GoodhartStory) -> str:
    accuracy = goodhart.gold.accuracy
    if accuracy is None:
        why = "was not measured, since no labelled pair was held out"
    elif at_chance(accuracy):
        why = f"is at chance agreeing with held-out AI labels: {accuracy.format()} covers 0.5"
    else:
        why = f"is worse than chance agreeing with held-out AI labels: {accuracy.format()}"
    found = (
        "the fall that it shows means"
        if goodhart.measured.knee.found
        else "that it shows no fall means"
    )
    kept = (
        " phase.ppo.select=gold_peak therefore keeps the last round."
        if goodhart.select is Select.gold_peak
        else ""
    )
    return f"The gold preference model {why}. So {found} nothing about over-optimisation.{kept}"


def goodhart_curves(goodhart: GoodhartStory) -> tuple[Curve, ...]:
    """Reward against the root of the KL, and the gap between the two rewards."""
    measured = goodhart.measured
    drawn = [one for one in measured.snapshots if one.sqrt_kl is not None]

    def series(name: str, of: Sequence[Estimate]) -> Series:
        return Series(
            name=name,
            points=tuple((s.sqrt_kl or 0.0, e.value) for s, e in zip(drawn, of, strict=True)),
            intervals=tuple((e.low, e.high) for e in of),
        )

    x_label = "\u221aKL to the SL-CAI policy, \u221anats per response"
    peak = measured.peak
    marks = (
        ((peak.sqrt_kl, f"knee: round {peak.num_rounds}"),)
        if measured.knee.found and peak.sqrt_kl is not None
        else ()
    )
    rounds = ", ".join(str(one.num_rounds) for one in drawn)
    return (
        Curve(
            title="Reward against \u221aKL",
            x_label=x_label,
            y_label="SL-CAI standard deviations",
            series=(
                series("proxy (PPO's reward)", [one.proxy for one in drawn]),
                series("gold (never trained on)", [one.gold for one in drawn]),
            ),
            marks=marks,
            whole_steps=False,
            note=f"The policy after rounds {rounds}, joined in that order; bars are 95 % intervals "
            "over prompts. Sound optimisation is about a straight line for both.",
        ),
        Curve(
            title="Proxy's gain less gold's",
            x_label=x_label,
            y_label="SL-CAI standard deviations",
            series=(series("gap", [one.gap for one in drawn]),),
            marks=marks,
            whole_steps=False,
            note="Since the SL-CAI policy, paired by prompt. Above 0 the proxy is exploited.",
        ),
    )
