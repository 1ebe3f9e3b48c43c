"""What layers still cost where devices are counted, not priced: a shortest path over (depth, boundary, units left).

    left[d - 1][j][u]  =  min over stages (d, j, n, slot)   terms + left[d][j - n][u - units of the slot]

A unit is so many devices of a part that the table stays small; a slot takes as many whole units as it holds. Sums of
whole units stay within the whole units of a sum, so no pipeline that fits is left out. Prices average pipelines that
use too much of one part with others that use too little, and small stages with large ones; counts do not. Devices of
parts that have slots of other than whole units are priced beside, as the relaxation does: what no unit counts costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.search.deadline import look
from planner.search.mixed.relaxation import Relaxation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ROUNDING = 2e-5
MOST_UNITS = 1300
"""Numbers of units left, of all parts together, that a table may have."""


@dataclass(frozen=True)
class Packed:
    """``left`` is ``[rows, combination of units]``; ``unit``, ``stride`` and ``mu``, prices of a device, are by part.

    There is a ``row`` for every depth and boundary ``[deepest + 1, L + 1]`` where a stage begins, -1 for others. Its
    numbers have 24 bits: what is read from it is lowered by more than sums of them are rounded.
    """

    left: NDArray[np.float32]
    row: Ints
    unit: Ints
    stride: Ints
    mu: Floats

    def at(self, depth: int, i: Ints, idle: Ints) -> Floats:
        """Least cost of layers ``0..i`` with ``idle`` devices, ``[labels, parts]``, and ``depth`` stages behind."""
        left = self.left[self.row[depth, i], idle[:, : len(self.unit)].astype(np.int64) // self.unit @ self.stride]
        return left.astype(np.float64) * (1 - ROUNDING) - idle @ self.mu

    def whole(self, devices: Ints) -> float:
        """Least cost of all layers with all devices."""
        return float(self.at(0, np.array([-1]), devices[None])[0])


def packed(relaxed: Relaxation) -> Packed:
    """The table of a relaxation's stages and terms, with its best prices where units are too coarse."""
    stages, slots, unit = relaxed.stages, relaxed.stages.slots, units_of(relaxed.devices)
    left = np.unique(stages.slot)
    uneven = np.bincount(slots.part[left], slots.size[left] % unit[slots.part[left]], len(unit)) > 0
    best = relaxed.mus[0] if relaxed.mus else np.zeros(len(relaxed.there))
    mu = np.append(np.where(uneven, best[: len(unit)], 0.0), best[len(unit) :])  # what stages wait for has no units
    shape = tuple((relaxed.devices // unit + 1).tolist())
    left = np.full((stages.deepest + 1, relaxed.layers + 1, *shape), np.inf, dtype=np.float32)
    terms = relaxed.cost(mu).astype(np.float32)
    left[:, 0] = 0.0
    taken = (slots.size // unit[slots.part])[stages.slot]
    kind = (slots.part[stages.slot] * (int(taken.max(initial=0)) + 1) + taken) * (relaxed.layers + 1) + stages.n
    for depth in range(stages.deepest, 0, -1):
        look()
        a, b = stages.first[depth - 1 : depth + 1]
        order = a + np.lexsort((terms[a:b], stages.j[a:b], kind[a:b]))
        alike = (np.diff(kind[order], prepend=-1) == 0) & (np.diff(stages.j[order], prepend=-1) == 0)
        order = order[~alike]
        for mine in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1) if len(order) else []:
            one = int(mine[0])
            shift = int(slots.part[stages.slot[one]]), int(taken[one]), int(stages.n[one])
            _take(left, depth, shift, stages.j[mine], terms[mine])
    row = np.full(left.shape[:2], -1)
    row[0, -1] = row[stages.depth, stages.i] = 0
    begun = row == 0
    row[begun] = np.arange(begun.sum())
    stride = np.array([int(np.prod(shape[p + 1 :])) for p in range(len(shape))], dtype=np.int64)
    return Packed(left[begun].reshape(int(begun.sum()), -1), row, unit, stride, relaxed.prices(mu))


def _take(
    left: NDArray[np.float32], depth: int, shift: tuple[int, int, int], j: Ints, terms: NDArray[np.float32]
) -> None:
    """Lower ``left`` one depth nearer to the end by stages alike in part, units and layers, the ``shift``."""
    (part, count, n), there = shift, left.shape[2 + shift[0]]
    if count >= there:
        return
    before = np.moveaxis(left[depth], 1 + part, 1)[:, : there - count]
    after = np.moveaxis(left[depth - 1], 1 + part, 1)[:, count:]
    for some in np.split(np.arange(len(j)), np.flatnonzero(np.diff(j) != 1) + 1):
        low, high = int(j[some[0]]), int(j[some[-1]]) + 1
        cost = before[low - n : high - n] + terms[some].reshape(-1, *[1] * (before.ndim - 1))
        np.minimum(after[low:high], cost, out=after[low:high])


def units_of(devices: Ints) -> Ints:
    """Devices of a unit by part: 1 where the table stays small, else powers of 2, the largest part's grown first."""
    unit = np.ones(len(devices), dtype=np.int64)
    while np.prod(devices // unit + 1.0) > MOST_UNITS:
        unit[np.argmax(devices // unit)] *= 2
    return unit
