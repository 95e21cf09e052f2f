"""Labelled files in three forms, what becomes of their rows, and what is said of bad ones."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cai import paths
from cai.choices import DataFormat
from cai.config import EvaluationConfig
from cai.constitution import Constitution
from cai.errors import UserError
from cai.feedback.labelled import GENERAL_PRINCIPLE, constitution_tests, labelled_set
from cai.feedback.labelled_files import Form, read_labelled
from cai.human_comparisons import read_comparisons
from cai.schema import to_config
from tests.test_data import comparisons_from

SHARED = Path(__file__).parents[2] / "../shared/data"
SETTING = "evaluation.feedback_data"


@pytest.fixture
def write(tmp_path: Path):
    def write_file(rows: list[dict], name: str = "rows.jsonl") -> Path:
        if ".csv" in name:
            out = io.StringIO(newline="")
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
            text = out.getvalue()
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path = tmp_path / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def read(path: Path):
    return read_labelled(str(path), setting=SETTING)


def by_line(path: Path) -> list[tuple[list[tuple[str, str]], str, str]]:
    """(role, text) of the prompt, better and worse response, in the file's order."""
    return [
        ([(m.role, m.content) for m in row.messages], row.better, row.worse)
        for row in sorted(read(path).rows, key=lambda row: row.line)
    ]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell\nme more\n\nAssistant: Gladly.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tell\nme more\n\nAssistant: No.",
}
HH_READ = (
    [("user", "Hi"), ("assistant", "Hello."), ("user", "Tell\nme more")],
    "Gladly.",
    "No.",
)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.csv.gz"])
def test_hh_rlhf_transcripts(write, name):
    path = write([HH, HH | {"rejected": HH["rejected"] + " Never."}], name)
    assert read(path).form is Form.hh_rlhf
    assert by_line(path) == [HH_READ, (HH_READ[0], "Gladly.", "No. Never.")]


def test_hh_rlhf_transcripts_may_lack_the_white_space_before_them(write):
    path = write([{side: text.strip() for side, text in HH.items()}])
    assert by_line(path) == [HH_READ]


PREFERENCES = {
    "texts": {"prompt": "Q?", "chosen": "yes", "rejected": "no"},
    "messages": {
        "prompt": [turn("user", "Q?")],
        "chosen": [turn("assistant", "yes")],
        "rejected": [turn("assistant", "no")],
    },
    "implicit prompt": {
        "chosen": [turn("user", "Q?"), turn("assistant", "yes")],
        "rejected": [turn("user", "Q?"), turn("assistant", "no")],
        "score_chosen": 8.5,
    },
    "prompt repeated": {
        "prompt": "Q?",
        "chosen": [turn("user", "Q?"), turn("assistant", "yes")],
        "rejected": [turn("user", "Q?"), turn("assistant", "no")],
    },
    "transcript as prompt": {
        "prompt": "\n\nHuman: Q?\n\nAssistant:",
        "chosen": " yes",
        "rejected": " no",
    },
}


@pytest.mark.parametrize("label", PREFERENCES)
def test_trl_preferences(write, label):
    path = write([PREFERENCES[label]])
    assert read(path).form is Form.preference
    assert by_line(path) == [([("user", "Q?")], "yes", "no")]


def test_trl_preferences_in_csv_keep_lines_and_commas(write):
    row = {"prompt": "Two\nlines, and a comma", "chosen": 'a "quote"', "rejected": "b"}
    path = write([row, row | {"chosen": "c"}], "rows.csv")
    assert [better for _, better, _ in by_line(path)] == ['a "quote"', "c"]
    assert [row.line for row in sorted(read(path).rows, key=lambda r: r.line)] == [2, 4]


def choice(right: str, wrong: str, prompt: str, **more: object) -> dict:
    return {"prompt": prompt, "corrects": [f" ({right})"], "incorrects": [f" ({wrong})"], **more}


BARE = "A human asks: (A) or what?\n\nChoose:\n (A) It was bad.\n (B) It was\ngood.\nThe answer is:"


def test_multiple_choice_reads_options_with_and_without_brackets(write):
    brackets = (
        "Asked: why?\n\nChoose. Options:\n (A) [[[Because\n (B) is no option here.]]]\n"
        " (B) [[[No answer:]]]\n\nThe answer is:"
    )
    path = write([choice("B", "A", BARE), choice("A", "B", BARE), choice("A", "B", brackets)])
    asked = [("user", "A human asks: (A) or what?\n\nChoose:")]
    assert read(path).form is Form.multiple_choice
    assert by_line(path) == [
        (asked, "It was\ngood.", "It was bad."),
        (asked, "It was bad.", "It was\ngood."),
        (
            [("user", "Asked: why?\n\nChoose. Options:")],
            "Because\n (B) is no option here.",
            "No answer:",
        ),
    ]


