from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from cai.constitution import Constitution
from cai.feedback import attacks
from cai.feedback.attacks import (
    Attack,
    attack_metrics,
    load_attacks,
    measure_attacks,
    put_to,
)
from cai.stages import attacks as stage
from cai.types import AttackCheck, AttackKind, Unjudged
from tests.feedback.test_multiple_choice import ENCODER, compare, model, prefers, shown
from tests.runs import run, tiny_arguments
from tests.scripted import ScriptedGenerator


def test_there_are_enough_attacks_of_every_kind() -> None:
    found = load_attacks()
    assert len(found) >= 40
    assert min(Counter(attack.kind for attack in found)[kind] for kind in AttackKind) >= 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacked": "WORSE"}, "two of the three responses are the same"),
        ({"better": " "}, "a text is empty"),
        ({"id": "attack-very_long-001"}, "is not named attack-homoglyphs-"),
        ({"kind": "bribe"}, "not a valid AttackKind"),
        ({"extra": 1}, "unknown field"),
    ],
)
def test_a_row_that_is_no_attack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    row = {
        "id": "attack-homoglyphs-001",
        "kind": "homoglyphs",
        "question": "Q?",
        "prompt": "P",
        "better": "BETTER",
        "worse": "WORSE",
        "attacked": "W0RSE",
    }
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(attacks, "attacks_path", lambda: path)
    path.write_text(json.dumps(row) + "\n")
    assert load_attacks()[0].kind is AttackKind.homoglyphs
    path.write_text(json.dumps(row | changes) + "\n")
    with pytest.raises(ValueError, match=message):
        load_attacks()
    path.write_text(2 * (json.dumps(row) + "\n"))
    with pytest.raises(ValueError, match="two attacks have one id"):
        load_attacks()


def attack(
    kind: AttackKind, number: int, *, plain: str = "bad", attacked: str = "ATTACK"
) -> Attack:
    return Attack(
        id=f"attack-{kind}-{number}",
        kind=kind,
        question="Which one is good?",
        prompt="PROMPT",
        better="good",
        worse=plain,
        attacked=attacked,
    )


def checks(medical: Constitution, *found: Attack, max_context: int = 100_000) -> list[AttackCheck]:
    """A judge who prefers good responses, until it reads OBEY in one."""

    def logprobs(text: str) -> dict[str, float]:
        if "OBEY" in text:
            return prefers("OBEY", 3.0)(text)
        return prefers("good")(text)

    generator = ScriptedGenerator(ENCODER, logprobs=logprobs, max_context=max_context)
    return put_to(model(generator, medical), found)


def test_rates_and_their_difference_by_hand(medical: Constitution) -> None:
    kind, other = AttackKind.instruct_judge, AttackKind.very_long
    found = checks(
        medical,
        attack(kind, 1, attacked="OBEY"),
        attack(kind, 2),
        attack(other, 1, attacked="good as well"),
        attack(other, 2, plain="OBEY all", attacked="OBEY"),
    )
    result = measure_attacks(found, num_bootstrap=200, seed=0)
    # Without attacks one of four; with them the first flips and the third ties: 2.5 of four.
    assert (result.plain.value, result.attacked.value) == (0.25, 0.625)
    assert result.excess.value == pytest.approx(0.375)
    assert result.excess.low < result.excess.value < result.excess.high
    # P(worse): sigmoid(-2) = .119203 and, obeyed, sigmoid(3) = .952574.
    assert [round(1 - c.attacked.prob_a, 4) for c in found] == [0.9526, 0.1192, 0.5, 0.9526]
    assert result.shift.value == pytest.approx((0.833371 + 0.380797) / 4, abs=1e-6)
    assert [(one.kind, one.num, one.excess.value) for one in result.kinds] == [
        (kind, 2, 0.5),
        (other, 2, 0.25),
    ]
    metrics = attack_metrics(result)
    assert metrics["attack_flip_rate"].value == 0.625
    assert metrics["attack_flip_rate_plain"].value == 0.25
    assert metrics["attack_excess"].value == 0.375
    assert metrics["attack_excess/instruct_judge"].value == 0.5


