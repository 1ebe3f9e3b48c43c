"""Recomputing activations: all of a layer, or all but its matrix products and attention."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cost_models.strategy import Recompute

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
    """
    if kind == "none":
        return
    forward = layer.forward
    options = {"use_reentrant": False, "early_stop": False}
    if kind == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    layer.forward = lambda *args, **kwargs: checkpoint(forward, *args, **options, **kwargs)


def _policy(context: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in SAVED else CheckpointPolicy.PREFER_RECOMPUTE


def kinds_by_layer(runs: list[list[tuple[int, Recompute]]]) -> list[Recompute]:
    """How each layer of the model recomputes, from the runs of every virtual stage in model order."""
    return [kind for stage in runs for count, kind in stage for _ in range(count)]
