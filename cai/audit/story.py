"""What the report tells of an audit."""

from __future__ import annotations

from dataclasses import dataclass

from cai.audit.changes import Changes
from cai.audit.lint import Lint
from cai.word_diff import DiffPart, word_diff


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStory:
    """The chapter on the document itself."""

    file: str
    lint: Lint
    changes: Changes | None

    def differences(self) -> list[tuple[str, str, tuple[DiffPart, ...]]]:
        """Principle, field, and the words that went and came, for each changed field."""
        fields = self.changes.fields if self.changes else ()
        return [(c.principle_id, c.field, word_diff(c.before, c.after)) for c in fields]
