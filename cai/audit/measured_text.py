"""The measured part of an audit in the terminal."""

from __future__ import annotations

from cai.audit.backfire import Effect
from cai.audit.measured import Measured, PrincipleMeasures, VersionEffect
from cai.statistics import Estimate
from cai.summary import Page, columns, fit

NAME = 30
"""Columns of a principle's id."""
NUM_CONFLICTS = 3
NUM_LEFT_OUT = 3
RESPONSE_LINES = 2
PREDICTED = (
    "Predicted from labels, not from training: a preference model smooths over pairs, and a policy "
    "moves to texts that are not among them."
)


def terminal_measured(
    measured: Measured, *, commands: dict[str, str], command_after: str, encoding: str
) -> str:
    """The labels' part as a text, without a final newline.

    Args:
        measured: The numbers.
        commands: What to type to train without a principle, by its id.
        command_after: What to type to train under the document itself.
        encoding: Of standard output.
    """
    page = Page(ascii_only=encoding.lower().replace("_", "-") not in ("utf-8", "utf8"))
    asked = measured.asked
    page.text(
        f"Measured on {len(measured.pairs)} pairs of responses {asked.pairs}, labelled under every "
        f"principle by {asked.method} feedback on {asked.judge}; an opinion is a label further "
        f"than {measured.threshold:g} from 1/2"
    )
    for warning in measured.warnings:
        page.text(warning, first="  ! ", rest="    ")
    _principles(page, measured)
    _whole(page, measured)
    _conflicts(page, measured)
    _left_out(page, measured, commands)
    if measured.version is not None:
        _version(page, measured.version, command_after)
    return "\n".join(page.lines)


def _cell(value: Estimate | None) -> str:
    return "-" if value is None else f"{value.value:.2f}"


def _cells(one: PrincipleMeasures) -> list[str]:
    tests = "-" if one.tests is None else f"{one.tests.value:.2f}/{one.tests.num}"
    shown = (
        one.relevance,
        one.decisiveness,
        one.order_consistency,
        one.paraphrase_consistency,
        one.negation_flip_rate,
        one.agreement,
    )
    return [tests, *map(_cell, shown), str(one.num_prompts)]


HEADS = ("tests", "opinion", "|p-.5|", "orders", "reword", "negate", "agree", "prompts")


def _principles(page: Page, measured: Measured) -> None:
    page.gap("principle".ljust(NAME) + "".join(head.rjust(8) for head in HEADS))
    for one in measured.principles:
        name = fit(page.clean(one.id), NAME - 1)
        name += " " * (NAME - columns(name))
        page.lines.append(name + "".join(cell.rjust(8) for cell in _cells(one)))
    page.text(
        "tests: accuracy on its own tests, and how many; opinion: share of pairs with one; "
        "|p-.5|: mean distance of its labels from 1/2; "
        + (
            "orders: same label in both orders; "
            if measured.side_by_side
            else "orders: nothing is shown side by side; "
        )
        + "reword: same side when the question is put in other words; negate: other side when the "
        "opposite is asked (both by rules); agree: same side as the other principles; prompts: "
        "with an opinion.",
        first="  ",
        rest="  ",
    )


def _whole(page: Page, measured: Measured) -> None:
    whole = measured.whole
    page.gap("The document")
    rows: list[tuple[str, Estimate | None]] = [
        ("Accuracy on all its tests (chance 0.5)", measured.feedback.accuracy),
        ("The same tests under principles that they do not test", measured.swapped),
        ("Difference: at 0 they are solved without reading the principle", measured.own_gain),
        ("Coverage: prompts on which some principle has an opinion", whole.coverage),
        (
            f"Effective number of its {len(measured.principles)} principles",
            whole.effective_number,
        ),
        ("Mean entropy of a label, nats (0.693 says nothing)", whole.entropy),
    ]
    for name, value in rows:
        page.text(f"{name}: {'not measured' if value is None else value.format()}", first="  ")
    if whole.conflict_rate is not None:
        page.text(
            f"Conflicts of two drawn principles: {whole.conflict_rate:.3f} of the pairs",
            first="  ",
        )


def _conflicts(page: Page, measured: Measured) -> None:
    if not measured.conflicts:
        return
    page.gap("Conflicts: both have an opinion, for different responses")
    seen: set[str] = set()
    for conflict in measured.conflicts[:NUM_CONFLICTS]:
        page.text(
            f"{conflict.first} against {conflict.second}: {conflict.rate.format()}", first="  "
        )
        fresh = [one for one in conflict.pairs if one.pair not in seen]
        shown = (fresh or conflict.pairs)[0]
        seen.add(shown.pair)
        pair = measured.pair(shown.pair)
        asks = pair.prompt.messages[-1].content
        page.text(f"{shown.pair}: {asks}", first="    ", rest="      ", max_lines=RESPONSE_LINES)
        for letter, text in (("a", pair.response_a), ("b", pair.response_b)):
            page.text(f"{letter}: {text}", first="      ", rest="         ", max_lines=2)
        page.text(
            f"P(a) is {shown.first:.2f} under {conflict.first}, {shown.second:.2f} under "
            f"{conflict.second}",
            first="      ",
            rest="      ",
        )


def _left_out(page: Page, measured: Measured, commands: dict[str, str]) -> None:
    if not measured.left_out:
        return
    page.gap("Without one principle")
    for one in measured.left_out[:NUM_LEFT_OUT]:
        _effect(page, one.principle_id, one.effect)
    page.text(PREDICTED, first="  ", rest="  ")
    top = measured.left_out[0].principle_id
    if top in commands:
        page.line(f"  Check it: {commands[top]}")


def _effect(page: Page, name: str, effect: Effect) -> None:
    page.text(f"{name}: {effect_told(effect)}", first="  ", rest="    ")


def effect_told(effect: Effect) -> str:
    """Flips, where they are, and refusals, in a line."""
    moved = "" if effect.mean_move is None else f", labels move by {effect.mean_move.value:.3f}"
    told = f"{len(effect.flips)} of {effect.num} labels change sides{moved}"
    where = [f"{c.category} {c.num_flips}/{c.num}" for c in effect.categories if c.num_flips]
    if where:
        told += f" ({', '.join(where[:4])}{', ...' if len(where) > 4 else ''})"
    change = effect.refusals.change
    if change is None:
        return f"{told}; no pair has exactly one refusal, so nothing is known of refusals"
    return f"{told}; preference for refusing moves by {change.format()}"


def _version(page: Page, version: VersionEffect, command: str) -> None:
    page.gap(f"Labels since {page.clean(version.before)}")
    _effect(page, "everything", version.whole)
    for step in version.steps:
        if step.what == "same":
            continue
        own = "" if step.own_flips is None else f", its own label flips {step.own_flips} times"
        _effect(page, f"{step.what} {step.principle_id} alone{own}", step.effect)
    same = [step for step in version.steps if step.what == "same"]
    moved = sum(step.own_flips or 0 for step in same)
    if same:
        page.text(
            f"{len(same)} principles are unchanged; their labels flip {moved} times, because "
            "feedback that learns from the document's tests is trained for each version.",
            first="  ",
            rest="    ",
        )
    page.text(PREDICTED, first="  ", rest="  ")
    page.line(f"  Check it: {command}")
