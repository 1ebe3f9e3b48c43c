"""Replicas kept apart: at most so many of them with devices in one host, rack, leaf switch or power feed.

    --limit rack-replicas=1       what takes a rack down takes one replica down, and the others hold every state

A replica is the devices that hold one copy of the weights and optimiser between them: ``dp_replicate`` of them, each of
``tp cp dp_shard pp`` devices. One domain is a run of so many neighbouring host numbers, the first at 0. Replicas stand
one after the other in the order of host numbers; each begins at the first host whose domains have room for it.
Where domains are equally large that order holds as many replicas as any that keeps a replica's hosts side by side.

Such plans name their hosts, as those on hosts that differ do: in ``hosts.txt``, the rank map, and in Slurm's own order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cost_models.placed import hosts_in_order
from cost_models.rows import Rows
from cost_models.strategy import Strategy
from planner.errors import BadInput
from planner.limits import limits_of
from planner.options import Options, read_options
from planner.ranks import rank_grid
from planner.strategy_record import StrategyRecord
from topologies.cluster import Cluster
from topologies.domains import FIELDS, hosts_per_domain
from topologies.irregular import Irregular

if TYPE_CHECKING:
    from planner.result import Plan

LIMITS = {f"{kind}-replicas": kind for kind in FIELDS}
"""The limits, and what each keeps replicas apart by."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What fails together: so many neighbouring hosts, which at most so many replicas may touch."""

    limit: str
    hosts: int
    most: int

    @property
    def kind(self) -> str:
        """``"rack"`` of ``"rack-replicas"``."""
        return LIMITS[self.limit]

    def text(self) -> str:
        """The limit in words."""
        return f"at most {self.most} in a {self.kind} of {self.hosts} host{'s' * (self.hosts > 1)}"


def asked(options: Options) -> list[str]:
    """The limits on replicas among the options."""
    return [name for name in options.limits if name in LIMITS]


def domains_of(cluster: Cluster, options: Options) -> tuple[Domain, ...]:
    """What the options keep replicas apart by, the domains' sizes from the cluster.

    Raises ``BadInput`` where the cluster does not say how many hosts such a domain has.
    """
    found, said = [], hosts_per_domain(cluster)
    for name in asked(options):
        kind = LIMITS[name]
        if kind not in said:
            raise BadInput(
                f"limit {name} needs the hosts of a {kind}, and {cluster.name!r} does not say; set {FIELDS[kind]} in "
                "a cluster file, one number for all, or limit host-replicas"
            )
        found.append(Domain(name, said[kind], int(options.limits[name])))
    return tuple(found)


def with_numbered_hosts(cluster: Cluster, options: Options, jobs: int | None = 1) -> Cluster:
    """The cluster with its hosts told apart by number where replicas are kept apart; itself where they are not.

    Raises ``BadInput`` for limits on replicas where this is not planned, and as :func:`domains_of`.
    """
    if not asked(options):
        return cluster
    if why := _unplanned(cluster, jobs):
        raise BadInput(
            f"limit {asked(options)[0]} is planned for one job on hosts with one network between them, but {why}; "
            "leave the limit out, or describe the hosts as alike, with hosts_per_rack, hosts_per_leaf or hosts_per_feed"
        )
    domains_of(cluster, options)
    return cluster if cluster.irregular is not None else dataclasses.replace(cluster, irregular=_alike(cluster))


def _unplanned(cluster: Cluster, jobs: int | None) -> str:
    """Why replicas are not kept apart there; nothing where they are."""
    if jobs != 1:
        return "jobs share racks"
    if cluster.domain_levels > 1:
        inside = " and ".join(level.name for level in cluster.levels[: cluster.domain_levels])
        return f"a scale-up domain of {cluster.name!r} has levels of its own ({inside})"
    if cluster.irregular is not None and len(cluster.irregular.rates) > 1:
        return f"hosts of {cluster.name!r} differ in their network"
    if cluster.irregular is None and len(cluster.levels) > 2:
        return f"{cluster.name!r} has levels of switches, whose hosts are not told apart"
    if cluster.host.scale_up_devices != cluster.devices_per_host:
        return f"a scale-up domain of {cluster.name!r} spans several hosts"
    return ""


