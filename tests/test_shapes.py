"""Levels between and inside hosts: tori, dragonflies, circuits; closed forms against routed traffic."""

import itertools

import numpy as np
import pytest

from cost_models.calibration import calibrate
from cost_models.communication import all_to_all_s, collective_s, p2p_s
from planner import plan
from planner.errors import BadInput
from topologies.ready import cluster_of_tables, read_cluster

FILE = {"name": "mine", "host": "dgx-h100", "fabric": "ndr-infiniband", "facility": "air", "hosts": 24}
CUBE = read_cluster("tpu-v5p-cube:2")
LINK = 100e9
"""One direction of a v5p's link: 600 GB/s over six."""


def slope(seconds_of, factors):
    """Seconds a byte at the wire, of what is said to take so many seconds for V bytes of a group."""
    pair = [float(seconds_of(np.array([volume]), np.array([factors]))[0]) for volume in (4e15, 1e15)]
    return (pair[0] - pair[1]) / 3e15


def wire(operation, factors):
    """The same on a cube's wires alone: over the fit's part of the bandwidth, and without its root."""
    fits = calibrate(CUBE)
    fraction = fits.collective(operation, 0).bandwidth_fraction
    if operation == "all_to_all":
        return slope(lambda v, f: all_to_all_s(v, f, CUBE.levels, fits), factors) * fraction
    return slope(lambda v, f: collective_s(operation, v, f, CUBE.levels, fits), factors) * fraction


@pytest.mark.parametrize(
    ("factors", "links"),
    [
        ((4, 1, 1, 1), 2 / (3 / 4)),  # a whole axis: both ways round
        ((2, 1, 1, 1), 1 / (1 / 2)),  # a part of one: a line, whose end hears from one side
        ((4, 4, 1, 1), 4 / (15 / 16)),
        ((4, 4, 4, 1), 6 / (63 / 64)),
        ((2, 4, 1, 1), 3 / (7 / 8)),
        ((1, 1, 4, 1), 2 / (3 / 4)),
    ],
)
def test_axes_of_a_torus_add_up(factors, links):
    """(n - 1) / n of the buffer over all links that the group's axes have, one direction of each."""
    assert wire("all_gather", factors) == pytest.approx(1 / (links * LINK), rel=1e-3)
    assert wire("all_reduce", factors) == pytest.approx(2 / (links * LINK), rel=1e-3)


def busiest_link(members, *, closed):
    """Most bytes over one direction of a link when each of some neighbours sends 1 in equal parts to all."""
    load = np.zeros((members, 2))
    for a, b in itertools.permutations(range(members), 2):
        ahead, back = (b - a) % members, (a - b) % members
        ways = [(a < b, abs(b - a), 1.0)]
        if closed:
            ways = [(ahead < back, min(ahead, back), 1.0)]
        if closed and ahead == back:
            ways = [(True, ahead, 0.5), (False, back, 0.5)]
        for up, hops, part in ways:
            for hop in range(hops):
                load[(a + hop if up else a - 1 - hop) % members, int(up)] += part / members
    return load.max()


@pytest.mark.parametrize("members", [3, 4, 5, 8, 2])
@pytest.mark.parametrize("closed", [True, False])
def test_all_to_all_on_an_axis_is_its_busiest_link(members, closed):
    if closed and members == 2:
        return  # a pair has one link, which is an open axis
    cluster = cluster_of_tables(
        FILE | {"torus": {"axes": [members if closed else 2 * members, 2], "link_bandwidth": "100 GB/s"},
                "hosts": 2 * members if closed else 4 * members, "accelerator": "tpu-v5p",
                "host": one_device_host()}, "f",
    )  # fmt: skip
    fits = calibrate(cluster)
    found = slope(lambda v, f: all_to_all_s(v, f, cluster.levels, fits), (members, 1))
    found *= fits.collective("all_to_all", 0).bandwidth_fraction

    assert found * 100e9 == pytest.approx(busiest_link(members, closed=closed), rel=1e-3)


def one_device_host():
    host = read_cluster("tpu-v5p-host").host
    return host.model_copy(update={"devices": 1, "nics": 1, "scale_up_devices": 1}).model_dump(mode="python") | {
        "figures": {
            "scale_up_latency": {"value": "1 us", "source": "recalled", "kind": "assumed"},
            "nic_bandwidth": {"value": "50 Gb/s", "source": "recalled", "kind": "assumed"},
            "memory_capacity": {"value": "448 GiB", "source": "recalled", "kind": "assumed"},
            "power": {"value": "0.8 kW", "source": "recalled", "kind": "assumed"},
        }
    }


