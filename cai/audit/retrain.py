"""What to type to check a prediction by training, and the documents that it needs."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from cai.artifacts import write_atomically
from cai.constitution import Constitution
from cai.constitution_import import document_text
from cai.job import PROGRAM, Job

FOLDER = "without"
_OF_THE_AUDIT = ("phase", "phase.", "audit.", "constitution.document", "logger", "debug", "plan")
"""Settings that mean nothing, or something else, when `phase=rlaif` trains."""


def write_without(document: Constitution, run_dir: Path) -> dict[str, Path]:
    """The document without each of its principles in turn, by the id of the one that is missing."""
    if len(document.principles) < 2:
        return {}
    folder = run_dir / FOLDER
    folder.mkdir()
    files = {}
    for gone in document.principles:
        kept = tuple(one for one in document.principles if one.id != gone.id)
        text = document_text(dataclasses.replace(document, principles=kept))
        files[gone.id] = folder / f"{gone.id}.yaml"
        write_atomically(files[gone.id], text.encode("utf-8"))
    return files


def command(job: Job, document: Path | None) -> str:
    """A training run under a document with the settings of the audit; None takes the audit's own.

    The override that changes anything is `constitution.document`: stages before the first drawn
    principle are reused.
    """
    kept = [text for text in job.overrides if not _is_of_the_audit(text)]
    named = [text for text in job.overrides if text.startswith("constitution.document=")]
    own = named if document is None else [f"constitution.document={document}"]
    return f"{PROGRAM} {shlex.join(['phase=rlaif', *kept, *own])}"


def _is_of_the_audit(override: str) -> bool:
    name = override.lstrip("+~").partition("=")[0]
    return any(name == one or (one.endswith(".") and name.startswith(one)) for one in _OF_THE_AUDIT)
