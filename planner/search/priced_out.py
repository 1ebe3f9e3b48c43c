"""Columns that no plan below the incumbent can hold, and the bound that shows it: a Lagrangian over cuts.

Every plan's objective is at least a sum over its stages, for any ``u`` from 0 to 1 (:mod:`planner.search.trade_off`):

    z >= u w (sum_s A t_s + tail_0 + B) + q sum_s e_s        A = fill factor, B = hop ticks

The least such sum over all cuts, by stages from the first and from the last, is a bound of the row; the least one of
the cuts that hold a column is a bound of every plan with it, and where that reaches the incumbent the column goes. The
bound is concave in ``u``, so the best ``u`` is looked for between its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.chain import Chain
from planner.search.bounds import Objective, fill_of_share, hop_ticks
from planner.search.columns import Columns
from planner.search.cut_sums import Places, places_by_stage, sums_after, sums_before
from planner.search.slowest import SLACK, Weighing, priced_by_slowest

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
FIRST_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HALVINGS = 4
MOST_SHARES = 3


@dataclass(frozen=True)
class Cuts:
    """The segments of a row's columns: ``segment`` of each column, and where each segment may begin."""

    chain: Chain
    segment: Ints
    places: list[Places]

    @staticmethod
    def of(chain: Chain, columns: Columns) -> Cuts:
        """The distinct segments of columns."""
        keys = np.stack([columns.stage, columns.i, columns.j - columns.i])
        distinct, segment = np.unique(keys, axis=1, return_inverse=True)
        return Cuts(chain, segment.ravel(), places_by_stage(chain, *distinct))

    def least_through(self, cost: Floats) -> tuple[float, Floats]:
        """The least total cost of any cut, and of the cuts that hold each column, ``[columns]``."""
        least = np.full(int(self.segment.max(initial=-1)) + 1, np.inf)
        np.minimum.at(least, self.segment, cost)
        ahead, behind = (sums(self.chain, self.places, least) for sums in (sums_before, sums_after))
        rest = np.full(len(least), np.inf)
        for s, it in enumerate(self.places):
            np.minimum.at(rest, it.column, ahead[s][it.begin] + behind[s + 1][it.end])
        return float(ahead[-1][-1]), rest[self.segment] + cost


def least_fill(chain: Chain, columns: Columns) -> float:
    """The fill factor that holds for stages of these columns."""
    work = columns.forward + columns.backward
    share = np.where(work > 0, columns.backward / np.maximum(work, 1), 1.0).min(initial=1.0)
    return float(fill_of_share(chain.pp, chain.micro_batches, share))


def least_hops(chains: list[Chain]) -> int:
    """The ticks of hops that come with :func:`least_fill`."""
    return min(int(hop_ticks(it.prices)[it.row]) for it in chains)


def price_out(
    chains: list[Chain], columns: Columns, dynamic: Floats, objective: Objective, incumbent: float
) -> tuple[NDArray[np.bool_], float]:
    """Which columns may be part of a plan below ``incumbent``, and the bound of the row.

    ``chains`` price the columns, the fastest first; ``dynamic`` is each column's joules over all devices of its stage.
    """
    cuts, keep, known = Cuts.of(chains[0], columns), np.ones(len(columns), dtype=bool), {}

    def ask(share: float) -> float:
        fixed, cost = _weighed(chains, columns, dynamic, objective, share)
        total, through = cuts.least_through(cost)
        np.logical_and(keep, (through + fixed) * SLACK < incumbent, out=keep)
        known[share] = (total + fixed) * SLACK
        return known[share]

    for share in FIRST_WEIGHTS if objective.power.given else (1.0,):
        ask(share)
    for _ in range(HALVINGS if objective.power.given else 0):
        for share in _beside_best(known):
            ask(share)
    bound = max(known.values())
    if bound < incumbent:
        shares = sorted(known, key=known.__getitem__)[-MOST_SHARES:]
        weighings = [weighing(chains[0], dynamic, objective, share) for share in shares]
        some, slower = priced_by_slowest(chains[0], columns, weighings, cuts.least_through, incumbent)
        keep, bound = keep & some, max(bound, min(slower, incumbent))
    return keep, bound


def _beside_best(known: dict[float, float]) -> list[float]:
    """Halfway between the best share so far and its neighbours."""
    shares = sorted(known)
    at = max(range(len(shares)), key=lambda k: known[shares[k]])
    beside = [shares[k] for k in (at - 1, at + 1) if 0 <= k < len(shares)]
    return [(shares[at] + share) / 2 for share in beside]


def _weighed(
    chains: list[Chain], columns: Columns, dynamic: Floats, objective: Objective, share: float
) -> tuple[float, Floats]:
    """What every plan costs whatever its columns are, and what each column adds, for one ``u``."""
    it = weighing(chains[0], dynamic, objective, share)
    ticks = least_fill(chains[0], columns) * (columns.forward + columns.backward)
    ticks = ticks + np.where(columns.stage == 0, columns.tail, 0)
    return it.per_tick * least_hops(chains), it.per_tick * ticks + it.joules


def weighing(chain: Chain, dynamic: Floats, objective: Objective, share: float) -> Weighing:
    """The weights of ticks and joules for one ``u``."""
    per_joule = objective.per_joule
    if share < 1:
        per_joule += (1 - share) * float(objective.weight[0] * objective.least_step_s(np.ones(1))[0])
    return Weighing(share * float(objective.weight[0]) * chain.prices.ticks.second, per_joule * dynamic)