def as_numbered(cluster: Cluster, saved: Plan) -> Cluster:
    """The cluster as a saved plan was searched on it. Raises ``BadInput`` as :func:`with_numbered_hosts`."""
    limits = {name: value for name, value in saved.options.get("limits", {}).items() if name in LIMITS}
    return with_numbered_hosts(cluster, read_options(limits=limits_of(limits))) if limits else cluster


def refuse_replicas(options: Options, why: str) -> None:
    """Raises ``BadInput`` where limits on replicas are given to what does not keep them."""
    if names := asked(options):
        raise BadInput(f"limit {names[0]} is kept by the hosts of one plan, and {why}; leave it out")


def _alike(cluster: Cluster) -> Irregular:
    hosts = cluster.hosts
    return Irregular(tuple(range(hosts)), (cluster.devices_per_host,) * hosts, (1.0,) * hosts)


def restrictions(cluster: Cluster, options: Options) -> list[str]:
    """What the space leaves out because replicas are kept apart, for its proof."""
    every = [it.text() for it in domains_of(cluster, options)]
    if not every:
        return []
    return [
        f"replicas: {', '.join(every)}; their hosts one replica after the other by number, each begun at the first "
        "host whose domains have room"
    ]


def broken_domains(cluster: Cluster, it: Strategy, options: Options) -> Iterator[str]:
    """Complaints about domains that hold more replicas than a limit allows, counted device by device."""
    limits = domains_of(cluster, options)
    if not limits:
        return
    hosts = np.array(it.hosts or hosts_in_order(cluster, Rows.of(it)))
    grid = rank_grid(StrategyRecord.of(it))
    position = hosts[grid // (grid.size // len(hosts))]
    number = np.array(cluster.irregular.numbers)[position] if cluster.irregular else position
    replica = np.broadcast_to(np.arange(grid.shape[1])[None, :, None, None, None], grid.shape)
    for domain in limits:
        pairs = np.unique(np.stack([number.ravel() // domain.hosts, replica.ravel()]), axis=1)
        ids, counts = np.unique(pairs[0], return_counts=True)
        if counts.max() > domain.most:
            worst = int(ids[np.argmax(counts)])
            yield (
                f"{domain.kind} {worst} (hosts {worst * domain.hosts} to {(worst + 1) * domain.hosts - 1}) holds "
                f"devices of {counts.max()} replicas, but {domain.limit} is {domain.most}; lower dp_replicate, use "
                "more hosts, or raise the limit"
            )


def replica_rows(cluster: Cluster, it: Strategy, options: Options) -> list[str]:
    """For a plan's notes: which domains every replica touches, the first few replicas."""
    hosts, grid = np.array(it.hosts), rank_grid(StrategyRecord.of(it))
    number = np.array(cluster.irregular.numbers)[hosts[grid // (grid.size // len(hosts))]] if len(hosts) else grid
    return [
        f"replicas apart by {domain.kind}: "
        + _spans([number[:, r] // domain.hosts for r in range(grid.shape[1])], domain)
        for domain in domains_of(cluster, options)
        if len(hosts)
    ]


def _spans(places: list[np.ndarray], domain: Domain) -> str:
    few = [f"replica {r} in {domain.kind}{_numbers(np.unique(it))}" for r, it in enumerate(places[:4])]
    return ", ".join(few) + (f", and so on to replica {len(places) - 1}" if len(places) > 4 else "")


def _numbers(ids: np.ndarray) -> str:
    return f" {ids[0]}" if len(ids) == 1 else f"s {ids[0]} to {ids[-1]}"


def too_close_text(cluster: Cluster, options: Options, pins: dict) -> str:
    """Why no plan that fits the memory keeps its replicas apart: how many of them there is room for."""
    hosts, parts = 1 + max(cluster.irregular.numbers), []
    for domain in domains_of(cluster, options):
        count = -(-hosts // domain.hosts)
        parts.append(
            f"{domain.limit}={domain.most} leaves room for {domain.most} x {count} {domain.kind}s of {domain.hosts} "
            f"hosts = {domain.most * count} replicas at most, of which each begins where there is room for one more"
        )
    held = ", ".join(f"{name}={value}" for name, value in pins.items())
    return f"no plan keeps its replicas apart{' with ' + held if held else ''}: {'; '.join(parts)}"
