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
