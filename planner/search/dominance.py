"""Rows that another row beats in everything: they cannot be part of a better plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cost_models.offload import LAYERS_DIFFER_IN, sorts
from cost_models.price import Prices
from planner.search.bounds import Objective
from planner.search.order import in_order

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_HELD, BITS_AT_ONCE = 512, 2**24
"""Rows that are held against all others at once, and pairs of them, at most."""
COMPARED_AT_ONCE = 2**20
"""Comparisons of all quantities up to which no table of bits is worth its time."""
LOOKED_AFTER = 8
"""Quantities after which rows that dominate no other are left aside."""


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
    kept = [members[_front(costs[members])] for members in (np.flatnonzero(group == g) for g in range(group.max() + 1))]
    return np.sort(order[np.concatenate(kept)])


def features(prices: Prices, index: Ints, objective: Objective) -> NDArray[np.float64]:
    """Of the rows at ``index``, ``[rows, quantities]``, everything in which less is better."""
    tables = [
        prices.forward, prices.backward, prices.extra["full"], prices.extra["selective"],
        prices.reduce, prices.gather, prices.update, prices.state_bytes, *prices.saved.values(),
        prices.joules_pass, prices.joules_extra["full"], prices.joules_extra["selective"], prices.joules_step,
        *(table for slow in prices.slower.values() for table in _of_clock(slow)),
        *(table for at in (prices, *prices.slower.values()) for it in sorts(at)[1:] for table in _of_sort(it)),
        *(table for at in (prices, *prices.slower.values()) for table in _of_sent(at)),
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


def _of_sort(it: Prices) -> list[NDArray]:
    """The tables of layers that keep more on the device."""
    tables = [*(getattr(it, name) for name in ("state_bytes", *LAYERS_DIFFER_IN)), *it.saved.values()]
    return [*tables, *it.tier_states.values(), *it.tier_saved.values(), *it.sent.values()]


def _of_sent(it: Prices) -> list[NDArray]:
    """Traffic of layers that let all go, and the passes of virtual stages, which cannot hide it behind other layers."""
    return [*it.sent.values(), *(() if it.alike is None else (it.alike.forward, it.alike.backward))]


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


def _front(features: NDArray[np.float64]) -> Ints:
    """Rows that no other row dominates; in order of their sum of places a row can only be dominated by an earlier one.

    A block of rows after the other is held against all that is left, column by column, as a table of bits.
    """
    columns = _places(features)
    if not columns:
        return np.array([0])
    table, front = np.stack(columns), list[Ints]()
    left = np.argsort(table.sum(axis=0, dtype=np.int64), kind="stable")
    table = table[:, left]
    while len(left):
        block = min(MOST_HELD, max(1, BITS_AT_ONCE // len(left)), len(left))
        beaten = _beaten(table, block)
        front.append(left[:block][~beaten[:block]])
        keep = block + np.flatnonzero(~beaten[block:])
        left, table = left[keep], table[:, keep]
    return np.sort(np.concatenate(front))


def _places(features: NDArray[np.float64]) -> list[NDArray]:
    """The place of every row in each quantity, of quantities that order rows differently; those of most values first.

    A quantity in which all are equal has none.
    """
    varied = np.ascontiguousarray(features[:, (features != features[0]).any(axis=0)].T)
    order = varied.argsort(axis=1)
    ranked = np.take_along_axis(varied, order, axis=1)
    places = np.zeros(varied.shape, dtype=np.uint32)
    np.put_along_axis(places, order[:, 1:], np.cumsum(ranked[:, 1:] != ranked[:, :-1], axis=1), axis=1)
    return sorted({place.tobytes(): place for place in places[::-1]}.values(), key=lambda place: -int(place.max()))


def _beaten(table: NDArray, block: int) -> NDArray[np.bool_]:
    """Of rows in order, ``[quantities, rows]``, those that one of the first ``block`` rows before them dominates.

    A dominated one among these may count too: what it dominates the one that dominates it does.
    """
    rows = np.arange(block)
    later = np.arange(table.shape[1]) > rows[:, None]
    if table.size * block <= COMPARED_AT_ONCE:
        return (later & (table[:, None] >= table[:, :block, None]).all(axis=0)).any(axis=0)
    worse = np.packbits(later, axis=1)
    for k, quantity in enumerate(table):
        values, at = np.unique(quantity[rows], return_inverse=True)
        worse &= np.packbits(quantity >= values[:, None], axis=1)[at]
        if k % LOOKED_AFTER == 0:
            some = worse.any(axis=1)
            rows, worse = rows[some], worse[some]
    return np.unpackbits(np.bitwise_or.reduce(worse, axis=0), count=table.shape[1]).astype(bool)
