"""Prices of rows that keep tensors outside device memory, from their prices with everything inside.

Where states leave whole, a 1F1B stage may let only its first layers go as far as the row says; the others keep one
class more on the device, the last to leave of optimiser states, gradients and weights. They are priced as ``nearer``.
Where activations leave whole it may let those of only so many first layers go, any other number; layers that keep
theirs are priced as ``kept``, with its own ``nearer``. A plan's layers of all sorts are kinds of their own
(:mod:`cost_models.side_by_side`). States of embedding and head are always of the first sort; what backward needs of
these two stays on the device. Virtual stages have but one sort, priced as ``alike``.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cost_models.pools import Pool
from cost_models.strategy import OFFLOADED
from cost_models.tiers import (
    ACTIVATIONS,
    CHECKPOINTS,
    GRADIENTS,
    OPTIMIZER,
    STATES,
    WEIGHTS,
    LayerBytes,
    LayerTiers,
    TierRates,
    kept_share,
    layer_tiers,
    rates_of,
    tier_rates,
    tiers_of,
)
from cost_models.workload import Training
from topologies.cluster import Cluster

if TYPE_CHECKING:
    from cost_models.price import Prices

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LAYERS_DIFFER_IN = ("forward", "backward", "update", "joules_pass", "joules_step")
"""Prices beside bytes in which layers differ that keep one class of states more on the device or not.

In ``sent`` they differ too; there and in ``saved``, ``tier_saved`` and ``joules_pass`` those that keep activations."""
STAGED_LAYERS = 2
"""Layers whose weights, or whose saved activations, lie in device memory while they come and go."""


def with_offloads(prices: Prices, cluster: Cluster, workload: Training, *, relaxed: bool = False) -> Prices:
    """The prices of rows that offload; others as they are.

    ``relaxed`` counts what device memory no longer holds and nothing that it costs, so that no price is above that
    of a row which offloads as much or less.
    """
    if not prices.rows.tiers:
        return prices
    slower = {clock: with_offloads(it, cluster, workload, relaxed=relaxed) for clock, it in prices.slower.items()}
    if relaxed:
        return dataclasses.replace(prices, **_less_memory(prices), slower=slower)
    rates = tier_rates(prices.rows, cluster)

    def offloading(share: Floats, spread: NDArray[np.bool_], names: tuple[str, ...] = ()) -> Prices:
        these = dataclasses.replace(prices, rows=prices.rows.offloading(share, prices.rows.tiers))
        found = _offloaded(these, spread, rates, cluster, workload)
        return dataclasses.replace(found, slower={clock: attrgetter(*names)(it) for clock, it in slower.items()})

    share, none = prices.rows.offload, np.zeros(len(prices.rows), dtype=bool)
    if prices.rows.schedule != "1f1b" or (prices.rows.virtual > 1).all():
        return dataclasses.replace(_offloaded(prices, none, rates, cluster, workload), slower=slower)
    spread = share.sum(axis=2)[:, ACTIVATIONS] == 1.0
    inner, keeping = with_one_class_inside(share), share * ~_activations(spread)
    kept = offloading(keeping, spread, ("kept",))
    both = offloading(with_one_class_inside(keeping), spread, ("kept.nearer",))
    return dataclasses.replace(
        _offloaded(prices, spread, rates, cluster, workload),
        slower=slower,
        nearer=offloading(inner, spread, ("nearer",)),
        kept=dataclasses.replace(kept, nearer=both),
        alike=offloading(share, none, ("alike",)),
    )


def _activations(rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The activations of some rows, ``[rows, classes, 1]``."""
    return rows[:, None, None] & (np.arange(len(OFFLOADED)) == ACTIVATIONS)[None, :, None]


def evenly_offloaded(prices: Prices, share: Floats, cluster: Cluster, workload: Training) -> Prices:
    """The prices of rows that keep ``share``, ``[rows, classes, tiers]``, in the cluster's memory tiers.

    Each device has an even part of its host's tiers and of pools, as if all devices of the cluster moved as much at
    the same time, whichever of them a row uses; layers are all alike.
    """
    every = np.ones(len(prices.rows))
    rates = rates_of(cluster.tiers, cluster.devices_per_host * every, cluster.hosts * every)
    rows = prices.rows.offloading(share, tuple(tier.name for tier in cluster.tiers))
    alone = np.zeros(len(rows), dtype=bool)
    return _offloaded(dataclasses.replace(prices, rows=rows), alone, rates, cluster, workload)


