"""The importer: what it writes means what was read, stands alone, and replaces nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai import paths
from cai.constitution import load
from cai.constitution_import import import_document, main
from cai.errors import UserError
from tests.audit.written import linted

SHIPPED = sorted(path.stem for path in paths.CONSTITUTIONS.glob("*.yaml"))
PAIRS = {
    "rude": {
        "prompt": ["\n\nCritiqueRequest: Identify ways in which the reply is rude.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Make the reply polite: no insults.\n\nRevision:",
    },
    "1": {"prompt": "Is it false?", "edit_request": "Correct it."},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_document_of_ours_stands_alone_and_means_the_same(tmp_path: Path, name: str) -> None:
    target = tmp_path / f"{name}.yaml"
    import_document(name, target)
    copy = load(str(target), folder=tmp_path)
    assert copy.digest == load(name, folder=paths.CONSTITUTIONS).digest
    assert "extends" not in target.read_text("utf-8").split("principles")[0]


def test_pairs_become_ids_and_forms_and_an_audit_sees_what_is_missing(tmp_path: Path) -> None:
    source, target = tmp_path / "pairs.json", tmp_path / "pairs.yaml"
    source.write_text(json.dumps(PAIRS))
    import_document(str(source), target)
    first, second = load(str(target), folder=tmp_path).principles
    assert first.id == "rude"
    assert second.id == "nothing_in_the_response_would_have"  # 1 is no id
    assert first.critique == "Identify ways in which the reply is rude."
    assert first.revise == "Make the reply polite: no insults."
    assert "compare" not in target.read_text()
    codes = [finding.code for finding in linted(target).findings]
    assert {"C102", "C105", "C204", "C505"} <= set(codes)
    assert sorted(codes) == sorted(finding.code for finding in linted(source).findings)


def test_sentences_become_principles_with_ids(tmp_path: Path) -> None:
    source, target = tmp_path / "rules.txt", tmp_path / "rules.yaml"
    source.write_text("Be kind: always.\nno\n\u4fdd\u6301\u793c\u8c8c\u3002\n", "utf-8")
    import_document(str(source), target)
    copy = load(str(target), folder=tmp_path)
    assert [p.principle for p in copy.principles] == [
        "Be kind: always.", "no", "\u4fdd\u6301\u793c\u8c8c\u3002",
    ]  # fmt: skip
    assert (copy.name, copy.description) == ("rules", "Made from rules.txt.")
    again = tmp_path / "again.yaml"
    import_document(str(source), again)
    assert again.read_bytes() == target.read_bytes()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    with pytest.raises(UserError, match="there is such a file"):
        import_document("medical", target)
    assert target.read_text() == "mine"
    with pytest.raises(UserError, match=r"must end in \.yaml or \.yml"):
        import_document("medical", tmp_path / "mine.json")
    with pytest.raises(UserError, match="cannot be written"):
        import_document("medical", tmp_path / "nowhere" / "mine.yaml")
    with pytest.raises(UserError, match=r"^FILE=medcal: .* Did you mean medical"):
        import_document("medcal", tmp_path / "new.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_command_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "rules.txt", tmp_path / "rules.yaml"
    source.write_text("Be kind.\n")
    main([str(source), "--to", str(target)])
    assert f"phase=audit constitution.document={target}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([str(source), "--to", str(target)])
    assert ended.value.code == 1
    assert "there is such a file" in capsys.readouterr().err
