"""`model_card.md`: what a trained policy is, in the form that model hubs show.

Made from the same story as the report, so it cannot say more than was measured: results come with
their intervals, and what is at chance stands under the limits. Texts of others (a constitution's
sentences, names of models) are written so that Markdown takes them for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cai.artifacts import write_atomically
from cai.findings import findings, key_metrics
from cai.story import RunStory, duration, label, number, visible

FILE = "model_card.md"
_MARKUP = re.compile(r"[\\`*_{}\[\]#|~>$^!]|^[-+=]|(?<=^\d)[.)]|:(?=//)|(?<=[wW]{3})\.|@")
"""What CommonMark and GitHub's extensions of it could take for markup; `&` and `<` beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPart:
    """A heading, and what is said under it in plain text, one point each."""

    title: str
    points: tuple[str, ...]


def card_parts(story: RunStory) -> tuple[CardPart, ...]:
    """What a card says; empty for a run that trained no policy."""
    if story.sl_policy is None and story.people is None:
        return ()
    parts = {
        "What it is": _what(story),
        "Constitution": _constitution(story),
        "Training data": _data(story),
        "Training": _training(story),
        "Evaluation": _evaluation(story),
        "Limits": _limits(story),
    }
    found = ((title, tuple(points)) for title, points in parts.items())
    return tuple(CardPart(title=title, points=points) for title, points in found if points)


def _policies(story: RunStory) -> list[str]:
    rows = story.evaluation.rows if story.evaluation else ()
    return list(dict.fromkeys(row.policy for row in rows if row.policy != "base"))


def _base(story: RunStory) -> str:
    models = story.headline.models
    return models.get("policy") or next(iter(models.values()), "")


def _what(story: RunStory) -> Iterator[str]:
    head = story.headline
    policies = ", ".join(map(label, _policies(story))) or "SL-CAI"
    if story.sl_policy is None:
        yield (
            f"Policies of a run of RLHF, the baseline of Constitutional AI: {policies}, trained "
            f"from {_base(story) or 'a base model'} on comparisons by people; no principle had a "
            f"part in it. The constitution {head.constitution} is what they are measured on."
        )
    else:
        yield (
            f"Policies of a Constitutional AI run ({label(head.phase)}, arXiv:2212.08073): "
            f"{policies}, trained from {_base(story) or 'a base model'} under the constitution "
            f"{head.constitution}."
        )
    yield (
        "Made to study what a constitution does to a model. It has had no review by people and is "
        "not meant to be deployed."
    )


def _constitution(story: RunStory) -> Iterator[str]:
    if (document := story.constitution) is None:
        return
    digest = f", sha256 {document.digest}" if document.digest else ""
    yield f"{document.name}, version {document.version}{digest}"
    for principle in document.principles:
        yield f"{principle.id}: {principle.principle}"


def _data(story: RunStory) -> Iterator[str]:
    if (people := story.people) is not None:
        yield (
            f"Comparisons by people ({people.source}): {number(people.num_learned)} learned from, "
            f"{number(people.num_held_out)} held out"
            + (
                "; written and labelled by the authors of cai, not by crowd workers"
                if people.shipped
                else ""
            )
        )
    if (sl := story.sl_policy) is not None:
        yield (
            f"SL-CAI: {number(sl.num_revisions)} revisions and {number(sl.num_helpfulness)} "
            "helpfulness samples"
        )
    if (learner := story.preference_model or story.dpo) is not None:
        yield (
            f"Comparisons: {number(learner.num_ai)} labelled by AI feedback, "
            f"{number(learner.num_human)} by people; {number(learner.measured.num_pairs)} more "
            "are held out"
        )
    if story.feedback is not None:
        accuracy = story.feedback.measured.accuracy
        yield f"AI feedback: {label(story.feedback.method)}" + (
            f", right on {accuracy.format()} of {story.feedback.source}" if accuracy else ""
        )


def _training(story: RunStory) -> Iterator[str]:
    head = story.headline
    if story.dpo is not None:
        yield "DPO: " + _settings(story.dpo.settings)
    if story.ppo is not None:
        yield (
            f"PPO: {number(story.ppo.num_rounds)} rounds, {number(story.ppo.num_rollouts)} "
            f"responses; {_settings(story.ppo.settings)}"
        )
    yield f"Seed {head.seed}; {head.hardware}; {duration(head.seconds)}"


def _settings(settings: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _evaluation(story: RunStory) -> Iterator[str]:
    for metric in key_metrics(story):
        comment = f" ({metric.comment})" if metric.comment else ""
        yield f"{metric.label}: {metric.estimate.format()}{comment}"


def _limits(story: RunStory) -> Iterator[str]:
    yield from findings(story)
    yield from (f"Not shown: {one}" for one in story.cannot_show)
    yield from story.limits


def model_card(story: RunStory) -> str | None:
    """The card as Markdown with YAML front matter; None for a run that trained no policy."""
    parts = card_parts(story)
    if not parts:
        return None
    head = story.headline
    front = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": visible(_base(story)),
        "tags": ["constitutional-ai", visible(head.phase), visible(head.constitution)],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip("\n"),
        "---",
        "",
        f"# {_literal(label(head.phase))} under {_literal(head.constitution)}",
    ]
    for part in parts:
        lines += ["", f"## {part.title}", "", *(f"- {_literal(point)}" for point in part.points)]
    lines += ["", "## How to reproduce", "", *_code(head.command), ""]
    lines += [f"- {_literal(name)} {_literal(version)}" for name, version in head.versions.items()]
    return "\n".join(lines) + "\n"


def write_model_card(story: RunStory, run_dir: Path) -> None:
    """Write the card into the run's folder, where the run trained a policy."""
    if (text := model_card(story)) is not None:
        write_atomically(run_dir / FILE, text.encode("utf-8"))


def _literal(text: str) -> str:
    """One line that Markdown shows as it is: whatever could be markup is escaped."""
    line = " ".join(visible(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", line)


def _code(command: str) -> list[str]:
    """The command as an indented block: no fence that its text could close."""
    return ["    " + line for line in visible(command).splitlines()]
