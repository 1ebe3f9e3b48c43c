"""Which rates a row's stages can have on hosts that differ: every best way to pack its host groups into blocks.

A row puts ``H`` hosts into each of ``G`` groups; a group runs one or more neighbouring stages, and its ``k``-th host
sends to the ``k``-th host of the next group. Two things about a packing are priced: each group's rate, the least of any
pair inside it, and the least rate of all pairs that hops use. With blocks as in :mod:`topologies.irregular` and
hops at rate ``beta_p``, the pairs that hops use lie inside blocks of ``beta_p``, so every group has equally many hosts
of each such block. Hence one of two:

    within    all groups in one block b of beta_p. At rate beta_q >= beta_p there is room for
                  N_q = sum over blocks c of beta_q inside b of floor(|c| / H)
              groups, and filling the finest blocks first reaches every N_q at once. N_p >= G makes it possible.
    spread    every group over the same blocks b of beta_p, all inside one block B of a lower rate beta_q:
                  sum over b inside B of floor(|b| / G) >= H
              All groups have the rate beta_q; of all such q the highest counts.

So the best packings are one vector ``min(N_q, G)`` and a hop rate each, a handful, without a solver; hosts that no
group needs stay idle. Which stage gets which group is left open: within a block any order is as good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.rows import Rows
from topologies.irregular import Irregular

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a row matters here: devices a host, hosts a group, groups, neighbouring stages of a group.

    Where replicas are kept apart also how many there are over hosts and inside one.
    """

    devices: int
    hosts: int
    groups: int
    stages: int
    replicas: int = 1
    inside: int = 1


@dataclass(frozen=True, slots=True)
class Option:
    """One packing: the level of its hops, how many groups have exactly the rate of each level, and where.

    ``block`` is one of level ``hop``, or where groups are ``spread`` over several such blocks, of their own level.
    """

    hop: int
    counts: tuple[int, ...]
    spread: bool
    block: int

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels that some group has, fastest first."""
        return tuple(q for q in range(len(self.counts) - 1, -1, -1) if self.counts[q])

    @property
    def at_least(self) -> tuple[int, ...]:
        """Groups at each level or a faster one."""
        return tuple(np.cumsum(self.counts[::-1])[::-1].tolist())


class Packing:
    """The packings of one cluster; each shape is worked out once."""

    def __init__(self, irregular: Irregular) -> None:
        self.irregular, self.blocks = irregular, irregular.blocks
        self.top = len(irregular.rates) - 1
        self._known: dict[Shape, tuple[Option, ...]] = {}

    def columns(self, rows: Rows) -> list[Ints]:
        """What else of rows decides their packings, ``[rows]`` each: nothing."""
        return []

    def options(self, shape: Shape) -> tuple[Option, ...]:
        """Every packing that no other equals in all groups and hops; none where the hosts do not suffice."""
        if shape not in self._known:
            able = np.array(self.irregular.devices) >= shape.devices
            found = [
                o for p in range(self.top + 1) for o in (*self._within(p, able, shape), *self._spread(p, able, shape))
            ]
            # One group has no hops between hosts: whatever rate they might have had is as good as the best.
            if shape.groups == 1:
                found = [Option(self.top, o.counts, o.spread, o.block) for o in found if o.hop == 0]
            self._known[shape] = _front(found)
        return self._known[shape]

    def _within(self, p: int, able: NDArray[np.bool_], shape: Shape) -> list[Option]:
        room = np.stack([self._sums(q, p, able, shape.hosts) for q in range(p, self.top + 1)])
        found = []
        for block in np.flatnonzero(room[0] >= shape.groups).tolist():
            upto = np.minimum(room[:, block], shape.groups)
            exactly = upto - np.append(upto[1:], 0)
            found.append(Option(p, (0,) * p + tuple(exactly.tolist()), False, block))
        return _front(found)

    def _spread(self, p: int, able: NDArray[np.bool_], shape: Shape) -> list[Option]:
        for q in range(p - 1, -1, -1):
            room = self._sums(p, q, able, shape.groups)
            if room.max() >= shape.hosts:
                counts = tuple(shape.groups * (level == q) for level in range(self.top + 1))
                return [Option(p, counts, True, int(np.argmax(room >= shape.hosts)))]
        return []

    def _sums(self, fine: int, coarse: int, able: NDArray[np.bool_], size: int) -> Ints:
        """For every block of level ``coarse`` the sum of ``floor(hosts / size)`` over its blocks of level ``fine``."""
        inner, outer = self.blocks[fine], self.blocks[coarse]
        sizes = np.bincount(inner[able], minlength=int(inner.max()) + 1)
        parent = np.zeros(len(sizes), dtype=np.int64)
        parent[inner] = outer
        return np.bincount(parent, weights=sizes // size, minlength=int(outer.max()) + 1).astype(np.int64)

    def hosts(self, shape: Shape, option: Option, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Positions of hosts, group after group, for groups of these levels; the lowest numbers that do."""
        able = np.array(self.irregular.devices) >= shape.devices
        if option.spread:
            return self._spread_hosts(shape, option, able)
        free = able & (self.blocks[option.hop] == option.block) if shape.groups > 1 else able
        waiting: dict[int, list[int]] = {
            level: [g for g, it in enumerate(levels) if it == level] for level in set(levels)
        }
        chosen: dict[int, list[int]] = {}
        for level in sorted(waiting, reverse=True):
            for group in waiting[level]:
                chosen[group] = self._first_room(level, free, shape.hosts)
                free[chosen[group]] = False
        return tuple(host for group in range(shape.groups) for host in chosen[group])

    def _first_room(self, level: int, free: NDArray[np.bool_], size: int) -> list[int]:
        """The first ``size`` free hosts of the first block of a level that has so many."""
        block = self.blocks[level]
        sizes = np.bincount(block[free], minlength=int(block.max()) + 1)
        enough = np.flatnonzero(free & (sizes[block] >= size))
        return np.flatnonzero(free & (block == block[enough[0]]))[:size].tolist()

    def _spread_hosts(self, shape: Shape, option: Option, able: NDArray[np.bool_]) -> tuple[int, ...]:
        """Equally many hosts of each block for every group, blocks in the order of their numbers."""
        (level,) = option.levels
        inside = able & (self.blocks[level] == option.block)
        fine, need, parts = self.blocks[option.hop], shape.hosts, []
        for block in dict.fromkeys(fine[inside].tolist()):
            members = np.flatnonzero(inside & (fine == block))
            each = min(need, len(members) // shape.groups)
            parts.append(members[: each * shape.groups].reshape(shape.groups, each))
            need -= each
        return tuple(np.concatenate(parts, axis=1).ravel().tolist())


def _front(found: list[Option]) -> tuple[Option, ...]:
    """Options that no other matches or beats in hops and in groups at every level; of equal ones the first."""
    kept: list[Option] = []
    for k, one in enumerate(found):
        better = (o for at, o in enumerate(found) if at != k and _covers(o, one) and (at < k or not _covers(one, o)))
        if not any(better):
            kept.append(one)
    return tuple(kept)


def _covers(one: Option, other: Option) -> bool:
    pairs = zip(one.at_least, other.at_least, strict=True)
    return one.hop >= other.hop and all(a >= b for a, b in pairs)
