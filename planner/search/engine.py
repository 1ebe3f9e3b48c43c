"""The search: bound everything, look best first, let CP-SAT choose among what is left and prove it.

1. Every legal (tp, cp, pp, dp, micro-batch) gets a bound that no expert mesh, placement, ZeRO choice,
   split or recompute can beat, and a memory test that no such choice can pass when it fails.
2. Best bound first, rows decide one thing more at a time (:mod:`planner.search.expand`), are bounded and
   tested again, and the most promising complete ones are evaluated: the incumbent.
3. When no waiting row has a bound below the incumbent, the evaluated rows that do go to CP-SAT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Calibration
from cost_models.chain import Chain
from cost_models.price import Prices, Ticks, price
from cost_models.rows import Rows
from cost_models.strategy import LayerChoice, LayerRun, ParallelDegrees, Stage, Strategy, TrainingSchedule
from planner.candidates import Space, degree_table, relaxed_rows
from planner.options import Options
from planner.search.bounds import Objective, dynamic_joules, fits_somehow, objective_of, step_bound
from planner.search.dominance import undominated
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.frontier import Frontier
from planner.search.incumbent import Found, quick
from planner.search.interleaved import even_cuts, legal_virtual, point
from planner.search.recompute_bound import forced_recompute
from planner.search.relax import Relaxation, packed

if TYPE_CHECKING:
    from cost_models.pipeline import Path
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Report = Callable[[str, float, float], None]
EXPANSIONS = {"degrees": (64, "_push_experts"), "experts": (64, "_push_placements"), "placements": (64, "_push_rows")}
"""For each stage of expansion, the most rows a round takes from it, and what they do next."""
MOST_EVALUATED = 16
DEGREES_AT_ONCE = 4096
SLACK = 1 - 1e-9
"""What rounding may add to a bound that is computed in floats."""


@dataclass
class Kept:
    """A row that was looked at: its prices, its place there, its number of virtual stages, its bound, its best plan."""

    prices: Prices
    row: int
    virtual: int
    bound: float
    found: Found | None

    @property
    def key(self) -> tuple[int, ...]:
        """Degrees that make two plans different in kind: tp, cp, pp, dp, ep."""
        rows, r = self.prices.rows, self.row
        return tuple(int(a[r]) for a in (rows.tp, rows.cp, rows.pp, rows.dp, rows.ep))


@dataclass
class SearchResult:
    """The best plan, its proved bound, and what each step of the search removed."""

    best: Kept | None
    bound: float
    proved: bool
    counts: dict[str, int]
    kept: list[Kept] = field(default_factory=list)
    incumbent_before_solver: float = np.inf
    bound_root: float = 0.0
    seconds: float = 0.0


class Search:
    """One search over one space. ``run`` is called once."""

    def __init__(
        self, space: Space, options: Options, fits: Calibration, ticks: Ticks, report: Report = lambda *_: None
    ) -> None:
        self.space, self.options, self.fits, self.ticks, self.report = space, options, fits, ticks, report
        self.model, self.cluster, self.workload = space.model, space.cluster, space.workload
        self.limit = int(self.cluster.memory_bytes * (1 - options.headroom))
        self.recompute = options.pins.get("recompute")
        self.best: Kept | None = None
        self.kept: list[Kept] = []
        self.relaxation = Relaxation(space, fits)
        self.waiting = {name: Frontier() for name in (*EXPANSIONS, "rows")}
        self.counts = dict.fromkeys(
            (
                *("degrees", "degrees_that_cannot_fit", "degrees_expanded", "experts_expanded", "placements_expanded"),
                *("rows", "rows_that_cannot_fit", "rows_by_bound", "rows_dominated", "rows_evaluated"),
                *("rows_to_solver", "literals", "solver_rounds", "solver_cuts"),
            ),
            0,
        )

    @property
    def value(self) -> float:
        """The incumbent's objective; infinite before the first plan."""
        return np.inf if self.best is None or self.best.found is None else self.best.found.value

    def run(self) -> SearchResult:
        """Search until the bounds meet or the time limit passes."""
        began = time.monotonic()
        deadline = began + self.options.time_limit_s
        self._push_degrees()
        root = self.waiting["degrees"].best
        while time.monotonic() < deadline and self._look_further(deadline):
            self.report("bounding", self.value, min(self.open_bound, self.value))
        return self._prove(root, deadline, began)

    @property
    def open_bound(self) -> float:
        """The least bound of all rows that have not been evaluated."""
        return min(frontier.best for frontier in self.waiting.values())

    def _look_further(self, deadline: float) -> bool:
        """One round: the best rows of every stage of expansion decide one thing more. False when none is left."""
        moved = False
        for name, (most, step) in EXPANSIONS.items():
            popped = self.waiting[name].pop(most, self.value)
            if popped is not None:
                moved = True
                self.counts[f"{name}_expanded"] += len(popped[0])
                getattr(self, step)(popped[0])
        popped = self.waiting["rows"].pop(MOST_EVALUATED, self.value)
        if popped is not None:
            moved = True
            self._evaluate(popped[0], popped[1], deadline)
        return moved

    def _push_degrees(self) -> None:
        """Degrees that may fit, with their bounds."""
        degrees = degree_table(self.space)
        self.counts["degrees"] = len(degrees)
        if len(degrees):
            rows = relaxed_rows(self.space, degrees)
            parts = np.array_split(np.arange(len(rows)), -(-len(rows) // DEGREES_AT_ONCE))
            self.counts["degrees_that_cannot_fit"] = sum(self._push("degrees", rows.take(part)) for part in parts)

    def _push_experts(self, rows: Rows) -> None:
        self._push("experts", with_experts(self.space, rows))

    def _push_placements(self, rows: Rows) -> None:
        self._push("placements", with_placement(self.space, rows))

    def _push(self, name: str, rows: Rows) -> int:
        """Bound relaxed rows and let those wait that may fit and win; returns how many cannot fit."""
        if not len(rows):
            return 0
        loose, origin = rows, np.arange(len(rows))
        if name != "placements":
            loose, origin = self.relaxation.variants(rows, experts_open=name == "degrees")
        prices = self._priced(loose, name)
        fits, bounds = np.zeros(len(rows), dtype=bool), np.full(len(rows), np.inf)
        may = fits_somehow(prices, self.model, self.limit, self.recompute or "full", buffers=False)
        np.logical_or.at(fits, origin, may)
        objective = objective_of(loose if name == "placements" else packed(loose), self.cluster, self.options)
        np.minimum.at(bounds, origin, self._row_bounds(prices, self._most_virtual(loose), objective, complete=False))
        keep = fits & (bounds < self.value)
        self.waiting[name].push(rows.take(keep), bounds[keep])
        return int((~fits).sum())

    def _push_rows(self, placed: Rows) -> None:
        """Complete rows: bounded with all their communication, dominated ones dropped."""
        rows = with_sharding(self.space, placed)
        self.counts["rows"] += len(rows)
        if not len(rows):
            return
        prices = self._priced(rows, "rows")
        fits = fits_somehow(prices, self.model, self.limit, self.recompute or "full", buffers=True)
        objective = objective_of(rows, self.cluster, self.options)
        bounds = self._row_bounds(prices, self._most_virtual(rows), objective, complete=True)
        near = bounds < self.value
        index = np.flatnonzero(fits & near)
        kept = index[self._undominated(prices, index, objective)]
        self.counts["rows_that_cannot_fit"] += int((~fits).sum())
        self.counts["rows_by_bound"] += int((fits & ~near).sum())
        self.counts["rows_dominated"] += len(index) - len(kept)
        self.waiting["rows"].push(rows.take(kept), bounds[kept])

    def _priced(self, rows: Rows, stage: str) -> Prices:
        """Prices of rows of a stage of expansion; only complete rows know all their communication."""
        relaxed = stage != "rows"
        return price(self.model, self.cluster, self.workload, rows, self.fits, self.ticks, relaxed=relaxed)

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        return undominated(prices, index, objective)

    def _evaluate(self, rows: Rows, bounds: Floats, deadline: float) -> None:
        prices = self._priced(rows, "rows")
        for row in range(len(rows)):
            if time.monotonic() > deadline:
                self.waiting["rows"].push(rows.take(np.arange(row, len(rows))), bounds[row:])
                return
            if bounds[row] < self.value:
                self._try(prices, row)

    def _most_virtual(self, rows: Rows) -> Ints:
        """The number of virtual stages that the bound may assume: the most that is legal."""
        layers, pin = self.model.layers, self.space.pins.get("virtual_stages")
        values, inverse = np.unique(rows.pp, return_inverse=True)
        legal = [[v for v in (1, *legal_virtual(layers, int(pp))) if pin in (None, v)] for pp in values]
        most = np.array([max(v, default=0) for v in legal], dtype=np.int64)[inverse]
        divides = rows.micro_batches % rows.pp == 0
        return np.where(divides, most, 1 if pin in (None, 1) else 0)

    def _row_bounds(self, prices: Prices, virtual: Ints, objective: Objective, *, complete: bool) -> Floats:
        """Objective that no plan of a row can beat, with up to ``virtual`` stages a device; infinite for 0.

        ``complete`` rows know the bytes of their buffers.
        """
        ticks = np.full(len(virtual), np.inf)
        forced = forced_recompute(prices, self.model, self.limit, buffers=complete)
        if self.space.pins.get("virtual_stages") in (None, 1):
            ticks = step_bound(prices, self.model, np.ones_like(virtual))
            ticks = np.maximum(ticks, forced.one_f_one_b * SLACK)
        if (virtual > 1).any():
            interleaved = step_bound(prices, self.model, np.maximum(virtual, 2))
            interleaved = np.maximum(interleaved, forced.any_schedule * SLACK)
            ticks = np.where(virtual > 1, np.minimum(ticks, interleaved), ticks)
        ticks = np.where(virtual == 0, np.inf, ticks)
        return objective.value(ticks * self.ticks.second, dynamic_joules(prices, self.model)) * (1 - 1e-12)

    def _try(self, prices: Prices, row: int) -> None:
        """Evaluate one row: as 1F1B, then with every number of virtual stages."""
        prices = prices.take(np.array([row]))
        objective = objective_of(prices.rows, self.cluster, self.options)
        dynamic = dynamic_joules(prices, self.model)
        pin, pp = self.space.pins.get("virtual_stages"), int(prices.rows.pp[0])
        if pin in (None, 1):
            forced = forced_recompute(prices, self.model, self.limit, buffers=True).one_f_one_b * SLACK
            ticks = np.maximum(step_bound(prices, self.model, np.array([1])), forced)
            bound = float(objective.value(ticks * self.ticks.second, dynamic)[0]) * (1 - 1e-12)
            if bound < self.value:
                chain = Chain(self.model, prices, 0)
                found = quick(chain, objective, int(prices.rows.stage_size[0]), self.limit, self.recompute, self.value)
                self._keep(Kept(prices, 0, 1, bound, found))
        if int(prices.rows.micro_batches[0]) % pp == 0:
            for virtual in legal_virtual(self.model.layers, pp):
                if pin in (None, virtual):
                    self._try_interleaved(prices.with_virtual(virtual), virtual, objective)

    def _try_interleaved(self, prices: Prices, virtual: int, objective: Objective) -> None:
        chain = Chain(self.model, prices, 0)
        for cut in even_cuts(self.model.layers, chain.pp, virtual):
            stage_size, beat = int(prices.rows.stage_size[0]), self.value
            found = point(chain, np.array(cut), objective, stage_size, self.limit, self.recompute, beat)
            if found is not None:
                self._keep(Kept(prices, 0, virtual, found.value, found))

    def _keep(self, kept: Kept) -> None:
        self.counts["rows_evaluated"] += 1
        self.kept.append(kept)
        if kept.found is not None and kept.found.value < self.value:
            self.best = kept

    def _prove(self, root: float, deadline: float, began: float) -> SearchResult:
        """CP-SAT on the rows whose bounds are still below the incumbent, in batches by bound."""
        from planner.search.proof import prove

        before, unseen = self.value, self.open_bound
        bound, proved = prove(self, deadline)
        return SearchResult(
            best=self.best,
            bound=min(bound, unseen, self.value),
            proved=proved and unseen >= self.value,
            counts=self.counts,
            kept=self.kept,
            incumbent_before_solver=before,
            bound_root=root,
            seconds=time.monotonic() - began,
        )

    def open_row(self, kept: Kept, beat: float, known: list[Path]) -> OpenRow | None:
        """What CP-SAT is asked about one row."""
        from planner.search.certificate import open_row

        chain = Chain(self.model, kept.prices, 0)
        objective = objective_of(kept.prices.rows, self.cluster, self.options)
        stage = int(kept.prices.rows.stage_size[0])
        return open_row(chain, objective, stage, kept.bound, beat, self.limit, self.recompute, known)

    def strategy(self, kept: Kept) -> Strategy:
        """The strategy of an evaluated row."""
        if kept.found is None:
            raise ValueError("the row has no plan")
        return strategy_of(kept.prices.rows, kept.row, kept.virtual, kept.found)


def strategy_of(rows: Rows, r: int, virtual: int, found: Found) -> Strategy:
    """A row with evaluated runs of layers as a :class:`Strategy`."""
    one = {a: int(getattr(rows, a)[r]) for a in ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp")}
    schedule = TrainingSchedule(
        "interleaved" if virtual > 1 else "1f1b", virtual, int(rows.micro_batch[r]), int(rows.micro_batches[r])
    )
    stages = tuple(Stage(tuple(LayerRun(j - i, LayerChoice(choice)) for choice, i, j in runs)) for runs in found.runs)
    placement = {axis: tuple(int(f) for f in values[r]) for axis, values in rows.factors.items()}
    return Strategy(ParallelDegrees(**one), int(rows.zero[r]), schedule, stages, placement)
