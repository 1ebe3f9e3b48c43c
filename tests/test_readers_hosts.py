"""Hosts from NCCL's topologies and matrices of nvidia-smi: the host a person would draw, and what is odd about it."""

import re

import pytest

from tests import dumps, dumps_more
from topologies.errors import BadInput, UnknownName
from topologies.readers import bounded, nccl_xml, read_files, read_seen
from topologies.readers.drawn import Asked, Drawn, draw
from topologies.readers.recognised import accelerator_of
from topologies.readers.seen import Device
from topologies.readers.tables import cluster_of, cluster_of_text, cluster_text
from topologies.ready import read_cluster


def drawn(*texts: str, **asked) -> Drawn:
    return draw([read_seen(text, f"file{k}") for k, text in enumerate(texts)], Asked(**{"hosts": 4, **asked}))


def drawn_cluster(*texts: str, **asked):
    return cluster_of(drawn(*texts, **asked), Asked(**{"hosts": 4, **asked}))


def changed(text: str, *pairs: tuple[str, str], count: int = -1) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, count)
    return text


# Dump, options, accelerator, devices, NICs, GB/s inside and out a device, fabric, catalogue's host for the rest
HOSTS = [
    (dumps.h200_metal, {}, "h200-sxm", 8, 8, 450, 50, "roce-400", "dgx-h200"),
    (dumps.h200_vm, {}, "h200-sxm", 8, 8, 450, 50, "roce-400", "dgx-h200"),
    (dumps.dgx_a100, {}, "a100-40-sxm", 8, 8, 300, 25, "hdr-infiniband", "dgx-a100-40gb"),
    (dumps.mi350x, {}, "mi350x", 8, 8, 535, 50, "roce-400", "mi350x-platform"),
    (dumps.ncv4, {"like": "l40s-host"}, "a100-80-pcie", 4, 1, 32, 3.125, "ethernet-100", "l40s-host"),
    (dumps.ndv5_template, {"accelerator": "h100-sxm"}, "h100-sxm", 8, 8, 450, 50, "ndr-infiniband", "dgx-h100"),
    (dumps.h200_topo, {}, "h200-sxm", 8, 8, 450, 50, "ndr-infiniband", "dgx-h200"),
    (dumps.a800_topo, {"accelerator": "a800-80-sxm"}, "a800-80-sxm", 8, 8, 200, 25, "hdr-infiniband", "hgx-a800"),
    (dumps.dgx2_topo, {}, "v100-sxm2-32gb", 16, 8, 150, 6.25, "ethernet-100", "dgx-2"),
    (dumps.no_links_topo, {}, "h100-sxm", 8, 8, 64, 50, "ndr-infiniband", "dgx-h100"),
]  # fmt: skip


@pytest.mark.parametrize("row", HOSTS, ids=lambda row: row[0].__name__)
def test_host_as_a_person_would_draw_it(row):
    dump, asked, accelerator, devices, nics, inside, outside, fabric, like = row
    cluster = drawn_cluster(dump(), **asked)

    assert (cluster.accelerator.name, cluster.host.devices, cluster.host.nics) == (accelerator, devices, nics)
    up, out = cluster.levels
    assert (up.fanout, up.bandwidth_bytes_per_s) == (devices, inside * 1e9)
    assert (out.fanout, out.bandwidth_bytes_per_s) == (4, outside * 1e9)
    assert (cluster.fabric.name, cluster.host.name) == (fabric, f"like-{like}")


def test_the_written_file_says_where_each_figure_is_from():
    found, asked = drawn(dumps.h200_metal()), Asked(hosts=4)
    text = cluster_text(found, asked)

    assert "nics = 8  # file0 (NCCL topology)" in text
    assert 'nic_bandwidth = { value = "400 Gb/s", source = "file-1", kind = "published" }' in text
    assert '[host.sources.file-1]\ntitle = "file0 (NCCL topology)"' in text
    assert 'scale_up_latency = { value = "1.9 us", source = "nccl-tuning"' in text
    assert cluster_of_text(text, "text").digest == cluster_of(found, asked).digest


def test_partitions_are_read_as_devices_of_their_packages():
    """64 devices of rocm-smi and of RCCL are eight MI300X in CPX/NPS4, the ready cluster's levels."""
    ready = read_cluster("mi300x-cpx:4")
    for text in (dumps_more.cpx_rocm(), dumps_more.cpx_rccl()):
        found = drawn(text)
        cluster = cluster_of(found, Asked(hosts=4))

        assert found.shape.partition.value == "CPX/NPS4"
        assert (found.shape.devices.value, cluster.host.devices, cluster.accelerator.name) == (8, 64, "mi300x/cpx-nps4")
        assert cluster.levels == ready.levels
        assert 'partition = "CPX/NPS4"  # ' in cluster_text(found, Asked(hosts=4))
        assert found.oddities == ()


