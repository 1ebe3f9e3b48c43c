"""Legality of what a strategy keeps outside device memory: tiers that exist, shares that add up, room in each tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from cost_models.estimate import TierUse
from cost_models.strategy import DENSE_ORDER, OFFLOADED, Offload, Strategy, TrainingSchedule, level_ranks
from topologies.cluster import Cluster
from topologies.tiers import Tier


def broken_offloads(cluster: Cluster, it: Strategy) -> Iterator[str]:
    """Every rule about names and shares that the offloads break, in words."""
    yield from broken_shares(cluster, it.offloads)
    yield from _broken_layers(it)


def broken_shares(cluster: Cluster, offloads: tuple[Offload, ...]) -> Iterator[str]:
    """Every rule about names and shares that what all layers offload breaks, in words."""
    known = [tier.name for tier in cluster.tiers]
    for offload in offloads:
        if offload.tensors not in OFFLOADED:
            yield f"offloads {offload.tensors!r}, which is no tensor class; classes are {', '.join(OFFLOADED)}"
        if offload.tier not in known:
            yield (
                f"offloads {offload.tensors} to {offload.tier!r}, which is none of the memory tiers of "
                f"{cluster.name!r} that may be used: {', '.join(known) or 'none'}; name it in tiers"
            )
        if not 0 < offload.share <= 1:
            yield f"offloads {offload.share} of {offload.tensors}; a share is above 0 and at most 1"
    total = Counter[str]()
    for offload in offloads:
        total[offload.tensors] += offload.share
    yield from (f"offloads {share:g} of {tensors} in all; at most 1" for tensors, share in total.items() if share > 1)


def _broken_layers(it: Strategy) -> Iterator[str]:
    """Layers that are said to keep more than others where there are no such, or nothing that they could keep."""
    for name, free, rule in (
        ("offloaded", it.layers_may_keep_states, "all optimiser states leave, and of other states all or none"),
        ("activations_offloaded", it.layers_may_keep_activations, "all activations leave"),
    ):
        yield from _broken_first(it, {s: getattr(stage, name) for s, stage in enumerate(it.stages)}, free, rule)


def _broken_first(it: Strategy, first: dict[int, int | None], free: bool, rule: str) -> Iterator[str]:
    """What is wrong with how many first layers of each stage do as ``rule`` says all may."""
    some = {s: out for s, out in first.items() if out not in (None, it.stages[s].layers)}
    plain = isinstance(it.schedule, TrainingSchedule) and it.schedule.kind == "1f1b" and it.schedule.virtual_stages == 1
    for s, out in some.items():
        said = f"stage {s} offloads {out} of its {it.stages[s].layers} layers"
        if not 0 <= out <= it.stages[s].layers:
            yield f"{said}; from 0 to all of them may"
        if not plain:
            yield f"{said}; they may differ under 1F1B without virtual stages alone, and this is {it.schedule.kind}"
        if not free:
            yield f"{said}; they may differ where {rule}"


def broken_room(cluster: Cluster, it: Strategy, uses: tuple[TierUse, ...]) -> Iterator[str]:
    """Every memory tier that is too small for what one device keeps there, or a pool for what its hosts do."""
    pools = {tier.name: tier for tier in cluster.tiers if tier.pools}
    for use in uses:
        if use.name in pools:
            yield from _broken_pools(cluster, it, use, pools[use.name])
        else:
            yield from _broken_share(use)


def _broken_pools(cluster: Cluster, it: Strategy, use: TierUse, tier: Tier) -> Iterator[str]:
    """Pools that are too small, the plan's devices counted one by one."""
    held, hosts = Counter[int](), pipeline_ranks(cluster, it)
    each = -(-len(hosts) // tier.pools)
    for host, ranks in enumerate(hosts):
        held[host // each] += sum(use.need_bytes[rank] for rank in ranks)
    for pool, size in sorted(held.items()):
        if size > tier.capacity_bytes:
            yield (
                f"pool {pool} of {tier.name!r} would hold {size / 2**30:.4g} GiB of its {each} hosts, and has "
                f"{tier.capacity_bytes / 2**30:.4g} GiB: offload less, or add pools"
            )


def pipeline_ranks(cluster: Cluster, it: Strategy) -> list[list[int]]:
    """The pipeline ranks of every used host's devices: ranks count devices level by level, pp slowest on each."""
    found: list[int] = []
    for device in range(it.degrees.world_size):
        rest, rank, weight = device, 0, 1
        for level in range(len(cluster.levels)):
            inside = level_ranks(it.placement, DENSE_ORDER[:-1], level)
            stages = it.placement["pp"][level]
            rank += weight * (rest // inside % stages)
            weight, rest = weight * stages, rest // (inside * stages)
        found.append(rank)
    used = [level_ranks(it.placement, DENSE_ORDER, level) for level in range(len(cluster.levels))]
    size = int(cluster.host_shape.devices_a_host(np.array([used]))[0])
    return [found[at : at + size] for at in range(0, len(found), size)]


def _broken_share(use: TierUse) -> Iterator[str]:
    for rank, need in enumerate(use.need_bytes):
        if need > use.room_bytes:
            yield (
                f"pipeline rank {rank} keeps {need / 2**30:.4g} GiB a device in memory tier {use.name!r}, whose "
                f"even share for a device is {use.room_bytes / 2**30:.4g} GiB: offload less, or add units of it"
            )
