"""`report.html`: the run's story on one page that needs nothing else.

One file without any outside resource. Most of its text was written by models and strangers: it is
made legible (`visible`), then escaped (Jinja autoescape), in one place, the environment's
`finalize`. The only markup that passes is what `charts` and `lineage` made, and one script of ours
(`report.js`: filters, word differences, values of charts), which a content policy names by its
hash and beside which it allows none; it handles text as text only, and the page is whole without
it. Sections whose part of the story is missing are left out.

Revisions are shown with word differences. Very long texts are cut with a count of what
is left out, so that one runaway response does not bury the page.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from cai.artifacts import write_atomically
from cai.capability_story import alignment_tax
from cai.choices import Condition
from cai.critic_story import NAMES as CRITIC_NAMES
from cai.elo.text import title
from cai.feedback.measures import Group, Measures
from cai.figures import figures_of
from cai.findings import findings, key_metrics
from cai.goodhart_story import told as told_goodhart
from cai.lineage import lineage_chart
from cai.model_card import card_parts
from cai.preference_measures import PreferenceMeasures
from cai.statistics import Estimate
from cai.story import (
    ConstitutionStory,
    DPOStory,
    EvaluationStory,
    Example,
    FeedbackStory,
    PreferenceModelStory,
    RunStory,
    duration,
    label,
    number,
    sample_anchor,
    visible,
)
from cai.types import Prompt, RevisionChain, RevisionOutcome, RevisionStep
from cai.word_diff import DiffPart, word_diff

MAX_CHARACTERS = 6000
"""Of one text on the page."""

_TOLD = {
    RevisionOutcome.revised: "Revision",
    RevisionOutcome.shortened: "Revision, cut back to whole sentences",
    RevisionOutcome.unchanged: "Revision: the response is repeated unchanged",
    RevisionOutcome.copied: "Revision: the prompt, the critique or a request copied; not used",
    RevisionOutcome.malformed: "Revision: malformed; not used",
    RevisionOutcome.truncated: "Revision: cut off too early; not used",
    RevisionOutcome.empty_revision: "Revision: nothing was written; not used",
    RevisionOutcome.too_long: "No critique: the conversation did not fit the context",
    RevisionOutcome.outvoted: "Revision: the vote went to the response before it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    id: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepView:
    step: int
    principle_id: str
    principle: str
    critique: str | None
    told: str
    parts: tuple[DiffPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChainView:
    prompt: Prompt
    draft: str
    steps: tuple[_StepView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    title: str
    cells: tuple[Estimate | float | None, ...]
    estimates: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupTable:
    caption: str
    column: str
    rows: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FeedbackView:
    rates: list[tuple[str, Estimate]]
    numbers: list[tuple[str, str, float]]
    """Name, how to read it, value."""
    counts: list[tuple[str, int, int]]
    """Name, number, of how many."""
    positions: str
    groups: list[_GroupTable]


def write_report(story: RunStory, path: Path) -> None:
    """Write the page; a reader sees the old file or the new one, never a part."""
    write_atomically(path, render_report(story).encode("utf-8"))


def render_report(story: RunStory) -> str:
    """The page as text."""
    columns = _principle_columns(story.constitution)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            story=story,
            sections=_sections(story, has_principles=bool(columns)),
            warnings=findings(story),
            metrics=key_metrics(story),
            run_facts=_run_facts(story),
            outcome_names=_outcome_names(story),
            chains=_chains(story),
            anchors=_anchors(story),
            changes=[_change(example) for example in story.examples],
            lineage=lineage_chart(story.stages),
            card=card_parts(story),
            script=_script(),
            script_hash=_script_hash(),
            charts=figures_of(story),
            feedback=_feedback_view(story.feedback),
            preference_rows=_preference_rows(story.preference_model),
            preference_numbers=_held_out_numbers(story.preference_model),
            dpo_rows=_dpo_rows(story.dpo),
            dpo_numbers=_held_out_numbers(story.dpo),
            critic_names=CRITIC_NAMES,
            has_scores=_has_scores(story.evaluation),
            alignment_tax=alignment_tax(story.evaluation.capability) if story.evaluation else "",
            goodhart_told=told_goodhart(story.goodhart) if story.goodhart else "",
            principle_columns=columns,
            reproduce_facts=_reproduce_facts(story),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clip": _clip,
        "label": label,
        "policy": title,
        "number": number,
        "optional": lambda value: "" if value is None else number(value),
        "duration": duration,
        "seconds": lambda value: f"{value:,.1f}",
        "memory": lambda value: f"{value / 1e9:.2f} GB",
        "drawing": Markup,
    }
    return environment


@functools.cache
def _script() -> Markup:
    """The page's script, between new lines that belong to it and to its hash."""
    text = (Path(__file__).parent / "templates" / "report.js").read_text("utf-8")
    assert "</script" not in text.lower()
    return Markup(f"\n{text}")


def _script_hash() -> str:
    """What a content policy calls the script by."""
    digest = hashlib.sha256(str(_script()).encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _finalize(value: object) -> object:
    """The one gate that every printed value passes before it is escaped."""
    assert value is not None, "the template prints a missing value"
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def _clip(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]}\u2026 [{len(text) - MAX_CHARACTERS:,} more characters]"


