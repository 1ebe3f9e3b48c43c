"""The oracle's share of memory tiers: every way to offload, and whether a stage finds room."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from cost_models.chain import Chain
from cost_models.model_graph import ModelGraph
from cost_models.rows import Rows
from topologies.cluster import Cluster


def offloading(cluster: Cluster, rows: Rows) -> Rows:
    """The rows once for every way to keep tensors in the cluster's memory tiers: all combinations, illegal ones out."""
    names = tuple(tier.name for tier in cluster.tiers)
    if not names:
        return rows
    return Rows.concat([rows.offloading(share[None], names) for share in every_share(len(names))])


def every_share(tiers: int) -> list[np.ndarray]:
    """What may live in each of so many tiers, ``[classes, tiers]``: all combinations, illegal ones out."""
    if not tiers:
        return [np.zeros((5, 0))]
    places = [(None, 0.0), *itertools.product(range(tiers), (0.25, 0.5, 0.75, 1.0))]
    found = []
    for optimizer, gradients, weights, activations, checkpoints in itertools.product(places, repeat=5):
        whole = all(share in (0.0, 1.0) for _, share in (gradients, weights))
        follows = gradients[1] == 0 or gradients == optimizer
        follows &= weights[1] == 0 or weights == gradients == optimizer
        saved = (activations[1], checkpoints[1])
        if whole and follows and saved in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 1.0)):
            share = np.zeros((5, tiers))
            for k, (tier, part) in enumerate((optimizer, gradients, weights, activations, checkpoints)):
                if tier is not None:
                    share[k, tier] = part
            found.append(share)
    return found


def in_pools(cluster: Cluster, chain: Chain, used: dict[str, np.ndarray]) -> np.ndarray:
    """Plans, ``[plans, pp]`` bytes a device by tier, whose pools have room: ranks counted on every host."""
    fits = np.ones(len(next(iter(used.values()))), dtype=bool) if used else np.bool_(True)
    rows, placed = chain.prices.rows, chain.prices.rows.factors
    hosts: dict[int, list[int]] = {}
    size = int(cluster.host_shape.devices_a_host(rows.used())[0])
    for device in range(int(rows.world_size[0])):
        rest, rank, weight = device, 0, 1
        for level in range(len(cluster.levels)):
            for axis in ("tp", "cp", "dp_shard", "dp_replicate", "pp"):
                factor = int(placed[axis][0, level])
                if axis == "pp":
                    rank, weight = rank + weight * (rest % factor), weight * factor
                rest //= factor
        hosts.setdefault(device // size, []).append(rank)
    for tier in cluster.tiers:
        if tier.pools and tier.name in used:
            each = -(-len(hosts) // tier.pools)
            for first in range(0, len(hosts), each):
                ranks = [rank for host in range(first, min(first + each, len(hosts))) for rank in hosts[host]]
                fits = fits & (sum(used[tier.name][:, rank] for rank in ranks) <= int(tier.capacity_bytes))
    return fits


def in_tiers(chain: Chain, i: int, j: int, flight: int) -> bool:
    """Whether the tiers have room for one 1F1B stage."""
    return all(
        int(chain.tier_states(name, i, j)) + flight * int(chain.tier_saved(name, i, j)) <= int(room[0])
        for name, room in chain.prices.tier_room.items()
    )


def partly_out(model: ModelGraph, chain: Chain, i: int, j: int) -> list[Chain]:
    """The row with 0, 1, ... all of the layers from ``i`` to ``j - 1`` letting go what the others keep, in that order.

    Written out layer by layer: kinds of the two sorts stand beside each other in one table.
    """
    prices, nearer = chain.prices, chain.prices.nearer
    if nearer is None:
        return [chain]
    kinds, both = len(model.kinds), {}
    for field in dataclasses.fields(prices):
        one, other = getattr(prices, field.name), getattr(nearer, field.name)
        if isinstance(one, np.ndarray) and one.ndim == 2:
            both[field.name] = beside(one, other)
        elif isinstance(one, dict) and field.name not in ("slower", "tier_pools", "tier_room", "tier_tied", "fixed"):
            tables = {name: beside(one[name], other[name]) for name in one if one[name].ndim == 2}
            both[field.name] = {**one, **tables}
    found = []
    for out in range(j - i + 1):
        mixed = Chain(model, dataclasses.replace(prices, nearer=None, **both), chain.row)
        mixed.order = np.array([kind + kinds * (k >= i + out) for k, kind in enumerate(model.order)])
        mixed.copied_kind = chain.copied_kind
        found.append(mixed)
    return found


def beside(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Layers of the first sort, of the second, then embedding and head of the first."""
    return np.concatenate([one[:, :-2], other[:, :-2], one[:, -2:]], axis=1)
