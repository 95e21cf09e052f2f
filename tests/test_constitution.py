"""Constitutions: what loads, what is refused and where the message points."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
import re
import time
from pathlib import Path

import pytest

from cai.constitution import (
    UNGUIDED_ID,
    Constitution,
    Principle,
    PrincipleTest,
    Unguided,
    load,
)
from cai.errors import UserError

FOLDER = Path(__file__).parent.parent / "constitutions"
CONTROLS = {"none", "inverted"}
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
EXPECTED = {
    "default", "none", "inverted", "medical", "hipaa", "legal", "creative_writing",
    "customer_service", "finance", "harmlessness_first", "helpfulness_first",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write a file into an empty folder; the folder is also the project's own."""

    def write_file(content: str | bytes, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def read(write):
    def read_text(content: str | bytes, name: str = "my.yaml") -> Constitution:
        path = write(content, name)
        return load(str(path), folder=path.parent)

    return read_text


def principles(*texts: str) -> str:
    return "name: x\nprinciples:\n" + "".join(texts)


# ---- the documents of the project ----------------------------------------------------------------


def test_every_announced_document_is_shipped():
    assert set(SHIPPED) >= EXPECTED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_documents_load_fast_under_their_own_name(name):
    start = time.perf_counter()
    constitution = load(name, folder=FOLDER)
    assert time.perf_counter() - start < 1.0
    assert constitution.name == name
    assert constitution.version
    assert constitution.description
    assert constitution.path == FOLDER / f"{name}.yaml"
    assert re.fullmatch(r"[0-9a-f]{64}", constitution.digest)
    assert len({p.id for p in constitution.principles}) == len(constitution.principles)


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"none"}))
def test_shipped_documents_hold_enough_complete_principles(name):
    constitution = load(name, folder=FOLDER)
    assert len(constitution.principles) >= (16 if name == "default" else 8)
    for principle in constitution.principles:
        assert principle.source, principle.id
        assert principle.scope, principle.id
        assert len({principle.critique, principle.revise, principle.compare}) == 3
        assert len(principle.tests) >= 4, principle.id
        for test in principle.tests:
            assert test.better != test.worse


def test_the_control_without_principles_is_the_only_unguided_one():
    unguided = [name for name in SHIPPED if load(name, folder=FOLDER).unguided is not None]
    assert unguided == ["none"]
    assert load("none", folder=FOLDER).principles == ()


@pytest.mark.parametrize("name", ["harmlessness_first", "helpfulness_first"])
def test_the_two_priorities_extend_the_default(name):
    default = load("default", folder=FOLDER)
    extended = load(name, folder=FOLDER)
    assert extended.principles[: len(default.principles)] == default.principles
    assert {p.document for p in extended.principles} == {"default.yaml", f"{name}.yaml"}


def test_shipped_documents_have_different_digests():
    assert len({load(name, folder=FOLDER).digest for name in SHIPPED}) == len(SHIPPED)


# ---- short forms ---------------------------------------------------------------------------------


def test_a_plain_list_of_sentences_is_a_document(read):
    constitution = read("- Be kind to people.\n- Do not lie\n", "rules.yaml")
    assert (constitution.name, constitution.version) == ("rules", "0")
    assert [p.id for p in constitution.principles] == ["be_kind_to_people", "do_not_lie"]
    kind, honest = constitution.principles
    for form in (kind.critique, kind.revise, kind.compare):
        assert "Be kind to people." in form
    assert "Do not lie. " in honest.critique  # a sentence without a full stop gets one
    assert len({kind.critique, kind.revise, kind.compare}) == 3


def test_missing_forms_are_derived_and_given_ones_kept(read):
    (principle,) = read(principles("- principle: Be kind.\n  critique: Is it unkind?\n")).principles
    assert principle.critique == "Is it unkind?"
    assert "Be kind." in principle.revise
    assert "Be kind." in principle.compare


def test_defaults_of_a_short_principle(read):
    (principle,) = read(principles("- Be kind.\n")).principles
    assert principle.weight == 1.0
    assert (principle.scope, principle.tests, principle.source) == ((), (), "")
    assert principle.document == "my.yaml"


