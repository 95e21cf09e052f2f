"""Prompts and human comparisons: formats, the hash split, drawing, and bad rows."""

from __future__ import annotations

import collections
import csv
import gzip
import hashlib
import io
import itertools
import json
import logging
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.choices import DataFormat
from cai.config import ComparisonSourceConfig, PromptSourceConfig
from cai.data import (
    builtin_source,
    domain_digest,
    hash_order,
    load_comparisons,
    load_domain,
    load_prompts,
    select,
    source_digest,
    split_of,
)
from cai.data_formats import builtin_names, locate
from cai.errors import UserError
from cai.human_comparisons import SHIPPED, read_comparisons
from cai.types import Message, Prompt, PromptKind, Split

RED_TEAM = PromptKind.red_team
DOMAINS = ["creative_writing", "customer_service", "finance", "hipaa", "legal", "medical"]
HH = Path(__file__).parent.parent / "../shared/data/hh_harmless_dev.jsonl.gz"


def prompts_from(path, form=DataFormat.auto, **columns) -> PromptSourceConfig:
    given_columns = {"prompt_column": "prompt", "id_column": None, "category_column": None}
    return PromptSourceConfig(
        path=str(path), format=form, hub_split="train", **given_columns | columns
    )


def comparisons_from(path, form=DataFormat.auto, **values) -> ComparisonSourceConfig:
    given_values = {
        "prompt_column": None, "chosen_column": "chosen", "rejected_column": "rejected",
        "max_rows": 1000,
    }  # fmt: skip
    return ComparisonSourceConfig(
        path=str(path), format=form, hub_split="train", **given_values | values
    )


@pytest.fixture
def write(tmp_path):
    """Write rows (as JSONL), text or bytes."""

    def write_file(content: list | str | bytes, name: str = "rows.jsonl") -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


def load(source: PromptSourceConfig, *, evaluation_frac: float = 0.3) -> list[Prompt]:
    return load_prompts(source, kind=RED_TEAM, evaluation_frac=evaluation_frac)


def texts(prompt) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in prompt.messages]


# ---- the prompts of the package ------------------------------------------------------------------


def shipped() -> dict[str, list[Prompt]]:
    sets = {
        kind.value: load_prompts(builtin_source(kind.value), kind=kind, evaluation_frac=0.3)
        for kind in PromptKind
    }
    return sets | {name: load_domain(name, evaluation_frac=0.3) for name in DOMAINS}


@pytest.fixture(scope="module")
def sets():
    return shipped()


