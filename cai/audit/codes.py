"""The codes of the lint: what each one means, how bad it is, and what to do about it.

A code never changes its meaning; one that is given up is not used again. The first figure is the
subject: 0 waivers, 1 forms, 2 wording, 3 pairs of principles, 4 scope and coverage, 5 tests,
6 values of compliance.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is, the worst first."""

    error = "error"
    """The document does not do what its author means."""
    warning = "warning"
    """Worth a change or a reason why not."""
    note = "note"
    """Worth knowing; never fails a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One kind of finding."""

    name: str
    severity: Severity
    advice: str
    """What to do."""


def _error(name: str, advice: str) -> Code:
    return Code(name=name, severity=Severity.error, advice=advice)


def _warning(name: str, advice: str) -> Code:
    return Code(name=name, severity=Severity.warning, advice=advice)


def _note(name: str, advice: str) -> Code:
    return Code(name=name, severity=Severity.note, advice=advice)


CODES: dict[str, Code] = {
    "C001": _error(
        "waiver without a reason",
        "Say why after the code, e.g. `# noqa: C203 the two always go together here`. Until then "
        "it waives nothing.",
    ),
    "C002": _error(
        "waiver without a valid code",
        "Name the code of the finding, e.g. `# noqa: C203 reason`. Until then it waives nothing.",
    ),
    "C003": _warning("unused waiver", "Take it out, or put it on the line of the finding."),
    "C004": _note(
        "not English",
        "The checks of wording know English only and were not made here; those of structure, tests "
        "and tags were.",
    ),
    "C101": _note(
        "derived forms",
        "Write critique, revise and compare: a request that names what to look for gets better "
        "critiques and labels than the sentence behind fixed words.",
    ),
    "C102": _warning(
        "missing form",
        "Write the missing form in the words of the others; a derived one may ask for something "
        "else.",
    ),
    "C103": _warning(
        "form that does not match",
        "Use the words of the principle in this form, or move it to the principle it belongs to.",
    ),
    "C104": _error(
        "form that wants the opposite",
        "Turn it round: critique and revision pull one way here and labels the other.",
    ),
    "C105": _warning(
        "request in place of a principle",
        "Write the principle as a sentence that a response can be held against, and a comparison "
        "in the same words.",
    ),
    "C201": _warning(
        "vague wording",
        "Name what a reader can find in a response, e.g. `gives a dose` and not `is harmful`.",
    ),
    "C202": _warning(
        "escape clause", "Say when it applies, or take it out: everybody reads it as they like."
    ),
    "C203": _warning(
        "compound principle",
        "Split it: a pair that meets one half and fails the other has no right label.",
    ),
    "C204": _warning(
        "leading critique",
        "Ask whether, and let it say that there is none: a critique that must find a fault invents "
        "one.",
    ),
    "C205": _warning(
        "loaded wording", "Say what is to be found and leave the verdict to the reader."
    ),
    "C206": _error(
        "position in a comparison",
        "Ask which of the two responses: options change places, and a label may not follow one.",
    ),
    "C301": _error(
        "duplicate principle", "Take one out; to draw a principle more often, give it a weight."
    ),
    "C302": _warning(
        "near-duplicate principle",
        "Merge them, or say in each what the other does not cover: together they count twice.",
    ),
    "C303": _error("form used twice", "Write the form of the second principle."),
    "C304": _warning(
        "contradiction",
        "Give each a condition that the other has not, or take one out: they push labels in "
        "opposite directions.",
    ),
    "C305": _error(
        "contradicting tests",
        "Correct one of them: what is better in one is worse in the other for the same prompt.",
    ),
    "C306": _warning("repeated test", "Take one out: it counts twice in every accuracy."),
    "C401": _warning("misspelt tag", "Use one spelling: reports group by tag."),
    "C402": _note(
        "tags of your own",
        "Nothing to do if they are meant: no document of the project and no set of prompts uses "
        "them.",
    ),
    "C403": _warning(
        "harm without a principle",
        "Add a principle for it, `extends` a document that has one, or leave these prompts out "
        "(data.red_team, constitution.domain).",
    ),
    "C404": _note(
        "harm outside the domain",
        "Such prompts are criticised under principles that do not speak of them; type "
        "data.domain_frac=1 to train on the domain's prompts alone, or `extends: default`.",
    ),
    "C501": _error(
        "test without a difference", "Write two responses that differ in more than spelling."
    ),
    "C502": _warning(
        "tests that length gives away",
        "Lengthen worse responses or shorten better ones until length says nothing: otherwise a "
        "feedback model that counts words passes.",
    ),
    "C503": _warning(
        "test that length gives away", "Bring both responses to about the same length."
    ),
    "C504": _warning(
        "principle without tests",
        "Add some (prompt, better, worse), half of them with the shorter response better: without "
        "tests nobody knows whether a model can apply it.",
    ),
    "C505": _warning(
        "no tests at all",
        "Add tests (prompt, better, worse) to the principles: without any the feedback cannot be "
        "measured, and feedback=tuned has nothing to learn from.",
    ),
    "C601": _warning(
        "values without a difference",
        "Give classes different values, or leave the kind out: labels do not change.",
    ),
    "C602": _warning(
        "refusals wanted of ordinary requests",
        "Make compliance worth at least as much as refusal there, or say why not.",
    ),
    "C603": _note(
        "answers wanted of harmful requests",
        "Nothing to do in a control; elsewhere policies are trained to do what red-team prompts "
        "ask for.",
    ),
}  # fmt: skip
