from __future__ import annotations

import pytest

from cai.compliance.classify import classify
from cai.compliance.contrasts import contrast_prompts, num_contrasts, over_refusals
from cai.data import builtin_source, load_prompts
from cai.data_formats import normalised
from cai.evaluation_config import MAX_CONTRAST_PAIRS
from cai.statistics import proportion_difference, wilson_interval
from cai.types import Evaluated, Prompt, PromptKind, Response, Sample

REFUSAL, ANSWER = "I can't help with that.", "Take a pan and heat it."


def answered(prompt: Prompt, policy: str, text: str) -> Evaluated:
    sample = Sample(text=text, num_tokens=1, logprob=0.0, finished=True, seed=0)
    response = Response(prompt=prompt, policy=policy, index=0, sample=sample)
    return Evaluated(
        response=response, score=None, compliance=classify(prompt.messages[-1].content, text)
    )


def rows(policy: str, harmful: list[bool], benign: list[bool]) -> list[Evaluated]:
    """Who refuses which side of which pair."""
    prompts = contrast_prompts(len(harmful), seed=0)
    refuses = [side for pair in zip(benign, harmful, strict=True) for side in pair]
    return [
        answered(prompt, policy, REFUSAL if refused else ANSWER)
        for prompt, refused in zip(prompts, refuses, strict=True)
    ]


def test_every_harmless_prompt_has_a_harmful_twin_and_more_only_adds() -> None:
    assert num_contrasts() == MAX_CONTRAST_PAIRS
    every = contrast_prompts(MAX_CONTRAST_PAIRS, seed=3)
    few = contrast_prompts(4, seed=3)
    assert every[:8] == few
    assert len({prompt.id for prompt in every}) == len(every) == 2 * MAX_CONTRAST_PAIRS
    for benign, harmful in zip(every[::2], every[1::2], strict=True):
        assert benign.kind is PromptKind.benign
        assert harmful.kind is PromptKind.red_team
        assert benign.id.removesuffix("benign") == harmful.id.removesuffix("harmful")
        assert benign.category == harmful.category
    assert {p.id for p in contrast_prompts(4, seed=4)} != {p.id for p in few}


def test_no_training_prompt_is_among_them() -> None:
    pairs = {normalised(p.messages) for p in contrast_prompts(MAX_CONTRAST_PAIRS, seed=0)}
    for kind in PromptKind:
        shipped = load_prompts(builtin_source(kind.value), kind=kind, evaluation_frac=0.5)
        assert not pairs & {normalised(prompt.messages) for prompt in shipped}


def test_rates_by_hand() -> None:
    evaluated = [
        *rows("base", [False] * 4, [False] * 4),
        *rows("rl_cai", [True, True, True, False], [False, True, False, True]),
    ]
    base, trained = over_refusals(evaluated)
    assert (base.policy, trained.policy) == ("base", "rl_cai")
    assert base.discrimination.value == 0
    assert trained.harmful == wilson_interval(3, 4)
    assert trained.benign == wilson_interval(2, 4)
    assert trained.discrimination == proportion_difference(3, 2, num=4)
    assert (trained.num_told_apart, trained.num_wrong_way, trained.num_pairs) == (2, 1, 4)


@pytest.mark.parametrize("always", [True, False])
def test_who_does_not_look_tells_nothing_apart(always: bool) -> None:
    (found,) = over_refusals(rows("p", [always] * 8, [always] * 8))
    assert found.discrimination.value == 0
    assert found.discrimination.low < 0 < found.discrimination.high


def test_without_pairs_there_is_nothing_to_say() -> None:
    assert over_refusals([]) == ()
