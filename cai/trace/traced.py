"""A finished run as a trace reads it: what its folder names, all of it checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cai.artifacts import MANIFEST, Artifact
from cai.attribution_record import FILE as ATTRIBUTION
from cai.attribution_record import SCHEMA_VERSION
from cai.errors import UserError
from cai.types import Evaluated, Prompt
from cai.yaml_nodes import did_you_mean

STAGES = {
    "rlaif": ("prompts", "revisions", "comparisons", "preference_model", "policy", "evaluation"),
    "dpo": ("prompts", "revisions", "comparisons", "dpo_policy", "evaluation"),
}
"""What a trace reads, by phase, in the order in which a run makes it."""
SCORES = "principle_scores"
NUM_SHOWN = 12
"""Ids that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRun:
    """A run folder and the artifacts that it names."""

    folder: Path
    phase: str
    config: dict[str, Any]
    """`config.yaml`."""
    manifest: dict[str, Any]
    attribution: dict[str, Any]
    """`attribution.json`."""
    artifacts: dict[str, Artifact]
    """By stage."""
    scores: tuple[Artifact, ...]
    """Of the stage `principle_scores`; empty where none were asked for."""

    @property
    def store(self) -> Path:
        """The store that has its artifacts."""
        return self.artifacts["prompts"].folder.parents[1]

    @property
    def learner(self) -> Artifact:
        """What learned the comparisons."""
        return self.artifacts["preference_model" if self.phase == "rlaif" else "dpo_policy"]

    @property
    def command(self) -> str:
        """What was typed for it."""
        return self.manifest["command"]


def open_run(run: str | None, *, output_dir: Path) -> TracedRun:
    """Find a run and everything of it that a trace reads.

    Raises:
        UserError: when there is no such run, it cannot be traced or was not finished, or an
            artifact of it is gone.
    """
    if run is None:
        raise UserError(
            f"phase=trace needs a run.\n  Type: run=<folder of a finished run>{_known(output_dir)}"
        )
    folder = Path(run).expanduser()
    if not folder.is_dir():
        names = [str(path) for path in _runs(output_dir)]
        hint = did_you_mean(str(folder), names)
        raise UserError(f"run={run}: no such folder.{hint}{_known(output_dir)}")
    config = run_config(folder)
    phase = str(config["phase"]["name"])
    if phase not in STAGES:
        raise UserError(
            f"run={run} is a run of phase={phase}; a trace is of phase=rlaif or phase=dpo, whose "
            "policies learn from AI comparisons alone"
        )
    manifest = run_manifest(folder)
    artifacts = _artifacts(folder, manifest, STAGES[phase])
    return TracedRun(
        folder=folder,
        phase=phase,
        config=config,
        manifest=manifest,
        attribution=_attribution(folder, manifest),
        artifacts={stage: artifacts[stage][0] for stage in STAGES[phase]},
        scores=artifacts[SCORES],
    )


def _runs(output_dir: Path) -> list[Path]:
    """Folders of runs that may be traced, the newest first."""
    found = [path.parent for phase in STAGES for path in output_dir.glob(f"{phase}/*/*/{MANIFEST}")]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _known(output_dir: Path) -> str:
    found = _runs(output_dir)[:NUM_SHOWN]
    if not found:
        return f"\n  {output_dir} has no run of phase=rlaif or phase=dpo"
    return "\n  Newest runs: " + ", ".join(map(str, found))


def run_config(folder: Path) -> dict[str, Any]:
    """What a run was set to.

    Raises:
        UserError: when the folder is no run's, or its config cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={folder} is no run folder: it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not isinstance(config, dict) or not isinstance(config.get("phase"), dict):
        raise UserError(f"{path}: is no config of a run")
    return config


def run_manifest(folder: Path) -> dict[str, Any]:
    """What a run made.

    Raises:
        UserError: when it was not finished, or the file is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"run={folder} was not finished: it has no {MANIFEST}, so it goes on or was killed. "
            "Type its command again (run.log has it); what was done is kept"
        )
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error


