"""What samples from a language model and scores with it, token ids in and token ids out.

Three engines have one interface: `transformers` (this process, `cai.generation`), `vllm` (this
process, adapters by name) and `endpoint` (a server of completions that takes token ids). Text is
turned into ids and back by `cai.tokens` alone, whichever engine is asked, so that no template of a
server and no other tokenizer comes in between. Which one a role uses is part of what its stages are
found by, because their numbers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cai.errors import UserError
from cai.generation import Tokens

PROBE_TOLERANCE = 1.0
"""Largest difference of centred logits between two engines: of number formats and kernels."""


class Engine(Protocol):
    """One model, or one model with one adapter."""

    def fits(self, prompt: Sequence[int], max_new_tokens: int) -> bool:
        """Whether a prompt leaves room for its response."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> list[Tokens]:
        """One response per prompt: ancestral sampling, never truncated; temperature 0 is greedy.

        Args:
            prompts: Token ids, each with room for its response (see `fits`).
            seeds: One random stream per row.
            max_new_tokens: Cut after so many tokens.
            temperature: Divides the logits.
        """
        ...

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[int]], *, candidates: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities (B, V) of the token after each prompt, nats, float32.

        Args:
            prompts: Token ids.
            candidates: The only ids that will be looked at; the others may be NaN. None: all of
                them, which a server does not send.
        """
        ...

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probability of each continuation after its prompt, nats, summed over its tokens."""
        ...

    def forget(self) -> None:
        """Give up the adapter; nothing is asked of this engine any more."""
        ...


def columns(
    rows: Sequence[dict[int, float]], *, vocab_size: int, candidates: Sequence[int] | None
) -> torch.Tensor:
    """Log-probabilities by id as a tensor (B, V), NaN where there is none.

    Raises:
        KeyError: when a candidate has none.
    """
    found = torch.full((len(rows), vocab_size), torch.nan)
    for row, values in enumerate(rows):
        ids = list(values) if candidates is None else list(candidates)
        found[row, torch.tensor(ids)] = torch.tensor([values[i] for i in ids])
    return found


def check_probe(engine: Engine, probe: dict[str, Any], *, folder: Path, name: str) -> None:
    """See that another engine computes with an adapter what was computed where it was saved.

    Raises:
        UserError: when it does not: it has another base, or not these weights.
    """
    candidates = probe["token_ids"]
    found = engine.next_token_logprobs([probe["ids"]], candidates=candidates)[0, candidates]
    made = torch.tensor(probe["logits"])
    gap = float(((found - found.mean()) - (made - made.mean())).abs().max())
    if not gap <= PROBE_TOLERANCE:
        raise UserError(
            f"The engine of model {name} answers with the adapter in {folder} by logits that are "
            f"off by {gap:.3g} from those at the time it was saved. It has another base model than "
            f"{name}, or its quantised weights: have it serve the folder that this run loads"
        )