def test_amd_smi_tells_whole_devices_by_their_links_and_partitions_by_their_mode():
    """Two tables in one file; the list alone knows the product and the mode, topology alone the links."""
    listed, links = dumps_more.amd_smi_list("SPX/NPS1", 8), dumps_more.amd_smi_topology(8)
    whole = drawn(listed + links)

    assert (whole.shape.accelerator.value, whole.shape.devices.value, whole.shape.partition) == ("mi300x", 8, None)
    assert whole.oddities == ()
    uneven = listed + changed(links, ("0            15 ", "0            30 "), count=1)
    assert any("is not symmetric" in odd for odd in drawn(uneven).oddities)
    halves = drawn(dumps_more.amd_smi_list("DPX/NPS1", 8, 2))
    assert (halves.shape.devices.value, halves.shape.partition.value) == (8, "DPX/NPS1")
    assert drawn(links, accelerator="mi300x").shape.devices.value == 8
    with pytest.raises(
        BadInput, match=r"does not say what its devices are .its links fit .*name it with --accelerator"
    ):
        drawn(links)


def test_modes_whose_memory_is_not_told_or_is_one_pool():
    """Of CPX alone the first mode that fits; NPS1 by its name; a link of the user's leaves the package its modes."""
    silent = dumps_more.cpx_rocm(1).replace("NPS4", "N/A")
    assert drawn(silent).shape.partition.value == "CPX/NPS4"
    one_pool = dumps_more.cpx_rocm(1).replace("NPS4", "NPS1")
    assert drawn_cluster(one_pool, scale_up_bytes_per_s=400e9).accelerator.name == "mi300x/cpx-nps1"
    assert drawn_cluster(one_pool, scale_up_bytes_per_s=400e9).levels[1].bandwidth_bytes_per_s == 400e9 / 8


MORE_HOSTS = [
    (dumps_more.frontier_rocm, {}, "mi250x-gcd", 8, 175),
    (dumps_more.pcie_rocm, {"accelerator": "mi300x"}, "mi300x", 4, 64),
    (dumps_more.dgx2_lstopo, {}, "v100-sxm2-32gb", 16, 150),
]


@pytest.mark.parametrize("row", MORE_HOSTS, ids=lambda row: row[0].__name__)
def test_devices_and_links(row):
    dump, asked, accelerator, devices, inside = row
    cluster = drawn_cluster(dump(), **asked)

    assert (cluster.accelerator.name, cluster.host.devices) == (accelerator, devices)
    assert cluster.levels[0].bandwidth_bytes_per_s == inside * 1e9


def test_memory_of_lstopo():
    """Host memory is DRAM, CXL a tier of its own; HBM of a processor is shown and said to be lost."""
    found = drawn(dumps.h200_metal(), dumps_more.tiers_lstopo())
    cluster = drawn_cluster(dumps.h200_metal(), dumps_more.tiers_lstopo())

    assert [(m.kind, m.tier, m.bytes_per_s / 2**20) for m in found.shape.memories] == [
        ("DRAM", 1, 22500), ("HBM", 0, 90000), ("CXL-DRAM", 2, 15000),
    ]  # fmt: skip
    assert found.lost == ("17.2 GB of HBM a host: a cluster's file has no place for it",)
    assert cluster.host.figures.memory_capacity.value == 64 * 2**30
    tiers = {tier.name: tier for tier in cluster.present_tiers}
    assert (tiers["cxl"].capacity_bytes, tiers["cxl"].read_bytes_per_s) == (128 * 2**30, 15000 * 2**20)
    assert tiers["dram"].read_bytes_per_s == 22500 * 2**20


def test_cxl_whose_speed_no_file_tells_is_a_module_of_the_catalogue():
    text = changed(dumps_more.tiers_lstopo(), ('name="Bandwidth"', 'name="Capacity"'))
    tiers = {tier.name: tier for tier in drawn_cluster(dumps.h200_metal(), text).present_tiers}

    assert tiers["cxl"].read_bytes_per_s == 36e9


def test_cxl_memory_that_is_no_numa_node():
    found = drawn(dumps.h200_metal(), dumps_more.qemu_lstopo())

    assert any("537 MB of CXL memory are plugged in but no NUMA node" in odd for odd in found.oddities)
    assert any("a virtual machine (QEMU)" in odd for odd in found.oddities)


