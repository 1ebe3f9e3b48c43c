"""The grain of time: fine where a step is short, and coarse enough for what very slow memories and links take."""

from __future__ import annotations

import dataclasses

import pytest
from oracle import Instance
from searching import search_agrees
from strategies import small_cluster
from test_activation_layers import planted

from cost_models.ticks import MOST_TICKS, Ticks
from cost_models.workload import Training
from planner.read_model import read_model
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
