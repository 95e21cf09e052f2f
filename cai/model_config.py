"""Types of a model's settings; `cai.config` says what holds for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from cai.choices import ModelSource
from cai.ranges import check, positive


@dataclass(kw_only=True, slots=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021); the base stays frozen."""

    rank: int
    alpha: int
    """Scale: the update is multiplied by alpha / rank."""
    target_modules: list[str]
    """Names of the linear layers that get an adapter."""

    def __post_init__(self) -> None:
        positive(self, "rank", "alpha")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A causal language model in one role."""

    name: str
    source: ModelSource
    path: str | None
    """Folder for `source: path`, id for `source: hub`, null for `embedded`."""
    revision: str | None
    """Commit of a hub model; null takes the newest."""
    max_context: int
    """Longest prompt plus response, in tokens; what does not fit is a counted outcome."""
    system_prompt: str | None
    """System turn of the policy's conversations; null leaves the chat template's own."""
    lora: LoRAConfig

    def __post_init__(self) -> None:
        positive(self, "max_context")
        if self.source is ModelSource.embedded:
            check(self.path is None, "path must be null for source=embedded")
        else:
            check(self.path is not None, f"path is needed for source={self.source.value}")
