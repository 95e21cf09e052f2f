"""A plan's stages with their sizes: the table, and the refusal of what cannot fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.context import StageResult, StageStatus
from cai.errors import UserError
from cai.hardware_config import HardwareConfig
from cai.model_config import LoRAConfig
from cai.sizes.memory import FLOAT
from cai.sizes.text import NAMES, cell, gigabytes, table
from cai.sizes.work import Scene, Trained, Work, work_of

LOADING = "loading a base"
"""What comes before every stage: a base beside the file that it is read from."""
SHARDS = {
    "drafts": ("phase.drafts.shard_size",),
    "helpfulness": ("phase.helpfulness.sampling.shard_size",),
    "pairs": ("phase.pairs.sampling.shard_size",),
    "samples": ("phase.samples.shard_size",),
    "responses": ("evaluation.sampling.shard_size",),
    "contrast_responses": ("evaluation.sampling.shard_size",),
    "revisions": ("phase.revisions.critique.shard_size", "phase.revisions.revision.shard_size"),
    "controls": ("phase.revisions.critique.shard_size", "phase.revisions.revision.shard_size"),
    "audit_pairs": ("phase.sampling.shard_size",),
}
"""Where the number of rows is that a stage samples together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A stage that would be computed, and what it takes."""

    name: str
    work: Work
    result: StageResult | None
    """None: loading."""


def sized(results: Sequence[StageResult], scene: Scene) -> list[Sized]:
    """The stages of a plan that would ask a model, each artifact once; loading first."""
    found = [Sized(name=LOADING, work=Work(memory=scene.extra + scene.loading), result=None)]
    seen: set[str] = set()
    for result in results:
        if result.status is not StageStatus.planned or result.artifact.digest in seen:
            continue
        seen.add(result.artifact.digest)
        work = work_of(result.name, result.key, result.counts, scene)
        if work is not None:
            found.append(Sized(name=result.name, work=work, result=result))
    return found if len(found) > 1 else []


def peak(stages: Sequence[Sized]) -> Sized:
    """The stage that takes most memory."""
    return max(stages, key=lambda one: one.work.memory.total)


def sizes_text(stages: Sequence[Sized], *, limit: int | None) -> str:
    """Memory of each kind of stage by component, and its tokens; "" when nothing asks a model.

    Args:
        stages: Those that would be computed.
        limit: Bytes that the device has; None: not known here.
    """
    if not stages:
        return ""
    rows = [("stage", *NAMES.values(), "sum", "reads", "writes", "learns")]
    by_name: dict[str, list[Sized]] = {}
    for one in stages:
        by_name.setdefault(one.name, []).append(one)
    for name, own in by_name.items():
        top = peak(own).work.memory
        tokens = [sum(getattr(one.work, part) for one in own) for part in _TOKENS]
        parts = top.parts()
        rows.append(
            (
                name if len(own) == 1 else f"{name} ({len(own)})",
                *(cell(parts[part]) for part in NAMES),
                cell(top.total),
                *(
                    f"{sign}{num:,}" if num else "-"
                    for sign, num in zip(_SIGNS, tokens, strict=True)
                ),
            )
        )
    top = peak(stages)
    has = "not known here: type hardware.memory_gb=<GB>" if limit is None else gigabytes(limit)
    return "\n".join(
        [
            *table(rows),
            "",
            f"Predicted memory of a device in GB, tokens by stage (~ about, <= at most: responses "
            f"may end early). Peak: {top.name}, {gigabytes(top.work.memory.total)}; the device has "
            f"{has}.",
        ]
    )


_TOKENS = ("read", "written", "learned")
_SIGNS = ("~", "<=", "<=")


def check_fits(
    stages: Sequence[Sized], scene: Scene | None, hardware: HardwareConfig, *, limit: int | None
) -> None:
    """Refuse a plan of which a stage has no place in the device's memory.

    Args:
        stages: Those that would be computed.
        scene: What they share; None without any.
        hardware: Of the run.
        limit: Bytes that the device has; None: not known here.

    Raises:
        UserError: with the setting that would fit.
    """
    if not hardware.check_memory or limit is None or scene is None or not stages:
        return
    top = peak(stages)
    if top.work.memory.total <= limit:
        return
    biggest = sorted(top.work.memory.parts().items(), key=lambda part: -part[1])[:3]
    told = ", ".join(f"{NAMES[name]} {gigabytes(num)}" for name, num in biggest)
    ways = list(_remedies(stages, scene, limit))
    fits = (
        f"This would fit: {'; or '.join(ways)}"
        if ways
        else "No setting of batches or precision is enough: choose a smaller model or a device "
        f"with more than {gigabytes(_least(stages, scene))}"
    )
    raise UserError(
        f"{top.name} would need {gigabytes(top.work.memory.total)} of memory, and the device has "
        f"{gigabytes(limit)} ({told}). {fits}. It is a prediction: to try all the same, type "
        "hardware.check_memory=false"
    )


def _total(stages: Sequence[Sized], scene: Scene, rows: float = 1.0) -> int:
    """The peak in another scene, or with a part of the rows that are sampled together."""
    found = [(scene.extra + scene.loading).total]
    for one in stages:
        if one.result is None:
            continue
        work = work_of(one.name, _fewer(one.result.key, rows), one.result.counts, scene)
        found.append(0 if work is None else work.memory.total)
    return max(found)


def _fewer(key: Mapping[str, Any], part: float) -> Mapping[str, Any]:
    """A stage's settings with a part of its rows."""

    def changed(value: object, name: str) -> object:
        if isinstance(value, Mapping):
            return {own: changed(inner, own) for own, inner in value.items()}
        if name in ("shard_size", "rollouts_per_iteration") and isinstance(value, int):
            return max(1, int(value * part))
        return value

    return {name: changed(value, name) for name, value in key.items()}


