"""The search on hosts that differ: the same rows and bounds, each row put on the hosts that suit it.

1. Degrees and expert degrees are bounded on the regular cluster, which is nowhere slower: admissible.
2. A row with a placement knows how many hosts it needs and in which groups; every best packing of those
   (:mod:`planner.search.packing`) gives its groups their rates. It is bounded with the best rate of any group and the
   best hops of any packing; a row that no packing holds is dropped.
3. A complete row is evaluated once a packing. Where groups have several rates, which stage gets which and where the
   layers are cut is one choice: CP-SAT takes columns of every rate and as many groups of each as there are.

So the gap is over degrees, placement, hosts and stages together.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.placed import devices_a_host, groups_of_stages, hosts_a_group, placed_chain
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.strategy import Strategy
from planner.search.bounds import Objective, objective_of
from planner.search.dominance import undominated
from planner.search.engine import Kept, Search
from planner.search.expand import with_placement
from planner.search.incumbent import Found
from planner.search.interleaved import even_cuts, legal_virtual, point
from planner.search.packing import Option, Packing, Shape
from planner.search.uneven import rotations, uneven_quick

if TYPE_CHECKING:
    from cost_models.pipeline import Path
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class PlacedKept(Kept):
    """A row with one packing: its prices at every rate that some group has, and which group's stages got which."""

    shape: Shape
    option: Option
    by_level: dict[int, Prices]
    groups: tuple[int, ...] = ()

    def chain(self, search: Search, level: int) -> Chain:
        """The row as if all its groups had the rate of one level."""
        return Chain(search.model, self.by_level[level], 0)

    def placed(self, search: Search, groups: tuple[int, ...], sizes: list[int]) -> Chain:
        """The row with its groups at these levels and these layers in every virtual stage."""
        levels = [level for level in groups for _ in range(self.shape.stages)]
        return placed_chain(search.model, self.by_level, levels, sizes, self.prices.hop)


