"""The closing text: fits the terminal, cannot command it, and says what matters."""

import dataclasses
import re
from pathlib import Path

import pytest

from cai import summary
from cai.story import Answer, RunStory
from cai.summary import columns, fit, wrap
from tests import stories

REPORT = Path("/home/ada/cai/outputs/rlaif/medical/2026-11-23_07-20-31-4f1c2a/report.html")
SYNC = (
    "wandb is offline; upload this run with: wandb sync /home/ada/cai/outputs/wandb/offline-run-1"
)


def text_of(story, *, encoding="utf-8", notice=SYNC):
    return summary.terminal_summary(story, report_path=REPORT, notice=notice, encoding=encoding)


def test_says_what_matters():
    text = text_of(stories.full_story())
    lines = text.splitlines()
    assert lines[0] == (
        "RLAIF under the constitution medical: smollm2_135m, seed 17, 8 min 32 s, "
        "peak memory 3.41 GB"
    )
    assert "revisions         reused           0.0        96" in lines
    assert "policy            computed        82.2" in lines
    assert "  ! Feedback is at chance: accuracy 0.54 [0.40, 0.67], n = 48" in text
    assert re.search(
        r"Feedback accuracy on the constitution's own tests +0\.54 \[0\.40, 0\.67\], n = 48", text
    )
    assert re.search(r"Refusals, red team, RL-CAI +0\.56 \[0\.33, 0\.77\], n = 16", text)
    assert "  base    You can take two sleeping pills with one glass of wine." in text
    assert "  RL-CAI  I'm sorry, but I can't help" in text
    assert lines[-2:] == [f"Report: {REPORT}", SYNC]
    assert text.index("Read this first") < text.index("What matters") < text.index("Before and")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_fits_100_columns_and_the_encoding(encoding):
    whole = stories.full_story()
    answers = tuple(
        Answer(policy=policy, text=text)
        for policy, text in [
            ("base", "\u4f60\u597d\u4e16\u754c" * 90),
            ("rl_cai", "na\u00efve e\u0301\u0302" * 40 + " \u202eevil \x1b[2J" + "x" * 300),
        ]
    )
    example = dataclasses.replace(whole.examples[0], answers=answers)
    text = text_of(dataclasses.replace(whole, examples=(example,)), encoding=encoding)
    assert max(columns(line) for line in text.splitlines()) <= 100
    text.encode(encoding)
    assert encoding == "utf-8" or text.isascii()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_control_character_reaches_the_terminal(encoding):
    hostile = "\x1b]0;owned\x07\x1b[2J\r\x08\x9b31m\u202e\u2028\x00"
    whole = stories.full_story()
    story = RunStory(
        headline=dataclasses.replace(
            whole.headline, constitution=hostile, models={"policy": hostile}, phase=hostile
        ),
        warnings=(hostile,),
        stages=(dataclasses.replace(whole.stages[0], name=hostile, status=hostile),),
        examples=(
            dataclasses.replace(
                whole.examples[0],
                prompt=stories.prompt(1, "red_team", hostile, hostile),
                answers=(Answer(policy=hostile, text=hostile),),
            ),
        ),
        evaluation=dataclasses.replace(
            whole.evaluation,
            changes=(dataclasses.replace(whole.evaluation.changes[0], metric=hostile),),
        ),
    )
    text = summary.terminal_summary(
        story, report_path=Path("/tmp/\x1b[2J\udcff/report.html"), notice=hostile, encoding=encoding
    )
    assert all(line.isprintable() for line in text.split("\n"))
    assert "U+001B" in text
    text.encode(encoding)


def test_missing_parts_are_left_out():
    story = RunStory(headline=dataclasses.replace(stories.headline(), peak_memory_bytes=None))
    assert text_of(story, notice=None).splitlines() == [
        "RLAIF under the constitution medical: smollm2_135m, seed 17, 8 min 32 s",
        "",
        f"Report: {REPORT}",
    ]


def test_two_red_team_examples_that_changed_come_first():
    whole = stories.full_story()
    red, other, benign, _ = whole.examples
    same = dataclasses.replace(red, answers=(red.answers[0],) * 3)
    text = text_of(dataclasses.replace(whole, examples=(benign, same, other)))
    assert text.count("\n  prompt  ") == 2
    assert text.index(other.prompt.messages[0].content) < text.index(
        same.prompt.messages[0].content
    )
    assert benign.prompt.messages[0].content not in text


def test_long_answers_are_shortened_and_empty_ones_named():
    whole = stories.full_story()
    answers = (Answer(policy="base", text=""), Answer(policy="rl_cai", text="word " * 500))
    example = dataclasses.replace(whole.examples[0], answers=answers)
    lines = text_of(dataclasses.replace(whole, examples=(example,))).splitlines()
    start = lines.index("  base    (empty)")
    assert lines[start + 1].startswith("  RL-CAI  word word")
    assert lines[start + 3].endswith("word ...")
    assert lines[start + 4] == ""


def test_short_line_before_a_giant_word_is_cut_too():
    whole = stories.full_story()
    answer = Answer(policy="base", text=" ".join(["x" * 300, "a", "y" * 500]))
    example = dataclasses.replace(whole.examples[0], answers=(answer,))
    text = text_of(dataclasses.replace(whole, examples=(example,)))
    assert max(map(columns, text.splitlines())) <= 100


def test_wrap_by_cells():
    assert wrap("a bb ccc", 4) == ["a bb", "ccc"]
    assert wrap("\u4e2d\u6587\u5b57", 4) == ["\u4e2d\u6587", "\u5b57"]
    assert wrap("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrap("", 3) == [""]
    assert wrap("\u4e2d\u6587", 1) == ["\u4e2d", "\u6587"]
    assert fit("ab \u4e2d", 4) == "ab"
    assert columns("e\u0301\u4e2d") == 3
