"""Legality of a strategy's hosts, from its own rules: each named once, able, as many as the placement asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cost_models.strategy import DENSE_ORDER, Strategy, level_ranks
from topologies.cluster import Cluster


def broken_host_rules(cluster: Cluster, it: Strategy) -> Iterator[str]:
    """Complaints about the hosts of a strategy."""
    irregular = cluster.irregular
    if irregular is None:
        if it.hosts:
            yield f"the strategy names {len(it.hosts)} hosts, but those of {cluster.name!r} are all alike; name none"
        return
    if not it.hosts:
        return
    usable = len(irregular.numbers)
    unknown = [h for h in it.hosts if not 0 <= h < usable]
    if unknown or len(set(it.hosts)) != len(it.hosts):
        yield f"hosts are distinct positions among the {usable} usable ones; got {sorted(it.hosts)[:8]} and more"
        return
    used = [level_ranks(it.placement, DENSE_ORDER, k) for k in range(len(cluster.levels))]
    if len(it.hosts) != math.prod(used[1:]):
        yield f"the placement uses {math.prod(used[1:])} hosts, but {len(it.hosts)} are named"
    if len(it.hosts) > usable - irregular.spare_hosts:
        yield f"{len(it.hosts)} of {usable} usable hosts are named, but {irregular.spare_hosts} have to stay spare"
    for host in it.hosts:
        if irregular.devices[host] < used[0]:
            yield (
                f"{irregular.name(host)} has {irregular.devices[host]} working devices, but the placement uses "
                f"{used[0]} on every host; leave the host out"
            )
