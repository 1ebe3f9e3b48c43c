"""Inside a host: ports and NUMA nodes, what devices below one port leave each other, and the nodes of the graph."""

import dataclasses
from collections import Counter

import networkx
import numpy as np
import pytest

from cost_models.tiers import rates_of
from planner.clusters.inside_report import inside_json, port_rows, ranges, tier_rows
from tests import dumps, dumps_more
from topologies import catalogue
from topologies.errors import BadInput
from topologies.inside import device_rates
from topologies.readers import read_seen
from topologies.readers.drawn import Asked, draw
from topologies.readers.inside import PortSeen
from topologies.readers.tables import cluster_of, cluster_of_text, cluster_text
from topologies.ready import cluster_of_tables, read_cluster
from topologies.tiers import with_tiers

FILE = {"name": "mine", "fabric": "hdr-infiniband", "facility": "air", "hosts": 2}


def host_tables(ports, **changes):
    raw = catalogue.read_toml(catalogue.CATALOGUE / "hosts" / "dgx-a100.toml")
    return FILE | {"host": raw | {"inside": {"source": "recalled", "ports": ports}} | changes}


def test_devices_below_one_port_share_it():
    """Two A100 a switch of one port of 26 GB/s; P5's ports are of PCIe 4 below devices of PCIe 5."""
    one, *others = device_rates(read_cluster("dgx-a100").host)

    assert (one, set(others)) == (26e9, {13e9})
    assert set(device_rates(read_cluster("p5").host)) == {26e9}
    assert device_rates(read_cluster("dgx-h100").host) == ()  # a port each
    assert device_rates(read_cluster("a100-pcie-host").host) == ()  # no source shows its ports


def test_sixteen_devices_of_a_dgx_2_get_what_was_measured():
    """Four a port: 3.15 GB/s each. 3.0 as arXiv:2104.07857 reports of a whole DGX-2, recalled from its figure 2b."""
    assert device_rates(read_cluster("dgx-2").host)[-1] == pytest.approx(3.0e9, rel=0.06)


def test_memory_tiers_are_reached_over_the_shared_port():
    cluster = with_tiers(read_cluster("dgx-a100:2"), ("dram", "cxl-expander:4"))
    rates = rates_of(cluster.tiers, np.array([1.0, 2.0, 8.0]), np.ones(3))

    assert rates.link.tolist() == [[1 / 26e9] * 2, [1 / 13e9] * 2, [1 / 13e9] * 2]
    twice = rates_of(tuple(tier.scaled(2.0) for tier in cluster.tiers), np.array([8.0]), np.ones(1))
    assert twice.link.tolist() == [[1 / 26e9] * 2]


def test_shown_rates_are_those_that_are_priced():
    """A port slower than the slot holds for one device too; eight devices share what the drives read."""
    (p4d,), (dram, nvme) = (inside_json(read_cluster(name))["tiers"] for name in ("p4d", "dgx-h100"))
    _, row = tier_rows(read_cluster("dgx-h100"))

    assert (p4d["device_bytes_per_s"], p4d["device_bytes_per_s_with_all"]) == pytest.approx((12.6e9, 6.3e9))
    assert nvme["device_bytes_per_s_with_all"] == pytest.approx(nvme["read_bytes_per_s"] / 8)
    assert nvme["device_bytes_per_s"] == pytest.approx(min(55e9, nvme["read_bytes_per_s"]))
    assert dram["device_bytes_per_s_with_all"] == pytest.approx(min(55e9, dram["read_bytes_per_s"] / 8))
    assert row[4:] == ("55.0 GB/s", "6.88 GB/s")


def test_rates_of_a_scaled_cluster_are_scaled_for_programs_too():
    cluster = read_cluster("dgx-a100")
    plain, twice = inside_json(cluster), inside_json(cluster.scaled(2.0))

    rates, faster = ([port["bandwidth_bytes_per_s"] for port in found["ports"]] for found in (plain, twice))
    assert faster == [rate * 2 for rate in rates]
    assert twice["device_bytes_per_s"] == [rate * 2 for rate in plain["device_bytes_per_s"]]
    assert port_rows(cluster.scaled(2.0))[0][3] == "52.0 GB/s"


def test_partitions_share_the_port_of_their_package():
    """Four packages of eight on two ports: sixteen devices a port of 55 GB/s."""
    raw = catalogue.read_toml(catalogue.CATALOGUE / "hosts" / "mi300x-platform.toml")
    ports = [{"numa": 0, "devices": [0, 1, 2, 3]}, {"numa": 1, "devices": [4, 5, 6, 7]}]
    host = raw | {"inside": {"source": "recalled", "ports": ports}}
    tables = FILE | {"host": host, "partition": "CPX/NPS4", "fabric": "roce-400"}
    found = cluster_of_tables(tables, "f").host

    assert found.inside.ports[1].devices == tuple(range(32, 64))
    assert device_rates(found)[:8] == (pytest.approx(55e9 / 8),) * 8
    assert device_rates(found)[-1] == pytest.approx(55e9 / 32)


