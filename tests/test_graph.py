"""The whole cluster as a graph: what is in it, and that its paths say what the levels say."""

import dataclasses
from collections import Counter

import networkx
import pytest

from topologies.errors import BadInput
from topologies.irregular import Irregular, Switch
from topologies.ready import read_cluster


def narrowest(graph, path):
    return min(graph.edges[edge]["bandwidth_bytes_per_s"] for edge in networkx.utils.pairwise(path))


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        ("dgx-h100:3", {"device": 24, "host": 3, "scale-up switch": 3, "fabric switch": 1}),
        ("gb200-nvl72:2", {"device": 144, "host": 36, "scale-up switch": 2, "fabric switch": 1}),
        ("nvl72-gb200:20", {"device": 80, "host": 20, "scale-up switch": 2, "fabric switch": 1}),
        ("cpu-local", {"device": 4, "host": 1, "scale-up switch": 1, "fabric switch": 1}),
    ],
)
def test_nodes(what, counts):
    graph = read_cluster(what).graph()

    assert Counter(kind for _, kind in graph.nodes(data="kind")) == counts
    assert graph.number_of_edges() == 2 * counts["device"] + counts["host"]
    assert networkx.is_connected(graph)


def test_edges_have_kind_bandwidth_and_latency():
    for _, _, edge in read_cluster("p5:2").graph().edges(data=True):
        assert edge["kind"] and edge["bandwidth_bytes_per_s"] > 0 and edge["latency_s"] >= 0


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

    assert Counter(kind for _, kind in graph.nodes(data="kind")) == {
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
    latency = sum(graph.edges[edge]["latency_s"] for edge in networkx.utils.pairwise(across))
    assert latency == read_cluster(path).levels[-1].latency_s
