"""Which device of a cluster holds which part of a plan: hosts that run alike are one block of a picture.

A block is a host: a cell for each of its devices, coloured by pipeline stage, with the coordinates on the other axes.
Hosts whose devices differ in their copy of the batch alone (``dp``) are folded into one block, which says how many
they are and which copies they hold, so that a million devices are as many blocks as a pipeline has different hosts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.host_order import host_order, idle_hosts, shortened
from planner.ranks import GRID_ORDER, processes_per_host, rank_grid
from planner.result import Plan

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cell:
    """One device of the hosts of a block: its stage and coordinates, and the copies of the batch it has on them."""

    stage: int
    tp: int
    cp: int
    dp: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Hosts that run alike: their node ranks, names and racks, the cells of one, and its devices that stay idle.

    ``tiers`` says of every memory tier in use which part of the room its fullest device takes.
    """

    hosts: tuple[int, ...]
    names: str
    racks: str
    cells: tuple[Cell, ...]
    idle_devices: int
    tiers: tuple[tuple[str, float], ...]


def blocks(plan: Plan) -> list[Block]:
    """Every kind of host in use, by the first node rank of its hosts.

    Raises ``Unsupported`` for a plan whose hosts run unequally many ranks.
    """
    each = processes_per_host(plan.strategy, plan.cluster)
    table = _coordinates(plan).reshape(-1, each, 4)
    alike = table[:, :, :3].reshape(len(table), -1)
    _, first, inverse = np.unique(alike, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    members = np.split(np.argsort(inverse.ravel(), kind="stable"), np.cumsum(np.bincount(inverse.ravel()))[:-1])
    return [_block(plan, table, np.sort(members[k])) for k in order.tolist()]


def _coordinates(plan: Plan) -> Ints:
    """``[ranks, 4]``: stage, tp, cp and copy of the batch of every rank."""
    grid = rank_grid(plan.strategy)
    at = dict(zip(GRID_ORDER, np.indices(grid.shape), strict=True))
    copy = at["dp_replicate"] * plan.strategy.dp_shard + at["dp_shard"]
    table = np.empty((grid.size, 4), dtype=np.int64)
    table[grid.ravel()] = np.stack([at["pp"], at["tp"], at["cp"], copy], axis=-1).reshape(-1, 4)
    return table


def _block(plan: Plan, table: Ints, hosts: Ints) -> Block:
    one, copies = table[hosts[0]][:, :3].tolist(), table[hosts][:, :, 3].T.tolist()
    cells = tuple(Cell(*row, tuple(sorted(set(dp)))) for row, dp in zip(one, copies, strict=True))
    return Block(
        hosts=tuple(hosts.tolist()),
        names=_names(plan, hosts.tolist()),
        racks=_racks(plan, hosts),
        cells=cells,
        idle_devices=plan.cluster.devices_per_host - len(cells),
        tiers=tuple(_tiers(plan, {cell.stage for cell in cells})),
    )


def _names(plan: Plan, hosts: list[int]) -> str:
    order = host_order(plan)
    return shortened([order[host] for host in hosts]) if order else counted("host", hosts)


def counted(what: str, numbers: list[int]) -> str:
    """``host 3``, ``hosts 0-15`` or ``hosts 0, 2 .. 126``: runs and even steps are shortened, the rest is cut."""
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    if steps == {1}:
        return f"{what}s {numbers[0]}-{numbers[-1]}"
    if len(numbers) == 2:
        return f"{what}s {numbers[0]}, {numbers[1]}"
    return f"{what}s {numbers[0]}, {numbers[1]} {'..' if len(steps) == 1 else '...'} {numbers[-1]}"


def _racks(plan: Plan, hosts: Ints) -> str:
    """Racks in the order of the cluster's hosts; "" where nothing says how many hosts a rack holds."""
    each = plan.cluster.hosts_per_rack
    if each is None or plan.strategy.hosts:
        return ""
    return counted("rack", np.unique(hosts // each).tolist())


def _tiers(plan: Plan, stages: set[int]) -> Iterator[tuple[str, float]]:
    for tier in plan.tiers:
        need = max(tier.need_bytes[stage] for stage in stages)
        if need > 0:
            yield tier.tier, need / tier.room_bytes


def idle(plan: Plan) -> tuple[int, str]:
    """How many hosts the plan leaves idle, and which where that is known: regular ones are the last."""
    if plan.strategy.hosts:
        names = idle_hosts(plan)
        return len(names), shortened(names)
    left = list(range(plan.cluster.hosts_used, plan.cluster.hosts))
    return len(left), counted("host", left) if left else ""