@pytest.mark.parametrize(
    ("name", "num", "num_categories"),
    [("red_team", 200, 10), ("helpfulness", 200, 5), ("benign", 120, 5)]
    + [(name, 40, 5) for name in DOMAINS],
)
def test_shipped_sets_are_large_and_varied_and_some_prompts_have_several_turns(
    sets, name, num, num_categories
):
    prompts = sets[name]
    assert len(prompts) >= num
    assert len({p.category for p in prompts}) >= num_categories
    assert any(len(p.messages) >= 3 for p in prompts)
    for prompt in prompts:
        roles = [m.role for m in prompt.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def test_every_shipped_set_is_tested_and_ids_are_unique_over_all_of_them(sets):
    prompt_sets = {k.value for k in PromptKind} | {f"domain_{d}" for d in DOMAINS}
    assert set(builtin_names()) == prompt_sets | {SHIPPED}
    ids = [p.id for prompts in sets.values() for p in prompts]
    assert len(set(ids)) == len(ids)


def test_no_shipped_prompt_is_in_two_splits_and_both_are_populated(sets):
    sides = collections.defaultdict(set)
    for prompts in sets.values():
        for prompt in prompts:
            sides[tuple(texts(prompt))].add(prompt.split)
    assert all(len(found) == 1 for found in sides.values())
    for name, prompts in sets.items():
        share = sum(p.split is Split.evaluation for p in prompts) / len(prompts)
        assert 0.15 < share < 0.45, name


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_sets_hold_every_kind_on_both_sides(sets, name):
    found = {(p.kind, p.split) for p in sets[name]}
    assert found == {(kind, split) for kind in PromptKind for split in Split}
    assert sum(p.kind is RED_TEAM for p in sets[name]) >= 20


def test_shipped_sets_lose_nothing_to_duplicates(sets):
    for kind in PromptKind:
        path = Path(__file__).parent.parent / f"cai/datasets/{kind.value}.jsonl"
        assert len(sets[kind.value]) == path.read_text("utf-8").count("\n")


def test_an_unknown_domain_lists_the_known_ones():
    with pytest.raises(UserError, match=r"Did you mean medical\? There are creative_writing"):
        load_domain("medcal", evaluation_frac=0.3)


# ---- formats -------------------------------------------------------------------------------------

CONVERSATION = [("user", "Hi: there"), ("assistant", "Hello"), ("user", "How are you?")]
MESSAGES = [{"role": role, "content": content} for role, content in CONVERSATION]
TRANSCRIPT = "\n\nHuman: Hi: there\n\nAssistant: Hello\n\nHuman: How are you?"


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz"])
def test_the_same_rows_give_the_same_prompts_in_every_file_format(write, ending):
    rows = [{"q": "One, two?\n\nThree", "n": "a", "c": "x"}, {"q": 'Say "no"', "n": "b", "c": "y"}]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["n", "q", "c"])
    writer.writeheader()
    writer.writerows(rows)
    path = write(table.getvalue() if "csv" in ending else rows, "rows" + ending)
    prompts = load(prompts_from(path, prompt_column="q", id_column="n", category_column="c"))
    assert [(p.id, p.category, texts(p)) for p in prompts] == [
        ("a", "x", [("user", "One, two?\n\nThree")]),
        ("b", "y", [("user", 'Say "no"')]),
    ]
    assert {p.source for p in prompts} == {str(path)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" Hi \n", [("user", "Hi")]),
        (MESSAGES, CONVERSATION),
        ([*MESSAGES, {"role": "assistant", "content": "Fine"}], CONVERSATION),
        ([*MESSAGES, {"role": "assistant", "content": ""}], CONVERSATION),
        (TRANSCRIPT, CONVERSATION),
        (TRANSCRIPT + "\n\nAssistant:", CONVERSATION),
        (TRANSCRIPT + "\n\nAssistant: Fine: and\n\nyou: too?", CONVERSATION),
        ("\n\nHuman: a\n\nB: c\nHuman: d", [("user", "a\n\nB: c\nHuman: d")]),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d",
         [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")]),
        ("\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant: c", [("user", "a\n\nb")]),
    ],
)  # fmt: skip
def test_a_cell_is_text_messages_or_a_transcript(write, value, expected):
    (prompt,) = load(prompts_from(write([{"prompt": value}])))
    assert texts(prompt) == expected


def test_jsonl_and_csv_never_read_transcripts_and_transcript_always_does(write):
    path = write([{"prompt": TRANSCRIPT}])
    (literal,) = load(prompts_from(path, DataFormat.jsonl))
    assert texts(literal) == [("user", TRANSCRIPT.strip())]
    (parsed,) = load(prompts_from(path, DataFormat.transcript))
    assert texts(parsed) == CONVERSATION
    with pytest.raises(UserError, match=r":1: prompt: must be a transcript that begins"):
        load(prompts_from(write([{"prompt": "Hi"}]), DataFormat.transcript))


def test_a_copy_of_a_builtin_set_reads_like_the_set(write):
    path = Path(__file__).parent.parent / "cai/datasets/red_team.jsonl"
    copy = write(path.read_bytes(), "mine.jsonl")
    mine = load(prompts_from(copy, id_column="id", category_column="category"))
    own = load(prompts_from("red_team"))
    assert [(p.id, p.category, p.split, p.messages) for p in mine] == [
        (p.id, p.category, p.split, p.messages) for p in own
    ]
    assert {p.source for p in own} == {"red_team"}


