"""Least sums over all cuts of one row into its columns, stage by stage, by dynamic programming over boundaries.

A column may begin at every boundary of the class of its own (:attr:`cost_models.chain.Chain.places`). With ``t_s`` the
work of stage ``s`` on one micro-batch and ``m > pp``, the return paths of 1F1B (:mod:`cost_models.pipeline`) say

    step >= (1 + r) (A_0 + 2 (pp - 1) hop) + tail_0 + M_0     A_s = sum_{j>=s} t_j
    M_s = max(M_{s+1}, (m - pp + s - r pp) t_s + A_{s+1} + 2 (pp - 1 - s) hop)

with ``r`` rounds past all stages (:mod:`planner.search.bounds`) or none. The sums with ``A_0`` and ``M_0`` are
minimised each by itself, which only lowers their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.bounds import rounds_of
from planner.search.columns import Columns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST = 1 - 1e-12
"""What rounding may take off a sum of stages: doubles count ticks one by one only up to 2**53."""


@dataclass(frozen=True)
class Places:
    """The columns of one stage, by position, at every boundary where they may begin; where each begins and ends."""

    column: Ints
    begin: Ints
    end: Ints


def places_by_stage(chain: Chain, stage: Ints, i: Ints, n: Ints) -> list[Places]:
    """For every stage the places of its segments: ``n`` layers that begin where layer ``i`` does or one like it."""
    apart = chain.layers + 1
    keys = chain.places * apart + np.arange(apart)
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], chain.places[i] * apart)
    count = np.searchsorted(keys[order], chain.places[i] * apart + chain.layers - n, side="right") - first
    found = []
    for s in range(chain.pp):
        mine = np.flatnonzero(stage == s)
        column, within = np.repeat(mine, count[mine]), np.arange(count[mine].sum())
        within -= np.repeat(np.cumsum(count[mine]) - count[mine], count[mine])
        begin = order[first[column] + within]
        found.append(Places(column, begin, begin + n[column]))
    return found


def column_places(chain: Chain, columns: Columns) -> list[Places]:
    """The places of all columns of a row, stage by stage."""
    return places_by_stage(chain, columns.stage, columns.i, columns.j - columns.i)


def sums_before(chain: Chain, places: list[Places], cost: Floats) -> list[Floats]:
    """The least cost of so many first stages that end at each boundary, ``pp + 1`` times ``[L + 1]``."""
    sums = [np.full(chain.layers + 1, np.inf) for _ in range(chain.pp + 1)]
    sums[0][0] = 0.0
    for s, it in enumerate(places):
        np.minimum.at(sums[s + 1], it.end, sums[s][it.begin] + cost[it.column])
    return sums


def sums_after(chain: Chain, places: list[Places], cost: Floats) -> list[Floats]:
    """The least cost of the stages from each on that begin at each boundary, ``pp + 1`` times ``[L + 1]``."""
    sums = [np.full(chain.layers + 1, np.inf) for _ in range(chain.pp + 1)]
    sums[-1][-1] = 0.0
    for s in range(chain.pp - 1, -1, -1):
        np.minimum.at(sums[s], places[s].begin, sums[s + 1][places[s].end] + cost[places[s].column])
    return sums


def least_total(chain: Chain, places: list[Places], cost: Floats) -> float:
    """The least cost of any cut."""
    return float(sums_before(chain, places, cost)[-1][-1])


def return_ticks(chain: Chain, columns: Columns, places: list[Places]) -> float:
    """Ticks that no cut beats by its return paths; where ``m <= pp`` only by all its work."""
    pp, m, ticks = chain.pp, chain.micro_batches, (columns.forward + columns.backward).astype(float)
    tail, work = np.where(columns.stage == 0, columns.tail, 0), sums_after(chain, places, ticks)
    hops = 2 * (pp - 1) * chain.hop
    if m <= pp:
        return (least_total(chain, places, ticks + tail) + hops) * LEAST
    paths = [
        least_total(chain, places, (1 + r) * ticks + tail) + (1 + r) * hops + _last_stay(chain, places, ticks, work, r)
        for r in {0, int(rounds_of(pp, m))}
    ]
    return max(paths) * LEAST


def _last_stay(chain: Chain, places: list[Places], ticks: Floats, work: list[Floats], rounds: int) -> float:
    """The least ``M_0`` of any cut, with so many rounds before the stay."""
    pp, path = chain.pp, np.where(np.arange(chain.layers + 1) < chain.layers, np.inf, 0.0)
    for s in range(pp - 1, -1, -1):
        it, further = places[s], np.full(chain.layers + 1, np.inf)
        own = (chain.micro_batches - (1 + rounds) * pp + s) * ticks[it.column] + work[s + 1][it.end]
        np.minimum.at(further, it.begin, np.maximum(path[it.end], own + 2 * (pp - 1 - s) * chain.hop))
        path = further
    return float(path[0])
