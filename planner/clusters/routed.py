"""Collectives of one strategy on the paths that they use: every group routed over ``cluster.graph()``.

A group sends as :mod:`cost_models.communication` says: inside a scale-up domain (inside a package, where devices are
parts of one) every device passes the whole volume on, between domains (and between the packages of a domain) one ring
for each member goes from its device to the one of the same place in the next. Of a volume 1, with ``n`` members and
``f`` of them inside, each such device sends ``(n - 1) / n / f``; in an all-to-all every member sends ``1 / n`` to every
other. Messages take the path on which a
byte takes the least time, edge after edge, and

    alone        load of an edge = what this group sends over it
    contended    load of an edge = what all groups of the axis, which work at the same time, send over it
    t_k          = max over the edges that messages of level k use and none of a level further in, load / bandwidth
    B_k          = W_k / t_k

An edge counts, both ways, for one level: a NIC is full of the same traffic whether that stays below a switch or not. A
ring's slowest level is its slowest edge either way; a tree's levels carry other parts of it.
``W_k`` is the closed form's volume of level k, so a group takes the closed form's seconds with these bandwidths. On
regular clusters that a strategy fills both agree; where devices stand idle the closed form charges for them, and the
graph does not. Where hosts differ the closed form is that of the slowest stage, at the rate of its worst pair of hosts,
as the plan is priced. Alone is a bound on contended. Tori are refused. Experts' own groups (ep, etp, edp) are not
routed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import networkx
import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import calibrate
from cost_models.communication import Operation, all_to_all_s, collective_s
from cost_models.placed import hosts_in_order, stage_rates
from cost_models.rows import Rows
from cost_models.strategy import DENSE_ORDER, Strategy
from planner.errors import BadInput
from planner.ranks import GRID_ORDER, rank_grid
from planner.strategy_record import StrategyRecord
from topologies.cluster import Cluster, Level
from topologies.inside_graph import without_insides

Ints = NDArray[np.int64]
Loads = dict[tuple[str, str], float]
Message = tuple[int, int, float]
MOST_DEVICES = 2048
VOLUME_BYTES = 1e9
GROUPS: dict[str, tuple[tuple[str, ...], Operation]] = {
    "tp": (("tp",), "all_gather"),
    "cp": (("cp",), "all_gather"),
    "dp_shard x cp": (("cp", "dp_shard"), "reduce_scatter"),
    "dp_replicate": (("dp_replicate",), "all_reduce"),
}
"""What is routed: the axes of a group and what it mostly does."""


@dataclass(frozen=True)
class Routed:
    """One axis: members of a group, and seconds of its collective on 1 GB in closed form, alone and with all others.

    Of several groups the slowest one counts.
    """

    axis: str
    operation: Operation
    members: int
    closed_s: float
    alone_s: float
    contended_s: float


def routed(cluster: Cluster, strategy: Strategy, operations: dict[str, Operation] | None = None) -> list[Routed]:
    """Every axis whose groups have several members; ``operations`` replaces the collective of an axis.

    Raises ``BadInput`` for tori, and above 2,048 devices: levels price such a cluster, and a graph of it says no more.
    """
    used = strategy.degrees.world_size
    if rings := [level.name for level in cluster.levels if level.ring]:
        raise BadInput(
            f"routing sends one ring through a scale-up domain, and {cluster.name!r} is a torus ({', '.join(rings)}), "
            "whose axes carry parts of a buffer at the same time; look at the closed form alone, as plan prices it"
        )
    if used > MOST_DEVICES:
        raise BadInput(
            f"routing follows every message, and {used} devices send too many; the limit is {MOST_DEVICES}: look at a "
            "strategy on fewer, or at the closed form alone"
        )
    roads = _Roads(cluster, strategy)
    asked = {name: (axes, (operations or {}).get(name, usual)) for name, (axes, usual) in GROUPS.items()}
    return [roads.routed(name, *it) for name, it in asked.items() if roads.members(it[0]) > 1]


class _Roads:
    """The graph of a cluster with the ranks of one strategy on it."""

    def __init__(self, cluster: Cluster, strategy: Strategy) -> None:
        self.cluster, self.rows, self.graph = cluster, Rows.of(strategy), cluster.graph()
        self.fits = calibrate(cluster)
        without_insides(self.graph)
        for _, _, edge in self.graph.edges(data=True):
            edge["s_per_byte"] = 1 / edge["bandwidth_bytes_per_s"]
        self.levels, self.grid = cluster.levels, rank_grid(StrategyRecord.of(strategy))
        self.priced = _priced_levels(cluster, strategy)
        self.place, self.units = _devices(cluster, self.rows, strategy)
        self.path = cache(self._path)

    def members(self, axes: tuple[str, ...]) -> int:
        return int(np.prod([self.rows.factors[axis][0] for axis in axes]))

    def routed(self, name: str, axes: tuple[str, ...], operation: Operation) -> Routed:
        """One axis, its slowest group."""
        factors = np.prod([self.rows.factors[axis] for axis in axes], axis=0)
        messages = [self._messages(group, operation) for group in self._groups(axes)]
        alone = [self._loads(some) for some in messages]
        together: Loads = defaultdict(float)
        for loads in alone:
            for edge, share in loads.items():
                together[edge] += share
        return Routed(
            name, operation, self.members(axes), self._seconds(operation, factors, self.priced),
            max(self._routed_s(operation, factors, m, loads) for m, loads in zip(messages, alone, strict=True)),
            max(self._routed_s(operation, factors, m, together) for m in messages),
        )  # fmt: skip

    def _groups(self, axes: tuple[str, ...]) -> Ints:
        """Ranks of every group, ``[groups, members]``."""
        inner = [GRID_ORDER.index(axis) for axis in axes]
        outer = [k for k in range(len(GRID_ORDER)) if k not in inner]
        return np.transpose(self.grid, (*outer, *inner)).reshape(-1, self.members(axes))

    def _messages(self, group: Ints, operation: Operation) -> list[Message]:
        """Sender, receiver and part of the volume of everything that a group sends."""
        ranks, n = np.sort(group), len(group)
        if operation == "all_to_all":
            return [(int(a), int(b), 1 / n) for a in ranks for b in ranks if a != b]
        passes = 2.0 if operation == "all_reduce" else 1.0
        share = passes * (n - 1) / n
        found, blocks = list[Message](), [ranks[k : k + 1] for k in range(n)]
        for unit in [*self.units, np.zeros_like(self.place)]:
            of_unit: dict[int, list[Ints]] = defaultdict(list)
            for block in blocks:
                of_unit[int(unit[block[0]])].append(block)
            for several in of_unit.values():
                rings = np.stack(several, axis=1) if len(several) > 1 else ()
                found += [it for ring in rings for it in _ring(ring, share / len(several[0]))]
            blocks = [np.concatenate(several) for several in of_unit.values()]
        return found

    def _path(self, a: int, b: int) -> list[tuple[str, str]]:
        ends = (f"device-{self.place[a]}", f"device-{self.place[b]}")
        _, nodes = networkx.bidirectional_dijkstra(self.graph, *ends, weight="s_per_byte")
        return list(itertools.pairwise(nodes))

    def _loads(self, messages: list[Message]) -> Loads:
        loads: Loads = defaultdict(float)
        for a, b, share in messages:
            for edge in self.path(a, b):
                loads[edge] += share
        return loads

    def _level(self, a: int, b: int) -> int:
        """The outermost level on which two ranks differ."""
        inside = [k for k, unit in enumerate(self.units) if unit[a] == unit[b]]
        if inside or self.cluster.irregular:
            return inside[0] if inside else len(self.units)
        sizes, domain = np.cumprod([level.fanout for level in self.levels[len(self.units) :]]), self.units[-1]
        return len(self.units) + int(np.argmax(domain[a] // sizes == domain[b] // sizes))

    def _routed_s(self, operation: Operation, factors: Ints, messages: list[Message], loads: Loads) -> float:
        """Seconds with the bandwidths that one group's messages find under these loads."""
        slowest, innermost = np.zeros(len(self.levels)), dict[frozenset[str], int]()
        for a, b, _ in messages:
            level, ways = self._level(a, b), map(frozenset, self.path(a, b))
            innermost |= {way: min(level, innermost.get(way, level)) for way in ways}
        for edge in {edge for a, b, _ in messages for edge in self.path(a, b)}:
            level = innermost[frozenset(edge)]
            slowest[level] = max(slowest[level], loads[edge] / self.graph.edges[edge]["bandwidth_bytes_per_s"])
        volumes = _volumes(operation, factors[0], self.fits.domain_levels)
        levels = tuple(
            dataclasses.replace(level, bandwidth_bytes_per_s=float(volume / t)) if t and volume else level
            for level, volume, t in zip(self.levels, volumes, slowest, strict=True)
        )
        return self._seconds(operation, factors, levels)

    def _seconds(self, operation: Operation, factors: Ints, levels: tuple) -> float:
        if operation == "all_to_all":
            return float(all_to_all_s(VOLUME_BYTES, factors, levels, self.fits)[0])
        return float(collective_s(operation, VOLUME_BYTES, factors, levels, self.fits)[0])


