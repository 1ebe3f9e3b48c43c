"""Which power and which failures reach a device: its host, rack, row and site; its switch and power feed.

    power       device < host < rack < row < site        what a limit on watts is set on
    failure     host, rack, switch, feed                 what takes all of its hosts along when it fails

Racks are runs of ``hosts_per_rack`` neighbouring hosts, rows of ``racks_per_row`` racks, feeds of ``hosts_per_feed``
hosts; a level that the cluster's file says nothing of is not named. The switch is the innermost above a host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx

    from topologies.cluster import Cluster

SITE = "site"


@dataclass(frozen=True, slots=True)
class Domains:
    """Names of the domains of one host, by level."""

    power: dict[str, str]
    failure: dict[str, str]


def domains_of_host(cluster: Cluster, host: int, switch: str = "") -> Domains:
    """The domains of the host at that position; ``switch`` is what it hangs on, where that is known."""
    number = cluster.irregular.numbers[host] if cluster.irregular else host
    power, failure = {"host": f"host-{host}"}, {"host": f"host-{host}"}
    if cluster.hosts_per_rack is not None:
        rack = number // cluster.hosts_per_rack
        power["rack"] = failure["rack"] = f"rack-{rack}"
        if cluster.racks_per_row is not None:
            power["row"] = f"row-{rack // cluster.racks_per_row}"
    if cluster.hosts_per_feed is not None:
        failure["feed"] = f"feed-{number // cluster.hosts_per_feed}"
    if switch:
        failure["switch"] = switch
    return Domains(power | {"site": SITE}, failure)


def add_domains(graph: networkx.Graph, cluster: Cluster, switches: list[str]) -> None:
    """Writes domains on hosts and devices of a graph, and adds racks, rows, feeds and the site as nodes."""
    from topologies.graph import hosts_of_devices

    each = [domains_of_host(cluster, host, switch) for host, switch in enumerate(switches)]
    for host, found in enumerate(each):
        _write(graph, f"host-{host}", found.power, found.failure)
    for device, host in enumerate(hosts_of_devices(cluster)):
        name = f"device-{device}"
        _write(graph, name, {"device": name, **each[host].power}, each[host].failure)
    graph.add_node(SITE, kind="site", title=cluster.facility.title)
    for found in each:
        for kind, name in (found.power | found.failure).items():
            if kind in ("rack", "row", "feed"):
                graph.add_node(name, kind=kind, title=name)


def _write(graph: networkx.Graph, node: str, power: dict[str, str], failure: dict[str, str]) -> None:
    graph.nodes[node].update(power_domains=power, failure_domains=failure)
