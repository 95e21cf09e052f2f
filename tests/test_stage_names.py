"""Names of stages that several policies share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.artifacts import Artifact
from cai.context import StageResult, StageStatus
from cai.stage_names import stage_names


def result(name: str, digest: str, identity: dict[str, Any], **inputs: str) -> StageResult:
    return StageResult(
        name=name,
        artifact=Artifact(stage=name, digest=digest, folder=Path(digest)),
        status=StageStatus.computed,
        seconds=0.0,
        counts={},
        key={"identity": identity, "inputs": inputs},
    )


def test_a_name_that_is_there_once_stays_as_it_is() -> None:
    assert stage_names([result("responses", "r", {"policy": "base"})]) == ["responses"]


def test_stages_of_several_policies_say_which() -> None:
    model = {"model": {}}
    results = [
        result("prompts", "p", {}),
        result("responses", "r0", model | {"policy": "base"}, prompts="p"),
        result("responses", "r1", model | {"policy": "sl_cai"}, prompts="p", adapter="a1"),
        result("base_likelihoods", "b0", model, responses="r0"),
        result("base_likelihoods", "b1", model, responses="r1"),
        result("capability", "c0", model),
        result("capability", "c1", model, adapter="a1"),
        result("matches", "m0", {"feedback": {}}, before="r0", after="r1"),
        result("matches", "m1", {"feedback": {}}, before="r1", after="r0"),
        result("comparisons", "x0", {"feedback": {}}),
        result("comparisons", "x1", {"feedback": {}}),
    ]
    assert stage_names(results) == [
        "prompts",
        "responses (base)",
        "responses (sl_cai)",
        "base_likelihoods (base)",
        "base_likelihoods (sl_cai)",
        "capability (base)",
        "capability (sl_cai)",
        "matches (base, sl_cai)",
        "matches (sl_cai, base)",
        "comparisons",
        "comparisons",
    ]