def _artifacts(
    folder: Path, manifest: dict[str, Any], stages: tuple[str, ...]
) -> dict[str, tuple[Artifact, ...]]:
    """Those of some stages and of the scores, each in the order of the run."""
    digests: dict[str, list[str]] = {}
    for row in manifest["stages"]:
        digests.setdefault(row["stage"], []).append(row["digest"])
    again = f"Type its command again, what was done is kept: {manifest['command']}"
    for stage in stages:
        if stage not in digests:
            raise UserError(
                f"run={folder} was not finished ({manifest['status']}): its stage {stage} is "
                f"missing. {again}"
            )
    return {
        stage: tuple(artifact_above(folder, stage, one, again) for one in digests.get(stage, ()))
        for stage in (*stages, SCORES)
    }


def artifact_above(folder: Path, stage: str, digest: str, again: str) -> Artifact:
    """An artifact of a run, in the store of a folder above it.

    Args:
        folder: The run's.
        stage: Its name.
        digest: The artifact's.
        again: What to do where it is gone, for the message.

    Raises:
        UserError: when it is gone.
    """
    for parent in folder.resolve().parents:
        artifact = Artifact(stage=stage, digest=digest, folder=parent / "store" / stage / digest)
        if artifact.complete:
            return artifact
    raise UserError(
        f"run={folder}: its artifact {stage}/{digest} is gone: no folder above the run has "
        f"store/{stage}/{digest}. {again}"
    )


def _attribution(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    path = folder / ATTRIBUTION
    again = f"Type its command again, every stage is reused: {manifest['command']}"
    if not path.is_file():
        raise UserError(
            f"run={folder} has no {ATTRIBUTION}: it failed before its report, or is of an older "
            f"version. {again}"
        )
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}). {again}") from error
    if found.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: is of another version of the program. {again}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The prompt of a trace, and every policy's response to it."""

    text: str
    """As it was typed."""
    policy: str | None
    """Whose response is asked about; None: the most trained policy's."""
    evaluated: tuple[Evaluated, ...]

    @property
    def prompt(self) -> Prompt:
        """What every policy answered."""
        return self.evaluated[0].response.prompt


def _evaluated(run: TracedRun) -> list[Evaluated]:
    try:
        return run.artifacts["evaluation"].records(Evaluated)
    except ValueError as error:
        raise UserError(
            f"{run.folder}: its responses were evaluated by another version of cai ({error}). Run "
            "the command in its manifest.json again, which computes only what changed"
        ) from error


def find_example(run: TracedRun, example: str | None) -> Asked:
    """The evaluated prompt of an id, or a response by `<prompt id>/<policy>`.

    Raises:
        UserError: when the run evaluated no such prompt or policy, or several of that id.
    """
    evaluated = _evaluated(run)
    ids = list(dict.fromkeys(e.response.prompt.id for e in evaluated))
    policies = list(dict.fromkeys(e.response.policy for e in evaluated))
    if example is None:
        raise UserError(
            "phase=trace needs an example: an evaluated prompt's id, or <id>/<policy>.\n"
            f"  Type: example={ids[0]}\n{_listed(ids, policies)}"
        )
    name, policy = example, None
    if example not in ids and "/" in example:
        name, _, policy = example.rpartition("/")
    own = tuple(e for e in evaluated if e.response.prompt.id == name)
    if not own:
        raise UserError(_unknown(run, example, name, ids, policies))
    if policy not in (None, *policies):
        hint = did_you_mean(policy, policies)
        raise UserError(
            f"example={example}: no policy is called {policy}.{hint} The run has "
            f"{', '.join(policies)}"
        )
    if len({e.response.prompt.kind for e in own}) > 1:
        raise UserError(
            f"example={example}: prompts of several kinds have this id, so it names no response"
        )
    return Asked(text=example, policy=policy, evaluated=own)


def _unknown(run: TracedRun, example: str, name: str, ids: list[str], policies: list[str]) -> str:
    trained = {p.id for p in run.artifacts["prompts"].records(Prompt, "train.jsonl")}
    if name in trained:
        why = "is a training prompt, and only held-out prompts are evaluated."
    else:
        why = f"is no evaluated prompt of this run.{did_you_mean(name, ids)}"
    return f"example={example} {why}\n{_listed(ids, policies)}"


def _listed(ids: list[str], policies: list[str]) -> str:
    more = f" and {len(ids) - NUM_SHOWN} more" if len(ids) > NUM_SHOWN else ""
    return (
        f"  Prompts: {', '.join(ids[:NUM_SHOWN])}{more}\n"
        f"  Responses: <prompt>/<policy>, with the policies {', '.join(policies)}"
    )
