"""Prices of stages on hosts that differ: each stage as on a regular cluster at its rate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, models, tiny_config

from cost_models.calibration import calibrate
from cost_models.chain import Chain
from cost_models.estimate import device_tails, estimate
from cost_models.placed import placed_chain, stage_rates
from cost_models.price import price
from cost_models.rows import Rows
from cost_models.strategy import ParallelDegrees, Strategy, TrainingSchedule, uniform_stages
from cost_models.ticks import Ticks
from cost_models.workload import Training
from planner.read_model import read_config
from topologies.cluster import Cluster
from topologies.errors import BadInput
from topologies.irregular import Irregular, Switch
from topologies.ready import read_cluster

WORKLOAD = Training(seq_len=96, global_batch=4, precision="bf16", optimizer="adam")


def cluster_of(*nic: float, switches: tuple[Switch, ...] = (), devices: int = 8) -> Cluster:
    hosts = len(nic)
    it = Irregular(tuple(range(hosts)), (devices,) * hosts, nic, switches)
    return dataclasses.replace(read_cluster(f"dgx-h100:{hosts}"), irregular=it)


def strategy_of(model, *, hosts: tuple[int, ...], virtual: int = 1, zero: int = 1) -> Strategy:
    """Two stages of two hosts of one device each: dp 2 and pp 2 across hosts."""
    one = (1, 1)
    placement = dict.fromkeys(("tp", "cp", "dp_replicate", "etp", "ep"), one)
    placement |= {"dp_shard": (1, 2), "edp": (1, 2), "pp": (1, 2)}
    kind = "interleaved" if virtual > 1 else "1f1b"
    return Strategy(
        ParallelDegrees(dp_shard=2, pp=2), zero, TrainingSchedule(kind, virtual, 1, 2),
        uniform_stages(model.layers, 2 * virtual), placement, hosts=hosts,
    )  # fmt: skip


@examples(40)
@given(models(most_layers=4), st.sampled_from([1, 2, 3]), st.permutations([1.0, 0.3]), st.integers(1, 3))
def test_every_stage_costs_what_it_does_at_its_rate(model, zero, rates, cut):
    """Forward, backward, tail (with the copy of a tied embedding), bytes and joules, stage by stage."""
    cut, cluster, fits = min(cut, model.layers - 1), cluster_of(1.0, 1.0, 0.3, 0.3), calibrate(cluster_of(1.0, 1.0))
    ticks = Ticks.of(model, cluster, WORKLOAD)
    rows = Rows.of(strategy_of(model, hosts=(0, 1, 2, 3), zero=zero))
    by_rate = {rate: price(model, cluster.at_rate(rate), WORKLOAD, rows, fits, ticks) for rate in rates}
    placed = placed_chain(model, by_rate, list(rates), [cut, model.layers - cut], by_rate[0.3].hop)
    i, j = np.array([0, cut]), np.array([cut, model.layers])
    alone = [Chain(model, by_rate[rate], 0) for rate in rates]

    for of in ("forward", "backward", "state_bytes", "saved_ends", "logit_bytes"):
        assert getattr(placed, of)(i, j).tolist() == [int(getattr(c, of)(i, j)[s]) for s, c in enumerate(alone)]
    forward, backward = placed.forward(i, j), placed.backward(i, j)
    tails = [int(device_tails(c, i, j, forward, backward)[s]) for s, c in enumerate(alone)]
    assert device_tails(placed, i, j, forward, backward).tolist() == tails
    joules = [c.total(c.prices.joules_step, i, j)[s] for s, c in enumerate(alone)]
    assert placed.total(placed.prices.joules_step, i, j).tolist() == pytest.approx(joules)
    assert placed.hop == int(by_rate[0.3].hop[0])


def test_rates_of_a_strategy_by_hand():
    """Stage 0 on hosts 0 and 2, stage 1 on 1 and 3: leaf {0, 1} has a narrow uplink, host 3 a slow card."""
    cluster = cluster_of(1.0, 1.0, 1.0, 0.2, switches=(Switch("leaf", (0, 1), 0.5),))
    model = read_config(tiny_config(), "tiny")

    assert stage_rates(cluster, strategy_of(model, hosts=(0, 2, 1, 3))) == ([0.5, 0.2], 0.2)
    assert stage_rates(cluster, strategy_of(model, hosts=(0, 1, 2, 3))) == ([1.0, 0.2], 0.2)


def test_without_hosts_a_job_lands_on_the_first_that_fit():
    model = read_config(tiny_config(), "tiny")
    cluster = cluster_of(1.0, 1.0, 0.2, 1.0, 1.0)
    landed = estimate(model, cluster, WORKLOAD, strategy_of(model, hosts=()))

    assert landed.step_ticks == estimate(model, cluster, WORKLOAD, strategy_of(model, hosts=(0, 1, 2, 3))).step_ticks
    assert landed.step_ticks > estimate(model, cluster, WORKLOAD, strategy_of(model, hosts=(0, 1, 3, 4))).step_ticks
    with pytest.raises(BadInput, match="needs 4 hosts with 1 working devices, but 'dgx-h100:3' has 3"):
        estimate(model, cluster_of(1.0, 1.0, 1.0), WORKLOAD, strategy_of(model, hosts=()))


def test_equal_hosts_are_a_regular_cluster():
    """Where nothing differs, every figure is the regular cluster's."""
    model, cluster = read_config(tiny_config(), "tiny"), cluster_of(1.0, 1.0, 1.0, 1.0)
    regular = dataclasses.replace(cluster, irregular=None)
    for virtual in (1, 2):
        plain = strategy_of(model, hosts=(), virtual=virtual)
        placed = strategy_of(model, hosts=(3, 1, 0, 2), virtual=virtual)
        assert estimate(model, cluster, WORKLOAD, placed) == estimate(model, regular, WORKLOAD, plain)
