"""Watts by hand: whole hosts in use, idle draw, the cap."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from costs import make_rows

from cost_models.power import StaticPower, capped_step_s, hosts_used, static_power
from cost_models.rows import Rows
from topologies.ready import read_cluster

CLUSTER = read_cluster("dgx-h100:16")


@pytest.mark.parametrize(
    ("rows", "hosts"),
    [
        (make_rows(), 1),
        (make_rows(tp=8), 1),
        (make_rows(tp=3, cp=3), 2),
        (make_rows("pp", tp=5, pp=3), 3),
        (make_rows("pp dp_shard", tp=4, cp=2, dp_shard=5, pp=3), 15),
        (make_rows("dp_shard", dp_shard=8, ep=8), 8),
    ],
)
def test_hosts_are_counted_whole(rows, hosts):
    assert hosts_used(rows, CLUSTER).tolist() == [hosts]
    assert CLUSTER.hosts_used(tuple(rows.used()[0])) == hosts


def test_a_scale_up_domain_of_many_hosts():
    """NVL72: 18 hosts of 4 devices in one domain; 9 devices are on 3 of them."""
    assert hosts_used(make_rows(tp=9), read_cluster("gb200-nvl72:2")).tolist() == [3]
    assert hosts_used(make_rows("pp", tp=9, pp=2), read_cluster("gb200-nvl72:2")).tolist() == [6]


def test_static_power_by_hand():
    """3 hosts with all their devices idle, their own draw, a port a NIC."""
    power = static_power(make_rows("pp", tp=5, pp=3), CLUSTER)
    idle_w, host_w = CLUSTER.accelerator.figures.idle_power.value, CLUSTER.host.figures.power.value
    port_w, pue = CLUSTER.fabric.figures.power_per_port.value, CLUSTER.facility.figures.pue.value

    assert power.devices[0] == 3 * 8 * idle_w
    assert power.hosts[0] == 3 * host_w
    assert power.network[0] == pytest.approx(3 * CLUSTER.host.nics * port_w)
    assert power.facility_w[0] == pytest.approx(pue * (3 * 8 * idle_w + 3 * host_w + 3 * 8 * port_w))
    assert port_w > 0 and pue > 1 and idle_w > 0 and host_w > 0


def test_one_host_needs_no_ports():
    assert static_power(make_rows(), read_cluster("dgx-h100:1")).network.tolist() == [0]


def test_static_power_of_many_rows():
    rows = Rows.concat([make_rows(tp=4), make_rows("pp", tp=8, pp=2)])

    assert static_power(rows, CLUSTER).hosts.tolist() == [
        static_power(rows.take(np.array([i])), CLUSTER).hosts[0] for i in (0, 1)
    ]


STATIC = StaticPower(np.array([0.0, 300.0]), np.array([0.0, 200.0]), np.array([0.0, 100.0]), pue=1.5)


def test_a_cap_is_met_by_waiting():
    """PUE 1.5: 900 W constant; at 1200 W 300 W are left for 1.5 * 4000 J."""
    step_s = capped_step_s(4000, STATIC, 1200, row=1)

    assert step_s == pytest.approx(20)
    assert (STATIC.facility_w[1] * step_s + 1.5 * 4000) / step_s == pytest.approx(1200)
    assert capped_step_s(4000, STATIC, 1200) == pytest.approx(5)


@pytest.mark.parametrize("cap_w", [0, 899, 900])
def test_a_cap_below_what_idling_draws_is_never_met(cap_w):
    assert capped_step_s(1.0, STATIC, cap_w, row=1) == np.inf


def test_pue_multiplies_everything():
    twice = dataclasses.replace(STATIC, pue=3.0)

    assert twice.facility_w.tolist() == [0, 1800]
