"""What the person reads in the terminal when a response was traced."""

from __future__ import annotations

from pathlib import Path

from cai.story import label, number
from cai.summary import Page
from cai.trace.record import FILE
from cai.trace.story import NEARNESS, Neighbour, TracedComparison, TraceStory

TEXT_LINES = 3
NUM_LABELS = 4
"""Principles whose labels are shown, those that say most."""
NUM_PRINCIPLES = 6


def terminal_trace(story: TraceStory, *, run_dir: Path, encoding: str) -> str:
    """The trace as a text, without a final newline."""
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    page.text(f"Trace of {story.example} in {story.run}")
    _answers(page, story)
    _labels(page, story)
    page.gap("Near training examples")
    page.text(NEARNESS, first="  ! ", rest="    ")
    for number_, one in enumerate(story.neighbours, start=1):
        _neighbour(page, number_, one)
    _principles(page, story)
    for check in story.checks:
        page.gap(check.title)
        for line in check.text.split("\n"):
            page.lines.append(f"  {_indent(line)}{page.clean(line)}")
    page.gap()
    if story.link:
        where = "shows this sample" if story.in_report else "does not show this sample"
        page.text(f"The run's report {where}:")
        page.line(f"  {Path(story.run) / 'report.html'}#{story.link.rpartition('#')[2]}")
    page.line(f"For machines: {run_dir / FILE}")
    page.line(f"Report: {run_dir / 'report.html'}")
    return "\n".join(page.lines)


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip(" ")))


def _block(page: Page, name: str, text: str, *, indent: int = 2, wide: int = 10) -> None:
    start = f"{' ' * indent}{name:<{wide}}"
    page.text(text or "(empty)", first=start, rest=" " * (indent + wide), max_lines=TEXT_LINES)


def _answers(page: Page, story: TraceStory) -> None:
    page.gap(f"The prompt ({label(story.prompt.kind)}, {page.clean(story.prompt.category)})")
    for message in story.prompt.messages:
        _block(page, message.role, message.content)
    page.gap("Its responses")
    for answer in story.answers:
        notes = [] if answer.score is None else [f"preference-model score {answer.score:.2f}"]
        notes += ["refusal"] if answer.refusal else []
        notes += ["asked about"] if answer.asked else []
        mark = f"[{', '.join(notes)}] " if notes else ""
        _block(page, page.clean(label(answer.policy)), f"{mark}{answer.text or '(empty)'}")


def _labels(page: Page, story: TraceStory) -> None:
    pairs = dict.fromkeys((one.before, one.after) for one in story.labels)
    if pairs:
        page.gap("P(later preferred) by the feedback that trained it (circular), furthest from 0.5")
    for before, after in pairs:
        own = [one for one in story.labels if (one.before, one.after) == (before, after)]
        own.sort(key=lambda one: -abs(one.prob_after - 0.5))
        told = ", ".join(f"{one.principle_id} {one.prob_after:.2f}" for one in own[:NUM_LABELS])
        page.text(f"{label(after)} over {label(before)}: {told}", first="  ", rest="    ")


def _neighbour(page: Page, place: int, one: Neighbour) -> None:
    page.gap()
    page.text(
        f"{place}. {one.prompt.id} ({label(one.prompt.kind)}): similarity {one.similarity:.2f}, "
        f"same words {one.lexical:.2f}",
        first="  ", rest="     ",
    )  # fmt: skip
    _block(page, "prompt", one.prompt.messages[-1].content, indent=5)
    for step in one.chain.steps if one.chain else ():
        told = f"step {step.step} under {step.principle_id}: {label(step.outcome)}"
        _block(page, "revision", f"{told}. {step.response if step.outcome.accepted else ''}",
               indent=5)  # fmt: skip
    for compared in one.comparisons:
        _comparison(page, compared)
    for rollout in one.rollouts:
        told = f"round {rollout.iteration + 1}, score {rollout.score:.2f}"
        _block(page, "rollout", f"[{told}] {rollout.sample.text or '(empty)'}", indent=5)


def _comparison(page: Page, compared: TracedComparison) -> None:
    one = compared.comparison
    if one.prob_a is None:
        told = f"no label ({label(one.unjudged or '')}) under {', '.join(one.principle_ids)}"
    else:
        under = ", ".join(f"{own.principle_id} {own.prob_a:.2f}" for own in one.labels)
        told = f"P(a preferred) {one.prob_a:.2f} under {under}"
        told += "" if one.weight == 1 else f", weight {one.weight:.2f}"
        told += "" if compared.learned else "; held out"
    _block(page, "labelled", told, indent=5)
    _block(page, "  a", one.response_a, indent=5)
    _block(page, "  b", one.response_b, indent=5)


def _principles(page: Page, story: TraceStory) -> None:
    if not story.principles:
        return
    page.gap("Principles of these examples: share of the training signal here, and in the run")
    for row in story.principles[:NUM_PRINCIPLES]:
        here = "none" if row.near_share is None else number(row.near_share)
        whole = "none" if row.run_share is None else number(row.run_share)
        page.text(
            f"{row.id}: {here} here, {whole} in the run; {row.num_comparisons} comparison(s), "
            f"{row.num_revisions} revision(s) used. {row.principle}",
            first="  ", rest="    ", max_lines=TEXT_LINES,
        )  # fmt: skip
