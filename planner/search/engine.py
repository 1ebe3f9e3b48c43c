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
from planner.candidates import Degrees, Space, degree_table, relaxed_rows
from planner.options import Options
from planner.search.bounds import Objective, objective_of
from planner.search.coarse import coarse_bounds
from planner.search.dominance import undominated
from planner.search.expand import with_experts, with_placement, with_sharding
from planner.search.frontier import Frontier
from planner.search.incumbent import Found, quick
from planner.search.interleaved import even_cuts, point
from planner.search.relax import Relaxation, packed
from planner.search.screen import Screen

if TYPE_CHECKING:
    from cost_models.pipeline import Path
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Report = Callable[[str, float, float], None]
EXPANSIONS = {
    "coarse": (256, "_push_degrees"),
    "degrees": (128, "_push_experts"),
    "experts": (128, "_push_placements"),
    "placements": (128, "_push_rows"),
}
"""For each stage of expansion, the most rows a round takes from it, and what they do next."""
MOST_EVALUATED = 64


@dataclass
class Kept:
    """A row that was looked at: its prices, its place there, its number of virtual stages, its bound, its best plan."""

    prices: Prices
    row: int
    virtual: int
    bound: float
    found: Found | None

    @property
    def comparable(self) -> bool:
        """Whether the row is worth asking about together with others of its degrees."""
        return True

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
        self.relaxation, self.screen = Relaxation(space, fits), Screen(space, self.limit, ticks)
        self.waiting: dict[str, Frontier] = {name: Frontier() for name in (*EXPANSIONS, "rows")}
        self.counts = dict.fromkeys(
            (
                *("degrees", "degrees_that_cannot_fit"),
                *("coarse_expanded", "degrees_expanded", "experts_expanded", "placements_expanded"),
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
        self._push_coarse()
        root = self.waiting["coarse"].best
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

    def _push_coarse(self) -> None:
        """Every legal degree tuple, with a bound from its (tp, cp, micro-batch)."""
        degrees = degree_table(self.space)
        self.counts["degrees"] = len(degrees)
        if len(degrees):
            self.waiting["coarse"].push(degrees, coarse_bounds(self.space, degrees, self.fits, self.options))

    def _push_degrees(self, degrees: Degrees) -> None:
        """Degrees that may fit, with all that is known of their bounds before more is decided."""
        self.counts["degrees_that_cannot_fit"] += self._push("degrees", relaxed_rows(self.space, degrees))

    def _push_experts(self, rows: Rows) -> None:
        self._push("experts", with_experts(self.space, rows))

    def _push_placements(self, rows: Rows) -> None:
        self._push("placements", with_placement(self.space, rows))

    def _push(self, name: str, rows: Rows) -> int:
        """Bound relaxed rows and let those wait that may fit and win; returns how many bounds
        below the incumbent cannot fit."""
        if not len(rows):
            return 0
        loose, origin = rows, np.arange(len(rows))
        if name != "placements":
            loose, origin = self.relaxation.variants(rows, experts_open=name == "degrees")
        prices = self._priced(loose, name)
        objective = objective_of(loose if name == "placements" else packed(loose), self.cluster, self.options)
        index, least, unfit = self.screen.promising(prices, objective, self.value, buffers=False)
        bounds = np.full(len(rows), np.inf)
        np.minimum.at(bounds, origin[index], least)
        keep = bounds < self.value
        self.waiting[name].push(rows.take(keep), bounds[keep])
        return unfit

    def _push_rows(self, placed: Rows) -> None:
        """Complete rows: bounded with all their communication, dominated ones dropped."""
        rows = with_sharding(self.space, placed)
        self.counts["rows"] += len(rows)
        if not len(rows):
            return
        prices = self._priced(rows, "rows")
        objective = objective_of(rows, self.cluster, self.options)
        index, bounds, unfit = self.screen.promising(prices, objective, self.value, buffers=True)
        kept = self._undominated(prices, index, objective)
        self.counts["rows_that_cannot_fit"] += unfit
        self.counts["rows_by_bound"] += len(rows) - unfit - len(index)
        self.counts["rows_dominated"] += len(index) - len(kept)
        self.waiting["rows"].push(rows.take(index[kept]), bounds[kept])

    def _priced(self, rows: Rows, stage: str) -> Prices:
        """Prices of rows of a stage of expansion; only complete rows know all their communication."""
        relaxed = stage != "rows"
        return price(self.model, self.cluster, self.workload, rows, self.fits, self.ticks, relaxed=relaxed)

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        return undominated(prices, index, objective)

    def _evaluate(self, rows: Rows, bounds: Floats, deadline: float) -> None:
        """Rows as 1F1B and with every number of virtual stages, best bound first."""
        prices = self._priced(rows, "rows")
        objective = objective_of(prices.rows, self.cluster, self.options)
        waiting = self.screen.schedules(prices, objective, self.value)
        for at, (bound, row, virtual) in enumerate(waiting):
            if time.monotonic() > deadline:
                left = np.unique([row for _, row, _ in waiting[at:]])
                self.waiting["rows"].push(rows.take(left), bounds[left])
                return
            if bound >= self.value:
                return
            self._try(prices.take(np.array([row])), virtual, bound)

    def _try(self, prices: Prices, virtual: int, bound: float) -> None:
        """Evaluate one row under one schedule."""
        objective = objective_of(prices.rows, self.cluster, self.options)
        if virtual > 1:
            self._try_interleaved(prices.with_virtual(virtual), virtual, objective)
            return
        chain, size = Chain(self.model, prices, 0), int(prices.rows.stage_size[0])
        self._keep(Kept(prices, 0, 1, bound, quick(chain, objective, size, self.limit, self.recompute, self.value)))

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

    def open_row(self, kept: Kept, objective: Objective, beat: float, known: list[Path]) -> OpenRow | None:
        """What CP-SAT is asked about one row."""
        from planner.search.certificate import open_row

        chain, stage = Chain(self.model, kept.prices, 0), int(kept.prices.rows.stage_size[0])
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
