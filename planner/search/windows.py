"""Columns, bounds and plans by the slowest window of stages: what no single stage shows, because hops come on top.

A micro-batch that leaves ``w`` stages in a row upwards lets another come down to them, so every ``w`` micro-batches a
window ``W`` of them goes round once (:func:`cost_models.critical_paths.round_path`). With ``t_j`` the work of stage
``j`` on one micro-batch and ``h`` a hop, the slowest window sets the period

    P = max over W of (sum_{j in W} t_j + 2 (w - 1) h) / w

and that fast stages beside slow ones hide the hops is its whole trade. The slowest window has one stage ``s`` from
which its path makes ``m - pp + s - 1`` rounds' worth of ``P`` with one micro-batch left over, and the stages before
``s`` are a window too, ``s P >= sum_{j<s} t_j + 2 (s - 1) h``; so under 1F1B, for ``m > pp``,

    step >= 2 sum t_j + (m - pp - 1) P + 2 (2 pp - 3) h + tail_0

Of plans with ``P`` from ``a`` to ``b`` no window takes more than ``w b``. With ``x_j = t_j - b + 2 h`` that says that
no run of ``x`` sums to more than ``2 h``, which a walk along the stages keeps by one number, the worst run that ends
here, ``k = max(0, k + x_j)``. The least weighed sum of ticks and joules (:mod:`planner.search.priced_out`) over all
such walks, with ``a`` in the place of ``P``, bounds those plans; ``k`` is kept in whole grains, rounded down. Ranges of
``P`` are halved, the one with the least bound first. The walk with the least sum is a plan, most often a good one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.budget import Budget
from planner.search.columns import Columns
from planner.search.cut_sums import Places, places_by_stage, sums_after, sums_before
from planner.search.deadline import look
from planner.search.priced_out import weighing
from planner.search.slowest import SLACK, Weighing

if TYPE_CHECKING:
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
GRAINS = 48
"""Grains of two hops in which the worst run of stages is counted."""
MOST_RANGES = 48
"""Ranges of the period looked at for one row at most."""
RANGES_A_UNIT = 30
"""Ranges that are swept in about a second on one 2 GHz core: measured, 15 to 60 on 32 to 64 stages."""
FINEST = 2e-4
"""Part of the incumbent that a range's bound leaves open by its width, below which it is not halved."""
MANY = 2000
"""Columns of a row in time from which on CP-SAT takes seconds over it; over fewer it is as quick as windows are."""
SHARES = tuple(np.linspace(0.0, 1.0, 13).tolist())
"""Weights of the step against the seconds that limits on power ask for the joules."""


@dataclass(frozen=True)
class Swept:
    """Columns of plans below the incumbent; a bound; plans, ``[plans, pp]`` positions of columns; ranges looked at."""

    keep: NDArray[np.bool_]
    bound: float
    plans: Ints
    ranges: int


@dataclass(frozen=True)
class _Stage:
    """One stage's columns at every boundary where they may begin; how places of one begin and of one end lie."""

    places: Places
    begins: tuple[Ints, Ints, Ints]
    ends: tuple[Ints, Ints, Ints]

    @staticmethod
    def of(places: Places) -> _Stage:
        return _Stage(places, _grouped(places.begin), _grouped(places.end))


def _grouped(boundary: Ints) -> tuple[Ints, Ints, Ints]:
    """An order by boundary, where each distinct one begins in it, and the distinct ones."""
    order = np.argsort(boundary, kind="stable")
    distinct, first = np.unique(boundary[order], return_index=True)
    return order, first, distinct


def has_windows(chain: Chain) -> bool:
    """Whether the module's bound says anything about a row."""
    return chain.schedule.kind == "1f1b" and chain.pp > 1 and chain.micro_batches > chain.pp and chain.hop > 0


def narrowed_by_windows(row: OpenRow, incumbent: float, budget: Budget) -> Ints:
    """Plans that look best, ``[plans, pp]`` positions in the columns of a row, which keeps those of better plans.

    Its bound rises too; nothing happens where :func:`has_windows` says nothing, nor where CP-SAT is as quick.
    """
    if not has_windows(row.chain) or not (row.objective.counts_joules or len(row.columns) > MANY):
        return np.zeros((0, row.chain.pp), dtype=np.int64)
    shares = SHARES if row.objective.power.given else SHARES[-1:]
    weighings = [weighing(row.chain, row.dynamic, row.objective, share) for share in shares]
    swept = by_windows(row.chain, row.columns, weighings, incumbent)
    budget.spend(swept.ranges / RANGES_A_UNIT)
    row.bound = max(row.bound, swept.bound)
    row.keep(np.flatnonzero(swept.keep))
    whole = swept.plans[swept.keep[swept.plans].all(axis=1)]
    return (np.cumsum(swept.keep) - 1)[whole]


