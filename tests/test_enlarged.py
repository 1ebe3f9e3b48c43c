"""More of one thing: exactly that, in levels and records alike, and nothing else."""

from __future__ import annotations

import pytest

from topologies.cluster import Cluster
from topologies.enlarged import (
    host_step,
    with_more_memory,
    with_more_scale_out_bandwidth,
    with_more_scale_up_bandwidth,
    with_one_more_host,
)
from topologies.errors import BadInput
from topologies.ready import MOST_DEVICES, read_cluster
from topologies.resized import resized

FACTOR = 1.25


def figures(cluster: Cluster) -> dict[str, float]:
    """Every figure of every part, the levels and the count of hosts."""
    found: dict[str, float] = {"hosts": cluster.hosts, "devices": cluster.devices, "memory": cluster.memory_bytes}
    for part in (cluster.accelerator, cluster.host, cluster.fabric, cluster.facility):
        found |= {f"{part.name}.{name}": figure.value for name, figure in part.figures if figure is not None}
    for level in cluster.levels:
        found |= {f"{level.name}.bandwidth": level.bandwidth_bytes_per_s, f"{level.name}.latency": level.latency_s}
    return found


@pytest.mark.parametrize(
    ("enlarged", "grown"),
    [
        (with_more_memory, {"memory", "h100-sxm.memory_capacity", "h100-sxm.memory_usable"}),
        (with_more_scale_up_bandwidth, {"scale-up.bandwidth", "h100-sxm.scale_up_bandwidth"}),
        (with_more_scale_out_bandwidth, {"scale-out.bandwidth", "dgx-h100.nic_bandwidth", "port_bandwidth"}),
    ],
)
def test_only_what_is_named_grows(enlarged, grown: set[str]):
    cluster = read_cluster("dgx-h100:2")
    before, after = figures(cluster), figures(enlarged(cluster, FACTOR))

    different = {name for name in before if before[name] != after[name]}
    assert {name if name in grown else name.split(".")[-1] for name in different} == grown
    assert all(after[name] == pytest.approx(FACTOR * before[name]) for name in different)
    assert enlarged(cluster, FACTOR).digest != cluster.digest


def test_grown_records_make_the_grown_levels():
    """The levels follow from the records: building them anew from those changes nothing."""
    cluster = read_cluster("dgx-h100:2")
    for enlarged in (with_more_scale_up_bandwidth, with_more_scale_out_bandwidth):
        larger = enlarged(cluster, FACTOR)
        anew = resized(larger, larger.hosts)
        for level, other in zip(larger.levels, anew.levels, strict=True):
            assert level.bandwidth_bytes_per_s == pytest.approx(other.bandwidth_bytes_per_s)


def test_grown_figures_say_that_nobody_published_them():
    memory = with_more_memory(read_cluster("dgx-h100"), FACTOR).accelerator.figures.memory_capacity
    assert memory.kind == "assumed"
    assert "1.25 times the derived" in memory.note


def test_one_more_host_is_a_whole_domain_where_a_domain_has_several():
    assert with_one_more_host(read_cluster("dgx-h100:4")).hosts == 5
    rack = read_cluster("gb200-nvl72:2")
    assert host_step(rack) == 18
    assert with_one_more_host(rack).levels[1].fanout == 3


def test_what_there_is_none_of_cannot_grow():
    with pytest.raises(BadInput, match="one scale-up domain of 8 devices"):
        with_more_scale_out_bandwidth(read_cluster("dgx-h100"), FACTOR)
    with pytest.raises(BadInput, match="absurd"):
        with_one_more_host(read_cluster(f"dgx-h100:{MOST_DEVICES // 8}"))
