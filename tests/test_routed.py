"""Groups routed on the graph against the closed form: equal on clusters that a strategy fills, by hand on others."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from cost_models.strategy import DENSE_ORDER, ParallelDegrees, Strategy, TrainingSchedule, uniform_stages
from planner.clusters.routed import routed
from planner.errors import BadInput
from topologies.ready import cluster_of_tables, read_cluster

FILE = {"name": "few", "host": "dgx-h100", "fabric": "ndr-infiniband", "facility": "air", "hosts": 4}


def strategy_on(cluster, order, **degrees):
    """Axes as far inside as they go, in an order, one factor a level."""
    room, placed = [level.fanout for level in cluster.levels], {}
    for axis in order:
        left, placed[axis] = degrees.get(axis, 1), []
        for k in range(len(room)):
            inside = math.gcd(left, room[k])
            placed[axis].append(inside)
            left, room[k] = left // inside, room[k] // inside
    placed |= {"ep": [1] * len(room), "etp": [1] * len(room)}
    placed["edp"] = [math.prod(placed[a][k] for a in DENSE_ORDER if a != "pp") for k in range(len(room))]
    return Strategy(
        ParallelDegrees(**degrees), 0, TrainingSchedule("1f1b", 1, 1, 1),
        uniform_stages(32, degrees.get("pp", 1), "none"), {axis: tuple(factors) for axis, factors in placed.items()},
    )  # fmt: skip


PARTS = [("dgx-h100", "ndr-infiniband"), ("gb200-nvl72", "ndr-infiniband"), ("p5", "efa-v2"), ("p4d", "efa-v1"),
         ("dgx-2", "hdr-infiniband"), ("l40s-host", "ndr-infiniband"), ("mi250x-host", "slingshot-11")]  # fmt: skip


@st.composite
def filled(draw):
    """A small cluster, flat or with levels of switches that oversubscribe, and a strategy on all its devices.

    Scale-up domains are hosts, several hosts or PCIe alone; NICs are fewer than devices, as many, or more.
    """
    tables, hosts = dict(FILE), draw(st.sampled_from([2, 3, 4, 6, 8]))
    tables |= dict(zip(("host", "fabric"), draw(st.sampled_from(PARTS)), strict=True))
    ratios = st.sampled_from([1.0, 1.5, 3.0, 7.0])
    below = [size for size in (2, 4) if size < hosts and hosts % size == 0]
    levels = draw(st.lists(st.sampled_from(below), unique=True, max_size=2)) if below else []
    levels = [] if tables["host"] == "gb200-nvl72" else levels
    tables["hosts"] = hosts
    tables["switches"] = [{"name": f"of-{n}", "hosts": n, "oversubscription": draw(ratios)} for n in sorted(levels)]
    cluster, degrees = cluster_of_tables(tables, "test"), {}
    left = cluster.devices
    if draw(st.booleans()):
        return cluster, strategy_on(cluster, DENSE_ORDER, dp_replicate=left)
    for axis in draw(st.permutations(DENSE_ORDER)):
        degrees[axis] = draw(st.sampled_from([d for d in (1, 2, 3, 4, 8) if left % d == 0]))
        left //= degrees[axis]
    degrees["dp_shard"] *= left
    return cluster, strategy_on(cluster, draw(st.permutations(DENSE_ORDER)), **degrees)


@pytest.mark.parametrize("operation", ["all_gather", "all_reduce", "all_to_all"])
@examples(40)
@given(filled())
def test_both_agree_where_a_strategy_fills_a_regular_cluster(operation, case):
    """NICs and uplinks carry what stays below a switch and what leaves it, in the closed form as on the graph."""
    cluster, strategy = case
    for it in routed(cluster, strategy, dict.fromkeys(("tp", "cp", "dp_shard x cp", "dp_replicate"), operation)):
        assert it.contended_s == pytest.approx(it.closed_s, rel=1e-9), it.axis
        assert it.alone_s <= it.contended_s * (1 + 1e-9)


def test_groups_of_one_device_a_host_do_not_share_its_nics():
    """The other groups' devices have NICs' shares of their own, so that nobody is in the way."""
    cluster = read_cluster("dgx-h100:2")
    alone = strategy_on(cluster, DENSE_ORDER, tp=8, dp_replicate=2)
    (tp, dp) = routed(cluster, alone)

    assert (tp.axis, tp.members, dp.axis, dp.members) == ("tp", 8, "dp_replicate", 2)
    assert dp.alone_s == pytest.approx(dp.contended_s, rel=1e-9)


def test_oversubscribed_uplinks_are_shared_by_all_groups():
    """Eight groups, one a device, leave leaves of two hosts five times oversubscribed: each alone finds them free."""
    cluster = cluster_of_tables({**FILE, "switches": [{"name": "leaf", "hosts": 2, "oversubscription": 5.0}]}, "test")
    strategy = strategy_on(cluster, ("tp", "pp", "dp_replicate", "cp", "dp_shard"), tp=8, pp=2, dp_replicate=2)
    found = {it.axis: it for it in routed(cluster, strategy)}

    assert found["dp_replicate"].contended_s > 3 * found["dp_replicate"].alone_s
    assert found["tp"].contended_s == pytest.approx(found["tp"].closed_s)


def test_hosts_that_differ_are_priced_by_the_paths_they_use():
    """One host with a sixth of its NICs slows the groups on it, not those of a stage elsewhere."""
    slow = cluster_of_tables({**FILE, "exceptions": [{"hosts": 3, "nic_bandwidth": "5 GB/s"}]}, "test")
    even = strategy_on(slow, DENSE_ORDER, tp=8, dp_replicate=2)
    fast, bad = (dataclasses.replace(even, hosts=hosts) for hosts in ((0, 1), (2, 3)))
    quick, late = (routed(slow, it)[1] for it in (fast, bad))

    assert late.contended_s > 5 * quick.contended_s
    assert quick.contended_s == pytest.approx(quick.closed_s)
    assert late.contended_s == pytest.approx(late.closed_s)


def test_too_many_devices_are_refused():
    cluster = read_cluster("dgx-h100:512")

    with pytest.raises(BadInput, match="2048"):
        routed(cluster, strategy_on(cluster, DENSE_ORDER, tp=8, dp_replicate=512))


def test_tori_are_refused_by_name():
    cube = read_cluster("tpu-v5p-cube:1")

    with pytest.raises(BadInput, match=r"is a torus \(torus x, torus y, torus z\).*closed form alone"):
        routed(cube, strategy_on(cube, DENSE_ORDER, dp_shard=64))


@pytest.mark.parametrize("operation", ["all_gather", "all_reduce", "all_to_all"])
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 8, 16])
def test_packages_of_several_devices_agree(tp, hosts, operation):
    """Eight packages of eight: a level of its own inside the scale-up domain, with rings of its own between hosts."""
    cluster = read_cluster(f"mi300x-cpx:{hosts}")
    strategy = strategy_on(cluster, DENSE_ORDER, tp=tp, dp_shard=cluster.devices // tp)

    for it in routed(cluster, strategy, dict.fromkeys(("tp", "dp_shard x cp"), operation)):
        assert it.contended_s == pytest.approx(it.closed_s, rel=1e-9), it.axis
