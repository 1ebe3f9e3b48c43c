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


def partly_out(model: ModelGraph, chain: Chain, i: int, j: int) -> list[tuple[Chain, int]]:
    """The row with 0, 1, ... all of the layers from ``i`` to ``j - 1`` letting go what the others keep, in that order:
    of states, and with each number of these of activations; and the first layer that has any to recompute.

    Written out layer by layer: kinds of the four sorts stand beside each other in one table.
    """
    prices = chain.prices
    if prices.nearer is None:
        return [(chain, i)]
    kinds, every, all_sorts = len(model.kinds), (prices, prices.nearer, prices.kept, prices.kept.nearer), {}
    for field in dataclasses.fields(prices):
        one = getattr(prices, field.name)
        if isinstance(one, np.ndarray) and one.ndim == 2:
            all_sorts[field.name] = beside([getattr(it, field.name) for it in every])
        elif isinstance(one, dict) and field.name not in ("slower", "tier_pools", "tier_room", "tier_tied", "fixed"):
            of_sort = [getattr(it, field.name) for it in every]
            all_sorts[field.name] = {k: beside([it[k] for it in of_sort]) if one[k].ndim == 2 else one[k] for k in one}
    found, joined = [], dataclasses.replace(prices, nearer=None, kept=None, alike=None, **all_sorts)
    some = range(j - i + 1)
    all_activations = prices.rows.offload[chain.row].sum(axis=1)[3] == 1.0
    for states, activations in itertools.product(some, some if all_activations else (len(some) - 1,)):
        mixed = Chain(model, joined, chain.row)
        sort = [(k >= i + states) + 2 * (k >= i + activations) for k in range(len(model.order))]
        mixed.order = np.array([kind + kinds * which for kind, which in zip(model.order, sort, strict=True)])
        mixed.copied_kind = chain.copied_kind
        found.append((mixed, i + activations if all_activations else i))
    return found


def beside(tables: list[np.ndarray]) -> np.ndarray:
    """Layers of every sort, then embedding and head of the first."""
    return np.concatenate([*(table[:, :-2] for table in tables), tables[0][:, -2:]], axis=1)
