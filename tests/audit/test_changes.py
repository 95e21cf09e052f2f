"""Two versions of a document side by side."""

from __future__ import annotations

from pathlib import Path

from cai.audit.changes import Changes, compare
from cai.audit.wording import escapes
from tests.audit.written import document

BEFORE = """\
name: x
version: 1
principles:
- {id: same, principle: The response names its source.}
- {id: gone, principle: The response is short.}
- {id: old_name, principle: The response greets the reader.}
- id: changed
  principle: The response names a date where possible.
  scope: [a]
  tests:
  - {prompt: When?, better: b, worse: w}
  - {prompt: Which?, better: b, worse: w}
"""
AFTER = """\
name: x
version: 2
principles:
- id: changed
  principle: The response names the exact date.
  scope: [a, b]
  weight: 2
  tests:
  - {prompt: When?, better: b, worse: w}
  - {prompt: Who?, better: b, worse: w}
- {id: added, principle: The response cites a law if applicable.}
- {id: new_name, principle: The response greets the reader.}
- {id: same, principle: The response names its source.}
"""


def changes(tmp_path: Path, before: str, after: str) -> Changes:
    paths = tmp_path / "before.yaml", tmp_path / "after.yaml"
    for path, text in zip(paths, (before, after), strict=True):
        path.write_text(text)
    old, new = map(document, paths)
    return compare(
        old.constitution,
        new.constitution,
        findings_before=list(escapes(old)),
        findings_after=list(escapes(new)),
    )


def test_what_came_went_and_changed(tmp_path: Path) -> None:
    found = changes(tmp_path, BEFORE, AFTER)
    assert (found.before, found.after, found.same_digest) == ("x 1", "x 2", False)
    assert [principle.id for principle in found.added] == ["added"]
    assert [principle.id for principle in found.removed] == ["gone"]
    assert found.renamed == {"new_name": "old_name"}
    told = {(c.principle_id, c.field): (c.before, c.after) for c in found.fields}
    sentence = told.pop(("changed", "principle"))
    assert sentence[1] == "The response names the exact date."
    assert {field for name, field in told if name == "changed"} == {
        "critique", "revise", "compare", "scope", "weight", "tests",
    }  # fmt: skip
    assert told["changed", "scope"] == ("a", "a, b")
    assert told["changed", "weight"] == ("1", "2")
    assert told["changed", "tests"] == ("Which?", "Who?")
    assert {name for name, _ in told} == {"changed"}


def test_findings_that_came_and_went(tmp_path: Path) -> None:
    found = changes(tmp_path, BEFORE, AFTER)
    assert [f.place.text for f in found.gone_findings] == ["where possible"]
    assert [f.place.text for f in found.new_findings] == ["if applicable"]


def test_another_order_of_principles_changes_the_digest_and_nothing_else(tmp_path: Path) -> None:
    one, two = "- {id: a, principle: A book.}\n", "- {id: b, principle: A shelf.}\n"
    found = changes(tmp_path, one + two, two + one)
    assert not found.same_digest
    assert (found.added, found.removed, found.renamed, found.fields) == ((), (), {}, ())


def test_nothing_changed(tmp_path: Path) -> None:
    found = changes(tmp_path, BEFORE, "# a comment\n" + BEFORE)
    assert found.same_digest
    assert (found.fields, found.new_findings, found.gone_findings) == ((), (), ())
