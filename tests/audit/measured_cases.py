"""Pairs and labels that the tests of the measured audit share."""

from __future__ import annotations

import numpy as np

from cai.audit.diagnostics import Bootstrap
from cai.audit.labels import Framing, PairLabels, PrincipleAnswer
from cai.types import Message, Prompt, PromptKind, Split, Unjudged

BOOTSTRAP = Bootstrap(num=200, seed=0)
REFUSAL = "I'm sorry, but I can't help with that."
KINDS = (PromptKind.red_team, PromptKind.helpfulness)


def prompt(number: int, category: str = "") -> Prompt:
    kind = KINDS[number % 2]
    return Prompt(
        id=f"p{number}",
        kind=kind,
        category=category or f"{kind}-category",
        source="tests",
        split=Split.train,
        messages=(Message(role="user", content=f"question {number}"),),
    )


def answer(
    principle_id: str,
    prob_a: float | None,
    *,
    framing: Framing = Framing.plain,
    wording: int = 0,
    flips: bool | None = None,
) -> PrincipleAnswer:
    return PrincipleAnswer(
        principle_id=principle_id,
        framing=framing,
        wording=wording,
        prob_a=prob_a,
        flips=flips,
        unjudged=Unjudged.no_verdict if prob_a is None else None,
    )


def pairs_of(
    labels: np.ndarray, ids: list[str], *, refuses: dict[int, str] | None = None
) -> list[PairLabels]:
    """Pairs with these plain labels; `refuses` says which response of a pair declines."""
    found = []
    for number, row in enumerate(labels):
        side = (refuses or {}).get(number)
        found.append(
            PairLabels(
                name=f"p{number}-0",
                prompt=prompt(number),
                response_a=REFUSAL if side == "a" else f"answer a{number}",
                response_b=REFUSAL if side == "b" else f"answer b{number}",
                answers=tuple(
                    answer(name, None if np.isnan(value) else float(value))
                    for name, value in zip(ids, row, strict=True)
                ),
            )
        )
    return found
