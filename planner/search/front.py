"""Every trade-off between time, energy and devices: one pass over the space, rows skipped by their bound vectors.

A plan has a vector ``(T, E, N)``: seconds and facility joules of a step, devices of the hosts in use. Point ``p``
covers a vector ``b`` to within ``eps`` where

    T_p <= (1 + eps) T_b      E_p <= (1 + eps) E_b      N_p <= N_b

1. Degrees, experts, placements and rows are expanded as in the search (:mod:`planner.search.engine`), each bounded in
   all three at once. What a found point covers is dropped: every plan in it is covered too. The best of every number
   of devices are expanded first, so that there are points early everywhere.
2. Complete rows give points by their balanced cuts and their cuts into virtual stages, which are few and all run.
3. A 1F1B row whose bound vector is still not covered is swept by CP-SAT along its own trade-off:

       T_i <= (1 + eps) min T   with E <= E_limit, T < what a point covers already       none: the row is done
       E_limit = E_i / (1 + eps)    with E_i of that plan, which is a new point

   Plans above the new limit last ``min T`` at least and are covered by the point; those below go on. The least joules
   of any cut that fits are a sum over stages, so a shortest path over the columns lifts the bound vector first.

When nothing is left, every plan of the space is covered by a point, and no plan is better than a point by more than
``eps`` in both time and energy on as many devices or fewer: the point that covers it would dominate the other, and
dominated points are dropped. Money is rent, proportional to ``N T``, or tariff, proportional to ``E``: covered too.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain, joules
from cost_models.power import hosts_used
from cost_models.power_levels import wait_s
from cost_models.price import Prices, price
from cost_models.rows import Rows
from planner.candidates import degree_table, relaxed_rows
from planner.options import Options
from planner.search.bounds import Objective, dynamic_joules, fits_somehow, objective_of
from planner.search.certificate import Certificate, OpenRow, ceiling, certify, least_joules, open_row
from planner.search.dominance import undominated
from planner.search.engine import Kept, Search
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.incumbent import Found, quick
from planner.search.interleaved import even_cuts, legal_virtual, point
from planner.search.relax import packed

Floats = NDArray[np.float64]
EXPANDED = {"degrees": 256, "experts": 256, "placements": 256, "rows": 32}
"""The most that a round takes of each stage of expansion."""
FINE, FIRST = 1e-6, 1e9
"""Below the first, a minimum is asked for at once; the second is a gap that any plan meets."""
LEAST_STEP = 1e-10
"""By how much more than rounding the next point of a row must have fewer joules."""


@dataclass(frozen=True)
class Point:
    """A plan: its seconds, joules and devices, and where it was found."""

    step_s: float
    joules: float
    devices: int
    kept: Kept

    @property
    def vector(self) -> tuple[float, float, float]:
        """``(T, E, N)``."""
        return self.step_s, self.joules, float(self.devices)


@dataclass
class _Open:
    """A complete 1F1B row that its points do not cover yet: its prices, bound vector ``[1, 3]``, balanced plan."""

    one: Prices
    bound: Floats
    known: Point | None


class FrontSearch(Search):
    """One pass over one space. ``sweep`` is called once; then ``points`` and ``reached`` hold the answer."""

    def __init__(self, *given, eps: float) -> None:
        super().__init__(*given)
        self.eps, self.points = eps, []
        self.reached: float = np.inf
        self.seconds = 0.0
        self._wait: dict[str, tuple[Rows, Floats]] = {}
        self._open: list[_Open] = []
        self.counts |= dict.fromkeys(("covered", "swept"), 0)

    def sweep(self) -> bool:
        """Look at the whole space; whether nothing was left over when the time was up."""
        began = time.monotonic()
        deadline = began + self.options.time_limit_s
        degrees = degree_table(self.space)
        self.counts["degrees"] = len(degrees)
        if len(degrees):
            self._bounded("degrees", relaxed_rows(self.space, degrees))
        while any(len(bounds) for _, bounds in self._wait.values()) and time.monotonic() < deadline:
            for name in EXPANDED:
                self._expand(name, deadline)
            self.report("sweeping", float(len(self.points)), float(sum(len(b) for _, b in self._wait.values())))
        self._sweep_rows(deadline)
        left = [bounds for _, bounds in self._wait.values()] + [it.bound for it in self._open]
        self.reached = max([self.eps, *(self._shortfall(bounds) for bounds in left if len(bounds))])
        self.seconds = time.monotonic() - began
        return not any(len(bounds) for bounds in left)

    def covered(self, bounds: Floats, eps: float) -> NDArray[np.bool_]:
        """Which bound vectors some point covers."""
        return self._distances(bounds) <= 1 + eps

    def _distances(self, bounds: Floats) -> Floats:
        """For each bound vector ``1 + eps`` with the least ``eps`` to within which a point covers it."""
        if not self.points:
            return np.full(len(bounds), np.inf)
        found = np.array([p.vector for p in self.points])
        least = np.full(len(bounds), np.inf)
        for step_s, energy_j, devices in found:
            ratio = np.maximum(step_s / bounds[:, 0], energy_j / bounds[:, 1])
            least = np.minimum(least, np.where(devices <= bounds[:, 2], ratio, np.inf))
        return least

    def _shortfall(self, bounds: Floats) -> float:
        return float(self._distances(bounds).max()) - 1

    def _expand(self, name: str, deadline: float) -> None:
        """Take the best of every number of devices and decide one thing more about them."""
        if name not in self._wait or time.monotonic() > deadline:
            return
        rows, bounds = self._wait.pop(name)
        keep = np.flatnonzero(~self.covered(bounds, self.eps))
        self.counts["covered"] += len(rows) - len(keep)
        order = keep[_best_of_each(bounds[keep])]
        now, later = order[: EXPANDED[name]], order[EXPANDED[name] :]
        if len(later):
            self._wait[name] = rows.take(later), bounds[later]
        if not len(now):
            return
        if name == "rows":
            self._points_of(rows.take(now))
            return
        self.counts[f"{name}_expanded"] += len(now)
        step = {"degrees": with_experts, "experts": with_placement, "placements": with_sharding}[name]
        following = {"degrees": "experts", "experts": "placements", "placements": "rows"}[name]
        self._bounded(following, step(self.space, rows.take(now)))

    def _bounded(self, name: str, rows: Rows) -> None:
        """Bound rows in every quantity and let those wait that may fit and that no point covers."""
        if not len(rows):
            return
        complete, placed = name == "rows", name in ("placements", "rows")
        loose, origin = rows, np.arange(len(rows))
        if not placed:
            loose, origin = self.relaxation.variants(rows, experts_open=name == "degrees")
        prices = price(self.model, self.cluster, self.workload, loose, self.fits, self.ticks, relaxed=not complete)
        may = fits_somehow(prices, self.model, self.limit, self.recompute or "full", buffers=complete)
        bounds = np.full((len(rows), 3), np.inf)
        np.minimum.at(bounds, origin, np.where(may[:, None], self._vectors(prices, complete, placed), np.inf))
        keep = np.isfinite(bounds).all(axis=1)
        self.counts["rows"] += len(rows) if complete else 0
        if complete:
            index = np.flatnonzero(keep)
            keep[:] = False
            keep[index[undominated(prices, index, self._objective("money", rows))]] = True
            self.counts["rows_dominated"] += len(index) - int(keep.sum())
        self._push_waiting(name, rows.take(keep), bounds[keep])

    def _push_waiting(self, name: str, rows: Rows, bounds: Floats) -> None:
        open_ = ~self.covered(bounds, self.eps)
        self.counts["covered"] += int((~open_).sum())
        rows, bounds = rows.take(open_), bounds[open_]
        if name in self._wait:
            rows = Rows.concat([self._wait[name][0], rows])
            bounds = np.concatenate([self._wait[name][1], bounds])
        if len(rows):
            self._wait[name] = rows, bounds

    def _objective(self, name: str, rows: Rows, *, placed: bool = True, **limits: float) -> Objective:
        return objective_of(rows, self.cluster, _asked(self.options, name, limits), placed=placed)

    def _vectors(self, prices: Prices, complete: bool, placed: bool, virtual: int | None = None) -> Floats:
        """``[rows, 3]`` that no plan of a row is below; infinite where a limit cannot be kept."""
        rows = prices.rows if placed else packed(prices.rows)
        quickest = self._objective("time", rows, placed=placed)
        most = self._most_virtual(prices.rows) if virtual is None else np.full(len(rows), virtual)
        step_s = self._row_bounds(prices, most, quickest, complete=complete)
        finite = np.where(np.isfinite(step_s), step_s, 0.0)
        least = self._objective("energy", rows, placed=placed).value(finite, dynamic_joules(prices, self.model))
        devices = hosts_used(rows, self.cluster) * self.cluster.devices_per_host
        vectors = np.stack([step_s, least * (1 - 1e-12), devices.astype(float)], axis=1)
        return np.where(np.isfinite(step_s)[:, None], vectors, np.inf)

    def _points_of(self, rows: Rows) -> None:
        """Points of complete rows; 1F1B rows that stay open wait for CP-SAT."""
        prices = price(self.model, self.cluster, self.workload, rows, self.fits, self.ticks)
        for r in range(len(rows)):
            one = prices.take(np.array([r]))
            self.counts["rows_evaluated"] += 1
            self._balanced(one)
            self._interleaved(one)

    def _balanced(self, one: Prices) -> None:
        if self.space.pins.get("virtual_stages") not in (None, 1):
            return
        bound = self._vectors(one, True, True, virtual=1)
        if not np.isfinite(bound).all() or self.covered(bound, self.eps)[0]:
            return
        chain, quickest = Chain(self.model, one, 0), self._objective("time", one.rows)
        found = quick(chain, quickest, int(one.rows.stage_size[0]), self.limit, self.recompute)
        known = None if found is None else self._add(one, 1, found)
        self._open.append(_Open(one, bound, known))

    def _interleaved(self, one: Prices) -> None:
        pp, pin = int(one.rows.pp[0]), self.space.pins.get("virtual_stages")
        if int(one.rows.micro_batches[0]) % pp:
            return
        for virtual in legal_virtual(self.model.layers, pp):
            if pin not in (None, virtual):
                continue
            prices, bound = one.with_virtual(virtual), self._vectors(one, True, True, virtual=virtual)
            if not np.isfinite(bound).all() or self.covered(bound, self.eps)[0]:
                continue
            chain, quickest = Chain(self.model, prices, 0), self._objective("time", one.rows)
            beat = self._known_s(bound)
            for cut in even_cuts(self.model.layers, pp, virtual):
                size = int(one.rows.stage_size[0])
                found = point(chain, np.array(cut), quickest, size, self.limit, self.recompute, beat)
                if found is not None:
                    self._add(prices, virtual, found)

    def _add(self, one: Prices, virtual: int, found: Found) -> Point:
        """Note a plan, unless a point is as good in everything; points that it is as good as are dropped."""
        step_s, joules = self._weighed(one, found)
        devices = int(hosts_used(one.rows, self.cluster)[0]) * self.cluster.devices_per_host
        new = Point(step_s, joules, devices, Kept(one, 0, virtual, 0.0, found))
        if any(_as_good(old, new) for old in self.points):
            return new
        self.points = [*(old for old in self.points if not _as_good(new, old)), new]
        return new

    def _sweep_rows(self, deadline: float) -> None:
        """CP-SAT along the trade-off of every row that is still open."""
        paths = defaultdict(list)
        self._open.sort(key=lambda it: tuple(it.bound[0]))
        while self._open:
            it = self._open[0]
            if self.covered(it.bound, self.eps)[0]:
                self.counts["covered"] += 1
            else:
                self.counts["swept"] += 1
                if time.monotonic() > deadline or not self._sweep_row(it, paths, deadline):
                    return
            self._open.pop(0)
            self.report("sweeping", float(len(self.points)), float(len(self._open)))

    def _sweep_row(self, it: _Open, paths: dict, deadline: float) -> bool:
        """Points of one row until the rest of it is covered; whether that was reached in time."""
        one, bound, most_j = it.one, it.bound, np.inf
        while True:
            row = self._opened(one, "time", self._known_s(bound), {"energy": most_j}, paths)
            if row is None:
                return True
            lean = self._opened(one, "energy", np.inf, {"energy": most_j, "time": self._known_s(bound)}, paths)
            if lean is None:
                return True
            self._raise(bound, row.bound, one, least_joules(lean))
            if self.covered(bound, self.eps)[0]:
                return True
            found, least_s, proved = self._quickest(it, most_j, paths, deadline)
            if found is None or not proved:
                return proved
            if self.eps < FINE:
                found = self._leanest(one, found, paths, deadline)
            new = self._add(one, 1, found)
            most_j = new.joules / (1 + max(self.eps, LEAST_STEP))
            self._raise(bound, least_s, one, 0.0)

    def _raise(self, bound: Floats, least_s: float, one: Prices, least_j: float) -> None:
        """Lift a row's bound vector to what is known of its seconds and dynamic joules."""
        bound[0, 0] = max(bound[0, 0], least_s * (1 - 1e-12))
        seconds, dynamic = bound[:1, 0], np.array([max(least_j, float(dynamic_joules(one, self.model)[0]))])
        energy = self._objective("energy", one.rows).value(seconds, dynamic)[0]
        bound[0, 1] = max(bound[0, 1], energy * (1 - 1e-12))

    def _quickest(self, it: _Open, most_j: float, paths: dict, deadline: float) -> tuple[Found | None, float, bool]:
        """A row's quickest plan of no more joules, to within ``eps``; seconds none is below; whether that is so.

        CP-SAT proves that nothing is below a target much sooner than it proves a minimum, so targets halve the
        distance, in ratio, between the bound and the best plan.
        """
        least, beat, found = float(it.bound[0, 0]), self._known_s(it.bound), None
        if it.known is not None and it.known.joules <= most_j and it.known.step_s < beat:
            found, beat = it.known.kept.found, it.known.step_s
        widest = self._opened(it.one, "time", beat, {"energy": most_j}, paths)
        if widest is None:
            return found, beat, True
        beat = min(beat, ceiling(widest), widest.objective.most_step_s() * (1 + 1e-9))
        while beat > (1 + self.eps) * least or found is None:
            target = beat if self.eps < FINE or beat <= (1 + self.eps) * least else float(np.sqrt(least * beat))
            row = self._opened(it.one, "time", target, {"energy": most_j}, paths)
            answer = None if row is None else self._certify(row, target, deadline, 0.0 if self.eps < FINE else FIRST)
            if answer is not None and answer.best is not None:
                found, beat = answer.best, answer.best.value
                least = max(least, answer.bound)
            elif answer is not None and not answer.proved:
                return None, least, False
            elif target == beat:
                return found, beat, True
            else:
                least = target
        return found, least, True

    def _leanest(self, one: Prices, found: Found, paths: dict, deadline: float) -> Found:
        """A plan as quick as one that was found, with the fewest joules.

        Where ``eps`` is fine this saves a round for every joule between; else the next limit on joules asks for less.
        """
        seconds, spent_j = self._weighed(one, found)
        row = self._opened(one, "energy", spent_j, {"time": seconds}, paths)
        answer = None if row is None else self._certify(row, spent_j, deadline, 0.0)
        return found if answer is None or answer.best is None else answer.best

    def _weighed(self, one: Prices, found: Found) -> tuple[float, float]:
        """Seconds and facility joules of a step of an evaluated plan, waits for power limits included."""
        each = joules(Chain(self.model, one, 0), found.runs)
        objective = self._objective("energy", one.rows)
        waits = float(wait_s(objective.wait_rates(one.rows, 0), each))
        step_s = max(waits, found.evaluation.step * self.ticks.second)
        return step_s, float(objective.value(np.array([step_s]), np.array([found.dynamic_j]))[0])

    def _known_s(self, bound: Floats) -> float:
        """Seconds from which on plans of a row are covered by points that need no more than its least joules."""
        near = [p.step_s for p in self.points if p.joules <= (1 + self.eps) * bound[0, 1] and p.devices <= bound[0, 2]]
        return min(near, default=np.inf) / (1 + self.eps)

    def _opened(self, one: Prices, name: str, beat: float, limits: dict[str, float], paths: dict) -> OpenRow | None:
        """A row with the columns of every plan within limits that has less than ``beat``; ``None`` without any."""
        chain, given = Chain(self.model, one, 0), {q: most for q, most in limits.items() if np.isfinite(most)}
        objective, size = self._objective(name, one.rows, **given), int(one.rows.stage_size[0])
        known = paths[chain.pp, chain.micro_batches]
        return open_row(chain, objective, size, 0.0, beat, self.limit, self.recompute, known)

    def _certify(self, row: OpenRow, beat: float, deadline: float, gap: float) -> Certificate:
        answer = certify(row, min(beat, ceiling(row)), self.limit, deadline=deadline, gap=gap)
        self.counts["rows_to_solver"] += 1
        self.counts["solver_rounds"] += answer.rounds
        self.counts["solver_cuts"] += answer.cuts
        return answer


def _asked(options: Options, name: str, limits: dict[str, float]) -> Options:
    """The options with one objective and more limits on a step; of two on one quantity the lower stays."""
    every = dict(options.limits)
    for quantity, limit in limits.items():
        every[f"step-{quantity}"] = min(limit, every.get(f"step-{quantity}", np.inf))
    return options.model_copy(update={"objective": name, "limits": every})


def _best_of_each(bounds: Floats) -> NDArray[np.int64]:
    """Positions so that the best of every number of devices come first, then the second best of each."""
    key = np.log(np.maximum(bounds[:, 0], 1e-300)) + np.log(np.maximum(bounds[:, 1], 1e-300))
    order = np.lexsort((key, bounds[:, 2]))
    devices = bounds[order, 2]
    first = np.searchsorted(devices, devices, side="left")
    rank = np.arange(len(order)) - first
    return order[np.argsort(rank, kind="stable")]


def _as_good(one: Point, other: Point) -> bool:
    return all(a <= b * (1 + 1e-12) for a, b in zip(one.vector, other.vector, strict=True))
