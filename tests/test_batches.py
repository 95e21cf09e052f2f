import pytest
import torch

from cai.batches import collate, joined_pairs, split_by_length

PAD = 0


def test_a_batch_knows_where_its_response_tokens_are():
    batch = collate([([5, 6], [7, 2]), ([8], [2])], pad_id=PAD)
    assert batch.ids_BS.tolist() == [[5, 6, 7, 2], [8, 2, PAD, PAD]]
    assert batch.mask_BS.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.rows_N.tolist() == [0, 0, 1]
    assert batch.positions_N.tolist() == [2, 3, 1]
    assert batch.columns_N.tolist() == [0, 1, 0]
    assert batch.targets_N.tolist() == [7, 2, 2]
    assert batch.last_B.tolist() == [3, 1]


def test_a_token_is_predicted_from_the_state_before_it():
    batch = collate([([5, 6], [7, 2]), ([8], [2])], pad_id=PAD)
    hidden = torch.arange(8.0).view(2, 4, 1)  # row * 4 + position
    assert batch.states(hidden)[:, 0].tolist() == [1, 2, 4]
    assert batch.last(hidden)[:, 0].tolist() == [3, 5]


def test_the_mask_does_not_look_at_ids():
    batch = collate([([5], [PAD, 2]), ([5, 6, 7], [2])], pad_id=PAD)
    assert batch.mask_BS.sum(1).tolist() == [3, 4]
    assert batch.targets_N.tolist() == [PAD, 2, 2]


def test_values_of_tokens_are_summed_by_sequence():
    batch = collate([([5, 6], [7, 2]), ([8], []), ([9], [4, 3, 2])], pad_id=PAD)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], requires_grad=True)
    sums = batch.sums(values)
    assert sums.tolist() == [3.0, 0.0, 28.0]
    (sums * torch.tensor([1.0, 1.0, 10.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 1.0, 10.0, 10.0, 10.0]


def test_an_empty_response_has_no_tokens():
    batch = collate([([5, 6], []), ([8], [2])], pad_id=PAD)
    assert batch.num_tokens == 1
    assert batch.rows_N.tolist() == [1]
    assert batch.last_B.tolist() == [1, 1]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        collate([([], [2])], pad_id=PAD)


def test_groups_are_alike_in_length_and_complete():
    lengths = [3, 9, 1, 9, 5]
    assert split_by_length(lengths, 2) == [[1, 3], [4, 0], [2]]


def test_pairs_are_joined_behind_their_prompts():
    firsts, seconds = [([5, 6], [7]), ([8], [9, 2, 3])], [([5, 6], [4, 2]), ([8], [2])]
    tokens = collate([*firsts, *seconds], pad_id=PAD)
    joined = joined_pairs(tokens)
    assert joined.ids_PW.tolist() == [[5, 6, 7, 4, 2], [8, 9, 2, 3, 2]]
    assert joined.positions_PW.tolist() == [[0, 1, 2, 2, 3], [0, 1, 2, 3, 1]]
    assert joined.first_P == (2, 1)
    assert joined.second_P == (3, 4)
    back = joined.ids_PW.flatten()[joined.places].view(tokens.ids_BS.shape)
    assert torch.equal(back[tokens.mask_BS], tokens.ids_BS[tokens.mask_BS])
    # A second response reads the prompt where the first one's row has it.
    assert joined.places.view(4, 4)[2].tolist() == [0, 1, 3, 4]
