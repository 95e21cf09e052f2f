"""Shares of the training signal and scores by principle, against numbers made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from cai import attribution_story as chapter
from cai.attribution import (
    AttributionStory,
    LearnedLabel,
    effective_number,
    policy_scores,
    principle_attribution,
    share_of,
    split_labels,
)
from cai.attribution_record import attribution_metrics, attribution_record, attribution_table
from cai.choices import Condition
from cai.constitution import Constitution
from cai.seeds import derive_seed
from cai.stages.preference_pairs import mixed, validation_prompts
from cai.tracking import MemoryTracker
from cai.types import (
    Comparison,
    Message,
    PolicyComparison,
    PreferencePair,
    PrincipleLabel,
    Prompt,
    PromptKind,
    RevisionChain,
    RevisionOutcome,
    RevisionStep,
    Sample,
    Split,
    Unjudged,
)


def prompt(name: str) -> Prompt:
    return Prompt(
        id=name,
        kind=PromptKind.red_team,
        category="c",
        source="s",
        split=Split.train,
        messages=(Message(role="user", content=name),),
    )


def compared(
    name: str, labels: dict[str, float], *, weight: float = 1.0, unjudged: Unjudged | None = None
) -> Comparison:
    return Comparison(
        prompt=prompt(name),
        response_a="a",
        response_b="b",
        principle_ids=tuple(labels),
        judgements=(),
        labels=tuple(
            PrincipleLabel(principle_id=principle, prob_a=prob, weight=weight)
            for principle, prob in labels.items()
        )
        if unjudged is None
        else (),
        prob_a=None if unjudged else sum(labels.values()) / len(labels),
        weight=weight,
        unjudged=unjudged,
        seed=0,
    )


def learned(comparisons: list[Comparison], *, conditioned: bool = False) -> list[LearnedLabel]:
    return [
        label
        for row, c in enumerate(comparisons)
        for label in split_labels(row, c.labels, conditioned=conditioned)
    ]


def test_shares_by_hand() -> None:
    labels = learned(
        [
            compared("p", {"x": 0.9}),  # .8
            compared("q", {"y": 0.3}, weight=0.5),  # .5 * .4 = .2
            compared("r", {"x": 0.5}),  # 0: it says nothing
            compared("s", {"x": 0.1, "y": 0.9}),  # .4 each, though together they say 0.5
        ]
    )
    assert share_of(labels, "x") == pytest.approx((0.8 + 0.4) / 1.8)
    assert share_of(labels, "y") == pytest.approx((0.2 + 0.4) / 1.8)
    assert share_of(labels, "z") == 0
    # A preference model that reads the principle learns the last pair twice.
    labels = learned([compared("p", {"x": 0.9}), compared("s", {"x": 0.1, "y": 0.9})],
                     conditioned=True)  # fmt: skip
    assert share_of(labels, "y") == pytest.approx(0.8 / 2.4)


def test_without_any_signal_there_is_no_share() -> None:
    labels = learned([compared("p", {"x": 0.5})])
    assert share_of(labels, "x") is None
    assert share_of([], "x") is None
    assert effective_number([]) is effective_number([0.0, 0.0]) is None


def test_people_have_their_share_and_all_shares_sum_to_one() -> None:
    ai = learned([compared("p", {"x": 0.75}), compared("q", {"y": 0.75})])
    human = [LearnedLabel(comparison=None, principle_id=None, prob_a=1.0, weight=1.0)] * 2
    every = [*ai, *human]
    assert share_of(every, None) == pytest.approx(2 / 3)
    # Of the summed weight 4 people get 1 and the labels 3, which are half as decided.
    every = mixed(ai, human, human_frac=0.25, setting="phase.preference_model")
    assert share_of(every, None) == pytest.approx(1.0 / (1.0 + 3 * 0.5))
    assert math.fsum(share_of(every, name) for name in ("x", "y", None)) == pytest.approx(1)


def test_the_effective_number_is_that_of_equal_principles() -> None:
    assert effective_number([0.25] * 4) == pytest.approx(4)
    assert effective_number([0.4, 0.4, 0.0]) == pytest.approx(2)  # people have the rest
    assert effective_number([1.0, 0.0]) == pytest.approx(1)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_number([0.9, 0.1]) == pytest.approx(math.exp(entropy))


def test_the_signal_is_twice_the_gradient_of_an_untrained_model() -> None:
    """d/dm of the cross-entropy of s(m) with p is s(0) - p = 0.5 - p at a margin of 0."""
    for prob in (0.0, 0.2, 0.5, 0.97):
        (label,) = split_labels(
            0, [PrincipleLabel(principle_id="x", prob_a=prob, weight=0.7)], conditioned=False
        )
        assert label.signal == pytest.approx(0.7 * 2 * abs(0.5 - prob))


def chain(*steps: tuple[str, RevisionOutcome]) -> RevisionChain:
    sample = Sample(text="t", num_tokens=1, logprob=0.0, finished=True, seed=0)
    return RevisionChain(
        prompt=prompt("p"),
        draft=sample,
        steps=tuple(
            RevisionStep(
                step=number,
                principle_id=name,
                critique=sample,
                revision=sample,
                outcome=outcome,
                response="t",
            )
            for number, (name, outcome) in enumerate(steps, start=1)
        ),
    )


def test_comparisons_critiques_and_revisions_are_counted() -> None:
    chains = [
        chain(("x", RevisionOutcome.revised), ("x", RevisionOutcome.copied)),
        chain(("y", RevisionOutcome.shortened), ("x", RevisionOutcome.shortened)),
    ]
    labels = learned([compared("p", {"x": 0.5}), compared("p", {"x": 0.9, "y": 0.8})])
    row = principle_attribution("x", "Be x.", labels, chains)
    assert (row.num_comparisons, row.num_critiques, row.num_accepted) == (2, 3, 2)
    assert row.share == pytest.approx(0.4 / 0.7)


def policies(probs: dict[str, float] | Unjudged, name: str, *, after: str = "rl_cai"):
    unjudged = probs if isinstance(probs, Unjudged) else None
    return PolicyComparison(
        before="sl_cai",
        after=after,
        comparison=compared(name, {"x": 0.5} if unjudged else probs, unjudged=unjudged),
    )


def test_scores_by_hand() -> None:
    rows = [
        policies({"x": 0.9, "y": 0.2}, "p"),
        policies({"y": 0.4, "x": 0.7}, "q"),
        policies(Unjudged.identical, "r"),
        policies(Unjudged.too_long, "s"),
        policies({"x": 1.0, "y": 1.0}, "p", after="dpo"),
    ]
    first, second = policy_scores(rows, ["x", "y"], num_bootstrap=200, seed=0)
    assert (first.before, first.after, second.after) == ("sl_cai", "rl_cai", "dpo")
    assert (first.num_prompts, first.num_identical, first.num_unjudged) == (4, 1, 1)
    x, y = first.by_principle
    assert x.value == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    assert y.value == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    assert x.num == 3
    assert 0.5 <= x.low <= x.value <= x.high <= 0.9
    # The mean's interval is over prompts: .55, .55 and .5, however far its principles are apart.
    assert first.mean.value == pytest.approx((0.55 + 0.55 + 0.5) / 3)
    assert first.mean.high <= 0.55
    assert second.mean.value == 1


def test_policies_without_a_label_have_no_score() -> None:
    (only,) = policy_scores([policies(Unjudged.empty, "p")], ["x"], num_bootstrap=20, seed=0)
    assert (only.mean, only.by_principle, only.num_unjudged) == (None, (None,), 1)


def account(comparisons: list[Comparison], medical: Constitution, **settings) -> AttributionStory:
    """The chapter of a preference model's run, without a run."""
    values = {"validation_frac": 0.5, "condition": Condition.none, "human_frac": None} | settings
    short = values.pop("short_enough", None)
    people = values.pop("people", [])
    model = SimpleNamespace(config=SimpleNamespace(**values), short_enough=short, half=None)
    outputs = object.__new__(chapter.rlaif.Outputs)
    object.__setattr__(outputs, "preference_model", model)
    object.__setattr__(outputs, "principle_scores", ())
    counts = {"human": len(people), "dropped_too_long": int(short is not None)}
    return chapter.attribution_story(
        SimpleNamespace(data=SimpleNamespace(human_comparisons=people)),
        SimpleNamespace(seed=3, constitution=medical),
        outputs,
        SimpleNamespace(comparisons=comparisons, chains=[]),
        {"preference_model": counts},
        SimpleNamespace(num=20, seed=0),
    )