class PlacedSearch(Search):
    """A search that also chooses hosts."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.packing = Packing(self.cluster.irregular)
        self.rates = self.cluster.irregular.rates
        self.counts["rows_no_hosts_hold"] = 0
        self._tables: dict[int, tuple[Prices, list[int]]] = {}

    def shapes(self, rows: Rows) -> list[Shape]:
        """What of every row decides its packings."""
        table = np.stack([devices_a_host(rows), hosts_a_group(rows), groups_of_stages(rows), rows.factors["pp"][:, 0]])
        distinct, inverse = np.unique(table, axis=1, return_inverse=True)
        known = [Shape(*column) for column in distinct.T.tolist()]
        return [known[k] for k in inverse.ravel().tolist()]

    def _push_placements(self, rows: Rows) -> None:
        placed = with_placement(self.space, rows)
        held = np.array([bool(self.packing.options(shape)) for shape in self.shapes(placed)], dtype=bool)
        self.counts["rows_no_hosts_hold"] += int((~held).sum())
        self._push("placements", placed.take(held))

    def _priced(self, rows: Rows, stage: str) -> Prices:
        """Prices of placed rows at the best rate of any group and the best hops of any packing."""
        if stage in ("degrees", "experts"):
            return super()._priced(rows, stage)
        options = [self.packing.options(shape) for shape in self.shapes(rows)]
        best = [(max(o.levels[0] for o in some), max(o.hop for o in some)) for some in options]
        return self._priced_at(rows, np.array(best, dtype=np.int64).reshape(-1, 2), stage)

    def _priced_at(self, rows: Rows, levels: Ints, stage: str) -> Prices:
        """Prices of every row with its groups at one level and its hops at another, ``[rows, 2]``."""
        relaxed, parts, order = stage != "rows", [], []
        for group in np.unique(levels[:, 0]).tolist():
            mine = np.flatnonzero(levels[:, 0] == group)
            hops = levels[mine, 1]
            some = self._at(group, rows.take(mine), relaxed=relaxed)
            hop = some.hop.copy()
            for level in np.unique(hops[hops != group]).tolist():
                here = hops == level
                hop[here] = self._at(level, rows.take(mine[here]), relaxed=True).hop
            parts.append(dataclasses.replace(some, hop=hop))
            order.append(mine)
        return (
            Prices.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))
            if parts
            else super()._priced(rows, stage)
        )

    def _at(self, level: int, rows: Rows, *, relaxed: bool) -> Prices:
        cluster = self.cluster.at_rate(float(self.rates[level]))
        return price(self.model, cluster, self.workload, rows, self.fits, self.ticks, relaxed=relaxed)

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        """As on a regular cluster, among rows of one shape and by their prices at every rate that shape may have."""
        shapes = self.shapes(prices.rows.take(index))
        kept = []
        for shape in dict.fromkeys(shapes):
            at = np.flatnonzero([it == shape for it in shapes])
            mine = index[at]
            rows = prices.rows.take(mine)
            levels = sorted({level for o in self.packing.options(shape) for level in o.levels})
            slower = [self._at(level, rows, relaxed=False) for level in levels[:-1]]
            some = objective.take(mine)
            kept.append(at[undominated(prices.take(mine), np.arange(len(mine)), some, slower)])
        return np.sort(np.concatenate(kept)) if kept else index

    def _evaluate(self, rows: Rows, bounds: Floats, deadline: float) -> None:
        """Price the rows once at every rate that their groups may have, then try them one by one."""
        shapes = self.shapes(rows)
        every = [(r, level) for r, shape in enumerate(shapes) for level in self._levels(shape)]
        self._tables = {}
        for level in {level for _, level in every}:
            mine = [r for r, it in every if it == level]
            self._tables[level] = self._at(level, rows.take(np.array(mine)), relaxed=False), mine
        for row in range(len(rows)):
            if time.monotonic() > deadline:
                self.waiting["rows"].push(rows.take(np.arange(row, len(rows))), bounds[row:])
                return
            if bounds[row] < self.value:
                self._try_placed(rows.take(np.array([row])), row, shapes[row])

    def _levels(self, shape: Shape) -> set[int]:
        """Levels at which rows of a shape may have to be priced: of groups and of hops."""
        options = self.packing.options(shape)
        return {level for o in options for level in (*o.levels, o.hop)}

    def _one(self, row: int, level: int, hop: int) -> Prices:
        """One row of the table being evaluated, with its groups at one level and its hops at another."""
        table, rows = self._tables[level]
        hops, rows_of_hops = self._tables[hop]
        there = np.array([rows_of_hops.index(row)])
        return dataclasses.replace(table.take(np.array([rows.index(row)])), hop=hops.hop[there])

    def _try_placed(self, rows: Rows, row: int, shape: Shape) -> None:
        """Evaluate one row with every packing: as 1F1B, then with every number of virtual stages."""
        objective = objective_of(rows, self.cluster, self.options)
        for option in self.packing.options(shape):
            levels = {q: self._one(row, q, option.hop) for q in option.levels}
            first = levels[option.levels[0]]
            bound = float(self._row_bounds(first, self._most_virtual(rows), objective, complete=True)[0])
            if bound >= self.value:
                continue
            kept = PlacedKept(first, 0, 1, bound, None, shape, option, levels)
            self._try_plain(kept, objective)
            if int(rows.micro_batches[0]) % int(rows.pp[0]) == 0:
                self._try_virtual(kept, objective)

    def _try_plain(self, kept: PlacedKept, objective: Objective) -> None:
        if self.space.pins.get("virtual_stages") not in (None, 1):
            return
        bound = float(self._row_bounds(kept.prices, np.array([1]), objective, complete=True)[0])
        if bound < self.value:
            kept = dataclasses.replace(kept, bound=bound)
            found, groups = uneven_quick(self, kept, objective)
            self._keep(dataclasses.replace(kept, found=found, groups=groups))

    def _try_virtual(self, kept: PlacedKept, objective: Objective) -> None:
        rows, pin = kept.prices.rows, self.space.pins.get("virtual_stages")
        for virtual in legal_virtual(self.model.layers, int(rows.pp[0])):
            if pin in (None, virtual):
                levels = {q: it.with_virtual(virtual) for q, it in kept.by_level.items()}
                prices = levels[kept.option.levels[0]]
                self._try_points(dataclasses.replace(kept, prices=prices, by_level=levels, virtual=virtual), objective)

    def _try_points(self, kept: PlacedKept, objective: Objective) -> None:
        """Even cuts, with the groups in the order of their rates or turned round."""
        rows, fastest = kept.prices.rows, Chain(self.model, kept.prices, 0)
        rest = int(rows.stage_size[0]), self.limit, self.recompute
        for cut in even_cuts(self.model.layers, int(rows.pp[0]), kept.virtual):
            if point(fastest, np.array(cut), objective, *rest, self.value) is None:
                continue
            for groups in rotations(kept.option):
                chain = kept.placed(self, groups, np.diff(cut).tolist())
                found = point(chain, np.array(cut), objective, *rest, self.value)
                if found is not None:
                    self._keep(dataclasses.replace(kept, bound=found.value, found=found, groups=groups))

    def open_row(self, kept: PlacedKept, beat: float, known: list[Path]) -> OpenRow | None:
        """What CP-SAT is asked about one row with one packing."""
        from planner.search.placed_row import open_placed_row

        return open_placed_row(self, kept, beat, known)

    def strategy(self, kept: PlacedKept) -> Strategy:
        """The strategy of an evaluated row, with its hosts."""
        groups = kept.found.groups if isinstance(kept.found, PlacedFound) else kept.groups
        return dataclasses.replace(super().strategy(kept), hosts=self.packing.hosts(kept.shape, kept.option, groups))


@dataclass(frozen=True)
class PlacedFound(Found):
    """A plan found by CP-SAT, with the level of every group."""

    groups: tuple[int, ...]
