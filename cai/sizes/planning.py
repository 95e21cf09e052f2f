"""Sizes of a planned run: predicted from its settings, shown, and refused where they cannot fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cai.config import Config
from cai.constitution import Constitution
from cai.context import StageResult, StageStatus
from cai.sizes.device import device_memory
from cai.sizes.prediction import Sized, check_fits, sized, sizes_text
from cai.sizes.scene import scene_of
from cai.sizes.work import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the stages of a plan take."""

    config: Config
    scene: Scene | None
    """None: nothing is to be computed, or no model is asked."""
    stages: tuple[Sized, ...]
    limit: int | None
    """Bytes that a device has; None: it is not in this machine."""

    def text(self) -> str:
        """Memory and tokens as a table; "" when no model is asked."""
        return sizes_text(self.stages, limit=self.limit)

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            UserError: with the setting that would.
        """
        check_fits(self.stages, self.scene, self.config.hardware, limit=self.limit)


def predict(config: Config, document: Constitution, results: Sequence[StageResult]) -> Predicted:
    """Size the stages that a plan would compute.

    Args:
        config: The run.
        document: Its constitution.
        results: Of the phase, planned.
    """
    left = any(result.status is StageStatus.planned for result in results)
    scene = scene_of(config, document) if left else None
    stages = sized(results, scene) if scene is not None else []
    return Predicted(
        config=config,
        scene=scene,
        stages=tuple(stages),
        limit=device_memory(config.hardware),
    )


def plan_told(plan: str, predicted: Predicted) -> str:
    """A plan with its sizes behind it."""
    sizes = predicted.text()
    return f"{plan}\n\n{sizes}" if sizes else plan
