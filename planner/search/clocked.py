"""Clocks that waste nothing: for a longest stage, every other one as slow as that lets it be.

For given stages and a longest time ``T`` of one micro-batch, each stage takes the choice of recompute and clock that
spends the fewest joules among those of at most ``T``. Only the times that some choice has are worth asking, and of
their plans only those whose paths and joules promise the most are run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.bounds import Objective
from planner.search.columns import Columns, column_joules

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_RUN = 6


def thrifty(chain: Chain, columns: Columns, objective: Objective, stage_size: int, beat: float) -> Ints:
    """``[plans, pp]`` positions in ``columns``, a plan a row, most promising first; none that ``beat`` rules out."""
    spent, ticks = column_joules(chain, columns), columns.forward + columns.backward
    stages = [np.flatnonzero(columns.stage == s) for s in range(chain.pp)]
    if not all(len(mine) for mine in stages):
        return np.zeros((0, chain.pp), dtype=np.int64)
    limits = np.unique(ticks)
    limits = limits[limits >= max(ticks[mine].min() for mine in stages)]
    picked = np.stack([_least_below(mine, ticks, spent, limits) for mine in stages], axis=1)
    picked = np.unique(picked, axis=0)
    least = _least_values(chain, columns, spent, picked, objective, stage_size)
    order = np.argsort(least, kind="stable")[:MOST_RUN]
    return picked[order[least[order] < beat]]


def _least_below(mine: Ints, ticks: Ints, spent: Floats, limits: Ints) -> Ints:
    """For every limit the choice of one stage that spends the fewest joules within it."""
    order = mine[np.lexsort((spent[mine], ticks[mine]))]
    fewest = np.minimum.accumulate(spent[order])
    better = np.concatenate([[True], fewest[1:] < fewest[:-1]])
    at = np.maximum.accumulate(np.where(better, np.arange(len(order)), 0))
    return order[at[np.searchsorted(ticks[order], limits, "right") - 1]]


def _least_values(
    chain: Chain, columns: Columns, spent: Floats, picked: Ints, objective: Objective, stage_size: int
) -> Floats:
    """The objective's least value of every plan, by the paths that need no schedule."""
    ticks = np.zeros(len(picked), dtype=np.int64)
    for path in chain.schedule.seed_paths():
        ticks = np.maximum(ticks, columns.along(path)[picked].sum(axis=1) + path.hops * chain.hop)
    dynamic = spent[picked].sum(axis=1) * stage_size
    return objective.value(ticks * chain.prices.ticks.second, dynamic)
