"""Hosts that differ: what cannot be asked of them, and the legality of a strategy's, from its own rules."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cost_models.strategy import DENSE_ORDER, Strategy, level_ranks
from planner.errors import BadInput
from planner.options import Options
from topologies.cluster import Cluster


def check_differing(cluster: Cluster, options: Options, jobs: int | None) -> None:
    """Raises ``BadInput`` for what is planned only where hosts are alike, ``cluster`` having the tiers to be used."""
    if cluster.irregular is None:
        return
    if jobs != 1:
        raise BadInput(
            f"jobs={'auto' if jobs is None else jobs} shares out hosts that are alike, but those of {cluster.name!r} "
            "differ; write one cluster file for each job's hosts"
        )
    if "," in options.objective:
        raise BadInput(
            f"objectives in order ({options.objective}) are planned where hosts are alike, but those of "
            f"{cluster.name!r} differ; take the first one, and what it may lose as a limit of the next"
        )
    if "rack-power" in options.limits:
        raise BadInput(
            f"rack-power counts hosts of a rack in the order of ranks, but those of {cluster.name!r} differ and are "
            "chosen apart from their racks; limit host-power or site-power"
        )
    for tier in cluster.tiers:
        if tier.pools > 1:
            raise BadInput(
                f"{tier.pools} pools of {tier.name} are dealt to hosts in the order of ranks, but hosts of "
                f"{cluster.name!r} differ and are chosen, and no file says which pool each has; take one pool"
            )
    if options.solver != "default":
        raise BadInput(
            f"solver={options.solver} chooses no hosts, but those of {cluster.name!r} differ; take the default solver"
        )


def check_front(cluster: Cluster) -> None:
    """Raises ``BadInput`` where hosts differ: a front sweeps rows whose hosts are alike."""
    if cluster.irregular is not None:
        raise BadInput(
            f"a front of plans is swept where hosts are alike, but those of {cluster.name!r} differ; plan for one "
            "objective with limits on the others"
        )


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