def test_a_machine_is_recognised_by_its_name():
    """hwloc without GPU plugins and with unknown PCI ids: the product name of the machine tells."""
    text = dumps_more.dgx2_lstopo().replace("10de:1db8", "10de:ffff").replace("Tesla V100-SXM3-32GB-H", "?")

    assert drawn(text).shape.accelerator.note == "of the machine NVIDIA DGX-2H"
    assert drawn(text).shape.accelerator.value == "v100-sxm2-32gb"


@pytest.mark.parametrize(
    ("product", "pci", "accelerator"),
    [
        ("NVIDIA-L4", "10de:27b8", "l4"), ("NVIDIA-GeForce-RTX-5090", "10de:2b85", "rtx-5090"),
        ("Tesla-T4", "10de:1eb8", "t4"), ("NVIDIA-L20", "10de:26ba", "l20"), ("nvidia-tesla-t4", "10de:1eb8", "t4"),
        ("NVIDIA H20", "10de:2329", "h20"), ("NVIDIA-H800", "10de:2324", "h800-sxm"),
    ],
)  # fmt: skip
def test_devices_by_their_names_and_by_their_pci_ids(product, pci, accelerator):
    by_name, by_id = Device("GPU0", "nodes", product=product), Device("GPU0", "lspci", pci=pci)

    assert (accelerator_of(by_name), accelerator_of(by_id)) == (accelerator, accelerator)


# What is odd about a host, and is said


