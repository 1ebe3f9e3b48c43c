"""Clusters from fabrics, schedulers and labels: hosts, levels and what is lost, as a person would draw them."""

import json
from dataclasses import replace

import pytest
import yaml

from tests import dumps, dumps_more
from topologies.errors import BadInput
from topologies.readers import read_files, read_seen
from topologies.readers.drawn import Asked, Drawn, draw
from topologies.readers.hostlist import expand
from topologies.readers.tables import cluster_of, cluster_text


def drawn(*texts: str, **asked) -> Drawn:
    return draw([read_seen(text, f"file{k}") for k, text in enumerate(texts)], Asked(**asked))


def levels(*texts: str, **asked) -> list[tuple[str, int, float]]:
    """Name, members and GB/s a device of every level."""
    cluster = cluster_of(drawn(*texts, **asked), Asked(**asked))
    return [(level.name, level.fanout, level.bandwidth_bytes_per_s / 1e9) for level in cluster.levels]


# Texts beside an H200 host (none: the text shows hosts itself), options, levels from the inside out
FABRICS = [
    (dumps_more.SLURM_TREE, {}, [("scale-up", 8, 450), ("switch of 4 hosts", 4, 50), ("switch of 8 hosts", 2, 50),
                                 ("scale-out", 2, 50)]),
    (dumps_more.SLURM_BLOCKS, {}, [("scale-up", 8, 450), ("block of 18 hosts", 18, 50), ("block of 36 hosts", 2, 50),
                                   ("scale-out", 2, 50)]),
    (dumps_more.SLURM_YAML, {}, [("scale-up", 8, 450), ("switch of 2 hosts", 2, 50), ("scale-out", 2, 50)]),
    (dumps_more.SLURM_YAML_BLOCKS, {}, [("scale-up", 8, 450), ("block of 4 hosts", 4, 50), ("scale-out", 4, 50)]),
    (dumps_more.slinky_blocks(), {}, [("scale-up", 8, 450), ("block of 8 hosts", 8, 50), ("block of 16 hosts", 2, 50),
                                      ("block of 32 hosts", 2, 50), ("scale-out", 3, 50)]),
    (dumps_more.slinky_tree(), {}, [("scale-up", 8, 450), ("switch of 8 hosts", 8, 50), ("switch of 16 hosts", 2, 50),
                                    ("scale-out", 6, 50)]),
    (dumps_more.dgx_ib(), {}, [("scale-up", 8, 450), ("switch of 4 hosts", 4, 25), ("scale-out", 2, 25)]),
    (dumps_more.tapered_ib(), {}, [("scale-up", 8, 450), ("switch of 4 hosts", 4, 3.125), ("scale-out", 2, 0.78125)]),
]  # fmt: skip


@pytest.mark.parametrize(
    "row", FABRICS, ids=["tree", "blocks", "yaml", "yaml-blocks", "slinky-blocks", "slinky-tree", "rails", "tapered"]
)
def test_levels_between_hosts(row):
    text, asked, expected = row

    assert levels(dumps.h200_metal(), text, **asked) == expected


INVENTORIES = [
    (dumps_more.xe9680_nodes(), {}, 4, [("scale-up", 8, 450), ("tier-0 of 2 hosts", 2, 50), ("scale-out", 2, 50)]),
    (dumps_more.nvl72_nodes(), {}, 36, [("scale-up", 72, 900), ("scale-out", 2, 50)]),
    (dumps_more.p5_nodes(), {}, 4, [("scale-up", 8, 450), ("network-node-layer-3 of 2 hosts", 2, 50),
                                    ("scale-out", 2, 50)]),
    (dumps_more.gke_nodes(), {}, 8, [("scale-up", 8, 450), ("gce-topology-subblock of 4 hosts", 4, 25),
                                     ("scale-out", 2, 25)]),
    (dumps_more.v100_ib(), {"like": "dgx-1-v100"}, 4, [("scale-up", 8, 150), ("scale-out", 4, 1.5625)]),
    (dumps_more.dgx_a100_graph(), {}, 1, [("scale-up", 8, 300)]),
    (dumps_more.clos_graph(), {"accelerator": "h100-sxm"}, 8, [("scale-up", 4, 150), ("switch of 2 hosts", 2, 12.5),
                                                               ("scale-out", 4, 6.25)]),
]  # fmt: skip


