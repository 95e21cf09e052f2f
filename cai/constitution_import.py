"""Make a document in our format out of one in another shape: `python -m cai.constitution_import`.

Whatever `cai.constitution` can read is written as one YAML file that stands alone: ids that stay,
the forms that were given, tags, weights and tests; forms that would be derived are left out, so
that an audit still sees what is missing. The file is read back before it is kept, must mean the
same (digest), and never takes the place of another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from cai import constitution, paths
from cai.audit.document import FORMS
from cai.constitution import Constitution
from cai.documents import Principle
from cai.errors import UserError

ENDINGS = (".yaml", ".yml")


def document_text(read: Constitution) -> str:
    """A constitution in our format; inherited principles become its own."""
    fields: dict[str, Any] = {
        "name": read.name,
        "version": read.version,
        "description": read.description or f"Made from {read.path.name}.",
        "principles": [
            _fields(principle, written=read.origins[principle.id].own.fields)
            for principle in read.principles
        ],
    }
    if read.unguided is not None:
        fields["unguided"] = asdict(read.unguided)
    if read.compliance is not None:
        fields["compliance"] = {
            str(kind): {str(tag): value for tag, value in own.items()}
            for kind, own in read.compliance.values.items()
        }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)


def _fields(principle: Principle, *, written: dict[str, Any]) -> dict[str, Any]:
    every = asdict(principle)
    kept = {name: every[name] for name in ("id", "principle")}
    kept |= {name: every[name] for name in FORMS if name in written}
    if principle.scope:
        kept["scope"] = list(principle.scope)
    if principle.weight != 1:
        kept["weight"] = principle.weight
    if principle.source:
        kept["source"] = principle.source
    if principle.tests:
        kept["tests"] = every["tests"]
    return kept


def import_document(source: str, target: Path) -> Constitution:
    """Read a document in any shape and write it as our own.

    Args:
        source: As for `constitution.document`.
        target: The new file.

    Raises:
        UserError: when the source cannot be read, or the target is there or cannot be written.
    """
    if target.suffix not in ENDINGS:
        raise UserError(f"--to {target}: the name must end in {' or '.join(ENDINGS)}")
    read = constitution.load(source, folder=paths.CONSTITUTIONS, setting="FILE")
    text = document_text(read)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / target.name
        copy.write_text(text, "utf-8")
        same = constitution.load(str(copy), folder=paths.CONSTITUTIONS)
    assert same.digest == read.digest, "an imported document means what the original means"
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UserError(f"--to {target}: there is such a file; give another name") from error
    except OSError as error:
        raise UserError(f"--to {target}: cannot be written: {error.strerror}") from error
    return read


def main(arguments: Sequence[str] | None = None) -> None:
    """Import a document and say what to do next."""
    parser = argparse.ArgumentParser(
        prog="python -m cai.constitution_import",
        description="Write a constitution in another shape (a text file with one sentence a line, "
        "JSON with sentences or with pairs of critique and revision requests) as a YAML document.",
    )
    parser.add_argument("file", metavar="FILE", help="a document that can be read")
    parser.add_argument("--to", metavar="OUT.yaml", required=True, type=Path, help="a new file")
    options = parser.parse_args(arguments)
    try:
        read = import_document(options.file, options.to)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    num = len(read.principles)
    print(
        f"{options.to}: {num} principle{'' if num == 1 else 's'}. What it still lacks, tell: "
        f"python -m cai.run phase=audit constitution.document={options.to}"
    )


if __name__ == "__main__":
    main()