def by_windows(chain: Chain, columns: Columns, weighings: list[Weighing], incumbent: float) -> Swept:
    """What the module says of a row (:func:`has_windows`) for plans below ``incumbent``; the bound is not above it."""
    row = _Row(chain, columns, weighings, incumbent)
    keep, least, plans, looked = np.zeros(len(columns), dtype=bool), incumbent, [], 1
    ranges = [row.range_of(*row.periods())]
    while ranges and ranges[0].bound < incumbent:
        at = heapq.heappop(ranges)
        plans.append(at.plans)
        if looked >= MOST_RANGES or row.narrow(at.last - at.first):
            least, keep = min(least, at.bound), keep | at.keep
            continue
        middle, looked = (at.first + at.last) // 2, looked + 2
        for ends in ((at.first, middle), (middle, at.last)):
            heapq.heappush(ranges, row.range_of(*ends))
    if len(np.unique(columns.stage[keep])) < chain.pp:
        keep, least = np.zeros_like(keep), incumbent  # weighings apart leave a stage nothing: no plan is below it
    found = np.unique(np.concatenate([*plans, np.zeros((0, chain.pp), dtype=np.int64)]), axis=0)
    return Swept(keep, least, found, looked)


@dataclass(frozen=True)
class _Range:
    """Periods from ``first`` to ``last``: a bound of their plans, columns of those below the incumbent, good plans."""

    bound: float
    first: int
    last: int
    keep: NDArray[np.bool_]
    plans: Ints

    def __lt__(self, other: _Range) -> bool:
        return (self.bound, self.first) < (other.bound, other.first)


