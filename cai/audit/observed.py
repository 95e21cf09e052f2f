"""Conflicts between principles that a finished run saw, beside those that its labels predict.

A run whose revisions went on until satisfied has verdicts before and after every step, so it knows
which principle a step under another one broke, and which were fixed only to be broken again
(`cai.revision_conflicts`). Nothing is asked of a model: the run's records are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.constitution import Constitution
from cai.errors import UserError
from cai.revision_conflicts import BrokenPair, broken_pairs, conflicts_of
from cai.revision_records import CHECKS, Satisfaction
from cai.trace.traced import artifact_above, run_config, run_manifest
from cai.types import RevisionChain

REVISIONS = "revisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the revisions of a run saw."""

    run: str
    """Name of its folder."""
    threshold: float
    num_chains: int
    num_steps: int
    pairs: tuple[BrokenPair, ...]
    """Oscillations first, then the commonest."""


def observed(run: str | None, document: Constitution) -> Observed | None:
    """The conflicts that a run saw; None where no run is named.

    Raises:
        UserError: when there is no such run, its revisions were of a fixed number, or it was under
            other principles.
    """
    if run is None:
        return None
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={run}: no such folder; name the folder of a finished run")
    config, manifest = run_config(folder), run_manifest(folder)
    digests = [row["digest"] for row in manifest["stages"] if row["stage"] == REVISIONS]
    again = f"Type its command again, what was done is kept: {manifest['command']}"
    if not digests:
        raise UserError(
            f"run={run} has no revisions (phase={config['phase']['name']}); an audit reads those "
            "of a run with phase.revisions.until=satisfied"
        )
    artifact = artifact_above(folder, REVISIONS, digests[0], again)
    if CHECKS not in artifact.manifest()["files"]:
        raise UserError(
            f"run={run} has a fixed number of revisions, and nothing checked which principles held "
            "between them; an audit reads a run with phase.revisions.until=satisfied"
        )
    under = manifest["constitution"]
    if under["digest"] != document.digest:
        raise UserError(
            f"run={run} was under another document, {under['name']} {under['version']} "
            f"({under['digest'][:8]}), than {document.name} {document.version} "
            f"({document.digest[:8]}); audit that one, or leave run out"
        )
    chains = artifact.records(RevisionChain)
    threshold = float(config["phase"]["revisions"]["threshold"])
    found = conflicts_of(chains, artifact.records(Satisfaction, CHECKS), threshold=threshold)
    return Observed(
        run=folder.name,
        threshold=threshold,
        num_chains=len(chains),
        num_steps=sum(len(chain.steps) for chain in chains),
        pairs=broken_pairs(chains, found),
    )


def observed_record(found: Observed) -> dict[str, Any]:
    """For `audit.json`."""
    return {
        "run": found.run,
        "threshold": found.threshold,
        "num_chains": found.num_chains,
        "num_steps": found.num_steps,
        "pairs": [
            {
                "broken": pair.broken,
                "under": pair.under,
                "num": pair.num,
                "num_oscillations": pair.num_oscillations,
                "prompt": pair.example.prompt.id,
                "round": pair.example.found.round,
                "before": pair.example.found.before,
                "after": pair.example.found.after,
            }
            for pair in found.pairs
        ],
    }


def observed_metrics(found: Observed) -> dict[str, float]:
    """Flat names and numbers."""
    return {
        "audit/observed_breaks": float(sum(pair.num for pair in found.pairs)),
        "audit/observed_oscillations": float(sum(p.num_oscillations for p in found.pairs)),
        "audit/observed_steps": float(found.num_steps),
    }
