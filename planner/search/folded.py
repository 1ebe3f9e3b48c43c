"""Schedules with two stages a device in the search: few cuts, so that every row is a few points.

All stages hold equally many layers but the first and the last, beside embedding and head, which may hold fewer or one
more. With ``f_c`` and ``b_c`` of the stages of a cut, ``m`` micro-batches through each, and ``h_c`` less for the ``k_c``
forwards and backwards that run beside each other, for every device ``d``

    step >= sum_{c<d} (f_c + hop) + sum_{c on d} (m (f_c + b_c) - k_c h_c) + update_d

of which a cut takes the largest (:mod:`cost_models.schedules`); ``k_c <= m``, so less of anything is never more. Memory is asked with one micro-batch of each of a
device's stages, which it holds for certain: the first stage's until what the last makes of it has come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from cost_models.bidirectional import beside
from cost_models.model_graph import ModelGraph
from cost_models.price import Prices, Ticks
from cost_models.rows import Rows
from cost_models.schedules import Schedule, may_run, virtual_stages_of
from planner.candidates import Space
from planner.search.bounds import Objective
from planner.search.screen import LEAST, Screen

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
VALUES_AT_ONCE = 2**22


class FoldedScreen(Screen):
    """Bounds and memory tests of rows under one such schedule; rows that it cannot run or cut are out."""

    def __init__(self, space: Space, limit_bytes: int, ticks: Ticks, kind: str) -> None:
        super().__init__(space, limit_bytes, ticks)
        self.kind, self.virtual = kind, virtual_stages_of(kind)

    def schedules(self, prices: Prices, objective: Objective, below: float) -> list[tuple[float, int, int, float]]:
        """``(bound, row, virtual stages, clock)`` of every row and clock with a bound under ``below``, best first."""
        return sorted(
            (float(bound), row, self.virtual, clock)
            for clock, bounds in self._by_clock(prices, objective).items()
            for row, bound in enumerate(bounds * LEAST)
            if bound < below
        )

    def _bounds(self, prices: Prices, virtual: Ints, objective: Objective, *, buffers: bool | None = None) -> Floats:
        return np.minimum.reduce(list(self._by_clock(prices, objective).values())) * LEAST

    def _by_clock(self, prices: Prices, objective: Objective) -> dict[float, Floats]:
        """Objective that no plan of a row can beat, by the one clock of all devices."""
        each = ((clock, prices.only(clock)) for clock in prices.clocks)
        return {
            clock: self._value(objective, least_of_cuts(at, self.model, self.kind, ticks_of_cuts), at)
            for clock, at in each
        }

    def of_cuts(self, prices: Prices, objective: Objective, cuts: Cuts) -> Floats:
        """Objective that no plan of the one row can beat under each cut, ``[cuts]``."""
        ticks = ticks_of_cuts(prices, cuts)[0]
        return np.array([self._value(objective, np.array([float(t)]), prices)[0] for t in ticks]) * LEAST

    def _fit(self, prices: Prices, *, buffers: bool) -> NDArray[np.bool_]:
        """Rows of which some cut fits with every layer recomputed as much as may be."""
        need = least_of_cuts(prices, self.model, self.kind, partial(self._need, buffers=buffers))
        return need <= self.limit

    def _need(self, prices: Prices, cuts: Cuts, *, buffers: bool) -> Ints:
        """Bytes that the fullest device needs at least, ``[rows, cuts]``."""
        held = cuts.held(prices.saved[self.recompute], ends=prices.saved["none"]) + cuts.held(prices.state_bytes)
        held[..., -1] += (prices.logits + prices.tied_bytes)[:, None]
        fixed = sum(size for name, size in prices.fixed.items() if buffers or name != "buffers")
        return cuts.of_devices(held).max(axis=-1) + fixed[:, None]

    def _most_virtual(self, rows: Rows) -> Ints:
        return np.full(len(rows), self.virtual, dtype=np.int64)


@dataclass(frozen=True)
class Cuts:
    """Every legal cut of a model under a schedule, ``table`` its boundaries ``[cuts, stages + 1]``."""

    model: ModelGraph
    schedule: Schedule
    table: Ints

    @staticmethod
    def of(model: ModelGraph, kind: str, pp: int) -> Cuts:
        """The cuts for one pp; ``schedule`` is of two micro-batches, for its shape."""
        schedule = Schedule(kind, pp, virtual_stages_of(kind), 2)
        return Cuts(model, schedule.half, legal_cuts(model.layers, pp * schedule.virtual))

    def held(self, table: NDArray, *, ends: NDArray | None = None) -> NDArray:
        """A ``[rows, kinds]`` table summed over every virtual stage, ``[rows, cuts, stages]``.

        Embedding and head have theirs in ``ends`` where that is another.
        """
        layers = table[:, np.array(self.model.order)]
        sums = np.concatenate([np.zeros_like(layers[:, :1]), np.cumsum(layers, axis=1)], axis=1)
        found = np.diff(sums[:, self.table], axis=-1)
        ends = table if ends is None else ends
        found[..., 0] += ends[:, -2:-1]
        found[..., -1] += ends[:, -1:]
        return found

    def of_devices(self, values: NDArray) -> NDArray:
        """``[..., stages]`` summed over the stages of every device, or of one of two alike, ``[..., pp]``."""
        pp = self.schedule.pp
        return values[..., :pp] + values[..., : pp - 1 : -1]


@lru_cache(maxsize=1024)
def legal_cuts(layers: int, stages: int) -> Ints:
    """``[cuts, stages + 1]`` boundaries: equal stages but those at the ends, of 1 to one more than the others' layers.

    None for the 2 stages of one device: without a pipeline there is no V.
    """
    found = []
    for size in range(1, layers // (stages - 2) + 1) if stages > 2 else ():
        rest = layers - size * (stages - 2)
        firsts = range(max(1, rest - size - 1), min(size + 1, rest - 1) + 1)
        found += [(first, *[size] * (stages - 2), rest - first) for first in firsts]
    sizes = np.array(found, dtype=np.int64).reshape(-1, stages)
    return np.concatenate([np.zeros((len(sizes), 1), dtype=np.int64), np.cumsum(sizes, axis=1)], axis=1)


def least_of_cuts(prices: Prices, model: ModelGraph, kind: str, of: Callable[[Prices, Cuts], NDArray]) -> Floats:
    """The least over all cuts of what ``of`` says of rows and cuts of one pp, ``[rows]``; infinite where none is."""
    least = np.full(len(prices.rows), np.inf)
    legal = may_run(kind, prices.rows.pp, prices.rows.micro_batches)
    for pp in np.unique(prices.rows.pp[legal]).tolist():
        cuts, index = Cuts.of(model, kind, pp), np.flatnonzero(legal & (prices.rows.pp == pp))
        parts = np.array_split(index, -(-index.size * cuts.table.size // VALUES_AT_ONCE)) if cuts.table.size else []
        for part in parts:
            least[part] = of(prices.take(part), cuts).min(axis=1)
    return least


def ticks_of_cuts(prices: Prices, cuts: Cuts) -> Ints:
    """Ticks that no plan of a row and cut can beat, ``[rows, cuts]``."""
    pp, hop = cuts.schedule.pp, prices.hop[:, None, None]
    m = prices.rows.micro_batches * pp // prices.rows.pp
    forward, backward, update = (cuts.held(table) for table in (prices.forward, prices.backward, prices.update))
    first = forward[..., :pp]
    before = np.cumsum(first, axis=-1) - first + np.arange(pp) * hop
    work = m[:, None, None] * (forward + backward) + update
    if prices.hidden:
        each = zip(beside(pp, m), (prices.hidden["forward"], prices.hidden["backward"]), strict=True)
        work = work - sum(times[:, None, :] * cuts.held(less) for times, less in each)
    return (before + cuts.of_devices(work)).max(axis=-1)
