"""The search: bound everything, look best first, let CP-SAT choose among what is left and prove it.

1. Every legal (tp, cp, pp, dp, micro-batch) gets a bound that no expert mesh, placement, ZeRO choice,
   split or recompute can beat, and a memory test that no such choice can pass when it fails.
2. Best bound first, rows decide one thing more at a time (:mod:`planner.search.expand`), are bounded and
   tested again, and the most promising complete ones are evaluated: the incumbent.
3. When no waiting row has a bound below the incumbent, the evaluated rows that do go to CP-SAT.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.offload import all_alike
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.strategy import Strategy
from cost_models.ticks import Ticks
from planner.candidates import Degrees, Space, legal_micro_batches, mesh_table, relaxed_rows, with_micro_batches
from planner.clocks import search_clocks
from planner.limits import per_step
from planner.objectives import with_checkpoints
from planner.options import Options
from planner.search.balanced import Batch
from planner.search.best_first import best_first
from planner.search.bounds import Objective, objective_of
from planner.search.budget import Budget
from planner.search.coarse import CoarseBounds
from planner.search.deadline import in_time
from planner.search.dominance import undominated
from planner.search.expand import few_placed, with_experts, with_placement, with_sharding
from planner.search.frontier import Frontier
from planner.search.incumbent import Found, best_of_cut, best_of_cuts
from planner.search.interleaved import best_point, even_cuts, point
from planner.search.kept import COUNTED, Incumbent, Kept, SearchResult
from planner.search.ledger import Ledger
from planner.search.offloads import loosest, row_of, with_offloads
from planner.search.order import row_key
from planner.search.relax import Relaxation, packed
from planner.search.screen import Screen

if TYPE_CHECKING:
    from cost_models.critical_paths import Path
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Report = Callable[[str, float, float], None]
Way = tuple[float, int, Callable[[], None]]
"""A way to run a row: its bound, the row's position, what evaluates it."""
EXPANSIONS = {
    "meshes": (64, "_push_coarse"),
    "coarse": (256, "_push_degrees"),
    "degrees": (128, "_push_experts"),
    "experts": (128, "_push_placements"),
    "placements": (128, "_push_rows"),
}
"""For each stage of expansion, the most rows a round takes from it, and what they do next."""
FIRST_ROUND, WIDEST_ROUND = 8, 256
"""The most rows that a round takes from a stage: at first where rows offload in many ways, each round twice as many,
and where a plan is known."""
CHEAP, WIDER = ("meshes", "coarse"), 8
"""Stages of which a round takes twice as many as the last that left the incumbent as it is, up to so many times."""
MOST_EVALUATED, OFFLOADS_AT_ONCE = 64, 2**15
"""The most rows that a round evaluates, and of those that offload, at every clock one, that are priced at once."""


