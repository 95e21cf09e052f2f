"""Right-padded batches of prompt and response tokens, with every mask explicit.

A mask is made from lengths and never from a padding id: end of sequence and padding share an id in
many tokenizers, and a mask made from ids would hide the end-of-sequence token from the loss.

Shapes: B sequences, P pairs, S prompt and response tokens, T response tokens, N response tokens of
all sequences of the batch, row by row.
"""

# ruff: noqa: N802, N803, N806, N815 -- names end in their shape

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Sequences of one forward pass, and where their response tokens are."""

    ids_BS: Tensor
    """Prompt, response, padding; int64."""
    mask_BS: Tensor
    """True on prompt and response, bool."""
    rows_N: Tensor
    """Row of each response token."""
    positions_N: Tensor
    """Its position in S; the state before it is at `positions_N - 1`."""
    columns_N: Tensor
    """Its position in T."""
    last_B: Tensor
    """Position in S of each sequence's last token, where a preference model reads its score."""

    @property
    def num_tokens(self) -> int:
        """Response tokens, the end-of-sequence tokens included."""
        return len(self.rows_N)

    @property
    def targets_N(self) -> Tensor:
        """Ids of the response tokens."""
        return self.ids_BS[self.rows_N, self.positions_N]

    def states(self, hidden_BSH: Tensor) -> Tensor:
        """Hidden states (N, H) from which the response tokens are predicted."""
        return hidden_BSH[self.rows_N, self.positions_N - 1]

    def last(self, hidden_BSH: Tensor) -> Tensor:
        """Hidden states (B, H) at each sequence's last token."""
        return hidden_BSH[torch.arange(len(self.last_B), device=self.last_B.device), self.last_B]

    def sums(self, values_N: Tensor) -> Tensor:
        """Sums (B,) of the response tokens' values; 0 for a sequence without any."""
        spread_BS = values_N.new_zeros(self.ids_BS.shape)
        return spread_BS.index_put((self.rows_N, self.columns_N), values_N).sum(1)

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on a device; Lightning calls this."""
        return TokenBatch(
            ids_BS=self.ids_BS.to(device),
            mask_BS=self.mask_BS.to(device),
            rows_N=self.rows_N.to(device),
            positions_N=self.positions_N.to(device),
            columns_N=self.columns_N.to(device),
            last_B=self.last_B.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Pairs of responses to one prompt each, both sides in one batch of sequences."""

    tokens: TokenBatch
    """2P sequences: the P with response a, then the P with response b."""
    prob_a_P: Tensor
    """Label P(a preferred), float32."""
    weight_P: Tensor
    """Float32."""
    total_weight: float

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on a device; Lightning calls this."""
        return PairBatch(
            tokens=self.tokens.to(device),
            prob_a_P=self.prob_a_P.to(device),
            weight_P=self.weight_P.to(device),
            total_weight=self.total_weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencedBatch:
    """Pairs of responses and how likely the reference finds them."""

    pairs: PairBatch
    reference_a_P: Tensor
    """Log-probability of each response a, nats, float32."""
    reference_b_P: Tensor

    def to(self, device: torch.device) -> ReferencedBatch:
        """The same batch on a device; Lightning calls this."""
        return ReferencedBatch(
            pairs=self.pairs.to(device),
            reference_a_P=self.reference_a_P.to(device),
            reference_b_P=self.reference_b_P.to(device),
        )


def pad(sequences: Sequence[TokenIds], *, pad_id: int) -> Tensor:
    """Sequences (B, S) padded on the right; any id serves, since masks come from lengths."""
    width = max(map(len, sequences), default=0)
    return torch.tensor([[*s, *[pad_id] * (width - len(s))] for s in sequences], dtype=torch.long)


def length_mask(lengths: Sequence[int], width: int) -> Tensor:
    """(B, width), true on the first `lengths[b]` places of row b."""
    return torch.arange(width)[None, :] < torch.tensor(lengths, dtype=torch.long)[:, None]


def token_batch(
    ids_BS: Tensor, *, prompt_lengths: Sequence[int], response_lengths: Sequence[int]
) -> TokenBatch:
    """A batch from padded ids and lengths, cropped to its longest sequence.

    Raises:
        ValueError: when a prompt is empty, so that nothing predicts the first response token.
    """
    if min(prompt_lengths, default=1) < 1:
        raise ValueError("a prompt has no tokens")
    totals = [p + r for p, r in zip(prompt_lengths, response_lengths, strict=True)]
    width = max(totals, default=0)
    rows_N = torch.repeat_interleave(torch.tensor(response_lengths, dtype=torch.long))
    columns_N = torch.tensor([t for r in response_lengths for t in range(r)], dtype=torch.long)
    positions_N = torch.tensor(prompt_lengths, dtype=torch.long)[rows_N] + columns_N
    return TokenBatch(
        ids_BS=ids_BS[:, :width],
        mask_BS=length_mask(totals, width),
        rows_N=rows_N,
        positions_N=positions_N,
        columns_N=columns_N,
        last_B=torch.tensor(totals, dtype=torch.long) - 1,
    ).to(ids_BS.device)


def collate(sequences: Sequence[tuple[TokenIds, TokenIds]], *, pad_id: int) -> TokenBatch:
    """A batch from (prompt ids, response ids)."""
    return token_batch(
        pad([[*prompt, *response] for prompt, response in sequences], pad_id=pad_id),
        prompt_lengths=[len(prompt) for prompt, _ in sequences],
        response_lengths=[len(response) for _, response in sequences],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedPairs:
    """Pairs with both responses behind one prompt; W tokens of prompt and both responses."""

    ids_PW: Tensor
    positions_PW: Tensor
    """The second response goes on from the prompt."""
    first_P: tuple[int, ...]
    """Place where the first response begins."""
    second_P: tuple[int, ...]
    places: Tensor
    """Of every place of the sequences as they were, row by row, its place in the joined rows
    counted through; 0 where there was padding."""


def joined_pairs(tokens: TokenBatch) -> JoinedPairs:
    """Join sequence p and sequence P + p, which have the same prompt, in one row."""
    ids = [
        row[: last + 1]
        for row, last in zip(tokens.ids_BS.tolist(), tokens.last_B.tolist(), strict=True)
    ]
    num_response = torch.bincount(tokens.rows_N, minlength=len(ids)).tolist()
    num_pairs = len(ids) // 2
    prompts = [len(ids[row]) - num_response[row] for row in range(num_pairs)]
    firsts, seconds = ids[:num_pairs], ids[num_pairs:]
    rows = [a + b[prompt:] for a, b, prompt in zip(firsts, seconds, prompts, strict=True)]
    positions = [
        [*range(len(a)), *range(prompt, len(b))]
        for a, b, prompt in zip(firsts, seconds, prompts, strict=True)
    ]
    width = max(map(len, rows))
    own_places = [range(row * width, row * width + len(joined)) for row, joined in enumerate(rows)]
    of_first = [own[: len(a)] for own, a in zip(own_places, firsts, strict=True)]
    of_second = [
        [*own[:prompt], *own[len(a) :]]
        for own, a, prompt in zip(own_places, firsts, prompts, strict=True)
    ]
    return JoinedPairs(
        ids_PW=pad(rows, pad_id=0),
        positions_PW=pad(positions, pad_id=0),
        first_P=tuple(prompts),
        second_P=tuple(map(len, firsts)),
        places=pad([*of_first, *of_second], pad_id=0).flatten(),
    )


def split_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in groups of at most `size`, alike in length, the longest first.

    Longest first, so that a batch that does not fit in memory fails at once. A pure function of
    the lengths: the composition of a micro-batch decides its last bits.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]