@pytest.fixture
def rows(medical: Constitution) -> list[Comparison]:
    first, second, *_ = (p.id for p in medical.principles)
    return [
        compared("p", {first: 0.9}),
        compared("p", {first: 0.5}, unjudged=Unjudged.identical),
        compared("q", {second: 0.7}),
        compared("r", {first: 0.6, second: 0.1}),
        compared("s", {second: 0.8}),
    ]


def test_held_out_and_unjudged_pairs_count_for_nothing(
    rows: list[Comparison], medical: Constitution
) -> None:
    held_out = validation_prompts(rows, frac=0.5, seed=derive_seed(3, "pm"))
    assert len(held_out) == 2
    told = account(rows, medical)
    kept = [c for c in rows if c.prompt.id not in held_out and c.prob_a is not None]
    assert told.num_comparisons == len(kept) == 2
    assert math.fsum(row.share for row in told.principles) == pytest.approx(1)
    other = learned(kept)
    for row in told.principles:
        assert row.share == pytest.approx(share_of(other, row.id))
    assert told.max_share == max(row.share for row in told.principles)
    assert told.people_share is None


@pytest.mark.parametrize("condition", list(Condition))
def test_pairs_that_were_too_long_count_for_nothing(
    rows: list[Comparison], medical: Constitution, condition: Condition
) -> None:
    asked = []

    def short_enough(_context, pairs):
        asked.append(pairs)
        return [pair.messages[0].content != "r" for pair in pairs]

    told = account(
        rows, medical, validation_frac=0.0, short_enough=short_enough, condition=condition
    )
    assert told.num_comparisons == 3
    first, second, *rest = told.principles
    assert first.share == pytest.approx(0.8 / 1.8)
    assert second.share == pytest.approx(1.0 / 1.8)
    assert {row.share for row in rest} == {0.0}
    assert len(asked[0]) == (5 if condition is Condition.principle else 4)


