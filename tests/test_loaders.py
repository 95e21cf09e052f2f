import pytest

from cai.errors import UserError
from cai.loaders import EpochLoader, PairExample, RolloutLoader, collate_pairs, collate_sft
from tests.tiny import sft_examples

EXAMPLES = sft_examples(10)


def loader(seed=1, num_epochs=2, batch_size=4, micro_batch_size=2, examples=EXAMPLES):
    return EpochLoader(
        examples,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
        num_epochs=num_epochs,
        collate=list,
    )


def order(made):
    return [[example for micro in batch for example in micro] for batch in made]


def test_every_epoch_takes_every_example_once():
    made = loader()
    batches = order(made)
    assert len(made) == len(batches) == 6
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        seen = [example for batch in epoch for example in batch]
        assert sorted(map(id, seen)) == sorted(map(id, EXAMPLES))


def test_the_order_is_a_function_of_the_seed_and_the_epoch():
    assert order(loader()) == order(loader())
    assert order(loader(seed=2)) != order(loader())
    batches = order(loader())
    assert batches[:3] != batches[3:]
    # How many epochs there are, and the micro-batches, change nothing about it.
    assert order(loader(num_epochs=1)) == batches[:3]
    sets = [[set(batch) for batch in order(loader(micro_batch_size=size))] for size in (1, 4)]
    assert sets[0] == sets[1]


def test_groups_number_the_examples_of_each_micro_batch():
    made = loader()
    for position, batch in enumerate(made):
        named = [[EXAMPLES[index] for index in group] for group in made.groups(position)]
        assert named == batch


def test_micro_batches_are_alike_in_length():
    for batch in loader():
        lengths = [example.length for micro in batch for example in micro]
        assert lengths == sorted(lengths, reverse=True)


def test_a_loader_goes_on_where_it_was():
    first = loader()
    iterator = iter(first)
    begun = [next(iterator) for _ in range(2)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert order(begun) + order(second) == order(loader())


def test_a_loader_refuses_the_place_in_other_data():
    state = loader().state_dict()
    for other in (loader(seed=2), loader(examples=EXAMPLES[:9])):
        with pytest.raises(UserError, match="10 examples and seed 1"):
            other.load_state_dict(state)


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="nothing to train on"):
        loader(examples=[])


def test_collating_keeps_the_end_of_sequence_in_the_loss():
    batch = collate_sft(EXAMPLES[:3])
    assert batch.num_tokens == sum(len(example.response_ids) for example in EXAMPLES[:3])
    assert (batch.targets_N == 2).sum() == 3


def test_pairs_are_all_sides_a_then_all_sides_b():
    pairs = [
        PairExample((5,), (6, 2), (7, 8, 2), 0.75, 1.0),
        PairExample((9,), (2,), (11, 2), 0.25, 0.5),
    ]
    batch = collate_pairs(pairs)
    assert batch.tokens.ids_BS.tolist() == [[5, 6, 2, 0], [9, 2, 0, 0], [5, 7, 8, 2], [9, 11, 2, 0]]
    assert batch.prob_a_P.tolist() == [0.75, 0.25]
    assert batch.total_weight == 1.5


def test_rollouts_are_made_when_they_are_asked_for():
    made = []
    rollouts = RolloutLoader(lambda i: made.append(i) or i, 3)
    iterator = iter(rollouts)
    assert (len(rollouts), made) == (3, [])
    assert next(iterator) == 0
    assert made == [0]
    resumed = RolloutLoader(lambda i: i, 3)
    resumed.load_state_dict(rollouts.state_dict())
    assert list(resumed) == [1, 2]
