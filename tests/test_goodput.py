"""Goodput of a strategy: its parts, what raises it, Llama 3's own run, fewer devices against more."""

from __future__ import annotations

import dataclasses
import math

import pytest
from costs import make_rows, small_model

from cost_models.goodput import Care, goodput, hosts_together
from cost_models.reliability import rate_factor
from cost_models.workload import Training
from planner import BadInput, UnknownName, estimate
from topologies.catalogue import CATALOGUE, Fleet, load, parse_part
from topologies.ready import cluster_of_tables, fleet_of, read_cluster
from topologies.toml_file import read_toml

MODEL, WORK = small_model(), Training(seq_len=64, global_batch=8)
ROWS = make_rows("pp dp_replicate", tp=8, dp_replicate=4, pp=4)
CLUSTER = read_cluster("dgx-h100:16")


def failing(cluster, factor):
    """The cluster with ``factor`` times as many failures of every kind."""
    figures = load("fleets", "llama-3").figures
    changed = {
        name: getattr(figures, name).model_copy(update={"value": factor * getattr(figures, name).value})
        for name in ("device_failures", "host_failures", "network_failures", "software_failures")
    }
    fleet = load("fleets", "llama-3").model_copy(update={"figures": figures.model_copy(update=changed)})
    return dataclasses.replace(cluster, fleet=fleet)