ODD = ["${oc.env:HOME}", "{} %s {{x}}", "a\u2028b\u0085c\x0bd", "🙂‍🙂 é", "<|im_end|>", "\u202eabc"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("escaped", [True, False])
def test_legal_text_survives_unchanged(write, text, escaped):
    line = json.dumps({"prompt": text}, ensure_ascii=escaped) + "\r\n\n"
    (prompt,) = load(prompts_from(write("\ufeff" + line)))
    assert texts(prompt) == [("user", text)]


def test_rows_without_an_id_column_are_numbered_by_kind_and_file(write):
    path = write([{"prompt": "a"}, {"prompt": "b"}], "my set.v2.jsonl")
    assert [p.id for p in load(prompts_from(path))] == [
        "red_team-my_set-000001", "red_team-my_set-000002"
    ]  # fmt: skip
    assert {p.category for p in load(prompts_from(path))} == {"uncategorised"}


class FakeDatasets(types.ModuleType):
    def __init__(self, rows, error=None):
        super().__init__("datasets")
        self.rows, self.error, self.calls = rows, error, []

    def load_dataset(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error:
            raise self.error
        return self.rows


def test_a_hub_id_is_loaded_by_split_and_revision_and_never_trusts_code(monkeypatch):
    fake = FakeDatasets([{"prompt": TRANSCRIPT}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    (prompt,) = load(prompts_from("owner/name@abc"))
    assert texts(prompt) == CONVERSATION
    assert prompt.id == "red_team-name-000001"
    assert fake.calls == [(("owner/name",), {"split": "train", "revision": "abc"})]


def test_a_hub_dataset_without_the_package_or_the_network_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hub\]'"):
        load(prompts_from("owner/name"))
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([], ConnectionError("no\nnetwork")))
    with pytest.raises(UserError, match=r"owner/name\[train\] cannot be loaded: no network"):
        load(prompts_from("owner/name", DataFormat.hub))


@pytest.mark.parametrize(
    ("path", "form", "message"),
    [
        ("red_tem", "auto", "Did you mean red_team"),
        ("../red_team", "builtin", "no such built-in set"),
        ("no/such/file.jsonl", "auto", "no such file, seen from"),
        ("rows.jsnl", "auto", "data.red_team.format=jsonl"),
        ("data.parquet", "auto", "the ending is not"),
        ("name", "hub", "owner/name"),
        ("a\0b.jsonl", "auto", "no such file"),
        ("x" * 300 + ".jsonl", "auto", "no such file"),
        ("", "auto", "no such built-in set"),
        ("/", "jsonl", "no such file"),
    ],
)
def test_a_source_that_is_not_there_says_what_to_type(path, form, message):
    with pytest.raises(UserError, match=r"^data\.red_team\.path=") as caught:
        load(prompts_from(path, DataFormat(form)))
    assert message in str(caught.value)


def test_a_file_with_a_similar_name_is_suggested(write):
    path = write([{"prompt": "a"}], "prompts.jsonl")
    with pytest.raises(UserError, match=r"Did you mean prompts\.jsonl\?"):
        load(prompts_from(path.with_name("prompt.jsonl")))


@pytest.mark.parametrize(
    ("path", "form"),
    [("red_team", "builtin"), ("a.jsonl", "jsonl"), ("a.CSV.gz", "csv"), ("o/n", "hub")],
)
def test_auto_goes_by_the_name(path, form):
    assert locate(path, DataFormat.auto, setting="x").format.value == form


# ---- bad rows ------------------------------------------------------------------------------------

GOOD = '{"prompt": "fine"}\n'

# label: content after one good line, place, message
BAD_JSONL: dict[str, tuple[str | bytes, str, str]] = {
    "not JSON": ("{prompt: 1}\n", ":2:2: ", "is not JSON"),
    "cut line": ('{"prompt": "a', ":2:12: ", "is not JSON"),
    "two objects": ('{"prompt": "a"} {}\n', ":2:17: ", "is not JSON: Extra data"),
    "raw control": ('{"prompt": "a\x01"}\n', ":2:14: ", "is not JSON"),
    "list": ('["a"]\n', ":2: ", "must be one JSON object a line, found a list"),
    "text": ('"a"\n', ":2: ", "found text"),
    "number": ("1\n", ":2: ", "found a number"),
    "null": ("null\n", ":2: ", "found null"),
    "missing column": ('{"text": "a", "id": 1}\n', ":2: prompt: ", "there are text, id"),
    "close column": ('{"promt": "a"}\n', ":2: prompt: ", "Did you mean promt?"),
    "no column": ("{}\n", ":2: prompt: ", "there are none"),
    "empty": ('{"prompt": ""}\n', ":2: prompt: ", "is empty"),
    "white space": ('{"prompt": " \\n\\t"}\n', ":2: prompt: ", "is empty"),
    "null cell": ('{"prompt": null}\n', ":2: prompt: ", "must be text, found null"),
    "number cell": ('{"prompt": 1.5}\n', ":2: prompt: ", "must be text, found a number"),
    "boolean cell": ('{"prompt": true}\n', ":2: prompt: ", "found true or false"),
    "object cell": ('{"prompt": {}}\n', ":2: prompt: ", "found an object"),
    "NUL": ('{"prompt": "a\\u0000"}\n', ":2: prompt: ", "NUL"),
    "lone surrogate": ('{"prompt": "a\\ud800"}\n', ":2: prompt: ", "U+D800"),
    "duplicate key": ('{"prompt": "a", "prompt": "b"}\n', ":2: ", "the key 'prompt' stands"),
    "inner duplicate": ('{"prompt": "a", "x": {"y": 1, "y": 2}}\n', ":2: ", "the key 'y'"),
    "NaN": ('{"prompt": "a", "x": NaN}\n', ":2: ", "NaN is not JSON"),
    "Infinity": ('{"prompt": "a", "x": -Infinity}\n', ":2: ", "-Infinity is not JSON"),
    "huge integer": ('{"prompt": "a", "x": ' + "1" * 5000 + "}\n", ":2: ", "4300 digits"),
    "deep": ('{"prompt": ' + "[" * 100_000, ":2: ", "nested too deeply"),
    "latin-1": (b'{"prompt": "caf\xe9"}\n', ":2: ", "byte 34 of the file is 0xe9"),
    "no messages": ('{"prompt": []}\n', ":2: prompt: ", "is empty"),
    "text as message": ('{"prompt": ["a"]}\n', ":2: prompt[0]: ", "role and content"),
    "message without content": ('{"prompt": [{"role": "user"}]}\n', ":2: prompt[0]: ", "content"),
    "system": ('{"prompt": [{"role": "system", "content": "a"}]}\n', ":2: prompt[0].role: ",
               "must be user or assistant, found 'system'"),
    "list as role": ('{"prompt": [{"role": [], "content": "a"}]}\n', ":2: prompt[0].role: ", "be"),
    "assistant first": ('{"prompt": [{"role": "assistant", "content": "a"}, '
                        '{"role": "user", "content": "a"}]}\n', ":2: prompt[0].role: ", "begins"),
    "user twice": ('{"prompt": [{"role": "user", "content": "a"}, '
                   '{"role": "user", "content": "b"}]}\n', ":2: prompt[1].role: ", "twice"),
    "empty message": ('{"prompt": [{"role": "user", "content": " "}]}\n', ":2: prompt[0].content: ",
                      "is empty"),
    "number as content": ('{"prompt": [{"role": "user", "content": 1}]}\n',
                          ":2: prompt[0].content: ", "must be text"),
    "NUL in message": ('{"prompt": [{"role": "user", "content": "\\u0000"}]}\n',
                       ":2: prompt[0].content: ", "NUL"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD_JSONL)
def test_a_bad_row_names_file_line_and_field(write, label):
    content, place, message = BAD_JSONL[label]
    data = content if isinstance(content, bytes) else content.encode()
    path = write(GOOD.encode() + data)
    with pytest.raises(UserError) as caught:
        load(prompts_from(path))
    assert str(caught.value).startswith(f"{path}{place}"), str(caught.value)[:300]
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


BAD_CSV: dict[str, tuple[str, str]] = {
    "long row": ("prompt\na\nb,c\n", ":3: has 2 cells, the header 1"),
    "short row": ("prompt,id\na,1\nb\n", ":3: has 1 cells, the header 2"),
    "twice": ("prompt,prompt\na,b\n", ":1: the header names 'prompt' twice"),
    "open quote": ('prompt\n"a\nb\n', ":3: is not CSV"),
    "stray quote": ('prompt\n"a"b\n', ":2: is not CSV"),
    "missing": ("text,id\na,1\n", ":2: prompt: there is no such column; there are text, id"),
    "empty cell": ("prompt,id\n ,1\n", ":2: prompt: is empty"),
    "after two lines": ('prompt\n"a\nb"\n" "\n', ":4: prompt: is empty"),
    "header only": ("prompt\n", ": is empty: there is not one row"),
    "empty": ("", ": is empty: there is not one row"),
}


@pytest.mark.parametrize("label", BAD_CSV)
def test_bad_csv_names_file_and_line(write, label):
    content, message = BAD_CSV[label]
    path = write(content, "rows.csv")
    with pytest.raises(UserError) as caught:
        load(prompts_from(path))
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("content", ["", "\n\n", " \r\n", "\ufeff"])
def test_a_file_without_rows_says_so(write, content):
    with pytest.raises(UserError, match="is empty: there is not one row in it"):
        load(prompts_from(write(content)))


def test_a_damaged_gzip_file_is_refused(write, tmp_path):
    path = write(GOOD * 100, "rows.jsonl.gz")
    whole = path.read_bytes()
    for data, message in ((whole[:-9], "not a whole gzip"), (b"abc", "is not a gzip file")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            load(prompts_from(path))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "b", "id": "x"}, "id: 'x' is already the id of"),
        ({"prompt": "b", "id": ""}, "id: is empty"),
        ({"prompt": "b", "id": None}, "id: must be text, found null"),
        ({"prompt": "b", "id": "a\nb"}, "id: must be at most 200 characters that print"),
        ({"prompt": "b", "id": "a" * 201}, "id: must be at most 200"),
        ({"prompt": "b", "id": True}, "id: must be text, found true or false"),
    ],
)
def test_bad_ids_are_refused(write, row, field):
    path = write([{"prompt": "a", "id": "x"}, row])
    with pytest.raises(UserError) as caught:
        load(prompts_from(path, id_column="id"))
    assert str(caught.value).startswith(f"{path}:2: {field}")


