"""Columns that no plan below the incumbent can hold, told apart by how slow the slowest inner stage is.

The work of all stages together says little where they may run at different clocks: fast stages wait for slow ones. With
``x`` the slowest of the stages between the first and the last, ``w = pp - 2`` of them, ``t_j`` the work of stage ``j``
on one micro-batch and ``r`` rounds past those stages (:func:`cost_models.critical_paths.round_path`), for ``m > pp``

    step >= t_0 + (2 + r) sum_{0<j<pp-1} t_j + 2 t_{pp-1} + (m - pp - r w) x + 2 ((pp - 1) + r (w - 1)) hop + tail_0

for ``r`` of 0 and ``floor((m - pp) / w)``: it is the return path of the slowest stage ``s``, in which the inner stages
up to ``s`` take at most ``s x``. Plans whose ``x`` lies from ``a`` to ``b`` have no inner stage above ``b``, and their
bound, weighed against their joules as in :mod:`planner.search.priced_out`, has ``a`` for ``x``. Ranges that are not
closed so are halved, the one with the least bound first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.columns import Columns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SLACK = 1 - 1e-11
MOST_RANGES = 64
"""Ranges looked at for one row at most."""
Through = Callable[[Floats], tuple[float, Floats]]
"""The least total of any cut for a cost of every column, and of the cuts that hold each column."""
Range = tuple[float, int, int, NDArray[np.bool_]]
"""A bound, from which of the times of inner stages to before which it holds, and the columns of plans below it."""


@dataclass(frozen=True)
class SlowPath:
    """What the path with so many rounds counts: how often each column's work, the slowest stage's, and hops' ticks."""

    passes: Ints
    slowest: int
    hops: int


def paths_of(chain: Chain, columns: Columns) -> list[SlowPath]:
    """The paths of the module; none where there are no two inner stages or no return paths through them."""
    pp, m, width = chain.pp, chain.micro_batches, chain.pp - 2
    if width < 2 or m <= pp:
        return []
    inner = (columns.stage > 0) & (columns.stage < pp - 1)
    return [
        SlowPath(
            np.where(inner, 2 + r, 1 + (columns.stage > 0)),
            m - pp - r * width,
            2 * (pp - 1 + r * (width - 1)) * chain.hop,
        )
        for r in {0, (m - pp) // width}
    ]


@dataclass(frozen=True)
class Weighing:
    """What a tick of the step and each column's joules weigh, for one ``u``."""

    per_tick: float
    joules: Floats


def priced_by_slowest(
    chain: Chain, columns: Columns, weighings: list[Weighing], through: Through, incumbent: float
) -> tuple[NDArray[np.bool_], float]:
    """Which columns may be part of a plan below ``incumbent``, and the bound of the row; 0 where it says nothing."""
    row = _Row(chain, columns, weighings, through, incumbent)
    if not row.paths or not len(row.times):
        return np.ones(len(columns), dtype=bool), 0.0
    ranges, looked = [row.bound(0, len(row.times))], 1
    keep, least = np.zeros(len(columns), dtype=bool), np.inf
    while ranges:
        bound, first, after, some = heapq.heappop(ranges)
        if bound >= incumbent or after - first == 1 or looked >= MOST_RANGES:
            least, keep = min(least, bound), keep | (some & (bound < incumbent))
            continue
        middle, looked = (first + after) // 2, looked + 2
        for here, there in ((first, middle), (middle, after)):
            heapq.heappush(ranges, row.bound(here, there))
    return keep, least


class _Row:
    """One row's ranges of the slowest inner stage."""

    def __init__(
        self, chain: Chain, columns: Columns, weighings: list[Weighing], through: Through, incumbent: float
    ) -> None:  # fmt: skip
        self.paths, self.weighings = paths_of(chain, columns), weighings
        self.through, self.incumbent = through, incumbent
        self.inner = (columns.stage > 0) & (columns.stage < chain.pp - 1)
        self.work, self.tail = columns.forward + columns.backward, np.where(columns.stage == 0, columns.tail, 0)
        self.times = np.unique(self.work[self.inner])

    def bound(self, first: int, after: int) -> Range:
        """Of plans whose slowest inner stage takes one of ``times[first:after]``."""
        slow, best = self.inner & (self.work > self.times[after - 1]), -np.inf
        keep = ~slow
        for path in self.paths:
            ticks = path.passes * self.work + self.tail
            for it in self.weighings:
                fixed = it.per_tick * (path.slowest * int(self.times[first]) + path.hops)
                total, rest = self.through(np.where(slow, np.inf, it.per_tick * ticks + it.joules))
                keep &= (rest + fixed) * SLACK < self.incumbent
                best = max(best, (total + fixed) * SLACK)
        return best, first, after, keep
