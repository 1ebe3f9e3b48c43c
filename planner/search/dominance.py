"""Rows that another row beats in everything: they cannot be part of a better plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.offload import LAYERS_DIFFER_IN
from cost_models.price import Prices
from planner.search.bounds import Objective
from planner.search.nondominated import nondominated
from planner.search.order import in_order

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def undominated(prices: Prices, index: Ints, objective: Objective, costs: Floats | None = None) -> Ints:
    """Positions in ``index`` of rows that no other row of the same degrees and schedule dominates.

    A row dominates another of the same pp, micro-batches and stage size when nothing about it is greater:
    times, bytes, joules, and what a second costs. Every path, memory sum and objective grows with these, so
    dropping dominated rows loses nothing. Of equal rows the first in :mod:`planner.search.order` stays.
    ``costs`` are the quantities of which none may be greater, where they are not :func:`features`.
    """
    if not len(index):
        return index
    order = in_order(prices.rows.take(index))
    index = index[order]
    keys = np.stack(
        [getattr(prices.rows, a)[index] for a in ("pp", "micro_batches", "stage_size", "micro_batch")], axis=1
    )
    pooled = any(pool.tier.pools > 1 for pool in prices.tier_pools.values())
    if pooled or objective.power.host_w is not None or objective.power.rack_w is not None:
        # Which stages share a host, a rack or a pool follows from these, and no order of prices says which is better.
        keys = np.concatenate([keys, prices.rows.used()[index], prices.rows.factors["pp"][index]], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    costs = features(prices, index, objective) if costs is None else costs[order]
    groups = (np.flatnonzero(group == g) for g in range(group.max() + 1))
    kept = [members[nondominated(costs[members])] for members in groups]
    return np.sort(order[np.concatenate(kept)])


def features(prices: Prices, index: Ints, objective: Objective) -> NDArray[np.float64]:
    """Of the rows at ``index``, ``[rows, quantities]``, everything in which less is better."""
    tables = [
        prices.forward, prices.backward, prices.extra["full"], prices.extra["selective"],
        prices.reduce, prices.gather, prices.update, prices.state_bytes, *prices.saved.values(),
        prices.joules_pass, prices.joules_extra["full"], prices.joules_extra["selective"], prices.joules_step,
        *(table for slow in prices.slower.values() for table in _of_clock(slow)),
        *(table for near in (prices, *prices.slower.values()) for table in _of_nearer(near.nearer)),
        *prices.tier_states.values(), *prices.tier_saved.values(),
    ]  # fmt: skip
    singles = [*prices.tier_tied.values(), *(-room for room in prices.tier_room.values()),
               prices.hop, prices.fixed_bytes, prices.logits, prices.tied_bytes, objective.weight,
               objective.static.facility_w, *(it.weight for it in objective.ceilings)]  # fmt: skip
    return np.concatenate([*(t[index] for t in tables), np.stack([s[index] for s in singles], axis=1)], axis=1).astype(
        np.float64
    )


def _of_clock(slow: Prices) -> list[NDArray]:
    """The tables that a lower clock changes."""
    return [
        slow.forward, slow.backward, slow.extra["full"], slow.extra["selective"],
        slow.joules_pass, slow.joules_extra["full"], slow.joules_extra["selective"],
    ]  # fmt: skip


def _of_nearer(nearer: Prices | None) -> list[NDArray]:
    """The tables of layers that keep one class more on the device."""
    if nearer is None:
        return []
    return [*(getattr(nearer, name) for name in ("state_bytes", *LAYERS_DIFFER_IN)), *nearer.tier_states.values()]


def features_of_parts(prices: Prices, index: Ints) -> NDArray[np.float64]:
    """Of the rows at ``index``, what else matters where the backward pass is split, and passes run beside each other.

    The weights' gradients and the inputs' by themselves, and what a forward and an input's gradient take in a pair.
    """
    tables = []
    for at in (prices, *prices.slower.values()):
        inputs = at.backward - at.weights
        tables += [at.weights[index], inputs[index]]
        if at.hidden:
            tables += [(at.forward - at.hidden["forward"])[index], (inputs - at.hidden["backward"])[index]]
    return np.concatenate(tables, axis=1).astype(np.float64)
