"""Every trade-off between time, energy and devices: one pass over the space, rows skipped by their bound vectors.

1. Meshes, degrees, experts, placements and rows are expanded as in the search (:mod:`planner.search.engine`), each
   bounded in time, energy and devices at once. What a point covers (:mod:`planner.search.cover`) is dropped: every plan
   in it is covered too. The best of every number of devices are expanded first, so that points are early everywhere.
   Where there are memory tiers, rows are bounded as if offloading cost nothing until every way to offload is a row.
2. Complete rows give points by their balanced cuts and their cuts into virtual stages, which are few and all run.
3. A 1F1B row whose bound vector is still not covered is swept by CP-SAT (:mod:`planner.search.sweep_row`).

Where clocks are chosen, virtual stages are run at each of them, and CP-SAT chooses those of 1F1B's stages.

All this is done to within a fifth first, then to within what was asked: what is covered is
put aside and comes back when points must be nearer. So there is a tolerance that holds early, should time end.

When nothing is left, every plan of the space is covered by a point, and no plan is better than a point by more than
``eps`` in both time and energy on as many devices or fewer: the point that covers it would dominate the other, and
dominated points are dropped. Money is rent, proportional to ``N T``, or tariff, proportional to ``E``: covered too.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.offload import all_alike, lightest
from cost_models.power import hosts_used
from cost_models.price import Prices
from cost_models.rows import Rows
from planner.candidates import Degrees, legal_micro_batches, mesh_table, relaxed_rows, with_micro_batches
from planner.infeasible.changes import states_bytes
from planner.options import Options
from planner.search.best_first import Way
from planner.search.bounds import Objective, dynamic_joules, objective_of
from planner.search.cover import Cover, Point
from planner.search.deadline import in_time
from planner.search.dominance import undominated
from planner.search.engine import OFFLOADS_AT_ONCE, Kept, Search
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.incumbent import Found, judge, quick
from planner.search.interleaved import even_cuts, point
from planner.search.offloads import loosest, with_offloads
from planner.search.relax import packed
from planner.search.sweep_row import OpenPlans, RowSweep

Floats = NDArray[np.float64]
Bool = NDArray[np.bool_]
EXPANDED = {"meshes": 256, "coarse": 512, "degrees": 256, "experts": 256, "placements": 256, "rows": 32}
"""The most that a round takes of each stage of expansion."""
LEAST = 1 - 1e-12
LITTLE = 1e-200
"""What stands in a bound vector where nothing is known."""
WATTS = (0.03, 0.1, 0.3)
"""Parts of a device's power that seconds are weighed with against joules where clocks are chosen."""
COARSER = (0.2,)
"""Tolerances before the one that is asked for."""


