"""Legality of what a strategy keeps outside device memory: tiers that exist, shares that add up, room in each tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cost_models.estimate import TierUse
from cost_models.strategy import OFFLOADED, Strategy
from topologies.cluster import Cluster


def broken_offloads(cluster: Cluster, it: Strategy) -> Iterator[str]:
    """Every rule about names and shares that the offloads break, in words."""
    known = [tier.name for tier in cluster.tiers]
    for offload in it.offloads:
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
    for offload in it.offloads:
        total[offload.tensors] += offload.share
    yield from (f"offloads {share:g} of {tensors} in all; at most 1" for tensors, share in total.items() if share > 1)


def broken_room(uses: tuple[TierUse, ...]) -> Iterator[str]:
    """Every memory tier that is too small for what one device keeps there."""
    for use in uses:
        for rank, need in enumerate(use.need_bytes):
            if need > use.room_bytes:
                yield (
                    f"pipeline rank {rank} keeps {need / 2**30:.4g} GiB a device in memory tier {use.name!r}, whose "
                    f"even share for a device is {use.room_bytes / 2**30:.4g} GiB: offload less, or add units of it"
                )
