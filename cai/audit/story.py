"""What the report tells of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cai.audit.changes import Changes
from cai.audit.lint import Lint
from cai.audit.measured import Measured
from cai.audit.observed import Observed
from cai.word_diff import DiffPart, word_diff


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStory:
    """The chapter on the document itself."""

    file: str
    lint: Lint
    changes: Changes | None
    observed: Observed | None = None
    """None where no run is named."""
    measured: Measured | None = None
    """None when no model was asked."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """What to type to train without a principle, by its id."""
    command_after: str = ""
    """What to type to train under the document."""

    def differences(self) -> list[tuple[str, str, tuple[DiffPart, ...]]]:
        """Principle, field, and the words that went and came, for each changed field."""
        fields = self.changes.fields if self.changes else ()
        return [(c.principle_id, c.field, word_diff(c.before, c.after)) for c in fields]