class Search(Incumbent):
    """One search over one space. ``run`` is called once.

    :class:`planner.search.placed.PlacedSearch` says otherwise in ``_priced``, ``_undominated``, ``_ways``, ``_prove``,
    ``open_row``, ``of_cut``, ``row_key``; :class:`planner.search.scheduled.ScheduledSearch` in ``screen``,
    ``prices_of``, ``_undominated``, ``_try``, ``of_cut``.
    """

    solver = "admissible bounds, then OR-Tools CP-SAT with critical-path cuts"
    stepwise = True
    """Whether rows are bounded before all about them is decided; where few are legal, that costs more than it saves."""

    def __init__(
        self, space: Space, options: Options, fits: Calibration, ticks: Ticks, report: Report = lambda *_: None,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.options = options = with_checkpoints(per_step(options, space.workload), space.model, space.workload)
        self.space, self.fits, self.ticks, self._report = space, fits, ticks, report
        self.budget = budget or Budget()
        self.model, self.cluster, self.workload = space.model, space.cluster, space.workload
        self.limit = int(self.cluster.memory_bytes * (1 - options.headroom))
        self.recompute = options.pins.get("recompute")
        self.kept: list[Kept] = []
        self.floor, self.kept_floor, self.root, self.proved = 0.0, np.inf, 0.0, False
        self.before_solver: float | None = None
        self.ledger = Ledger()
        self.relaxation, self.screen = Relaxation(space, fits), Screen(space, self.limit, ticks)
        self.waiting: dict[str, Frontier] = {name: Frontier() for name in (*EXPANSIONS, "rows")}
        self.counts = dict.fromkeys(COUNTED, 0)
        self.paths: dict[tuple[int, int, int], list[Path]] = defaultdict(list)
        """Paths of interleaved schedules that are known, by pp, virtual stages and micro-batches."""

    @cached_property
    def coarse(self) -> CoarseBounds:
        """The bounds of meshes."""
        return CoarseBounds(self.space, self.fits, self.options)

    def run(self) -> SearchResult:
        """Search until the bounds meet or the budget is spent."""
        self.began = time.monotonic()
        self.budget.deadline = min(self.budget.deadline, self.began + self.options.time_limit_s)
        in_time(self.budget.deadline, self._search)
        return self.so_far()

    def _search(self) -> None:
        """Bound, evaluate, prove. What it leaves behind is true whenever it is cut short: see :meth:`so_far`."""
        placed = None if self.stepwise else few_placed(self.space)
        if placed is None:
            self._push_meshes()
        else:
            self._push_rows(placed)
        self.root = self.open_bound
        more, few, wider = True, FIRST_ROUND if self.cluster.tiers else WIDEST_ROUND, 1
        while more:
            before = self.value
            self.raise_floor(min(self.open_bound, self.kept_floor))
            self.report(f"bounding {sum(map(len, self.waiting.values())):,} open rows")
            more = not self.budget.over and self._look_further(few, wider)
            few = 2 * few if self.best is None else WIDEST_ROUND
            wider = min(2 * wider, WIDER) if self.value == before < np.inf else 1
        self.before_solver = self.value
        if not self.budget.proves:
            return
        unseen = self.open_bound
        bound, settled = self._prove(unseen)
        self.raise_floor(min(bound, unseen))
        self.proved = settled and unseen >= self.value

    def _prove(self, unseen: float) -> tuple[float, bool]:
        from planner.search.proof import prove

        return prove(self, unseen)

    def so_far(self) -> SearchResult:
        """What is known at this moment; the bound holds whatever was being looked at."""
        return SearchResult(
            best=self.best,
            bound=min(self.floor, self.value),
            proved=self.proved,
            counts=self.counts,
            kept=self.kept,
            incumbent_before_solver=self.value if self.before_solver is None else self.before_solver,
            bound_root=self.root,
            seconds=time.monotonic() - self.began,
            stopped="" if self.proved else self.budget.ended_by,
            excluded=self.ledger.with_waiting(self.waiting, self.value).with_evaluated(self.kept, self.value).entries(),
        )

    def raise_floor(self, bound: float) -> None:
        """Note that no plan at all has an objective below ``bound``; what was noted before stays true."""
        self.floor = max(self.floor, bound)

    def report(self, stage: str, floor: float = 0.0) -> None:
        """Tell the incumbent and the bound."""
        self._report(stage, self.value, min(max(self.floor, floor), self.value))

    @property
    def open_bound(self) -> float:
        """The least bound of all rows that have not been evaluated."""
        return min(frontier.best for frontier in self.waiting.values())

    def _look_further(self, few: int, wider: int) -> bool:
        """One round: the ``few`` best rows of every stage decide one thing more. False when none is left."""
        moved = False
        for name, (most, step) in EXPANSIONS.items():
            most = min(few, most) * (wider if name in CHEAP else 1)
            with self.waiting[name].taken(most, self.value) as taken:
                if taken is not None:
                    moved = True
                    getattr(self, step)(taken[0])
                    self.counts[f"{name}_expanded"] += len(taken[0])
                    self.ledger.pass_on(name, len(taken[0]))
        with self.waiting["rows"].taken(MOST_EVALUATED, self.value) as taken:
            if taken is not None:
                moved = True
                self._evaluate(*taken)
        return moved

    def _push_meshes(self) -> None:
        """Every legal (tp, cp, pp, dp)."""
        meshes = mesh_table(self.space)
        copies, members = np.unique(meshes.dp, return_counts=True)
        self.counts["degrees"] = int(legal_micro_batches(self.space, copies).sum(axis=1) @ members)
        if len(meshes):
            bounds = self.coarse.of_meshes(meshes)
            some = np.isfinite(bounds)
            self.counts["meshes"] = int(some.sum())
            self.ledger.enter("meshes", int(some.sum()))
            self.waiting["meshes"].push(meshes.take(some), bounds[some])
            self.raise_floor(self.open_bound)

    def _push_coarse(self, meshes: Degrees) -> None:
        """Their micro-batches, with bounds that look at nothing but (tp, cp, micro-batch)."""
        degrees = with_micro_batches(self.space, meshes)
        bounds = self.coarse.of_degrees(degrees)
        near = bounds < self.value
        self.ledger.enter("coarse", len(degrees))
        self.ledger.exclude("coarse", "bound", bounds[~near])
        self.waiting["coarse"].push(degrees.take(near), bounds[near])

    def _push_degrees(self, degrees: Degrees) -> None:
        """Degrees that may fit, with all that is known of their bounds before more is decided."""
        self.counts["degrees_that_cannot_fit"] += self._push("degrees", relaxed_rows(self.space, degrees))

    def _push_experts(self, rows: Rows) -> None:
        self._push("experts", with_experts(self.space, rows))

    def _push_placements(self, rows: Rows) -> None:
        self._push("placements", with_placement(self.space, rows))

    def _push(self, name: str, rows: Rows) -> int:
        """Bound relaxed rows and let those wait that may fit and win; returns how many cannot fit.

        A row cannot fit when none of its variants does whose bound is below the incumbent.
        """
        if not len(rows):
            return 0
        loose, origin = rows, np.arange(len(rows))
        if name != "placements":
            loose, origin = self.relaxation.variants(rows, experts_open=name == "degrees")
        self.budget.priced(len(loose))
        prices, placed = self._priced(loosest(self.space, loose), name), name == "placements"
        beside = loose if placed else packed(loose, self.cluster)
        objective = objective_of(beside, self.cluster, self.options, placed=placed)
        each, may = self.screen.promising(prices, objective, self.value, buffers=False)
        fits, bounds = np.zeros(len(rows), dtype=bool), np.full(len(rows), np.inf)
        np.logical_or.at(fits, origin, may)
        np.minimum.at(bounds, origin[may], each[may])
        keep = bounds < self.value
        self.ledger.enter(name, len(rows))
        self.ledger.exclude(name, "memory", bounds[~fits])
        self.ledger.exclude(name, "bound", bounds[fits & ~keep])
        self.waiting[name].push(rows.take(keep), bounds[keep])
        return int((~fits).sum())

    def _priced(self, rows: Rows, stage: str) -> Prices:
        """Prices of rows of a stage of expansion; only complete rows know all their communication."""
        relaxed = stage != "rows"
        return self.prices_of(rows, relaxed=relaxed, loosely=relaxed)

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        return undominated(prices, index, objective)

    def prices_of(self, rows: Rows, *, relaxed: bool = False, loosely: bool = False) -> Prices:
        """Prices of rows at every clock that the search may choose."""
        clocks = search_clocks(self.options)
        return price(
            self.model, self.cluster, self.workload, rows, self.fits, self.ticks,
            relaxed=relaxed, clocks=clocks, loosely=loosely,
        )  # fmt: skip

    def _push_rows(self, placed: Rows) -> None:
        """Rows that shard in every way and, where there are memory tiers, offload in every way."""
        rows = with_sharding(self.space, placed)
        if not self.cluster.tiers:
            self._push_complete(rows)
            return
        promising = with_offloads(self.space, rows.take(self._worth_offloading(rows)))
        at_once = OFFLOADS_AT_ONCE // len(search_clocks(self.options))
        for at in np.array_split(np.arange(len(promising)), max(1, -(-len(promising) // at_once))):
            self._push_complete(promising.take(at))

    def _worth_offloading(self, rows: Rows) -> Ints:
        """Rows that may fit and win when offloading costs nothing."""
        if not len(rows):
            return np.arange(0)
        self.budget.priced(len(rows))
        prices = self.prices_of(loosest(self.space, rows), loosely=True)
        objective = objective_of(rows, self.cluster, self.options)
        bounds, fits = self.screen.promising(prices, objective, self.value, buffers=False)
        near = bounds < self.value
        self.ledger.enter("sharded", len(rows))
        self.ledger.exclude("sharded", "memory", bounds[~fits])
        self.ledger.exclude("sharded", "bound", bounds[fits & ~near])
        self.ledger.pass_on("sharded", int((fits & near).sum()))
        return np.flatnonzero(fits & near)

    def _push_complete(self, rows: Rows) -> None:
        """Complete rows: bounded with all their communication, dominated ones dropped."""
        self.counts["rows"] += len(rows)
        self.budget.priced(len(rows))
        if not len(rows):
            return
        prices = self._priced(rows, "rows")
        objective = objective_of(rows, self.cluster, self.options)
        bounds, fits = self.screen.promising(prices, objective, self.value, buffers=True)
        near = bounds < self.value
        index = np.flatnonzero(fits & near)
        kept = index[self._undominated(prices, index, objective)]
        self.ledger.enter("rows", len(rows))
        self.ledger.exclude("rows", "memory", bounds[~fits])
        self.ledger.exclude("rows", "bound", bounds[fits & ~near])
        self.ledger.exclude("rows", "dominated", bounds[np.setdiff1d(index, kept)])
        self.counts["rows_that_cannot_fit"] += int((~fits).sum())
        self.counts["rows_by_bound"] += int((fits & ~near).sum())
        self.counts["rows_dominated"] += len(index) - len(kept)
        self.waiting["rows"].push(rows.take(kept), bounds[kept])

    def _evaluate(self, rows: Rows, bounds: Floats) -> None:
        """Rows as 1F1B and with every number of virtual stages, best bound first."""
        ways, tried = iter(self._ways(rows)), np.zeros(len(rows), dtype=bool)
        for bound, row, look in ways:
            if bound >= self.value:
                break
            if self.budget.over:
                left = np.unique([row, *(row for _, row, _ in ways)])
                self.waiting["rows"].push(rows.take(left), bounds[left])
                self.ledger.pass_on("rows", int(np.setdiff1d(np.flatnonzero(tried), left).size))
                late = np.delete(bounds, np.union1d(np.flatnonzero(tried), left))
                self.ledger.exclude("rows", "bound", np.maximum(late, self.value))
                return
            tried[row] = True
            self.budget.evaluated()
            look()
        self.ledger.pass_on("rows", int(tried.sum()))
        self.ledger.exclude("rows", "bound", np.maximum(bounds[~tried], self.value))

    def _ways(self, rows: Rows) -> Iterable[Way]:
        prices, objective = self._priced(rows, "rows"), objective_of(rows, self.cluster, self.options)
        batch = Batch(self.model, prices, objective, self.limit, self.recompute)
        found = best_first(self.screen.sorts(prices, objective), lambda: self.value, lambda: not self.budget.over)
        for bound, row, virtual, clock in found:
            yield bound, row, partial(self._try, batch, row, virtual, clock, bound)

    def _try(self, batch: Batch, row: int, virtual: int, clock: float, bound: float) -> None:
        """Evaluate one row under one schedule."""
        every = batch.prices if virtual == 1 else all_alike(batch.prices)
        prices, objective = every.take(np.array([row])), batch.objective.take(np.array([row]))
        if virtual > 1:
            self._try_interleaved(prices.with_virtual(virtual), clock, objective)
            return
        chain, size = Chain(self.model, prices, 0), int(prices.rows.stage_size[0])
        cuts = batch.balanced.worth_running(row, chain.pp)
        found = best_of_cuts(chain, cuts, objective, size, self.limit, self.recompute, self.value)
        self._keep(Kept(prices, 0, 1, bound, found))

    def _try_interleaved(self, prices: Prices, clock: float, objective: Objective) -> None:
        chain = Chain(self.model, prices, 0)
        known = self.paths[chain.pp, chain.virtual, chain.micro_batches]
        for cut in even_cuts(self.model.layers, chain.pp, chain.virtual):
            self._keep_point(chain, np.array(cut), objective, clock, known)

    def _keep_point(
        self, chain: Chain, cut: Ints, objective: Objective, clock: float, known: list[Path] | None = None
    ) -> None:
        """Evaluate one cut that leaves no choice; ``known`` as :func:`planner.search.interleaved.point` takes it."""
        stage_size, prices = int(chain.prices.rows.stage_size[0]), chain.prices
        found = point(chain, cut, objective, stage_size, self.limit, self.recompute, self.value, clock, known)
        if found is not None:
            self._keep(Kept(prices, 0, chain.virtual, found.value, found))

    def _keep(self, kept: Kept) -> None:
        self.counts["rows_evaluated"] += 1
        self.kept.append(kept)
        if not kept.point:
            self.kept_floor = min(self.kept_floor, kept.bound)
        if kept.found is not None and self._better(kept, kept.found):
            self.best = kept

    def _better(self, kept: Kept, found: Found) -> bool:
        """Whether a plan is better than the incumbent, or as good and before it in :mod:`planner.search.order`."""
        if self.best is None or self.best.found is None or found.value != self.value:
            return found.value < self.value
        mine, other = self.row_key(kept), self.row_key(self.best)
        return mine < other or (mine == other and found.order < self.best.found.order)

    def open_row(self, kept: Kept, objective: Objective, below: float, known: list[Path]) -> OpenRow | None:
        """The row with every column of plans below that objective; ``None`` when there is none."""
        from planner.search.certificate import open_row

        chain, stage = Chain(self.model, kept.prices, 0), int(kept.prices.rows.stage_size[0])
        return open_row(chain, objective, stage, kept.bound, below, self.limit, self.recompute, known)

    def of_cut(self, it: Strategy, options: Options) -> Kept | None:
        """The best plan with a strategy's row and cut, its recompute and clocks chosen again; ``None`` if none fits."""
        rows, virtual, cut = row_of(self.space, it), it.schedule.virtual_stages, np.cumsum([0, *it.layers_per_stage])
        prices, objective = self.prices_of(rows), objective_of(rows, self.cluster, options)
        best, size = best_point if virtual > 1 else best_of_cut, int(rows.stage_size[0])
        found = best(Chain(self.model, prices, 0), cut, objective, size, self.limit, self.recompute, beat=np.inf)
        return None if found is None else Kept(prices, 0, virtual, found.value, found)

    def row_key(self, kept: Kept) -> tuple[float, ...]:
        """Where the plans of a row stand among equal ones."""
        return row_key(kept.prices, objective_of(kept.prices.rows, self.cluster, self.options), kept.virtual)