def _bf16(scene: Scene) -> Scene:
    """The scene in bfloat16; bases take half."""
    half = scene.extra.base // 2
    return dataclasses.replace(
        scene,
        place=dataclasses.replace(scene.place, number_bytes=2),
        extra=dataclasses.replace(scene.extra, base=half),
    )


def _lora(trained: Trained, lora: LoRAConfig) -> Trained:
    return dataclasses.replace(trained, lora=lora)


def _remedies(stages: Sequence[Sized], scene: Scene, limit: int) -> Iterator[str]:
    """Settings of which each alone makes the whole plan fit, as they are typed."""
    size = scene.micro_batch_size
    while size > 1:
        size //= 2
        if _total(stages, dataclasses.replace(scene, micro_batch_size=size)) <= limit:
            yield f"hardware.micro_batch_size={size}"
            break
    for part in (0.5, 0.25, 0.125, 0.0):
        if _total(stages, scene, part) <= limit:
            if typed := _rows_setting(stages, limit, part):
                yield typed
            break
    if scene.place.number_bytes == FLOAT and _total(stages, _bf16(scene)) <= limit:
        yield "hardware.precision=bf16"
    if scene.policy.lora is None:
        adapted = _with_adapters(scene)
        if _total(stages, adapted) <= limit:
            yield "model.adapter=lora"


def _with_adapters(scene: Scene) -> Scene:
    return dataclasses.replace(
        scene,
        policy=_lora(scene.policy, scene.spare),
        preference=_lora(scene.preference, scene.spare),
    )


def _rows_setting(stages: Sequence[Sized], limit: int, part: float) -> str:
    """The settings to be made smaller, of the stages that do not fit."""
    typed: dict[str, int] = {}
    for one in stages:
        if one.result is None or one.work.memory.total <= limit:
            continue
        config = one.result.key["config"]
        if "rollouts_per_iteration" in config:
            typed["phase.ppo.rollouts_per_iteration"] = max(
                1, int(config["rollouts_per_iteration"] * part)
            )
        for name in SHARDS.get(one.name, ()):
            section = config.get("sampling", config.get("revisions", config))
            own = section.get(name.split(".")[-2], section)
            typed[name] = max(1, int(own["shard_size"] * part))
    return " ".join(f"{name}={num}" for name, num in typed.items())


def _least(stages: Sequence[Sized], scene: Scene) -> int:
    """The least that the plan takes with the smallest batches and numbers."""
    least = dataclasses.replace(_bf16(scene), micro_batch_size=1)
    if least.policy.lora is None:
        least = _with_adapters(least)
    return _total(stages, least, 0.0)