ODD = [
    (dumps.h200_vm(), "numaid is -1, as virtual machines report"),
    (dumps.h200_vm(), "a switch that cannot be seen .bus ffff."),
    (dumps.ncv4(), "no PCIe speed of any device"),
    (dumps.ncv4(), "NVLink joins some devices only; others are reached over PCIe"),
    (dumps.ndv5_template(), "a template for NCCL_TOPO_FILE, not a dump"),
    (dumps.no_links_topo(), "no NVLink or XGMI between h100-sxm, which has 18 links: switched off, hidden"),
    (changed(dumps.h200_metal(), ('count="5"', 'count="1"'), count=2), "GPU0 has links for 250 GB/s, others for 450"),
    (changed(dumps.h200_metal(), ('count="4"', 'count="3"')), "links for 400 GB/s, and h200-sxm could have 450 GB/s"),
    (changed(dumps.h200_metal(), ('speed="400000"', 'speed="100000"'), count=1), "mlx5_0 100 Gb/s beside 400 Gb/s"),
    (changed(dumps.h200_metal(), ("<net ", "<not "), count=3), "5 of the 8 NICs that dgx-h200"),
    (changed(dumps.h200_metal(), ('"400000"', '"200000000"')), "mlx5_0 has the speed 200000000, no Mb/s of a NIC"),
    (changed(dumps.h200_topo(), ("GPU1\tNV18", "GPU1\tNV16")), "GPU1 sees GPU0 by NV16, GPU0 sees GPU1 by NV18"),
    (changed(dumps.mi350x(), ('device="0x1021"', 'device="0x101e"')), "is a virtual NIC"),
    (changed(dumps_more.frontier_rocm(), ("30           0 ", "45           0 "), count=1), "table is not symmetric"),
    (changed(dumps_more.frontier_rocm(), ("Numa Node: 3", "Numa Node: -1")), "NUMA node -1, as virtual machines"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ODD, ids=[words[:40] for _, words in ODD])
def test_oddities_are_said(text, words):
    asked = {"like": "l40s-host"} if "0x20b5" in text else {"accelerator": "h100-sxm"} if "ffff:ff:01" in text else {}
    found = drawn(text, **asked)

    assert any(re.search(words, odd) for odd in found.oddities), found.oddities


@pytest.mark.parametrize(
    "make", [dumps.h200_metal, dumps.dgx_a100, dumps.mi350x, dumps.h200_topo, dumps_more.dgx2_lstopo]
)
def test_nothing_is_odd_about_a_sound_host(make):
    assert drawn(make()).oddities == ()


def test_links_to_a_cpu_are_no_links_to_peers():
    """As on POWER9, whose CPUs have NVLink ports."""
    text = changed(dumps.h200_metal(), ("</gpu>", '<nvlink target="0004:04:00.0" count="3" tclass="0x068001"/></gpu>'))

    assert drawn(text).oddities == ()
    assert drawn(text).shape.scale_up_bytes_per_s is None


def test_fewer_links_of_a_matrix_that_disagrees_count():
    """GPU1 sees all others by 16 links; they see it by 18."""
    lines = [
        line.replace("NV18", "NV16") if line.startswith("GPU1\t") else line for line in dumps.h200_topo().split("\n")
    ]

    assert drawn("\n".join(lines)).shape.scale_up_bytes_per_s.value == 16 * 25e9


def test_weights_tell_direct_neighbours():
    """A platform of MI300X where two devices reach each other over a third: six links of 64 GB/s instead of seven."""
    weights = [[0 if a == b else 30 if a + b == 1 else 15 for b in range(8)] for a in range(8)]
    kinds = [["0" if a == b else "XGMI" for b in range(8)] for a in range(8)]
    text = dumps_more.rocm_topo(weights, kinds, [0] * 8, {"Card Series": ["AMD Instinct MI300X"] * 8})

    assert drawn(text).shape.scale_up_bytes_per_s.value == 6 * 64e9


def test_first_file_is_believed_and_the_other_said():
    metal, topo = dumps.h200_metal(), changed(dumps.h200_topo(), ("NV18", "NV16"))

    found = drawn(metal, topo)
    assert found.shape.scale_up_bytes_per_s is None
    assert any("ends of scale-up links" in odd for odd in found.oddities)
    assert drawn(topo, metal).shape.scale_up_bytes_per_s.value == 400e9


def test_speed_of_a_nic_comes_from_the_file_that_tells_it():
    """A matrix of nvidia-smi has names of NICs and no speeds; the topology of NCCL beside it has both."""
    assert drawn(dumps.h200_topo()).shape.nic_bytes_per_s is None
    assert drawn(dumps.h200_topo(), dumps.h200_metal()).shape.nic_bytes_per_s.value == 50e9


def test_options_go_before_files():
    asked = {"scale_up_bytes_per_s": 450e9, "nics": 4, "fabric": "roce-400", "facility": "liquid"}
    cluster = drawn_cluster(dumps.no_links_topo(), **asked)

    assert cluster.levels[0].bandwidth_bytes_per_s == 450e9
    assert (cluster.host.nics, cluster.fabric.name, cluster.facility.name) == (4, "roce-400", "liquid")


# What is refused, with the way out

REFUSED = [
    (dumps.a800_topo(), {}, "does not say what its devices are .its links fit a800-80-sxm, h800-sxm.; name it with"),
    (dumps_more.pcie_rocm(), {}, "does not say what its devices are; name it with --accelerator"),
    (dumps_more.xgmi_rocm(), {}, "devices are .its links fit mi300x, mi325x, mi350x, mi355x.; name it"),
    (
        changed(dumps_more.cpx_rocm(1), ("CPX", "TPX")),
        {},
        r"partitions .TPX/NPS4. of mi300x, and partition modes known of that are DPX/NPS2, QPX/NPS4, CPX/NPS4",
    ),
    (
        changed(dumps_more.cpx_rocm(2), ("Partition: \t\tCPX", "Partition: \t\tSPX"), count=1),
        {},
        r"packages are in different modes .CPX, SPX.",
    ),
    (
        changed(dumps_more.cpx_rocm(1), ("Name: \t\tAMD Instinct MI300X", "Name: \t\tAMD Instinct MI250X")),
        {},
        "one host has mi250x-gcd and mi300x",
    ),
    (changed(dumps.mi350x(), ('sm="256"', 'sm="100"')), {}, "partitions .100 of 256 compute units each. of mi350x"),
    (
        changed(dumps_more.cpx_rccl(), ('<gpu dev="63"', '<gpx dev="63"')),
        {},
        "63 partitions of mi300x in CPX/NPS4 are no whole packages of 8",
    ),
    (
        changed(dumps.h200_topo(), ("GPU 1:", "  MIG 1g.18gb     Device  0: (UUID: MIG-5)\nGPU 1:")),
        {},
        "MIG 1g.18gb. of h200",
    ),
    (changed(dumps.h200_metal(), ("0x2335", "0x1234")), {}, "the catalogue has no PCI 10de:1234; name the nearest"),
    (changed(dumps.h200_metal(), ("0x2335", "0x2330"), count=1), {}, "one host has h100-sxm and h200-sxm"),
    (changed(dumps.ncv4(), ("0x20b5", "0x20b7")), {}, "no host of the catalogue holds a30.*--like HOST"),
    (dumps_more.SLURM_TREE, {}, "shows no accelerator; add a file that does.*--like"),
    (dumps.h200_topo().split("\nGPU7\t")[0], {}, "no row GPU7; was the text broken off"),
    (changed(dumps.h200_topo(), ("\tNV18", "\t<b>NV18</b>"), count=1), {}, "row GPU0 has the cell"),
    (dumps.h200_metal()[:2000], {}, "is not whole XML: .*was it broken off"),
    ("<system/>", {}, "holds no <cpu>"),
    ("<topology/>", {}, "no object of type Machine"),
    ("hello", {}, "is of no format that is read here .NCCL topology; .*it begins 'hello'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "asked", "words"), REFUSED, ids=[words[:40] for _, _, words in REFUSED])
def test_refusals_name_the_way_out(text, asked, words):
    with pytest.raises(BadInput, match=words):
        drawn_cluster(text, **asked)


@pytest.mark.parametrize("name", ["--like", "--accelerator", "--fabric"])
def test_unknown_names(name):
    with pytest.raises(UnknownName, match="nearest"):
        drawn_cluster(dumps.h200_metal(), **{name.removeprefix("--"): "h1000"})


ENTITIES = [
    '<!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><system><cpu numaid="&b;"/></system>',
    '<!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/hostname">]><system>&a;</system>',
    '<!DOCTYPE s [<!ENTITY % a SYSTEM "http://example.com/x">%a;]><system/>',
    '<!DOCTYPE s SYSTEM "x.dtd"><system>&a;</system>',
]


@pytest.mark.parametrize("text", ENTITIES, ids=["laughs", "external", "parameter", "undeclared"])
def test_entities_are_refused(text):
    with pytest.raises(BadInput, match="declares or uses the XML entity"):
        nccl_xml.read(text, "file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<system>" * 200, "96 levels"),
        ("<system>" + "<cpu/>" * 1001, "more than 1000 elements"),
        ("<system>" + '<cpu numaid="0"/>' * 3000 + "</system>", "at most 2048 NUMA nodes"),
        ('<?xml version="1.0" encoding="nonsense-8"?><system/>', "holds no <cpu>"),
    ],
    ids=["deep", "many", "cpus", "encoding"],
)
def test_bounds_of_xml(text, words, monkeypatch):
    monkeypatch.setattr(bounded, "MOST_ELEMENTS", 10_000 if "numaid" in text else 1000)
    with pytest.raises(BadInput, match=words):
        nccl_xml.read(text, "file")


def test_files_that_cannot_be_read(tmp_path):
    packed, empty, large = tmp_path / "a.xml", tmp_path / "b.xml", tmp_path / "c.xml"
    packed.write_bytes(b"\x1f\x8b\xff\x00")
    empty.write_text("\n \n")
    with large.open("wb") as file:
        file.truncate(40_000_000)
    bad = {packed: "is it packed", empty: "is empty", large: "larger than 32000000 bytes", tmp_path: "directory or a"}
    for path, words in {**bad, tmp_path / "none.xml": "cannot be read: No such file"}.items():
        with pytest.raises(BadInput, match=words):
            read_files([path])


@pytest.mark.parametrize("bus", ["\n", '"', "\x7f", "\u2028", "x" * 500, "]]", "💥"])
def test_strange_names_are_written_as_text(bus):
    """What a file calls things ends neither a comment nor a string of the TOML file."""
    found = draw([read_seen(dumps.h200_metal(), f"a{bus}name = 1")], Asked(hosts=2))
    text = cluster_text(found, Asked(hosts=2))

    assert cluster_of_text(text, "text").name == "read-h200-sxm"


def test_hosts_that_nvlink_joins_are_one_domain():
    """Two trays of four GB200 in one topology, as NCCL writes it on multi-node NVLink."""
    slots = [{"bus": f"0009:0{n}:00.0", "pci": ("0x10de", "0x2941"), "links": [("fffffff:ffff:ff", 18)],
              "nics": [(f"mlx5_{n}", 400000, "0x020700")]} for n in range(4)]  # fmt: skip
    one, two = (dumps.nccl_xml(slots, host_hash=word) for word in ("0x1", "0x2"))
    text = one.replace("</system>\n", "") + two.split("\n", 1)[1]

    cluster = drawn_cluster(text, hosts=None)
    assert (cluster.hosts, cluster.accelerator.name, cluster.group_capacity) == (2, "gb200", (8,))


def test_colours_and_prompts_around_a_matrix():
    """Drivers underline the header; people paste the prompt."""
    plain, head = dumps.h200_topo(), "\tGPU0\tGPU1"
    text = changed(plain, (head, "$ nvidia-smi topo -m\n\t\x1b[4mGPU0\tGPU1")).replace(
        "GPU NUMA ID", "GPU NUMA ID\x1b[0m"
    )

    assert read_seen(text, "x").hosts == read_seen(plain, "x").hosts
