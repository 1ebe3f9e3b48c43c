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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.placed import devices_a_host, groups_of_stages, hosts_a_group, with_hop
from cost_models.price import Prices, price
from cost_models.rows import Rows
from cost_models.strategy import Strategy
from planner.apart import domains_of
from planner.clocks import search_clocks
from planner.options import Options
from planner.search.apart import ApartPacking
from planner.search.bounds import Objective, objective_of
from planner.search.deadline import look
from planner.search.dominance import features, undominated
from planner.search.engine import Search, Way
from planner.search.expand import with_placement
from planner.search.interleaved import best_point, even_cuts, point, worth_running
from planner.search.offloads import row_of
from planner.search.order import EQUAL, row_key
from planner.search.packing import Option, Packing, Shape
from planner.search.placed_kept import PlacedFound, PlacedKept
from planner.search.uneven import cut_at_rates, in_order, orders, rotations, uneven_quick

if TYPE_CHECKING:
    from cost_models.critical_paths import Path
    from planner.search.certificate import OpenRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class PlacedSearch(Search):
    """A search that also chooses hosts."""

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        domains = domains_of(self.cluster, self.options)
        it = self.cluster.irregular
        self.packing = ApartPacking(it, domains) if domains else Packing(it)
        self.rates = self.cluster.irregular.rates
        self.counts["rows_no_hosts_hold"] = 0

    def shapes(self, rows: Rows) -> list[Shape]:
        """What of every row decides its packings."""
        first = [devices_a_host(rows), hosts_a_group(rows), groups_of_stages(rows), rows.factors["pp"][:, 0]]
        table = np.stack([*first, *self.packing.columns(rows)])
        distinct, inverse = np.unique(table, axis=1, return_inverse=True)
        known = [Shape(*column) for column in distinct.T.tolist()]
        return [known[k] for k in inverse.ravel().tolist()]

    def _push_placements(self, rows: Rows) -> None:
        self._push("placements", self._held(with_placement(self.space, rows), "placements"))

    def _push_complete(self, rows: Rows) -> None:
        """Where replicas are kept apart, sharding decides how many there are."""
        held = self._held(rows, "rows")
        self.counts["rows"] += len(rows) - len(held)
        if len(held):
            super()._push_complete(held)

    def _held(self, rows: Rows, stage: str) -> Rows:
        """Rows that some packing holds; the others are excluded for good."""
        held = np.array([bool(self.packing.options(shape)) for shape in self.shapes(rows)], dtype=bool)
        gone = int((~held).sum())
        self.counts["rows_no_hosts_hold"] += gone
        self.ledger.enter(stage, gone)
        self.ledger.exclude(stage, "hosts", np.full(gone, np.inf))
        return rows.take(held)

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
            parts.append(with_hop(some, hop))
            order.append(mine)
        if not parts:
            return super()._priced(rows, stage)
        return Prices.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))

    def at_level(self, level: int, rows: Rows, *, relaxed: bool) -> Prices:
        """Prices of rows on hosts of one rate."""
        look()
        cluster, clocks = self.cluster.at_rate(float(self.rates[level])), search_clocks(self.options)
        return price(
            self.model, cluster, self.workload, rows, self.fits, self.ticks,
            relaxed=relaxed, clocks=clocks, loosely=relaxed,
        )  # fmt: skip

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        """As on a regular cluster, among rows of one shape and by their prices at every rate that shape may have."""
        shapes = self.shapes(prices.rows.take(index))
        kept = []
        for shape in dict.fromkeys(shapes):
            at = np.flatnonzero([it == shape for it in shapes])
            mine, some = prices.take(index[at]), objective.take(index[at])
            costs = self._costs(shape, mine.rows, some)
            kept.append(at[undominated(mine, np.arange(len(at)), some, costs)])
        return np.sort(np.concatenate(kept)) if kept else index

    def _costs(self, shape: Shape, rows: Rows, objective: Objective) -> Floats:
        """All in which less is better, ``[rows, quantities]``: at every rate of a group, and the bytes of a hop."""
        levels = sorted({level for o in self.packing.options(shape) for level in o.levels})
        tables = [self.at_level(level, rows, relaxed=False) for level in levels]
        every = np.arange(len(rows))
        message = rows.micro_batch / (rows.cp * rows.tp)
        return np.concatenate([*(features(it, every, objective) for it in tables), message[:, None]], axis=1)

    def row_key(self, kept: PlacedKept) -> tuple[float, ...]:
        """Where the plans of a row with one packing stand among equal ones."""
        if not kept.place:
            rows, option = kept.prices.rows, kept.option
            objective = objective_of(rows, self.cluster, self.options)
            costs = self._costs(kept.shape, rows, objective)
            key = row_key(kept.prices, objective, kept.virtual, costs)
            kept.place = (*key, -option.hop, *(-n for n in option.at_least), option.spread, option.block)
        return kept.place

    def _ways(self, rows: Rows) -> list[Way]:
        """Rows with every packing, as 1F1B and with every number of virtual stages, best bound first."""
        many = Candidates.of(self, rows)
        found = self.screen.schedules(many.prices, objective_of(many.rows, self.cluster, self.options), self.value)
        many.price_slower(self, np.unique([k for _, k, *_ in found]).astype(np.int64))
        return [
            (bound, int(many.origin[k]), partial(self._try_placed, many, k, virtual, clock, bound))
            for bound, k, virtual, clock in found
        ]

    def _try_placed(self, many: Candidates, k: int, virtual: int, clock: float, bound: float) -> None:
        """Evaluate one row with one packing under one schedule."""
        kept = many.kept(k, virtual, bound)
        objective = objective_of(kept.prices.rows, self.cluster, self.options)
        if virtual > 1:
            self._try_points(kept, clock, objective)
            return
        self._keep(dataclasses.replace(kept, found=uneven_quick(self, kept, objective)))

    def _try_points(self, kept: PlacedKept, clock: float, objective: Objective) -> None:
        """Even cuts, with the groups in the order of their rates, begun anywhere."""
        rows, fastest = kept.prices.rows, Chain(self.model, kept.prices, 0)
        rest = int(rows.stage_size[0]), self.limit, self.recompute
        known = self.paths[fastest.pp, kept.virtual, fastest.micro_batches]
        for cut in map(np.array, even_cuts(self.model.layers, int(rows.pp[0]), kept.virtual)):
            if worth_running(fastest, cut, objective, *rest[1:], self.value, clock, known) is None:
                continue
            for groups in rotations(kept.option):
                one = len(kept.option.levels) == 1
                chain = fastest if one else kept.placed(self, groups, np.diff(cut).tolist())
                found = PlacedFound.of(point(chain, cut, objective, *rest, self.value, clock, known), groups)
                if found is not None:
                    self._keep(dataclasses.replace(kept, bound=found.value, found=found))

    def _prove(self, unseen: float) -> tuple[float, bool]:
        """Bound every open row by its columns and dealings first, so that the gap is of all of them."""
        for kept in sorted((k for k in self.kept if k.virtual == 1), key=lambda k: k.bound):
            if kept.bound < self.value < np.inf and not self.budget.over:
                self.budget.evaluated()
                beat = self.value * (1 + 2 * EQUAL)
                row = self.open_row(kept, objective_of(kept.prices.rows, self.cluster, self.options), beat, [])
                kept.bound = beat if row is None else max(kept.bound, row.bound)
        return super()._prove(unseen)

    def open_row(self, kept: PlacedKept, objective: Objective, below: float, known: list[Path]) -> OpenRow | None:
        """What CP-SAT is asked about one row with one packing."""
        from planner.search.placed_row import open_placed_row

        return open_placed_row(self, kept, objective, below, known)

    def of_cut(self, it: Strategy, options: Options) -> PlacedKept | None:
        """The best plan with a strategy's row and cut, on the hosts that suit it best of a few orders and its own."""
        rows, virtual, cut = row_of(self.space, it), it.schedule.virtual_stages, np.cumsum([0, *it.layers_per_stage])
        many = Candidates.of(self, rows)
        many.price_slower(self, np.arange(len(many.rows)))
        packed = (many.kept(k, virtual, 0.0) for k in range(len(many.rows)))
        plans = [plan for kept in packed for plan in self._of_cut(kept, cut, it.hosts, options)]
        best = min(plans, key=lambda kept: (kept.found.value, self.row_key(kept), kept.found.order), default=None)
        return None if best is None else dataclasses.replace(best, bound=best.found.value)

    def _of_cut(
        self, kept: PlacedKept, cut: Ints, hosts: tuple[int, ...], options: Options
    ) -> Iterator[PlacedKept]:  # fmt: skip
        objective = objective_of(kept.prices.rows, self.cluster, options)
        limits = int(kept.prices.rows.stage_size[0]), self.limit, self.recompute
        tried = rotations(kept.option) if kept.virtual > 1 else [*orders(kept.option), *self._own(kept, hosts)]
        for groups in tried:
            if kept.virtual == 1:
                found = cut_at_rates(self, kept, cut, groups, objective)
            else:
                chain = kept.placed(self, groups, np.diff(cut).tolist())
                found = PlacedFound.of(best_point(chain, cut, objective, *limits, beat=np.inf), groups)
            if found is not None:
                yield dataclasses.replace(kept, found=found)

    def _own(self, kept: PlacedKept, hosts: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The order of groups that hosts stand in, where a packing has those."""
        if not hosts:
            return []
        each = np.array(hosts).reshape(kept.shape.groups, -1)
        rates = [self.cluster.irregular.worst_rate(group) for group in each]
        groups = tuple(int(np.searchsorted(self.rates, rate)) for rate in rates)
        return [groups] if sorted(groups) == sorted(in_order(kept.option)) else []

    def strategy(self, kept: PlacedKept) -> Strategy:
        """The strategy of an evaluated row, with its hosts."""
        hosts = self.packing.hosts(kept.shape, kept.option, kept.found.groups)
        return dataclasses.replace(super().strategy(kept), hosts=hosts)


@dataclass
class Candidates:
    """Every packing of some rows: where each comes from, and its prices at the rates of its groups."""

    origin: Ints
    rows: Rows
    shapes: list[Shape]
    options: list[Option]
    prices: Prices
    slower: dict[int, tuple[Prices, Ints]]

    @staticmethod
    def of(search: PlacedSearch, rows: Rows) -> Candidates:
        """Priced as if all groups had the best rate of their packing."""
        every = [(r, it, o) for r, it in enumerate(search.shapes(rows)) for o in search.packing.options(it)]
        origin = np.array([r for r, _, _ in every], dtype=np.int64)
        some, options = rows.take(origin), [o for _, _, o in every]
        levels = np.array([(o.levels[0], o.hop) for o in options], dtype=np.int64).reshape(-1, 2)
        return Candidates(origin, some, [s for _, s, _ in every], options, search.priced_at(some, levels, "rows"), {})

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
            levels[level] = with_hop(table.take(np.searchsorted(mine, [k])), first.hop)
        if virtual > 1:
            levels = {level: it.with_virtual(virtual) for level, it in levels.items()}
        return PlacedKept(levels[option.levels[0]], 0, virtual, bound, None, self.shapes[k], option, levels)