def test_derived_ids_are_valid_unique_and_differ_from_written_ones(read):
    constitution = read(
        principles(
            "- Be kind!\n- Be kind?\n- {id: be_kind_2, principle: Other.}\n- 3 rules hold.\n"
            "- 保持礼貌。\n- Unguided.\n- Don't lie.\n"
        )
    )
    ids = [p.id for p in constitution.principles]
    assert ids[:4] == ["be_kind", "be_kind_3", "be_kind_2", "p_3_rules_hold"]
    assert re.fullmatch(r"principle_[0-9a-f]{8}", ids[4])
    assert ids[5:] == ["unguided_2", "dont_lie"]


LITERAL = [
    "${oc.env:WANDB_API_KEY}", "${oc.decode:1}", "{}", "{0} {principle}", "%s %(a)s", "{{ x }}",
    "$(id)", "\\n", "<|is it?|>", "<script>alert(1)</script>", "a 'b' \"c\"", "é ü 漢 🙂",
]  # fmt: skip


@pytest.mark.parametrize("text", LITERAL)
def test_text_is_literal_in_every_form(read, text):
    (principle,) = read(principles("- |-\n  " + text + "\n")).principles
    assert principle.principle == text
    for form in (principle.critique, principle.revise, principle.compare):
        assert text in form


@pytest.mark.parametrize("text", ["no", "yes", "1e3", "2024-01-01", "0o17", "1.10", "true", ".inf"])
def test_scalars_are_read_as_text(read, text):
    constitution = read(f"name: {text}\nversion: {text}\nprinciples: [{text}]\n")
    assert (constitution.name, constitution.version) == (text, text)
    assert constitution.principles[0].principle == text


def test_byte_order_mark_and_carriage_returns_are_accepted(read):
    text = "name: x\nprinciples:\n- Be kind.\n"
    plain = read(text)
    assert read("\ufeff" + text).digest == plain.digest
    assert read(text.replace("\n", "\r\n")).digest == plain.digest


# ---- digest --------------------------------------------------------------------------------------

FULL = """\
name: x
version: "1"
principles:
  - id: kind
    principle: Be kind.
    critique: Unkind?
    revise: Be kinder.
    compare: Which is kinder?
    scope: [tone]
    weight: 2
    source: own
    tests:
      - {prompt: p, better: b, worse: w}
"""


def test_digest_ignores_comments_place_layout_and_what_no_run_reads(read):
    digest = read(FULL).digest
    assert read("# hello\n" + FULL, "other.yaml").digest == digest
    assert (
        read(FULL.replace("principle: Be kind.", "principle: >-\n      Be\n      kind.")).digest
        == digest
    )
    assert read(FULL.replace("source: own", "source: a book")).digest == digest
    assert read(FULL.replace("weight: 2", "weight: 2.0")).digest == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("id: kind", "id: kinder"), ("Be kind.", "Be  kind!"), ("Unkind?", "Rude?"),
        ("Be kinder.", "Better."), ("Which is", "What is"), ("[tone]", "[style]"),
        ("weight: 2", "weight: 3"), ("better: b", "better: c"), ("prompt: p", "prompt: q"),
    ],
)  # fmt: skip
def test_digest_follows_all_text_a_run_reads(read, old, new):
    assert old in FULL
    assert read(FULL.replace(old, new)).digest != read(FULL).digest


def test_digest_follows_inherited_text(write, read):
    write("- Be kind.\n", "parent.yaml")
    child = "name: c\nextends: parent\nprinciples: [Be brief.]\n"
    before = read(child, "child.yaml").digest
    write("- Be very kind.\n", "parent.yaml")
    assert read(child, "child.yaml").digest != before


# ---- extends -------------------------------------------------------------------------------------


def ids(constitution: Constitution) -> list[str]:
    return [p.id for p in constitution.principles]


@pytest.fixture
def family(write):
    write("name: a\nprinciples: [{id: one, principle: One.}, {id: two, principle: Two.}]", "a.yaml")
    write(
        "name: b\nprinciples: [{id: two, principle: Other.}, {id: six, principle: Six.}]", "b.yaml"
    )