@pytest.mark.parametrize("factor", [1, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("care", [Care(), Care(asynchronous=False), Care(interval_steps=500), Care(spares=0)])
def test_the_parts_are_the_whole(factor, care):
    it = goodput(MODEL, failing(CLUSTER, factor), WORK, ROWS, 2.0, care)

    assert it.fraction + math.fsum(it.lost.values()) == pytest.approx(1)
    assert min(it.lost.values()) >= 0
    assert it.range[0] <= it.fraction <= it.range[1] <= 1
    assert it.effective_tokens_per_s == pytest.approx(it.fraction * 512 / 2.0)


def test_more_failures_less_goodput():
    kept = [goodput(MODEL, failing(CLUSTER, factor), WORK, ROWS, 2.0).fraction for factor in (1, 10, 1e3, 1e5)]

    assert kept == sorted(kept, reverse=True) and kept[-1] < 0.5 < kept[0]


def test_by_hand():
    """16 hosts, 128 devices, 128 ports: one in 54 x 128 / 419 days; restart 10 min and the reading."""
    it = goodput(MODEL, CLUSTER, WORK, ROWS, 2.0, Care(asynchronous=False, interval_steps=100))
    mtbf_s = 54 * 128 / 419 * 86400
    written, restart = it.checkpoint.write_s, 600 + it.checkpoint.read_s

    assert it.mtbf_s == pytest.approx(mtbf_s)
    assert it.restart_s == pytest.approx(restart)
    assert it.interval_s == 200
    expected = 200 / mtbf_s * math.exp(-restart / mtbf_s) / (math.exp((200 + written) / mtbf_s) - 1)
    assert it.fraction == pytest.approx(expected)
    assert it.seconds(512e6) == pytest.approx(2e6 / expected)
    assert sum(it.failures_per_day.values()) == pytest.approx(86400 / mtbf_s)


def test_the_chosen_interval_is_no_worse_than_others():
    many = failing(CLUSTER, 1e4)
    chosen = goodput(MODEL, many, WORK, ROWS, 2.0, Care(asynchronous=False))
    for steps in (1, chosen.interval_steps // 2, chosen.interval_steps + 1, 4 * chosen.interval_steps):
        other = goodput(MODEL, many, WORK, ROWS, 2.0, Care(asynchronous=False, interval_steps=max(1, steps)))
        assert other.fraction <= chosen.fraction


def test_the_range_is_of_rarer_and_of_more_frequent_failures():
    it, factor = goodput(MODEL, failing(CLUSTER, 1e3), WORK, ROWS, 2.0), rate_factor()
    rare, often = (
        goodput(MODEL, failing(CLUSTER, 1e3 * change), WORK, ROWS, 2.0, Care(interval_steps=it.interval_steps)).fraction
        for change in (1 / factor, factor)
    )

    assert it.range == pytest.approx((often, rare))


def test_too_few_spares_stop_the_job():
    many = failing(CLUSTER, 100)
    enough = goodput(MODEL, many, WORK, ROWS, 2.0)
    none = goodput(MODEL, many, WORK, ROWS, 2.0, Care(spares=0))

    assert enough.spares == enough.spares_needed > 0 == enough.lost["waiting for hosts"]
    away = 100 * 419 / 54 / 128 * 0.78
    assert none.lost["waiting for hosts"] == pytest.approx(1 - math.exp(-away))
    assert none.fraction == pytest.approx(enough.fraction * math.exp(-away))


def test_blasts():
    device, host, port = goodput(MODEL, CLUSTER, WORK, ROWS, 2.0).blasts

    assert (device.devices, device.replicas, device.of_replicas, device.survives) == (1, 1, 4, True)
    assert (host.unit, host.devices, host.replicas) == ("host", 8, 1)
    assert port.failures_per_day == pytest.approx(35 / 54 / 128)
    rack = goodput(MODEL, read_cluster("gb200-nvl72:2"), WORK, make_rows("dp_shard", tp=72, dp_shard=2), 2.0).blasts
    assert [(one.unit, one.devices) for one in rack] == [
        ("device", 1), ("host", 4), ("network port", 1), ("scale-up domain", 72),
    ]  # fmt: skip
    assert rack[-1].failures_per_day is None


def test_racks_switches_and_feeds_take_their_hosts_along():
    """16 hosts of 8, four copies beside each other, stage by stage: a rack of 2 hosts hits two, a feed of 6 all."""
    cluster = dataclasses.replace(CLUSTER, hosts_per_rack=2, hosts_per_feed=6)
    *_, rack, feed = goodput(MODEL, cluster, WORK, ROWS, 2.0).blasts

    assert (rack.unit, rack.devices, rack.replicas, rack.survives, rack.failures_per_day) == ("rack", 16, 2, True, None)
    assert (feed.unit, feed.devices, feed.replicas, feed.survives) == ("power feed", 48, 4, False)
    tables = {"name": "x", "host": "dgx-h100", "fabric": "ndr-infiniband", "facility": "air", "hosts": 16}
    leaves = cluster_of_tables(tables | {"switches": [{"name": "leaf", "hosts": 4}]}, "x")
    switch = estimate("llama-3.2-1b", leaves, "tp=8,dp=8", seq_len=2048, global_batch=64).goodput.blasts[-1]
    assert (switch.unit, switch.devices, switch.replicas, switch.of_replicas) == ("leaf switch", 32, 4, 8)


def test_groups_of_many_switches_are_no_leaf_switch():
    """A dragonfly's group of 32 routers, and an optical pod: nobody says what hangs on one of their switches."""
    tables = {"name": "x", "host": "dgx-h100", "fabric": "ndr-infiniband", "facility": "air", "hosts": 16}
    pods = cluster_of_tables(tables | {"optical": {"hosts": 4, "circuits": 8}}, "x")
    for cluster in (read_cluster("frontier:2"), pods):
        assert len(cluster.levels) > cluster.domain_levels + 1
        assert hosts_together(cluster) == {}
    assert "switch" not in pods.graph().nodes["host-0"]["failure_domains"]


def with_racks(failures: float, outage_h: float = 6.0):
    """Llama 3's machines, of whose racks of two hosts so many failed in the 54 days."""
    tables = read_toml(CATALOGUE / "fleets" / "llama-3.toml")
    counted = {"value": failures, "source": "estimate", "kind": "assumed"}
    figures = {"rack_failures": counted, "outage_time": counted | {"value": f"{outage_h} h"}}
    return parse_part(Fleet, tables | {"racks": 1024, "figures": tables["figures"] | figures}, "x")


def test_racks_whose_failures_were_counted_fail_too():
    """8 racks of 1,024 that failed 100 times in 54 days; a rack's two hosts are away for six hours."""
    cluster = dataclasses.replace(CLUSTER, hosts_per_rack=2, fleet=with_racks(100))
    it, alone = goodput(MODEL, cluster, WORK, ROWS, 2.0), goodput(MODEL, CLUSTER, WORK, ROWS, 2.0)

    assert it.failures_per_day == alone.failures_per_day | {"rack": pytest.approx(8 * 100 / 1024 / 54)}
    assert it.mtbf_s == pytest.approx(86400 / sum(it.failures_per_day.values()))
    assert it.blasts[-1].failures_per_day == it.failures_per_day["rack"]
    assert it.effective_step_s > alone.effective_step_s
    often = goodput(MODEL, dataclasses.replace(cluster, fleet=with_racks(1e4, 48)), WORK, ROWS, 2.0, Care(spares=1))
    assert often.spares_needed >= 4 and often.lost["waiting for hosts"] > 0
    one_rack = dataclasses.replace(cluster, hosts_per_rack=64, fleet=with_racks(1e6, 1e4))
    assert goodput(MODEL, one_rack, WORK, ROWS, 2.0).spares_needed == 16 + alone.spares_needed
    without = dataclasses.replace(cluster, hosts_per_rack=None)
    assert goodput(MODEL, without, WORK, ROWS, 2.0).failures_per_day == alone.failures_per_day


def test_what_a_fleet_does_not_tell_is_no_part_of_the_digest():
    """Clusters that name a fleet keep their digest when fleets may tell more."""
    told, counted = (fleet.model_dump(mode="json") for fleet in (load("fleets", "rsc-2"), with_racks(5)))

    assert not {"racks", "switches", "feeds"} & told.keys()
    assert None not in told["figures"].values()
    assert counted["racks"] == 1024 and {"rack_failures", "outage_time"} <= counted["figures"].keys()


def test_failures_of_racks_need_their_number():
    tables = read_toml(CATALOGUE / "fleets" / "llama-3.toml")
    counted = {"value": 5.0, "source": "estimate", "kind": "assumed"}
    with pytest.raises(BadInput, match=r"rack_failures needs racks, how many the fleet has, and figures.outage_time"):
        parse_part(Fleet, tables | {"figures": tables["figures"] | {"rack_failures": counted}}, "x")


def test_llama_3_kept_more_than_nine_tenths():
    """arXiv:2407.21783, section 3.3.4: higher than 90 % effective training time on 16,384 devices."""
    cluster = dataclasses.replace(read_cluster("dgx-h100:2048"), store=load("stores", "tectonic"))
    it = estimate("llama-3.1-405b", cluster, "tp=8,pp=16,dp=128", seq_len=8192, global_batch=2048).goodput

    assert 0.90 < it.fraction < 0.97
    assert it.mtbf_s / 3600 == pytest.approx(3.09, abs=0.01)
    assert it.checkpoint.size_bytes == pytest.approx(14 * 405.85e9, rel=1e-3)
    assert it.checkpoint.write_s == pytest.approx(5.68e12 / 2e12, rel=1e-3)
    assert it.restart_s == pytest.approx(600 + 5.68e12 / 2e12, rel=1e-5)


def test_the_quicker_step_may_finish_later():
    """Eight times the devices for a step 5 % quicker: with 8 times the failures it trains slower."""
    big, small = (goodput(MODEL, read_cluster(f"dgx-h100:{n}"), WORK, rows, step) for n, rows, step in (
        (16384, make_rows("pp dp_replicate", tp=8, dp_replicate=1024, pp=16), 0.95),
        (2048, make_rows("pp dp_replicate", tp=8, dp_replicate=128, pp=16), 1.0),
    ))  # fmt: skip

    assert big.effective_tokens_per_s < small.effective_tokens_per_s
    assert big.mtbf_s == pytest.approx(small.mtbf_s / 8)


def test_a_cluster_names_how_it_fails_and_where_it_writes():
    assert fleet_of(CLUSTER).name == "llama-3"
    other = dataclasses.replace(CLUSTER, fleet=load("fleets", "rsc-2"), store=load("stores", "local-nvme"))
    it = goodput(MODEL, other, WORK, ROWS, 2.0)

    assert (it.fleet, it.store) == ("rsc-2", "local-nvme")
    assert it.mtbf_s == pytest.approx(86400 / (2.34e-3 * 16), rel=1e-3)
    assert len({CLUSTER.digest, other.digest, dataclasses.replace(other, store=None).digest}) == 3


FILE = """
name = "mine"
host = "dgx-h100"
fabric = "ndr-infiniband"
facility = "air"
hosts = 16
{more}
"""
OWN_FLEET = """
[fleet]
name = "ours"
title = "Ours last year"
devices = 800
hosts = 100
ports = 800
[fleet.sources.log]
title = "our log"
[fleet.figures]
observed = {{ value = "365 d", source = "log" }}
device_failures = {{ value = {devices}, source = "log" }}
host_failures = {{ value = 0, source = "log" }}
network_failures = {{ value = 0, source = "log" }}
software_failures = {{ value = 0, source = "log" }}
restart_time = {{ value = "5 min", source = "log" }}
repair_time = {{ value = "2 d", source = "log" }}
replaced = {{ value = {replaced}, source = "log" }}
"""


def from_file(folder, more):
    path = folder / "mine.toml"
    path.write_text(FILE.format(more=more))
    return read_cluster(path)


def test_a_cluster_file_names_a_fleet_and_a_store(tmp_path):
    it = from_file(tmp_path, 'fleet = "rsc-2"\nstore = "local-nvme"\nhosts_per_rack = 2')

    assert (it.fleet.name, it.store.name, it.hosts_per_rack) == ("rsc-2", "local-nvme", 2)


def test_a_cluster_file_carries_a_fleet_of_its_own(tmp_path):
    """73 failures of 800 devices in a year: 128 devices have 0.032 a day; restart 5 min, nothing else fails."""
    it = goodput(MODEL, from_file(tmp_path, OWN_FLEET.format(devices=73, replaced=0.5)), WORK, ROWS, 2.0)

    assert it.failures_per_day == pytest.approx({"device": 0.2 * 128 / 800, "host": 0, "network": 0, "software": 0})
    assert it.restart_s == pytest.approx(300 + it.checkpoint.read_s)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('fleet = "rsc"', "no fleet 'rsc' in the catalogue; there are: llama-3, rsc-1"),
        ('store = "tape"', "no store 'tape' in the catalogue"),
        (OWN_FLEET.format(devices=0, replaced=0.5), "failures are counts from 0, not all of them 0"),
        (OWN_FLEET.format(devices=-1, replaced=0.5), "failures are counts from 0"),
        (OWN_FLEET.format(devices=73, replaced=2), "replaced.value: Input should be less than or equal to 1"),
        (OWN_FLEET.format(devices="inf", replaced=0.5), "device_failures of fleet 'ours' is a finite number"),
        ("hosts_per_rack = 0", "hosts_per_rack: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_what_a_cluster_file_says_wrongly(tmp_path, more, message):
    with pytest.raises((BadInput, UnknownName), match=message):
        from_file(tmp_path, more)
