"""A few balanced cuts of every row of a table, all at once, and what the objective is at least under each.

A cut balances the work of the stages or their numbers of layers, or fills memory from the last stage on. Each stage
takes the least recompute that fits, and the paths that need no schedule bound the step: only cuts that may still be as
good as the incumbent are run. Tables are ``[rows, most + 1]`` for the most stages of any row; boundaries after a row's
last are all ``L``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cost_models.chains import Chains
from cost_models.clocks import FULL
from cost_models.model_graph import ModelGraph
from cost_models.offload import lightest
from cost_models.price import Prices
from planner.search.bounds import Objective
from planner.search.columns import Columns, Segments, column_joules, quickest_columns
from planner.search.deadline import look

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST = 1 - 1e-12
"""What sums of joules, added in another order, may differ by."""


@dataclass(frozen=True)
class Balanced:
    """Boundaries ``[rows, cuts, most + 1]``, and the objective's least value, infinite where a cut is none."""

    boundaries: Ints
    least: Floats

    @staticmethod
    def of(model: ModelGraph, prices: Prices, objective: Objective, limit_bytes: int, pinned: str | None) -> Balanced:
        """The cuts of every row of ``prices``, their stages one a device.

        Where layers may offload differently these are of layers that no way undercuts: their passes are the shortest,
        with room for the least recompute, and a tail is longer by no more than its passes are shorter, which stand on
        every path before it. The joules of the quickest recompute grow with nothing, so where joules count too, or
        stages may have several clocks, no more is known than ``-inf``.
        """
        look()
        every = np.arange(len(prices.rows))
        rows = Chains(model, prices, every)
        found, some = balanced_cuts(rows, limit_bytes)
        least = np.where(some, -np.inf, np.inf)
        known = len(prices.clocks) == 1 and (prices.nearer is None or not objective.counts_joules)
        if known and some.any():
            rows = rows if prices.nearer is None else Chains(model, lightest(prices), every)
            plans = Plans.of(rows, found[some], np.nonzero(some)[0])
            least[some] = plans.least(objective, limit_bytes, pinned)
        return Balanced(found, least)

    def worth_running(self, row: int, pp: int) -> list[tuple[float, Ints]]:
        """The cuts of a row with their least objective, ``[pp + 1]`` each."""
        least, cuts = self.least[row], self.boundaries[row, :, : pp + 1]
        return [(least[k], cuts[k]) for k in np.flatnonzero(least < np.inf).tolist()]


@dataclass(frozen=True)
class Batch:
    """Rows that are evaluated together, under their limit of bytes a device and with the recompute that is pinned."""

    model: ModelGraph
    prices: Prices
    objective: Objective
    limit_bytes: int
    pinned: str | None

    @cached_property
    def balanced(self) -> Balanced:
        """Their balanced cuts."""
        return Balanced.of(self.model, self.prices, self.objective, self.limit_bytes, self.pinned)


@dataclass(frozen=True)
class Plans:
    """Stages of many cuts one after the other: ``segments`` say which rows they are of, ``first`` where a cut begins.

    ``row`` is each cut's row; ``stage``, ``i`` and ``j`` are each segment's.
    """

    segments: Chains
    row: Ints
    first: Ints
    stage: Ints
    i: Ints
    j: Ints

    @staticmethod
    def of(rows: Chains, cuts: Ints, row: Ints) -> Plans:
        """The stages of ``cuts``, ``[cuts, most + 1]``, of rows at positions ``row``."""
        pp = rows.pp[row]
        first, cut = np.cumsum(pp) - pp, np.repeat(np.arange(len(row)), pp)
        stage = np.arange(len(cut)) - first[cut]
        return Plans(rows.of(row[cut]), row, first, stage, cuts[cut, stage], cuts[cut, stage + 1])

    def least(self, objective: Objective, limit_bytes: int, pinned: str | None) -> Floats:
        """The objective that each cut is not below, ``[cuts]``; infinite for those that do not fit."""
        segments = Segments.alike(self.stage, self.i, self.j)
        columns, fit = quickest_columns(self.segments, FULL, segments, limit_bytes, pinned)
        dynamic = np.zeros(len(self.row))
        if objective.counts_joules:
            spent = np.add.reduceat(column_joules(self.segments, columns), self.first)
            dynamic = spent * self.segments.prices.rows.stage_size[self.row]
        step_s = self._ticks(columns) * self.segments.prices.ticks.second
        values = objective.take(self.row).value(step_s * LEAST, dynamic * LEAST) * LEAST
        return np.where(np.logical_and.reduceat(fit, self.first), values, np.inf)

    def _ticks(self, columns: Columns) -> Ints:
        """The longest of the paths that need no schedule, cuts of one schedule at a time."""
        which, ticks = self.segments.which[self.first], np.zeros(len(self.row), dtype=np.int64)
        for k in np.unique(which).tolist():
            mine, schedule = np.flatnonzero(which == k), self.segments.schedules[k]
            at = self.first[mine, None] + np.arange(schedule.pp)
            work = (columns.forward[at], columns.backward[at], self.segments.prices.hop[self.row[mine]])
            ticks[mine] = schedule.seed_table().longest(*work, columns.tail[at], columns.weights[at])
        return ticks


