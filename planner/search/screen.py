"""Which rows of a table may fit and beat the incumbent: cheap bounds first, dearer ones on what is left.

schedule    what no split of the layers beats, nothing recomputed        all rows
memory      whether some split fits with all recomputed                  rows whose bound is below the incumbent
recompute   what memory makes the slowest stage repeat                   rows that may fit
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from cost_models.clocks import FULL
from cost_models.offload import all_alike, lightest
from cost_models.price import Prices
from cost_models.rows import Rows
from cost_models.ticks import Ticks
from planner.candidates import Space
from planner.search.best_first import Sort, Way, best_first
from planner.search.bounds import Objective, dynamic_joules, fits_somehow, step_bound
from planner.search.deadline import look
from planner.search.even import even_values
from planner.search.interleaved import legal_virtual
from planner.search.recompute_bound import forced_interleaved, forced_recompute
from planner.search.tier_bound import memories_hold
from planner.search.trade_off import trade_off_bound

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SLACK = 1 - 1e-9
"""What rounding may add to a bound that is computed in floats."""
LEAST = 1 - 1e-12


class Screen:
    """Bounds and memory tests of the rows of one space under one limit of bytes a device.

    :class:`planner.search.scheduled.ScheduledScreen` says otherwise in ``sorts``, ``_bounds``, ``_fit`` and
    ``_most_virtual``.
    """

    def __init__(self, space: Space, limit_bytes: int, ticks: Ticks) -> None:
        self.model, self.limit, self.tick_s = space.model, limit_bytes, ticks.second
        self.pinned_recompute = space.pins.get("recompute")
        self.recompute = self.pinned_recompute or "full"
        self.pin = space.pins.get("virtual_stages")

    def first(self, prices: Prices, objective: Objective) -> Floats:
        """The bounds that :meth:`promising` begins with: memory and recompute are not looked at."""
        look()
        return self._bounds(prices, self._most_virtual(prices.rows), objective)

    def promising(
        self, prices: Prices, objective: Objective, below: float, *, buffers: bool
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """The best known bound of every row, and which rows may fit as far as it matters.

        A row whose bound reaches ``below`` without memory is not asked whether it fits. ``buffers`` says whether the
        rows' communication buffers are known.
        """
        look()
        virtual = self._most_virtual(prices.rows)
        bounds, may = self._bounds(prices, virtual, objective), np.ones(len(prices.rows), dtype=bool)
        near = np.flatnonzero(bounds < below)
        may[near] = self._fit(prices.take(near), buffers=buffers)
        index = near[may[near]]
        bounds[index] = self._bounds(prices.take(index), virtual[index], objective.take(index), buffers=buffers)
        return bounds, may

    def schedules(self, prices: Prices, objective: Objective, below: float) -> list[Way]:
        """``(bound, row, virtual stages, clock)`` of every legal schedule with a bound under ``below``, best first.

        Interleaved devices have one clock; the stages of 1F1B choose theirs, and full is named for all of them.
        """
        return list(best_first(self.sorts(prices, objective), lambda: below))

    def sorts(self, prices: Prices, objective: Objective) -> list[Sort]:
        """Every legal schedule of the rows by its number of virtual stages and clock.

        Of virtual stages each of the few cuts can be looked at, which is dearer than all other bounds.
        """
        found, alike = [], all_alike(prices)
        for virtual, legal in self._legal_virtual(prices.rows).items():
            index = np.flatnonzero(legal)
            if virtual == 1:
                bounds = self._plain(prices.take(index), objective.take(index), buffers=True)
                found.append(Sort(1, FULL, index, bounds * LEAST))
                continue
            exactly, mine = np.full(len(index), virtual), objective.take(index)
            for clock, bounds in self._interleaved(alike.take(index), (exactly, exactly), mine, buffers=True).items():
                dearer = partial(self._of_cuts, alike.only(clock), virtual, objective)
                found.append(Sort(virtual, clock, index, bounds * LEAST, dearer))
        return found

    def _fit(self, prices: Prices, *, buffers: bool) -> NDArray[np.bool_]:
        """Rows of which some split fits with every layer recomputed as much as may be."""
        may = fits_somehow(prices, self.model, self.limit, self.recompute, buffers=buffers)
        if prices.kept is not None:
            near = np.flatnonzero(may)
            may[near] = memories_hold(prices.take(near), self.model, self.limit, buffers=buffers)
        return may

    def _bounds(self, prices: Prices, virtual: Ints, objective: Objective, *, buffers: bool | None = None) -> Floats:
        """Objective that no plan of a row can beat, with up to ``virtual`` stages a device; infinite for 0.

        Recompute counts where ``buffers`` is given.
        """
        bounds = np.full(len(virtual), np.inf)
        if self.pin in (None, 1):
            bounds = self._plain(prices, objective, buffers)
        many = np.flatnonzero(virtual > 1)
        if len(many):
            several = (np.full(len(many), 2), virtual[many])
            by_clock = self._interleaved(all_alike(prices).take(many), several, objective.take(many), buffers)
            bounds[many] = np.minimum.reduce([bounds[many], *by_clock.values()])
        return np.where(virtual == 0, np.inf, bounds) * LEAST

    def _plain(self, prices: Prices, objective: Objective, buffers: bool | None) -> Floats:
        """1F1B, every stage with its own clock, layers offloading as they like."""
        bounds = self._plain_value(prices, objective, buffers)
        if not prices.slower:
            return bounds
        alone = [self._plain_value(prices.only(clock), objective, buffers) for clock in prices.clocks]
        traded = trade_off_bound(lightest(prices), self.model, objective) * SLACK
        return np.where(prices.rows.pp == 1, np.minimum.reduce(alone), np.maximum(bounds, traded))

    def _interleaved(
        self, prices: Prices, virtual: tuple[Ints, Ints], objective: Objective, buffers: bool | None
    ) -> dict[float, Floats]:
        """Virtual stages, by the one clock of all devices, whose layers offload alike."""
        return {
            clock: self._value(objective, self._interleaved_ticks(at, virtual, buffers), at)
            for clock, at in ((clock, prices.only(clock)) for clock in prices.clocks)
        }

    def _of_cuts(self, prices: Prices, virtual: int, objective: Objective, index: Ints) -> Floats:
        """The least objective of every even cut of some rows into so many virtual stages a device."""
        some = prices.take(index), virtual, objective.take(index)
        return even_values(self.model, *some, self.limit, self.pinned_recompute) * LEAST

    def _value(self, objective: Objective, ticks: Floats, prices: Prices) -> Floats:
        return objective.value(ticks * self.tick_s, dynamic_joules(prices, self.model))

    def _plain_value(self, prices: Prices, objective: Objective, buffers: bool | None) -> Floats:
        """1F1B, each price the least of any clock."""
        light = lightest(prices)
        ticks = step_bound(light, self.model, np.ones(len(prices.rows), dtype=np.int64))
        if buffers is not None:
            forced = forced_recompute(prices, self.model, self.limit, buffers=buffers)
            ticks = np.maximum(ticks, forced.one_f_one_b * SLACK)
        return self._value(objective, ticks, light)

    def _interleaved_ticks(self, prices: Prices, virtual: tuple[Ints, Ints], buffers: bool | None) -> Floats:
        """Virtual stages from the fewest to the most of ``virtual`` on a device."""
        ticks = step_bound(prices, self.model, virtual[1])
        if buffers is None:
            return ticks
        forced = forced_recompute(prices, self.model, self.limit, buffers=buffers).any_schedule
        forced = np.maximum(forced, forced_interleaved(prices, self.model, self.limit, virtual, buffers=buffers))
        return np.maximum(ticks, forced * SLACK)

    def _legal_virtual(self, rows: Rows) -> dict[int, NDArray[np.bool_]]:
        """For every number of virtual stages a device, the rows that may have it; 1 is 1F1B."""
        legal = {1: np.ones(len(rows), dtype=bool)}
        for pp in np.unique(rows.pp).tolist():
            mine = (rows.pp == pp) & (rows.micro_batches % pp == 0)
            for virtual in legal_virtual(self.model.layers, pp) if mine.any() else ():
                legal[virtual] = legal.get(virtual, np.zeros(len(rows), dtype=bool)) | mine
        return {virtual: which for virtual, which in legal.items() if self.pin in (None, virtual)}

    def _most_virtual(self, rows: Rows) -> Ints:
        """The number of virtual stages that a bound may assume: the most that is legal, 0 where none is."""
        values, inverse = np.unique(rows.pp, return_inverse=True)
        legal = [[v for v in (1, *legal_virtual(self.model.layers, int(pp))) if self.pin in (None, v)] for pp in values]
        most = np.array([max(v, default=0) for v in legal], dtype=np.int64)[inverse]
        divides = rows.micro_batches % rows.pp == 0
        return np.where(divides, most, 1 if self.pin in (None, 1) else 0)
