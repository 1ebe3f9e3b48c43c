"""Dumps of public threads found after the readers were written: the cluster a person would draw, or a clear refusal."""

import re
import time

import pytest

from tests import dumps, dumps_found, dumps_more
from topologies.errors import BadInput
from topologies.inside import device_rates
from topologies.readers import read_seen
from topologies.readers.drawn import Asked, Drawn, draw
from topologies.readers.tables import cluster_of, cluster_text


def drawn(*texts: str, **asked) -> Drawn:
    return draw([read_seen(text, f"file{k}") for k, text in enumerate(texts)], Asked(**asked))


def cluster(*texts: str, **asked):
    return cluster_of(drawn(*texts, **asked), Asked(**asked))


# Dump, accelerator, devices, NICs, Gb/s of a NIC, GB/s inside, catalogue's host for the rest
HOSTS = [
    (dumps_found.gb200_tray, "gb200", 4, 6, 4 * 400 / 6, 900, "gb200-nvl72"),
    (dumps_found.b300, "b300-sxm", 8, 16, 400, 900, "dgx-b300"),
    (dumps_found.oracle_h100, "h100-sxm", 8, 16, 200, 450, "dgx-h100"),
    (dumps_found.b200_without_a_link, "b200-sxm", 8, 8, 400, 64, "dgx-b200"),
    (dumps_found.l40s_pairs, "l40s", 4, 2, None, 32, "l40s-host"),
    (dumps_found.p4de_template, "a100-80-sxm", 8, 4, 100, 300, "p4de"),
]


@pytest.mark.parametrize("row", HOSTS, ids=lambda row: row[0].__name__)
def test_host_as_a_person_would_draw_it(row):
    dump, accelerator, devices, nics, speed, inside, like = row
    found = cluster(dump())

    assert (found.accelerator.name, found.host.devices, found.host.nics) == (accelerator, devices, nics)
    if speed is not None:
        assert found.host.figures.nic_bandwidth.value == pytest.approx(speed * 1e9 / 8)
    assert found.levels[0].bandwidth_bytes_per_s == inside * 1e9
    assert found.host.name == f"like-{like}"


def test_more_nics_of_untold_speed_are_said_and_carry_as_much_together():
    """Two ports a device where the catalogue's host has one: halves, unless a file tells speeds or the user counts."""
    found = drawn(dumps_found.oracle_h100())
    text = cluster_text(found, Asked())

    assert any(
        "16 NICs of untold speed; they are taken for ports of 8 cards of 400 Gb/s" in it for it in found.oddities
    )
    assert re.search(r'nic_bandwidth = \{ value = "200 Gb/s", source = "dgx-b200-guide", .*kind = "assumed" }', text)
    counted = cluster(dumps_found.oracle_h100(), nics=16)
    assert counted.host.figures.nic_bandwidth.value == 50e9
    speeds = dumps.nccl_h100().replace('speed="400000"', 'speed="100000"')
    assert cluster(dumps_found.oracle_h100(), speeds).host.figures.nic_bandwidth.value == 100e9 / 8


def test_nics_shared_on_a_part_of_a_host_are_said_too():
    """Four devices and eight NICs without speeds, as a virtual machine shows them of a host with eight and eight."""
    nics = [f"mlx5_{n}" for n in range(8)]
    text = dumps.topo_m(4, "NV18", nics, {}, product="NVIDIA H100 80GB HBM3", far="PXB")

    assert cluster(text).host.figures.nic_bandwidth.value == 25e9
    assert any("8 NICs of untold speed; they are taken for ports of 4 cards" in it for it in drawn(text).oddities)


def test_first_of_several_numa_nodes_is_the_processor_of_a_grace():
    assert [port.numa for port in drawn(dumps_found.gb200_tray()).shape.inside] == [0, 0, 1, 1]


def test_the_one_device_that_torch_lists():
    """torch's collect_env names a single device behind its heading, several below it."""
    text = "GPU models and configuration: GPU 0: NVIDIA GeForce RTX 4090\n\tGPU0\tCPU Affinity\nGPU0\t X \t0-31\n"

    assert drawn(text).shape.accelerator.value == "rtx-4090"


def test_a_line_of_blanks_takes_no_time():
    """A device's line is matched in steps of its own length, not of all that follows: 0.1 s, not 4."""
    began = time.process_time()
    read_seen(dumps_found.oracle_h100() + "\nGPU 0: " + " " * 8_000_000 + "x\n", "file")

    assert time.process_time() - began < 2


def test_a_device_without_links_is_said():
    assert any("NVLink joins some devices only" in odd for odd in drawn(dumps_found.b200_without_a_link()).oddities)


@pytest.mark.parametrize("name", ["hfi1_0", "roceP2p1s0f0", "ibp24s0"])
def test_columns_of_nics_by_any_name(name):
    """Older drivers head columns with the NICs' own names."""
    text = dumps_found.l40s_pairs().replace("NIC0", name).replace("NIC1", f"{name}x").split("NIC Legend")[0]

    (host,) = read_seen(text, "file").hosts
    assert [nic.name for nic in host.nics] == [name, f"{name}x"]


def test_names_in_a_header_that_stick_together():
    """As pasted in vllm-project/vllm issue 31594: a column too few would drop NICs in silence."""
    with pytest.raises(BadInput, match=r"row GPU0 has 1 more cells than the header has columns.*NIC1.*stick together"):
        drawn(dumps_found.l40s_pairs().replace("NIC0    NIC1    CPU", "NIC0NIC1    CPU"))