@pytest.mark.usefixtures("family")
def test_inherited_principles_come_first_and_own_ones_replace_in_place(read):
    child = read("name: c\nextends: a\nprinciples: [New., {id: one, principle: Mine.}]\n")
    assert ids(child) == ["one", "two", "new"]
    assert child.principles[0].principle == "Mine."
    assert [p.document for p in child.principles] == ["my.yaml", "a.yaml", "my.yaml"]


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("a.yaml", ["one", "two"]),
        ("./a", ["one", "two"]),
        ("[a]", ["one", "two"]),
        ("[a, a]", ["one", "two"]),
        ("{document: a, only: [two]}", ["two"]),
        ("[{document: a, except: [two]}, b]", ["one", "two", "six"]),
        ("[b, {document: a, only: [one]}]", ["two", "six", "one"]),
    ],
)
def test_extends_takes_a_name_a_list_or_selections(read, extends, expected):
    assert ids(read(f"name: c\nextends: {extends}\n")) == expected


@pytest.mark.usefixtures("family")
def test_contradicting_parents_are_refused_unless_overridden(read):
    with pytest.raises(UserError, match=r"my\.yaml:2:14: extends\[1\]: two is not the same in "):
        read("name: c\nextends: [a, b]\n")
    child = read("name: c\nextends: [a, b]\nprinciples: [{id: two, principle: Mine.}]\n")
    assert ids(child) == ["one", "two", "six"]
    assert child.principles[1].principle == "Mine."


def test_a_bare_sentence_never_replaces_an_inherited_principle(write, read):
    write("- Be kind to all people you meet today.\n", "a.yaml")
    child = read("name: c\nextends: a\nprinciples: [Be kind to all people you know.]\n")
    assert ids(child) == ["be_kind_to_all_people_you", "be_kind_to_all_people_you_2"]


def test_parents_are_looked_up_beside_the_file_then_in_the_folder(write, tmp_path):
    write("- Shipped.\n", "parent.yaml")
    write("- Other.\n", "other.yaml")
    child = write("name: c\nextends: [parent, other]\n", "mine/child.yaml")
    write("- Beside.\n", "mine/parent.yaml")
    assert ids(load(str(child), folder=tmp_path)) == ["beside", "other"]


def test_a_diamond_inherits_once_and_a_cycle_is_refused(write, read):
    write("- Be kind.\n", "root.yaml")
    write("name: l\nextends: root\nprinciples: [Left.]\n", "left.yaml")
    write("name: r\nextends: root\nprinciples: [Right.]\n", "right.yaml")
    assert ids(read("name: d\nextends: [left, right]\n")) == ["be_kind", "left", "right"]
    write("name: a\nextends: b\n", "a.yaml")
    write("name: b\nextends: [root, a]\n", "b.yaml")
    with pytest.raises(UserError, match=r"b\.yaml:2:17: extends\[1\]: extends itself: a\.yaml -> "):
        read("name: a\nextends: b\n", "a.yaml")


def test_a_chain_of_documents_has_an_end(write, read):
    for number in range(40):
        write(f"name: n\nextends: n{number + 1}\n", f"n{number}.yaml")
    with pytest.raises(UserError, match="through more than 16 documents"):
        read("name: n\nextends: n1\n", "n0.yaml")


def test_problems_of_a_parent_name_the_parent(write, read):
    write("name: p\nprinciples:\n- ''\n", "parent.yaml")
    with pytest.raises(UserError, match=r"parent\.yaml:3:3: principles\[0\]: is empty"):
        read("name: c\nextends: parent\n")


def test_unguided_is_inherited_only_without_principles(write, read):
    write("name: n\nprinciples: []\nunguided: {critique: c, revise: r, compare: m}\n", "none.yaml")
    expected = Unguided(critique="c", revise="r", compare="m")
    assert read("name: c\nextends: none\n").unguided == expected
    assert read("name: c\nextends: none\nprinciples: [Be kind.]\n").unguided is None