def with_one_class_inside(share: Floats) -> Floats:
    """The shares ``[rows, classes, tiers]`` without the last class of states to leave, where all leave whole."""
    found, leaves = share.copy(), share.sum(axis=2)[:, [OPTIMIZER, GRADIENTS, WEIGHTS]]
    whole, last = np.isin(leaves, (0.0, 1.0)).all(axis=1), (leaves == 1.0).sum(axis=1)
    for count, tensors in enumerate((OPTIMIZER, GRADIENTS, WEIGHTS), start=1):
        found[whole & (last == count), tensors] = 0.0
    return found


def all_alike(prices: Prices) -> Prices:
    """The prices with every layer offloading what its row does, as those of virtual stages must."""
    return prices if prices.alike is None else prices.alike


def lightest(prices: Prices) -> Prices:
    """Prices that no layer undercuts, whatever it keeps: the least time and joules with the least memory, on the
    device and in every tier, and no traffic of activations.
    """
    if prices.nearer is None:
        return prices
    slower = {clock: lightest(it) for clock, it in prices.slower.items()}
    every = sorts(prices)
    least = {name: _least_of_layers([getattr(it, name) for it in every]) for name in LAYERS_DIFFER_IN}
    tiers = {
        kind: {name: _least_of_layers([getattr(it, kind)[name] for it in every]) for name in getattr(prices, kind)}
        for kind in ("tier_states", "tier_saved")
    }
    alone = {"slower": slower, "nearer": None, "kept": None, "alike": None, "sent": {}}
    return dataclasses.replace(prices, **alone, **tiers, **least)


def sorts(prices: Prices) -> list[Prices]:
    """The prices of every sort of layer: all leaves, one class of states stays, activations stay, both stay."""
    if prices.nearer is None:
        return [prices]
    return [prices, prices.nearer, *([prices.kept, prices.kept.nearer] if prices.kept is not None else [])]


def _least_of_layers(tables: list[NDArray]) -> NDArray:
    """The first table with the least price of every kind of layer; embedding and head have no choice."""
    found = tables[0].copy()
    found[:, :-2] = np.minimum.reduce(tables)[:, :-2]
    return found


def _offloaded(
    prices: Prices, spread: NDArray[np.bool_], rates: TierRates, cluster: Cluster, workload: Training
) -> Prices:
    """The prices with every layer offloading what its row says; ``spread`` as in :func:`layer_tiers`."""
    layers = _layers(prices, spread, rates, workload)
    return dataclasses.replace(
        prices,
        **_less_memory(prices),
        **_times(prices, layers),
        **_tiers(prices, layers, rates, cluster),
        fixed=_staged(prices),
    )


def _less_memory(prices: Prices) -> dict[str, dict[str, Ints]]:
    """Bytes that stay on the device."""
    share = prices.rows.offload
    kept = {name: kept_share(share, name) for name in OFFLOADED}
    saved = {choice: table.copy() for choice, table in prices.saved.items()}
    for table in saved.values():
        table[:, :-2] = _part(table[:, :-2], kept["activations"])
    saved["full"][:, :-2] = _part(saved["full"][:, :-2], kept["checkpoints"])
    return {
        "states": {name: _part(table, kept[name]) for name, table in prices.states.items()},
        "tied_states": {name: _part(table, kept[name]) for name, table in prices.tied_states.items()},
        "saved": saved,
    }


def _part(table: Ints, share: Floats) -> Ints:
    """That share of every row's bytes, rounded up."""
    return np.ceil(table * share.reshape(-1, *(1,) * (table.ndim - 1))).astype(np.int64)


