from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai.errors import UserError
from cai.trace.traced import find_example
from cai.types import from_json


def test_a_run_evaluated_by_another_version_says_what_to_do() -> None:
    def records(kind: type) -> list[Any]:
        return [from_json(kind, {"response": {}, "score": None, "refusal": False})]

    run: Any = SimpleNamespace(
        folder=Path("old"), artifacts={"evaluation": SimpleNamespace(records=records)}
    )
    with pytest.raises(UserError, match="evaluated by another version of cai"):
        find_example(run, "p1")