def test_whole_numbers_are_ids(write):
    path = write([{"prompt": "a", "id": 7}])
    assert load(prompts_from(path, id_column="id"))[0].id == "7"


# ---- split and order -----------------------------------------------------------------------------


def turn(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def made(text: str, *, kind=RED_TEAM, source="s", split=Split.train) -> Prompt:
    return Prompt(
        id=f"{source}-{text}", kind=kind, category="c", source=source, split=split,
        messages=turn(text),
    )  # fmt: skip


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1))
@settings(max_examples=50, deadline=None)
def test_the_side_ignores_white_space_and_letter_case(text):
    side = split_of(turn(text), evaluation_frac=0.5)
    assert split_of(turn(f"  {text}\n"), evaluation_frac=0.5) is side
    assert split_of(turn(text.casefold()), evaluation_frac=0.5) is side


def test_the_share_of_evaluation_prompts_is_the_asked_one_and_grows_with_it():
    turns = [turn(f"prompt {i}") for i in range(2000)]
    before: set = set()
    for frac in (0.0, 0.1, 0.5, 1.0):
        found = {t for t in turns if split_of(t, evaluation_frac=frac) is Split.evaluation}
        assert len(found) / 2000 == pytest.approx(frac, abs=0.035)  # three standard deviations
        assert before <= found
        before = found


