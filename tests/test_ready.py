"""Ready clusters: counts, levels by hand, a user's own file, and every bad input."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import examples

from topologies.catalogue import names
from topologies.cluster import Cluster
from topologies.errors import BadInput, PlannerError, UnknownName
from topologies.ready import CLUSTERS, MOST_DEVICES, cluster_names, read_cluster

MINE = """
name = "mine"
host = "dgx-h100"
fabric = "ndr-infiniband"
facility = "liquid"
hosts = 3
"""


SMALL_HOST = """
[host]
name = "two-way"
title = "Two boards"
accelerator = "l40s"
devices = 2
nics = 1
scale_up_devices = {scale_up}
scale_up_link = "PCIe 4.0"
[host.sources.me]
title = "measured at home"
[host.figures]
scale_up_latency = {{ value = "3 us", source = "me" }}
nic_bandwidth = {{ value = "{nic}", source = "me" }}
memory_capacity = {{ value = "256 GB", source = "me" }}
power = {{ value = "300 W", source = "me" }}
"""

INLINE = """
name = "home"
fabric = "ethernet-100"
facility = "air-average"
hosts = 2
price_usd_per_device_hour = 0.5
"""


def file(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("what", "devices"),
    [
        ("dgx-h100", 8),
        ("dgx-h100:4", 32),
        ("mi300x:8", 64),
        ("mi300x-platform:8", 64),
        ("gb200-nvl72", 72),
        ("gb200-nvl72:2", 144),
        ("nvl72-gb200:2", 8),
        ("nd-gb200-v6:36", 144),
        ("cpu-local:1", 4),
        ("cpu-local", 4),
        ("trn2:4", 64),
        ("dgx-h100:262144", 2**21),
    ],
)
def test_devices_in_all(what, devices):
    cluster = read_cluster(what)

    assert cluster.devices == devices
    assert cluster.name == what


def test_levels_of_four_dgx_h100_by_hand():
    """8 devices over NVLink at 450 GB/s; 4 hosts, 8 NICs of 400 Gb/s for 8 devices: 50 GB/s each."""
    inner, outer = read_cluster("dgx-h100:4").levels

    assert (inner.fanout, inner.bandwidth_bytes_per_s, inner.link) == (8, 450e9, "NVLink 4")
    assert inner.latency_s == pytest.approx(1.9e-6)
    assert (outer.fanout, outer.bandwidth_bytes_per_s, outer.link) == (4, 50e9, "ndr-infiniband")
    assert outer.latency_s == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("what", "gigabytes_per_s"),
    [
        ("p4d:2", 4 * 12.5 / 8),
        ("p5:2", 32 * 12.5 / 8),
        ("p6-b300:2", 16 * 50 / 8),
        ("gb300-nvl72:2", 100.0),
        ("trn2:2", 16 * 25 / 16),
        ("hls-gaudi3:2", 24 * 25 / 8),
    ],
)
def test_scale_out_share_of_a_device(what, gigabytes_per_s):
    assert read_cluster(what).levels[1].bandwidth_bytes_per_s == pytest.approx(gigabytes_per_s * 1e9)


@pytest.mark.parametrize(
    ("what", "fanouts"),
    [
        ("dgx-h100", (8,)),
        ("gb200-nvl72:2", (72, 2)),
        ("nvl72-gb200:3", (12,)),
        ("nvl72-gb200:20", (72,)),
        ("nvl72-gb200:36", (72, 2)),
        ("tpu-v6e-host:32", (256,)),
        ("tpu-v6e-host:64", (256, 2)),
    ],
)
def test_hosts_fill_whole_domains(what, fanouts):
    """20 trays are 80 GPUs: one rack's domain of 72, and 8 that stay idle."""
    assert read_cluster(what).group_capacity == fanouts


def test_every_host_has_a_ready_cluster():
    assert {read_cluster(name).host.name for name in cluster_names()} == set(names("hosts"))


@pytest.mark.parametrize("name", cluster_names())
def test_ready_cluster(name):
    cluster = read_cluster(name)

    assert cluster.name == name == (CLUSTERS / f"{name}.toml").stem
    assert cluster.accelerator.name == cluster.host.accelerator
    port, nic = cluster.fabric.figures.port_bandwidth.value, cluster.host.figures.nic_bandwidth.value
    assert port >= nic, "the fabric would throttle the NICs of its own ready cluster"
    if cluster.irregular is None:
        assert read_cluster(f"{name}:2").devices == 2 * cluster.devices
    assert cluster.peak_flop_per_s("bf16") > 0
    assert cluster.memory_bytes > 0


def test_price_is_the_accelerators_unless_the_file_says_so():
    assert read_cluster("dgx-h100").price_usd_per_device_hour == 2.95
    assert read_cluster("p5en").price_usd_per_device_hour == 7.91
    assert read_cluster("mi300x").price_usd_per_device_hour is None


