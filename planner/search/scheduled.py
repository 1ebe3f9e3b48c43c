"""The search under one of the further schedules of :mod:`cost_models.schedules`.

Where a device has one stage, cuts and recompute are chosen as under 1F1B, by CP-SAT in the end; where it has two,
every row is a few points (:mod:`planner.search.folded`). Before the cut is known, let ``f``, ``b`` and ``w`` be a
micro-batch's ticks of a stage, ``t = f + b`` and ``S`` the sum of all; ``phi`` is the least share of ``f`` in ``t`` of
any layer, 1 for eager 1F1B, where a stage also waits for backwards to come up as long as they go down. Stages whose
paths ``phi sum_{j<s} t_j + m t_s`` are all as long as each other are the best there can be:

    step >= phi S / (1 - (1 - phi / m)^pp) + (pp - 1) / 2 hop             (hop twice when eager)
    step >= m ceil(L / pp) t_min

Under zb-h1 the first input's gradient reaches stage ``s`` after all forwards down and all input's gradients back, when
``pp - s`` of its forwards are done, and the last one goes up before ``s + 1`` of its weights' gradients. In the mean of
all stages, with ``(pp - 1 - s) f_s + (s + 1) w_s <= pp max(f_s, w_s)`` and for ``m > pp``,

    step >= m S / pp + (1 - 1 / pp) sum (f + b - w) - sum max(f, w) + 2 (pp - 1) hop

Such devices hold no fewer micro-batches than 1F1B's, so what its memory forces is forced here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from cost_models.rows import Rows
from cost_models.schedules import EAGER, FEW_CUTS, virtual_stages_of
from cost_models.ticks import Ticks
from planner.candidates import Space
from planner.search.balanced import Batch
from planner.search.bounds import Objective, kind_counts, objective_of, tail_bound
from planner.search.dominance import features, features_of_parts, undominated
from planner.search.engine import Search
from planner.search.folded import Cuts, FoldedScreen
from planner.search.incumbent import best_of_cut, quick
from planner.search.interleaved import best_point
from planner.search.kept import Kept
from planner.search.offloads import row_of
from planner.search.recompute_bound import forced_recompute
from planner.search.screen import SLACK, Screen

if TYPE_CHECKING:
    from cost_models.strategy import Strategy
    from planner.options import Options

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def legal_in_flight(kind: str, pp: int) -> range:
    """Micro-batches that the first device may hold: more than 1F1B's when eager, else 0, which leaves it open."""
    return range(pp + 1, 2 * pp) if kind == EAGER else range(1)


