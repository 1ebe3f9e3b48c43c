"""Gathered hidden states that are not kept: the backward pass gathers them a second time.

Under sequence parallelism a rank holds ``1 / tp`` of the hidden states, and each half of a layer gathers all of
them for its first products. Kept for the backward pass they would take ``2 b s h (1 - 1/tp)`` elements a layer
beyond what tensor parallelism is planned to leave; so the part is kept and gathered again.

Source: Korthikanti et al., arXiv:2205.05198, section 4.2.2 (the g operator stores only its part).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle

SEQUENCE = Shard(1)


class GatherAgain(ParallelStyle):
    """Gathers the first input of a module along the sequence, and again whenever its backward pass wants it."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward, first = module.forward, next(iter(inspect.signature(module.forward).parameters))

        def gathering(*args: Any, **kwargs: Any) -> Any:
            part = kwargs.pop(first) if first in kwargs else args[0]
            if not isinstance(part, DTensor):
                part = DTensor.from_local(part, device_mesh, [SEQUENCE], run_check=False)
            whole = part.redistribute(placements=[Replicate()])
            kept = _Kept(part.detach())
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
                return forward(whole, *args[1:], **kwargs)

        module.forward = gathering
        return module


class _Kept:
    """Stands in for the gathered tensor among what autograd keeps; gathers it once for all its readers.

    Where the backward pass is split they read twice, and it is gathered for each of the two.
    """

    def __init__(self, part: DTensor):
        self.part = part
        self.readers, self.read = 0, 0
        self.whole: DTensor | None = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | torch.Size:
        """The shape alone for a view of the gathered tensor: of all a half layer keeps, only that is replicated."""
        if not isinstance(tensor, DTensor) or tensor.numel() != self.part.numel() or isinstance(tensor, nn.Parameter):
            return tensor
        if tensor.placements != (Replicate(),):
            return tensor
        self.readers += 1
        return tensor.shape

    def unpack(self, kept: torch.Tensor | torch.Size) -> torch.Tensor:
        """The tensor that was packed."""
        if isinstance(kept, torch.Tensor):
            return kept
        if self.whole is None:
            self.whole = self.part.redistribute(placements=[Replicate()])
        whole = self.whole.view(kept)
        self.read += 1
        if self.read % self.readers == 0:
            self.whole = None
        return whole