# ---- drawing -------------------------------------------------------------------------------------


def test_weighted_draws_follow_the_weights_and_uniform_ones_do_not(read):
    constitution = read(principles("- {id: a, principle: A., weight: 3}\n- B.\n"))
    for weighted, expected in ((True, 0.75), (False, 0.5)):
        rng = random.Random(0)
        draws = [constitution.draw(rng, weighted=weighted).id for _ in range(4000)]
        # three standard deviations of a proportion from 4,000 draws are at most 0.024
        assert collections.Counter(draws)["a"] / 4000 == pytest.approx(expected, abs=0.024)


def test_draws_are_independent_and_a_function_of_the_stream(read):
    constitution = read("- A.\n- B.\n- C.\n")
    draw = [constitution.draw(random.Random(seed), weighted=True).id for seed in range(50)]
    again = [constitution.draw(random.Random(seed), weighted=True).id for seed in range(50)]
    assert draw == again
    rng = random.Random(1)
    sequence = [constitution.draw(rng, weighted=True).id for _ in range(300)]
    repeats = sum(x == y for x, y in itertools.pairwise(sequence))
    assert 60 < repeats < 140  # a third of 299, as drawing with replacement must


def test_the_unguided_draw_has_an_empty_principle():
    principle = load("none", folder=FOLDER).draw(random.Random(0), weighted=True)
    assert (principle.id, principle.principle, principle.tests) == (UNGUIDED_ID, "", ())
    assert principle.critique
    assert principle.revise
    assert principle.compare


def test_find_gives_the_principle_of_a_record_and_helps_with_a_wrong_id():
    default = load("default", folder=FOLDER)
    assert default.find(default.principles[3].id) is default.principles[3]
    assert load("none", folder=FOLDER).find(UNGUIDED_ID).id == UNGUIDED_ID
    with pytest.raises(UserError, match="Did you mean no_weapons_help"):
        default.find("no_weapon_help")


@pytest.mark.parametrize("kind", [Constitution, Principle, PrincipleTest, Unguided])
def test_records_are_frozen_and_slotted(kind):
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert dataclasses.fields(kind)


# ---- where a document is found -------------------------------------------------------------------


def test_a_missing_name_lists_what_there_is_and_suggests():
    with pytest.raises(UserError) as caught:
        load("medcal", folder=FOLDER)
    assert "Did you mean medical?" in str(caught.value)
    for name in EXPECTED:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "document",
    ["", "  ", "/no/such/file.yaml", "../../etc/shadow", "./x", "a\0b", "x" * 300, "..", "a\nb"],
)
def test_an_odd_document_is_a_user_error(document):
    with pytest.raises(UserError, match=r"^constitution\.document"):
        load(document, folder=FOLDER)


