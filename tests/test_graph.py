"""The whole cluster as a graph: what is in it, and that its paths say what the levels say."""

import dataclasses
from collections import Counter

import networkx
import pytest

from topologies.errors import BadInput
from topologies.irregular import Irregular, Switch
from topologies.ready import cluster_of_tables, read_cluster


def narrowest(graph, path):
    return min(graph.edges[edge]["bandwidth_bytes_per_s"] for edge in networkx.utils.pairwise(path))


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        ("hgx-h100-96gb:3", {"device": 24, "host": 3, "scale-up switch": 3, "NIC": 24, "memory tier": 3}),
        ("gb200-nvl72:2", {"device": 144, "host": 36, "scale-up switch": 2, "NIC": 144, "memory tier": 36, "die": 288}),
        ("nvl72-gb200:20", {"device": 80, "host": 20, "scale-up switch": 2, "NIC": 80, "memory tier": 20, "die": 160}),
        ("cpu-local", {"device": 4, "host": 1, "scale-up switch": 1, "NIC": 1}),
        ("mi300x-cpx:2", {"device": 128, "package": 16, "host": 2, "scale-up switch": 2, "NIC": 16, "memory tier": 4}),
        ("tpu-v5p-cube:2", {"device": 128, "host": 32, "NIC": 128}),
    ],
)
def test_nodes(what, counts):
    """Everything hangs on a host or a device by one edge, devices on their host and on what joins them."""
    cluster = read_cluster(what)
    graph, torus = cluster.graph(), cluster.host.torus
    leaves = sum(counts.get(kind, 0) for kind in ("NIC", "memory tier", "die", "host"))
    per_device = 1 + (len(torus.axes) if torus else cluster.domain_levels)

    assert Counter(kind for _, kind in graph.nodes(data="kind")) == counts | {"fabric switch": 1, "site": 1}
    assert graph.number_of_edges() == per_device * counts["device"] + leaves
    assert list(networkx.isolates(graph)) == ["site"]
    graph.remove_node("site")
    assert networkx.is_connected(graph)


def test_edges_have_kind_bandwidth_and_latency():
    for _, _, edge in read_cluster("p5:2").graph().edges(data=True):
        assert edge["kind"] and edge["bandwidth_bytes_per_s"] > 0 and edge["latency_s"] >= 0


def test_energy_of_a_path_is_that_of_its_level():
    """DGX H100: 11 pJ a bit through NVSwitch, 75 between hosts; dies of a package as the package says."""
    cluster = read_cluster("dgx-h100:2")
    graph = cluster.graph()
    for path, level in ((["device-0", "scale-up-0", "device-1"], 0), (["host-0", "fabric", "host-1"], 1)):
        joules = sum(graph.edges[edge]["energy_j_per_bit"] for edge in networkx.utils.pairwise(path))
        assert joules == pytest.approx(cluster.energy_j_per_bit(level))
    parts = read_cluster("mi300x-cpx").graph()
    assert parts.edges["device-9", "package-1"]["energy_j_per_bit"] == pytest.approx(0.15e-12)


def test_partitions_and_tori_by_their_neighbours():
    """Devices 8 to 15 are one package; on a 4 x 4 x 4 torus device 21 is at (1, 1, 1), and device 3 closes a ring."""
    parts, cube = read_cluster("mi300x-cpx").graph(), read_cluster("tpu-v5p-cube:2").graph()

    assert set(parts["package-1"]) == {f"device-{d}" for d in range(8, 16)}
    assert parts.edges["device-9", "package-1"]["bandwidth_bytes_per_s"] == pytest.approx(331.25e9)
    assert parts.edges["device-9", "scale-up-0"]["bandwidth_bytes_per_s"] == pytest.approx(56e9)
    assert set(cube["device-21"]) == {f"device-{d}" for d in (20, 22, 17, 25, 5, 37)} | {"host-5"}
    assert "device-0" in cube["device-3"] and "device-64" not in cube["device-63"]
    assert cube.edges["device-0", "device-48"]["bandwidth_bytes_per_s"] == pytest.approx(100e9)