def _ring(members: Ints, share: float) -> Iterator[Message]:
    yield from ((int(a), int(b), share) for a, b in zip(members, np.roll(members, -1), strict=True))


def _volumes(operation: Operation, factors: Ints, domain_levels: int) -> NDArray[np.float64]:
    """``W_k`` of a volume of 1, ``[levels]``."""
    inside = np.concatenate([[1.0], np.cumprod(factors, dtype=np.float64)])
    if operation == "all_to_all":
        between = np.arange(len(factors)) >= domain_levels
        return np.where(between, 1 - inside[:-1] / inside[-1], np.diff(inside) / inside[-1])
    passes = 2.0 if operation == "all_reduce" else 1.0
    return np.where(factors > 1, passes * (inside[-1] - 1) / inside[-1] / inside[:-1], 0.0)


def _priced_levels(cluster: Cluster, strategy: Strategy) -> tuple[Level, ...]:
    """The levels that the closed form takes: where hosts differ, at the rate of the slowest stage's worst pair."""
    if cluster.irregular is None:
        return cluster.levels
    return cluster.at_rate(min(stage_rates(cluster, strategy)[0])).levels


def _devices(cluster: Cluster, rows: Rows, strategy: Strategy) -> tuple[Ints, list[Ints]]:
    """Number of every rank's device in the graph, and of what it is in up to its scale-up domain; of ``[ranks]``."""
    used = [int(np.prod([rows.factors[axis][0, k] for axis in DENSE_ORDER])) for k in range(len(cluster.levels))]
    rest = np.arange(strategy.degrees.world_size)
    if cluster.irregular is not None:
        host = np.array(strategy.hosts or hosts_in_order(cluster, rows))[rest // used[0]]
        first = np.concatenate([[0], np.cumsum(cluster.irregular.devices)])
        return first[host] + rest % used[0], [host]
    device, size = np.zeros_like(rest), 1
    for members, level in zip(used, cluster.levels, strict=True):
        device, rest, size = device + size * (rest % members), rest // members, size * level.fanout
    sizes = np.cumprod([level.fanout for level in cluster.levels[: cluster.domain_levels]])
    return device, [device // size for size in sizes]


def table_lines(found: list[Routed]) -> list[str]:
    """Milliseconds of 1 GB for every axis, as lines of text."""
    lines = ["axis            members  collective        closed ms   alone ms   with all others ms"]
    return lines + [
        f"{it.axis:14} {it.members:8,}  {it.operation.replace('_', '-'):14} {it.closed_s * 1e3:12.3f} "
        f"{it.alone_s * 1e3:10.3f} {it.contended_s * 1e3:20.3f}"
        for it in found
    ]
