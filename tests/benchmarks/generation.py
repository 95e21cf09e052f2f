"""Speed of sampling and judging on the embedded model, as ratios to the naive way, in one run.

Run: `make benchmark`. Prints CPU seconds on one thread, which other work on the machine hardly
moves, and the ratio to the first row of each table. No test asserts any of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import transformers
from hydra import compose, initialize_config_dir

from cai import generation, paths
from cai.models import BaseModel, load
from cai.prompts import (
    ANSWER_OPENING,
    JUDGE_SYSTEM,
    REVIEWER_SYSTEM,
    Option,
    comparison_question,
    critique_prompt,
)
from cai.schema import to_config
from cai.types import Message

NUM_ROWS = 16
NEW_TOKENS = 24
BATCH = 32
UNUSED_ID = 49151
"""A token that is hardly ever sampled, in place of the end: every way samples as many tokens."""


def _base() -> BaseModel:
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        config = to_config(compose("config"))
    return load(config.model, config.hardware)


def _critique_prompts(base: BaseModel) -> list[list[int]]:
    prompts = []
    for number in range(NUM_ROWS):
        asked = [Message(role="user", content=f"How do I reset {number} old phones " * 4)]
        messages = critique_prompt(
            asked,
            "You hold the power button. " * (4 + number % 3),
            request="Name the step that is missing.",
            num_few_shot=2,
        )
        prompts.append(base.encoder.conversation(messages, system=REVIEWER_SYSTEM))
    return prompts


def _judge_prompts(base: BaseModel) -> list[list[int]]:
    prompts = []
    for number in range(NUM_ROWS):
        asked = [Message(role="user", content=f"How do I reset {number} old phones? " * 4)]
        options = (
            Option(letter="K", response="You hold the power button. " * 6),
            Option(letter="R", response="Please ask someone else. " * 6),
        )
        question = comparison_question(asked, options, question="Which names a step?")
        ids = base.encoder.conversation([question], system=JUDGE_SYSTEM)
        prompts.append(ids + base.encoder.text_ids(ANSWER_OPENING))
    return prompts


def _naive_generate(base: BaseModel, prompts: list[list[int]], num: int) -> None:
    """transformers' own `generate`, one prompt at a time."""
    for prompt in prompts:
        ids = torch.tensor([prompt])
        base.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=num,
            min_new_tokens=num,
        )


def _sample(base: BaseModel, prompts: list[list[int]], *, share_prefix: bool) -> None:
    usual = generation.MIN_PREFIX
    generation.MIN_PREFIX = usual if share_prefix else 10**9
    try:
        generator = generation.Generator(base.model, eos_id=UNUSED_ID, max_context=2048)
        generator.sample(
            prompts, seeds=list(range(len(prompts))), max_new_tokens=NEW_TOKENS, temperature=1.0
        )
    finally:
        generation.MIN_PREFIX = usual


def _different_prompts(base: BaseModel) -> list[list[int]]:
    """32 prompts of 124 to 400 tokens without a common beginning."""
    words = base.encoder.text_ids("People ask about many things and hope for a short answer. " * 40)
    lengths = [124 + (276 * row) // (BATCH - 1) for row in range(BATCH)]
    return [[100 + row, *words[: length - 1]] for row, length in enumerate(lengths)]


def _batched_generate(base: BaseModel, prompts: list[list[int]], num: int) -> None:
    """transformers' own `generate`, greedy, all prompts in one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), base.eos_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        base.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=num, min_new_tokens=num
        )


def _greedy(base: BaseModel, prompts: list[list[int]], num: int) -> None:
    generator = generation.Generator(base.model, eos_id=UNUSED_ID, max_context=2048)
    seeds = list(range(len(prompts)))
    generator.sample(prompts, seeds=seeds, max_new_tokens=num, temperature=0.0)


def _score(base: BaseModel, prompts: list[list[int]]) -> None:
    base.generator().next_token_logprobs(prompts)


def _table(title: str, rows: dict[str, Callable[[], None]]) -> None:
    print(f"\n{title}")
    first = None
    for name, work in rows.items():
        work()
        started = time.process_time()
        work()
        seconds = time.process_time() - started
        first = first or seconds
        print(f"  {name:<44} {seconds:7.1f} CPU s   {first / seconds:5.2f}x")


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = _base()
    print(f"{base.base_id}, {base.model.dtype}, one thread, {NUM_ROWS} prompts")
    different = _different_prompts(base)
    _table(
        f"Generation, {BATCH} prompts of 124 to 400 tokens, 64 new tokens, greedy",
        {
            "transformers generate, one batch": lambda: _batched_generate(base, different, 64),
            "cai, one batch": lambda: _greedy(base, different, 64),
        },
    )
    critiques, judged = _critique_prompts(base), _judge_prompts(base)
    _table(
        f"Critiques, {NEW_TOKENS} new tokens after {len(critiques[0])} prompt tokens",
        {
            "transformers generate, one by one": lambda: _naive_generate(
                base, critiques, NEW_TOKENS
            ),
            "cai, one batch": lambda: _sample(base, critiques, share_prefix=False),
            "cai, one batch, shared few-shot prefix": lambda: _sample(
                base, critiques, share_prefix=True
            ),
        },
    )
    _table(
        f"Comparisons, {len(judged[0])} prompt tokens",
        {
            "transformers generate, 8 tokens, one by one": lambda: _naive_generate(base, judged, 8),
            "cai, log-probabilities of the letters": lambda: _score(base, judged),
        },
    )


if __name__ == "__main__":
    main()
