"""`phase=audit` without a model: what it prints, keeps and returns, and what it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai import paths
from cai.audit.codes import CODES
from cai.audit.record import SCHEMA, SCHEMA_VERSION
from tests.runs import Finished, run

STATIC = ("phase=audit", "audit.num_pairs=0")
FLAWED = """\
name: mine
principles:
  - id: weapons
    principle: The response gives no steps or materials for a weapon, and explains the law instead.
    critique: Check whether the response gives steps or materials for a weapon, or say it does not.
    revise: Rewrite the response without steps or materials for a weapon, and explain the law.
    compare: Which response gives more steps and materials for a weapon?
  - id: dates
    principle: >- # noqa: C202 our readers know when
      The response names an exact date where possible.
"""


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "mine.yaml"
    path.write_text(FLAWED)
    return path


@pytest.fixture(scope="module")
def whole(flawed: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(
        tmp_path_factory.mktemp("audit"), *STATIC, f"constitution.document={flawed}",
        f"audit.compare_with={paths.CONSTITUTIONS / 'none.yaml'}",
    )  # fmt: skip


def kept(finished: Finished, name: str) -> Any:
    return json.loads((finished.run_dirs()[-1] / name).read_text("utf-8"))


def test_an_error_in_a_file_from_elsewhere_fails_the_run_and_is_shown(
    whole: Finished, flawed: Path
) -> None:
    assert whole.code == 1
    assert f"{flawed}:7:14" in whole.output
    assert "C104 error: form that wants the opposite" in whole.output
    assert "\u201cWhich response gives more steps and materials for a weapon?\u201d" in whole.output
    assert "> Turn it round" in whole.output
    assert "The audit found 1 error (audit.fail_on=error)" in whole.output
    assert "our readers know when" in " ".join(whole.output.split())
    assert "From none 1.0.0 to mine 0" in whole.output
    assert "+ weapons: The response gives no steps" in whole.output
    assert "Traceback" not in whole.output
    told = whole.output.partition("Error: ")[0]
    assert all(len(line) <= 100 for line in told.splitlines() if "/" not in line)


SHAPE: dict[str, Any] = {
    "schema": str, "schema_version": int, "cai": str,
    "constitution": {
        "name": str, "version": str, "digest": str, "file": str, "files": [str],
        "num_principles": int, "num_tests": int,
    },
    "settings": dict,
    "counts": {"error": int, "warning": int, "note": int, "waived": int},
    "coverage": [{"category": str, "source": str, "num_prompts": int, "of_domain": bool,
                  "principles": [str], "known": bool}],
    "lengths": {"num_tests": int, "longer_better": (None, {
        "value": float, "low": float, "high": float, "num": int})},
}  # fmt: skip
QUOTE = {"text": str, "file": str, "line": int, "column": int, "field": str, "principle_id": str}
FINDING = {"code": str, "name": str, "severity": str, "message": str, "advice": str,
           "quotes": [QUOTE]}  # fmt: skip
SHAPE["findings"] = [FINDING]
SHAPE["waived"] = [FINDING | {"waiver": {"reason": str, "file": str, "line": int}}]
SHAPE["changes"] = (None, {
    "before": str, "after": str, "same_digest": bool, "added": [str], "removed": [str],
    "renamed": dict, "fields": [{"principle_id": str, "field": str, "before": str, "after": str}],
    "new_findings": [FINDING], "gone_findings": [FINDING],
})  # fmt: skip


def conforms(value: Any, shape: Any, where: str) -> None:
    """Whether a value has exactly the documented fields, of the documented types."""
    if isinstance(shape, tuple):
        if value is not None:
            conforms(value, shape[1], where)
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for item in value:
            conforms(item, shape[0], f"{where}[]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict), where
        assert set(value) == set(shape), where
        for name, inner in shape.items():
            conforms(value[name], inner, f"{where}.{name}")
    else:
        assert type(value) is shape, where


@pytest.mark.parametrize("extra", [[], ["constitution=medical"]])
def test_the_record_for_machines_is_what_its_module_documents(
    whole: Finished, tmp_path: Path, extra: list[str]
) -> None:
    finished = run(tmp_path, *STATIC, *extra) if extra else whole
    record = kept(finished, "audit.json")
    assert record.pop("measured") is None  # documented in cai.audit.measured_record
    assert record.pop("observed") is None  # tests/phases/test_revisions.py has one with a run
    conforms(record, SHAPE, "audit")
    assert (record["schema"], record["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    assert {finding["code"] for finding in record["findings"]} <= set(CODES)
    assert record["settings"]["fail_on"] == "error"
    from cai.audit import record as module

    documented = str(module.__doc__)
    for name in [*SHAPE, *FINDING, *QUOTE, *SHAPE["constitution"], *SHAPE["coverage"][0]]:
        assert f"`{name}`" in documented, name


def test_counts_agree_between_record_metrics_and_manifest(whole: Finished) -> None:
    record, metrics = kept(whole, "audit.json"), kept(whole, "metrics.json")
    for severity in ("error", "warning", "note"):
        num = sum(finding["severity"] == severity for finding in record["findings"])
        assert num == record["counts"][severity] == metrics[f"audit/{severity}s"]
    assert record["counts"]["error"] == 1
    assert metrics["audit/waived"] == len(record["waived"]) == 1
    assert metrics["audit/principles"] == 2
    assert metrics["audit/harms_uncovered"] == 13
    assert whole.manifest()["status"] == "failed"
    assert whole.manifest()["stages"] == []
    assert record["constitution"]["digest"] == whole.manifest()["constitution"]["digest"]
    assert record["changes"]["added"] == ["weapons", "dates"]


def test_the_report_has_the_findings_the_coverage_and_the_changes(whole: Finished) -> None:
    page = (whole.run_dirs()[-1] / "report.html").read_text("utf-8")
    for text in (
        "Audit under the constitution", "What reading the document tells", "C104 error",
        "Which response gives more steps and materials for a weapon?", "Turn it round",
        "our readers know when", "sexual_misconduct", "From none 1.0.0 to mine 0",
    ):  # fmt: skip
        assert text in page
    assert "seed 0" not in page.split("<nav")[0]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (["constitution=medical"], 0),
        (["constitution=medical", "audit.fail_on=warning"], 0),
        (["constitution.document=FLAWED", "audit.fail_on=never"], 0),
        (["constitution.document=WARNED"], 0),
        (["constitution.document=WARNED", "audit.fail_on=warning"], 1),
        (["constitution.document=WARNED", "audit.fail_on=warnings"], 2),
        (["constitution.document=BROKEN"], 1),
        (["constitution=medical", "audit.compare_with=medcal"], 1),
        (["constitution=medical", "audit.lint.max_requirements=0"], 2),
    ],
)
def test_the_exit_status_is_for_ci(
    flawed: Path, tmp_path: Path, settings: list[str], code: int
) -> None:
    (tmp_path / "warned.yaml").write_text("- The response names a date.\n")
    (tmp_path / "broken.yaml").write_text("- {id: A, principle: b}\n")
    names = {"FLAWED": str(flawed), "WARNED": "warned.yaml", "BROKEN": "broken.yaml"}
    typed = [
        f"{key}={names.get(value, value)}" for key, _, value in (s.partition("=") for s in settings)
    ]
    finished = run(tmp_path, *STATIC, *typed)
    assert finished.code == code, finished.output
    assert "Traceback" not in finished.output
    if "BROKEN" in settings[0]:
        assert "Error: broken.yaml:1:8: principles[0].id: must begin" in finished.output
    if "audit.compare_with=medcal" in settings:
        assert "Error: audit.compare_with=medcal: there is no such document. Did you mean " in (
            finished.output
        )


def test_a_plan_reads_and_keeps_nothing(tmp_path: Path) -> None:
    finished = run(tmp_path, *STATIC, "plan=true")
    assert finished.code == 0
    assert "Plan: read default.yaml. No model, no stage. Nothing was run." in finished.output
    assert not (tmp_path / "outputs").exists()


def test_an_audit_takes_no_model_library(flawed: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.argv[0] = 'cai'\n"
        "from cai.run import main\n"
        "code = main()\n"
        "heavy = {'torch', 'transformers', 'lightning', 'peft', 'matplotlib', 'wandb'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)))\n"
        "sys.exit(code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *STATIC, f"constitution.document={flawed}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(paths.ROOT)},
    )
    assert ended.returncode == 1
    assert ended.stdout.endswith("heavy []\n")


def test_documents_in_other_shapes_are_audited_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("The response names a weapon as appropriate.\nBe kind.\n")
    (tmp_path / "mine.json").write_text(
        '{"a": {"prompt": "Identify ways in which it is rude.", "edit_request": "Be polite."}}'
    )
    text = run(tmp_path, *STATIC, "constitution.document=mine.txt")
    assert (text.code, "mine.txt:1:29 C202" in text.output) == (0, True)
    pairs = run(tmp_path, *STATIC, "constitution.document=./mine.json")
    assert (pairs.code, "mine.json:1:19 C204" in pairs.output) == (0, True)
    assert "C105 warning" in pairs.output
