"""Schedules with two stages a device in the search: few cuts, so that every row is a few points.

All stages hold equally many layers but the first and the last, beside embedding and head, which may hold fewer or one
more. With ``f_c`` and ``b_c`` of the stages of a cut, ``m`` micro-batches through each, and ``h_c`` less for the
``k_c`` forwards and backwards that run beside each other, for every device ``d``

    step >= sum_{c<d} (f_c + hop) + sum_{c on d} (m (f_c + b_c) - k_c h_c) + m again_d + update_d

of which a cut takes the largest (:mod:`cost_models.schedules`); ``k_c <= m``, so less of anything is never more. Rows
of the same pp and micro-batches also have a path in common: the longest one of the first of them that was bounded,
which holds for all durations (:mod:`cost_models.critical_paths`). What a device holds too much it recomputes,
``again``: bytes of the moment when it holds most micro-batches, at the best rate of any layer, in as many micro-batches
as any stage holds. Memory is asked with one micro-batch of each of a device's stages, which it holds for certain: the
first stage's until what the last makes of it has come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from cost_models.bidirectional import beside
from cost_models.critical_paths import Path
from cost_models.long_paths import longest_path
from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from cost_models.rows import Rows
from cost_models.schedules import Schedule, may_run, virtual_stages_of
from cost_models.ticks import Ticks
from planner.candidates import Space
from planner.search.best_first import Sort
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
        self.paths: dict[tuple[int, int], Path] = {}

    def sorts(self, prices: Prices, objective: Objective) -> list[Sort]:
        """Every row, by the clock of all devices."""
        every = np.arange(len(prices.rows))
        by_clock = self._by_clock(prices, objective)
        return [Sort(self.virtual, clock, every, bounds * LEAST) for clock, bounds in by_clock.items()]

    def _bounds(self, prices: Prices, virtual: Ints, objective: Objective, *, buffers: bool | None = None) -> Floats:
        return np.minimum.reduce(list(self._by_clock(prices, objective, buffers).values())) * LEAST

    def _by_clock(self, prices: Prices, objective: Objective, buffers: bool | None = True) -> dict[float, Floats]:
        """Objective that no plan of a row can beat, by the one clock of all devices.

        What memory makes devices recompute counts unless ``buffers`` is ``None``.
        """
        ticks = partial(self._ticks, buffers=buffers)
        each = ((clock, prices.only(clock)) for clock in prices.clocks)
        return {
            clock: self._value(objective, least_of_cuts(at, self.model, self.kind, ticks), at) for clock, at in each
        }

    def of_cuts(self, prices: Prices, objective: Objective, cuts: Cuts) -> Floats:
        """Objective that no plan of the one row can beat under each cut, ``[cuts]``."""
        return self._value(objective, self._ticks(prices, cuts, buffers=True)[0].astype(float), prices) * LEAST

    def _ticks(self, prices: Prices, cuts: Cuts, *, buffers: bool | None) -> Ints:
        """Ticks that no plan of a row and cut can beat, ``[rows, cuts]``."""
        pp, m = int(prices.rows.pp[0]), prices.rows.micro_batches
        work, ticks = Work.of(prices, cuts), np.zeros((len(m), len(cuts.table)), dtype=np.int64)
        for count in np.unique(m).tolist():
            rows, shape = np.flatnonzero(m == count), Schedule(self.kind, pp, self.virtual, count).half
            again = np.zeros((len(rows), len(cuts.table), shape.pp), dtype=np.int64)
            if buffers is not None and self.recompute == "full":
                again = self._forced(prices.take(rows), cuts, shape, buffers=buffers)
            if (pp, count) not in self.paths:
                self.paths[pp, count] = work.path(shape, int(rows[0]), prices.hop)
            own = work.of_devices(rows, shape.micro_batches, prices.hop, again)
            ticks[rows] = np.maximum(own, work.along(self.paths[pp, count], rows, prices.hop, again))
        return ticks

    def _forced(self, prices: Prices, cuts: Cuts, shape: Schedule, *, buffers: bool) -> Ints:
        """Ticks a micro-batch that every device recomputes at least, ``[rows, cuts, pp]``."""
        kept = cuts.held(prices.saved["none"])
        moments = np.array([max(shape.moments(d), key=sum) for d in range(shape.pp)])
        held = kept[..., : shape.pp] * moments[:, 0] + kept[..., : shape.pp - 1 : -1] * moments[:, 1]
        over = held + self._states(prices, cuts, buffers=buffers) - self.limit
        each = np.maximum(over, 0) / moments.max(axis=1)
        return np.floor(each * _ticks_a_byte(prices)[:, None, None] * LEAST).astype(np.int64)

    def _states(self, prices: Prices, cuts: Cuts, *, buffers: bool) -> Ints:
        """Bytes of every device but for what backward needs, ``[rows, cuts, pp]``."""
        states = cuts.held(prices.state_bytes)
        states[..., -1] += (prices.logits + prices.tied_bytes)[:, None]
        fixed = sum(size for name, size in prices.fixed.items() if buffers or name != "buffers")
        return cuts.of_devices(states) + fixed[:, None, None]

    def _fit(self, prices: Prices, *, buffers: bool) -> NDArray[np.bool_]:
        """Rows of which some cut fits with every layer recomputed as much as may be."""
        need = least_of_cuts(prices, self.model, self.kind, partial(self._need, buffers=buffers))
        return need <= self.limit

    def _need(self, prices: Prices, cuts: Cuts, *, buffers: bool) -> Ints:
        """Bytes that the fullest device needs at least, ``[rows, cuts]``."""
        held = cuts.held(prices.saved[self.recompute], ends=prices.saved["none"])
        return (cuts.of_devices(held) + self._states(prices, cuts, buffers=buffers)).max(axis=-1)

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


def _ticks_a_byte(prices: Prices) -> Floats:
    """The least ticks that recomputing takes for a byte it spares, of any layer in any way, ``[rows]``."""
    least = np.full(len(prices.rows), np.inf)
    for choice in ("selective", "full"):
        spared = (prices.saved["none"] - prices.saved[choice])[:, :-2]
        rate = np.where(spared > 0, prices.extra[choice][:, :-2] / np.maximum(spared, 1), np.inf)
        least = np.minimum(least, rate.min(axis=1))
    return np.where(np.isfinite(least), least, 0.0)


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


@dataclass(frozen=True)
class Work:
    """What the stages of every cut take, ``[rows, cuts, stages]``; ``beside`` is what passes take less in pairs."""

    cuts: Cuts
    forward: Ints
    backward: Ints
    weights: Ints
    update: Ints
    hidden: tuple[Ints, Ints] | None

    @staticmethod
    def of(prices: Prices, cuts: Cuts) -> Work:
        """The work of rows of one pp under ``cuts``."""
        tables = (prices.forward, prices.backward, prices.weights, prices.update)
        hidden = tuple(cuts.held(prices.hidden[name]) for name in ("forward", "backward")) if prices.hidden else None
        return Work(cuts, *(cuts.held(table) for table in tables), hidden)

    def of_devices(self, rows: Ints, rounds: int, hop: Ints, again: Ints) -> Ints:
        """Ticks that no plan of some of the rows can beat by the work of each device alone, ``[rows, cuts]``.

        ``again`` is what each recomputes a micro-batch, ``[rows, cuts, pp]``.
        """
        pp = self.cuts.schedule.pp
        first = self.forward[rows][..., :pp]
        before = np.cumsum(first, axis=-1) - first + np.arange(pp) * hop[rows, None, None]
        work = rounds * (self.forward[rows] + self.backward[rows]) + self.update[rows]
        if self.hidden is not None:
            work = work - sum(times * less[rows] for times, less in zip(beside(pp, rounds), self.hidden, strict=True))
        return (before + self.cuts.of_devices(work) + rounds * again).max(axis=-1)

    def along(self, path: Path, rows: Ints, hop: Ints, again: Ints) -> Ints:
        """Ticks of a path for some of the rows, ``[rows, cuts]``; ``again`` is in any backwards of a device."""
        pp = self.cuts.schedule.pp
        inputs = (self.backward - self.weights)[rows] @ path.backward
        ticks = self.forward[rows] @ path.forward + inputs + self.weights[rows] @ path.weights
        if self.hidden is not None:
            ticks = ticks - sum(less[rows] @ times for less, times in zip(self.hidden, path.beside, strict=True))
        ticks = ticks + again @ np.minimum(path.backward[:pp], path.backward[: pp - 1 : -1])
        return ticks + path.hops * hop[rows, None] + self.cuts.of_devices(self.update[rows])[..., path.device]

    def path(self, schedule: Schedule, row: int, hop: Ints) -> Path:
        """The longest path of a row's first cut, each tail taken as what its device updates."""
        at = (row, 0)
        tail = self.cuts.of_devices(self.update[at])
        hidden = None if self.hidden is None else tuple(less[at] for less in self.hidden)
        return longest_path(
            schedule, self.forward[at], self.backward[at], int(hop[row]), tail, self.weights[at], hidden
        )