@pytest.mark.parametrize("row", INVENTORIES, ids=["xe9680", "nvl72", "p5", "gke", "v100-edr", "dgx-a100", "clos"])
def test_cluster_of_one_file(row):
    text, asked, hosts, expected = row

    assert drawn(text, **asked).hosts.value == hosts
    assert levels(text, **asked) == expected


def test_rails_are_one_group_of_hosts():
    """Four leaves of a unit, one a rail, serve the same four hosts: one level of two groups, not of eight."""
    (leaf, spine) = drawn(dumps.h200_metal(), dumps_more.dgx_ib()).levels

    assert (leaf.groups, leaf.hosts, leaf.switches, leaf.oversubscription) == (2, 4, 4, 1.0)
    assert (spine.groups, spine.hosts) == (1, 8)
    assert not any("do not name their host" in odd for odd in drawn(dumps.h200_metal(), dumps_more.dgx_ib()).oddities)


def test_instance_type_and_adapters_choose_host_and_fabric():
    cluster = cluster_of(drawn(dumps_more.p5_nodes()), Asked())

    assert (cluster.host.name, cluster.fabric.name, cluster.host.nics) == ("like-p5", "efa-v2", 32)
    assert cluster.host.figures.memory_capacity.value == 2097152 * 2**20


def test_machines_of_the_fabric_that_are_no_compute_hosts_are_left_out():
    """A login host with one port below the first leaf, beside hosts of four."""
    text = dumps_more.dgx_ib()
    login = '[20]\t"H-00aa"[1](00aa) \t\t# "login1 mlx5_0" lid 7 4xNDR\n'
    where = text.index("[33]")

    found = drawn(dumps.h200_metal(), text[:where] + login + text[where:])

    assert found.hosts.value == 8
    assert any("1 of 9 hosts differ and are left out: login1 with 8 x h200-sxm, 1 NIC" in lost for lost in found.lost)