def test_people_are_told_apart(rows, medical, monkeypatch) -> None:
    pair = PreferencePair(
        messages=(), response_a="a", response_b="b", prob_a=1.0, weight=1.0, source="human",
        principle_ids=(),
    )  # fmt: skip
    monkeypatch.setattr(chapter.data, "load_comparisons", lambda people: people)
    told = account(rows[:1], medical, validation_frac=0.0, people=[pair, pair])
    assert told.people_share == pytest.approx(2 / 2.8)
    assert told.principles[0].share == pytest.approx(0.8 / 2.8)
    assert told.effective_principles == pytest.approx(1)


def test_the_record_and_the_metrics_say_the_same(rows, medical) -> None:
    ids = [p.id for p in medical.principles]
    scores = policy_scores(
        [policies(dict.fromkeys(ids, 0.8) | {ids[1]: 0.1}, name) for name in "pqr"],
        ids,
        num_bootstrap=50,
        seed=0,
    )
    told = dataclasses.replace(account(rows, medical), scores=scores)
    record = json.loads(json.dumps(attribution_record(told, medical, document="medical.yaml")))
    assert math.fsum(row["share"] for row in record["principles"]) == pytest.approx(1)
    assert record["constitution"]["document"] == "medical.yaml"
    assert record["principles"][1]["scores"]["rl_cai_over_sl_cai"]["value"] == pytest.approx(0.1)
    assert record["principles"][0]["compare"] == medical.principles[0].compare
    metrics = dict(attribution_metrics(told))
    assert metrics["attribution/max_share"] == record["max_share"]
    assert metrics["attribution/rl_cai_over_sl_cai_num_higher"] == len(ids) - 1
    assert metrics["attribution/rl_cai_over_sl_cai_num_lower"] == 1
    assert len(metrics) == 6  # however many principles there are
    tracker = MemoryTracker()
    tracker.table("attribution", *attribution_table(told))
    columns, cells = tracker.tables["attribution"]
    table = [dict(zip(columns, row, strict=True)) for row in cells]
    assert [row["principle"] for row in table] == ids
    for row, kept in zip(table, record["principles"], strict=True):
        assert float(row["rl_cai_over_sl_cai"]) == kept["scores"]["rl_cai_over_sl_cai"]["value"]
        assert float(row["share"]) == kept["share"]
