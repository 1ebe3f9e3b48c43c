"""Rates, blocks and classes of hosts against the widest paths of a graph."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from host_oracle import irregular_hosts, pair_rates
from hypothesis import given
from strategies import examples

import planner
from topologies.irregular import Irregular, Switch
from topologies.ready import read_cluster


@examples(150)
@given(irregular_hosts(most_hosts=7))
def test_blocks_hold_the_pairs_of_their_rate(it):
    """Two hosts share a block of a rate exactly when their widest path has that rate; every rate is some pair's."""
    rates = pair_rates(it)
    a, b = np.triu_indices(len(it.numbers), 1)

    assert np.array_equal(it.pair_rates(a, b), rates[a, b])
    assert it.rates.tolist() == sorted(set(rates[a, b].tolist()))
    for rate, block in zip(it.rates, it.blocks, strict=True):
        assert np.array_equal(block[a] == block[b], rates[a, b] >= rate)


@examples(150)
@given(irregular_hosts(most_hosts=6))
def test_classes_are_twins(it):
    """One class exactly where devices and the rates to all others agree."""
    rates, hosts = pair_rates(it), range(len(it.numbers))
    for a, b in itertools.combinations(hosts, 2):
        others = [h for h in hosts if h not in (a, b)]
        twins = it.devices[a] == it.devices[b] and np.array_equal(rates[a, others], rates[b, others])
        if len(others):
            assert (it.classes[a] == it.classes[b]) == twins


@examples(100)
@given(irregular_hosts(most_hosts=6))
def test_worst_rate_is_that_of_the_worst_pair(it):
    rates = pair_rates(it)
    for size in range(1, len(it.numbers) + 1):
        for some in itertools.combinations(range(len(it.numbers)), size):
            worst = min((rates[a, b] for a, b in itertools.combinations(some, 2)), default=1.0)
            assert it.worst_rate(np.array(some)) == worst


def test_one_slow_card_and_one_narrow_leaf():
    """64 hosts: the slow one by itself, the leaf's eight, the rest; a narrow uplink slows nobody inside its leaf."""
    it = Irregular(
        tuple(range(64)), (8,) * 64, (1.0,) * 17 + (0.12,) + (1.0,) * 46, (Switch("leaf", tuple(range(40, 48)), 0.25),)
    )

    assert np.bincount(it.classes).tolist() == [1, 8, 55]
    assert it.worst_rate(np.arange(40, 48)) == 1.0
    assert it.worst_rate(np.arange(39, 48)) == 0.25
    assert it.worst_rate(np.arange(16, 20)) == 0.12


def test_digest_covers_exceptions():
    cluster = read_cluster("dgx-h100:2")
    slow = dataclasses.replace(cluster, irregular=Irregular((0, 1), (8, 8), (1.0, 0.5)))
    slower = dataclasses.replace(cluster, irregular=Irregular((0, 1), (8, 8), (1.0, 0.4)))

    assert len({cluster.digest, slow.digest, slower.digest}) == 3
    assert slow.scaled(2.0).at_rate(0.5).levels[1].bandwidth_bytes_per_s == cluster.levels[1].bandwidth_bytes_per_s


def test_the_benchmarks_cluster_has_33_classes():
    path = Path(planner.__file__).with_name("irregular_1024.toml")
    cluster = read_cluster(path)

    assert (cluster.hosts, len(set(cluster.classes().tolist()))) == (1024, 33)
