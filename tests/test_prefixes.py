"""Which beginnings are read once, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch

from cai import decoding
from cai.decoding import ATTENDED, GROUP_ROWS, KEPT_ONCE, Decoder
from cai.prefixes import MIN_PREFIX, MIN_SPARED, Ids, Lot, common, lots, states
from tests.test_decoding import family, ids

A, B, C, D = (tuple(range(100 * k, 100 * k + 80)) for k in range(4))


def but_last(texts: list[Ids]) -> Lot:
    return lots(texts, most=[len(text) - 1 for text in texts])


def covered(lot: Lot) -> list[Ids]:
    return [*lot.own, *(text for part in lot.parts for text in covered(part))]


def test_common_is_what_two_texts_begin_with() -> None:
    assert common((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common((1, 2), (1, 2, 4)) == 2
    assert common((1,), (2,)) == common((), (1,)) == 0


def test_texts_that_share_nothing_are_one_lot_without_a_beginning() -> None:
    lot = but_last([A, B, C])
    assert (lot.shared, set(lot.own), lot.parts) == (0, {A, B, C}, ())
    assert but_last([A]).shared == 0


def test_what_all_share_and_what_pairs_share_beyond_it() -> None:
    texts = [(*A, *B, 1), (*A, *B, 2), (*A, *C, 1), (*A, *C, 2, 3), (*A, *D)]
    lot = but_last(texts)
    assert (lot.shared, lot.own) == (80, (texts[4],))
    assert [(part.shared, part.own) for part in lot.parts] == [
        (160, (texts[0], texts[1])),
        (160, (texts[2], texts[3])),
    ]
    assert lot.beginning == A
    assert lot.parts[1].beginning == (*A, *C)


def test_a_pass_that_spares_too_little_is_not_made() -> None:
    least = MIN_SPARED // 3
    fillers = [(*A, 900 + n) for n in range(4)]
    for num, parts in ((least - 1, []), (least, [80 + least])):
        pair = [(*A, *B[:num], 1), (*A, *B[:num], 2)]
        lot = but_last([*pair, *fillers])
        assert lot.shared == 80
        assert [part.shared for part in lot.parts] == parts
        assert sorted(covered(lot)) == sorted([*pair, *fillers])
    opening = A[: MIN_PREFIX - 1]
    assert but_last([(*opening, 1), (*opening, 2)]).shared == 0
    assert but_last([(*A[:MIN_PREFIX], 1), (*A[:MIN_PREFIX], 2)]).shared == MIN_PREFIX


def test_chance_agreements_do_not_hide_what_is_shared_beyond_them() -> None:
    texts = [(*A, 7, *B, 1), (*A, 7, *B, 2), (*A, 7, *C, 1), (*A, 7, *C, 2), (*A, 8)]
    lot = but_last(texts)
    assert (lot.shared, lot.own) == (80, (texts[4],))
    assert [part.shared for part in lot.parts] == [161, 161]


def test_every_text_keeps_the_tokens_whose_states_are_wanted() -> None:
    texts = [A, (*A, 1), (*A, 1, 2)]
    assert but_last(texts).shared == 79
    assert sorted(covered(but_last(texts))) == texts
    assert lots(texts, most=[20, 70, 70]).shared == 20


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("above", [0, 40, KEPT_ONCE + 20])
def test_states_equal_the_models_own_whatever_is_shared(name: str, above: int) -> None:
    """Pairs and a crowd that share more, rows of two groups, a lone row, one text twice."""
    model = family(name)
    opening = ids(above)
    pairs = [ids(length, start=length) for length in (66, ATTENDED + 15, 140)]
    texts = [opening + pair + ids(n, start=n) for pair in pairs for n in (9, 31)]
    texts += [opening + pairs[2] + ids(5 + n, start=3 * n) for n in range(GROUP_ROWS)]
    texts += [opening + ids(50, start=2), texts[0]]
    wanted = [1 + i % 5 for i in range(len(texts) - 1)] + [7]
    with torch.inference_mode():
        decoder = Decoder(model, packed=decoding.can_pack(model))
        found = states(decoder, texts, wanted, {})
        for text, num, own in zip(texts, wanted, found, strict=True):
            expected = model.model(torch.tensor([text])).last_hidden_state[0, -num:]
            assert torch.allclose(own, expected, atol=1e-4)


def test_each_beginning_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = family("llama"), []
    usual = Decoder.prefill

    def counted(self: Decoder, prompts: list[list[int]], **arguments: object) -> object:
        read.append(sum(map(len, prompts)))
        return usual(self, prompts, **arguments)

    monkeypatch.setattr(Decoder, "prefill", counted)
    opening, pairs = ids(100), [ids(70, start=5), ids(90, start=9)]
    texts = [opening + pair + [n] * 4 for pair in pairs for n in (1, 2)]
    known: dict = {}
    with torch.inference_mode():
        states(Decoder(model, packed=False), texts, [1] * 4, known)
        assert sum(read) == 100 + 70 + 90 + 4 * 4
        states(Decoder(model, packed=False), texts, [1] * 4, known)
    assert sum(read) == 100 + 2 * (70 + 90 + 4 * 4)