class _Row:
    """One row's ranges of the period."""

    def __init__(self, chain: Chain, columns: Columns, weighings: list[Weighing], incumbent: float) -> None:
        self.chain, self.columns, self.weighings, self.incumbent = chain, columns, weighings, incumbent
        self.work = columns.forward + columns.backward
        ticks = 2 * self.work + np.where(columns.stage == 0, columns.tail, 0)
        self.cost = np.stack([it.per_tick * ticks + it.joules for it in weighings], axis=1)
        self.per_tick = np.array([it.per_tick for it in weighings])
        self.rounds, self.hops = chain.micro_batches - chain.pp - 1, 2 * (2 * chain.pp - 3) * chain.hop
        places = places_by_stage(chain, columns.stage, columns.i, columns.j - columns.i)
        self.stages = [_Stage.of(it) for it in self._possible(places)]

    def _possible(self, places: list[Places]) -> list[Places]:
        """The places of plans whose work and joules alone, at the least period, leave them below the incumbent."""
        least = self.fixed(self.least_period())
        keep = [np.ones(len(it.column), dtype=bool) for it in places]
        for cost, fixed in zip(self.cost.T, least, strict=True):
            ahead, behind = (sums(self.chain, places, cost) for sums in (sums_before, sums_after))
            for s, it in enumerate(places):
                through = ahead[s][it.begin] + cost[it.column] + behind[s + 1][it.end]
                keep[s] &= (through + fixed) * SLACK < self.incumbent
        return [Places(it.column[some], it.begin[some], it.end[some]) for it, some in zip(places, keep, strict=True)]

    def fixed(self, period: int) -> Floats:
        """What plans of at least that period cost whatever their columns are, ``[weighings]``."""
        return self.per_tick * (self.rounds * period + self.hops)

    def narrow(self, width: int) -> bool:
        """Whether halving a range of that width would hardly raise its bound."""
        return width <= 1 or float(self.per_tick.max()) * self.rounds * width < FINEST * self.incumbent

    def least_period(self) -> int:
        """A period that every plan has at least: its fullest stage's."""
        least = np.full(self.chain.pp, self.work.max(initial=0))
        np.minimum.at(least, self.columns.stage, self.work)
        return int(least.max())

    def periods(self) -> tuple[int, int]:
        """The least and the greatest period of plans below the incumbent."""
        first = self.least_period()
        most = self.work.max(initial=0) + 2 * self.chain.hop
        for cost, per_tick in zip(self.cost.T, self.per_tick, strict=True):
            if per_tick > 0 and self.rounds > 0:
                least = float(sums_before(self.chain, [it.places for it in self.stages], cost)[-1][-1])
                left = (self.incumbent / SLACK - least - per_tick * self.hops) / (per_tick * self.rounds)
                most = min(most, max(left, first - 1))
        return first, max(first, int(most) + 1)

    def range_of(self, first: int, last: int) -> _Range:
        """The bound of plans with a period from ``first`` to ``last``."""
        look()
        grain = 2 * self.chain.hop
        shift = ((self.work - last + grain) * GRAINS) // grain
        after = self._after(shift)
        totals = after[0][0, 0] + self.fixed(first)
        keep = np.zeros(len(self.columns), dtype=bool)
        if (bound := float(totals.max()) * SLACK) < self.incumbent:
            keep = self._kept(shift, after, self.fixed(first))
        return _Range(bound, first, last, keep, self._walks(shift, after, totals))

    def _after(self, shift: Ints) -> list[Floats]:
        """The least cost of the stages from each on, ``[L + 1, grains + 1, weighings]``, by boundary and worst run."""
        later = np.full((self.chain.layers + 1, GRAINS + 1, len(self.weighings)), np.inf)
        later[-1] = 0.0
        found = [later]
        for stage in reversed(self.stages):
            order, first, distinct = stage.begins
            worth, later = self._onwards(stage.places, shift, later)[order], np.full_like(later, np.inf)
            if len(order):
                later[distinct] = np.minimum.reduceat(worth, first, axis=0)
            found.append(later)
        return found[::-1]

    def _onwards(self, it: Places, shift: Ints, later: Floats) -> Floats:
        """The least cost from each place of one stage on, ``[places, grains + 1, weighings]``, by the run before it."""
        run = np.maximum(np.arange(GRAINS + 1) + shift[it.column, None], 0)
        costs = later[it.end[:, None], np.minimum(run, GRAINS)] + self.cost[it.column, None]
        costs[run > GRAINS] = np.inf
        return costs

    def _kept(self, shift: Ints, after: list[Floats], fixed: Floats) -> NDArray[np.bool_]:
        """The columns of walks below the incumbent by every weighing."""
        before = np.full_like(after[0], np.inf)
        before[0] = 0.0
        keep = np.zeros(len(self.columns), dtype=bool)
        for s, stage in enumerate(self.stages):
            it = stage.places
            through = (before[it.begin] + self._onwards(it, shift, after[s + 1])).min(axis=1)
            keep[it.column[((through + fixed) * SLACK < self.incumbent).all(axis=1)]] = True
            before = self._before(stage, shift, before)
        return keep

    def _before(self, stage: _Stage, shift: Ints, before: Floats) -> Floats:
        """The least cost of the stages up to one, by boundary and a worst run of at most so many grains."""
        it, (order, first, distinct), reached = stage.places, stage.ends, np.full_like(before, np.inf)
        run = np.arange(GRAINS + 1) - shift[it.column, None]
        costs = before[it.begin[:, None], np.clip(run, 0, GRAINS)] + self.cost[it.column, None]
        costs[run < 0] = np.inf
        if len(order):
            reached[distinct] = np.minimum.reduceat(costs[order], first, axis=0)
        return reached

    def _walks(self, shift: Ints, after: list[Floats], totals: Floats) -> Ints:
        """The walk of the least cost by each weighing, ``[walks, pp]`` positions of columns."""
        found = [self._walk(shift, after, u) for u in np.flatnonzero(totals < np.inf)]
        return np.array(found, dtype=np.int64).reshape(len(found), self.chain.pp)

    def _walk(self, shift: Ints, after: list[Floats], u: int) -> list[int]:
        boundary, run, picked = 0, 0, []
        for s, stage in enumerate(self.stages):
            here = np.flatnonzero(stage.places.begin == boundary)
            column, end = stage.places.column[here], stage.places.end[here]
            runs = np.maximum(run + shift[column], 0)
            worth = after[s + 1][end, np.minimum(runs, GRAINS), u] + self.cost[column, u]
            best = int(np.argmin(np.where(runs > GRAINS, np.inf, worth)))
            boundary, run = int(end[best]), int(runs[best])
            picked.append(int(column[best]))
        return picked