def test_a_hop_goes_one_way():
    fits = calibrate(CUBE)
    found = slope(lambda v, f: p2p_s(v, f, CUBE.levels, fits), (4, 1, 1, 1))

    assert found == pytest.approx(1 / (fits.p2p_fraction * LINK))


def test_levels_of_a_dragonfly():
    """32 routers of 16 ports: a group of 128 hosts of 4 NICs and 8 devices; 288 links of 25 GB/s leave it."""
    levels = read_cluster("frontier:3").levels

    assert [level.fanout for level in levels] == [8, 128, 3]
    assert levels[1].bandwidth_bytes_per_s == pytest.approx(4 * 25e9 / 8 * 31 / 32)
    assert levels[2].bandwidth_bytes_per_s == pytest.approx(288 * 25e9 / 1024 / 2)


def test_levels_of_pods_with_circuits():
    """Pods of 8 hosts: 16 circuits of 50 GB/s for 64 devices; where there are enough, the NICs decide."""
    few, many = ({"optical": {"hosts": 8, "circuits": n, "bandwidth": "400 Gb/s"}} for n in (16, 500))
    for tables, share in ((few, 16 * 50e9 / 64), (many, 50e9)):
        levels = cluster_of_tables(FILE | tables, "f").levels
        assert [(level.name, level.fanout) for level in levels] == [("scale-up", 8), ("pod", 8), ("circuits", 3)]
        assert [level.bandwidth_bytes_per_s for level in levels[1:]] == pytest.approx([50e9, share])


SWITCHES = [{"name": "leaf", "hosts": 8, "oversubscription": 2.0}]
DRAGONFLY = {"routers_per_group": 4, "ports_per_router": 8, "global_links": 1}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"switches": SWITCHES, "dragonfly": DRAGONFLY}, "switches and dragonfly describe one network twice"),
        ({"dragonfly": DRAGONFLY}, r"6 groups need 5 global links each .* 4 routers x 1 = 4"),
        ({"dragonfly": DRAGONFLY | {"ports_per_router": 3}}, "does not hold whole hosts of 8 NICs"),
        ({"optical": {"hosts": 8, "circuits": 1}}, "1 circuits of a pod do not reach 2 others"),
        ({"optical": {"hosts": 7, "circuits": 9}}, "a pod of 7 hosts divides neither 24"),
        ({"torus": {"axes": [16, 16]}}, r"16 x 16 = 256 devices is not filled by 192; give it 32 hosts of 8"),
        ({"torus": {"axes": [6, 4]}}, r"hosts of 8 devices do not fill whole rows"),
        ({"torus": {"axes": [1, 8]}}, r"torus.*axes.0.*greater than or equal to 2"),
    ],
)  # fmt: skip
def test_refusals(fields, text):
    with pytest.raises(BadInput, match=text):
        cluster_of_tables(FILE | fields, "f")


@pytest.mark.parametrize("name", ["tpu-v5p-cube:1", "frontier:2"])
def test_a_plan_on_it_is_proved(name):
    """Every level is used by some axis, and what it sends is told by level."""
    found = plan("llama-3.2-1b", name, seq_len=2048, global_batch=512, alternatives=0, pins={"pp": 1, "cp": 1})

    assert found.status == "optimal"
    assert [it.level for it in found.moved] == [level.name for level in read_cluster(name).levels]


@pytest.mark.parametrize(("field", "table"), [
    ("link_bandwidth", {"dragonfly": {"routers_per_group": 4, "ports_per_router": 8, "global_links": 2}}),
    ("bandwidth", {"optical": {"hosts": 4, "circuits": 64}}),
    ("link_bandwidth", {"torus": {"axes": [8, 3]}}),
])  # fmt: skip
def test_a_link_that_carries_nothing_is_not_the_usual_one(field, table):
    """Given as 0 it is refused; left out it is the usual; given as something it counts."""
    (kind, fields), few = next(iter(table.items())), {**FILE, "hosts": 24}
    usual, slow = (
        cluster_of_tables({**few, kind: {**fields, **more}}, "test").levels for more in ({}, {field: "1 MB/s"})
    )

    assert min(it.bandwidth_bytes_per_s for it in slow) < min(it.bandwidth_bytes_per_s for it in usual) / 100
    with pytest.raises(BadInput, match=f"{field} is above 0 B/s; got 0: .* or leave it out"):
        cluster_of_tables({**few, kind: {**fields, field: "0 B/s"}}, "test")