def test_a_folder_is_not_a_document(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(str(tmp_path), folder=FOLDER)


def test_a_file_here_is_found_and_one_that_hides_a_shipped_name_is_ambiguous(
    write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write("- Mine.\n", "mine.yaml")
    assert load("mine", folder=FOLDER).name == "mine"
    assert load("./mine.yaml", folder=FOLDER).name == "mine"
    write("- Mine.\n", "default.yaml")
    with pytest.raises(UserError, match=re.escape("type constitution.document=./default.yaml")):
        load("default", folder=FOLDER)
    assert load("./default.yaml", folder=FOLDER).principles[0].id == "mine"


# ---- malformed documents -------------------------------------------------------------------------

P = "name: x\nprinciples:\n"
UNGUIDED = "unguided: {critique: c, revise: r, compare: m}\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: [*c, *c]\n"
TEST = "  tests:\n  - prompt: p\n    better: b\n    worse: "

# label: content, line:column, field path, part of the message
MALFORMED: dict[str, tuple[str | bytes, str, str, str]] = {
    "empty": ("", "1:1", "document", "is empty"),
    "white space": ("  \n\n", "1:1", "document", "is empty"),
    "comment only": ("# nothing\n", "1:1", "document", "is empty"),
    "latin-1": (b"name: caf\xe9\n", "1:10", "document", "byte 9 is 0xe9"),
    "utf-16": ("name: x".encode("utf-16"), "1:1", "document", "byte 0 is 0xff"),
    "truncated utf-8": (b"name: x\n# \xe6\xbc", "2:3", "document", "byte 10 is 0xe6"),
    "encoded surrogate": (b"name: \xed\xa0\x80", "1:7", "document", "not UTF-8"),
    "NUL": ("name: x\n- \0", "2:3", "document", "U+0000"),
    "escape": ("name: \x1b[31m", "1:7", "document", "U+001B"),
    "line separator": ("name: a\u2028b", "1:8", "document", "U+2028"),
    "next line": ("name: a\x85b", "1:8", "document", "U+0085"),
    "bidi override": ("name: a\u202eb", "1:8", "document", "U+202E"),
    "escaped bell": (P + '- "a\\x07"', "3:3", "principles[0]", "U+0007"),
    "escaped carriage return": (P + '- "a\\r"', "3:3", "principles[0]", "U+000D"),
    "lone surrogate": (P + '- "\\ud800"', "3:6", "principles[0]", "not valid YAML"),
    "too large": ("x" * 262_145, "1:1", "document", "larger than 262,144 bytes"),
    "second document": ("name: x\n---\nname: y\n", "2:1", "document", "a second document"),
    "python tag": ("name: !!python/object/apply:os.system [id]", "1:7", "name", "the tag"),
    "local tag": (P + "- !x y", "3:3", "principles[0]", "the tag '!x'"),
    "string tag": ("name: !!str x", "1:7", "name", "the tag"),
    "anchor": (P + "- &a b", "3:3", "principles[0]", "the anchor &a"),
    "alias": (P + "- *a", "3:3", "principles[0]", "the alias *a"),
    "alias bomb": (BOMB, "1:4", "a", "the anchor &a"),
    "merge key": (P + "- {<<: {id: a}}", "3:4", "principles[0].'<<'", "not a field"),
    "asterisk": (P + "- *Never* lie", "3:9", "principles[0]", "needs quotes"),
    "tab": ("name: x\nprinciples:\n\t- a", "3:1", "document", "spaces, not tabs"),
    "open quote": (P + "- 'a\n", "4:1", "principles[0]", "never closed"),
    "open brace": ("{name: x\n", "2:1", "document", "not valid YAML"),
    "colon in text": (P + "- principle: a: b", "3:15", "principles[0]", "needs quotes"),
    "sentence with colon": (P + "- Be kind: always", "3:3", "principles[0].'Be kind'", "quotes"),
    "at sign": ("name: @x", "1:7", "document", "needs quotes"),
    "deep": ("[" * 100_000, "1:9", "[0][0][0][0][0][0][0][0]", "more than 8 levels"),
    "list as key": ("? [a]\n: b", "1:3", "document", "name must be text"),
    "duplicate field": ("name: x\nname: y", "2:1", "name", "twice, first in line 1"),
    "duplicate inner field": (P + "- id: a\n  id: b", "4:3", "principles[0].id", "twice"),
    "text": ("just text", "1:1", "document", "must be a mapping or a list"),
    "empty list": ("[]", "1:1", "principles", "is empty"),
    "no name": ("version: 1\nprinciples: [a]", "1:1", "name", "is missing"),
    "no principles": ("name: x", "1:1", "principles", "is missing"),
    "unknown field": ("name: x\nprincipals: [a]\n", "2:1", "principals", "Did you mean principles"),
    "unknown in principle": (P + "- {id: a, weigth: 1}", "3:11", "principles[0].weigth", "weight?"),
    "unknown in test": (P + "- tests: [{promt: a}]", "3:12", "principles[0].tests[0].promt", "pro"),
    "principles as text": ("name: x\nprinciples: a", "2:13", "principles", "must be a list"),
    "principles as mapping": (P + "  a: b", "3:3", "principles", "must be a list"),
    "principle as list": (P + "- [a]", "3:3", "principles[0]", "must be text, found a list"),
    "no sentence": (P + "- {id: a}", "3:3", "principles[0].principle", "is missing"),
    "form as list": (P + "- {principle: a, revise: [b]}", "3:26", "principles[0].revise", "text"),
    "form as mapping": (P + "- principle: {a}", "3:14", "principles[0].principle", "a mapping"),
    "empty item": (P + "- a\n-\n", "4:2", "principles[1]", "is empty"),
    "blank text": (P + "- '  '", "3:3", "principles[0]", "is empty"),
    "null": (P + "- principle: ~", "3:14", "principles[0].principle", "is empty"),
    "empty source": (P + "- {principle: a, source: ''}", "3:26", "principles[0].source", "empty"),
    "long text": (P + "- " + "a" * 4001, "3:3", "principles[0]", "has 4,001 characters"),
    "upper-case id": (P + "- {id: A, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "id with dash": (P + "- {id: a-b, principle: b}", "3:8", "principles[0].id", "'a-b'"),
    "path as id": (P + "- {id: ../a, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "long id": (P + f"- {{id: {'a' * 65}, principle: b}}", "3:8", "principles[0].id", "64"),
    "number as id": (P + "- {id: 1, principle: b}", "3:8", "principles[0].id", "lower-case"),
    "id with newline": (P + '- {id: "a\\nb", principle: b}', "3:8", "principles[0].id", "lower-c"),
    "reserved id": (P + "- {id: unguided, principle: b}", "3:8", "principles[0].id", "kept for"),
    "duplicate id": (P + "- {id: a, principle: b}\n- {id: a, principle: c}", "4:8",
                     "principles[1].id", "already the id of principles[0] in line 3"),
    "repeated sentence": (P + "- Be kind.\n- be  kind.", "4:3", "principles[1]", "repeats"),
    "negative weight": (P + "- {principle: a, weight: -1}", "3:26", "principles[0].weight",
                        "must be above 0, found -1"),
    "weight 0": (P + "- {principle: a, weight: 0.0}", "3:26", "principles[0].weight", "above 0"),
    "weight nan": (P + "- {principle: a, weight: .nan}", "3:26", "principles[0].weight", "finite"),
    "weight inf": (P + "- {principle: a, weight: inf}", "3:26", "principles[0].weight", "finite"),
    "weight 1e999": (P + "- {principle: a, weight: 1e999}", "3:26", "principles[0].weight", "fini"),
    "weight huge": (P + "- {principle: a, weight: 1e7}", "3:26", "principles[0].weight", "at most"),
    "weight as word": (P + "- {principle: a, weight: high}", "3:26", "principles[0].weight",
                       "must be a number, found text 'high'"),
    "weight quoted": (P + "- {principle: a, weight: '2'}", "3:26", "principles[0].weight",
                      "without quotes"),
    "weight hex": (P + "- {principle: a, weight: 0x10}", "3:26", "principles[0].weight", "number"),
    "weight as list": (P + "- {principle: a, weight: [1]}", "3:26", "principles[0].weight", "list"),
    "weight missing": (P + "- principle: a\n  weight:\n", "4:10", "principles[0].weight",
                       "found nothing"),
    "scope as text": (P + "- {principle: a, scope: b}", "3:25", "principles[0].scope", "a list"),
    "scope tag": (P + "- {principle: a, scope: [B]}", "3:26", "principles[0].scope[0]", "lower"),
    "scope twice": (P + "- {principle: a, scope: [b, b]}", "3:29", "principles[0].scope[1]",
                    "twice"),
    "scope empty": (P + "- {principle: a, scope: []}", "3:25", "principles[0].scope", "leave"),
    "tests as mapping": (P + "- {principle: a, tests: {}}", "3:25", "principles[0].tests", "a lis"),
    "test as text": (P + "- {principle: a, tests: [b]}", "3:26", "principles[0].tests[0]", "mapp"),
    "test without worse": (P + "- principle: a\n" + TEST + "''", "7:12",
                           "principles[0].tests[0].worse", "is empty"),
    "test with equals": (P + "- principle: a\n" + TEST + "b", "7:12",
                         "principles[0].tests[0].worse", "the same text as `better`"),
    "too many": (P + "- a\n" * 2_000, "1003:3", "principles[1000]", "at most 1,000"),
    "unguided missing": ("name: x\nprinciples: []", "1:1", "unguided", "is missing"),
    "unguided with principles": (P + "- a\n" + UNGUIDED, "4:11", "unguided", "only for documents"),
    "unguided incomplete": ("name: x\nprinciples: []\nunguided: {revise: r, compare: c}", "3:11",
                            "unguided.critique", "is missing"),
    "unguided as text": ("name: x\nprinciples: []\nunguided: a", "3:11", "unguided", "a mapping"),
    "extends nobody": ("name: x\nextends: nobody", "2:10", "extends", "no document 'nobody'"),
    "extends close": ("name: x\nextends: [oter]", "2:11", "extends[0]", "Did you mean other?"),
    "extends itself": ("name: x\nextends: my", "2:10", "extends", "my.yaml -> my.yaml"),
    "extends empty list": ("name: x\nextends: []", "2:10", "extends", "is empty"),
    "extends unnamed": ("name: x\nextends: {only: [a]}", "2:10", "extends.document", "is missing"),
    "extends both": ("name: x\nextends: {document: other, only: [a], except: [a]}", "2:39",
                     "extends.except", "beside `only`"),
    "extends wrong id": ("name: x\nextends: {document: other, only: [be_knd]}", "2:35",
                         "extends.only[0]", "Did you mean be_kind?"),
    "extends unknown": ("name: x\nextends: {document: other, without: [a]}", "2:28",
                        "extends.without", "known are document, only, except"),
    "directive": ("%YAML 9.9\n---\n- a\n", "1:1", "document", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("label", MALFORMED)
def test_a_malformed_document_is_refused_with_file_line_column_and_field(write, read, label):
    write("- Be kind.\n", "other.yaml")
    content, place, path, message = MALFORMED[label]
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read(content)
    assert time.perf_counter() - start < 1.0
    lines = str(caught.value).split("\n")
    assert all(re.search(r"(^|/)my\.yaml:\d+:\d+: \S.*?: \S", line) for line in lines)
    expected = re.compile(rf"(^|/)my\.yaml:{place}: {re.escape(path)}: .*{re.escape(message)}")
    assert any(expected.search(line) for line in lines), lines


def test_there_are_enough_malformed_cases():
    assert len(MALFORMED) >= 60


def test_all_problems_are_reported_in_the_order_of_the_file(read):
    with pytest.raises(UserError) as caught:
        read("nam: x\nprinciples:\n- {id: A, principle: b, weight: 0}\n- ''\n- {id: b, scope: c}\n")
    places = re.findall(r"my\.yaml:(\d+:\d+): ([\w\[\].]+):", str(caught.value))
    assert places == [
        ("1:1", "nam"), ("1:1", "name"), ("3:8", "principles[0].id"),
        ("3:33", "principles[0].weight"), ("4:3", "principles[1]"),
        ("5:3", "principles[2].principle"), ("5:18", "principles[2].scope"),
    ]  # fmt: skip


HOSTILE = {
    "unknown fields": "".join(f"k{i}: a\n" for i in range(25_000)),
    "duplicate fields": "a: a\n" * 50_000,
    "braces": "{" * 250_000,
    "questions": "? " * 100_000,
    "anchors": "- &a b\n" * 35_000,
    "colons": "a: " * 80_000,
    "equal slugs": "".join(f"- a{'!' * (i % 40)}{chr(0x4E00 + i)}\n" for i in range(5_000)),
    "one long quote": '"' + "\\x20" * 60_000,
    "long key": "a" * 250_000 + ": b",
}


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_documents_are_refused_within_a_second(read, label):
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read(HOSTILE[label])
    assert time.perf_counter() - start < 1.0
    assert len(str(caught.value)) < 60_000


def test_messages_never_carry_control_characters_of_the_document(read):
    with pytest.raises(UserError) as caught:
        read(principles('- {id: "\\e[31mred", principle: b, "\\a": c}\n'))
    assert str(caught.value).replace("\n", "").isprintable()