def test_multiple_choice_prefers_the_transcripts(write):
    texts = {"text_correct": HH["chosen"], "text_incorrect": HH["rejected"]}
    path = write([choice("A", "B", "no options here", **texts)])
    assert by_line(path) == [HH_READ]


def test_pairs_that_cannot_be_judged_stay_and_are_counted_later(write):
    rows = [
        PREFERENCES["texts"] | {"rejected": "yes"},
        PREFERENCES["texts"] | {"rejected": " "},
        PREFERENCES["texts"],
        PREFERENCES["texts"],
    ]
    found = read(write(rows))
    assert sorted((row.line, row.worse) for row in found.rows) == [
        (1, "yes"),
        (2, ""),
        (3, "no"),
        (4, "no"),
    ]


def test_the_order_is_that_of_the_content_and_not_of_the_file(write):
    rows = [PREFERENCES["texts"] | {"prompt": f"Question {i}?"} for i in range(30)]
    forwards, backwards = read(write(rows)), read(write(rows[::-1], "other.jsonl"))
    texts = [row.messages[0].content for row in forwards.rows]
    assert texts == [row.messages[0].content for row in backwards.rows]
    assert texts != [row["prompt"] for row in rows]
    assert forwards.sha256 != backwards.sha256
    assert forwards.sha256 == hashlib.sha256(write(rows).read_bytes()).hexdigest()


def test_conversations_that_share_no_turn_are_counted_and_too_many_are_a_mistake(write, caplog):
    alien = HH | {"rejected": "\n\nHuman: Something else\n\nAssistant: No."}
    found = read(write([HH] * 9 + [alien]))
    assert (len(found.rows), found.num_without_prompt) == (9, 1)
    assert "1 rows whose two conversations share no turn are left out" in caplog.text
    path = write([HH] * 8 + [alien])
    with pytest.raises(UserError, match=r"in 1 of 9 rows, chosen and rejected share no turn"):
        read(path)


BAD = {
    "no form": ([{"question": "a", "answer": "b"}], ":1: is no labelled comparison: expected "
                "chosen and rejected (hh-rlhf transcripts"),
    "half a form": ([{"prompt": "a", "chosen": "b"}], ":1: is no labelled comparison: expected"),
    "another form later": ([HH, PREFERENCES["messages"]], ":2: chosen[0].role: must be user"),
    "plain text": ([{"chosen": "a", "rejected": "b"}], ":1: chosen: is plain text, and there is no "
                   "prompt: expected a transcript that begins with 'Human:'"),
    "no field later": ([PREFERENCES["texts"], {"prompt": "a", "chosen": "b"}],
                       ":2: rejected: there is no such column"),
    "not a transcript": ([HH, HH | {"chosen": "Hello"}], ":2: chosen: must be a transcript that "
                         "begins with 'Human:'"),
    "whole beside a prompt": ([PREFERENCES["messages"], PREFERENCES["prompt repeated"]],
                              ":2: chosen: must be one message of the assistant; whole"),
    "prompt of two": ([{"prompt": HH["chosen"], "chosen": "a", "rejected": "b"}],
                      ":1: prompt: ends with the assistant's turn"),
    "system": ([{"chosen": [turn("system", "x"), *PREFERENCES["implicit prompt"]["chosen"]],
                 "rejected": [turn("user", "Q?"), turn("assistant", "no")]}],
               ":1: chosen[0].role: must be user or assistant, found 'system'"),
    "three options": ([choice("A", "B", BARE) | {"incorrects": [" (B)", " (C)"]}],
                      ":1: incorrects: must be a list of one option"),
    "one option twice": ([choice("A", "A", BARE)], ":1: incorrects: names (A) too"),
    "no options": ([choice("A", "B", "Which is it? (A) or (B)")],
                   ":1: prompt: must end with the options (A) and (B), each on a line of its own"),
    "nothing before": ([choice("A", "B", " (A) yes\n (B) no")], ":1: prompt: has nothing before"),
    "half transcripts": ([choice("A", "B", BARE, text_correct=HH["chosen"])],
                         ":1: text_incorrect: there is no such column"),
    "number": ([PREFERENCES["texts"] | {"chosen": 3}], ":1: chosen: must be text, found a number"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD)
def test_a_bad_row_is_named_by_file_and_line_with_what_is_expected(write, label):
    rows, message = BAD[label]
    path = write(rows)
    with pytest.raises(UserError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}{message}"), said
    assert "data.human_comparisons" not in said


def test_a_file_that_is_not_there_or_of_no_known_kind(write, tmp_path):
    write([HH], "pairs.jsonl")
    with pytest.raises(UserError, match=r"^evaluation\.feedback_data=.*pairz\.jsonl: there is no "
                       r"such file.* Did you mean pairs\.jsonl\?"):  # fmt: skip
        read(tmp_path / "pairz.jsonl")
    with pytest.raises(UserError, match=r"^evaluation\.feedback_data=.*: the ending is not"):
        read(tmp_path / "pairs.parquet")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"is empty: there is not one row in it"):
        read(tmp_path / "empty.jsonl")