def test_the_side_does_not_depend_on_file_format_or_place(write):
    rows = [{"prompt": f"prompt {i}"} for i in range(60)]
    straight = {texts(p)[0]: p.split for p in load(prompts_from(write(rows, "a.jsonl")))}
    backwards = load(prompts_from(write(rows[::-1], "b.jsonl.gz")))
    assert {texts(p)[0]: p.split for p in backwards} == straight
    assert set(straight.values()) == set(Split)


def test_duplicates_are_dropped_and_counted(write, caplog):
    path = write([{"prompt": "Hi you"}, {"prompt": " hi\nYOU "}, {"prompt": "bye"}])
    with caplog.at_level(logging.WARNING, logger="cai"):
        prompts = load(prompts_from(path))
    assert [texts(p)[0][1] for p in prompts] == ["Hi you", "bye"]
    assert "1 of 3 prompts are duplicates" in caplog.text


def test_hash_order_is_a_function_of_content_and_seed():
    prompts = [made(f"p{i}") for i in range(50)]
    ordered = hash_order(prompts, 1)
    assert hash_order(prompts[::-1], 1) == ordered
    assert hash_order(prompts, 2) != ordered
    assert ordered != prompts
    assert set(ordered) == set(prompts)


def test_order_says_nothing_about_the_side():
    prompts = [made(f"p{i}") for i in range(1000)]
    first = hash_order(prompts, 0)[:500]
    share = sum(split_of(p.messages, evaluation_frac=0.5) is Split.train for p in first) / 500
    assert share == pytest.approx(0.5, abs=0.07)