def _sections(story: RunStory, *, has_principles: bool) -> list[_Section]:
    known = [
        (True, "shows", "What this run shows"),
        (True, "run", "What was run"),
        (story.audit, "audit", "What reading the document tells"),
        (story.audit and story.audit.measured, "measured", "What its labels tell"),
        (story.trace, "trace", "What moved this response"),
        (story.responses, "responses", "Responses"),
        (story.comparison, "differences", "What differs"),
        (story.comparison, "metrics", "Metrics by configuration"),
        (story.comparison and story.comparison.curves, "curves", "Training curves"),
        (story.matrix, "matrix", "Who steers whom"),
        (story.constitution, "constitution", "The constitution"),
        (story.revisions, "revisions", "Drafts, critiques, revisions"),
        (story.people, "people", "Labels by people"),
        (story.edge, "edge-cases", "Edge cases for people"),
        (story.sl_policy, "sl-policy", "SL-CAI fine-tune"),
        (story.feedback, "feedback", "Feedback quality"),
        (story.preference_model, "preference-model", "Preference model"),
        (story.dpo, "dpo", "Direct preference optimization"),
        (story.critic, "critic", "The critic"),
        (story.ppo, "ppo", "Reinforcement learning"),
        (story.goodhart, "goodhart", "Over-optimisation"),
        (story.attribution, "attribution", "What each principle did"),
        (story.examples or story.training, "examples", "Samples"),
        (story.evaluation, "evaluation", "Evaluation"),
        (story.elo, "elo", "Win rates and Elo"),
        (has_principles, "principles", "Results by principle"),
        (story.stages, "stages", "Stages and lineage"),
        (story.limits, "limits", "Limits"),
        (story.sl_policy or story.people, "card", "Model card"),
        (True, "reproduce", "How to reproduce"),
    ]
    return [_Section(id=name, title=title) for present, name, title in known if present]


def _run_facts(story: RunStory) -> list[tuple[str, str]]:
    head = story.headline
    memory = f"{head.peak_memory_bytes / 1e9:.2f} GB" if head.peak_memory_bytes else "not measured"
    return [
        ("Phase", head.phase),
        ("Constitution", head.constitution),
        *((f"Model: {role}", name) for role, name in head.models.items()),
        _seeds(story),
        ("Started", head.started),
        ("Time", f"{duration(head.seconds)} ({head.seconds:,.1f} s)"),
        ("Peak memory", memory),
        ("Hardware", head.hardware),
    ]


def _seeds(story: RunStory) -> tuple[str, str]:
    if story.matrix is not None:
        return "Seeds", ", ".join(map(str, story.matrix.seeds))
    return "Seed", str(story.headline.seed)


def _reproduce_facts(story: RunStory) -> list[tuple[str, str]]:
    versions = story.headline.versions
    return [_seeds(story), *versions.items()]


def _outcome_names(story: RunStory) -> list[str]:
    """Outcomes that occurred, `revised` and `unchanged` in any case."""
    if story.revisions is None:
        return []
    seen = set(itertools.chain.from_iterable(story.revisions.outcomes))
    known = [outcome.value for outcome in RevisionOutcome]
    always = {RevisionOutcome.revised.value, RevisionOutcome.unchanged.value}
    return [name for name in known if name in seen | always] + sorted(seen - set(known))


def _chains(story: RunStory) -> list[_ChainView]:
    principles = story.constitution.principles if story.constitution else ()
    texts = {principle.id: principle.principle for principle in principles}
    chains = story.revisions.chains if story.revisions else ()
    return [_chain_view(chain, texts) for chain in chains]


def _anchors(story: RunStory) -> list[str]:
    """An id for every example, none twice."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for example in story.examples:
        anchor = sample_anchor(example.prompt)
        seen[anchor] += 1
        found.append(f"{anchor}-{seen[anchor]}" if seen[anchor] > 1 else anchor)
    return found


def _change(example: Example) -> str:
    """Score of the most trained policy less the first one's; empty where one has none."""
    first, last = example.answers[0].score, example.answers[-1].score
    return "" if first is None or last is None else f"{last - first:.6g}"


def _chain_view(chain: RevisionChain, principles: dict[str, str]) -> _ChainView:
    before = [chain.draft.text, *(step.response for step in chain.steps)]
    steps = zip(chain.steps, before, strict=False)
    return _ChainView(
        prompt=chain.prompt,
        draft=chain.draft.text,
        steps=tuple(_step_view(step, text, principles) for step, text in steps),
    )


def _step_view(step: RevisionStep, before: str, principles: dict[str, str]) -> _StepView:
    changed = step.outcome.accepted
    return _StepView(
        step=step.step,
        principle_id=step.principle_id,
        principle=principles.get(step.principle_id, ""),
        critique=step.critique.text if step.critique else None,
        told=_TOLD[step.outcome],
        parts=word_diff(_clip(before), _clip(step.response)) if changed else (),
    )


