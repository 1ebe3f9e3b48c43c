"""The same kind of cluster with another number of hosts."""

from __future__ import annotations

import dataclasses
import math

from topologies.cluster import Cluster, Level
from topologies.errors import BadInput
from topologies.ready import check_hosts
from topologies.shapes import regular_levels


def resized(cluster: Cluster, hosts: int) -> Cluster:
    """The same kind of cluster with another number of hosts; where hosts differ, the ones that are added do not.

    Switches between hosts stay as large as they are where whole ones are filled; otherwise all hosts are taken to be
    as far from each other as the farthest were. Raises ``BadInput`` for a number out of range, and for fewer hosts of
    those that differ.
    """
    check_hosts(hosts, cluster.host)
    it, more = cluster.irregular, hosts - cluster.hosts
    if it is not None and more < 0:
        raise BadInput(
            f"{cluster.name!r} has {cluster.hosts} hosts that differ: nobody says which {hosts} of them to keep; "
            "write a cluster file for those"
        )
    busy = hosts if it is None else hosts - it.spare_hosts
    grown = None if it is None else it.with_more(more, cluster.host.devices)
    levels = regular_levels(cluster.accelerator, cluster.host, cluster.fabric, busy)
    fresh = dataclasses.replace(cluster, hosts=hosts, levels=levels, rate_scale=1.0, irregular=grown)
    fresh = fresh.scaled(cluster.rate_scale) if cluster.rate_scale != 1.0 else fresh
    same = {"tiers": cluster.tiers, "present_tiers": cluster.present_tiers}
    return dataclasses.replace(fresh, levels=_as_switched(fresh.levels, cluster.levels, cluster.domain_levels), **same)


def _as_switched(levels: tuple[Level, ...], like: tuple[Level, ...], inside: int) -> tuple[Level, ...]:
    if len(like) < inside + 2 or len(levels) <= inside:
        return levels
    inner = math.prod(level.fanout for level in like[inside:-1])
    domains = levels[inside].fanout
    if domains % inner or domains == inner:
        return (*levels[:inside], dataclasses.replace(like[-1], fanout=domains))
    return (*levels[:inside], *like[inside:-1], dataclasses.replace(like[-1], fanout=domains // inner))