def test_a_cluster_is_itself():
    cluster = read_cluster("dgx-h100:2")

    assert read_cluster(cluster) is cluster


def test_digest_follows_what_the_cluster_is():
    assert read_cluster("mi300x:8").digest == read_cluster("mi300x-platform:8").digest
    assert read_cluster("dgx-h100:2").digest != read_cluster("dgx-h100:3").digest


def test_a_scaled_twin_is_faster_everywhere():
    cluster, twin = read_cluster("dgx-h100:2"), read_cluster("dgx-h100:2").scaled(2.0)

    assert twin.peak_flop_per_s("fp8") == 2 * cluster.peak_flop_per_s("fp8")
    for before, after in zip(cluster.levels, twin.levels, strict=True):
        assert after.bandwidth_bytes_per_s == 2 * before.bandwidth_bytes_per_s
        assert after.latency_s == before.latency_s / 2


# A user's own file


def test_file_of_names(tmp_path):
    path = file(tmp_path, MINE)

    assert read_cluster(path).devices == 24
    assert read_cluster(Path(path)).facility.name == "liquid"
    assert read_cluster(f"{path}:5").devices == 40


def test_file_with_its_own_host(tmp_path):
    """Two hosts of two boards; one NIC of 50 Gb/s for both: 3.125 GB/s each."""
    cluster = read_cluster(file(tmp_path, INLINE + SMALL_HOST.format(scale_up=2, nic="50 Gb/s")))

    assert cluster.devices == 4
    assert cluster.group_capacity == (2, 2)
    assert cluster.levels[1].bandwidth_bytes_per_s == 3.125e9
    assert cluster.price_usd_per_device_hour == 0.5


def test_file_with_its_own_fabric(tmp_path):
    """4:1 oversubscription leaves a quarter of the slower of NIC and port: 200 / 8 / 4 = 6.25 GB/s."""
    fabric = """
[fabric]
name = "cheap"
title = "Cheap"
kind = "ethernet"
oversubscription = 4.0
[fabric.sources.me]
title = "measured at home"
[fabric.figures]
latency = { value = "10 us", source = "me" }
port_bandwidth = { value = "200 Gb/s", source = "me" }
power_per_port = { value = "0 W", source = "me" }
"""
    text = MINE.replace('fabric = "ndr-infiniband"\n', "") + fabric

    assert read_cluster(file(tmp_path, text)).levels[1].bandwidth_bytes_per_s == 6.25e9


def test_file_that_replaces_the_accelerator(tmp_path):
    cluster = read_cluster(file(tmp_path, MINE + 'accelerator = "h200-sxm"\n'))

    assert cluster.accelerator.name == cluster.host.accelerator == "h200-sxm"
    assert cluster.price_usd_per_device_hour == 3.50


# Bad input: the rule, the thing, the value, the way out


@pytest.mark.parametrize("count", ["0", "-3", "x", "1.5", "", " 4", "1e3", "+4", "٤", "9" * 19])
def test_bad_count(count):
    with pytest.raises(BadInput) as refused:
        read_cluster(f"dgx-h100:{count}")
    assert "whole one from 1" in str(refused.value)
    assert "dgx-h100:4" in str(refused.value)
    assert repr(count) in str(refused.value)


def test_count_names_the_unit():
    with pytest.raises(BadInput, match="number of racks"):
        read_cluster("gb200-nvl72:0")


@pytest.mark.parametrize("what", ["dgx-h100:262145", "gb200-nvl72:30000", "cpu-local:999999999999999999"])
def test_absurd_size(what):
    with pytest.raises(BadInput, match=f"absurd; the limit is {MOST_DEVICES}"):
        read_cluster(what)


@pytest.mark.parametrize(
    ("name", "nearest"), [("dgx-h1000", "dgx-h100"), ("DGX-H100", "dgx-h100"), ("gb200", "gb200"), ("", "")]
)
def test_unknown_name(name, nearest):
    with pytest.raises(UnknownName, match=rf"no cluster '{name}' .*nearest: .*{nearest}"):
        read_cluster(name)


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml cannot be read: No such file"):
        read_cluster(str(tmp_path / "none.toml"))


def test_directory(tmp_path):
    folder = tmp_path / "x.toml"
    folder.mkdir()

    with pytest.raises(BadInput, match="directory or a device"):
        read_cluster(folder)