# ---- drawing -------------------------------------------------------------------------------------

GENERAL = [made(f"g{i}") for i in range(30)]
HELD_OUT = [made(f"e{i}", split=Split.evaluation) for i in range(5)]
DOMAIN = [made(f"d{i}", source="domain_x") for i in range(10)]


def draw(num: int, **values) -> list[Prompt]:
    return select([*GENERAL, *HELD_OUT], Split.train, num, seed=3, **values)


def test_select_takes_one_side_and_more_only_adds():
    assert {p.split for p in draw(20)} == {Split.train}
    assert draw(0) == []
    for domain_frac in (0.0, 0.3):
        sizes = [set(draw(n, domain=DOMAIN, domain_frac=domain_frac)) for n in range(1, 25)]
        assert all(small < large for small, large in itertools.pairwise(sizes))


def test_select_depends_on_the_seed_and_not_on_the_order_of_the_file():
    again = select(GENERAL[::-1], Split.train, 10, seed=3)
    assert again == draw(10)
    assert select(GENERAL, Split.train, 10, seed=4) != again


def test_select_mixes_the_share_of_the_domain_and_passes_other_kinds_over():
    other = [made(f"o{i}", kind=PromptKind.benign, source="domain_x") for i in range(10)]
    chosen = draw(16, domain=[*DOMAIN, *other], domain_frac=0.5)
    assert collections.Counter(p.source for p in chosen) == {"s": 8, "domain_x": 8}
    assert {p.kind for p in chosen} == {RED_TEAM}


def test_a_domain_that_is_too_small_is_used_up_and_the_rest_is_general_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="cai"):
        chosen = draw(30, domain=DOMAIN, domain_frac=0.5)
    assert collections.Counter(p.source for p in chosen) == {"s": 20, "domain_x": 10}
    assert "phase.prompts.num_red_team=30: 15 prompts of the domain were asked for" in caplog.text


def test_select_never_takes_a_general_prompt_that_the_domain_has_too():
    same = [made("G1 ", source="domain_x"), *DOMAIN]
    chosen = draw(39, domain=same, domain_frac=0.25)
    assert "s-g1" not in {p.id for p in chosen}
    assert len(chosen) == 39


def test_too_few_prompts_say_how_many_there_are_and_what_to_type():
    with pytest.raises(UserError, match=r"num_red_team=31: there are only 30 red_team prompts for "
                       r"train; type phase\.prompts\.num_red_team=30"):  # fmt: skip
        draw(31)
    with pytest.raises(UserError, match=r"num_red_team=61, or give"):  # 31 + 30
        draw(100, domain=[made(f"d{i}") for i in range(90)], domain_frac=0.5)
    with pytest.raises(UserError, match=r"phase\.prompts\.num_eval_red_team=6: there are only 5"):
        select(HELD_OUT, Split.evaluation, 6, seed=0)
    with pytest.raises(
        UserError, match=r"only 40 red_team prompts for train with data\.domain_frac=0\.5"
    ):
        draw(41, domain=DOMAIN, domain_frac=0.5)


def test_one_id_in_two_sources_is_refused():
    twin = Prompt(id="s-g0", kind=RED_TEAM, category="c", source="t", split=Split.train,
                  messages=turn("another"))  # fmt: skip
    with pytest.raises(UserError, match=r"'s-g0' is in .*data\.red_team\.id_column=null"):
        select(GENERAL, Split.train, 30, seed=0, domain=[twin], domain_frac=0.02)


# ---- digests -------------------------------------------------------------------------------------


def test_digests_follow_the_stored_bytes(write):
    path = write(GOOD, "rows.jsonl.gz")
    stored = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source_digest(prompts_from(path)) == stored
    assert source_digest(comparisons_from(path)) == stored
    builtin = Path(__file__).parent.parent / "cai/datasets/domain_medical.jsonl"
    assert domain_digest("medical") == hashlib.sha256(builtin.read_bytes()).hexdigest()