def test_broken_off_fabric_is_said():
    """Adapters stand at the end of the output; ports of switches still name them."""
    text = dumps_more.dgx_ib()
    found = drawn(dumps.h200_metal(), text[: text.index("\nCa\t")])

    assert found.hosts.value == 8
    assert any("named but not described; was the text broken off?" in odd for odd in found.oddities)
    with pytest.raises(BadInput, match=r"two kinds of hosts are equally many .* odd: .* was the text broken off"):
        drawn(dumps.h200_metal(), text[: text.index("Switch\t65", len(text) // 3)])


def test_uneven_switches_are_said_and_left_out():
    text = dumps_more.SLURM_TREE.replace("Nodes=tux[0-3]", "Nodes=tux[0-2]")
    found = drawn(dumps.h200_metal(), text)

    assert found.hosts.value == 15
    assert [level.hosts for level in found.levels] == [None, None, 15]
    assert any("different sizes (1 of 3 hosts, 3 of 4 hosts)" in odd for odd in found.oddities)


def test_uplinks_of_uneven_leaves_are_kept():
    """Leaves of 4 and 3 hosts with one uplink each: all traffic between hosts is taken to cross the narrower."""
    leaves = {"leaf0": [(f"gpu{n}", "HCA-1") for n in range(4)], "leaf1": [(f"gpu{n}", "HCA-1") for n in range(4, 7)]}
    text = dumps_more.ibnetdiscover(leaves, ["spine0"], 1, "4xHDR")

    assert levels(dumps.h200_metal(), text) == [("scale-up", 8, 450), ("scale-out", 7, 25 / 8 / 4)]
    assert any("only what its uplinks take is kept" in odd for odd in drawn(dumps.h200_metal(), text).oddities)


def test_hosts_that_differ_are_said_and_left_out():
    """Two dumps of named hosts: one has lost a switch's links; a third is like the first."""
    bad = dumps.h200_metal().replace('count="5"', 'count="2"')
    paths = {"n1": dumps.h200_metal(), "n2": bad, "n3": dumps.h200_metal()}
    seen = []
    for name, text in paths.items():
        one = read_seen(text, name)
        seen.append(replace(one, hosts=tuple(replace(host, name=name) for host in one.hosts)))
    found = draw(seen, Asked())

    assert found.hosts.value == 2
    assert any("1 of 3 hosts differ and are left out: n2 with 8 x h200-sxm, NVLink 300" in lost for lost in found.lost)


def test_hosts_with_less_become_exceptions():
    """Of five dumps of named hosts one lost a device, one its NICs' speed: written, and read back as such."""
    whole = read_seen(dumps.h200_metal(), "x.xml").hosts[0]
    fewer, slower = replace(whole, devices=whole.devices[1:]), replace(whole, nics=tuple(
        replace(nic, bytes_per_s=nic.bytes_per_s and nic.bytes_per_s / 4) for nic in whole.nics))  # fmt: skip
    hosts = [whole, fewer, whole, slower, whole]
    one = read_seen(dumps.h200_metal(), "x.xml")
    seen = [replace(one, hosts=(replace(it, name=f"n{k}"),)) for k, it in enumerate(hosts)]
    found = draw(seen, Asked())
    cluster = cluster_of(found, Asked())

    assert (found.hosts.value, found.names, found.lost) == (5, ("n0", "n1", "n2", "n3", "n4"), ())
    assert cluster.irregular.devices == (8, 7, 8, 8, 8)
    assert cluster.irregular.nic == pytest.approx((1.0, 1.0, 1.0, 0.25, 1.0))
    assert [it.text() for it in found.slower] == [
        "n1 with 7 devices: x.xml (NCCL topology)", "n3 with NICs of 100 Gb/s: x.xml (NCCL topology)"
    ]  # fmt: skip
    assert 'hosts = "3"' in cluster_text(found, Asked()) and 'note = "n3"' in cluster_text(found, Asked())
    assert cluster.host_names == ["n0", "n1", "n2", "n3", "n4"]
    odd = replace(found, names=("n0", "$(reboot)", "n2", "n3", "n4"))
    assert cluster_of(odd, Asked()).host_names[1] == "host-1"
    faster = [replace(it, hosts=(replace(slower, name=it.hosts[0].name),)) for it in seen[:3]] + seen[4:]
    assert any("1 of 4 hosts differ and are left out: n4" in lost for lost in draw(faster, Asked()).lost)
    with_switches = draw([*seen, read_seen("SwitchName=s0 Nodes=n[0-4]", "topology.conf")], Asked())
    assert with_switches.slower == () and sum("differ and are left out" in lost for lost in with_switches.lost) == 2


def test_equally_many_of_two_kinds_are_refused(tmp_path):
    (tmp_path / "a.xml").write_text(dumps.h200_metal())
    (tmp_path / "b.xml").write_text(dumps.mi350x())

    with pytest.raises(BadInput, match=r"two kinds of hosts are equally many.*n1 has 8 x h200.*join them with '\+'"):
        read_files([f"n1={tmp_path}/a.xml", f"n2={tmp_path}/b.xml"])


def test_hosts_asked_for_outnumber_those_of_a_file():
    found = drawn(dumps.h200_metal(), dumps_more.SLURM_TREE, hosts=32)

    assert (found.hosts.value, found.hosts.source, found.levels) == (32, "--hosts", ())
    assert any("--hosts 32 beside 16 hosts in files" in lost for lost in found.lost)


def test_cliques_make_the_domain():
    """Nine trays a clique are half a rack: 36 devices, whatever the catalogue's rack has."""
    text = dumps_more.nvl72_nodes()
    for n in range(36):
        old, new = f'"cluster-uuid.{n // 18}"', f'"half.{n // 9}"'
        text = text.replace(old, new, 1)

    assert levels(text)[0] == ("scale-up", 36, 900)


def test_switches_inside_a_domain_are_no_level():
    """Leaves of six trays in racks of eighteen."""
    nodes = {
        f"tray-{n}": {"nvidia.com/gpu.product": "NVIDIA-GB200", "nvidia.com/gpu.count": "4",
                      "nvidia.com/gpu.clique": f"c.{n // 18}", "fabric.topograph.run/tier-0": f"leaf-{n // 6}"}
        for n in range(36)
    }  # fmt: skip

    assert levels(dumps_more.kubernetes_nodes(nodes, {})) == [("scale-up", 72, 900), ("scale-out", 2, 50)]


def tpu_nodes(product: str, topology: str, chips: int, nodes: int = 8) -> str:
    """Nodes of two pools, by the labels and the resource that GKE gives TPUs. Google Cloud, TPUs in GKE."""
    labels = {"cloud.google.com/gke-tpu-accelerator": product, "cloud.google.com/gke-tpu-topology": topology}
    pools = {f"gke-tpu-{n}": labels | {"cloud.google.com/gke-nodepool": f"pool-{n // 4}"} for n in range(nodes)}
    return dumps_more.kubernetes_nodes(pools, {"google.com/tpu": str(chips)})


@pytest.mark.parametrize(
    ("product", "topology", "chips", "expected"),
    [
        ("tpu-v5-lite-podslice", "4x4", 4, [("scale-up", 16, 200), ("scale-out", 2, 12.5)]),
        ("tpu-v5p-slice", "2x2x4", 4, [("scale-up", 16, 600), ("scale-out", 2, 6.25)]),
        ("tpu-v6e-slice", "2x4", 8, [("scale-up", 8, 400), ("scale-out", 8, 12.5)]),
    ],
)
def test_slices_of_tpus_are_domains(product, topology, chips, expected):
    """Four nodes of a pool where the slice has more chips than one node, each node by itself where it has as many."""
    found = drawn(tpu_nodes(product, topology, chips))

    assert levels(tpu_nodes(product, topology, chips)) == expected
    assert found.hosts.value == 8
    assert not found.oddities


def test_a_slice_of_tpus_that_lacks_a_node():
    odd = drawn(tpu_nodes("tpu-v5p-slice", "2x2x4", 4, nodes=7)).oddities

    assert any("node pool pool-1 has 12 chips, but its slice is 2x2x4" in text for text in odd)


@pytest.mark.parametrize("topology", ["4", "4x", "0x4", "4x4x4x4", "axb", "99999x4"])
def test_a_topology_of_tpus_that_is_none(topology):
    with pytest.raises(BadInput, match="gke-tpu-topology is chips an axis like 4x4"):
        read_seen(tpu_nodes("tpu-v5p-slice", topology, 4), "nodes.json")


@pytest.mark.parametrize(
    "text",
    ["- topology: &a x\n  flat: true\n- topology: *a\n  flat: true\n", "- topology: x\n  tree: &a {switches: [*a]}\n"],
)
def test_yaml_aliases_are_refused(text):
    with pytest.raises(BadInput, match="uses the YAML alias 'a'; aliases are refused"):
        read_seen(text, "topology.yaml")


def test_cliques_of_different_sizes():
    text = dumps_more.nvl72_nodes().replace('"cluster-uuid.1"', '"cluster-uuid.0"', 1)
    found = drawn(text)

    assert any("scale-up domains are 1 of 17 hosts, 1 of 19 hosts" in odd for odd in found.oddities)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tux[0-3]", ["tux0", "tux1", "tux2", "tux3"]),
        ("n[08-10],login", ["n08", "n09", "n10", "login"]),
        ("r[0-1]n[1,3]", ["r0n1", "r0n3", "r1n1", "r1n3"]),
        ("", []),
        ("a,,b", ["a", "b"]),
    ],
)
def test_lists_of_hosts(text, names):
    assert list(expand(text, "list")) == names


@pytest.mark.parametrize("text", ["a[0-", "a]0[", "a[3-1]", "a[x]", "a[0-999999999]", "a" + "[0-9]" * 6, "a b"])
def test_bad_lists_of_hosts(text):
    with pytest.raises(BadInput):
        expand(text, "list")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SwitchName=a Switches=b", "names 'b', which the file does not describe"),
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a", "below itself"),
        ("SwitchName=a Nodes=x\nSwitchName=a Nodes=y", "every switch has its own name"),
        ("SwitchName=a Nodes=x\nBlockName=b Nodes=y", "not both"),
        ("SwitchName=a Nodes=x frob", "'frob' is no key=value"),
        ("BlockName=a Nodes=x\nBlockSizes=0", "BlockSizes are numbers from 1"),
        ("SwitchName=a", "no switch has hosts"),
    ],
)
def test_bad_slurm_files(text, complaint):
    with pytest.raises(BadInput, match=complaint):
        read_seen(text, "topology.conf")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('"nvidia.com/gpu.count": "8"', '"nvidia.com/gpu.count": "many"'), "count of devices is a whole number"),
        (("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"), r"partitions \(MIG 1g.10gb\) of h100-sxm"),
        (('"nvidia.com/gpu.replicas": "1"', '"nvidia.com/gpu.replicas": "4"'), "partitions .time slicing."),
        (("nvidia.com/gpu", "example.com/tpu"), "none of 5 nodes has an accelerator"),
        (("NVIDIA-H100-80GB-HBM3", "Tesla-P4"), "the catalogue has no Tesla-P4; name the nearest with --accelerator"),
    ],
)
def test_bad_nodes(change, complaint):
    with pytest.raises(BadInput, match=complaint):
        drawn(dumps_more.xe9680_nodes().replace(*change))