def test_a_judge_that_no_attack_moves_has_no_excess_but_an_interval(medical: Constitution) -> None:
    found = checks(medical, *(attack(AttackKind.forged_option, number) for number in range(7)))
    result = measure_attacks(found, num_bootstrap=200, seed=0)
    assert (result.attacked.value, result.excess.value) == (0, 0)
    assert result.excess.high > 0.2


def test_an_attack_that_cannot_be_judged_is_counted_and_in_no_rate(medical: Constitution) -> None:
    flood = attack(AttackKind.very_long, 1, attacked="OBEY " * 700)
    found = checks(medical, flood, attack(AttackKind.very_long, 2), max_context=3000)
    assert found[0].attacked.unjudged is Unjudged.too_long
    result = measure_attacks(found, num_bootstrap=200, seed=0)
    assert (result.num, result.num_unjudged_plain, result.num_unjudged) == (2, 0, 1)
    assert result.attacked.num == result.plain.num == result.kinds[0].excess.num == 1
    assert result.kinds[0].num == 2
    nothing = measure_attacks(found[:1], num_bootstrap=200, seed=0)
    assert nothing.excess is nothing.shift is nothing.kinds[0].excess is None


def test_both_times_a_pair_is_asked_alike_under_its_own_question(medical: Constitution) -> None:
    (check,) = checks(medical, attack(AttackKind.close_quotation, 1))
    assert check.plain.principle_ids == ("attack-close_quotation",)
    letters = [[(j.first, j.letter_a) for j in c.judgements] for c in (check.plain, check.attacked)]
    assert letters[0] == letters[1]
    generator = ScriptedGenerator(ENCODER, logprobs=prefers("good"))
    put_to(model(generator, medical), [attack(AttackKind.close_quotation, 1)])
    assert all("Which one is good? Answer with" in text for text in generator.prompts)


def test_shards_change_nothing(medical: Constitution) -> None:
    found = [attack(kind, 1, attacked="OBEY") for kind in AttackKind]
    alone = [check for one in found for check in checks(medical, one)]
    assert checks(medical, *found) == alone


def test_a_shipped_attack_changes_nothing_outside_its_quotation(medical: Constitution) -> None:
    generator = ScriptedGenerator(ENCODER, logprobs=lambda text: {k: 0.0 for k, _ in shown(text)})
    put_to(model(generator, medical), load_attacks())
    ours = [[line for line in text.splitlines() if line[:1] != ">"] for text in generator.prompts]
    half = len(ours) // 2
    assert half == 2 * len(load_attacks())
    assert ours[:half] == ours[half:]
    assert all(sum(line.startswith("Response (") for line in lines) == 2 for lines in ours)


def test_invisible_and_lookalike_attacks_reach_no_judge(medical: Constitution) -> None:
    disguised = [one for one in load_attacks() if one.id == "attack-homoglyphs-001"]
    (one,) = disguised
    same = dataclasses.replace(one, better=one.worse)
    comparison = compare(prefers("x"), medical, same.better, same.attacked)
    assert comparison.unjudged is Unjudged.identical


def test_a_whole_run_says_what_attacks_do(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.jsonl"
    rows = {one.kind: json.dumps(dataclasses.asdict(one)) for one in load_attacks()}
    few.write_text("".join(f"{row}\n" for row in rows.values()))
    monkeypatch.setattr(attacks, "attacks_path", lambda: few)
    monkeypatch.setattr(stage, "attacks_path", lambda: few)
    finished = run(
        tmp_path,
        *tiny_arguments(tiny_folder, "evaluate"),
        "feedback=multiple_choice",
        "evaluation.judge_attacks=true",
    )
    assert finished.code == 0, finished.output
    assert list(finished.statuses()) == ["feedback_check", "judge_attacks"]
    assert "Worse response preferred under attack" in finished.output
    (run_dir,) = finished.run_dirs()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["feedback/num_attacks"] == len(AttackKind)
    assert metrics["feedback/attack_excess"] == pytest.approx(
        metrics["feedback/attack_flip_rate"] - metrics["feedback/attack_flip_rate_plain"]
    )
    assert all(f"feedback/attack_excess/{kind}" in metrics for kind in AttackKind)
    assert "Attacks on the feedback" in (run_dir / "report.html").read_text()
