"""How near two prompts are: by a model's middle layer, and by their words.

Embeddings are centred by the mean of the training prompts before the cosine: mean-pooled states of
a language model lie in a narrow cone (Ethayarajh 2019, arXiv:1909.00512), where every prompt is
near every other, and taking off the common mean is most of the cure (Mu and Viswanath 2018,
arXiv:1702.01417).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cai.types import Prompt


def prompt_text(prompt: Prompt) -> str:
    """What of a prompt is compared: its turns, one after the other."""
    return "\n\n".join(message.content for message in prompt.messages)


def centred_cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine (n,) of a query (d,) with each row (n, d), all less the mean of the rows.

    0 where either has no length.
    """
    mean = rows.mean(0)
    query, rows = query - mean, rows - mean
    lengths = np.linalg.norm(query) * np.linalg.norm(rows, axis=1)
    return np.divide(rows @ query, lengths, out=np.zeros(len(rows)), where=lengths > 0)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))


def lexical_cosines(query: str, texts: Sequence[str]) -> list[float]:
    """Cosine of TF-IDF vectors of words with each text.

    Counts times `1 + ln((1 + n) / (1 + df))` over the n texts, so a word that no text has weighs
    most in the query; 0 where either has no word.
    """
    documents = [Counter(_words(text)) for text in texts]
    frequency = Counter(word for document in documents for word in document)

    def vector(counts: Counter[str]) -> dict[str, float]:
        return {
            word: num * (1 + math.log((1 + len(texts)) / (1 + frequency[word])))
            for word, num in counts.items()
        }

    def length(weights: dict[str, float]) -> float:
        return math.sqrt(math.fsum(value * value for value in weights.values()))

    asked = vector(Counter(_words(query)))
    found = []
    for document in documents:
        own = vector(document)
        scale = length(asked) * length(own)
        product = math.fsum(own[word] * asked[word] for word in own.keys() & asked.keys())
        found.append(product / scale if scale else 0.0)
    return found