def balanced_cuts(rows: Chains, limit_bytes: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Boundaries ``[rows, 3, most + 1]`` by work, by number of layers, by memory, and which of them are cuts.

    Of equal ones the first is one.
    """
    pp, steps = rows.pp[:, None], np.arange(int(rows.pp.max(initial=1)) + 1)
    by_memory, whole = _by_memory(rows, limit_bytes)
    found = np.stack([_by_work(rows, steps), _even(rows, steps), by_memory], axis=1)
    found[np.broadcast_to(steps >= pp, by_memory.shape)[:, None].repeat(3, axis=1)] = rows.layers
    same = [(found[:, [k]] == found[:, :k]).all(axis=2).any(axis=1) for k in range(3)]
    fits = np.ones((len(found), 3), dtype=bool)
    fits[:, 2] = whole
    return found, fits & ~np.stack(same, axis=1)


def _even(rows: Chains, steps: Ints) -> Ints:
    base, spare = np.divmod(rows.layers, rows.pp[:, None])
    more = np.clip(steps - (rows.pp[:, None] - spare) // 2, 0, spare)
    return base * steps + more


def _by_work(rows: Chains, steps: Ints) -> Ints:
    """Cuts where the cumulated work, embedding and head included, passes each equal share."""
    pp, each = rows.pp[:, None], rows.of(np.s_[:, None])
    layers = np.arange(rows.layers + 1)
    work = each.forward(0, layers) + each.backward(0, layers)
    work[:, 0] = 0
    shares = work[:, -1:] * np.minimum(steps, pp) / pp
    inner = (work[:, None, :-1] < shares[:, :, None]).sum(axis=2)
    low, high = (np.take_along_axis(work, at, axis=1) for at in (np.maximum(inner - 1, 0), inner))
    nearer = np.abs(low - shares) < np.abs(high - shares)
    return spread(np.where(steps == 0, 0, np.where(steps >= pp, rows.layers, inner - nearer)), pp, rows.layers)


def spread(cuts: Ints, parts: Ints | int, layers: int) -> Ints:
    """The nearest cuts, ``[..., boundaries]``, each of whose ``parts`` has a layer."""
    steps = np.arange(cuts.shape[-1])
    cuts = np.maximum.accumulate(np.maximum(cuts, steps) - steps, axis=-1) + steps
    return np.minimum(cuts, layers - parts + steps)


def _by_memory(rows: Chains, limit_bytes: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Each stage, from the last, as full as memory lets it be, all recomputed; and rows of which all layers fit so."""
    pp, each, layers = rows.pp, rows.of(np.s_[:, None]), np.arange(rows.layers + 1)
    states = each.total(rows.prices.state_bytes, 0, layers, ends=False)
    kept, start, fits = each.saved("full", 0, layers), np.full(len(pp), rows.layers), np.ones(len(pp), dtype=bool)
    cuts = np.full((len(pp), int(pp.max(initial=1)) + 1), rows.layers)
    for stage in range(cuts.shape[1] - 2, -1, -1):
        some = np.flatnonzero(fits & (stage < pp))
        here, end, flight = rows.of(some), start[some], rows.flight(np.full(len(pp), stage))[some]
        held = states[some] + flight[:, None] * kept[some]
        over = held[np.arange(len(some)), end] - _room(here, stage, end, flight, limit_bytes)
        begin = np.maximum((held < over[:, None]).sum(axis=1), stage)
        fits[some] = begin < end if stage else begin == 0
        most = np.maximum(1, -(-end // (stage + 1))) if stage else end
        cuts[some, stage] = start[some] = np.where(fits[some], end - np.minimum(end - begin, most), end)
    return cuts, fits


def _room(rows: Chains, stage: int, end: Ints, flight: Ints, limit_bytes: int) -> Ints:
    """Bytes for layers of a stage that ends at ``end``: embedding, which the first has, and head taken off."""
    prices, row = rows.prices, rows.row
    ends = prices.state_bytes[row, -2:] + flight[:, None] * prices.saved["none"][row, -2:]
    head = ends[:, 1] + prices.logits[row] + (prices.tied_bytes[row] if stage else 0)
    return limit_bytes - rows.fixed_bytes - np.where(end == rows.layers, head, 0) - (0 if stage else ends[:, 0])