@functools.cache
def composed() -> EvaluationConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(paths.CONF)):
        return to_config(compose("config")).evaluation


def settings(path: Path | None, principle: str = "general", num: int | None = None):
    return dataclasses.replace(
        composed(),
        num_feedback_tests=5,
        feedback_data=None if path is None else str(path),
        feedback_principle=principle,
        num_feedback_pairs=num,
    )


def test_the_cap_takes_the_first_by_hash_and_says_so(write, medical: Constitution):
    path = write([PREFERENCES["texts"] | {"prompt": f"Question {i}?"} for i in range(30)])
    everything = labelled_set(settings(path), medical, seed=0)
    first = labelled_set(settings(path, num=7), medical, seed=5)
    assert first.pairs == everything.pairs[:7]
    assert len(everything.pairs) == 30
    assert first.source == "rows.jsonl"
    assert first.note.startswith("7 of the file's 30 pairs, the first by hash (TRL preferences)")
    assert everything.note.startswith("All 30 pairs of the file")


def test_what_a_file_s_pairs_are_judged_under(write, medical: Constitution):
    path = write([PREFERENCES["texts"]])
    own = medical.principles[3]
    found = {
        name: labelled_set(settings(path, name), medical, seed=0)
        for name in ("general", "drawn", own.id)
    }
    assert [found[name].pairs[0].principle for name in found] == [GENERAL_PRINCIPLE, None, own]
    assert [found[name].pairs[0].name for name in found] == ["row-1"] * 3
    identities = [json.dumps(one.identity, sort_keys=True) for one in found.values()]
    assert len(set(identities)) == 3
    with pytest.raises(UserError) as caught:
        labelled_set(settings(path, f"{own.id}x"), medical, seed=0)
    assert str(caught.value).startswith(
        f"evaluation.feedback_principle={own.id}x: there is no such principle in medical. "
        f"Did you mean {own.id}? It takes general, drawn, or the id of a principle: "
    )


def test_without_a_file_they_are_the_constitution_s_own_tests(medical: Constitution):
    found = labelled_set(settings(None), medical, seed=3)
    assert list(found.pairs) == constitution_tests(medical, num=5, seed=3)
    assert found.source == "the constitution's own tests"


@pytest.mark.skipif(not SHARED.exists(), reason="the real files are not here")
def test_real_files_are_read_without_loss():
    hh = read(SHARED / "hh_harmless_dev.jsonl.gz")
    assert (hh.form, len(hh.rows), hh.num_without_prompt) == (Form.hh_rlhf, 1181, 0)
    assert sum(not row.better or not row.worse for row in hh.rows) == 2
    source = comparisons_from(SHARED / "hh_harmless_dev.jsonl.gz", DataFormat.auto, max_rows=9999)
    human = {
        (pair.messages, *sorted((pair.response_a, pair.response_b)))
        for pair in read_comparisons(source).pairs
    }
    mine = {
        (row.messages, *sorted((row.better, row.worse)))
        for row in hh.rows
        if row.better and row.worse
    }
    assert mine == human

    hhh = read(SHARED / "hhh_dev.jsonl")
    assert (hhh.form, len(hhh.rows)) == (Form.multiple_choice, 218)
    assert all(row.messages[-1].role == "user" and row.better != row.worse for row in hhh.rows)

    ethical = read(SHARED / "harmful_vs_ethical_dev.jsonl")
    options = {"The assistant was harmful or unethical.", "The assistant behaved ethically."}
    assert len(ethical.rows) == 120
    for row in ethical.rows:
        assert {row.better, row.worse} == options
        assert row.messages[0].content.endswith("in this conversation:")


@pytest.mark.skipif(not SHARED.exists(), reason="the real files are not here")
def test_options_and_transcripts_of_the_real_hhh_rows_say_the_same(tmp_path: Path):
    """The same rows without their transcripts: another prompt, the same two responses."""
    rows = [json.loads(line) for line in (SHARED / "hhh_dev.jsonl").open(encoding="utf-8")]
    bare = tmp_path / "bare.jsonl"
    kept = ("prompt", "corrects", "incorrects")
    bare.write_text("".join(json.dumps({k: row[k] for k in kept}) + "\n" for row in rows))
    with_transcripts, without = by_line(SHARED / "hhh_dev.jsonl"), by_line(bare)
    assert [one[1:] for one in with_transcripts] == [one[1:] for one in without]
    for (messages, _, _), (asked, _, _) in zip(with_transcripts, without, strict=True):
        assert messages[-1][1] in asked[0][1]
