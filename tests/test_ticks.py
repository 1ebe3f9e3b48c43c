"""The grain of time: fine where a step is short, and coarse enough for what very slow memories and links take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracle import Instance
from searching import search_agrees
from strategies import small_cluster, tiny_config
from test_activation_layers import planted
from test_mixed_search import mixed_of

from cost_models.mixed import Machine
from cost_models.ticks import MOST_TICKS, Ticks
from cost_models.workload import Training
from planner.read_model import read_config, read_model
from topologies.mixed import mixed_by_name
from topologies.ready import read_cluster
from topologies.tiers import with_tiers

MODEL = read_model("llama-3.1-70b")
WORK = Training(seq_len=8192, global_batch=512)


def slower(it: Instance, factor: float) -> Instance:
    """A device's way to its tier ``factor`` times slower, and the grain that goes with it."""
    (tier,) = it.cluster.tiers
    slow = dataclasses.replace(tier, device_bytes_per_s=tier.device_bytes_per_s / factor)
    cluster = dataclasses.replace(it.cluster, tiers=(slow,))
    return dataclasses.replace(it, cluster=cluster, ticks=Ticks.of(it.model, cluster, it.workload))


def test_a_usual_tier_leaves_the_grain_as_it_is():
    cluster = read_cluster("dgx-h100:4")
    assert Ticks.of(MODEL, with_tiers(cluster, ("dram", "nvme")), WORK) == Ticks.of(MODEL, cluster, WORK)


@pytest.mark.parametrize("rate", [1e3, 1.0])
@pytest.mark.parametrize("level", [0, 1])
def test_states_sent_once_a_sequence_over_the_slowest_link_stay_countable(level, rate):
    cluster = small_cluster(8, 4)
    levels = list(cluster.levels)
    levels[level] = dataclasses.replace(levels[level], bandwidth_bytes_per_s=rate)
    ticks = Ticks.of(MODEL, dataclasses.replace(cluster, levels=tuple(levels)), WORK)

    longest_s = 2 * 16 * MODEL.parameters * WORK.global_batch / rate
    assert longest_s / MOST_TICKS <= ticks.second <= 100 * longest_s / MOST_TICKS


@pytest.mark.parametrize("factor", [1e6, 1e11])
@pytest.mark.parametrize("seed", [2, 15])  # of 2 the best plan offloads nothing then, of 15 it must
def test_the_search_over_a_very_slow_tier_finds_what_enumeration_does(seed, factor):
    search_agrees(slower(planted(seed), factor))


@pytest.mark.parametrize(
    "slower", [{"bandwidth_bytes_per_s": 1e3}, {"bandwidth_bytes_per_s": 1e-6}, {"latency_s": 1e5}]
)
def test_hops_of_all_sequences_over_a_very_slow_join_stay_countable(slower):
    """Of parts that are quick themselves: of a grain as fine as theirs a hop has more ticks than integers hold."""
    parts = small_cluster(2, base="dgx-a100"), small_cluster(1, base="dgx-h100")
    cluster = mixed_of(*parts)
    cluster = dataclasses.replace(cluster, join=dataclasses.replace(cluster.join, **slower))
    model, work = read_config(tiny_config(num_hidden_layers=6), "small"), Training(seq_len=2048, global_batch=16)
    machine = Machine.of(model, cluster, work)
    for batch in (1, work.global_batch):
        hop = int(machine.side(0, batch * work.seq_len, np.array([1]), across=True)[0])
        assert 0 < 2 * hop * (model.layers - 1) * work.global_batch // batch < 2**60


def test_a_usual_join_leaves_the_grain_as_it_is():
    cluster = mixed_by_name("dgx-a100:2+dgx-h100:2")
    assert Machine.of(MODEL, cluster, WORK).ticks == max(
        (Ticks.of(MODEL, part, WORK) for part in cluster.parts), key=lambda it: it.second
    )
