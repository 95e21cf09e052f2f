"""Speed on the embedded model, as ratios to what transformers does by itself, in one run.

Run: `make benchmark`, or one table: `python -m tests.benchmarks.generation --only feedback`. One
thread, CPU seconds. Other work on the machine moves those too, by way of the memory, so the rows of
a table take turns and each row's time is the median of its rounds. No test asserts any of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from hydra import compose, initialize_config_dir

from cai import paths
from cai.feedback.multiple_choice import MultipleChoice
from cai.generation import Generator
from cai.models import BaseModel, load
from cai.prefixes import common
from cai.prompts import REVIEWER_SYSTEM, critique_prompt
from cai.schema import to_config
from cai.types import Message
from tests.benchmarks import naive
from tests.benchmarks.feedback import (
    PAIRS,
    SameExamples,
    cases,
    judge_prompts,
    multiple_choice,
    tuned,
)

UNUSED_ID = 49151
"""A token that is hardly ever sampled, in place of the end: every way samples as many tokens."""
SAMPLED = 32
CRITIQUES = 16
EXAMPLES = 2
"""Solved examples per judge prompt: 350 to 400 of its 500 to 550 tokens."""

Work = Callable[[], object]


def _base() -> BaseModel:
    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        config = to_config(compose("config"))
    return load(config.model, config.hardware)


def _different_prompts(base: BaseModel) -> list[list[int]]:
    """Prompts of 124 to 400 tokens without a common beginning."""
    words = base.encoder.text_ids("People ask about many things and hope for a short answer. " * 40)
    lengths = [124 + (276 * row) // (SAMPLED - 1) for row in range(SAMPLED)]
    return [[100 + row, *words[: length - 1]] for row, length in enumerate(lengths)]


def _critique_prompts(base: BaseModel) -> tuple[list[int], list[list[int]]]:
    """What the default run's critique prompts share, and how each goes on, 60 to 150 tokens."""
    prompts = []
    for number in range(CRITIQUES):
        asked = [Message(role="user", content=f"{number} old phones need a reset, how is it done?")]
        messages = critique_prompt(
            asked,
            "You hold the power button. " * (4 + number),
            request="Name the step that is missing.",
            num_few_shot=2,
        )
        prompts.append(base.encoder.conversation(messages, system=REVIEWER_SYSTEM))
    shared = _shared(prompts)
    return prompts[0][:shared], [prompt[shared:] for prompt in prompts]


def _shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with."""
    return min(common(prompts[0], prompt) for prompt in prompts)


def _greedy(base: BaseModel, prompts: list[list[int]], *, num: int) -> None:
    generator = Generator(base.model, eos_id=UNUSED_ID, max_context=2048)
    seeds = list(range(len(prompts)))
    generator.sample(prompts, seeds=seeds, max_new_tokens=num, temperature=0.0)


def _table(title: str, rows: dict[str, Work], *, rounds: int, per: int = 1) -> None:
    """CPU seconds of each row, divided by `per`, and how often it goes into the first row's."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, work in rows.items():
            started = time.process_time()
            work()
            seconds[name].append((time.process_time() - started) / per)
    print(f"\n{title}", flush=True)
    first = statistics.median(next(iter(seconds.values())))
    for name, found in seconds.items():
        middle = statistics.median(found)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"  {name:<58} {middle:7.2f} CPU s ({spread})   {first / middle:5.2f}x", flush=True)


def generation(base: BaseModel, rounds: int) -> None:
    """Prompts without a common beginning, 64 new tokens."""
    prompts = _different_prompts(base)
    rows: dict[str, Work] = {
        "transformers generate, one batch": lambda: naive.generate(base.model, prompts, num=64),
        "cai, one batch": lambda: _greedy(base, prompts, num=64),
    }
    title = f"Generation, {SAMPLED} prompts of 124 to 400 tokens, 64 new tokens, greedy"
    _table(title, rows, rounds=rounds)


def feedback(base: BaseModel, rounds: int) -> None:
    """Pairs compared in both orders."""
    model = base.model
    pairs = cases()
    asked = judge_prompts(base, num_few_shot=EXAMPLES, kind=SameExamples)
    drawn = multiple_choice(base, num_few_shot=EXAMPLES, kind=MultipleChoice)
    same = multiple_choice(base, num_few_shot=EXAMPLES, kind=SameExamples)
    default = tuned(base)
    rows: dict[str, Work] = {
        "transformers generate, 8 tokens, prompt by prompt": lambda: naive.generate_one_by_one(
            model, asked, num=8
        ),
        "transformers forward, batches of 8, all logits": lambda: naive.all_logits(model, asked),
        "transformers forward, batches of 8, last logits": lambda: naive.last_logits(model, asked),
        "cai multiple_choice, examples drawn for each pair": lambda: drawn.judge(pairs),
        "cai multiple_choice, the same examples for all pairs": lambda: same.judge(pairs),
        "cai tuned, the default: no question, no examples": lambda: default.judge(pairs),
    }
    shared = _shared(asked)
    lengths = sorted(map(len, asked))
    title = (
        f"Feedback per pair, {PAIRS} pairs, both orders, {EXAMPLES} examples: prompts of "
        f"{lengths[0]} to {lengths[-1]} tokens, {shared} of them shared where examples are the same"
    )
    _table(title, rows, rounds=rounds, per=PAIRS)


def critiques(base: BaseModel, rounds: int) -> None:
    """Prompts behind worked examples, until the first token: 700 shared tokens, and as they are."""
    shared, own = _critique_prompts(base)
    _first_tokens(base, (shared * 3)[:700], own, rounds=rounds)
    _first_tokens(base, shared, own, rounds=rounds)


def _first_tokens(base: BaseModel, shared: list[int], own: list[list[int]], *, rounds: int) -> None:
    prompts = [shared + rest for rest in own]
    rows: dict[str, Work] = {
        "transformers generate, 1 token, batches of 8": lambda: naive.generate_in_batches(
            base.model, prompts, num=1
        ),
        "cai, prompt by prompt": lambda: [_greedy(base, [prompt], num=1) for prompt in prompts],
        "cai, shared prefix": lambda: _greedy(base, prompts, num=1),
    }
    lengths = sorted(map(len, own))
    title = (
        f"First token of {len(prompts)} critiques, {len(shared)} tokens shared and {lengths[0]} "
        f"to {lengths[-1]} of their own"
    )
    _table(title, rows, rounds=rounds)


TABLES = {"generation": generation, "feedback": feedback, "critiques": critiques}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=3, help="the median is printed (default: 3)")
    typed = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = _base()
    print(f"{base.base_id}, {base.model.dtype}, one thread, median of {typed.rounds} rounds")
    for name in typed.only:
        TABLES[name](base, typed.rounds)


if __name__ == "__main__":
    main()