class FrontSearch(Search):
    """One pass over one space. ``sweep`` is called once; then ``points`` and ``reached`` hold the answer."""

    def __init__(self, *given: Any, eps: float) -> None:
        super().__init__(*given)
        power_w = self.cluster.accelerator.figures.board_power.value if self.options.clocks else 0.0
        self.cover, self.eps = Cover(eps, watts=tuple(part * power_w for part in WATTS if power_w)), eps
        width = 3 + len(self.cover.watts)
        self._everything, self._nothing = np.full((1, width), LITTLE), np.zeros((0, width))
        self.reached, self.seconds, self.sure = np.inf, 0.0, np.inf
        self.paths = defaultdict(list)
        self.lean = self.coarse.under(asked(self.options, "energy", {}))
        self._wait: dict[str, tuple[Rows | Degrees, Floats]] = {}
        self._open: list[OpenPlans] = []
        self._aside: dict[str, list[tuple[Any, Floats]]] = defaultdict(list)
        self._swept: list[OpenPlans] = []
        """What the points cover for now, but not to within what was asked."""
        self._hand = self._everything
        """Bound vectors of what was taken to be expanded and is not done: left, should time end now."""
        self.counts |= dict.fromkeys(("covered", "swept"), 0)

    @property
    def points(self) -> list[Point]:
        """The points found so far."""
        return self.cover.points

    def sweep(self) -> bool:
        """Look at the whole space; whether nothing was left over when the time was up.

        Raises ``KeyboardInterrupt`` for Ctrl-C before there is a point.
        """
        self.began = time.monotonic()
        self.budget.deadline = min(self.budget.deadline, self.began + self.options.time_limit_s)
        try:
            whole = in_time(self.budget.deadline, self._sweep)
        except KeyboardInterrupt:
            if not self.points:
                raise
            whole = False
        left = [self._hand, *(bounds for _, bounds in self._wait.values()), *(it.bound[None] for it in self._open)]
        left = np.concatenate(left)
        here = max(self.cover.eps, float(self.cover.distances(left).max(initial=0.0)) - 1)
        self.reached = max(self.eps, min(self.sure, here))
        self.seconds = time.monotonic() - self.began
        return whole and not len(left) and self.cover.eps == self.eps

    def _sweep(self) -> None:
        meshes = mesh_table(self.space)
        copies, members = np.unique(meshes.dp, return_counts=True)
        self.counts["degrees"] = int(legal_micro_batches(self.space, copies).sum(axis=1) @ members)
        if len(meshes):
            self._push_open("meshes", meshes, self._coarse_vectors(meshes, "of_meshes"))
        self._hand = self._nothing
        for eps in (*(one for one in COARSER if one > 1.5 * self.eps), self.eps):
            self._nearer(eps)
            self._pass()
            if self.budget.over:
                return
            self.sure = eps

    def _nearer(self, eps: float) -> None:
        """Let what was put aside wait again, for points within ``eps``."""
        self._hand, aside = self._everything, self._aside
        self.cover.eps, self._aside = eps, defaultdict(list)
        for name, parts in aside.items():
            for rows, bounds in parts:
                self._push_open(name, rows, bounds)
        self._open, self._swept = [*self._open, *self._swept], []
        self._hand = self._nothing

    def _pass(self) -> None:
        """Decide and sweep until everything is covered or time is up."""
        while self._wait and not self.budget.over:
            for name in EXPANDED:
                self._expand(name)
            self._tell(sum(len(bounds) for _, bounds in self._wait.values()))
        while self._open and not self.budget.over:
            self._sweep_next()
            self._tell(len(self._open))

    def _tell(self, left: int) -> None:
        self._report(f"{len(self.points)} points, {left:,} rows open", np.nan, 0.0)

    def _expand(self, name: str) -> None:
        """Take the best of every number of devices and decide one thing more about them."""
        if name not in self._wait:
            return
        rows, bounds = self._wait[name]
        keep = np.flatnonzero(self._open_now(name, rows, bounds))
        order = keep[_best_of_each(bounds[keep])]
        now, later = order[: EXPANDED[name]], order[EXPANDED[name] :]
        self._hand = bounds[now]
        self._wait[name] = rows.take(later), bounds[later]
        if not len(later):
            del self._wait[name]
        if len(now):
            self._decide(name, rows.take(now), bounds[now])
        self._hand = self._nothing

    def _decide(self, name: str, rows: Any, bounds: Floats) -> None:
        if name != "rows":
            self.counts[f"{name}_expanded"] += len(rows)
        if name == "meshes":
            degrees = with_micro_batches(self.space, rows)
            self._push_open("coarse", degrees, self._coarse_vectors(degrees, "of_degrees"))
        elif name == "coarse":
            self._bounded("degrees", relaxed_rows(self.space, rows))
        elif name == "rows":
            self._points_of(rows, bounds)
        elif name == "placements":
            self._complete(with_sharding(self.space, rows))
        else:
            step = {"degrees": with_experts, "experts": with_placement}[name]
            self._bounded({"degrees": "experts", "experts": "placements"}[name], step(self.space, rows))

    def _complete(self, rows: Rows) -> None:
        """Rows that shard in every way, and offload in every way where that may give a point at all."""
        if not self.cluster.tiers:
            self._bounded("rows", rows)
            return
        if not len(rows):
            return
        self.budget.priced(len(rows))
        vectors = self._vectors(self.prices_of(loosest(self.space, rows), loosely=True), True, False)
        near = np.isfinite(vectors).all(axis=1) & (self.cover.distances(vectors) > 1 + self.eps)
        every = with_offloads(self.space, rows.take(near))
        for at in np.array_split(np.arange(len(every)), max(1, -(-len(every) // OFFLOADS_AT_ONCE))):
            self._bounded("rows", every.take(at))

    def _coarse_vectors(self, degrees: Degrees, of: str) -> Floats:
        """``[degrees, 3]`` that no plan of a mesh or a degree tuple is below."""
        host = self.cluster.devices_per_host
        world = degrees.tp * degrees.cp * degrees.pp * degrees.dp
        hosts = -(-world // host)
        whole_bytes = 0.0 if self.cluster.tiers else states_bytes(self.space) * self.cluster.devices
        step_s, energy = (getattr(bounds, of)(degrees) for bounds in (self.coarse, self.lean))
        step_s = np.where(whole_bytes / world <= self.limit, step_s, np.inf)
        unknown = np.full((len(step_s), len(self.cover.watts)), LITTLE)
        return np.concatenate([np.stack([step_s, energy, (hosts * host).astype(float)], axis=1), unknown], axis=1)

    def _bounded(self, name: str, rows: Rows) -> None:
        """Bound rows in every quantity and let those wait that may fit and that no point covers."""
        if not len(rows):
            return
        complete, placed = name == "rows", name in ("placements", "rows")
        loose, origin = rows, np.arange(len(rows))
        if not placed:
            loose, origin = self.relaxation.variants(rows, experts_open=name == "degrees")
        self.budget.priced(len(loose))
        self.counts["rows"] += len(rows) if complete else 0
        prices = self.prices_of(
            loose if complete else loosest(self.space, loose), relaxed=not complete, loosely=not complete
        )
        first = _least_of(self._vectors(prices, placed, None), origin, len(rows))
        open_ = self._open_now(name, rows, first)
        some = np.flatnonzero(open_[origin])
        bounds = np.full(first.shape, np.inf)
        np.minimum.at(bounds, origin[some], self._vectors(prices.take(some), placed, complete))
        keep = np.isfinite(bounds).all(axis=1)
        if complete:
            index = np.flatnonzero(keep)
            kept = index[undominated(prices, index, self.objective("money", rows))]
            self.counts["rows_dominated"] += len(index) - len(kept)
            rows, bounds = rows.take(kept), bounds[kept]
        else:
            rows, bounds = rows.take(keep), bounds[keep]
        self._push_open(name, rows, bounds)

    def _push_open(self, name: str, rows: Any, bounds: Floats) -> None:
        open_ = self._open_now(name, rows, bounds)
        rows, bounds = rows.take(open_), bounds[open_]
        if name in self._wait:
            rows = type(rows).concat([self._wait[name][0], rows])
            bounds = np.concatenate([self._wait[name][1], bounds])
        if len(rows):
            self._wait[name] = rows, bounds

    def _open_now(self, name: str, rows: Any, bounds: Floats) -> Bool:
        """Rows that may hold plans which no point covers; those covered too loosely for what was asked go aside."""
        finite, distance = np.isfinite(bounds).all(axis=1), self.cover.distances(bounds)
        open_ = finite & (distance > 1 + self.cover.eps)
        later = finite & ~open_ & (distance > 1 + self.eps)
        self.counts["covered"] += int((finite & (distance <= 1 + self.eps)).sum())
        if later.any():
            self._aside[name].append((rows.take(later), bounds[later]))
        return open_

    def objective(self, name: str, rows: Rows, *, placed: bool = True, **limits: float) -> Objective:
        """One quantity of rows as the objective, with more limits on others."""
        return objective_of(rows, self.cluster, asked(self.options, name, limits), placed=placed)

    def _vectors(self, prices: Prices, placed: bool, buffers: bool | None) -> Floats:
        """``[rows, 3 or more]`` that no plan of a row is below; infinite where a limit cannot be kept.

        Memory counts where ``buffers`` is given, which says whether the rows' communication buffers are known.
        """
        rows = prices.rows if placed else packed(prices.rows, self.cluster)
        quickest = self.objective("time", rows, placed=placed)
        if buffers is None:
            step_s = self.screen.first(prices, quickest)
        else:
            bounds, fits = self.screen.promising(prices, quickest, np.inf, buffers=buffers)
            step_s = np.where(fits, bounds, np.inf)
        vectors = self._with_energy(rows, step_s, dynamic_joules(lightest(prices), self.model), placed)
        return np.concatenate([vectors, *self._sums(prices, rows, vectors[:, 2], placed)], axis=1)

    def _sums(self, prices: Prices, rows: Rows, devices: Floats, placed: bool) -> Iterator[Floats]:
        """The least of joules and weighed seconds that a plan of each row has, ``[rows, 1]``, for every weight."""
        leanest, devices = self.objective("energy", rows, placed=placed), np.where(devices < np.inf, devices, 0.0)
        for watts in self.cover.watts:
            weighed = dataclasses.replace(leanest, weight=leanest.weight + watts * devices)
            yield self.screen.first(prices, weighed)[:, None] * LEAST

    def _with_energy(self, rows: Rows, step_s: Floats, joules: Floats, placed: bool) -> Floats:
        finite = np.where(np.isfinite(step_s), step_s, 0.0)
        least = self.objective("energy", rows, placed=placed).value(finite, joules)
        devices = hosts_used(rows, self.cluster) * self.cluster.devices_per_host
        vectors = np.stack([step_s, least * LEAST, devices.astype(float)], axis=1)
        return np.where(np.isfinite(step_s)[:, None], vectors, np.inf)

    def _points_of(self, rows: Rows, bounds: Floats) -> None:
        """Points of complete rows; 1F1B rows that stay open wait for CP-SAT.

        A row goes aside whole, or all its schedules are looked at that are not covered to within what was asked.
        """
        prices = self.prices_of(rows)
        found = self.screen.schedules(prices, self.objective("time", rows), np.inf)
        if not found:
            return
        index = np.array([r for _, r, *_ in found], dtype=np.int64)
        some = prices.take(index)
        steps, joules = np.array([bound for bound, *_ in found]), self._joules_of_ways(some, found)
        vectors = np.concatenate([self._with_energy(some.rows, steps, joules, True), bounds[index, 3:]], axis=1)
        far = np.zeros(len(rows))
        np.maximum.at(far, index, np.where(np.isfinite(vectors).all(axis=1), self.cover.distances(vectors), 0.0))
        later = np.flatnonzero((far <= 1 + self.cover.eps) & (far > 1 + self.eps))
        if len(later):
            self._aside["rows"].append((rows.take(later), bounds[later]))
        for (_, r, virtual, clock), vector in zip(found, vectors, strict=True):
            near = self.cover.distances(vector[None])[0] <= 1 + self.eps
            if far[r] > 1 + self.cover.eps and np.isfinite(vector).all() and not near:
                self.counts["rows_evaluated"] += 1
                one = prices.take(np.array([r]))
                if virtual == 1:
                    self._balanced(one, vector)
                else:
                    self._interleaved(one.with_virtual(virtual), virtual, clock, vector)

    def _balanced(self, one: Prices, bound: Floats) -> None:
        """Points of balanced cuts with all stages at one clock; the row waits for CP-SAT."""
        quickest, size, beat = self.objective("time", one.rows), int(one.rows.stage_size[0]), self.cover.known_s(bound)
        chain = Chain(self.model, one, 0)
        found = quick(chain, quickest, size, self.limit, self.recompute, beat)
        self._open.append(OpenPlans(one, bound, None if found is None else self.add(one, 1, found)))
        for clock in chain.clocks[1:] if found is not None else ():
            again = judge(chain, found.runs, quickest, size, self.limit, (clock,) * chain.pp, found.leaving)
            if again is not None:
                self.add(one, 1, again)

    def _joules_of_ways(self, prices: Prices, ways: list[Way]) -> Floats:
        """The least dynamic joules of ways to run rows; of 1F1B at any clocks, of virtual stages at the one named."""
        joules, alike = dynamic_joules(lightest(prices), self.model), all_alike(prices)
        virtual, clock = (np.array([way[k] for way in ways]) for k in (2, 3))
        for one in prices.clocks:
            mine = (virtual > 1) & (clock == one)
            joules[mine] = dynamic_joules(alike.only(one), self.model)[mine]
        return joules

    def _interleaved(self, one: Prices, virtual: int, clock: float, bound: Floats) -> None:
        """Points of the few cuts of a row; it does not come back, so what was asked decides which ones are covered."""
        chain, quickest = Chain(self.model, one, 0), self.objective("time", one.rows)
        size, beat = int(one.rows.stage_size[0]), self.cover.known_s(bound, self.eps)
        for cut in even_cuts(self.model.layers, chain.pp, virtual):
            found = point(chain, np.array(cut), quickest, size, self.limit, self.recompute, beat, clock)
            if found is not None:
                self.add(one, virtual, found)

    def add(self, one: Prices, virtual: int, found: Found) -> Point:
        """The point of an evaluated plan, noted unless another is as good."""
        step_s, spent_j = self.weighed(one, found)
        devices = int(hosts_used(one.rows, self.cluster)[0]) * self.cluster.devices_per_host
        new = Point(step_s, spent_j, devices, Kept(one, 0, virtual, 0.0, found))
        self.cover.add(new)
        return new

    def weighed(self, one: Prices, found: Found) -> tuple[float, float]:
        """Seconds and facility joules of a step of an evaluated plan, waits for power limits included."""
        step_s = max(found.wait_s, found.evaluation.step * self.ticks.second)
        objective = self.objective("energy", one.rows)
        return step_s, float(objective.cost(np.array([step_s]), np.array([found.dynamic_j]))[0])

    def _sweep_next(self) -> None:
        """CP-SAT along the trade-off of the row that is covered least, so that the tolerance shrinks as it goes."""
        distances = self.cover.distances(np.stack([it.bound for it in self._open]))
        at = int(np.argmax(distances))
        it, distance = self._open[at], distances[at]
        if distance > 1 + self.cover.eps:
            self.counts["swept"] += 1
            if not RowSweep(self, dataclasses.replace(it, bound=it.bound.copy())).run():
                return
        if distance > 1 + self.eps and self.cover.eps > self.eps:
            self._swept.append(it)
        else:
            self.counts["covered"] += 1
        self._open.pop(at)


def asked(options: Options, name: str, limits: dict[str, float]) -> Options:
    """The options with one objective and more limits on a step; of two on one quantity the lower stays."""
    every = dict(options.limits)
    for quantity, limit in limits.items():
        every[f"step-{quantity}"] = min(limit, every.get(f"step-{quantity}", np.inf))
    return options.model_copy(update={"objective": name, "limits": every})


def _least_of(vectors: Floats, origin: NDArray[np.int64], rows: int) -> Floats:
    """The least of every quantity over the variants of each row."""
    least = np.full((rows, vectors.shape[1]), np.inf)
    np.minimum.at(least, origin, vectors)
    return least


def _best_of_each(bounds: Floats) -> NDArray[np.int64]:
    """Positions so that the best of every number of devices come first, then the second best of each."""
    key = np.log(np.maximum(bounds[:, 0], 1e-300)) + np.log(np.maximum(bounds[:, 1], 1e-300))
    order = np.lexsort((key, bounds[:, 2]))
    devices = bounds[order, 2]
    first = np.searchsorted(devices, devices, side="left")
    rank = np.arange(len(order)) - first
    return order[np.argsort(rank, kind="stable")]
