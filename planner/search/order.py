"""The order among plans of equal objective, so that no tie is settled by who came first.

    devices, pp, micro-batch                       fewest first
    bytes of a layer of each kind in memory tiers  fewest first, so that no plan names an offload which it does not use
    the row's prices, table by table               a row that dominates another comes before it
    tp, cp, dp_shard, dp_replicate, ep, etp, zero, placement, virtual stages
    stage by stage: layers, of these full, of these selective recompute, of these offloading more states than others,
    of these letting activations go, fewest first; where it is chosen, the highest clock

Where hosts differ, prices are those at every rate that the row's hosts may have, and after the virtual stages the way
its groups of hosts are packed follows, the quickest hops first.

The first of equal plans in this order is the plan. Every step of the search keeps it: a bound is below the value of
each plan of its row, so rows with a plan as good as the incumbent are looked at too; of rows of equal prices the first
stays; the solver is asked for plans *as good as* the incumbent in each row before it, and last for the first split of
the row that won. Where joules count, objectives are sums of floats: there plans within ``EQUAL`` are equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.price import Prices
from cost_models.rows import AXIS_FACTORS, Rows

if TYPE_CHECKING:
    from cost_models.estimate import Runs
    from planner.search.bounds import Objective

DEGREES = ("tp", "cp", "dp_shard", "dp_replicate", "ep", "etp", "zero")
EQUAL = 2.0**-36
"""Far above a solver's grain times its stages, far below what any price is known to."""


def row_vectors(rows: Rows) -> NDArray[np.int64]:
    """Degrees and placement of every row, ``[rows, numbers]``: what tells rows of equal prices apart."""
    degrees = np.stack([getattr(rows, name) for name in DEGREES], axis=1)
    return np.concatenate([degrees, *(rows.factors[axis] for axis in AXIS_FACTORS)], axis=1)


def in_order(rows: Rows) -> NDArray[np.int64]:
    """Positions of rows in the order of their vectors."""
    return np.lexsort(row_vectors(rows).T[::-1])


def first_key(rows: Rows) -> tuple[int, ...]:
    """Devices, pp and micro-batches of a one-row table: with which :func:`row_key` begins."""
    return tuple(int(a[0]) for a in (rows.world_size, rows.pp, rows.micro_batch, rows.micro_batches))


def row_key(
    prices: Prices, objective: Objective, virtual: int, costs: NDArray[np.float64] | None = None
) -> tuple[float, ...]:
    """Where the plans of a one-row table stand among plans of equal objective, but for their splits.

    ``costs`` are the quantities that dominance looks at, ``[1, quantities]``, where they are not the row's features.
    """
    from planner.search.dominance import features

    rows = prices.rows
    costs = features(prices, np.array([0]), objective) if costs is None else costs
    outside = sum(int(table[0].sum()) for table in (*prices.tier_states.values(), *prices.tier_saved.values()))
    return (*first_key(rows), outside, *costs[0].tolist(), *row_vectors(rows)[0].tolist(), virtual)


def split_key(
    runs: Runs, clocks: tuple[float, ...] = (), leaving: tuple[tuple[int, int], ...] = ()
) -> tuple[float, ...]:
    """Layers, full and selective recompute, layers that states and activations leave, stage by stage, and its clock."""
    numbers: list[float] = []
    for c, stage in enumerate(runs):
        count = {kind: j - i for kind, i, j in stage}
        layers = stage[-1][2] - stage[0][1]
        numbers += [layers, count.get("full", 0), count.get("selective", 0)]
        numbers += leaving[c] if leaving else (layers, layers)
        if clocks:
            numbers.append(-clocks[c % len(clocks)])
    return tuple(numbers)
