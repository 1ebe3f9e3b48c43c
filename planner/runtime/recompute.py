"""Recomputing activations: all of a layer, or all but its matrix products and attention."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from cost_models.strategy import Recompute

Contexts = Callable[[], tuple[Any, Any]]
_aten = torch.ops.aten
SAVED = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._grouped_mm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
"""Operators whose results ``selective`` keeps; the cheap rest of the layer runs again in the backward pass."""


def recomputing(layer: nn.Module, kind: Recompute) -> nn.Module:
    """``layer`` that recomputes as ``kind`` says; itself for ``"none"``."""
    if kind == "none":
        return layer
    if kind == "full":
        return checkpoint_wrapper(layer)
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint_wrapper(layer, context_fn=contexts)


def recompute_inside(layer: nn.Module, kind: Recompute) -> None:
    """Make ``layer`` recompute as ``kind`` says, in place: its name and its parameters' names stay.

    All of it runs again, to the end: ranks that stop where they need no more leave others alone in an exchange.
    Buffers (running statistics) are changed by the first run alone.
    """
    if kind == "none":
        return
    forward = layer.forward
    options = {"use_reentrant": False, "early_stop": False}
    contexts = None
    if kind == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    if any(True for _ in layer.buffers()):
        contexts = functools.partial(_contexts_without_writes, layer, contexts or noop_context_fn)
    if contexts is not None:
        options["context_fn"] = contexts
    layer.forward = lambda *args, **kwargs: checkpoint(forward, *args, **options, **kwargs)


def _contexts_without_writes(layer: nn.Module, contexts: Contexts) -> tuple[Any, Any]:
    """The contexts of a run and of its recomputation, the latter on copies of the buffers."""
    run, again = contexts()
    return run, _on_copies(layer, again)


@contextlib.contextmanager
def _on_copies(layer: nn.Module, inner: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    held = [(owner._buffers, *it) for owner in layer.modules() for it in owner.named_buffers(recurse=False)]
    for buffers, name, buffer in held:
        buffers[name] = buffer.clone()
    try:
        with inner:
            yield
    finally:
        for buffers, name, buffer in held:
            buffers[name] = buffer


def _policy(context: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in SAVED else CheckpointPolicy.PREFER_RECOMPUTE


def kinds_by_layer(runs: list[list[tuple[int, Recompute]]]) -> list[Recompute]:
    """How each layer of the model recomputes, from the runs of every virtual stage in model order."""
    return [kind for stage in runs for count, kind in stage for _ in range(count)]
