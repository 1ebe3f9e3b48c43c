"""Losses that are a mean over the targets of a whole global batch that count, whatever rank and micro-batch has them.

    L = 1/N  sum over targets that count of  -log p(target)          N: how many count in the global batch

Padding, targets of -100, counts nowhere and is spread unevenly. Schedules and data parallelism take means over the M
micro-batches of a rank and over R ranks with tokens of their own, so that each micro-batch gives M R / N times its sum.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
IGNORED = -100
"""torch's and Hugging Face's target that does not count."""


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of logits ``[..., classes]`` against the classes ``[...]`` that count, in fp32."""
    flat = logits.flatten(0, -2).float()
    return functional.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORED)


class TargetMean:
    """The loss above from the sum over a micro-batch; ``on_columns`` says that it wants logits as tp splits them."""

    def __init__(self, summed: Loss = summed_cross_entropy, on_columns: bool = False):
        self.summed, self.on_columns = summed, on_columns
        self.per_target = torch.ones(())

    def begin(self, targets: torch.Tensor, micro_batches: int, mesh: DeviceMesh) -> None:
        """Count the targets of a step: this rank's are ``targets``, and all ranks of its stage have to call it."""
        self.per_target = 1 / mean_count(targets, micro_batches, mesh)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.summed(logits, targets) * self.per_target


def mean_count(targets: torch.Tensor, micro_batches: int, mesh: DeviceMesh) -> torch.Tensor:
    """N / (M R): targets that count in the mean micro-batch of the ranks of ``mesh`` with tokens of their own."""
    counted, parts = (targets != IGNORED).sum(), micro_batches
    for axis in ("dp_replicate", "dp_shard"):
        if mesh[axis].size() > 1:
            dist.all_reduce(counted, group=mesh.get_group(axis))
            parts *= mesh[axis].size()
    return counted / parts


@contextlib.contextmanager
def own_loss_over(module: nn.Module, inputs: dict[str, Any], micro_batches: int, mesh: DeviceMesh) -> Iterator[None]:
    """While it lasts the module's own loss of its ``labels`` is the loss above, where Hugging Face computes it.

    That is so for language models that call ``loss_function``, which takes a sum and what to divide it by. Any other
    loss stays what the module makes it.
    """
    own = getattr(module, "loss_function", None) if "labels" in inputs else None
    takes = inspect.signature(own).parameters if own is not None else {}
    if "num_items_in_batch" not in takes:
        yield
        return
    shifted = inputs["labels"][..., 1:] if "shift_labels" in takes else inputs["labels"]
    count = mean_count(inputs.get("shift_labels", shifted), micro_batches, mesh)
    module.loss_function = functools.partial(own, num_items_in_batch=count)
    try:
        yield
    finally:
        module.loss_function = own
