"""The policy that learns, as an engine: how each round's weights get to what samples from them.

In this process that is a merged copy of the base, refreshed in place. Another engine gets the
round's adapter as a folder, under a name that no other round and no other weights have: vLLM keeps
what it has read of a prompt under the adapter's name, and would go on with the old weights' states.
The folder is on the disk that the server shares; it goes when the next round's has come.

With several ranks rank 0 writes the folder and all of them sample from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from cai import adapters, ranks
from cai.choices import EngineName
from cai.engines import Engine
from cai.full_weights import Tuned
from cai.models import POLICY, BaseModel
from cai.types import Message

PROBE = (Message(role="user", content="What is the capital of France?"),)
"""What a folder is checked with, here and where it is loaded; any text will do."""


class RolloutEngine(Protocol):
    """Samples from the policy as it is at the beginning of a round."""

    def updated(self, iteration: int) -> Engine:
        """The engine with the policy's weights of now."""
        ...

    def close(self) -> None:
        """Training is over."""
        ...


class MergedWeights:
    """A merged copy of the base in this process.

    Args:
        base: The policy's.
        model: Base with roles.
    """

    def __init__(self, base: BaseModel, model: Tuned) -> None:
        self.base = base
        self.model = model
        self.merged = adapters.merged_copy(model, POLICY)

    def updated(self, iteration: int) -> Engine:
        """The copy, merged anew."""
        adapters.refresh_merged(self.merged, self.model, POLICY)
        return self.base.generator(self.merged)

    def close(self) -> None:
        """Nothing is left anywhere."""


class PushedAdapter:
    """An adapter for an engine that has the base elsewhere.

    Args:
        base: The policy's, whose engine is another than this process.
        model: Base with adapters.
        folder: For the rounds' adapters; emptied.
        name: Of the stage.
    """

    def __init__(self, base: BaseModel, model: Tuned, *, folder: Path, name: str) -> None:
        self.base = base
        self.model = model
        self.folder = folder
        self.name = name
        self._kept: tuple[Engine, Path] | None = None
        if ranks.is_first():
            shutil.rmtree(folder, ignore_errors=True)

    def updated(self, iteration: int) -> Engine:
        """The engine with this round's adapter; the round before is forgotten.

        Raises:
            UserError: when the engine cannot have it, or computes something else with it.
        """
        folder = self.folder / f"{self.name}-{iteration:05d}"
        if ranks.is_first():
            adapters.save_adapter(
                self.model,
                POLICY,
                folder,
                base_id=self.base.base_id,
                base_sha256=self.base.sha256,
                probe_ids=self.base.prompt_ids(PROBE),
            )
        ranks.barrier()
        engine = self.base.with_adapter(folder)
        self.close()
        self._kept = engine, folder
        return engine

    def close(self) -> None:
        """Have the engine forget what it was given last; every rank has sampled from it."""
        if self._kept is not None and ranks.is_first():
            engine, folder = self._kept
            engine.forget()
            shutil.rmtree(folder)
        self._kept = None


def rollout_engine(base: BaseModel, model: Tuned, *, folder: Path, name: str) -> RolloutEngine:
    """What samples a policy's rollouts, by the engine of its base.

    Args:
        base: The policy's.
        model: Base with roles.
        folder: For what another engine reads, on a disk that it sees.
        name: Of the stage.
    """
    if base.config.engine.name is EngineName.transformers:
        return MergedWeights(base, model)
    return PushedAdapter(base, model, folder=folder.resolve(), name=name)
