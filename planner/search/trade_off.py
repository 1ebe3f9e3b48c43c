"""Bounds that weigh a lower clock's seconds against its joules, where each by itself would promise both at once.

A bound of the step at full clock and a bound of the joules at the thriftiest one hold, but no plan has both. With
``t_k(c)`` and ``e_k(c)`` the ticks and joules of a layer of kind ``k`` at clock ``c``, and any ``u`` from 0 to 1,

    z >= u w (A sum_k n_k t_k + B) + q m sum_k n_k e_k        q = p + (1 - u) w pue / spare
      >= sum_k n_k min_c (u w A t_k(c) + q m e_k(c)) + ...

``w`` and ``p`` are what a second and a joule weigh; in the place of ``pue / spare``, the seconds that a limit on the
site's power asks for a joule, stands for limits on other levels the sum over their groups
(:mod:`cost_models.power_levels`); without any ``u`` is 1. ``A`` is 1F1B's fill factor
(:func:`planner.search.bounds.fill_factor`) and ``B`` its hops (``hop_ticks``): that bound is linear in the work of all
stages, whatever their clocks. Every layer is let have its own clock, which no plan does better than.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.model_graph import ModelGraph
from cost_models.price import Prices
from planner.search.bounds import Objective, fill_factor, hop_ticks, kind_counts

Floats = NDArray[np.float64]
WEIGHTS = tuple(np.linspace(0.0, 1.0, 9).tolist())


def trade_off_bound(prices: Prices, model: ModelGraph, objective: Objective) -> Floats:
    """The objective that no clocks of the stages beat, ``[rows]``, under 1F1B."""
    rows, counts = prices.rows, kind_counts(model)
    factor = np.minimum.reduce([fill_factor(prices.at(clock)) for clock in prices.clocks])
    update = prices.update[:, :-2].min(axis=1) + prices.update[:, -2]
    fixed, weight = hop_ticks(prices) + update, objective.weight * prices.ticks.second
    step_j, best = (prices.joules_step @ counts) * rows.stage_size, np.zeros(len(rows))
    for share, per_joule in weighings(objective):
        passes = _least_passes(prices, share * weight * factor, per_joule * rows.micro_batches) @ counts
        best = np.maximum(best, passes + share * weight * fixed + per_joule * step_j)
    return best


def weighings(objective: Objective) -> list[tuple[float, Floats]]:
    """Pairs of ``u`` and ``q`` (``[rows]``), infinite ``q`` where idling alone exceeds a limit on power."""
    if not objective.power.given:
        return [(1.0, np.full(len(objective.weight), objective.per_joule))]
    waits = objective.least_step_s(np.ones(len(objective.weight)))
    return [
        (share, objective.per_joule + ((1 - share) * objective.weight * waits if share < 1 else 0 * objective.weight))
        for share in WEIGHTS
    ]


def _least_passes(prices: Prices, per_tick: Floats, per_joule: Floats) -> Floats:
    """The least weighed cost of a pass of one layer over all clocks, ``[rows, kinds]``."""
    per_joule = (per_joule * prices.rows.stage_size)[:, None]
    each = []
    for clock in prices.clocks:
        at = prices.at(clock)
        each.append(per_tick[:, None] * (at.forward + at.backward) + per_joule * at.joules_pass)
    return np.minimum.reduce(each)