def test_binary_file(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\x7fELF\xff\xfe\x00")

    with pytest.raises(BadInput, match="not UTF-8 text"):
        read_cluster(path)


def test_huge_file(tmp_path):
    with pytest.raises(BadInput, match="at most 2,000,000"):
        read_cluster(file(tmp_path, "#" * 2_000_001))


def test_deeply_nested_file(tmp_path):
    with pytest.raises(BadInput):
        read_cluster(file(tmp_path, "name = " + "[" * 100_000))


def test_half_written_file(tmp_path):
    with pytest.raises(BadInput, match="is not TOML"):
        read_cluster(file(tmp_path, MINE + 'price_usd_per_device_hour = "'))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('colour = "green"', r"colour: Extra inputs.*a cluster file holds: name, title, host"),
        ("price_usd_per_device_hour = -1", "price_usd_per_device_hour"),
        ("price_usd_per_device_hour = nan", "price_usd_per_device_hour"),
        ("hosts_per_unit = 0", "hosts_per_unit"),
        ('accelerator = "h1000"', "no accelerator 'h1000'"),
        ("accelerator = 3", "accelerator"),
    ],
)
def test_wrong_field(tmp_path, change, complaint):
    with pytest.raises(PlannerError, match=complaint):
        read_cluster(file(tmp_path, MINE + change))


@pytest.mark.parametrize("hosts", ["0", "-1", "2.0", "true", '"3"', "1" * 400, "1" * 5000])
def test_wrong_hosts(tmp_path, hosts):
    with pytest.raises(BadInput):
        read_cluster(file(tmp_path, MINE.replace("hosts = 3", f"hosts = {hosts}")))


def test_missing_fields(tmp_path):
    with pytest.raises(BadInput, match=r"host: Field required; fabric: Field required; facility: Field required"):
        read_cluster(file(tmp_path, 'name = "mine"'))


@pytest.mark.parametrize("scale_up", [1, 3])
def test_domain_of_half_a_host(tmp_path, scale_up):
    with pytest.raises(BadInput, match=f"devices = 2 but scale_up_devices = {scale_up}; make it a multiple"):
        read_cluster(file(tmp_path, INLINE + SMALL_HOST.format(scale_up=scale_up, nic="50 Gb/s")))


@pytest.mark.parametrize(("nic", "complaint"), [("0 Gb/s", "above 0; got 0.0"), ("50 GB", "expected 'B/s'")])
def test_host_with_a_bad_figure(tmp_path, nic, complaint):
    with pytest.raises(BadInput, match=complaint):
        read_cluster(file(tmp_path, INLINE + SMALL_HOST.format(scale_up=2, nic=nic)))


@pytest.mark.parametrize(
    ("field", "value"), [("devices", "0"), ("nics", "-1"), ("nics", "1" * 400), ("nics", "0x" + "f" * 9000)]
)
def test_host_with_a_bad_count(tmp_path, field, value):
    was = {"devices": "devices = 2\nnics", "nics": "nics = 1"}[field]
    text = SMALL_HOST.format(scale_up=2, nic="50 Gb/s").replace(was, was.replace("2", value).replace("1", value))

    with pytest.raises(BadInput, match=f"{field} of host 'two-way'"):
        read_cluster(file(tmp_path, INLINE + text))


def test_hosts_that_nothing_joins(tmp_path):
    text = SMALL_HOST.format(scale_up=2, nic="50 Gb/s").replace("nics = 1", "nics = 0")

    with pytest.raises(BadInput, match="nics = 0"):
        read_cluster(file(tmp_path, INLINE + text))
    assert read_cluster(file(tmp_path, INLINE.replace("hosts = 2", "hosts = 1") + text)).devices == 2


@pytest.mark.parametrize(("pue", "complaint"), [("0.5", "at least 1; got 0.5"), ("inf", "finite number")])
def test_bad_pue(tmp_path, pue, complaint):
    facility = f"""
[facility]
name = "cold"
title = "Cold"
cooling = "air"
[facility.sources.me]
title = "measured at home"
[facility.figures]
pue = {{ value = {pue}, source = "me" }}
electricity_price = {{ value = "0 USD/kWh", source = "me" }}
"""
    with pytest.raises(BadInput, match=complaint):
        read_cluster(file(tmp_path, MINE.replace('facility = "liquid"\n', "") + facility))


@pytest.mark.parametrize("what", [None, 3, 1.5, ["dgx-h100"], {"name": "x"}, b"dgx-h100"])
def test_not_a_name_at_all(what):
    with pytest.raises(BadInput, match="a cluster is a name"):
        read_cluster(what)


def test_a_device_file_is_not_read():
    with pytest.raises(BadInput, match="directory or a device"):
        read_cluster("/dev/zero")


NAMES = st.sampled_from([*cluster_names(), "dgx", "x.toml", "./x", ""])
COUNTED = st.builds("{}:{}".format, NAMES, st.one_of(st.integers().map(str), st.text(max_size=8)))


@examples(400)
@given(st.one_of(st.text(max_size=60), st.text(), COUNTED))
@example("\0/x")
@example("\ud800/x")
@example("a" * 5000 + ".toml")
@example("dgx-h100:4:4")
def test_any_text_is_a_cluster_or_a_refusal(text):
    try:
        assert isinstance(read_cluster(text), Cluster)
    except PlannerError as error:
        assert str(error)


@examples(100)
@given(data=st.binary(max_size=200))
def test_any_file_is_a_cluster_or_a_refusal(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)

    with pytest.raises(PlannerError):
        read_cluster(path)
