import pytest

from cai.errors import UserError
from cai.loaders import PairExample
from cai.stages.preference_pairs import (
    Half,
    ai_pairs,
    half_of,
    mixed,
    principle_pairs,
    validation_prompts,
)
from cai.types import Comparison, Message, PrincipleLabel, Prompt, PromptKind, Split, Unjudged


def example(weight):
    return PairExample((1,), (2,), (3,), 0.5, weight)


def mix(ai, human, human_frac):
    found = mixed(
        [example(w) for w in ai],
        [example(w) for w in human],
        human_frac=human_frac,
        setting="phase.preference_model",
    )
    return [one.weight for one in found]


def test_a_mixture_by_hand():
    # Four AI and two human pairs weigh 6; human ones are to have half of it: 3 over two pairs.
    assert mix([1.0] * 4, [1.0] * 2, 0.5) == pytest.approx([0.75] * 4 + [1.5] * 2)
    # Of 4 in all, the human pair is to have 3.2 and the AI pairs .8, which stay 3 : 1.
    assert mix([1.5, 0.5], [2.0], 0.8) == pytest.approx([0.6, 0.2, 3.2])


@pytest.mark.parametrize("human_frac", [0.0, 0.01, 0.3, 0.99, 1.0])
@pytest.mark.parametrize(("num_ai", "num_human"), [(44, 1), (3, 300), (1, 1)])
def test_the_share_does_not_depend_on_how_many_there_are(num_ai, num_human, human_frac):
    weights = mix([1.0] * num_ai, [1.0] * num_human, human_frac)
    assert sum(weights) == pytest.approx(num_ai + num_human)
    assert sum(weights[num_ai:]) / sum(weights) == pytest.approx(human_frac)


def test_without_a_share_every_pair_keeps_its_weight():
    assert mix([1.0, 0.25], [1.0], None) == [1.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("ai", "human", "human_frac", "kind"),
    [([1.0], [], 0.5, "human"), ([], [1.0], 0.5, "AI"), ([0.0], [1.0], 0.5, "AI")],
)
def test_a_share_of_nothing_is_refused(ai, human, human_frac, kind):
    with pytest.raises(UserError, match=f"no {kind} comparison.*human_frac=null"):
        mix(ai, human, human_frac)


def test_a_share_of_zero_needs_no_comparison():
    assert mix([1.0], [], 0.0) == [1.0]
    assert mix([], [1.0], 1.0) == [1.0]


def comparison(number, *labels, prob_a=0.6, weight=1.0):
    return Comparison(
        prompt=Prompt(
            id=f"p{number}",
            kind=PromptKind.red_team,
            category="c",
            source="s",
            split=Split.train,
            messages=(Message(role="user", content="?"),),
        ),
        response_a="a",
        response_b="b",
        principle_ids=("one", "two"),
        judgements=(),
        labels=tuple(
            PrincipleLabel(principle_id=name, prob_a=prob, weight=own) for name, prob, own in labels
        ),
        prob_a=prob_a,
        weight=weight,
        unjudged=None if labels else Unjudged.identical,
        seed=0,
    )


def test_a_comparison_is_one_pair_or_one_for_each_principle():
    judged = comparison(1, ("one", 0.9, 1.0), ("two", 0.3, 0.5), prob_a=0.6, weight=0.75)
    unjudged = comparison(2, prob_a=None)
    (whole,) = ai_pairs([judged, unjudged])
    assert (whole.prob_a, whole.weight, whole.principle_ids) == (0.6, 0.75, ("one", "two"))
    apart = principle_pairs([judged, unjudged])
    assert [(p.prob_a, p.weight, p.principle_ids) for p in apart] == [
        (0.9, 1.0, ("one",)),
        (0.3, 0.5, ("two",)),
    ]


def test_whole_prompts_are_held_out():
    compared = [comparison(n // 2, ("one", 0.9, 1.0)) for n in range(20)]
    held_out = validation_prompts(compared, frac=0.2, seed=3)
    assert len(held_out) == 2
    assert held_out == validation_prompts(compared[::-1], frac=0.2, seed=3)
    assert len(validation_prompts(compared, frac=0.01, seed=3)) == 1
    assert validation_prompts(compared, frac=0.0, seed=3) == set()


def conversation(text):
    return (Message(role="user", content=text),)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_ai", "num_human"), [(22, 0), (7, 9), (1, 1), (2, 0)])
def test_no_prompt_is_on_both_sides_and_none_is_lost(num_ai, num_human, seed):
    ai = [conversation(f"ai {n}") for n in range(num_ai)]
    human = [conversation(f"human {n}") for n in range(num_human)] + ai[:3]  # three are in both
    proxy, gold = (half_of(ai * 2, human, half=half, seed=seed) for half in Half)
    assert proxy.isdisjoint(gold)
    assert proxy | gold == {*ai, *human}
    for kind in (set(ai), set(human) - set(ai)):
        assert len(kind & proxy) - len(kind & gold) in (0, 1)


def test_the_halves_are_a_function_of_the_seed_and_of_nothing_else():
    ai = [conversation(str(n)) for n in range(20)]
    first = half_of(ai, (), half=Half.proxy, seed=3)
    assert first == half_of(ai[::-1], (), half=Half.proxy, seed=3)
    assert first != half_of(ai, (), half=Half.proxy, seed=4)
    human = [conversation(f"human {n}") for n in range(9)]
    assert first == half_of(ai, human, half=Half.proxy, seed=3) & set(ai)
