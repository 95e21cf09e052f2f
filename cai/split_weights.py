"""FSDP2: the weights of a model that learns lie in parts on the ranks; layers are gathered for use.

By torch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277; per-parameter sharding of torch 2.4+)
on the device mesh of Lightning's `ModelParallelStrategy`. Split is what is large: a frozen base
under adapters, or all weights of the roles that learn, with gradients and moments; frozen roles
beside those rest in parts too. Adapters are small, whole on every rank, and their gradients are
summed as ever (`optimisation.sum_gradients`).

Only `fit` knows split weights. They are put on a twin of the modules; the modules themselves keep
their parameters, whose memory is given back until the weights are `whole` again: after training,
and for rollouts of PPO, where every rank samples and scores by itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from cai import ranks
from cai.full_weights import FullCopies, Tuned
from cai.recomputing import layers_of

TRUNK_PASS = "trunk_pass"
"""Method of a split language model: its trunk, with everything gathered that the head needs too."""


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be split; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A tensor split as a parameter is, without asking the other ranks."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )


def _split(modules: list[nn.Module], mesh: DeviceMesh, kept_whole: set[Parameter]) -> None:
    """Split the parameters of modules that run one after the other, inner ones first."""
    for module in modules:
        split = fully_shard(module, mesh=mesh, ignored_params=kept_whole)
        # Losses are divided by what the whole step has: gradients are added up.
        split.set_force_sum_reduction_for_comms(True)
        split.set_gradient_divide_factor(1.0)


def _split_model(model: Tuned, mesh: DeviceMesh) -> None:
    """Split a base under its adapters, or the copies that learn."""
    if isinstance(model, FullCopies):
        causals = [one for one in model.copies.values() if _learns(one)]
        kept_whole: set[Parameter] = set()
    else:
        causals = [model.get_base_model()]
        kept_whole = {p for name, p in model.named_parameters() if ".lora_" in name}
    for causal in causals:
        setattr(causal, TRUNK_PASS, causal.base_model.__call__)
        _split([*layers_of(causal), causal], mesh, kept_whole)
        register_fsdp_forward_method(causal, TRUNK_PASS)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _part_of(parameter: Parameter) -> Callable[[], Tensor]:
    """Keep this rank's part of a frozen parameter; what is returned gathers all of it."""
    world = ranks.world()
    size = -(-parameter.numel() // world.size)
    part = parameter.new_zeros(size)
    own = parameter.detach().flatten()[world.rank * size : (world.rank + 1) * size]
    part[: len(own)] = own

    def gather() -> Tensor:
        found = part.new_empty(size * world.size)
        dist.all_gather_into_tensor(found, part)
        return found[: parameter.numel()].view(parameter.shape)

    return gather


class _Resting:
    """A parameter that is whole only now and then.

    Args:
        parameter: Of the modules themselves.
        gather: Gives its value; every rank must ask.
    """

    def __init__(self, parameter: Parameter, gather: Callable[[], Tensor]) -> None:
        self.parameter = parameter
        self.gather = gather
        storage = parameter.untyped_storage()
        self.num_bytes = storage.nbytes()
        # A file that is mapped into memory, or memory of several parameters, stays.
        self.can_rest = storage.resizable() and self.num_bytes == parameter.nbytes

    def rest(self) -> None:
        """Give its memory back; of whoever shares it too."""
        if self.can_rest:
            self.parameter.untyped_storage().resize_(0)

    @torch.no_grad()
    def wake(self) -> None:
        """Take memory and the present value."""
        if self.can_rest:
            self.parameter.untyped_storage().resize_(self.num_bytes)
        value = self.gather()
        # Frozen weights come back as they were: what a graph saved of them is still right.
        with torch.autograd._unsafe_preserve_version_counter(self.parameter):
            self.parameter.copy_(value)


class SplitWeights:
    """The modules of a training, split over the ranks.

    Args:
        module: Its `model` and heads are replaced by split twins.
        mesh: One-dimensional, of all ranks.
    """

    def __init__(self, module: LightningModule, mesh: DeviceMesh) -> None:
        self.module = module
        self.own = dict(module.named_children())
        memo = {id(parameter): parameter for parameter in module.parameters()}
        self.twins = {name: copy.deepcopy(child, memo) for name, child in self.own.items()}
        all_learn = isinstance(self.own["model"], FullCopies)
        _split_model(self.twins["model"], mesh)
        if all_learn:  # so that all that learns is split, or nothing
            _split([twin for name, twin in self.twins.items() if name != "model"], mesh, set())
        self.resting = [
            resting
            for name, child in self.own.items()
            for resting in self._resting(child, self.twins[name])
        ]
        self._use(self.twins)
        for one in self.resting:
            one.rest()

    def _resting(self, own: nn.Module, twin: nn.Module) -> Iterator[_Resting]:
        """What of a module's parameters its twin has in parts, and what is frozen beside it."""
        twins = dict(twin.named_parameters())
        for name, parameter in own.named_parameters():
            split = twins[name]
            if isinstance(split, DTensor):
                yield _Resting(parameter, split.full_tensor)
            elif isinstance(own, FullCopies):
                yield _Resting(parameter, _part_of(parameter))

    def _heads(self) -> Iterator[tuple[Parameter, Parameter]]:
        """Parameters of the heads, and of their twins."""
        for name, own in self.own.items():
            if name != "model":
                yield from zip(own.parameters(), self.twins[name].parameters(), strict=True)

    def _use(self, children: dict[str, nn.Module]) -> None:
        for name, child in children.items():
            setattr(self.module, name, child)

    def split_all(self) -> None:
        """Give back what is gathered of layers."""
        for twin in self.twins.values():
            for part in twin.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    def join(self) -> None:
        """Put the modules themselves back, with all that was learned."""
        self.split_all()
        for one in self.resting:
            one.wake()
        self._use(self.own)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The modules themselves for a while, in which no role learns; a head may be changed."""
        self.join()
        yield
        with torch.no_grad():
            for head, split in self._heads():
                split.copy_(_like(head, split))
        for one in self.resting:
            one.rest()
        self._use(self.twins)


class FSDP(ModelParallelStrategy):
    """Lightning's strategy, with the checkpoints of one process: any number of ranks goes on."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size=ranks.world().size, tensor_parallel_size=1)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As without split weights."""
        return True

    def load_checkpoint(self, checkpoint_path: object, weights_only: bool | None = None) -> dict:
        """One file, on every rank."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def save_checkpoint(
        self, checkpoint: dict, filepath: object, storage_options: object | None = None
    ) -> None:
        """One file, by rank 0."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def lightning_module_state_dict(self) -> dict:
        """Nothing: the module tells what it has learned by itself."""
        return {}

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: dict, strict: bool = True) -> None:
        """Take this rank's parts of what was learned."""
        for name, parameter in self.lightning_module.named_parameters():
            if name in checkpoint["state_dict"]:
                parameter.copy_(_like(checkpoint["state_dict"][name], parameter))

    def optimizer_state(self, optimizer: Optimizer) -> dict:
        """Whole moments, as one process has them."""
        state = optimizer.state_dict()
        of = {
            number: {name: whole_tensor(value) for name, value in moments.items()}
            for number, moments in state["state"].items()
        }
        return state | {"state": of}

    def load_optimizer_state_dict(self, checkpoint: dict) -> None:
        """Take this rank's parts of the moments."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {
                    name: _like(value, parameters[number])
                    if value.shape == parameters[number].shape
                    else value
                    for name, value in moments.items()
                }
                for number, moments in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": parts})
