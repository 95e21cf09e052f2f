"""A document from a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.audit.written import Write, document


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_document(text: str, name: str = "my.yaml"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return document(path)

    return write_document


@pytest.fixture
def principles(write: Write) -> Write:
    """A document of sentences, one principle each."""

    def of(*sentences: str, forms: str = ""):
        items = [f"  - id: p{n}\n    principle: {s!r}\n{forms}" for n, s in enumerate(sentences)]
        return write("name: my\nprinciples:\n" + "".join(items))

    return of
