"""`trace.json`: a trace for machines, in its run folder.

Schema, version 1. A reader may rely on every field below; a new field does not raise the version, a
changed meaning does. Texts are whole and literal.

* `schema`: `"cai.trace"`; `schema_version`: 1; `cai`: version of the program
* `run`, `example`: as they were typed; `link`: relative address of the run's report, or empty
* `prompt`: `id`, `kind`, `category`, `source`, `messages` (`role`, `content`)
* `answers`: least trained policy first: `policy`, `text`, `score` (preference model, or null),
  `refusal`, `asked` (the response that was asked about)
* `labels`: `before`, `after` (policies), `principle_id`, `prob_after`: P(after preferred)
* `neighbours`: training prompts, nearest first: `prompt`, `similarity` (cosine of centred
  embeddings), `lexical` (cosine of TF-IDF vectors), `comparisons` (`response_a`, `response_b`,
  `prob_a` or null, `weight`, `unjudged` or null, `learned`, `labels`: `principle_id`, `prob_a`,
  `weight`; `principle_ids`), `draft` or null, `revisions` (`step`, `principle_id`, `critique`,
  `outcome`, `response`), `num_rollouts`, `rollouts` (`iteration`, `text`, `score`, `kl`)
* `principles`: what each did near the prompt: `id`, `principle`, `near_share`, `run_share`,
  `num_comparisons`, `num_revisions`
* `checks`: `title`, `text`: what to type to look for causes
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cai import __version__
from cai.trace.story import Neighbour, TracedComparison, TraceStory
from cai.types import Prompt

FILE = "trace.json"
SCHEMA = "cai.trace"
SCHEMA_VERSION = 1


def trace_record(story: TraceStory) -> dict[str, Any]:
    """The trace as plain JSON values."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "cai": __version__,
        "run": story.run,
        "example": story.example,
        "link": story.link,
        "prompt": _prompt(story.prompt),
        "answers": [dataclasses.asdict(answer) for answer in story.answers],
        "labels": [dataclasses.asdict(one) for one in story.labels],
        "neighbours": [_neighbour(one) for one in story.neighbours],
        "principles": [dataclasses.asdict(row) for row in story.principles],
        "checks": [dataclasses.asdict(check) for check in story.checks],
    }


def trace_metrics(story: TraceStory) -> dict[str, float]:
    """Flat numbers of a trace."""
    compared = [one for n in story.neighbours for one in n.comparisons]
    return {
        "trace/num_neighbours": float(len(story.neighbours)),
        "trace/nearest_similarity": max((n.similarity for n in story.neighbours), default=0.0),
        "trace/nearest_lexical": max((n.lexical for n in story.neighbours), default=0.0),
        "trace/num_comparisons": float(len(compared)),
        "trace/num_learned": float(sum(one.learned for one in compared)),
    }


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "kind": str(prompt.kind),
        "category": prompt.category,
        "source": prompt.source,
        "messages": [dataclasses.asdict(message) for message in prompt.messages],
    }


def _neighbour(one: Neighbour) -> dict[str, Any]:
    return {
        "prompt": _prompt(one.prompt),
        "similarity": one.similarity,
        "lexical": one.lexical,
        "comparisons": [_comparison(compared) for compared in one.comparisons],
        "draft": one.chain.draft.text if one.chain else None,
        "revisions": [
            {
                "step": step.step,
                "principle_id": step.principle_id,
                "critique": step.critique.text if step.critique else None,
                "outcome": str(step.outcome),
                "response": step.response,
            }
            for step in (one.chain.steps if one.chain else ())
        ],
        "num_rollouts": one.num_rollouts,
        "rollouts": [
            {"iteration": r.iteration, "text": r.sample.text, "score": r.score, "kl": r.kl}
            for r in one.rollouts
        ],
    }


def _comparison(compared: TracedComparison) -> dict[str, Any]:
    one = compared.comparison
    return {
        "response_a": one.response_a,
        "response_b": one.response_b,
        "prob_a": one.prob_a,
        "weight": one.weight,
        "unjudged": None if one.unjudged is None else str(one.unjudged),
        "learned": compared.learned,
        "labels": [dataclasses.asdict(label) for label in one.labels],
        "principle_ids": list(one.principle_ids),
    }


def trace_tables(story: TraceStory) -> dict[str, tuple[tuple[str, ...], list[list[object]]]]:
    """Columns and rows for the mirror: answers, what was near, and the principles behind it."""
    answers: list[list[object]] = [
        [one.policy, one.text, one.score, one.refusal, one.asked] for one in story.answers
    ]
    labels: list[list[object]] = [
        [one.before, one.after, one.principle_id, one.prob_after] for one in story.labels
    ]
    near: list[list[object]] = [
        [
            neighbour.prompt.id,
            neighbour.prompt.messages[-1].content,
            neighbour.similarity,
            neighbour.lexical,
            one.comparison.response_a,
            one.comparison.response_b,
            one.comparison.prob_a,
            ", ".join(one.comparison.principle_ids),
            one.learned,
        ]
        for neighbour in story.neighbours
        for one in neighbour.comparisons
    ]
    principles: list[list[object]] = [
        [
            one.id,
            one.principle,
            one.near_share,
            one.run_share,
            one.num_comparisons,
            one.num_revisions,
        ]
        for one in story.principles
    ]
    asked = (
        "prompt_id", "prompt", "similarity", "lexical", "response_a", "response_b", "p_a",
        "principles", "learned",
    )  # fmt: skip
    heads = ("principle", "sentence", "near_share", "run_share", "comparisons", "revisions")
    found = {
        "trace_answers": (("policy", "response", "score", "refusal", "asked"), answers),
        "trace_labels": (("before", "after", "principle", "p_after"), labels),
        "trace_neighbours": (asked, near),
        "trace_principles": (heads, principles),
    }
    return {name: table for name, table in found.items() if table[1]}