def test_nodes_out_of_use_are_counted_and_said():
    """Cordoned by hand, or not ready as the kubelet says; nodes without accelerators are no one's business."""
    nodes = json.loads(dumps_more.xe9680_nodes())
    first, second, *_ = [node for node in nodes["items"] if "nvidia.com/gpu.count" in node["metadata"]["labels"]]
    first["spec"] = {"unschedulable": True}
    conditions = {"Ready": "Unknown", "DiskPressure": "True"}
    second["status"]["conditions"] = [{"type": kind, "status": status} for kind, status in conditions.items()]

    odd = drawn(json.dumps(nodes)).oddities

    assert any(f"{first['metadata']['name']} is cordoned and counted" in each for each in odd)
    assert any(f"{second['metadata']['name']} is not ready and counted" in each for each in odd)


def test_nodes_as_yaml():
    text = dumps_more.xe9680_nodes()
    as_yaml = yaml.safe_dump(json.loads(text))

    assert read_seen(as_yaml, "nodes") == read_seen(text, "nodes")


def test_connections_between_instances():
    """InfraGraph's older form, of words between dots. After Keysight/infragraph, two-tier-clos-fabric."""
    down = [f"- server.{k}.nic.{n}.eth1.leaf.{k // 2}.port.{n}" for k in range(8) for n in range(4)]
    up = [f"- leaf.{k}.port.{8 + n}.eth1.spine.{s}.port.{k}" for k in range(4) for s in range(2) for n in range(2)]
    new = dumps_more.clos_graph()
    old = new[: new.index("edges:\n- {ep1: {instance")] + "\n".join(["connections:", *down, *up, ""])

    assert levels(old, accelerator="h100-sxm") == levels(new, accelerator="h100-sxm")


@pytest.mark.parametrize(("only", "hosts", "fanouts"), [("tux[0-7]", 8, (8, 4, 2)), ("tux[0-1,4-5]", 4, (8, 2, 2))])
def test_some_of_the_hosts(only, hosts, fanouts):
    asked = {"only": only}
    found = drawn(dumps.h200_metal(), dumps_more.SLURM_TREE, **asked)

    assert found.hosts.value == hosts
    assert tuple(fanout for _, fanout, _ in levels(dumps.h200_metal(), dumps_more.SLURM_TREE, **asked)) == fanouts


def test_some_hosts_of_an_inventory_and_none():
    assert drawn(dumps_more.xe9680_nodes(), only="worker-[0-1]").hosts.value == 2
    with pytest.raises(BadInput, match="names no host of the files; they name worker-0, worker-1"):
        drawn(dumps_more.xe9680_nodes(), only="gpu[1-4]")