def test_radios_tunnels_and_containers_are_no_nics():
    """Of a GB10 on a desk nothing is left; beside real NICs they are left out."""
    found = drawn(dumps_found.dgx_spark(), accelerator="gb200")
    assert (found.shape.devices.value, found.shape.nics.value) == (1, 0)
    assert any("wlP9s9, tailscale0 are no NICs between hosts" in odd for odd in found.oddities)
    with pytest.raises(BadInput, match="catalogue has no PCI 10de:2e12; name the nearest"):
        drawn(dumps_found.dgx_spark())
    veth = '<nic><net name="veth12" dev="9" speed="800000" port="0" latency="0" guid="0x0" gdr="0"/></nic></cpu>'
    assert drawn(dumps.h200_metal().replace("</cpu>", veth, 1)).shape.nic_bytes_per_s.value == 50e9


def test_links_to_the_processor_are_not_a_port_of_pcie():
    """Two GB200 below one slow bridge, as management sees them, reach memory by C2C alone, each at its full rate."""
    gpus = "".join(
        f'<pci busid="000{n}:01:00.0" class="0x030200" vendor="0x10de" device="0x2941" link_speed="2.5 GT/s PCIe" '
        f'link_width="16"><gpu dev="{n}" sm="100" rank="{n}" gdr="1"><nvlink target="fffffff:ffff:ff" count="18" '
        'tclass="0x068000"/><c2c bw="43125" count="8"/></gpu></pci>'
        for n in range(4)
    )
    bridge = '<pci busid="0000:00:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="4">'
    text = f'<system version="1"><cpu numaid="0" arch="arm64">{bridge}{gpus}</pci></cpu></system>'

    assert device_rates(cluster(text).host) == ()
    assert device_rates(cluster(text.replace("<c2c", "<pcie")).host)[-1] < 4e9


# Text, hosts, members of every level from the inside out
FABRICS = [
    (dumps_found.LEONARDO, 64, (8, 16, 2, 2)),
    (dumps_found.GB300_BLOCKS, 8, (8, 2, 2, 2)),
    (dumps_found.CONTINUED, 8, (8, 4, 2)),
    (dumps_found.DISCONNECTED, 40, (8, 8, 5)),
]


@pytest.mark.parametrize("row", FABRICS, ids=["leonardo", "gb300-blocks", "continued", "disconnected"])
def test_switches_of_slurm(row):
    text, hosts, members = row
    found = cluster(dumps.h200_metal(), text)

    assert (found.hosts, tuple(level.fanout for level in found.levels)) == (hosts, members)


def test_a_drained_host_does_not_lift_joined_blocks_to_a_level_of_their_own():
    text = dumps_found.GB300_BLOCKS.replace(",10.140.93.121", "")
    levels = {group.name: group.level for group in read_seen(text, "blocks").groups}

    assert levels["gb300_b[0-1]"] == levels["gb300_b[2-3]"] == 2


def test_a_switch_with_hosts_and_switches_in_a_file_is_next_to_its_hosts():
    """Slurm takes the hosts of such a line for its own; what ``scontrol`` prints has a level."""
    text = "SwitchName=a Nodes=n[1-2]\nSwitchName=b Nodes=n[3-4] Switches=a\n"

    assert [(group.level, group.hosts) for group in read_seen(text, "f").groups] == [
        (1, ("n1", "n2")),
        (1, ("n3", "n4")),
    ]


# Nodes, hosts, members of every level from the inside out
INVENTORIES = [
    (dumps_found.oke_nodes, 16, (64,)),
    (dumps_found.nebius_nodes, 8, (8, 4, 2)),
    (dumps_found.ultraserver_nodes, 36, (72, 2)),
    (dumps_found.tpu7x_nodes, 4, (16,)),
]


@pytest.mark.parametrize("row", INVENTORIES, ids=lambda row: row[0].__name__)
def test_nodes_of_kubernetes(row):
    dump, hosts, members = row
    found = cluster(dump())

    assert (found.hosts, tuple(level.fanout for level in found.levels)) == (hosts, members)


def test_local_blocks_of_oracle_are_levels():
    """Hosts of one island without NVLink between them: a leaf is a local block."""
    text = dumps_found.oke_nodes().replace("nvidia.com/gpu.clique", "other").replace("GB300", "H200")
    text = text.replace('"nvidia.com/gpu.count": "4"', '"nvidia.com/gpu.count": "8"')

    assert tuple(level.fanout for level in cluster(text).levels) == (8, 8, 2)


def test_a_fabric_without_a_cable_is_refused():
    with pytest.raises(BadInput, match="no cable in it; run ibnetdiscover on a host whose port is up"):
        drawn(dumps.h200_metal(), dumps_found.OFF_THE_FABRIC)


@pytest.mark.parametrize(("version", "kinds"), [("3.0", (48, 16)), ("2.0", (3, 2))])
def test_rdma_ports_of_lstopo_by_their_type(version, kinds):
    """Distributions call ports ``ibp24s0`` or ``rocep1s0f0``; hwloc's type tells them from Ethernet's."""
    io = "".join(
        f'<object type="PCIDev" gp_index="{60 + k}" pci_busid="0000:{k + 17}:00.0" pci_type="{kind} [15b3:1021] '
        f'[15b3:0] 00"><object type="OSDev" gp_index="{70 + k}" name="{name}" osdev_type="{told}"/></object>'
        for k, (name, kind, told) in enumerate([("ibp24s0", "0207", kinds[0]), ("enp5s0", "0200", kinds[1])])
    )
    text = dumps_more.lstopo("X", "Y", "Z", [("", 2**36, "")], io, "").replace('version="3.0"', f'version="{version}"')

    (host,) = read_seen(text, "file").hosts
    assert [(nic.name, nic.kind) for nic in host.nics] == [("ibp24s0", "infiniband")]
