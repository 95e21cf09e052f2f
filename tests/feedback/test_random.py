from __future__ import annotations

import random

import pytest

from cai.constitution import Constitution
from cai.feedback.build import Surroundings, build, identity
from cai.feedback.random import Random
from cai.feedback_config import RandomConfig
from cai.models import Models
from tests.feedback.cases import BASE, case, judgements, swapped
from tests.tiny import hardware

CONFIG = RandomConfig(method="random", **BASE)


def test_the_coin_is_fair_and_independent_of_length(medical: Constitution) -> None:
    cases = [case(medical, f"short {n}", f"a longer one {n}" * 3, number=n) for n in range(4000)]
    preferred = [one.prob_a for one in judgements(Random(CONFIG).judge(cases))]
    assert set(preferred) == {0.0, 1.0}
    assert sum(preferred) / 4000 == pytest.approx(0.5, abs=0.025)  # three standard errors


def test_a_swap_gives_the_complement_and_order_of_asking_changes_nothing(
    medical: Constitution,
) -> None:
    cases = [case(medical, f"one {n}", f"other {n}", number=n) for n in range(50)]
    shuffled = random.Random(0).sample(cases, 50)
    plain = judgements(Random(CONFIG).judge(cases))
    again = judgements(Random(CONFIG).judge(shuffled))
    turned = judgements(Random(CONFIG).judge([swapped(one) for one in cases]))
    by_seed = {one.seed: got.prob_a for one, got in zip(shuffled, again, strict=True)}
    assert [by_seed[one.seed] for one in cases] == [got.prob_a for got in plain]
    assert [1 - got.prob_a for got in turned] == [got.prob_a for got in plain]


def test_two_pairs_of_one_prompt_get_coins_of_their_own(medical: Constitution) -> None:
    cases = [case(medical, f"a{n}", f"b{n}", number=7) for n in range(40)]
    assert len({got.prob_a for got in judgements(Random(CONFIG).judge(cases))}) == 2


def test_no_model_is_loaded_or_part_of_its_identity(medical: Constitution) -> None:
    around = Surroundings(
        models=Models(hardware()),
        model=None,  # would raise where it is asked for anything
        constitution=medical,
        sampling=None,
        fitted={},
    )
    assert isinstance(build(CONFIG, around), Random)
    assert "model" not in identity(CONFIG, None)


def test_a_model_for_a_coin_is_refused() -> None:
    with pytest.raises(ValueError, match="model must be null: a coin asks no model"):
        RandomConfig(method="random", **BASE | {"model": object()})
