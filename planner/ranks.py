"""Which rank holds which coordinate of the mesh: a placement turned into numbers, without torch.

Numbering. Inside each network level the axes are digits of a mixed-radix number, ``tp`` the fastest, then
``cp``, ``dp_shard``, ``dp_replicate`` and ``pp``; the digit of an axis at a level is its factor there. Level 0
gives the device inside a scale-up domain, the levels above it give the domain. An axis coordinate is in turn
the mixed-radix number of its digits, level 0 fastest. Ranks count devices in that order, and torchrun gives
each host a block of neighbouring ranks: hosts are numbered as the domains lie, and a domain fills its hosts
in order.
"""

from __future__ import annotations

import numpy as np

from cost_models.strategy import DENSE_ORDER
from planner.errors import BadInput, Unsupported
from planner.result import ClusterRecord, StrategyRecord

GRID_ORDER = tuple(reversed(DENSE_ORDER))
"""Dimensions of :func:`rank_grid`, outermost first: pp, dp_replicate, dp_shard, cp, tp."""


def world_size(strategy: StrategyRecord) -> int:
    """Ranks of the job: ``pp * dp_replicate * dp_shard * cp * tp``."""
    product = 1
    for axis in DENSE_ORDER:
        product *= getattr(strategy, axis)
    return product


def rank_grid(strategy: StrategyRecord) -> np.ndarray:
    """Rank at every coordinate, as an integer array ``[pp, dp_replicate, dp_shard, cp, tp]``.

    Along every single axis the ranks ascend, so a process group lists its members in mesh order.

    Raises ``BadInput`` for a placement whose factors do not multiply to the degrees.
    """
    factors = _factors(strategy)
    ranks = np.arange(world_size(strategy))
    coordinates = dict.fromkeys(DENSE_ORDER, 0)
    weights = dict.fromkeys(DENSE_ORDER, 1)
    rest = ranks
    for level in range(factors.shape[1]):
        for axis, factor in zip(DENSE_ORDER, factors[:, level].tolist(), strict=True):
            coordinates[axis] = coordinates[axis] + weights[axis] * (rest % factor)
            weights[axis] *= factor
            rest = rest // factor
    grid = np.empty([getattr(strategy, axis) for axis in GRID_ORDER], dtype=np.int64)
    grid[tuple(coordinates[axis] for axis in GRID_ORDER)] = ranks
    return grid


def _factors(strategy: StrategyRecord) -> np.ndarray:
    """Factors ``[axis, level]`` of the placement, checked against the degrees."""
    missing = [axis for axis in DENSE_ORDER if axis not in strategy.placement]
    if missing:
        raise BadInput(f"the placement names no factors for {missing}; give each axis one factor a network level")
    lists = [strategy.placement[axis] for axis in DENSE_ORDER]
    if len({len(factors) for factors in lists}) != 1 or not lists[0]:
        raise BadInput(f"the placement {strategy.placement} has axes with different numbers of network levels")
    for axis, factors in zip(DENSE_ORDER, lists, strict=True):
        if min(factors) < 1 or int(np.prod(factors)) != getattr(strategy, axis):
            raise BadInput(
                f"placement of {axis}: {' * '.join(map(str, factors))} = {int(np.prod(factors))}, "
                f"but {axis} = {getattr(strategy, axis)}; the factors of an axis multiply to its degree"
            )
    return np.array(lists)


def processes_per_host(strategy: StrategyRecord, cluster: ClusterRecord) -> int:
    """Processes that torchrun starts on each of the plan's hosts.

    Raises ``Unsupported`` when the hosts would need different numbers: torchrun's ``--nproc-per-node`` is one
    number, and the ranks would no longer lie as planned.
    """
    world, hosts = world_size(strategy), cluster.hosts_used
    if world != cluster.devices_used:
        raise BadInput(f"the strategy has {world} ranks, but the plan uses {cluster.devices_used} devices; plan again")
    each, left = divmod(world, hosts)
    if left or each > cluster.devices_per_host:
        raise Unsupported(
            f"uneven devices per host: {world} ranks on {hosts} hosts of {cluster.devices_per_host} devices do not "
            "divide evenly, and torchrun starts the same number of processes on every host; "
            "pin degrees whose product is a multiple of the hosts"
        )
    return each