def test_a_digest_of_a_missing_file_names_the_setting():
    with pytest.raises(UserError, match=r"^data\.benign\.path=gone\.jsonl: there is no such file"):
        source_digest(prompts_from("gone.jsonl"), setting="data.benign")
    with pytest.raises(UserError, match=r"^data\.human_comparisons\.path=gone\.jsonl"):
        source_digest(comparisons_from("gone.jsonl"))


def test_digests_of_hub_sources_follow_id_split_and_revision():
    sources = [prompts_from("o/n"), prompts_from("o/m"), prompts_from("o/n@r")]
    test = prompts_from("o/n")
    test.hub_split = "test"
    assert len({source_digest(s) for s in [*sources, test]}) == 4
    none = comparisons_from("x")
    none.path = None
    assert source_digest(none) == hashlib.sha256(b"").hexdigest()


# ---- human comparisons ---------------------------------------------------------------------------


def better(pair) -> str:
    return pair.response_a if pair.prob_a == 1.0 else pair.response_b


def worse(pair) -> str:
    return pair.response_b if pair.prob_a == 1.0 else pair.response_a


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


PROMPT = CONVERSATION[-1][1]
TRL_ROWS = {
    "text": ({"prompt": PROMPT, "chosen": " Fine", "rejected": "Bad "}, "prompt", 1),
    "messages": ({"prompt": MESSAGES, "chosen": assistant("Fine"), "rejected": assistant("Bad")},
                 "prompt", 3),
    "text after messages": ({"prompt": MESSAGES, "chosen": "Fine", "rejected": "Bad"}, "prompt", 3),
    "implicit prompt": ({"chosen": MESSAGES + assistant("Fine"),
                         "rejected": MESSAGES + assistant("Bad")}, None, 3),
    "transcripts": ({"chosen": f"{TRANSCRIPT}\n\nAssistant: Fine",
                     "rejected": f"{TRANSCRIPT}\n\nAssistant: Bad"}, None, 3),
    "transcript as prompt": ({"prompt": TRANSCRIPT, "chosen": "Fine", "rejected": "Bad"},
                             "prompt", 3),
    "other lengths": ({"chosen": f"{TRANSCRIPT}\n\nAssistant: Fine\n\nHuman: a\n\nAssistant: b",
                       "rejected": f"{TRANSCRIPT}\n\nAssistant: Bad"}, None, 3),
    "joined turns": ({"chosen": f"{TRANSCRIPT}\n\nAssistant: Fine",
                      "rejected": f"{TRANSCRIPT}\n\nAssistant: Bad"}, None, 3),
}  # fmt: skip


@pytest.mark.parametrize("label", TRL_ROWS)
def test_every_layout_of_a_comparison_gives_the_same_pair(write, label):
    row, column, num_turns = TRL_ROWS[label]
    (pair,) = load_comparisons(comparisons_from(write([row]), prompt_column=column))
    assert texts(pair) == CONVERSATION[-num_turns:]
    assert (better(pair), worse(pair)) == ("Fine", "Bad")
    assert (pair.weight, pair.source, pair.principle_ids) == (1.0, "human", ())


def test_without_a_path_there_are_no_comparisons():
    source = comparisons_from("x")
    source.path = None
    assert load_comparisons(source) == []


def many(num: int) -> list[dict]:
    return [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(num)]


def test_which_response_is_a_does_not_know_which_was_chosen(write):
    rows = many(400)
    flipped = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    ours = load_comparisons(comparisons_from(write(rows, "a.jsonl"), prompt_column="prompt"))
    theirs = load_comparisons(comparisons_from(write(flipped, "b.jsonl"), prompt_column="prompt"))
    # 400 fair coins: three standard deviations are 30
    assert sum(p.prob_a for p in ours) == pytest.approx(200, abs=30)
    other = {p.messages: p for p in theirs}
    for pair in ours:
        twin = other[pair.messages]
        assert (twin.response_a, twin.response_b) == (pair.response_a, pair.response_b)
        assert twin.prob_a == 1.0 - pair.prob_a