def test_nodes_and_edges():
    """A DGX A100: four ports on NUMA nodes 1, 3, 5 and 7 of 324 GB/s together, two devices and two NICs each."""
    graph = read_cluster("dgx-a100:2").graph()
    kinds = Counter(kind for _, kind in graph.nodes(data="kind"))

    assert [kinds[kind] for kind in ("PCIe port", "NUMA node", "NIC", "device")] == [8, 8, 16, 16]
    assert set(graph["pcie-1-2"]) == {"numa-1-7", "device-12", "device-13", "nic-1-4", "nic-1-5"}
    assert graph.nodes["pcie-1-2"]["title"] == "PCIe switch"
    assert graph.edges["pcie-1-2", "numa-1-7"]["bandwidth_bytes_per_s"] == 26e9
    assert graph.edges["numa-1-7", "host-1"]["bandwidth_bytes_per_s"] == pytest.approx(324e9 / 4)
    assert graph.edges["nic-1-4", "pcie-1-2"]["bandwidth_bytes_per_s"] == 25e9
    assert "host-1" not in graph["nic-1-4"]


def test_pools_are_nodes_and_their_hosts_hang_on_them():
    tables = FILE | {"host": "dgx-a100", "hosts": 5, "tiers": ["cxl-pool:2"]}
    graph = cluster_of_tables(tables, "f").graph()

    assert set(graph["cxl-pool-0"]) == {"host-0", "host-1", "host-2"}
    assert set(graph["cxl-pool-1"]) == {"host-3", "host-4"}
    assert graph.nodes["cxl-pool-0"]["bandwidth_bytes_per_s"] == 256e9
    assert graph.edges["host-4", "cxl-pool-1"]["bandwidth_bytes_per_s"] == 60e9


def test_hosts_with_fewer_devices_have_fewer_below_their_ports():
    tables = FILE | {"host": "dgx-a100", "exceptions": [{"hosts": 0, "devices": 5}]}
    graph = cluster_of_tables(tables, "f").graph()

    assert [n for n in graph["pcie-0-2"] if n.startswith("device")] == ["device-4"]
    assert [n for n in graph["pcie-1-0"] if n.startswith("device")] == ["device-5", "device-6"]
    assert networkx.is_connected(graph.subgraph(set(graph) - {"site"}))


PAIRS = [{"numa": 0, "devices": [0, 1, 2, 3]}, {"numa": 1, "devices": [4, 5, 6, 7]}]
WRONG = [
    ([PAIRS[0]], r"4 of 8 devices are below a port; name the port of every device"),
    ([*PAIRS, {"numa": 1, "devices": [3]}], r"devices \[3\] are named twice"),
    ([*PAIRS, {"numa": 1, "devices": [8]}], r"devices \[8\] are not among the host's 8"),
    ([*PAIRS, {"numa": 1, "nics": [9]}], r"nics \[9\] are not among the host's 8"),
    ([PAIRS[0], PAIRS[1] | {"bandwidth": "0 GB/s"}], r"a port's bandwidth is above 0"),
    ([PAIRS[0], PAIRS[1] | {"numa": -1}], r"numa: Input should be greater than or equal to 0"),
    ([PAIRS[0], PAIRS[1] | {"bandwidth": 5}], r"5 has no unit"),
]


@pytest.mark.parametrize(("ports", "text"), WRONG, ids=[text[:30] for _, text in WRONG])
def test_ports_that_are_wrong_are_refused_in_words(ports, text):
    with pytest.raises(BadInput, match=text):
        cluster_of_tables(host_tables(ports), "f")


def test_a_wrong_port_does_not_make_the_ports_too_few():
    with pytest.raises(BadInput) as wrong:
        cluster_of_tables(host_tables([{"numa": -1, "devices": [0]}]), "f")
    assert "numa: Input should be greater" in str(wrong.value)
    assert "at least 1 item" not in str(wrong.value)
    with pytest.raises(BadInput, match=r"inside\.ports: Tuple should have at least 1 item"):
        cluster_of_tables(host_tables([]), "f")


def test_the_source_of_ports_is_listed():
    tables = host_tables(PAIRS)
    tables["host"]["inside"]["source"] = "nowhere"
    with pytest.raises(BadInput, match=r"'inside': 'nowhere'"):
        cluster_of_tables(tables, "f")


def test_ports_change_no_level_and_no_digest():
    cluster = read_cluster("dgx-a100:2")
    bare = dataclasses.replace(cluster, host=cluster.host.model_copy(update={"inside": None}))

    assert bare.digest == cluster.digest
    assert bare.levels == cluster.levels