def _layers(
    prices: Prices, spread: NDArray[np.bool_], rates: TierRates, workload: Training
) -> list[LayerTiers]:
    """The cost of every kind of layer, embedding and head last."""
    tick, found = prices.ticks.second, []
    per_gradient = workload.recipe.gather_bytes / max(workload.recipe.gradient_bytes, 1)
    blocks = prices.forward.shape[1] - 2
    for k in range(blocks + 2):
        optimizer, gradients = (prices.states[name][:, k].astype(float) for name in ("optimizer", "gradients"))
        updated = _updated(optimizer, gradients, workload)
        size = LayerBytes(
            optimizer=optimizer,
            gradients=gradients,
            weights=prices.states["weights"][:, k].astype(float),
            saved=prices.saved["none"][:, k] * float(k < blocks),
            checkpoint=prices.saved["full"][:, k] * float(k < blocks),
            updated=updated,
            weights_back=updated * per_gradient,
        )
        work = (table[:, k] * tick for table in (prices.forward, prices.backward, prices.update))
        found.append(layer_tiers(size, prices.rows.offload, rates, *work, spread=spread))
    return found


def _updated(optimizer: Floats, gradients: Floats, workload: Training) -> Floats:
    """Bytes of the gradients of those parameters whose states the device has; it may hold more of them."""
    if not workload.optimizer_bytes:
        return gradients
    return np.minimum(gradients, optimizer * workload.recipe.gradient_bytes / workload.optimizer_bytes)


def _times(prices: Prices, layers: list[LayerTiers]) -> dict[str, object]:
    """Passes wait for what their traffic sticks out; two beside each other hide no more than it leaves of their work,
    since the links carry the bytes of both.
    """
    forward, backward, update = (_table(layers, name) for name in ("forward_s", "backward_s", "update_s"))
    waited = prices.ticks.up(update)
    left = {name: np.floor(_table(layers, f"{name}_left_s") / prices.ticks.second) for name in prices.hidden}
    return {
        "forward": prices.forward + prices.ticks.up(forward),
        "backward": prices.backward + prices.ticks.up(backward),
        "hidden": {name: np.minimum(hidden, left[name].astype(np.int64)) for name, hidden in prices.hidden.items()},
        "sent": {name: prices.ticks.up(_table(layers, f"{name}_sent_s")) for name in ("forward", "backward")},
        "update": prices.update + waited,
        "tier_update": waited,
        "joules_pass": prices.joules_pass + _table(layers, "joules_pass"),
        "joules_step": prices.joules_step + _table(layers, "joules_step"),
        "parts": {**prices.parts, "memory tiers": forward + backward},
    }


def _table(layers: list[LayerTiers], name: str) -> Floats:
    return np.stack([getattr(layer, name) for layer in layers], axis=1)


def _tiers(
    prices: Prices, layers: list[LayerTiers], rates: TierRates, cluster: Cluster
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Bytes in each tier, a layer and a micro-batch, what one device may keep there, and which are pools."""
    share = prices.rows.offload
    tied = sum(prices.tied_states[name][:, None] * share[:, OFFLOADED.index(name)] for name in STATES)
    states, saved = _table(layers, "states"), _table(layers, "saved")
    each = list(enumerate(prices.rows.tiers))
    return {
        "tier_states": {name: _whole(states[:, :, t]) for t, name in each},
        "tier_saved": {name: _whole(saved[:, :, t]) for t, name in each},
        "tier_tied": {name: _whole(tied[:, t]) for t, name in each},
        "tier_room": {name: np.floor(rates.room_bytes[:, t]).astype(np.int64) for t, name in each},
        "tier_pools": {tier.name: Pool(tier, cluster) for tier in tiers_of(prices.rows, cluster) if tier.pools},
    }


def _whole(table: Floats) -> Ints:
    return np.ceil(table).astype(np.int64)


def _staged(prices: Prices) -> dict[str, Ints]:
    """Bytes a device holds whatever its layers are, with room for what is on its way."""
    share = prices.rows.offload.sum(axis=2)
    weights, saved = prices.states["weights"].max(axis=1), prices.saved["none"][:, :-2].max(axis=1)
    optimizer, checkpoint = prices.states["optimizer"][:, :-2].max(axis=1), prices.saved["full"][:, :-2].max(axis=1)
    staging = (
        STAGED_LAYERS * weights * (share[:, WEIGHTS] > 0)
        + STAGED_LAYERS * saved * (share[:, ACTIVATIONS] > 0)
        + STAGED_LAYERS * checkpoint * (share[:, CHECKPOINTS] > 0)
        + optimizer * (share[:, OPTIMIZER] > 0)
    )
    return {**prices.fixed, "staging": staging.astype(np.int64)}
