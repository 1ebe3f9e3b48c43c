"""Collectives with a backward pass: what one rank does to a tensor on the way forward, and to its gradient back.

    name       forward                          backward
    enter      nothing                          sum over ranks
    add_up     sum over ranks                   nothing
    gather     every rank's part, joined        own part
    cut        own part                         every rank's part, joined
    collect    every rank's part, joined        own part of the sum over ranks
    exchange   rows to the ranks they are for   rows back to the ranks they came from

``enter`` and ``add_up`` stand around work that ranks share on one and the same input; ``gather`` and ``cut`` turn
split tensors into whole ones that all ranks go on with alike; ``collect`` is for tensors that every rank goes on
with differently, so that the parts of a gradient add up.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def enter(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """``x``, whose gradient is the sum of what every rank makes of it."""
    return _Enter.apply(x, group)


def add_up(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of every rank's ``x``, which all ranks go on with alike."""
    return _AddUp.apply(x, group)


def gather(x: torch.Tensor, dim: int, size: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The whole tensor of ``size`` along ``dim``, of which ranks hold chunks in their order."""
    return _Gather.apply(x, dim, size, group)


def cut(x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's chunk of a tensor that all ranks hold whole."""
    return _Cut.apply(x, dim, group)


def collect(x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Every rank's equal part along ``dim``, joined, for ranks that go on with it differently."""
    return _Collect.apply(x, dim, group)


def own_head(part: torch.Tensor, heads: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The whole one of ``heads`` that this rank needs, of which ranks, a multiple of these, hold parts in their order.

    ``[..., width / ranks]`` becomes ``[..., width / heads]``: neighbouring ranks get the same head, and the gradients
    that they make of it add up. With as many heads as ranks or more, all stays as it is.
    """
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    if heads >= count:
        return part
    return collect(part, -1, group).chunk(heads, -1)[rank * heads // count].contiguous()


def exchange(rows: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    """Rows ``[sum(received), ...]`` that other ranks had for this one; ``sent[r]`` of this rank's go to rank ``r``."""
    return _Exchange.apply(rows, sent, received, group)


def chunk_of(x: torch.Tensor, dim: int, rank: int, count: int) -> torch.Tensor:
    """Chunk ``rank`` of ``count`` as torch's ``Shard`` cuts them: all of the ceiling's size but the last ones."""
    each = -(-x.shape[dim] // count)
    start = min(rank * each, x.shape[dim])
    return x.narrow(dim, start, min(each, x.shape[dim] - start)).contiguous()


def _joined(x: torch.Tensor, dim: int, size: int, group: dist.ProcessGroup) -> torch.Tensor:
    count = dist.get_world_size(group)
    each = -(-size // count)
    padded = x.contiguous()
    if x.shape[dim] < each:
        room = list(x.shape)
        room[dim] = each - x.shape[dim]
        padded = torch.cat([x, x.new_zeros(room)], dim)
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts, dim).narrow(dim, 0, size).contiguous()


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, size: int, group: Any) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return _joined(x, dim, size, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        own = chunk_of(gradient, ctx.dim, dist.get_rank(ctx.group), dist.get_world_size(ctx.group))
        return own, None, None, None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
        ctx.dim, ctx.group, ctx.size = dim, group, x.shape[dim]
        return chunk_of(x, dim, dist.get_rank(group), dist.get_world_size(group))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _joined(gradient, ctx.dim, ctx.size, ctx.group), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return _joined(x, dim, x.shape[dim] * dist.get_world_size(group), group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        parts = gradient.chunk(dist.get_world_size(ctx.group), ctx.dim)
        own = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter_single(own, torch.cat(parts), group=ctx.group)
        return own, None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sent: list[int], received: list[int], group: Any) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _sent(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _sent(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def _sent(rows: torch.Tensor, sent: list[int], received: list[int], group: Any) -> torch.Tensor:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent, group=group)
    return found
