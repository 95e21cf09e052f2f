"""What the Lightning modules here have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from lightning.pytorch import LightningModule

from cai import ranks
from cai.full_weights import Tuned
from cai.optimisation import check_trained_state, trained_state
from cai.split_weights import SplitWeights

T = TypeVar("T")


class TrainedModule(LightningModule):
    """A base with roles, of which some learn, in optimizer steps of their own making.

    Args:
        model: Base with roles; what learns is the only thing that is trainable.
        stage: For messages and fault points.
    """

    def __init__(self, model: Tuned, *, stage: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.model = model
        self.stage = stage
        self.split: SplitWeights | None = None
        """While the weights lie in parts on the ranks (`hardware.strategy=fsdp`)."""

    def configure_model(self) -> None:
        """Split the weights, under a strategy that has a mesh of devices."""
        if self.device_mesh is not None and self.split is None:
            self.split = SplitWeights(self, self.device_mesh["data_parallel"])

    def turns(self, micro_batches: Sequence[T]) -> list[tuple[T, float]]:
        """This rank's micro-batches, and by what each counts: 1.

        Layers that are gathered for use want the same number of passes of every rank; whoever has
        fewer makes one more, which counts 0.
        """
        mine = [(micro, 1.0) for micro in ranks.share(micro_batches)]
        passes = -(-len(micro_batches) // ranks.world().size) if self.split else len(mine)
        return mine + [(micro_batches[-1], 0.0)] * (passes - len(mine))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Whole weights on every rank for a while, in which nothing is learned."""
        if self.split is None:
            yield
            return
        with self.split.whole():
            yield

    def join(self) -> None:
        """Whole weights on every rank, for good."""
        if self.split is not None:
            self.split.join()
            self.split = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained."""
        if self.split is not None:
            self.split.split_all()
        checkpoint["state_dict"] = trained_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another training's checkpoint."""
        check_trained_state(self, checkpoint["state_dict"])
