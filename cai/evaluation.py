"""What is measured on responses: likelihood of tests, diversity, boilerplate.

None of these measures was trained on or supplied a training label; nor was `cai.compliance`, which
tells refusals from answers. The likelihood test asks whether a policy finds a principle's better
response more probable per token than the worse one; its labels come from the constitution's
authors. The n-gram measure counts how many different prompts share one 5-gram, which grows when a
policy falls into boilerplate.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cai.types import Message

if TYPE_CHECKING:  # a story is told, and a document audited, without torch
    from cai.engines import Engine
    from cai.tokens import ChatEncoder


def words_of(text: str) -> list[str]:
    """Lower-case words; an apostrophe is part of one."""
    return re.findall(r"[\w']+", text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every n words in a row."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Iterable[str], n: int, *, max_words: int | None = None) -> float | None:
    """Different n-grams over all n-grams; None when there is none.

    Args:
        texts: All together.
        n: Words of an n-gram.
        max_words: Only the first so many words count, since the share falls with their number;
            None: all of them.
    """
    grams: list[tuple[str, ...]] = []
    left = max_words
    for text in texts:
        words = words_of(text)[:left]
        left = None if left is None else left - len(words)
        grams += ngrams(words, n)
    return len(set(grams)) / len(grams) if grams else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPhrase:
    """The n-gram that most prompts' responses have in common."""

    text: str
    num_prompts: int


def commonest_phrase(prompts: Iterable[Sequence[str]], n: int = 5) -> SharedPhrase | None:
    """The n-gram found in the responses to most prompts, which may have several responses each."""
    counts = Counter(
        gram for texts in prompts for gram in {g for t in texts for g in ngrams(words_of(t), n)}
    )
    if not counts:
        return None
    gram, num = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return SharedPhrase(text=" ".join(gram), num_prompts=num)


def mean_logprobs(
    engine: Engine,
    encoder: ChatEncoder,
    *,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    finished: Sequence[bool] | None = None,
    system: str | None,
) -> list[float]:
    """Mean log-probability per token of given responses, nats, scored in one batch.

    The end of a response counts as a token of it, but for those that were cut before it.
    """
    prompts = [encoder.conversation(messages, system=system) for messages in conversations]
    answers = [
        encoder.response_ids(response) if ended else encoder.text_ids(response)
        for response, ended in zip(responses, finished or [True] * len(responses), strict=True)
    ]
    sums = engine.score(prompts, answers)
    return [total / len(answer) for total, answer in zip(sums, answers, strict=True)]
