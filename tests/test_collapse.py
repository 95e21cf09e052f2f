"""Detectors of collapse: by hand, and in the order that was measured on released samples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cai.capability_story import collapse_findings
from cai.collapse import CollapseRow, PolicyTexts, collapse_rows, repeats_its_tail
from cai.evaluation import commonest_phrase

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
ORDER = ("HRLHF", "HHRLHF", "RLMADISON_COT", "RLMADISON")
"""Helpful RLHF, RLHF, RL-CAI with chain of thought, RL-CAI, as released with 2212.08073."""


def rows(*policies: PolicyTexts) -> tuple[CollapseRow, ...]:
    return collapse_rows(policies, num_resamples=200, seed=0)


def texts(policy: str, *said: str, logprob: float = -1.0) -> PolicyTexts:
    return PolicyTexts(policy=policy, texts=said, mean_logprobs=(logprob,) * len(said))


def test_a_tail_that_was_there_before_is_a_loop() -> None:
    assert repeats_its_tail("take care of you. I wish you well. Please do take care of you!")
    assert repeats_its_tail("a b c d a b c d")
    assert not repeats_its_tail("take care of yourself and of all that you love")
    assert not repeats_its_tail("a b c")
    assert not repeats_its_tail("")


def test_every_detector_by_hand() -> None:
    base, tuned = rows(
        texts("base", "one two three four five six", "seven eight nine ten", logprob=-1.0),
        texts("tuned", "a b c d e", "x a b c d e", logprob=-2.0),
    )
    assert (tuned.phrase, tuned.phrase_share and tuned.phrase_share.value) == ("a b c d e", 1.0)
    assert (base.phrase_share and base.phrase_share.value) == 0.5
    # Ten words each: 4-grams a b c d, b c d e, x a b c, a b c d again (the cut takes the last e).
    assert tuned.distinct_4 == pytest.approx(3 / 4)
    assert base.distinct_4 == 1.0
    assert base.words_change is None
    assert tuned.words_change is not None
    assert tuned.words_change.value == pytest.approx((5 - 6 + 6 - 4) / 2)
    assert tuned.perplexity is not None
    assert tuned.perplexity.value == pytest.approx(math.exp(2))
    assert tuned.shared_tail_share is not None
    assert tuned.shared_tail_share.value == 1.0


def test_empty_responses_have_no_perplexity_and_count() -> None:
    (row,) = rows(PolicyTexts(policy="base", texts=("", ""), mean_logprobs=(None, None)))
    assert row.perplexity is None
    assert row.phrase_share is not None
    assert row.phrase_share.value == 0.0
    assert row.distinct_4 is None
    assert collapse_rows([], num_resamples=10, seed=0) == ()


def test_a_collapsed_policy_is_a_warning_and_another_policy_is_none() -> None:
    different = [f"w{i} x{i} y{i} z{i} v{i} u{i} t{i}" for i in range(20)]
    same = [f"w{i} I am here to listen to you always" for i in range(20)]
    base = texts("base", *different)
    found = collapse_findings(rows(base, texts("rl_cai", *same, logprob=-0.1)))
    assert len(found) == 1
    assert "RL-CAI shows signs of collapse against base" in found[0]
    for sign in ("here to", "4-grams are distinct", "perplexity under the base 1.1"):
        assert sign in found[0]
    assert collapse_findings(rows(base, texts("rl_cai", *reversed(different)))) == []
    looped = [f"{text} and so on we go and so on we go" for text in different]
    assert "end in a loop" in collapse_findings(rows(base, texts("rl_cai", *looped)))[0]


def test_few_prompts_are_no_evidence() -> None:
    base = texts("base", *[f"a{i} b{i} c{i} d{i} e{i}" for i in range(4)])
    assert collapse_findings(rows(base, texts("rl_cai", *["one two three four five"] * 4))) == []


def test_released_samples_are_in_the_measured_order() -> None:
    if not all((SAMPLES / f"samples_PALMS_{name}.jsonl").is_file() for name in ORDER):
        pytest.skip("the released samples are not beside this checkout")
    prompts: dict[str, list[list[str]]] = {}
    for name in ORDER:
        lines = (SAMPLES / f"samples_PALMS_{name}.jsonl").read_text("utf-8").splitlines()
        prompts[name] = [
            [one["sampled_string"].removesuffix("\n\nHuman:") for one in row["sampled_answers"]]
            for row in map(json.loads, lines)
        ]
    counts = []
    for name in ORDER:
        phrase = commonest_phrase(prompts[name])
        assert phrase is not None
        counts.append(phrase.num_prompts)
    # 40 prompts of 17 samples each; of all 66 prompts and other tokens it was 12, 21, 35, 56.
    assert counts == [5, 13, 20, 38]
    found = dict(
        zip(
            ORDER,
            rows(*(texts(name, *[s[8] for s in prompts[name]]) for name in ORDER)),
            strict=True,
        )
    )
    shares = [found[name].phrase_share for name in ORDER]
    values = [share.value for share in shares if share]
    assert values == sorted(values)
    assert values[-1] > 4 * values[0]
    (warning,) = collapse_findings([found["HRLHF"], found["RLMADISON"]])
    assert "here to listen" in warning
    assert not collapse_findings([found["HRLHF"], found["RLMADISON_COT"]])
