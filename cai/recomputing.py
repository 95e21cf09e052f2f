"""Activation checkpointing: a layer keeps only its input and is computed again on the way back.

Chen et al. 2016 (arXiv:1604.06174), by `torch.utils.checkpoint`. The numbers are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

_on = False


@contextlib.contextmanager
def recomputing(on: bool) -> Iterator[None]:
    """Have every pass with gradient compute its layers again on the way back, or not."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def layers_of(causal: PreTrainedModel) -> list[nn.Module]:
    """The layers of a language model that follow one another, as transformers names them."""
    kinds = set(causal._no_split_modules or ())
    layers = [module for module in causal.modules() if kinds & _names(module)]
    if not layers:
        raise AssertionError(f"{type(causal).__name__} names no layers; call `check_layers`")
    return layers


def _names(module: nn.Module) -> set[str]:
    """Its class and those that this is made of: FSDP makes one of its own."""
    return {kind.__name__ for kind in type(module).__mro__}


@contextlib.contextmanager
def checkpointed(
    causal: PreTrainedModel, way: Callable[[nn.Module], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Keep only the layers' inputs in passes with gradient, where `recomputing` asks for it.

    Args:
        causal: The language model.
        way: How a layer computes here, for the second time; autocast is torch's own affair.
    """
    if not _on or not torch.is_grad_enabled():
        yield
        return
    layers = layers_of(causal)
    for layer in layers:
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing here is random
            context_fn=partial(_contexts, way, layer),
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _contexts(
    way: Callable[[nn.Module], contextlib.AbstractContextManager[None]], layer: nn.Module
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Of the first time, when nothing is missing, and of the second."""
    return contextlib.nullcontext(), way(layer)
