"""NUMA nodes, PCIe ports and memory pools of a cluster's graph.

    device, nic --- PCIe port    the device's link to its host; the NIC's own bandwidth
    PCIe port   --- NUMA node    what the port carries one way
    NUMA node   --- host         that node's part of the host's memory bandwidth, the nodes with ports taken as all
    pool        --- host         the host's port of a pool; hosts side by side share one, as they are priced

These edges are for looking and for memory traffic: what devices send each other is priced by levels, and groups are
routed over the graph without them (:func:`without_insides`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx

    from topologies.cluster import Cluster
    from topologies.inside import Inside, RootPort

PORT, NUMA, POOL = "PCIe port", "NUMA node", "memory pool"
Edge = dict[str, Any]


def add_inside(graph: networkx.Graph, cluster: Cluster) -> None:
    """The ports of every host with what hangs below them; nothing where no source shows them."""
    inside = cluster.host.inside
    if inside is None:
        return
    for host, first, count in _hosts(cluster):
        _add_numa(graph, cluster, inside, host)
        for k, port in enumerate(inside.ports):
            _add_port(graph, cluster, port, f"pcie-{host}-{k}", (host, first, count))


def _hosts(cluster: Cluster) -> list[tuple[int, int, int]]:
    """Number of every host, of its first device, and how many it has."""
    counts = cluster.irregular.devices if cluster.irregular else (cluster.host.devices,) * cluster.hosts
    found, first = [], 0
    for host, count in enumerate(counts):
        found.append((host, first, count))
        first += count
    return found


def _add_numa(graph: networkx.Graph, cluster: Cluster, inside: Inside, host: int) -> None:
    memory, nodes = cluster.host.figures.memory_bandwidth, inside.numa_nodes
    share = _edge("memory bus", None if memory is None else memory.value * cluster.rate_scale / len(nodes))
    names = [f"numa-{host}-{number}" for number in nodes]
    graph.add_nodes_from(names, kind=NUMA, title=NUMA)
    graph.add_edges_from(((name, f"host-{host}") for name in names), **share)


def _add_port(
    graph: networkx.Graph, cluster: Cluster, port: RootPort, name: str, of: tuple[int, int, int]
) -> None:  # fmt: skip
    host, first, count = of
    figures, scale = cluster.host.figures, cluster.rate_scale
    link = None if figures.device_link is None else figures.device_link.value * scale
    carried = link if port.bandwidth is None else port.bandwidth * scale
    graph.add_node(name, kind=PORT, title=port.through or PORT)
    graph.add_edge(name, f"numa-{host}-{port.numa}", **_edge("PCIe", carried))
    devices = (f"device-{first + device}" for device in port.devices if device < count)
    graph.add_edges_from(((device, name) for device in devices), **_edge("PCIe", link))
    nics = [f"nic-{host}-{nic}" for nic in port.nics]
    graph.add_nodes_from(nics, kind="NIC", title="NIC")
    graph.add_edges_from(((nic, name) for nic in nics), **_edge("NIC", figures.nic_bandwidth.value * scale))


def add_pools(graph: networkx.Graph, cluster: Cluster) -> None:
    """Memory that hosts share: pools of a tier have even parts of the hosts, side by side."""
    for tier in cluster.present_tiers:
        if tier.pools:
            each = -(-cluster.hosts // tier.pools)
            names = [f"{tier.name}-{pool}" for pool in range(-(-cluster.hosts // each))]
            graph.add_nodes_from(names, kind=POOL, title=tier.kind, bandwidth_bytes_per_s=tier.pool_bytes_per_s)
            ways = ((f"host-{host}", names[host // each]) for host in range(cluster.hosts))
            graph.add_edges_from(ways, **_edge(tier.kind, tier.read_bytes_per_s, tier.latency_s))


def without_insides(graph: networkx.Graph) -> None:
    """Takes ports, NUMA nodes and pools out of a graph: nothing that devices send each other passes them."""
    graph.remove_nodes_from([node for node, kind in graph.nodes(data="kind") if kind in (PORT, NUMA, POOL)])


def _edge(kind: str, bandwidth_bytes_per_s: float | None, latency_s: float = 0.0) -> Edge:
    return {"kind": kind, "bandwidth_bytes_per_s": bandwidth_bytes_per_s, "latency_s": latency_s,
            "energy_j_per_bit": None}  # fmt: skip