class FreeScreen(Screen):
    """Bounds and memory tests of rows whose devices have one virtual stage each; rows without a pipeline are out."""

    def __init__(self, space: Space, limit_bytes: int, ticks: Ticks) -> None:
        super().__init__(space, limit_bytes, ticks)
        self.pin = 1

    def _plain(self, prices: Prices, objective: Objective, buffers: bool | None) -> Floats:
        bounds = self._value(objective, self._plain_ticks(prices, buffers), prices)
        return np.where(prices.rows.pp > 1, bounds, np.inf)

    def _plain_ticks(self, prices: Prices, buffers: bool | None) -> Floats:
        rows, both = prices.rows, prices.forward + prices.backward
        least = rows.micro_batches * -(-self.model.layers // rows.pp) * both[:, :-2].min(axis=1)
        filled = _filled(prices, self.model)
        if prices.weights is not None:
            filled = np.maximum(filled, _returned(prices, self.model))
        ticks = (np.maximum(least, filled) + tail_bound(prices, self.model)) * SLACK
        if buffers is None:
            return ticks
        forced = forced_recompute(prices, self.model, self.limit, buffers=buffers)
        return np.maximum(ticks, forced.any_schedule * SLACK)


def _filled(prices: Prices, model: ModelGraph) -> Floats:
    """The first bound of the module, ``[rows]``."""
    rows, both, eager = prices.rows, prices.forward + prices.backward, prices.rows.schedule == EAGER
    share = np.where(both > 0, prices.forward / np.maximum(both, 1), 1.0).min(axis=1)
    phi = np.ones(len(rows)) if eager else np.maximum(share, 1e-6)
    spread = 1 - (1 - phi / rows.micro_batches) ** rows.pp
    return phi * (both @ kind_counts(model)) / spread + (rows.pp - 1) * prices.hop * (1 if eager else 0.5)


def _returned(prices: Prices, model: ModelGraph) -> Floats:
    """The bound of the module by the way back under zb-h1, ``[rows]``; 0 for ``m <= pp``."""
    rows, counts, weights = prices.rows, kind_counts(model), prices.weights
    both = prices.forward + prices.backward
    way = (1 - 1 / rows.pp) * ((both - weights) @ counts) - np.maximum(prices.forward, weights) @ counts
    ticks = rows.micro_batches * (both @ counts) / rows.pp + way + 2 * (rows.pp - 1) * prices.hop
    return np.where(rows.micro_batches > rows.pp, ticks, 0.0)


class ScheduledSearch(Search):
    """A search under the schedule that is pinned."""

    def __init__(self, space: Space, options: Options, *rest: Any, **named: Any) -> None:
        super().__init__(space, options, *rest, **named)
        self.kind = str(options.pins["schedule"])
        self.virtual, limits = virtual_stages_of(self.kind), (space, self.limit, self.ticks)
        self.few_cuts = self.kind in FEW_CUTS
        if self.few_cuts:
            self.solver = "admissible bounds, then every cut that they leave"
            self.screen = FoldedScreen(*limits, self.kind)
        else:
            self.screen = FreeScreen(*limits)

    def prices_of(self, rows: Rows, *, relaxed: bool = False, loosely: bool = False) -> Prices:
        """Prices of rows under the schedule, at every clock that the search may choose."""
        return super().prices_of(rows.scheduled(self.kind, self.virtual), relaxed=relaxed, loosely=loosely)

    def of_cut(self, it: Strategy, options: Options) -> Kept | None:
        """The best plan with a strategy's row and cut, its recompute and clocks chosen again; ``None`` if none fits."""
        prices, cut = self.prices_of(row_of(self.space, it)), np.cumsum([0, *it.layers_per_stage])
        rows = prices.rows.scheduled(self.kind, self.virtual, it.schedule.in_flight)
        prices, objective = prices.with_rows(rows), objective_of(rows, self.cluster, options)
        best = best_point if self.few_cuts else best_of_cut
        limits = int(rows.stage_size[0]), self.limit, self.recompute
        found = best(Chain(self.model, prices, 0), cut, objective, *limits, beat=np.inf)
        return None if found is None else Kept(prices, 0, self.virtual, found.value, found)

    def _undominated(self, prices: Prices, index: Ints, objective: Objective) -> Ints:
        """Where the weights' gradients are work of their own, neither they nor the inputs' may be greater."""
        if prices.weights is None:
            return super()._undominated(prices, index, objective)
        costs = np.concatenate([features(prices, index, objective), features_of_parts(prices, index)], axis=1)
        return undominated(prices, index, objective, costs)

    def _try(self, batch: Batch, row: int, virtual: int, clock: float, bound: float) -> None:
        prices, objective = batch.prices.take(np.array([row])), batch.objective.take(np.array([row]))
        for held in legal_in_flight(self.kind, int(prices.rows.pp[0])):
            here = prices.with_rows(prices.rows.scheduled(self.kind, virtual, held))
            chain, size = Chain(self.model, here, 0), int(here.rows.stage_size[0])
            if self.few_cuts:
                self._try_points(chain, objective, clock)
                continue
            found = quick(chain, objective, size, self.limit, self.recompute, self.value)
            self._keep(Kept(here, 0, virtual, bound, found))

    def _try_points(self, chain: Chain, objective: Objective, clock: float) -> None:
        """Every cut of a row, best bound first."""
        cuts = Cuts.of(self.model, self.kind, chain.pp)
        bounds = self.screen.of_cuts(chain.prices.only(clock), objective, cuts)
        for at in np.argsort(bounds, kind="stable"):
            if bounds[at] > self.value:
                break
            self._keep_point(chain, cuts.table[at], objective, clock)
