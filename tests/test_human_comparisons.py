"""The comparisons that come with the package: TRL's format, balanced, and of no evaluation."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cai import paths
from cai.choices import DataFormat
from cai.config import ComparisonSourceConfig
from cai.errors import UserError
from cai.human_comparisons import SHIPPED, load_comparisons, read_comparisons
from cai.stages.human_comparisons import held_out_prompts, preferred, prompt_name

AIMS = ("harmlessness", "helpfulness", "over_refusal", "conversation")


def source(path: str = SHIPPED, **changes: object) -> ComparisonSourceConfig:
    values = {
        "path": path,
        "format": DataFormat.auto,
        "prompt_column": None,
        "chosen_column": "chosen",
        "rejected_column": "rejected",
        "hub_split": "train",
        "max_rows": 500,
    }
    return ComparisonSourceConfig(**(values | changes))


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    path = paths.PACKAGE / "datasets" / f"{SHIPPED}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def text(row: dict, side: str) -> str:
    (message,) = row[side]
    assert message["role"] == "assistant"
    return message["content"]


def test_rows_are_trl_preferences_and_say_who_labelled_them(rows):
    assert len(rows) >= 120
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["labelled_by"] for row in rows} == {"authors of cai"}
    counts = Counter(row["aim"] for row in rows)
    assert set(counts) == set(AIMS)
    assert min(counts[aim] for aim in AIMS[:3]) >= 30
    for row in rows:
        roles = [message["role"] for message in row["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert text(row, "chosen") != text(row, "rejected")
        assert text(row, "chosen").strip() == text(row, "chosen") != ""


def test_neither_length_nor_an_opening_gives_the_label_away(rows):
    longer = [len(text(row, "chosen")) > len(text(row, "rejected")) for row in rows]
    assert 0.45 <= sum(longer) / len(rows) <= 0.55
    for aim in AIMS[:3]:
        own = [flag for flag, row in zip(longer, rows, strict=True) if row["aim"] == aim]
        assert 0.4 <= sum(own) / len(own) <= 0.6, aim
    for side in ("chosen", "rejected"):
        openings = Counter(" ".join(text(row, side).split()[:2]) for row in rows)
        assert openings.most_common(1)[0][1] <= 0.06 * len(rows), openings.most_common(3)
    for mark in ("!", "?", "\n", ":", ";"):
        sides = [sum(mark in text(row, side) for row in rows) for side in ("chosen", "rejected")]
        assert abs(sides[0] - sides[1]) <= 0.2 * len(rows), (mark, sides)


def test_no_prompt_is_in_any_other_shipped_set(rows):
    mine = {row["prompt"][-1]["content"].casefold() for row in rows}
    assert len(mine) == len(rows)
    others = [
        path for path in (paths.PACKAGE / "datasets").rglob("*.jsonl") if path.stem != SHIPPED
    ]
    assert len(others) > 10
    for path in others:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            texts = [m["content"] for m in row.get("messages", [])]
            texts += [value for value in row.values() if isinstance(value, str)]
            for found in texts:
                assert found.casefold() not in mine, (path.name, found)


def test_they_are_read_whatever_columns_are_configured(rows):
    found = read_comparisons(source())
    assert (found.num_rows, found.dropped) == (len(rows), {})
    assert len(found.pairs) == len(rows)
    chosen = {text(row, "chosen") for row in rows}
    assert {preferred(pair) for pair in found.pairs} == chosen
    assert 0.35 < sum(pair.prob_a for pair in found.pairs) / len(rows) < 0.65
    assert read_comparisons(source(prompt_column="other", chosen_column="x")) == found
    assert load_comparisons(source(max_rows=5)) == list(found.pairs[:5])
    with pytest.raises(UserError, match="this built-in set has prompts and no comparisons"):
        load_comparisons(source("benign"))


def test_a_prompt_s_pairs_are_held_out_together_and_by_the_seed():
    pairs = load_comparisons(source())
    twice = [*pairs, *pairs[:10]]
    held_out = held_out_prompts(twice, frac=0.2, seed=0)
    assert len(held_out) == round(0.2 * len({prompt_name(pair.messages) for pair in pairs}))
    assert held_out == held_out_prompts(twice[::-1], frac=0.2, seed=0)
    assert held_out != held_out_prompts(twice, frac=0.2, seed=1)
    assert held_out_prompts(twice, frac=0.0, seed=0) == set()
    assert len(held_out_prompts(twice[:2], frac=0.01, seed=0)) == 1
