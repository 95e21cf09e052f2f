"""Run folders written by hand, so that a comparison can be checked against known numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def config(
    *, seed: int = 0, kl_coef: float = 0.05, constitution: str = "medical"
) -> dict[str, Any]:
    """A small config with every section that matters to grouping."""
    return {
        "seed": seed,
        "plan": False,
        "output_dir": "outputs",
        "run": None,
        "example": None,
        "runs": None,
        "model": {"name": "small", "path": "small"},
        "constitution": {"name": constitution, "document": f"{constitution}.yaml"},
        "phase": {"name": "rlaif", "ppo": {"kl_coef": kl_coef, "num_iterations": 6}},
        "feedback": {"method": "tuned"},
        "audit": {"num_pairs": 64},
        "hardware": {"name": "cpu"},
        "logger": {"kind": "none"},
    }


def row(prompt: str, words: int, *, policy: str = "rl_cai", **measured: Any) -> dict[str, Any]:
    """An evaluated response of so many words."""
    return {
        "response": {
            "prompt": {"id": prompt, "kind": "red_team", "messages": [{"content": prompt}]},
            "policy": policy,
            "sample": {"text": "word " * words},
        },
        "score": None,
        "refusal": False,
        **measured,
    }


def write_artifact(root: Path, stage: str, name: str, content: str, *, rules: str) -> str:
    """A finished artifact with one file; returns its digest."""
    digest = hashlib.sha256(f"{stage}{content}{rules}".encode()).hexdigest()
    folder = root / "store" / stage / digest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    key = {"identity": {"compliance_rules": rules}}
    manifest = {"files": {name: {"sha256": sha256}}, "key": key}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return digest


def write_run(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    metrics: Mapping[str, float] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    status: str = "done",
    started: str = "2026-01-01T00:00:00+00:00",
    preference_model: str = "one",
    digest: str | None = None,
    rules: str = "1",
) -> Path:
    """A finished run; its store is two folders above."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    root = folder.parents[1]
    name = settings["constitution"]["name"]
    stages = {"preference_model": hashlib.sha256(preference_model.encode()).hexdigest()}
    if rows:
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        stages["evaluation"] = write_artifact(
            root, "evaluation", "records.jsonl", lines, rules=rules
        )
    for stage, logged in (curves or {}).items():
        stages[stage] = write_artifact(root, stage, "curve.json", json.dumps(logged), rules=rules)
    manifest = {
        "status": status,
        "command": f"python -m cai.run phase={settings['phase']['name']} seed={settings['seed']}",
        "started": started,
        "seed": settings["seed"],
        "constitution": {"name": name, "version": "1", "digest": digest or f"digest of {name}"},
        "stages": [{"stage": stage, "digest": value} for stage, value in stages.items()],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.json").write_text(json.dumps(dict(metrics or {"feedback/accuracy": 0.5})))
    return folder
