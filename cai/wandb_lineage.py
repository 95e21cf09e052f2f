"""Artifacts of a run as wandb's: each names what it was computed from.

Stages are content-addressed, and so are these artifacts: `<stage>-<digest>`, the digest's first 16
characters, and `model-<sha256>` for a base model (its hash alone, no weights). From base to drafts,
comparisons, preference model and policy every step is in `metadata.inputs`, online and offline, and
in `metrics.jsonl`.

wandb draws its own graph from runs: what a run logged is its output, what it used is its input.
Online, what a run has not made itself (base models, stages found in the store) is used, not
logged, so runs that share stages hang together there. Offline this cannot be said, because
`use_artifact` raises without a server (wandb 0.31): such artifacts are logged as outputs with
`metadata.reused` true, and only `metadata.inputs` tells the lineage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.artifacts import DIGEST_CHARS, Artifact, write_json

if TYPE_CHECKING:
    import wandb

    from cai.context import StageResult

RECORDS = "records"
"""Kind of an artifact of which only the readable files are uploaded."""
READABLE = (".json", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """One artifact and the names of those that it was computed from."""

    name: str
    kind: str
    """`model`, `adapter` (whole folder) or `records` (its readable files)."""
    folder: Path
    inputs: tuple[str, ...]
    reused: bool
    """Not made by this run."""


def lineage_nodes(
    results: Sequence[StageResult], adapters: Sequence[Artifact], *, models: Path
) -> list[LineageNode]:
    """A run's artifacts, inputs before what was computed from them.

    Args:
        results: The run's table.
        adapters: Those artifacts of it whose weights are worth having.
        models: Folder into which the base models' hashes are written.
    """
    names = {result.artifact.digest: _name(result.artifact) for result in results}
    weights = {artifact.digest for artifact in adapters}
    bases: dict[str, LineageNode] = {}
    stages: dict[str, LineageNode] = {}
    for result in results:
        key = result.artifact.manifest()["key"]
        asked = tuple(dict.fromkeys(_model_hashes(key["identity"])))
        for sha256 in asked:
            bases[sha256] = _base(sha256, models)
        made_from = [names.get(one, one[:DIGEST_CHARS]) for one in key["inputs"].values()]
        stages[result.artifact.digest] = LineageNode(
            name=names[result.artifact.digest],
            kind="adapter" if result.artifact.digest in weights else RECORDS,
            folder=result.artifact.folder,
            inputs=(*(bases[sha256].name for sha256 in asked), *made_from),
            reused=result.status == "reused",
        )
    return [*bases.values(), *stages.values()]


def give(run: wandb.Run, node: LineageNode) -> None:
    """Hand an artifact to wandb; files are referred to, not copied, so they must stay."""
    import wandb

    metadata = {"inputs": list(node.inputs), "reused": node.reused}
    artifact = wandb.Artifact(node.name, type=node.kind, metadata=metadata)
    for path in sorted(node.folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if node.kind != RECORDS or path.suffix in READABLE:
            inside = path.relative_to(node.folder).as_posix()
            artifact.add_file(str(path), inside, skip_cache=True, policy="immutable")
    if node.reused and not run.offline:
        run.use_artifact(artifact)
    else:
        run.log_artifact(artifact)


def _name(artifact: Artifact) -> str:
    return f"{artifact.stage}-{artifact.digest[:DIGEST_CHARS]}"


def _base(sha256: str, models: Path) -> LineageNode:
    name = f"model-{sha256[:DIGEST_CHARS]}"
    folder = models / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "model.json", {"sha256": sha256})
    return LineageNode(name=name, kind="model", folder=folder, inputs=(), reused=True)


def _model_hashes(identity: Any) -> Iterator[str]:
    """Hashes of base models anywhere in what identifies a stage: of `model`, `critique_model`."""
    children = identity.items() if isinstance(identity, dict) else ()
    for name, value in children:
        if name.endswith("model") and isinstance(value, dict) and "sha256" in value:
            yield value["sha256"]
        yield from _model_hashes(value)