def test_the_first_rows_by_hash_are_used_whatever_the_order_of_the_file(write):
    rows = many(50)

    def first(num, content):
        return load_comparisons(
            comparisons_from(write(content), prompt_column="prompt", max_rows=num)
        )

    assert first(20, rows) == first(20, rows[::-1])
    assert first(10, rows) == first(20, rows)[:10]
    assert {p.prob_a for p in first(20, rows)} == {0.0, 1.0}


def test_rows_without_two_responses_are_counted_by_reason(write, caplog):
    bad = [
        {"prompt": "x", "chosen": "", "rejected": "b"},
        {"prompt": "y", "chosen": "b ", "rejected": "b"},
        {"prompt": "P0", "chosen": "c0", "rejected": "r0"},
    ]
    with caplog.at_level(logging.WARNING, logger="cai"):
        found = read_comparisons(comparisons_from(write(many(40) + bad), prompt_column="prompt"))
    assert found.dropped == {"empty_response": 1, "identical_responses": 1, "duplicate": 1}
    assert (found.num_rows, len(found.pairs)) == (43, 40)
    assert "1 duplicate, 1 empty_response, 1 identical_responses" in caplog.text


def test_many_unusable_rows_are_an_error(write):
    rows = [{"chosen": f"\n\nHuman: {i}\n\nAssistant: a",
             "rejected": f"\n\nHuman: not {i}\n\nAssistant: b"} for i in range(10)]  # fmt: skip
    with pytest.raises(UserError, match=r"10 of 10 rows do not .*10 no_shared_prompt"):
        load_comparisons(comparisons_from(write(rows)))


BAD_COMPARISONS = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, None, ":1: chosen: is plain text"),
    "missing": ({"chosen": "a"}, "prompt", ":1: prompt: there is no such column; there are chosen"),
    "no rejected": ({"prompt": "a", "chosen": "a"}, "prompt", ":1: rejected: there is no such"),
    "prompt ends with response": (
        {"prompt": MESSAGES[:2], "chosen": "a", "rejected": "b"}, "prompt", ":1: prompt: ends with"
    ),
    "whole conversations": (
        {"prompt": "a", "chosen": MESSAGES + assistant("b"), "rejected": assistant("c")}, "prompt",
        ":1: chosen: must be one message of the assistant",
    ),
    "half a transcript": (
        {"chosen": f"{TRANSCRIPT}\n\nAssistant: a", "rejected": "b"}, None,
        ":1: rejected: must be a transcript",
    ),
    "number": ({"prompt": "a", "chosen": 1, "rejected": "b"}, "prompt", ":1: chosen: must be text"),
    "NUL": ({"prompt": "a", "chosen": "\0", "rejected": "b"}, "prompt", ":1: chosen: contains"),
}  # fmt: skip


@pytest.mark.parametrize("label", BAD_COMPARISONS)
def test_a_bad_comparison_names_file_line_and_field(write, label):
    row, column, message = BAD_COMPARISONS[label]
    path = write([row])
    with pytest.raises(UserError) as caught:
        load_comparisons(comparisons_from(path, prompt_column=column))
    assert str(caught.value).startswith(f"{path}{message}")


def test_prompt_sets_are_no_comparisons_and_max_rows_is_at_least_one(write):
    with pytest.raises(UserError, match="has prompts and no comparisons"):
        load_comparisons(comparisons_from("red_team"))
    with pytest.raises(UserError, match=r"max_rows must be at least 1, not 0"):
        load_comparisons(comparisons_from(write(many(1)), max_rows=0))


@pytest.mark.skipif(not HH.exists(), reason="the real hh-rlhf rows are not here")
def test_real_hh_rlhf_rows_are_read_without_loss():
    found = read_comparisons(comparisons_from(HH, max_rows=10_000))
    assert (found.num_rows, found.dropped) == (1181, {"empty_response": 2})
    assert len(found.pairs) == 1179
    for pair in found.pairs:
        roles = [m.role for m in pair.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert sum(p.prob_a for p in found.pairs) / 1179 == pytest.approx(0.5, abs=0.05)
    prompts = load(prompts_from(HH, prompt_column="chosen"))
    assert len(prompts) > 1100
