"""What stages of a mixed pipeline add up to at the least, devices counted: tables over (depth, boundary, devices left).

Of the layers before boundary ``i`` with ``d`` stages behind them and ``u`` units of devices left, and of those after
boundary ``j`` in ``d`` stages that take ``u`` units, ``t = f + b``:

    P[d][i][u] = min  t + 2 hop + P[d + 1][i'][u - taken]
    G[d][i][u] = min  max( t + 2 hop + (m - 2 - d) t ,  t + 2 hop + G[d + 1][i'][u - taken] )
    A[d][i][u] = min  t + 2 hop + A[d - 1][j][u - taken]

A unit is so many devices of a part that the tables stay small; a stage takes the whole units that it holds, and whole
units of parts of a sum are no more than those of the sum, so no pipeline that fits is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.checks.mixed_ways import NEVER, Choices, Ints, look_at_clock

NOTHING = -(2**60)


@dataclass(frozen=True)
class _Alike:
    """Stages of one depth, part and number of units: the least of each ``(i, j)``, sorted by ``j``; where each choice
    is among them."""

    part: int
    taken: int
    i: Ints
    j: Ints
    added: Ints
    own: Ints
    members: Ints
    place: Ints


class Counted:
    """The tables of the stages of every depth, ``[deepest + 1, L + 1, units of every part]``."""

    def __init__(self, stages: list[Choices], devices: Ints, m: int, layers: int, most: int, deadline: float) -> None:
        self.stages, self.m, self.layers, self.deadline = stages, m, layers, deadline
        self.unit = units(devices, most)
        self.shape = shape = tuple((devices // self.unit + 1).tolist())
        self.stride = np.array([int(np.prod(shape[p + 1 :])) for p in range(len(shape))], dtype=np.int64)
        self.alike = [list(self._alike(depth)) for depth in range(1, len(stages) + 1)]
        self.least = np.full((len(stages) + 1, layers + 1, *shape), NEVER, dtype=np.int64)
        self.worst = np.full_like(self.least, NEVER)
        self.least[:, 0], self.worst[:, 0] = 0, NOTHING
        for depth in range(len(stages), 0, -1):
            look_at_clock(deadline)
            for one in self.alike[depth - 1]:
                self._ahead(depth, one)

    def rest(self, depth: int, at: Ints, left: Ints) -> tuple[Ints, Ints]:
        """``P`` and ``G`` of layers before ``at`` with ``left`` devices, ``[pipelines, parts]``."""
        units_left = left // self.unit @ self.stride
        flat = (table[depth].reshape(self.layers + 1, -1)[at, units_left] for table in (self.least, self.worst))
        return next(flat), next(flat)

    def below(self, target: float) -> list[Choices]:
        """The stages of every depth that some pipeline below ``target`` may have."""
        behind = np.full(self.least.shape[1:], NEVER, dtype=np.int64)
        behind[(self.layers, *[0] * len(self.unit))] = 0
        kept = []
        for depth, stage in enumerate(self.stages, 1):
            look_at_clock(self.deadline)
            good, after = np.zeros(len(stage), dtype=bool), np.full_like(behind, NEVER)
            for one in self.alike[depth - 1]:
                mine = self._through(depth, one, behind) < target
                good[one.members] = mine[one.place]
                self._behind(one, behind, after)
            kept.append(stage.take(np.flatnonzero(good)))
            behind = after
        return kept

    def _alike(self, depth: int) -> Iterator[_Alike]:
        stage, rounds = self.stages[depth - 1], self.m - 1 - depth
        hop = 2 * np.minimum(stage.same, stage.across) if depth > 1 else np.zeros_like(stage.i)
        added = stage.ticks + hop
        own = added + rounds * stage.ticks if rounds >= 0 else np.full_like(added, NOTHING)
        taken = stage.size // self.unit[stage.part]
        kind = stage.part * (int(taken.max(initial=0)) + 1) + taken
        for one in np.flatnonzero(np.bincount(kind)).tolist():
            mine = np.flatnonzero(kind == one)
            part, units_taken = int(stage.part[mine[0]]), int(taken[mine[0]])
            if units_taken < self.shape[part]:
                i, j = stage.i[mine], stage.j[mine]
                fresh = np.append(True, (np.diff(i) != 0) | (np.diff(j) != 0))
                first, place = np.flatnonzero(fresh), np.cumsum(fresh) - 1
                least = (np.minimum.reduceat(values[mine], first) for values in (added, own))
                yield _Alike(part, units_taken, i[first], j[first], *least, mine, place)

    def _ahead(self, depth: int, one: _Alike) -> None:
        """Lowers ``P`` and ``G`` one depth nearer to the end."""
        axis, room, wide = 1 + one.part, self.least.shape[2 + one.part], (-1, *[1] * len(self.unit))
        before, below = (
            np.moveaxis(table[depth], axis, 1)[:, : room - one.taken][one.i] for table in (self.least, self.worst)
        )
        added, own = one.added.reshape(wide), one.own.reshape(wide)
        total = np.minimum(added + before, NEVER)
        highest = np.where(below >= NEVER, NEVER, np.maximum(own, _plus(below, added)))
        ends, start = np.unique(one.j, return_index=True)
        for table, values in ((self.least, total), (self.worst, highest)):
            after = np.moveaxis(table[depth - 1], axis, 1)[:, one.taken :]
            after[ends] = np.minimum(after[ends], np.minimum.reduceat(values, start))

    def _behind(self, one: _Alike, behind: Ints, after: Ints) -> None:
        """Lowers ``A`` of one stage more by these."""
        order = np.argsort(one.i, kind="stable")
        begins, start = np.unique(one.i[order], return_index=True)
        axis, room, wide = 1 + one.part, behind.shape[1 + one.part], (-1, *[1] * len(self.unit))
        cost = np.moveaxis(behind, axis, 1)[:, : room - one.taken][one.j[order]] + one.added[order].reshape(wide)
        there = np.moveaxis(after, axis, 1)[:, one.taken :]
        there[begins] = np.minimum(there[begins], np.minimum.reduceat(np.minimum(cost, NEVER), start))

    def _through(self, depth: int, one: _Alike, behind: Ints) -> Ints:
        """The least bound of any pipeline with each stage in it."""
        axis, room, wide = 1 + one.part, behind.shape[1 + one.part], (-1, *[1] * len(self.unit))
        turned = tuple(slice(None, None, -1) for _ in self.unit)
        work = np.moveaxis(behind, axis, 1)[:, : room - one.taken][one.j]
        rest, worst = (
            np.moveaxis(table[depth][:, *turned], axis, 1)[:, one.taken :][one.i] for table in (self.least, self.worst)
        )
        added, own = one.added.reshape(wide), one.own.reshape(wide)
        term = np.maximum(0, work + np.maximum(own, _plus(worst, added)))
        bound = np.minimum(work + added + rest, NEVER) + term
        return np.where((work >= NEVER) | (rest >= NEVER), NEVER, bound).reshape(len(one.i), -1).min(axis=1)


def _plus(below: Ints, added: Ints) -> Ints:
    return np.where(below == NOTHING, NOTHING, added + np.minimum(below, NEVER))


def units(devices: Ints, most: int) -> NDArray[np.int64]:
    """Devices that are counted as one, by part: powers of two, so that there are at most ``most`` numbers left."""
    unit = np.ones(len(devices), dtype=np.int64)
    while np.prod(devices // unit + 1.0) > most:
        unit[np.argmax(devices // unit)] *= 2
    return unit