def read(text, **asked):
    asked = Asked(**{"hosts": 2, **asked})
    found = draw([read_seen(text, "file")], asked)
    cluster = cluster_of(found, asked)
    assert cluster_of_text(cluster_text(found, asked), "again").host.inside == cluster.host.inside
    return cluster


READ = [
    (dumps.p4d, {"accelerator": "a100-40-sxm", "like": "p4d"}, (1, (4, 5), (2,), "PCIe switch"), 6.3e9),
    (dumps.p5, {"accelerator": "h100-sxm", "like": "p5"}, (0, (2,), (8, 9, 10, 11), "PCIe switch"), 25.2e9),
    (dumps.h200_topo, {}, (0, (2,), (2,), "PCIe switch"), 55e9),
    (dumps.dgx2_topo, {}, (0, (4, 5), (2,), "PCIe switch"), 6.3e9),
    (dumps_more.dgx2_lstopo, {}, (1, (8, 9, 10, 11), (), "PCIe switch"), 3.15e9),
    (dumps_more.frontier_rocm, {}, (1, (2,), (), "not shown"), None),
]


@pytest.mark.parametrize(("dump", "asked", "third", "rate"), READ, ids=[row[0].__name__ for row in READ])
def test_readers_keep_ports_and_numa_nodes(dump, asked, third, rate):
    """The third port of each, and what a device gets of its link when all of the host are at work."""
    host = read(dump(), **asked).host
    port = host.inside.ports[2]

    assert (port.numa, port.devices, port.nics, port.through) == third
    if rate is not None:
        found = (device_rates(host) or (host.figures.device_link.value,))[-1]
        assert found == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("dump", "ready"), [(dumps.p4d, "p4d"), (dumps.p5, "p5"), (dumps_more.dgx2_lstopo, "dgx-2")])
def test_a_host_as_read_has_the_rates_of_the_ready_one(dump, ready):
    """Whatever the file makes of the devices' own slots; to 5 %, as of PCIe 4 83 % were measured."""
    asked = {"accelerator": read_cluster(ready).accelerator.name, "like": ready}

    assert device_rates(read(dump(), **asked).host) == pytest.approx(device_rates(read_cluster(ready).host), rel=0.05)


def test_ports_carry_what_their_line_rate_leaves():
    """A link of the port's own generation is no slower through it, a narrower one has room for two."""
    port = PortSeen(0, (0, 1), (), "PCIe switch", 31.5e9, "file")

    assert (port.bytes_per_s(26e9), port.bytes_per_s(31.5e9)) == (None, None)
    assert (port.bytes_per_s(12.6e9), port.bytes_per_s(55e9)) == (25.2e9, 25.2e9)


def test_a_device_at_the_port_itself_has_its_own_link():
    """Which need not be PCIe, as NVLink-C2C is not."""
    direct = dumps.h200_vm().replace('numaid="-1"', 'numaid="0"')

    assert {port.bandwidth for port in read(direct).host.inside.ports} == {None}


def test_a_virtual_machine_shows_no_ports_and_devices_in_another_order_keep_their_numbers():
    assert read(dumps.h200_vm()).host.inside is None
    turned = dumps.p4d().replace('<cpu numaid="0"', '<cpu numaid="7"')
    assert read(turned, accelerator="a100-40-sxm", like="p4d").host.inside.numa_nodes == (1, 7)
    swapped = dumps.p5().replace('dev="0" sm', 'dev="x" sm').replace('dev="7" sm', 'dev="0" sm')
    swapped = swapped.replace('dev="x" sm', 'dev="7" sm')
    ports = read(swapped, accelerator="h100-sxm", like="p5").host.inside.ports
    assert [(port.devices, port.nics[0]) for port in ports[:2]] == [((0,), 28), ((1,), 4)]


def test_nics_of_one_name_are_numbered_by_their_order():
    """Two ports of one card, or a line that a file has twice: every NIC of the host hangs below one port."""
    doubled = dumps.h200_metal().replace('name="mlx5_1"', 'name="mlx5_0"')
    ports = read(doubled).host.inside.ports

    assert [port.nics for port in ports] == [(n,) for n in range(8)]


@pytest.mark.parametrize(("number", "told"), [("4096", True), ("4097", False), ("9999", False)])
def test_a_numa_node_of_no_possible_number_counts_as_not_told(number, told):
    host = read(dumps.h200_metal().replace('numaid="1"', f'numaid="{number}"')).host

    assert (host.inside is not None) == told


def test_numbers_side_by_side_are_ranges():
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert port_rows(read_cluster("dgx-a100"))[0] == ("NUMA node 3", "0-1", "0-1", "26.0 GB/s", "PCIe switch")
