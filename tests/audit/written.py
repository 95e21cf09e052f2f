"""Small documents and the limits of `conf/audit/default.yaml`, for tests of the lint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from cai import paths
from cai.audit.document import Document, read_written
from cai.audit.findings import Finding
from cai.audit.lint import Lint, lint
from cai.audit.prompt_sets import harms_of
from cai.audit_config import LintConfig
from cai.choices import DataFormat
from cai.config import ComparisonSourceConfig, DataConfig
from cai.constitution import load
from cai.data import builtin_source

Write = Callable[..., Document]


def limits(**changed: float) -> LintConfig:
    """The shipped limits, some of them changed."""
    shipped = yaml.safe_load((paths.CONF / "audit" / "default.yaml").read_text())["lint"]
    return LintConfig(**(shipped | changed))


def prompts(*, domain_frac: float = 0.5) -> DataConfig:
    """The sets that ship."""
    comparisons = ComparisonSourceConfig(
        path=None, format=DataFormat.auto, prompt_column=None, chosen_column="chosen",
        rejected_column="rejected", hub_split="train", max_rows=1,
    )  # fmt: skip
    return DataConfig(
        name="default",
        red_team=builtin_source("red_team"),
        helpfulness=builtin_source("helpfulness"),
        benign=builtin_source("benign"),
        domain_frac=domain_frac,
        evaluation_frac=0.3,
        human_comparisons=comparisons,
    )


def document(path: Path) -> Document:
    """A file as the lint sees it."""
    return read_written(load(str(path), folder=paths.CONSTITUTIONS))


def linted(path: Path, domain: str | None = None) -> Lint:
    """A file under the shipped limits and prompts."""
    return lint(document(path), harms_of(prompts(), domain), limits())


def found(findings: Iterable[Finding]) -> list[tuple[str, int, str]]:
    """Code, line and quote of each finding."""
    return [(f.code, f.place.line, f.place.text) for f in findings]