def test_power_and_failure_domains():
    """Hosts in racks of 2, racks in rows of 4 and 6 on a feed, counted by their number in the whole cluster."""
    tables = {"name": "x", "host": "dgx-h100", "fabric": "ndr-infiniband", "facility": "air", "hosts": 32,
              "hosts_per_rack": 2, "racks_per_row": 4, "hosts_per_feed": 6,
              "switches": [{"name": "leaf", "hosts": 8}]}  # fmt: skip
    graph = cluster_of_tables(tables, "x").graph()
    kinds = Counter(kind for _, kind in graph.nodes(data="kind"))

    assert graph.nodes["device-107"]["power_domains"] == {
        "device": "device-107", "host": "host-13", "rack": "rack-6", "row": "row-1", "site": "site"
    }  # fmt: skip
    assert graph.nodes["host-13"]["failure_domains"] == {
        "host": "host-13", "rack": "rack-6", "feed": "feed-2", "switch": "switch-1-1"
    }  # fmt: skip
    assert [kinds[kind] for kind in ("rack", "row", "feed", "site")] == [16, 4, 6, 1]
    assert "rack" not in read_cluster("p5:2").graph().nodes["host-0"]["power_domains"]
    with pytest.raises(BadInput, match="counts racks of hosts_per_rack hosts"):
        cluster_of_tables(tables | {"hosts_per_rack": None}, "x")


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("what", ["dgx-h100:3", "p4d:2", "gb200-nvl72:2"])
def test_paths_repeat_the_levels(what, factor):
    """Neighbours talk through their switch; the first and the last device only through the fabric."""
    cluster = read_cluster(what).scaled(factor)
    graph = cluster.graph()
    inner, outer = cluster.levels
    near = ["device-0", "scale-up-0", "device-1"]
    last = cluster.devices - 1
    far = ["device-0", "host-0", "fabric", f"host-{cluster.hosts - 1}", f"device-{last}"]

    assert networkx.path_weight(graph, near, "latency_s") == pytest.approx(inner.latency_s)
    assert networkx.path_weight(graph, far, "latency_s") == pytest.approx(outer.latency_s)
    assert narrowest(graph, near) == pytest.approx(inner.bandwidth_bytes_per_s)
    assert narrowest(graph, far) == pytest.approx(outer.bandwidth_bytes_per_s)
    assert nx_distance(graph, last) == 4


def nx_distance(graph, device):
    return networkx.shortest_path_length(graph, "device-0", f"device-{device}")


def test_hosts_that_differ():
    """A slow card, a narrow leaf inside a narrow pod and a missing device, by hand: 50 GB/s a regular device."""
    it = Irregular(
        (0, 1, 2, 4), (8, 7, 8, 8), (1.0, 1.0, 1.0, 0.5), (Switch("leaf", (0, 1), 0.25), Switch("pod", (0, 1, 2), 0.5))
    )
    graph = dataclasses.replace(read_cluster("dgx-h100:4"), irregular=it).graph()
    share = 50e9

    kinds = Counter(kind for _, kind in graph.nodes(data="kind"))
    assert {kind: kinds[kind] for kind in ("device", "host", "scale-up switch", "switch", "fabric switch")} == {
        "device": 31, "host": 4, "scale-up switch": 4, "switch": 2, "fabric switch": 1
    }  # fmt: skip
    assert networkx.shortest_path(graph, "host-0", "host-3") == ["host-0", "leaf", "pod", "fabric", "host-3"]
    assert graph.edges["device-30", "host-3"]["bandwidth_bytes_per_s"] == pytest.approx(share / 2)
    assert graph.edges["host-3", "fabric"]["bandwidth_bytes_per_s"] == pytest.approx(8 * share / 2)
    assert graph.edges["leaf", "pod"]["bandwidth_bytes_per_s"] == pytest.approx(2 * 8 * share / 4)
    assert graph.edges["pod", "fabric"]["bandwidth_bytes_per_s"] == pytest.approx(3 * 8 * share / 2)
    assert set(graph["scale-up-1"]) == {f"device-{k}" for k in range(8, 15)}


def test_a_graph_too_large_to_draw_is_refused():
    with pytest.raises(BadInput, match=r"limited to 131072 devices; dgx-h100:20000 has 160000"):
        read_cluster("dgx-h100:20000").graph()


def test_switches_between_hosts(tmp_path):
    """16 hosts on leaves of 4, 2:1 tapered, in pods of 8: 4 leaves, 2 pods, one fabric."""
    path = tmp_path / "x.toml"
    path.write_text(
        'name = "x"\nhost = "dgx-h100"\nfabric = "ndr-infiniband"\nfacility = "air"\nhosts = 16\n'
        "[[switches]]\nname = 'leaf'\nhosts = 4\noversubscription = 2.0\n[[switches]]\nname = 'pod'\nhosts = 8\n"
    )
    graph = read_cluster(path).graph()

    assert Counter(kind for _, kind in graph.nodes(data="kind"))["switch"] == 6
    across = networkx.shortest_path(graph, "host-0", "host-15")
    assert across == ["host-0", "switch-1-0", "switch-2-0", "fabric", "switch-2-1", "switch-1-3", "host-15"]
    assert networkx.shortest_path(graph, "host-0", "host-3") == ["host-0", "switch-1-0", "host-3"]
    assert graph.edges["switch-1-0", "switch-2-0"]["bandwidth_bytes_per_s"] == 4 * 8 * 25e9
    inner, pod, outer = read_cluster(path).levels[1:]
    in_pod, in_leaf = [*across[:3], "switch-1-1", "host-4"], ["host-0", "switch-1-0", "host-3"]
    for hops, level in ((across, outer), (in_pod, pod), (in_leaf, inner)):
        latency = sum(graph.edges[edge]["latency_s"] for edge in networkx.utils.pairwise(hops))
        assert latency == pytest.approx(level.latency_s)
    assert [level.latency_s for level in (inner, pod, outer)] == pytest.approx([3.8e-6, 4.4e-6, 5e-6])
