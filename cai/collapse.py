"""Signs that a policy collapsed into boilerplate, and how far it is from the base.

Five detectors, of which none sees a label or a reward, since a reward that is over-optimised shows
nothing of it: the 5-gram that most prompts' responses share (Bai et al. 2022, sec. 4.3, describes
such boilerplate in over-trained RL-CAI), distinct n-grams (Li et al. 2016, arXiv:1510.03055), tails
that repeat, the change in length, and the perplexity of the responses under the base (low: the same
few sentences; high: text that the base finds odd). On the released samples of the 52B models the
shared 5-gram orders helpful RLHF < RLHF < RL-CAI with chain of thought < RL-CAI
(`tests/test_collapse.py` measures this where the data is).

Distinct n-grams fall with the number of words, so policies are compared on as many words as the
shortest-spoken one has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cai.acceptance import common_tail
from cai.evaluation import commonest_phrase, distinct_n, ngrams, words_of
from cai.statistics import Estimate, bootstrap_mean, paired_bootstrap_difference, wilson_interval
from cai.types import Evaluated

PHRASE = 5
"""Words of the shared phrase."""
TAIL = 4
"""Words at the end that are looked for earlier in the same response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLikelihood:
    """How probable the base finds one response of a policy."""

    prompt_id: str
    kind: str
    mean_logprob: float | None
    """Per token, nats; None for an empty response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTexts:
    """One policy's responses, in the order of the prompts."""

    policy: str
    texts: tuple[str, ...]
    mean_logprobs: tuple[float | None, ...]
    """Under the base, of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseRow:
    """One policy on all held-out prompts."""

    policy: str
    num: int
    phrase: str
    """The 5-gram that the responses to most prompts share; empty where none share one."""
    phrase_share: Estimate | None
    """Prompts with it."""
    distinct_2: float | None
    distinct_4: float | None
    """Different n-grams over all, on equally many words of every policy."""
    repeated_tails: Estimate | None
    """Responses whose last words stand in them before."""
    shared_tail: str
    shared_tail_share: Estimate | None
    """Prompts whose responses end in the same words."""
    words_change: Estimate | None
    """Words less those of the first policy, paired by prompt; None for the first."""
    perplexity: Estimate | None
    """Per token, under the base."""


def policy_texts(
    evaluated: Sequence[Evaluated], likelihoods: Mapping[str, Sequence[ResponseLikelihood]]
) -> list[PolicyTexts]:
    """Responses of every policy with what the base makes of them, both in the prompts' order."""
    found = []
    for policy, own in likelihoods.items():
        texts = [e.response.sample.text for e in evaluated if e.response.policy == policy]
        logprobs = [one.mean_logprob for one in own]
        assert len(texts) == len(logprobs)
        found.append(PolicyTexts(policy=policy, texts=tuple(texts), mean_logprobs=tuple(logprobs)))
    return found


def repeats_its_tail(text: str, n: int = TAIL) -> bool:
    """Whether a response's last n words stand in it before, as in a loop."""
    grams = ngrams(words_of(text), n)
    return bool(grams) and grams[-1] in grams[:-1]


def collapse_rows(
    policies: Sequence[PolicyTexts], *, num_resamples: int, seed: int
) -> tuple[CollapseRow, ...]:
    """Every detector on every policy; the first one is what length is compared with."""
    if not policies:
        return ()
    limit = min(sum(len(words_of(text)) for text in one.texts) for one in policies)
    first = policies[0]
    return tuple(
        _row(one, first, limit=limit, num_resamples=num_resamples, seed=seed) for one in policies
    )


def _row(
    one: PolicyTexts, first: PolicyTexts, *, limit: int, num_resamples: int, seed: int
) -> CollapseRow:
    num = len(one.texts)
    phrase = commonest_phrase([[text] for text in one.texts], PHRASE)
    tail = common_tail([[text] for text in one.texts])
    return CollapseRow(
        policy=one.policy,
        num=num,
        phrase=phrase.text if phrase and phrase.num_prompts > 1 else "",
        phrase_share=wilson_interval(phrase.num_prompts if phrase else 0, num),
        distinct_2=distinct_n(one.texts, 2, max_words=limit),
        distinct_4=distinct_n(one.texts, 4, max_words=limit),
        repeated_tails=wilson_interval(sum(map(repeats_its_tail, one.texts)), num),
        shared_tail=tail.text if tail and tail.num_rows > 1 else "",
        shared_tail_share=wilson_interval(tail.num_rows, tail.num) if tail else None,
        words_change=None
        if one is first
        else paired_bootstrap_difference(
            _lengths(one.texts), _lengths(first.texts), num_resamples=num_resamples, seed=seed
        ),
        perplexity=perplexity(
            [value for value in one.mean_logprobs if value is not None],
            num_resamples=num_resamples,
            seed=seed,
        ),
    )


def _lengths(texts: Iterable[str]) -> list[float]:
    return [float(len(text.split())) for text in texts]


def perplexity(mean_logprobs: Sequence[float], *, num_resamples: int, seed: int) -> Estimate | None:
    """exp(-mean) of log-probabilities per token, texts alike whatever their length."""
    found = bootstrap_mean(mean_logprobs, num_resamples=num_resamples, seed=seed)
    if found is None:
        return None
    return Estimate(
        value=math.exp(-found.value),
        low=math.exp(-found.high),
        high=math.exp(-found.low),
        num=found.num,
    )
