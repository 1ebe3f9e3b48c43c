"""The norm of all gradients of a job, each element counted once, and gradients scaled to at most so much.

    norm = sqrt( sum over ranks of  sum over parameters of |g_local|^2 / copies )

where ``copies`` are the ranks of a pipeline stage that hold the same elements: all of them, divided by the parts in
which a parameter is sharded over any axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate


def clip_gradients(
    parameters: Iterable[nn.Parameter], limit: float, stage_ranks: int, device: torch.device,
    owned: dict[int, int] | None = None,
) -> float:  # fmt: skip
    """Scale all gradients so that their norm is at most ``limit``; the norm before, the same on every rank.

    ``device`` is the mesh's, on which ranks without gradients reduce too. ``owned`` gives, by ``id``, how many ranks
    hold another parameter in the place of one (experts of a list); 0 where another stage counts it.
    """
    owned = owned or {}
    held = [(p, own_gradient(p)) for p in parameters if p.grad is not None]
    total = torch.zeros((), dtype=torch.float64, device=device)
    for parameter, gradient in held:
        total += gradient.double().square().sum() * (_parts(parameter) * owned.get(id(parameter), 1) / stage_ranks)
    dist.all_reduce(total)
    norm = math.sqrt(total.item())
    for _, gradient in held:
        gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def own_gradient(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a gradient, laid out as its parameter is."""
    gradient = parameter.grad
    if not isinstance(gradient, DTensor):
        return gradient
    if gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
        parameter.grad = gradient
    return gradient.to_local()


def _parts(parameter: nn.Parameter) -> int:
    """Into how many different parts ranks have cut a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not isinstance(placement, Replicate))