def _feedback_view(feedback: FeedbackStory | None) -> _FeedbackView | None:
    if feedback is None:
        return None
    measured, compared = feedback.measured, feedback.comparisons
    rates = [
        ("Accuracy (chance 0.5)", measured.accuracy),
        ("Taking the longer response instead, same pairs", measured.longer_wins),
        ("Questions where both orders prefer the same position", measured.same_position_rate),
        ("Pairs whose label changes with the order", measured.flip_rate),
        (
            "Comparisons of this run whose label changes with the order",
            compared.flip_rate if compared else None,
        ),
    ]
    numbers = [
        ("Expected calibration error", "", measured.calibration_error),
        ("Brier score", "(0.25 for always saying 0.5)", measured.brier),
        ("Agreement of the members, kappa", "(0: independent, 1: the same)", measured.kappa),
    ]
    counts = [
        (f"Labelled pairs not judged: {label(reason)}", num, measured.num_pairs)
        for reason, num in measured.unjudged.items()
    ]
    counts += [
        (f"Comparisons of this run not judged: {label(reason)}", num, compared.num)
        for reason, num in (compared.unjudged.items() if compared else ())
    ]
    groups = [
        _GroupTable(caption="By principle", column="Principle", rows=measured.by_principle),
        _GroupTable(
            caption="By length: is the better response shorter, longer, or equal within 10 %?",
            column="Length",
            rows=tuple(
                dataclasses.replace(group, name=label(group.name)) for group in measured.by_length
            ),
        ),
    ]
    return _FeedbackView(
        rates=[(name, value) for name, value in rates if value is not None],
        numbers=[(name, note, value) for name, note, value in numbers if value is not None],
        counts=counts,
        positions=_positions(measured),
        groups=[table for table in groups if table.rows],
    )


def _positions(measured: Measures) -> str:
    """Why the position rates are what they are, where they say nothing about a bias."""
    if measured.side_by_side is False:
        return (
            "Nothing is shown side by side by this method, so there is no position that it could "
            "follow: the rates of positions are 0."
        )
    if measured.side_by_side and measured.same_position_rate is None:
        return "Only one order of each pair was asked, so a liking for a position cannot be seen."
    return ""


def _preference_rows(model: PreferenceModelStory | None) -> list[tuple[str, Estimate]]:
    if model is None:
        return []
    measured = model.measured
    tests = "the constitution's tests"
    if model.condition is Condition.principle:
        tests += ", each under its own principle"
    rows = [
        *_held_out_rows(measured, labels=model.labels),
        (f"Accuracy on {tests} (chance 0.5)", measured.principle_tests),
        ("Members prefer different responses, held-out pairs", measured.member_conflicts),
        ("Standard deviation over the members, held-out responses", measured.member_std),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _held_out_rows(
    measured: PreferenceMeasures, *, labels: str
) -> list[tuple[str, Estimate | None]]:
    return [
        (f"Agreement with {labels} labels of held-out pairs (chance 0.5)", measured.accuracy),
        ("Taking the longer response instead, same pairs", measured.longer_wins),
        (
            "Cross-entropy with the labels of held-out pairs, nats (0.693 for always saying 0.5)",
            measured.cross_entropy,
        ),
    ]


def _dpo_rows(dpo: DPOStory | None) -> list[tuple[str, Estimate]]:
    if dpo is None:
        return []
    rows = [
        *_held_out_rows(dpo.measured, labels="AI"),
        ("Mean margin, preferred side minus other (no opinion 0)", dpo.margin),
        ("Mean implicit reward of the preferred side (as under SL-CAI 0)", dpo.preferred_reward),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _held_out_numbers(
    learner: PreferenceModelStory | DPOStory | None,
) -> list[tuple[str, float]]:
    if learner is None:
        return []
    measured = learner.measured
    numbers = [
        ("Entropy of these labels, nats: no cross-entropy is lower", measured.label_entropy),
        ("Expected calibration error", measured.calibration_error),
        ("Brier score", measured.brier),
    ]
    return [(name, value) for name, value in numbers if value is not None]


def _has_scores(evaluation: EvaluationStory | None) -> bool:
    return any(row.mean_score is not None for row in (evaluation.rows if evaluation else ()))


def _principle_columns(constitution: ConstitutionStory | None) -> list[_Column]:
    """Columns of the table by principle that hold any measurement."""
    if constitution is None or not constitution.principles:
        return []
    rows = constitution.principles
    counts = [
        ("Drawn for critiques", tuple(row.num_critiques for row in rows)),
        ("Drawn for comparisons", tuple(row.num_comparisons for row in rows)),
    ]
    estimates = [
        ("Revision rate", tuple(row.revision_rate for row in rows)),
        ("Label decisiveness", tuple(row.decisiveness for row in rows)),
        ("Flip rate", tuple(row.flip_rate for row in rows)),
        ("Feedback accuracy", tuple(row.test_accuracy for row in rows)),
    ]
    columns = [
        *(_Column(title=title, cells=cells, estimates=False) for title, cells in counts),
        *(_Column(title=title, cells=cells, estimates=True) for title, cells in estimates),
    ]
    return [column for column in columns if any(cell is not None for cell in column.cells)]
