"""One package as several devices: shares, levels, plans both ways; what a host is where a domain has several levels."""

import itertools

import numpy as np
import pytest
from oracle_quantities import device_in_domain
from strategies import layered_cluster

from cost_models.calibration import calibrate
from cost_models.kernel_tables import kernels_of
from planner import plan
from planner.checks.rederive_domains import whole_hosts
from planner.errors import BadInput
from topologies.catalogue import load
from topologies.errors import UnknownName
from topologies.host_shape import HostShape
from topologies.ready import cluster_of_tables, read_cluster
from topologies.resized import resized

WHOLE, PARTS = read_cluster("mi300x:2"), read_cluster("mi300x-cpx:2")
FILE = {"name": "mine", "host": "mi300x-platform", "fabric": "roce-400", "facility": "air", "hosts": 2}


def test_a_partition_has_an_eighth_of_its_package():
    """Memory, peaks and watts over eight; 8 x 8 devices share eight NICs, and eight the seven links of a package."""
    whole, part = WHOLE.accelerator.figures, PARTS.accelerator.figures
    for name in ("memory_capacity", "memory_usable", "memory_bandwidth", "peak_bf16", "board_power", "idle_power"):
        assert getattr(part, name).value * 8 == pytest.approx(getattr(whole, name).value), name
        assert getattr(part, name).kind == "derived"
    package, scale_up, scale_out = PARTS.levels

    assert (PARTS.devices, PARTS.devices_per_host, PARTS.domain_devices) == (128, 64, 64)
    assert [level.fanout for level in PARTS.levels] == [8, 8, 2]
    assert package.bandwidth_bytes_per_s == pytest.approx(5.3e12 / 8 / 2)  # memory, not the edge of 1.2 TB/s
    assert scale_up.bandwidth_bytes_per_s == pytest.approx(448e9 / 8)
    assert scale_out.bandwidth_bytes_per_s == pytest.approx(8 * 50e9 / 64)
    assert PARTS.host.figures.device_link.value * 8 == pytest.approx(WHOLE.host.figures.device_link.value)


@pytest.mark.parametrize(("mode", "parts"), [("DPX/NPS2", 2), ("qpx/nps4", 4)])
def test_halves_and_quarters(mode, parts):
    """Between them an edge of 1.2 TB/s, or what memory writes and reads again."""
    half = cluster_of_tables({**FILE, "partition": mode}, "x")

    assert [level.fanout for level in half.levels] == [parts, 8, 2]
    assert half.levels[0].bandwidth_bytes_per_s == pytest.approx(min(1.2e12, 5.3e12 / parts / 2))
    assert kernels_of(half).gemm["bf16"].units == 304 // parts
    assert half.accelerator.dies == 8 // parts


def test_what_a_host_is_stays_the_same():
    """Watts, memory and dollars of a host do not depend on how its packages are shown."""
    from cost_models.site import host_peak_w

    assert host_peak_w(PARTS) == pytest.approx(host_peak_w(WHOLE))
    assert PARTS.devices * PARTS.memory_bytes == pytest.approx(WHOLE.devices * WHOLE.memory_bytes)
    if WHOLE.price_usd_per_device_hour:
        assert PARTS.price_usd_per_device_hour * 8 == pytest.approx(WHOLE.price_usd_per_device_hour)


def test_kernels_and_wires_of_a_partition():
    fits = calibrate(PARTS)
    assert kernels_of(WHOLE).gemm["bf16"].units == 304
    assert kernels_of(PARTS).gemm["bf16"].units == 38
    assert fits.sustained == calibrate(WHOLE).sustained
    assert [fits.collective("all_gather", k) is fits.scale_up["all_gather"] for k in range(3)] == [True, True, False]
    assert PARTS.energy_j_per_bit(0) == pytest.approx(0.3e-12)
    assert PARTS.energy_j_per_bit(2) == WHOLE.energy_j_per_bit(1)


def test_other_packages_and_modes():
    """Edges decide where they are slower than memory; a mode of one device changes nothing."""
    assert cluster_of_tables(FILE | {"partition": "spx/nps1"}, "f").digest == cluster_of_tables(FILE, "f").digest
    halves = cluster_of_tables(FILE | {"host": "mi355x-platform", "partition": "DPX/NPS2"}, "f")
    assert [level.fanout for level in halves.levels] == [2, 8, 2]
    assert halves.levels[0].bandwidth_bytes_per_s == pytest.approx(8e12 / 4)
    assert load("accelerators", "b200-sxm").package.figures.bandwidth.value == 5e12
    assert resized(PARTS, 3).levels[:2] == PARTS.levels[:2]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"partition": "CPX/NPS8"}, UnknownName, r"no partition mode of mi300x 'CPX/NPS8' .*CPX/NPS4"),
        ({"host": "dgx-h100", "partition": "CPX/NPS4"}, BadInput, r"no partition modes of 'h100-sxm' are known"),
        ({"partition": "CPX/NPS4", "torus": {"axes": [4, 4]}}, BadInput, r"leave partition or torus out"),
        ({"partition": "CPX/NPS4", "spare_hosts": 1}, BadInput, r"describe hosts that are alike"),
    ],
)
def test_refusals(fields, error, text):
    with pytest.raises(error, match=text):
        cluster_of_tables(FILE | fields, "f")


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 3), (6, 2)], ids=str)
@pytest.mark.parametrize("host", [2, 4, 6])
def test_host_shape_by_counting_devices(shape, host):
    """Hosts, devices of a host and what is refused, against the devices themselves, numbered one by one."""
    whole = np.prod(shape)
    if whole % host:
        return
    cluster = layered_cluster(shape, host, 1, torus=True)
    found = HostShape.of(host, shape, len(shape))
    if host % np.prod(found.inside, dtype=int) or shape[found.level] % found.members:
        return  # no machine is so: tests of tori refuse it
    for used in itertools.product(*(range(1, size + 1) for size in shape)):
        every = itertools.product(*(range(u) for u in used))
        seats = [divmod(device_in_domain(cluster, digits), host) for digits in every]
        hosts = {h for h, _ in seats}
        local = [sorted(d for h, d in seats if h == one) for one in hosts]
        good = all(devices == list(range(len(local[0]))) for devices in local)
        assert found.whole(used) == good == whole_hosts(cluster, np.array([used]))[0], used
        if good:
            assert found.hosts(np.array(used)) == len(hosts)
            assert found.devices_a_host(np.array(used)) == len(local[0])


def test_a_model_is_planned_both_ways():
    """The same host as 8 devices of 192 GB and as 64 of 24 GB: the placement, and the joules of what crosses dies."""
    ask = {"global_batch": 64, "seq_len": 4096, "deterministic_limit": 0.3, "alternatives": 0}
    whole, parts = plan("llama-3.2-1b", "mi300x:1", **ask), plan("llama-3.2-1b", "mi300x-cpx:1", **ask)

    assert [plan.cluster.devices_used for plan in (whole, parts)] == [8, 64]
    assert parts.cluster.accelerator == "mi300x/cpx-nps4"
    assert parts.memory[0].limit_bytes == pytest.approx(whole.memory[0].limit_bytes / 8, rel=1e-6)
    assert "inside a package: " in parts.summary()
    assert [it.level for it in parts.moved][:1] == ["package"]
    assert parts.moved[0].joules == pytest.approx(parts.moved[0].size_bytes * 8 * 0.3e-12)
    assert 0.5 < parts.step_s / whole.step_s < 2.0
    assert sum(parts.goodput.failures_per_day.values()) == pytest.approx(sum(whole.goodput.failures_per_day.values()))
