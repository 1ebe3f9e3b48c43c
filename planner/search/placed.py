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
from planner.search.engine import Kept, Search, SearchResult
from planner.search.expand import with_placement
from planner.search.incumbent import Found
from planner.search.interleaved import even_cuts, point
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

    @property
    def comparable(self) -> bool:
        """Not where packings differ: a row as good as the best of them in everything is better than any by far."""
        return False

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
        return self.priced_at(rows, np.array(best, dtype=np.int64).reshape(-1, 2), stage)

    def priced_at(self, rows: Rows, levels: Ints, stage: str) -> Prices:
        """Prices of every row with its groups at one level and its hops at another, ``[rows, 2]``."""
        relaxed, parts, order = stage != "rows", [], []
        for group in np.unique(levels[:, 0]).tolist():
            mine = np.flatnonzero(levels[:, 0] == group)
            hops = levels[mine, 1]
            some = self.at_level(group, rows.take(mine), relaxed=relaxed)
            hop = some.hop.copy()
            for level in np.unique(hops[hops != group]).tolist():
                here = hops == level
                hop[here] = self.at_level(level, rows.take(mine[here]), relaxed=True).hop
            parts.append(dataclasses.replace(some, hop=hop))
            order.append(mine)
        return (
            Prices.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))
            if parts
            else super()._priced(rows, stage)
        )

    def at_level(self, level: int, rows: Rows, *, relaxed: bool) -> Prices:
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
            slower = [self.at_level(level, rows, relaxed=False) for level in levels[:-1]]
            some = objective.take(mine)
            kept.append(at[undominated(prices.take(mine), np.arange(len(mine)), some, slower)])
        return np.sort(np.concatenate(kept)) if kept else index

    def _evaluate(self, rows: Rows, bounds: Floats, deadline: float) -> None:
        """Rows with every packing, as 1F1B and with every number of virtual stages, best bound first."""
        many = _Candidates.of(self, rows)
        objective = objective_of(many.rows, self.cluster, self.options)
        waiting = self.screen.schedules(many.prices, objective, self.value)
        many.price_slower(self, np.unique([k for _, k, _ in waiting]).astype(np.int64))
        for at, (bound, k, virtual) in enumerate(waiting):
            if bound >= self.value:
                return
            if time.monotonic() > deadline:
                left = np.unique([many.origin[k] for _, k, _ in waiting[at:]])
                self.waiting["rows"].push(rows.take(left), bounds[left])
                return
            self._try_placed(many.kept(k, virtual, bound), objective.take(np.array([k])))

    def _try_placed(self, kept: PlacedKept, objective: Objective) -> None:
        """Evaluate one row with one packing under one schedule."""
        if kept.virtual > 1:
            self._try_points(kept, objective)
            return
        found, groups = uneven_quick(self, kept, objective)
        self._keep(dataclasses.replace(kept, found=found, groups=groups))

    def _try_points(self, kept: PlacedKept, objective: Objective) -> None:
        """Even cuts, with the groups in the order of their rates, begun anywhere."""
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

    def _prove(self, root: float, deadline: float, began: float) -> SearchResult:
        """Bound every open row by its columns and dealings first, so that the gap is of all of them."""
        for kept in sorted((k for k in self.kept if k.virtual == 1), key=lambda k: k.bound):
            if kept.bound < self.value < np.inf and time.monotonic() < deadline:
                row = self.open_row(kept, objective_of(kept.prices.rows, self.cluster, self.options), self.value, [])
                kept.bound = self.value if row is None else max(kept.bound, row.bound)
        return super()._prove(root, deadline, began)

    def open_row(self, kept: PlacedKept, objective: Objective, beat: float, known: list[Path]) -> OpenRow | None:
        """What CP-SAT is asked about one row with one packing."""
        from planner.search.placed_row import open_placed_row

        return open_placed_row(self, kept, objective, beat, known)

    def strategy(self, kept: PlacedKept) -> Strategy:
        """The strategy of an evaluated row, with its hosts."""
        groups = kept.found.groups if isinstance(kept.found, PlacedFound) else kept.groups
        return dataclasses.replace(super().strategy(kept), hosts=self.packing.hosts(kept.shape, kept.option, groups))


@dataclass(frozen=True)
class PlacedFound(Found):
    """A plan found by CP-SAT, with the level of every group."""

    groups: tuple[int, ...]


@dataclass
class _Candidates:
    """Every packing of some rows: where each comes from, and its prices at the rates of its groups."""

    origin: Ints
    rows: Rows
    shapes: list[Shape]
    options: list[Option]
    prices: Prices
    slower: dict[int, tuple[Prices, Ints]]

    @staticmethod
    def of(search: PlacedSearch, rows: Rows) -> _Candidates:
        """Priced as if all groups had the best rate of their packing."""
        every = [(r, it, o) for r, it in enumerate(search.shapes(rows)) for o in search.packing.options(it)]
        origin = np.array([r for r, _, _ in every], dtype=np.int64)
        some, options = rows.take(origin), [o for _, _, o in every]
        levels = np.array([(o.levels[0], o.hop) for o in options], dtype=np.int64)
        return _Candidates(origin, some, [s for _, s, _ in every], options, search.priced_at(some, levels, "rows"), {})

    def price_slower(self, search: PlacedSearch, index: Ints) -> None:
        """Price those at ``index`` at the lower rates of their groups too."""
        for level in sorted({q for k in index.tolist() for q in self.options[k].levels[1:]}):
            mine = np.array([k for k in index.tolist() if level in self.options[k].levels[1:]])
            self.slower[level] = search.at_level(level, self.rows.take(mine), relaxed=False), mine

    def kept(self, k: int, virtual: int, bound: float) -> PlacedKept:
        """One packing of one row, not yet evaluated."""
        option, first = self.options[k], self.prices.take(np.array([k]))
        levels = {option.levels[0]: first}
        for level in option.levels[1:]:
            table, mine = self.slower[level]
            one = table.take(np.searchsorted(mine, [k]))
            levels[level] = dataclasses.replace(one, hop=first.hop)
        if virtual > 1:
            levels = {level: it.with_virtual(virtual) for level, it in levels.items()}
        return PlacedKept(levels[option.levels[0]], 0, virtual, bound, None, self.shapes[k], option, levels)
