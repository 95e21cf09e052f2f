from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from cai import paths
from cai.constitution import Constitution, load
from cai.errors import ConfigError
from cai.principle_subset import subset


@pytest.fixture(scope="module")
def whole() -> Constitution:
    return load("default", folder=paths.CONSTITUTIONS)


def ids(document: Constitution) -> list[str]:
    return [principle.id for principle in document.principles]


def test_a_subset_keeps_the_order_and_names_what_it_leaves_out(whole: Constitution) -> None:
    some = subset(whole, num=5, seed=3)
    assert ids(some) == [name for name in ids(whole) if name in ids(some)]
    assert sorted([*ids(some), *some.left_out]) == sorted(ids(whole))
    assert len(some.principles) == 5
    assert set(some.origins) == set(ids(some))
    drawn = {some.draw(random.Random(n), weighted=True).id for n in range(200)}
    assert drawn == set(ids(some))


def test_subsets_of_one_seed_are_nested_and_seeds_differ(whole: Constitution) -> None:
    several = [set(ids(subset(whole, num=num, seed=1))) for num in range(1, 20)]
    assert all(small < large for small, large in itertools.pairwise(several))
    assert len({tuple(ids(subset(whole, num=4, seed=seed))) for seed in range(10)}) > 5


def test_every_principle_is_as_likely_to_be_in(whole: Constitution) -> None:
    """5 of 19: expected 526 of 2,000 draws each, standard deviation 20."""
    found = Counter(name for s in range(2000) for name in ids(subset(whole, num=5, seed=s)))
    assert all(abs(found[name] - 2000 * 5 / 19) < 80 for name in ids(whole))


def test_the_digest_is_that_of_the_principles_that_are_kept(whole: Constitution) -> None:
    some = subset(whole, num=5, seed=3)
    assert some.digest == subset(whole, num=5, seed=3).digest
    assert some.digest != whole.digest != subset(whole, num=5, seed=4).digest
    assert subset(whole, num=len(whole.principles), seed=9).digest == whole.digest
    assert subset(whole, num=None, seed=9) is whole


def test_more_than_there_are_is_refused(whole: Constitution) -> None:
    with pytest.raises(ConfigError, match=r"num_principles=20: default has 19 principles; type a"):
        subset(whole, num=20, seed=0)
    with pytest.raises(ConfigError, match=r"none has no principles, or .*num_principles=null"):
        subset(load("none", folder=paths.CONSTITUTIONS), num=1, seed=0)
